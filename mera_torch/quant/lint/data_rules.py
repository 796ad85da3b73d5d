"""Rules about the calibration data itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from ..findings import Finding, Severity

if TYPE_CHECKING:
    from .linter import Context

FEWEST_SAMPLES = 8
_ALIKE = 0.01  # of the variance that differs between samples
_DIGESTS = 1 << 20  # samples of which a digest is kept: 16 MB at most
_UNLIKE_TRAINING = 4.0


class DataStatistics:
    """What passes by while other statistics are taken: of each float input, in memory of two inputs' size.

    Attributes:
        samples: Seen so far; the first dimension of the inputs counts them.
        repeated: How many of them were equal to an earlier one.
        constant: How many had one value everywhere in some float input.
        first: The first batch.
        integers: Whether all values of all float inputs were integers from 0 to 255, some above 16.
    """

    def __init__(self) -> None:
        self.samples = self.repeated = self.constant = 0
        self.first: tuple[Any, ...] = ()
        self.low, self.high = math.inf, -math.inf
        self._whole = True
        self._digests: set[bytes] = set()
        self._moments: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def integers(self) -> bool:
        return self._whole and self.low >= 0 and 16 < self.high <= 255

    def watch(self, batches: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """The batches, each observed before it is given."""
        for inputs in batches:
            self.first = self.first or tuple(inputs)
            tensors = [x for x in pytree.tree_leaves(tuple(inputs)) if isinstance(x, torch.Tensor)]
            for sample in zip(*(_samples(x) for x in tensors), strict=False):
                self._observe(sample)
            yield inputs

    def _observe(self, sample: tuple[torch.Tensor, ...]) -> None:
        self.samples += 1
        digest = hashlib.blake2b(digest_size=16)
        for x in sample:
            digest.update(x.contiguous().cpu().numpy().tobytes())
        self.repeated += digest.digest() in self._digests
        if len(self._digests) < _DIGESTS:
            self._digests.add(digest.digest())
        floats = [(i, x) for i, x in enumerate(sample) if x.is_floating_point() and x.numel() > 1]
        self.constant += any(bool((x == x.reshape(-1)[0]).all()) for _, x in floats)
        for i, x in floats:
            low, high = (float(v) for v in torch.aminmax(x))
            self.low, self.high = min(self.low, low), max(self.high, high)
            self._whole = self._whole and bool((x == x.round()).all())
            wide = x.double()
            total, squares = self._moments.get(i, (torch.zeros(()), torch.zeros(())))
            self._moments[i] = (total + wide, squares + wide.square())

    def difference(self) -> float:
        """The part of the inputs' variance that lies between samples rather than within them; 1 if nothing varies."""
        between = whole = 0.0
        for total, squares in self._moments.values():
            n = self.samples
            between += float((squares / n - (total / n).square()).clamp_min(0).mean())
            whole += max(float((squares / n).mean() - (total / n).mean().square()), 0.0)
        return between / whole if whole else 1.0


def _samples(x: torch.Tensor) -> list[torch.Tensor]:
    return list(x.detach()) if x.dim() else [x.detach()]


def few_samples(context: Context) -> Iterator[Finding]:
    """Fewer than 8 calibration samples. The extremes of so few images say little of those that come later, whose
    values are then clipped."""
    if context.data.samples < FEWEST_SAMPLES:
        said = f"{context.data.samples} calibration sample{'s'[: context.data.samples != 1]}"
        yield Finding("few-samples", "warning", "", "", said, f"calibrate on {FEWEST_SAMPLES} to 64 typical inputs")


def repeated_samples(context: Context) -> Iterator[Finding]:
    """Calibration samples that are equal to the byte. They count as one, whatever their number."""
    data = context.data
    if data.repeated:
        severity: Severity = (
            "warning" if data.samples - data.repeated < max(FEWEST_SAMPLES, data.samples / 2) else "note"
        )
        said = f"{data.repeated} of {data.samples} calibration samples repeat an earlier one to the byte"
        yield Finding("repeated-samples", severity, "", "", said, "give each input once")


def constant_samples(context: Context) -> Iterator[Finding]:
    """Calibration samples with one value everywhere, such as all-zero images: nothing of a real input's range."""
    data = context.data
    if data.constant:
        severity: Severity = "error" if data.constant == data.samples else "warning"
        said = f"{data.constant} of {data.samples} calibration samples have the same value everywhere"
        yield Finding("constant-samples", severity, "", "", said, "calibrate on real inputs")


def alike_samples(context: Context) -> Iterator[Finding]:
    """Calibration samples that hardly differ from one another, such as the frames of a camera that does not move."""
    data = context.data
    if data.samples > 1 and data.samples - data.repeated > 1 and (share := data.difference()) < _ALIKE:
        said = f"only {share:.2%} of the inputs' variance lies between the samples, the rest within each of them"
        yield Finding("alike-samples", "warning", "", "", said, "calibrate on inputs that differ as those in use do")


def not_normalized(context: Context) -> Iterator[Finding]:
    """Inputs that are not preprocessed as in training. The first batch norm remembers how large values were in
    training: its result has the mean of its biases and the variance of its factors, unless the data are other ones.
    Without batch norms, integers from 0 to 255 are taken for raw pixels (a note)."""
    node, ratio = context.first_norm()
    remedy = "preprocess calibration data as in training: --preprocess imagenet, or (x / 255 - mean) / std"
    if node is not None and not 1 / _UNLIKE_TRAINING < ratio < _UNLIKE_TRAINING:
        said = (
            f"the inputs lie in [{context.data.low:.4g}, {context.data.high:.4g}], and the first batch norm's result "
            f"varies {ratio:.3g} times as much as in training"
        )
        yield Finding.at(node, "not-normalized", "error" if ratio > 16 or ratio < 1 / 16 else "warning", said, remedy)
    elif node is None and context.data.integers and not context.scales_inputs():
        said = f"all inputs are integers from {context.data.low:g} to {context.data.high:g}, as raw pixels are"
        yield Finding("not-normalized", "note", "", "", said, f"if the network was trained otherwise: {remedy}")


DATA_RULES = (few_samples, repeated_samples, constant_samples, alike_samples, not_normalized)
