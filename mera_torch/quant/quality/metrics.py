"""How far two tensors are apart, over any number of batches: in constant memory, whatever the order of the batches."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import BeforeValidator, PlainSerializer

LOWEST_DECIBELS = -300.0
"""What stands for noise where there is no signal at all."""
_LOWEST_SCORE = -1000.0  # a score below is counted as this one in the median; the minimum is exact


def _from_json(value: object) -> object:
    return math.inf if value is None else value


def _to_json(value: float) -> float | None:
    return value if math.isfinite(value) else None


Decibels = Annotated[float, BeforeValidator(_from_json), PlainSerializer(_to_json)]
"""A ratio in dB, infinite where nothing differs: null in JSON."""


class WideSum:
    """Sums of float64 vectors in twice float64's precision (Knuth's TwoSum), so that the order of batches cannot be
    seen in the result."""

    def __init__(self, size: int) -> None:
        self._high, self._low = np.zeros(size), np.zeros(size)

    def add(self, values: np.ndarray) -> None:
        high = self._high + values
        part = high - self._high
        low = self._low + ((self._high - (high - part)) + (values - part))
        self._high = high + low
        self._low = low - (self._high - high)

    @property
    def total(self) -> np.ndarray:
        """float64 [size]."""
        return self._high + self._low


class Percentages:
    """Numbers of at most 100, one a sample, counted by hundredths: memory does not grow with the samples."""

    def __init__(self) -> None:
        self.lowest = math.inf
        self._counts: Counter[int] = Counter()

    def add(self, value: float) -> None:
        self.lowest = min(self.lowest, value)
        self._counts[round(100 * max(value, _LOWEST_SCORE))] += 1

    @property
    def median(self) -> float:
        """To the hundredth; of an even number of samples the mean of the middle two."""
        total = sum(self._counts.values())
        if not total:
            return 100.0
        middle = ((total - 1) // 2, total // 2)
        found, seen = [], 0
        for value, count in sorted(self._counts.items()):
            found += [value / 100] * sum(seen <= rank < seen + count for rank in middle)
            seen += count
        return round(sum(found) / 2, 3)


@dataclass(frozen=True)
class Metrics:
    """How far measured values g are from those of a reference f, e = g - f; docs/quality.md has every formula.

    Attributes:
        elements: How many elements were compared, in all samples; `samples`: how many samples.
        different: How many of them differ at all.
        psnr: Peak signal-to-noise ratio in dB; the peak is the largest magnitude of the reference in all samples.
        sqnr: Signal-to-quantization-noise ratio in dB, sum of f squared over sum of e squared.
        cosine: Cosine similarity; 1 for two tensors of zeros, 0 if one of them is zeros.
        mean_error, mean_abs_error, std_error, mse, max_error: Mean of e, of its magnitude, its standard deviation, the
            mean of its square, its largest magnitude.
        low, high: The extremes of the reference.
        score: Median over the samples of 100 * (1 - max |e| / (max f - min f)); score_min: the lowest one.
        psnr_min: The lowest PSNR of a sample, whose peak is its own largest magnitude.
        kl: Kullback-Leibler divergence of the histograms of g from those of f, in bits; None without histograms.
        non_finite: Elements left out of all sums because f or g is infinite or NaN there.

    Ratios in dB are infinite where nothing differs, and LOWEST_DECIBELS where the reference is all zeros.
    """

    elements: int
    samples: int
    different: int
    psnr: Decibels
    sqnr: Decibels
    cosine: float
    mean_error: float
    mean_abs_error: float
    std_error: float
    mse: float
    max_error: float
    low: float
    high: float
    score: float
    score_min: float
    psnr_min: Decibels
    kl: float | None = None
    non_finite: int = 0

    @property
    def equal(self) -> bool:
        """Whether no element differs."""
        return self.different == 0

    @property
    def matching(self) -> float:
        """The part of the elements that are equal, 0 to 1."""
        return 1.0 - self.different / self.elements if self.elements else 1.0


class PairSums:
    """What :class:`Metrics` are computed from."""

    def __init__(self) -> None:
        self._sums = WideSum(5)  # e, |e|, e e, f f, f e
        self.elements = self.samples = self.different = self.non_finite = 0
        self.max_error = 0.0
        self.low, self.high = math.inf, -math.inf
        self._scores = Percentages()
        self._psnr_min = math.inf

    def add(self, reference: torch.Tensor, measured: torch.Tensor, samples: int = 1) -> None:
        """Two tensors of one shape, any real dtype; samples: how many the first dimension holds (1: all is one)."""
        f, g = reference.detach().double().reshape(-1), measured.detach().double().reshape(-1)
        e, finite = g - f, None
        squares = float(e.dot(e)) + float(f.dot(f))
        if not math.isfinite(squares):
            finite = torch.isfinite(f) & torch.isfinite(g)
            self.different += int((~finite & (f != g) & ~(f.isnan() & g.isnan())).sum())
            self.non_finite += int((~finite).sum())
            f, e = torch.where(finite, f, 0.0), torch.where(finite, e, 0.0)
        self.elements += f.numel()
        if not f.numel():
            return
        magnitude = e.abs()
        self._sums.add(np.array([float(x) for x in (e.sum(), magnitude.sum(), e.dot(e), f.dot(f), f.dot(e))]))
        self.different += int(torch.count_nonzero(e))
        taken = torch.ones(samples, 1, dtype=torch.bool) if finite is None else finite.view(samples, -1)
        for row, errors, of in zip(f.view(samples, -1), magnitude.view(samples, -1), taken, strict=True):
            if of.any():
                self._add_sample(row, errors) if of.all() else self._add_sample(row[of], errors[of])

    def _add_sample(self, f: torch.Tensor, magnitude: torch.Tensor) -> None:
        low, high = (float(x) for x in torch.aminmax(f))
        worst = float(magnitude.max())
        self.samples += 1
        self.low, self.high, self.max_error = min(self.low, low), max(self.high, high), max(self.max_error, worst)
        self._scores.add(_score(worst, high - low))
        self._psnr_min = min(
            self._psnr_min, decibels(max(-low, high) ** 2, float(magnitude.dot(magnitude)) / f.numel())
        )

    def metrics(self, kl: float | None = None) -> Metrics:
        """Of all that was added; there must be at least one element."""
        e, magnitude, ee, ff, fe = (float(x) for x in self._sums.total)
        n = max(1, self.elements - self.non_finite)
        low, high = (self.low, self.high) if self.samples else (0.0, 0.0)
        mean, peak = e / n, max(-low, high)
        return Metrics(
            elements=self.elements, samples=self.samples, different=self.different,
            psnr=decibels(peak**2, ee / n), sqnr=decibels(ff, ee), cosine=_cosine(ff, fe, ee),
            mean_error=mean, mean_abs_error=magnitude / n, std_error=math.sqrt(max(0.0, ee / n - mean**2)), mse=ee / n,
            max_error=self.max_error, low=low, high=high, score=self._scores.median,
            score_min=min(100.0, self._scores.lowest), psnr_min=self._psnr_min, kl=kl, non_finite=self.non_finite,
        )  # fmt: skip


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), not below LOWEST_DECIBELS: infinite without noise."""
    if noise == 0.0:
        return math.inf
    return max(LOWEST_DECIBELS, 10.0 * (math.log10(signal) - math.log10(noise))) if signal > 0.0 else LOWEST_DECIBELS


