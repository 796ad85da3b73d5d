"""From the statistics of an activation to the range that int8 shall represent.

A range (low, high) always contains zero, which the int8 grid over it represents exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .statistics import Statistics

SMALLEST_SCALE = float(np.finfo(np.float32).eps)
LEVELS = (-128, 127)
_CANDIDATES = 100  # thresholds tried on each side
_SEARCH_ROUNDS = 2
_VALUES_PER_BIN = 64
_MAP = 16
_HEADROOM = 1.25
_INT8 = np.arange(LEVELS[0], LEVELS[1] + 1)

Range = tuple[float, float]
Objective = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(scale, zero point) of K candidates, float64 [K] each -> what is to be least, float64 [K]."""


def find_range(seen: Statistics, kind: str, *, percentile: float = 99.99, symmetric: bool = False) -> Range:
    """The range by observer kind (``QuantConfig.activation_observer``); symmetric: (-t, t).

    auto: That of least squared error, but of a map of _MAP positions or more no further than the mean of the batches'
    extremes: what lies beyond is rare in a map, while the rounding errors of a wide range are everywhere, alike over
    flat regions, and add up. The extremes of a vector are what it says, those of few positions chance. (Quantization
    after training goes on from there: :func:`~mera_torch.quant.calibration.tune.tune_ranges`.)
    """
    if kind == "auto":
        low, high = find_range(seen, "histogram", symmetric=symmetric)
        usual = find_range(seen, "mean", symmetric=symmetric) if seen.positions >= _MAP else (low, high)
        return max(low, usual[0]), min(high, usual[1])
    if kind == "mean":
        low, high = seen.total / seen.batches
        return _around_zero(float(low), float(high), symmetric)
    if kind in ("minmax", "headroom"):
        more = _HEADROOM if kind == "headroom" else 1.0
        return _around_zero(more * extremes(seen)[0], more * extremes(seen)[1], symmetric)
    if kind == "moving_average":
        return _around_zero(float(seen.average[0]), float(seen.average[1]), symmetric)
    if kind == "percentile":
        return percentile_range(seen, percentile, symmetric)
    return _search(seen, (least_error if kind == "histogram" else least_divergence)(seen), symmetric)


def extremes(seen: Statistics) -> Range:
    return min(seen.low, 0.0), max(seen.high, 0.0)


