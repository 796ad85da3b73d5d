"""One number for how near a network's outputs are to those of float: what sensitivity and the mixed-precision search
compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mera_torch.errors import ConfigError, nearest

Outputs = Sequence[Tensor]
TaskMetric = Callable[[list[Any]], float]
Sums = tuple[float, ...]


@dataclass(frozen=True)
class Criterion:
    """How a score is computed from the outputs, batch by batch.

    Attributes:
        name, unit: As tables show them.
        higher_is_better: Whether a greater score means outputs nearer to float's.
        add: (float's outputs, the candidate's outputs) of one batch -> sums over that batch.
        total: The sums over all batches -> the score.
        task: A function of the candidate's outputs of all batches, in order; then `add` and `total` are not used.
    """

    name: str
    unit: str
    higher_is_better: bool
    add: Callable[[Outputs, Outputs], Sums] | None = None
    total: Callable[[Sums], float] | None = None
    task: TaskMetric | None = None

    def better(self, a: float, b: float) -> bool:
        """Whether score `a` is better than `b`; NaN is worse than all."""
        return self.gain(a, b) > 0

    def gain(self, a: float, b: float) -> float:
        """By how much `a` is better than `b`; negative if it is worse."""
        if math.isnan(a) or math.isnan(b):
            return -math.inf if math.isnan(a) else math.inf
        if a == b:
            return 0.0
        return a - b if self.higher_is_better else b - a

    def reaches(self, score: float, target: float) -> bool:
        return score == target or self.better(score, target)

    @staticmethod
    def figure(score: float) -> str:
        """As tables show it: to the hundredth, small ones to three digits."""
        return f"{score:.3g}" if abs(score) < 1 else f"{score:.2f}"

    def text(self, score: float) -> str:
        return f"{score:.4g} {self.unit}".rstrip()


class Score:
    """One candidate's score, gathered batch by batch."""

    def __init__(self, criterion: Criterion) -> None:
        self._criterion = criterion
        self._sums: list[Sums] = []
        self._outputs: list[Any] = []

    def add(self, expected: Outputs, got: Outputs, whole: Any) -> None:
        """The outputs of one batch. whole: the candidate's as the model returns them."""
        if self._criterion.add is None:
            self._outputs.append(whole)
        else:
            self._sums.append(self._criterion.add(expected, got))

    def value(self) -> float:
        """Raises ConfigError if a task metric gives no number."""
        if self._criterion.total is not None:
            return self._criterion.total(tuple(math.fsum(column) for column in zip(*self._sums, strict=True)))
        assert_task = self._criterion.task
        if assert_task is None:
            return math.nan
        result = assert_task(self._outputs)
        try:
            return float(result)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"metric {self._criterion.name!r} must give a number, got {result!r:.80}") from error


def criterion(metric: str | TaskMetric | Criterion) -> Criterion:
    """The criterion meant: a name of CRITERIA, a Criterion, or a function of the list of a candidate's outputs (one
    item a batch, as the model returns them) whose result is the greater the better, such as an accuracy.

    Raises:
        ConfigError: an unknown name; the nearest is named.
    """
    if isinstance(metric, Criterion):
        return metric
    if callable(metric):
        return Criterion(getattr(metric, "__name__", "task metric"), "", True, task=metric)
    if metric not in CRITERIA:
        raise ConfigError(f"unknown metric {metric!r}; {nearest(str(metric), CRITERIA)} (or give a function)")
    return CRITERIA[metric]


# ---- sums over a batch ----


def _powers(expected: Outputs, got: Outputs) -> Sums:
    sums: list[float] = []
    for wanted, found in zip(expected, got, strict=True):
        signal = wanted.double()
        sums += [float(signal.square().sum()), float((found.double() - signal).square().sum())]
    return tuple(sums)


def _agreements(expected: Outputs, got: Outputs) -> Sums:
    pairs = [(_classes(wanted), _classes(found)) for wanted, found in zip(expected, got, strict=True)]
    right = sum(int((a.argmax(1) == b.argmax(1)).sum()) for a, b in pairs)
    return float(right), float(sum(a.shape[0] for a, _ in pairs))


def _divergences(expected: Outputs, got: Outputs) -> Sums:
    total, rows = 0.0, 0
    for wanted, found in zip(expected, got, strict=True):
        p, q = (F.log_softmax(_classes(x).double(), 1) for x in (wanted, found))
        total += float(F.kl_div(q, p, reduction="sum", log_target=True))
        rows += p.shape[0]
    return total, float(rows)


def _classes(x: Tensor) -> Tensor:
    """[positions, classes] of [classes], [N, classes] or [N, classes, ...]."""
    return x.reshape(1, -1) if x.dim() < 2 else x.movedim(1, -1).flatten(0, -2)


# ---- totals ----


def _decibels(sums: Sums) -> float:
    """-10 log10 of the mean over outputs of noise / signal: an output that is exact does not outweigh another."""
    each = [_relative(signal, noise) for signal, noise in zip(sums[::2], sums[1::2], strict=True)]
    mean = sum(each) / len(each)
    return -10 * math.log10(mean) if mean > 0 else math.inf


def _relative(signal: float, noise: float) -> float:
    if noise == 0:
        return 0.0
    return noise / signal if signal > 0 and math.isfinite(noise) else math.inf


CRITERIA = {
    "sqnr": Criterion("sqnr", "dB", True, _powers, _decibels),
    "top1": Criterion("top1", "%", True, _agreements, lambda sums: 100 * sums[0] / sums[1]),
    "kl": Criterion("kl", "nats", False, _divergences, lambda sums: sums[0] / sums[1]),
}
"""sqnr: signal to quantization noise ratio over all batches. top1: how often the greatest class is float's (100 less
the disagreement). kl: Kullback-Leibler divergence of the softmax over classes (dimension 1) from float's, the mean."""


def float_outputs(outputs: Sequence[Any]) -> list[Tensor]:
    """The floating-point tensors among a model's flat outputs, detached."""
    return [x.detach() for x in outputs if isinstance(x, torch.Tensor) and x.is_floating_point()]
