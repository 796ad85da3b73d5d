"""Histograms of float and quantized values on one grid, of a whole tensor and of its channels, over any number of
batches: every count is exact, whatever the order of the batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from .metrics import Decibels, WideSum, decibels

BINS = 256
"""What is counted: one bin a code of int8."""
TENSOR_BINS, CHANNEL_BINS = 64, 32
"""What is kept of it, of a tensor and of each channel."""
MOST_CHANNELS = 4096  # a tensor of more channels is counted as a whole only


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width: bin i holds low + i * width <= x < low + (i + 1) * width.

    reference, measured: counts of the float values and of the quantized ones. Float values beyond the ends are counted
    in the bins at the ends.
    """

    low: float
    width: float
    reference: tuple[int, ...]
    measured: tuple[int, ...]


@dataclass(frozen=True)
class Channel:
    """One channel: extremes of the float and of the quantized values, SQNR in dB (infinite where equal), histogram."""

    index: int
    reference_low: float
    reference_high: float
    measured_low: float
    measured_high: float
    sqnr: Decibels
    histogram: Histogram


class Grid(Protocol):
    """Bins over the real numbers."""

    def index(self, x: torch.Tensor) -> torch.Tensor:
        """The bin, 0 to 255, of each element; int64, of the same shape."""

    def edges(self, bins: int) -> tuple[float, float]:
        """(low, width) of `bins` bins, neighbours merged."""