def _score(worst: float, extent: float) -> float:
    if worst == 0.0:
        return 100.0
    return 100.0 * (1.0 - worst / extent) if extent > 0.0 else 0.0


def _cosine(ff: float, fe: float, ee: float) -> float:
    gg = ff + 2.0 * fe + ee
    if ff <= 0.0 or gg <= 0.0:
        return 1.0 if ee == 0.0 else 0.0
    return min(1.0, max(-1.0, (ff + fe) / math.sqrt(ff * gg)))


@dataclass(frozen=True)
class Noise:
    """An error by itself, beside the signal it disturbs. sqnr: in dB, signal over noise; mse: mean of its square;
    mean_error, max_error: its mean, its largest magnitude."""

    sqnr: Decibels
    mse: float
    mean_error: float
    max_error: float


class NoiseSums:
    """What :class:`Noise` is computed from."""

    def __init__(self) -> None:
        self._sums = WideSum(3)
        self._elements = 0
        self._worst = 0.0

    def add(self, signal: torch.Tensor, wanted: torch.Tensor, got: torch.Tensor) -> None:
        """The error got - wanted. Infinite and NaN elements are left out."""
        f = signal.detach().double().reshape(-1)
        e = got.detach().double().reshape(-1) - wanted.detach().double().reshape(-1)
        if not math.isfinite(float(e.dot(e)) + float(f.dot(f))):
            finite = torch.isfinite(f) & torch.isfinite(e)
            f, e = f[finite], e[finite]
        if f.numel():
            self._sums.add(np.array([float(e.sum()), float(e.dot(e)), float(f.dot(f))]))
            self._elements += f.numel()
            self._worst = max(self._worst, float(e.abs().max()))

    def noise(self) -> Noise | None:
        """None if nothing was added."""
        if not self._elements:
            return None
        e, ee, ff = (float(x) for x in self._sums.total)
        return Noise(decibels(ff, ee), ee / self._elements, e / self._elements, self._worst)
