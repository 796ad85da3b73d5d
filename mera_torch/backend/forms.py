"""The shapes in which the DNA holds PyTorch's tensors: NHWC, with the bookkeeping of what stands where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..ops.common import args_of, is_call, kwargs_of, shape
from ..ops.movement import MOVEMENT
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


PASSING = frozenset({"lut", "add", "sub", "mul", "pad", "concat"})
"""Quantized operators that take their dimensions in any order and give them in the same."""


def form_of_input(node: fx.Node, region: set[fx.Node]) -> Form:
    """How an input should lie in memory: as the nearest reader that cares wants it, looking through others."""
    sizes = shape(node)
    seen, queue = {node}, [(node, Layout.of(sizes))]
    for current, layout in queue:
        for user in current.users:
            if user not in region or user in seen:
                continue
            seen.add(user)
            order = _wanted(user, current)
            if order is not None:
                return _stored(sizes, layout, order)
            after = _through(user, layout)
            if after is not None:
                queue.append((user, after))
    return _stored(sizes, Layout.of(sizes), (0, 2, 3, 1) if len(sizes) == 4 else tuple(range(len(sizes))))


def _wanted(user: fx.Node, x: fx.Node) -> Axes | None:
    """The order of x's dimensions in memory that suits `user`, or None if any does or another operator decides."""
    name, rank = getattr(user.target, "__name__", ""), len(shape(x))
    natural = tuple(range(rank))
    if user.target in MOVEMENT or name in PASSING:
        return None
    if "dims" in kwargs_of(user):  # reductions: what is kept but for the first dimension lies inmost
        reduced: Any = kwargs_of(user)["dims"]
        first = (0,) if rank > 1 and 0 not in reduced else ()
        return (*first, *reduced, *(d for d in natural if d not in first and d not in reduced))
    return (0, 2, 3, 1) if rank == 4 and name != "linear" else natural


def _through(user: fx.Node, layout: Layout) -> Layout | None:
    """The layout of user's result if that of its input is `layout`; None if that cannot be told."""
    if is_call(user, torch.ops.aten.permute.default):
        order: Any = args_of(user)[1]
        return layout.permuted(tuple(order))
    if is_call(user, torch.ops.aten.reshape.default):
        source = args_of(user)[0]
        return layout.reshaped(shape(user)) if layout.shape == shape(source) else None
    return layout if len(shape(user)) == len(layout.dims) else None


def _stored(sizes: tuple[int, ...], layout: Layout, order: Axes) -> Form:
    """The form of an input of shape `sizes` that, moved, is a value of `layout` whose dimensions should lie in memory
    in `order`."""
    axes = tuple(axis for d in order for axis in layout.dims[d])
    rest = tuple(axis for axis in range(len(layout.sizes)) if axis not in axes)  # of dimensions that were cut to 1
    whole = Layout(layout.sizes, split_by(sizes, layout.sizes)).reordered(rest + axes)
    groups = [math.prod(layout.sizes[a] for a in layout.dims[d]) for d in order]
    if rest or len(groups) > 4:
        return Form((1, 1, 1, math.prod(sizes)), whole)
    extents = [math.prod(groups[d] for d in group) for group in spread(range(len(groups)))]
    return Form((extents[0], extents[1], extents[2], extents[3]), whole)


def split_by(sizes: tuple[int, ...], axes: tuple[int, ...]) -> tuple[Axes, ...]:
    """Which of the storage axes, of extents `axes` and in PyTorch's order, each dimension is the product of."""
    dims, axis = [], 0
    for size in sizes:
        first = axis
        while size > 1:
            size //= axes[axis]
            axis += 1
        dims.append(tuple(range(first, axis)))
    return tuple(dims)
