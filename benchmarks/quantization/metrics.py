"""Figures of a quantized network's outputs against float's, and of one method against another on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mera_torch.quant.quality.metrics import PairSums, decibels

HIGHEST_DECIBELS = 300.0  # where nothing differs
NOISE = 2.0  # standard errors: a smaller difference is within noise


def noise(reference: Tensor, output: Tensor) -> dict[str, float]:
    """SQNR and PSNR of a whole batch, as :class:`mera_torch.quant.quality.metrics.Metrics` defines them."""
    sums = PairSums()
    sums.add(reference, output, len(reference))
    found = sums.metrics()
    return {"sqnr_db": _finite(found.sqnr), "psnr_db": _finite(found.psnr)}


def psnr_each(reference: Tensor, output: Tensor) -> list[float]:
    """PSNR of each item of a batch; the peak is that of the whole batch."""
    peak = float(reference.abs().max()) ** 2
    squares = (output.double() - reference.double()).square().flatten(1).mean(1)
    return [_finite(decibels(peak, square)) for square in squares.tolist()]


def _finite(value: float) -> float:
    return round(min(value, HIGHEST_DECIBELS), 3)


def packed(flags: Tensor) -> str:
    """Booleans [N] as hexadecimal digits, four to each, the first in the highest bit; see `unpacked`."""
    bits = "".join("01"[bool(flag)] for flag in flags)
    bits += "0" * (-len(bits) % 4)
    return "".join(f"{int(bits[i : i + 4], 2):x}" for i in range(0, len(bits), 4))


def unpacked(digits: str, count: int) -> list[float]:
    """The `count` booleans of `packed`, as 0.0 and 1.0."""
    bits = "".join(f"{int(digit, 16):04b}" for digit in digits)
    return [float(bit) for bit in bits[:count]]


def difference(first: Sequence[float], second: Sequence[float], groups: Sequence[int]) -> tuple[float, float]:
    """The mean of first - second, item by item, and its standard error.

    Items of one group (crops of one photograph) count as dependent: the error is the cluster-robust one,
    sqrt(G / (G - 1) * sum over the G groups of (sum over the group of d_i - mean d)²) / N. With groups of one item it
    is the ordinary error of a paired difference, which for booleans is McNemar's.
    """
    deltas = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
    _, place = torch.unique(torch.tensor(groups), return_inverse=True)
    count = int(place.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, place, deltas - deltas.mean())
    correction = count / (count - 1) if count > 1 else math.inf
    return float(deltas.mean()), math.sqrt(correction * float(sums.square().sum())) / len(deltas)


def is_within_noise(mean: float, error: float) -> bool:
    """Whether a method that is better by `mean` is so by at most NOISE standard errors."""
    return mean <= NOISE * error
