"""What calibration data shows of the values of a float network: ranges, channels and histograms, in one pass and in
memory that does not grow with the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from ..calibration.observers import affine
from ..graphs import operators as ops
from ..graphs.patterns import attribute, value_of

BINS = 2048  # on each side of zero
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
        self.total = self.squares = 0.0  # of the histogram's sample
        self._width = 0.0
        self._zeros = 0
        self._counts = np.zeros(2 * BINS)

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
        self._observe_sample(x, max(-low, high))

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

    def _observe_sample(self, x: torch.Tensor, largest: float) -> None:
        flat = x.reshape(-1)
        # An odd stride does not fall in step with the even row lengths of images.
        flat = flat[:: (flat.numel() // _SAMPLE) | 1] if flat.numel() > _SAMPLE else flat
        self.nearest_zero = min(self.nearest_zero, float(flat.abs().min()))
        self._zeros += int((flat == 0).sum())
        double = flat.double()
        self.total += float(double.sum())
        self.squares += float(double.square().sum())
        if largest == 0.0:
            self._counts[BINS] += flat.numel()
            return
        if self._width == 0.0:
            self._width = largest / BINS
        while largest > self._width * BINS:
            merged = self._counts.reshape(-1, 2).sum(1)
            self._counts[:] = 0.0
            self._counts[BINS // 2 : BINS // 2 + BINS] = merged
            self._width *= 2
        reach = self._width * BINS
        self._counts += torch.histc(flat.float(), 2 * BINS, -reach, reach).numpy()

    # ---- what follows from it ----

    @property
    def variance(self) -> float:
        """Of the sample, which is evenly drawn."""
        n = float(self._counts.sum())
        return max(self.squares / n - (self.total / n) ** 2, 0.0) if n else 0.0

    def share(self, low: float, high: float) -> float:
        """Which part of the values lies in [low, high], 0 to 1, to within a bin."""
        centres = (np.arange(2 * BINS) - BINS + 0.5) * self._width
        n = self._counts.sum()
        return float(self._counts[(centres >= low) & (centres <= high)].sum() / n) if n else 0.0

    @property
    def vanishing(self) -> float:
        """Which part of the values other than 0 is below half a step of int8 over their own range, 0 to 1."""
        n = float(self._counts.sum()) - self._zeros
        half = self.span / 255 / 2
        return max(self.share(-half, half) * float(self._counts.sum()) - self._zeros, 0.0) / n if n > 0 else 0.0

    def quantile_of_magnitude(self, share: float) -> float:
        """The magnitude that the given share of the values stays below, to within a bin."""
        folded = self._counts[BINS:] + self._counts[:BINS][::-1]
        if not folded.sum():
            return 0.0
        cumulated = np.cumsum(folded) / folded.sum()
        return float((np.searchsorted(cumulated, share) + 1) * self._width)

    def noise(self, low: float, high: float) -> float:
        """The mean squared error that the int8 grid over [low, high] gives these values; the range must hold 0."""
        used = self._counts.nonzero()[0]
        x, counts = (used - BINS + 0.5) * self._width, self._counts[used]
        if not len(used):
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


def run_batch(model: GraphModule, inputs: Iterable[Any], visit: Callable[[Node, Any], object]) -> None:
    """Computes `model` on one batch, each value forgotten after its last reader; `visit` sees every node's value.

    Constants are visited as well. `inputs` are the model's positional inputs.
    """
    leaves = iter(pytree.tree_leaves(tuple(inputs)))
    last_reader = {source: node for node in model.graph.nodes for source in node.all_input_nodes}
    values: dict[Node, Any] = {}
    with torch.no_grad():
        for node in model.graph.nodes:
            if node.op == "output":
                return
            if node.op == "placeholder":
                values[node] = next(leaves)
            elif node.op == "get_attr":
                values[node] = attribute(model, str(node.target))
            else:
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
                function: Any = model.get_submodule(str(node.target)) if node.op == "call_module" else node.target
                values[node] = function(*args, **kwargs)
            visit(node, values[node])
            for source in node.all_input_nodes:
                if last_reader[source] is node:
                    del values[source]


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
