"""The shapes in which the DNA holds PyTorch's tensors: NHWC, with the bookkeeping of what stands where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..ops.common import args_of, is_call, shape
from .layout import Axes, Layout

Shape4 = tuple[int, int, int, int]
Groups = tuple[Axes, Axes, Axes, Axes]
"""For each of the DNA's dimensions N, H, W, C: the PyTorch dimensions that it is the product of."""

IMAGE: Groups = ((0,), (2,), (3,), (1,))


@dataclass(frozen=True)
class Form:
    """The DNA shape of a tensor and the PyTorch tensor that it stands for."""

    shape: Shape4
    layout: Layout


def spread(order: Sequence[int]) -> Groups:
    """Up to four dimensions as N, H, W, C: one is C; two N and C; three N, W, C."""
    n: Any = tuple((d,) for d in order)
    e: tuple[int, ...] = ()
    found: Groups = {
        0: (e, e, e, e), 1: (e, e, e, *n), 2: (*n[:1], e, e, *n[1:]), 3: (*n[:1], e, *n[1:]), 4: n,
    }[len(n)]  # fmt: skip
    return found


def form_of(result: tuple[int, ...], groups: Groups) -> Form:
    """The form of a tensor of PyTorch shape `result` that lies in memory in the order of `groups`."""
    order = [d for group in groups for d in group]
    order = [d for d in range(len(result)) if d not in order] + order
    extents = [math.prod(result[d] for d in group) for group in groups]
    return Form((extents[0], extents[1], extents[2], extents[3]), Layout.of(result, tuple(order)))


def form_of_input(node: fx.Node, region: set[fx.Node]) -> Form:
    """How an input should lie in memory: as its first reader wants it, looking through permutations."""
    sizes = shape(node)
    order = list(range(len(sizes)))  # PyTorch dimension of `node` that each dimension of `current` is
    current, wanted = node, None
    while wanted is None:
        readers = [user for user in current.users if user in region]
        if not readers:
            break
        user = readers[0]
        if is_call(user, torch.ops.aten.permute.default):
            order = [order[d] for d in args_of(user)[1]]
            current = user
            continue
        rows = getattr(user.target, "__name__", "") == "linear" or is_call(user, torch.ops.aten.reshape.default)
        wanted = order if rows or len(order) != 4 else [order[0], order[2], order[3], order[1]]
    wanted = wanted or order
    dims = [d for d in wanted if sizes[d] != 1] if len(sizes) > 4 else wanted
    if len(dims) <= 4:
        return form_of(sizes, spread(dims))
    total = math.prod(sizes)
    return Form((1, 1, 1, total), Layout.of(sizes, tuple(wanted)))
