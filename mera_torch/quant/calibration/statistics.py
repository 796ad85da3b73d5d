"""What is remembered of the values that an activation took during calibration: enough for every kind of observer.

The collectors of two parts of the data merge into that of the whole: exactly so, in any order, but for the last bits of
sums of extremes, and the moving average, whose order is that of the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mera_torch.errors import CalibrationError

_SMALLEST_EXPONENT = -100  # of the histogram's reach: below it values are as good as zero
_CHUNK = 1 << 16  # elements counted at once, so that what is between stays in the cache


class Statistics:
    """Extremes, histogram, and moving average of the extremes, of one value over all batches.

    Args:
        bins: The histogram's bins on each side of zero which the value fills at least; its resolution.
        averaging_constant: Weight of the newest batch in the moving average.

    Attributes:
        low, high: The exact extremes, float; infinity and -infinity before the first batch.
        counts: int64 [2 * side]: how many elements fell into each bin. Bin i is [(i - side) * width, (i - side + 1) *
            width); every element is counted.
        exponent: The histogram reaches from -2**exponent to 2**exponent.
        positions: How many values each channel of a sample has, at least: 1 of vectors [N, C] or [N, C, 1, 1]. Channels
            are dimension 1 of a rank-4 value, the last of a rank 2 or 3.
        total: float64 [2], the sum of each batch's (low, high), zero between them.
        average: float64 [2], the exponential moving average of each batch's (low, high), zero between them.
        batches, elements: How many were seen.
    """

    def __init__(self, bins: int = 2048, averaging_constant: float = 0.01) -> None:
        side = 2 << (bins - 1).bit_length()  # a power of two, and twice: values fill at least half of a side
        self.averaging_constant = averaging_constant
        self.low, self.high = math.inf, -math.inf
        self.counts = np.zeros(2 * side, np.int64)
        self.exponent = _SMALLEST_EXPONENT
        self.positions = 0
        self.total = np.zeros(2)
        self.average = np.zeros(2)
        self.first = np.zeros(2)  # the first batch's, where the average starts
        self.batches = 0
        self.elements = 0

    @property
    def side(self) -> int:
        """Bins on each side of zero."""
        return len(self.counts) // 2

    @property
    def width(self) -> float:
        """Of one bin."""
        return math.ldexp(1.0, self.exponent) / self.side

    def edges(self) -> np.ndarray:
        """float64 [2 * side + 1]: where the bins begin and end."""
        return np.arange(-self.side, self.side + 1) * self.width

    def update(self, x: torch.Tensor) -> None:
        """Adds a batch; nothing if it has no elements.

        Raises:
            CalibrationError: it holds NaN or infinity; the message says how many.
        """
        if not x.numel():
            return
        x = x.detach()
        low, high = (float(extreme) for extreme in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(_not_finite(x))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._see_batch(np.array([min(low, 0.0), max(high, 0.0)]))
        self._see_positions(_positions(x.shape))
        self._reach(max(-low, high))
        self._count(_flat(x))
        self.batches += 1
        self.elements += x.numel()

    def merge(self, other: Statistics) -> None:
        """Adds what `other` saw, after what this one saw; `other` stays as it is.

        Raises:
            CalibrationError: the two have unlike bins or averaging constants.
        """
        if len(other.counts) != len(self.counts) or other.averaging_constant != self.averaging_constant:
            raise CalibrationError(
                "statistics of different histogram_bins or averaging_constant do not merge; calibrate all data with one"
            )
        if not other.batches:
            return
        if not self.batches:
            self.first, self.average = other.first.copy(), other.average.copy()
        else:  # as if the other's average had gone on from this one's
            decay = (1.0 - self.averaging_constant) ** other.batches
            self.average = decay * (self.average - other.first) + other.average
        self.total = self.total + other.total
        self._see_positions(other.positions)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        exponent = max(self.exponent, other.exponent)
        self._widen(exponent)
        self.counts = self.counts + _coarser(other.counts, exponent - other.exponent)
        self.batches += other.batches
        self.elements += other.elements

    def copy(self) -> Statistics:
        return Statistics.from_arrays(self.to_arrays())

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything, as numpy arrays that any format can store; of the histogram, the bins that are in use."""
        used = self.counts.nonzero()[0]
        begin, end = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        return {
            "extremes": np.array([self.low, self.high]),
            "counts": self.counts[begin:end].copy(),
            "histogram": np.array([self.side, begin, self.exponent], np.int64),
            "average": np.array([*self.average, *self.first, self.averaging_constant]),
            "total": self.total.copy(),
            "seen": np.array([self.batches, self.elements, self.positions], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Statistics:
        """The collector that ``to_arrays`` stored.

        Raises:
            CalibrationError: an array is missing, or contradicts the others.
        """
        try:
            return cls._from_arrays({key: np.asarray(arrays[key]) for key in cls().to_arrays()})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CalibrationError(f"stored calibration statistics are damaged: {error}") from error

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Statistics:
        side, begin, exponent = (int(v) for v in arrays["histogram"])
        batches, elements, positions = (int(v) for v in arrays["seen"])
        below, above = (float(v) for v in arrays["total"])
        counts = arrays["counts"]
        *averages, constant = (float(v) for v in arrays["average"])
        low, high = (float(v) for v in arrays["extremes"])
        if side < 2 or side > 1 << 20 or side & (side - 1) or begin < 0 or begin + counts.size > 2 * side:
            raise ValueError(f"{counts.size} counts from bin {begin} do not fit into 2 * {side} bins")
        if counts.dtype.kind not in "iu" or counts.ndim != 1 or (counts < 0).any() or int(counts.sum()) != elements:
            raise ValueError(f"the histogram does not hold {elements} elements")
        if not _SMALLEST_EXPONENT <= exponent <= 128 or not 0 < constant <= 1 or len(averages) != 4:
            raise ValueError("exponent or averaging constant out of range")
        if not (-math.inf < below <= 0 <= above < math.inf) or positions < 0:
            raise ValueError(f"extremes that sum to {below} and {above}, {positions} positions")
        if (
            batches < 0
            or (batches > 0) != (elements > 0)
            or (batches and not (math.isfinite(high - low) and low <= high))
        ):
            raise ValueError(f"extremes {low} and {high} of {batches} batches")
        held = cls(1, constant)
        held.low, held.high = low, high
        held.counts = np.zeros(2 * side, np.int64)
        held.counts[begin : begin + counts.size] = counts
        held.exponent = exponent
        held.average, held.first = np.array(averages[:2]), np.array(averages[2:])
        held.total, held.positions = np.array([below, above]), positions
        held.batches, held.elements = batches, elements
        return held

    def _see_positions(self, positions: int) -> None:
        self.positions = min(self.positions, positions) if self.batches else positions

    def _see_batch(self, extremes: np.ndarray) -> None:
        self.total = self.total + extremes
        if not self.batches:
            self.first, self.average = extremes, extremes
        self.average = self.average + self.averaging_constant * (extremes - self.average)

    def _reach(self, largest: float) -> None:
        exponent = math.frexp(largest)[1]  # largest < 2 ** exponent
        if exponent <= self.exponent or largest == 0.0:
            return
        if self.batches:
            self._widen(exponent)
        else:
            self.exponent = exponent

    def _widen(self, exponent: int) -> None:
        self.counts, self.exponent = _coarser(self.counts, exponent - self.exponent), exponent

    def _count(self, flat: torch.Tensor) -> None:
        side, scale = self.side, self.side * math.ldexp(1.0, -self.exponent)
        counts = torch.zeros(2 * side, dtype=torch.int64)
        for begin in range(0, len(flat), _CHUNK):
            bins = flat[begin : begin + _CHUNK].float().mul(scale).floor_().add_(side).to(torch.int32)
            counts += torch.bincount(bins, minlength=2 * side).cpu()
        self.counts += counts.numpy()


def joined(several: Sequence[Statistics]) -> Statistics:
    """One collector for values that have one quantization, each with its own of the same data: the histogram counts
    them all, and mean and average extremes are those of the value where they are furthest; `several` stay as they
    are."""
    if len(several) == 1:
        return several[0]
    total = several[0].copy()
    for other in several[1:]:
        total.merge(other)
    means = np.array([each.total / max(each.batches, 1) for each in several])
    averages = np.array([each.average for each in several])
    total.total = _furthest(means) * total.batches
    total.average = _furthest(averages)
    return total


def _furthest(ranges: np.ndarray) -> np.ndarray:
    """The lowest and the highest of ranges [N, 2]."""
    return np.array([ranges[:, 0].min(), ranges[:, 1].max()])


def to_arrays(held: Mapping[str, Statistics]) -> dict[str, np.ndarray]:
    """The collectors of a network's values, by name, as arrays with names ``"VALUE/ARRAY"``."""
    return {f"{name}/{key}": array for name, each in held.items() for key, array in each.to_arrays().items()}


def from_arrays(arrays: Mapping[str, Any]) -> dict[str, Statistics]:
    """What ``to_arrays`` made arrays of.

    Raises:
        CalibrationError: an array is missing, or contradicts the others; the message names the value.
    """
    by_name: dict[str, dict[str, Any]] = {}
    for path, array in arrays.items():
        name, _, key = path.rpartition("/")
        by_name.setdefault(name, {})[key] = array
    found = {}
    for name, held in by_name.items():
        try:
            found[name] = Statistics.from_arrays(held)
        except CalibrationError as error:
            raise CalibrationError(f"{name!r}: {error}") from error
    return found


def _positions(shape: torch.Size) -> int:
    """How many values each channel of a sample has."""
    channels = {2: -1, 3: -1, 4: 1}.get(len(shape))
    of_channels = 1 if channels is None else shape[channels]
    return math.prod(shape[1:]) // of_channels


def _flat(x: torch.Tensor) -> torch.Tensor:
    """All elements in the order of memory: no copy, whatever the layout."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return x.permute(order).reshape(-1)


def _coarser(counts: np.ndarray, doublings: int) -> np.ndarray:
    """The same histogram over a range that is 2 ** doublings times as wide, in as many bins."""
    if not doublings:
        return counts
    total, result = len(counts), np.zeros_like(counts)
    doublings = min(doublings, total.bit_length() - 2)  # then a bin a side is left
    narrow = counts.reshape(-1, 1 << doublings).sum(1)
    begin = (total - len(narrow)) // 2
    result[begin : begin + len(narrow)] = narrow
    return result


def _not_finite(x: torch.Tensor) -> str:
    nan, infinite = int(torch.isnan(x).sum()), int(torch.isinf(x).sum())
    kinds = [f"{kind} in {count}" for kind, count in (("NaN", nan), ("infinity", infinite)) if count]
    return f"holds {' and '.join(kinds)} of {x.numel()} elements"