def grid(low: np.ndarray, high: np.ndarray, symmetric: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero point) of the int8 grid over each range, float64."""
    first, last = LEVELS
    if symmetric:
        return np.maximum(np.maximum(-low, high) / last, SMALLEST_SCALE), np.zeros_like(low)
    scale = np.maximum((high - low) / (last - first), SMALLEST_SCALE)
    return scale, np.clip(np.rint(first - low / scale), first, last)


def percentile_range(seen: Statistics, percentile: float, symmetric: bool = False) -> Range:
    """All but the (100 - percentile) per cent of the values that are rarest: half of them below, half above; symmetric:
    those of largest magnitude. Values are taken for evenly spread within a bin of the histogram."""
    rare = (100.0 - percentile) / 100.0 * seen.elements
    edges, counts = seen.edges(), seen.counts
    if symmetric:
        magnitudes = counts[seen.side :] + counts[: seen.side][::-1]
        high = _quantile(edges[seen.side :], magnitudes, seen.elements - rare)
        return _around_zero(0.0, min(high, max(-seen.low, seen.high)), True)
    low, high = (_quantile(edges, counts, rank) for rank in (rare / 2, seen.elements - rare / 2))
    return min(max(low, seen.low), 0.0), max(min(high, seen.high), 0.0)


def _quantile(edges: np.ndarray, counts: np.ndarray, rank: float) -> float:
    """Below which value `rank` of the counted values lie."""
    below = np.concatenate(([0], np.cumsum(counts)))
    used = np.flatnonzero(counts)
    i = used[min(int(np.searchsorted(below[used + 1], rank)), used.size - 1)]
    return float(edges[i] + (edges[i + 1] - edges[i]) * (rank - below[i]) / counts[i])


def least_error(seen: Statistics) -> Objective:
    """The squared error of rounding to the grid and clipping to its ends, summed over the histogram; each bin's values
    are taken for its centre."""
    held = _Histogram(seen.counts, seen.width)

    def error(scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        levels = (_INT8 - zero[:, None]) * scale[:, None]
        between = held.first_bin((levels[:, :-1] + levels[:, 1:]) / 2)
        ends = np.broadcast_to([0, 2 * held.side], (len(scale), 2))
        cells = np.concatenate((ends[:, :1], between, ends[:, 1:]), 1)
        n, x, xx = (np.diff(sums[cells], axis=1) for sums in (held.n, held.x, held.xx))
        total: np.ndarray = (xx - 2 * levels * x + levels**2 * n).sum(1)
        return total

    return error


def least_divergence(seen: Statistics) -> Objective:
    """The Kullback-Leibler divergence of the histogram clipped to a range from the histogram that int8 leaves of it.

    As calibration in TensorRT does (S. Migacz, "8-bit Inference with TensorRT", GTC 2017, entropy calibration), but for
    any zero point and the 256 levels of the grid. P: the bins within the range, those beyond added to the outermost
    ones. Q: the same bins without those beyond, the counts of one level spread evenly over its bins that are not empty.
    D(P || Q) = sum of P log(P / Q); infinite, so never least, where Q is 0 and P is not.
    """
    held = _for_divergence(seen)
    entropy = np.concatenate(([0.0], np.cumsum(_x_log_x(held.counts))))
    filled = np.concatenate(([0], np.cumsum(held.counts > 0)))
    total = float(held.n[-1])

    def divergence(scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        levels = (_INT8 - zero[:, None]) * scale[:, None]
        first, end = held.first_bin(levels[:, 0]), held.first_bin(levels[:, -1])
        between = np.clip(held.first_bin((levels[:, :-1] + levels[:, 1:]) / 2), first[:, None], end[:, None])
        cells = np.concatenate((first[:, None], between, end[:, None]), 1)
        n, bins = np.diff(held.n[cells], axis=1), np.diff(filled[cells], axis=1)
        log_q = np.log(np.maximum(n, 1) / np.maximum(bins, 1))  # of each level; not yet divided by the sum of Q
        result: np.ndarray = entropy[end] - entropy[first] - (n * log_q).sum(1)
        wide = np.diff(cells, axis=1) > 0
        outermost = wide.argmax(1), wide.shape[1] - 1 - wide[:, ::-1].argmax(1)  # levels that have a bin at all
        for edge, level, beyond in zip((first, end - 1), outermost, (held.n[first], total - held.n[end]), strict=True):
            inside = held.counts[np.clip(edge, 0, 2 * held.side - 1)]
            more = _x_log_x(inside + beyond) - _x_log_x(inside) - beyond * log_q[np.arange(len(scale)), level]
            result += np.where(beyond == 0, 0.0, np.where(inside == 0, np.inf, more))
        within = held.n[end] - held.n[first]
        with np.errstate(divide="ignore", invalid="ignore"):
            result = result / total - np.log(total) + np.log(within)
        result[within == 0] = np.inf
        return result

    return divergence


def _for_divergence(seen: Statistics) -> _Histogram:
    """The histogram, no finer than its number of values supports (some 64 a bin, but two bins a level at least):
    the divergence of a sparse one would be that of its noise.

    The two bins at zero count as many values as their outer neighbours: the zeros of a relu, which int8 represents
    exactly, would outweigh all else (TensorRT's pytorch-quantization does so with its bin 0).
    """
    counts, width = seen.counts, seen.width
    used = np.flatnonzero(counts)
    span = int(used[-1] - used[0]) + 1 if used.size else 0
    while span > max(2 * len(_INT8), seen.elements / _VALUES_PER_BIN):
        counts, width, span = counts.reshape(-1, 2).sum(1), width * 2, span // 2
    counts = counts.copy()
    side = len(counts) // 2
    counts[side - 1], counts[side] = counts[side - 2], counts[side + 1]
    return _Histogram(counts, width)


def _search(seen: Statistics, objective: Objective, symmetric: bool) -> Range:
    """The range of least `objective` among fractions of the extremes, side after side; the widest of equals."""
    lowest, highest = extremes(seen)
    fractions = np.linspace(1.0, 1.0 / _CANDIDATES, _CANDIDATES)

    def best(low: np.ndarray, high: np.ndarray) -> Range:
        i = int(objective(*grid(low, high, symmetric)).argmin())
        return float(low[i]), float(high[i])

    if symmetric:
        threshold = fractions * max(-lowest, highest)
        return best(-threshold, threshold)
    low, high = lowest, highest
    for _ in range(_SEARCH_ROUNDS):
        if highest > 0:
            high = best(np.full(_CANDIDATES, low), fractions * highest)[1]
        if lowest < 0:
            low = best(fractions * lowest, np.full(_CANDIDATES, high))[0]
    return low, high


class _Histogram:
    """Counts of bins centred on zero, and running sums over them, [bins + 1] each: n of the counts, x of the values,
    each taken for its bin's centre, xx of their squares."""

    def __init__(self, counts: np.ndarray, width: float) -> None:
        self.counts, self.width, self.side = counts.astype(np.float64), width, len(counts) // 2
        centres = (np.arange(-self.side, self.side) + 0.5) * width
        self.n, self.x, self.xx = (
            np.concatenate(([0.0], np.cumsum(self.counts * factor))) for factor in (1.0, centres, centres**2)
        )

    def first_bin(self, value: np.ndarray) -> np.ndarray:
        """The first bin whose centre is not below each value; 2 * side if there is none."""
        i: np.ndarray = np.clip(np.ceil(value / self.width - 0.5) + self.side, 0, 2 * self.side)
        return i.astype(np.int64)


def _x_log_x(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = x * np.log(np.where(x > 0, x, 1.0))
    return result


def _around_zero(low: float, high: float, symmetric: bool) -> Range:
    if symmetric:
        largest = max(-low, high)
        return -largest, largest
    return min(low, 0.0), max(high, 0.0)
