"""What calibration data shows of the values of a float network: ranges, channels and histograms, in one pass and in
memory that does not grow with the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from ..calibration.observers import affine
from ..calibration.statistics import Statistics
from ..graphs import operators as ops
from ..graphs.patterns import value_of
from ..graphs.run import run_batch

_SAMPLE = 1 << 14  # elements of one tensor that go into its histogram; extremes and counts are of all


class ActivationStatistics:
    """One float value over all batches.

    Attributes:
        low, high: The extremes seen; NaN and infinity aside.
        count: Elements seen.
        bad: Elements that are NaN or infinite.
        nearest_zero: The least magnitude seen.
        channel_low, channel_high: float32 [C], the extremes of each channel; None for a value without channels.
        channel_dim: The dimension of the channels.
    """

    def __init__(self, channel_dim: int | None) -> None:
        self.channel_dim = channel_dim
        self.low, self.high, self.nearest_zero = math.inf, -math.inf, math.inf
        self.count = self.bad = 0
        self.channel_low: torch.Tensor | None = None
        self.channel_high: torch.Tensor | None = None
        self._sample = Statistics(bins=1024)
        self._sum = self._squares = 0.0  # of the sample
        self._zeros = 0

    @property
    def magnitude(self) -> float:
        """The largest magnitude seen; 0 if nothing finite was."""
        return max(-self.low, self.high, 0.0) if self.count > self.bad else 0.0

    @property
    def span(self) -> float:
        """The width of the range that int8 must represent, zero included."""
        return max(self.high, 0.0) - min(self.low, 0.0) if self.count > self.bad else 0.0

    def observe(self, x: torch.Tensor) -> None:
        """Adds a float32 tensor of any shape."""
        if not x.numel():
            return
        x = x.detach()
        self.count += x.numel()
        low, high = (float(v) for v in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = torch.isfinite(x)
            self.bad += int((~finite).sum())
            x = torch.where(finite, x, torch.zeros(()))
            low, high = (float(v) for v in torch.aminmax(x))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._observe_channels(x)
        self._observe_sample(x.reshape(-1))

    def _observe_channels(self, x: torch.Tensor) -> None:
        if self.channel_dim is None:
            return
        others = [d for d in range(x.dim()) if d != self.channel_dim % x.dim()]
        low, high = x.amin(others), x.amax(others)
        if self.channel_low is None or self.channel_high is None:
            self.channel_low, self.channel_high = low, high
        else:
            torch.minimum(self.channel_low, low, out=self.channel_low)
            torch.maximum(self.channel_high, high, out=self.channel_high)

    def _observe_sample(self, flat: torch.Tensor) -> None:
        # An odd stride does not fall in step with the even row lengths of images.
        flat = flat[:: (flat.numel() // _SAMPLE) | 1] if flat.numel() > _SAMPLE else flat
        self.nearest_zero = min(self.nearest_zero, float(flat.abs().min()))
        self._zeros += int((flat == 0).sum())
        double = flat.double()
        self._sum += float(double.sum())
        self._squares += float(double.square().sum())
        self._sample.update(flat)

    # ---- what follows from it ----

    @property
    def variance(self) -> float:
        """Of the sample, which is evenly drawn."""
        n = self._sample.elements
        return max(self._squares / n - (self._sum / n) ** 2, 0.0) if n else 0.0

    def share(self, low: float, high: float) -> float:
        """Which part of the values lies in [low, high], 0 to 1, to within a bin."""
        values, counts = self._filled()
        n = self._sample.elements
        return float(counts[(values >= low) & (values <= high)].sum() / n) if n else 0.0

    @property
    def vanishing(self) -> float:
        """Which part of the values other than 0 is below half a step of int8 over their own range, 0 to 1."""
        n = self._sample.elements - self._zeros
        half = self.span / 255 / 2
        return max(self.share(-half, half) * self._sample.elements - self._zeros, 0.0) / n if n > 0 else 0.0

    def quantile_of_magnitude(self, share: float) -> float:
        """The magnitude that the given share of the values stays below, to within a bin."""
        if not self._sample.elements:
            return 0.0
        side, counts = self._sample.side, self._sample.counts
        cumulated = np.cumsum(counts[side:] + counts[:side][::-1]) / self._sample.elements
        return float((np.searchsorted(cumulated, share) + 1) * self._sample.width)

    def noise(self, low: float, high: float) -> float:
        """The mean squared error that the int8 grid over [low, high] gives these values; the range must hold 0."""
        x, counts = self._filled()
        if not len(x):
            return 0.0
        scale, zero = affine(low, high)
        levels = np.clip(np.rint(x / scale + zero), -128, 127)
        return float(((((levels - zero) * scale - x) ** 2) * counts).sum() / counts.sum())

    def sqnr(self, low: float, high: float) -> float:
        """What these values keep under the int8 grid over [low, high]: variance / squared error, in dB; infinite
        where nothing is lost or nothing varies."""
        noise, variance = self.noise(low, high), self.variance
        if noise == 0.0 or variance == 0.0:
            return math.inf
        return 10.0 * math.log10(variance / noise)

    def _filled(self) -> tuple[np.ndarray, np.ndarray]:
        """The middles of the bins in use, and what is in them."""
        used = self._sample.counts.nonzero()[0]
        return (used - self._sample.side + 0.5) * self._sample.width, self._sample.counts[used]

    @property
    def own_sqnr(self) -> float:
        """Under the grid of their own range, in dB."""
        return self.sqnr(min(self.low, 0.0), max(self.high, 0.0))


def channel_dim(node: Node) -> int | None:
    """The dimension of `node`'s value in which its channels lie: 1 of images and of what 1-d convolutions give, else
    the last; None for vectors and scalars."""
    value = value_of(node)
    if value is None or value.dim() < 2 or not value.numel():
        return None
    one_dimensional = node.target in ops.CONV_1D or node.target is ops.aten.conv_transpose1d.default
    return 1 if value.dim() == 4 or one_dimensional else value.dim() - 1


def measure(
    model: GraphModule, batches: Iterable[tuple[Any, ...]], wanted: Callable[[Node], bool] = lambda node: True
) -> dict[Node, ActivationStatistics]:
    """The statistics of every float32 value of `model` that is `wanted`, its inputs and constants included."""
    found: dict[Node, ActivationStatistics] = {}
    chosen = {node: channel_dim(node) for node in model.graph.nodes if node.op != "output" and wanted(node)}

    def visit(node: Node, value: Any) -> None:
        if node not in chosen or not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return
        if node.op == "get_attr" and node in found:
            return
        if node not in found:
            found[node] = ActivationStatistics(chosen[node])
        found[node].observe(value)

    for inputs in batches:
        run_batch(model, inputs, visit)
    return found