class CodeGrid:
    """A bin for each code of an 8-bit quantization: code q is scale * (q - zero_point)."""

    def __init__(self, scale: float, zero_point: int, lowest: int) -> None:
        self.scale, self.zero_point, self.lowest = scale, zero_point, lowest

    def code(self, x: torch.Tensor) -> torch.Tensor:
        """float, as quantize_per_tensor computes it (round half to even of x / scale), but not clamped."""
        return torch.round(x * (1.0 / self.scale)) + self.zero_point

    def index(self, x: torch.Tensor) -> torch.Tensor:
        return (self.code(x.float()).clamp(self.lowest, self.lowest + BINS - 1) - self.lowest).long()

    def edges(self, bins: int) -> tuple[float, float]:
        return (self.lowest - self.zero_point - 0.5) * self.scale, self.scale * (BINS // bins)


class PowerGrid:
    """Bins whose width is a power of two, half of them on each side of zero. The width grows with what is seen;
    neighbours are merged then, which gives what the larger width would have given from the beginning."""

    def __init__(self) -> None:
        self.exponent: int | None = None  # of the width; None: only zeros yet

    def widen(self, largest: float) -> int:
        """Makes room for values of that magnitude; by how many powers of two bins that were there widen."""
        if largest == 0.0:
            return 0
        exponent = math.frexp(largest)[1] - int(math.log2(BINS // 2))
        if self.exponent is None:
            self.exponent = exponent
            return 0
        grown = max(0, exponent - self.exponent)
        self.exponent += grown
        return grown

    def index(self, x: torch.Tensor) -> torch.Tensor:
        scaled = torch.floor(torch.ldexp(x.double(), torch.tensor(float(-(self.exponent or 0)))))
        return (scaled + BINS // 2).clamp(0, BINS - 1).long()

    def edges(self, bins: int) -> tuple[float, float]:
        width = math.ldexp(1.0, self.exponent or 0)
        return -width * (BINS // 2), width * (BINS // bins)


class PairHistogram:
    """Counts of two tensors on one grid.

    grid: a CodeGrid for what is quantized to 8 bits, else a PowerGrid. axis: the channels' dimension, None to count no
    channels.
    """

    def __init__(self, grid: CodeGrid | PowerGrid, axis: int | None = None) -> None:
        self.grid, self.axis = grid, axis
        self.saturated = [0, 0]  # at the low and at the high end
        self._counts = np.zeros((2, 1, BINS), np.int64)
        self._channels: _Channels | None = None

    def add(self, reference: torch.Tensor, measured: torch.Tensor) -> None:
        """Two tensors of one shape; infinite and NaN elements are left out."""
        f, g = (x.detach() if x.is_floating_point() else x.double() for x in (reference, measured))
        finite = None
        if not (math.isfinite(float(f.double().sum())) and math.isfinite(float(g.double().sum()))):
            finite = torch.isfinite(f) & torch.isfinite(g)
            f, g = torch.where(finite, f, 0), torch.where(finite, g, 0)
        channels = f.shape[self.axis] if self.axis is not None and f.dim() else 0
        if self._channels is None and 1 < channels <= MOST_CHANNELS and f.numel():
            self._channels = _Channels(channels)
        if isinstance(self.grid, PowerGrid) and f.numel():
            largest = max(float(f.abs().max()), float(g.abs().max()))
            self._widen(self.grid.widen(largest))
        indices = [self.grid.index(x) for x in (f, g)]
        if isinstance(self.grid, CodeGrid):
            self._count_saturated(self.grid, f, indices[1])
        for side, index in enumerate(indices):
            counted = index.reshape(-1) if finite is None else index[finite]
            self._counts[side, 0] += torch.bincount(counted, minlength=BINS).numpy()
        if self._channels is not None and self.axis is not None:
            finite = torch.ones_like(f, dtype=torch.bool) if finite is None else finite
            self._channels.add(*(x.movedim(self.axis, 0).flatten(1) for x in (finite, f, g, *indices)))

    def _count_saturated(self, grid: CodeGrid, f: torch.Tensor, index: torch.Tensor) -> None:
        code = grid.code(f.float())
        self.saturated[0] += int(((code < grid.lowest) & (index == 0)).sum())
        self.saturated[1] += int(((code > grid.lowest + BINS - 1) & (index == BINS - 1)).sum())

    def _widen(self, powers: int) -> None:
        if powers:
            self._counts = _merged(self._counts, powers)
            if self._channels is not None:
                self._channels.counts = _merged(self._channels.counts, powers)

    @property
    def codes_used(self) -> int:
        """How many bins the measured values use."""
        return int(np.count_nonzero(self._counts[1, 0]))

    @property
    def entropy(self) -> float:
        """Of the measured values' bins, in bits."""
        p = self._counts[1, 0] / max(1, self._counts[1, 0].sum())
        return float(-(p[p > 0] * np.log2(p[p > 0])).sum()) + 0.0

    @property
    def kl(self) -> float:
        """Kullback-Leibler divergence of the measured values from the reference, in bits, of the bins' frequencies with
        half a count added to each."""
        p, q = (counts + 0.5 for counts in self._counts[:, 0])
        p, q = p / p.sum(), q / q.sum()
        return max(0.0, float((p * np.log2(p / q)).sum()))

    def histogram(self) -> Histogram:
        """Of the whole tensor, TENSOR_BINS."""
        return _histogram(self.grid, self._counts[:, 0], TENSOR_BINS)

    def channels(self, most: int) -> tuple[Channel, ...]:
        """The channels of least SQNR, `most` of them at most, in the order of their indices."""
        return () if self._channels is None else self._channels.worst(self.grid, most)

    def channel_sqnr(self) -> tuple[float, ...]:
        """SQNR of every channel in dB; empty if channels are not counted."""
        return () if self._channels is None else tuple(self._channels.sqnr())


class _Channels:
    def __init__(self, channels: int) -> None:
        self.counts = np.zeros((2, channels, CHANNEL_BINS), np.int64)
        self._sums = (WideSum(channels), WideSum(channels))  # f f, e e
        self._low = np.full((2, channels), np.inf)
        self._high = np.full((2, channels), -np.inf)

    def add(self, finite: torch.Tensor, f: torch.Tensor, g: torch.Tensor, *indices: torch.Tensor) -> None:
        """All [channels, elements]; of f and g, which are 0 where not `finite`, only the other elements count."""
        whole = bool(finite.all())
        for side, x in enumerate((f, g)):
            low, high = (x, x) if whole else (torch.where(finite, x, math.inf), torch.where(finite, x, -math.inf))
            self._low[side] = np.minimum(self._low[side], low.amin(1).double().numpy())
            self._high[side] = np.maximum(self._high[side], high.amax(1).double().numpy())
        f64 = f.double()
        for sums, x in zip(self._sums, (f64, g.double() - f64), strict=True):
            sums.add(x.square().sum(1).numpy())
        channels = len(f)
        first = torch.arange(channels)[:, None] * CHANNEL_BINS
        for side, index in enumerate(indices):
            bins = index // (BINS // CHANNEL_BINS) + first
            counted = bins.reshape(-1) if whole else bins[finite]
            found = torch.bincount(counted, minlength=channels * CHANNEL_BINS)
            self.counts[side] += found.view(channels, CHANNEL_BINS).numpy()

    def sqnr(self) -> list[float]:
        return [decibels(float(ff), float(ee)) for ff, ee in zip(*(s.total for s in self._sums), strict=True)]

    def worst(self, grid: Grid, most: int) -> tuple[Channel, ...]:
        ratios = self.sqnr()
        chosen = sorted(sorted(range(len(ratios)), key=lambda c: (ratios[c], c))[:most])
        return tuple(self._channel(grid, c, ratios[c]) for c in chosen)

    def _channel(self, grid: Grid, c: int, sqnr: float) -> Channel:
        seen = self._low[:, c] <= self._high[:, c]  # no element is finite else
        low, high = (np.where(seen, ends[:, c], 0.0).tolist() for ends in (self._low, self._high))
        return Channel(c, low[0], high[0], low[1], high[1], sqnr, _histogram(grid, self.counts[:, c], CHANNEL_BINS))


def _histogram(grid: Grid, counts: np.ndarray, bins: int) -> Histogram:
    merged = counts.reshape(2, bins, -1).sum(2)
    return Histogram(*grid.edges(bins), *(tuple(int(n) for n in side) for side in merged))


def _merged(counts: np.ndarray, powers: int) -> np.ndarray:
    """counts [..., bins] centred on zero, in bins wider by so many powers of two."""
    bins = counts.shape[-1]
    target = ((np.arange(bins) - bins // 2) >> min(powers, 62)) + bins // 2
    found = np.zeros_like(counts)
    for old, new in enumerate(target):
        found[..., new] += counts[..., old]
    return found


def channel_axis(shape: Sequence[int], convolves: bool) -> int | None:
    """The dimension of the channels: 1 of an image's [N, C, H, W] and whatever a convolution gives, else the last; None
    where there is none."""
    if len(shape) < 2:
        return None
    return 1 if len(shape) >= 4 or convolves else len(shape) - 1
