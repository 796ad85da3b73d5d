"""A transposed convolution as an ordinary one: its results fall into stride_h * stride_w phases, each of which is a
convolution of the input with some of the kernel's elements, the taps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Phases:
    """One dimension of a transposed convolution as an ordinary one. Of its results of full length, without padding,
    number stride * m + p is phase p of position m: the sum over t of x[m - step * t] * weight[taps[p][t]].

    first: the first position that is computed; begin: how many results of that position are cut off.
    """

    stride: int
    step: int
    taps: list[list[int | None]]
    first: int
    begin: int
    positions: int

    @staticmethod
    def of(kernel: int, stride: int, padding: int, dilation: int, size: int) -> Phases:
        """size: the result's."""
        delays = [k * dilation // stride for k in range(kernel)]
        step = math.gcd(*delays) or 1
        count = delays[-1] // step + 1
        taps: list[list[int | None]] = [[None] * count for _ in range(stride)]
        for k, delay in enumerate(delays):
            taps[k * dilation % stride][delay // step] = k
        first = min(padding // stride, step * (count - 1))
        last = (padding + size - 1) // stride
        return Phases(stride, step, taps, first, padding - stride * first, last - first + 1)

    @property
    def reach(self) -> int:
        return self.step * (len(self.taps[0]) - 1)

    def pads(self, size: int) -> tuple[int, int]:
        """Before and after x of that size."""
        return self.reach - self.first, max(0, self.first + self.positions - size)

    def computed(self, size: int) -> int:
        """How many positions the convolution gives with pads()."""
        return sum(self.pads(size)) + size - self.reach


def phase_weight(weight: torch.Tensor, h: Phases, w: Phases) -> torch.Tensor:
    """[Co, Ci, Kh, Kw] -> [stride_h, stride_w, Co, Ci, taps, taps], the taps from the last to the first."""
    padded = F.pad(weight, (0, 1, 0, 1))  # the last row and column stand for taps that there are not
    rows, columns = (
        torch.tensor([[size if k is None else k for k in reversed(phase)] for phase in p.taps])
        for p, size in ((h, weight.shape[2]), (w, weight.shape[3]))
    )
    picked = padded[:, :, rows[:, None, :, None], columns[None, :, None, :]]
    return picked.permute(2, 3, 0, 1, 4, 5)
