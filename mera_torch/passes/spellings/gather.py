"""Operators that pick elements in an order known beforehand, or repeat them: slices and index_select."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ...ops.common import (
    DEQUANTIZE_OPS,
    QUANTIZE_OPS,
    Unfit,
    add_constant,
    args_of,
    arguments,
    aten,
    call,
    constant,
    constraint,
    is_call,
    normalized_dim,
    shape,
    value,
)
from ...ops.movement import MOVED
from .rule import Rule, rule
from .shapes import sliced

GATHERED = frozenset({
    aten.flip.default, aten.roll.default, aten.index_select.default, aten.index.Tensor, aten.pad.default,
    aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default,
    aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default,
    aten.expand.default, aten.expand_copy.default, aten.repeat.default, aten.tile.default,
    aten.repeat_interleave.self_int,
})  # fmt: skip

MAX_PARTS = 64
"""Of a concatenation: more are put together in groups."""


@constraint
def few_copies(*, count: int) -> bool:
    """repeating must make at most 512 copies, got {count}"""
    return count <= 512


def gathers(*targets: Any) -> Callable[[Rule], Rule]:
    """A rule for operators on values that are quantized, before or after movement: others stay as they are."""

    def register(function: Rule) -> Rule:
        @rule(*targets)
        def only_if_quantized(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
            return function(gm, node) if _is_quantized(node) else None

        return function

    return register


def _is_quantized(node: fx.Node) -> bool:
    if any(is_call(user, *QUANTIZE_OPS) for user in node.users):
        return True
    while node.op == "call_function" and (node.target in GATHERED or node.target in MOVED):
        first = args_of(node)[0]
        node = first[0] if isinstance(first, list | tuple) else first
    return is_call(node, *DEQUANTIZE_OPS) or value(node).dtype in (torch.int8, torch.uint8)


def joined(gm: fx.GraphModule, node: fx.Node, parts: Sequence[fx.Node], dim: int) -> fx.Node:
    """cat of any number of parts, like `node` in all but shape."""
    while len(parts) > 1:
        groups = [list(parts[i : i + MAX_PARTS]) for i in range(0, len(parts), MAX_PARTS)]
        parts = [_cat(gm, node, group, dim) if len(group) > 1 else group[0] for group in groups]
    return parts[0]


def _cat(gm: fx.GraphModule, node: fx.Node, parts: list[fx.Node], dim: int) -> fx.Node:
    sizes = list(shape(parts[0]))
    sizes[dim] = sum(shape(part)[dim] for part in parts)
    return call(gm, node, aten.cat.default, parts, dim, val=value(parts[0]).new_empty(sizes))


def picked(gm: fx.GraphModule, node: fx.Node, x: fx.Node, dim: int, indices: Sequence[int]) -> fx.Node:
    """x's elements `indices` along dim: one slice or two, where steps upwards are equal, else index_select."""
    runs: list[list[int]] = []
    for index in indices:
        run = runs[-1] if runs else []
        if run and (index - run[-1] == run[1] - run[0] if len(run) > 1 else index > run[-1]):
            run.append(index)
        else:
            runs.append([index])
    if len(runs) > 2:
        sizes = list(shape(x))
        sizes[dim] = len(indices)
        held = add_constant(gm, torch.tensor(indices), "index")
        return call(gm, node, aten.index_select.default, x, dim, held, val=value(x).new_empty(sizes))
    parts = [sliced(gm, node, x, dim, run[0], run[-1] + 1, run[1] - run[0] if len(run) > 1 else 1) for run in runs]
    return joined(gm, node, parts, dim)


def repeated(gm: fx.GraphModule, node: fx.Node, x: fx.Node, dim: int, times: int) -> fx.Node:
    """`times` copies of x one after another along dim."""
    few_copies(count=times)
    return joined(gm, node, [x] * times, dim)


def _reshaped(gm: fx.GraphModule, node: fx.Node, x: fx.Node, sizes: Sequence[int]) -> fx.Node:
    if list(shape(x)) == list(sizes):
        return x
    return call(gm, node, aten.reshape.default, x, list(sizes), val=value(x).new_empty(list(sizes)))


@gathers(aten.flip.default)
def flip(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    x: fx.Node = args_of(node)[0]
    for dim in args_of(node)[1]:
        dim = normalized_dim(dim, len(shape(x)))
        x = picked(gm, node, x, dim, range(shape(x)[dim] - 1, -1, -1))
    return x


@gathers(aten.roll.default)
def roll(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    a = arguments(node)
    x, shifts, dims = a["self"], list(a["shifts"]), list(a["dims"] or [])
    if not dims:
        x, dims = _reshaped(gm, node, x, [math.prod(shape(x))]), [0]
    for dim, shift in zip(dims, shifts, strict=True):
        size = shape(x)[dim]
        x = picked(gm, node, x, normalized_dim(dim, len(shape(x))), [(i - shift) % size for i in range(size)])
    return _reshaped(gm, node, x, shape(node))


@gathers(aten.index_select.default)
def index_select(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    a = arguments(node)
    return _at(gm, node, a["self"], a["dim"], constant(gm, a["index"]))


@gathers(aten.index.Tensor)
def index(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """By one constant vector."""
    x, indices = args_of(node)[:2]
    found = [(dim, i) for dim, i in enumerate(indices) if i is not None]
    if len(found) != 1:
        return None
    dim, vector = found[0]
    held = constant(gm, vector)
    if held is not None and held.dtype is torch.bool:
        held = held.nonzero().flatten() if held.dim() == 1 else None
    return _at(gm, node, x, dim, held)


def _at(gm: fx.GraphModule, node: fx.Node, x: fx.Node, dim: int, indices: torch.Tensor | None) -> fx.Node | None:
    if constant(gm, x) is not None or indices is None or indices.dim() != 1 or not indices.numel():
        return None
    dim = normalized_dim(dim, len(shape(x)))
    size = shape(x)[dim]
    if bool(((indices < -size) | (indices >= size)).any()):
        raise Unfit(f"its indices must be below {size}, got {indices.tolist()}")
    return picked(gm, node, x, dim, [int(i) % size for i in indices])


@rule(aten.pad.default)
def pad(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Zeros stay a pad; a border of x's own elements is picked."""
    a = arguments(node)
    if a["mode"] == "constant":
        return call(gm, node, aten.constant_pad_nd.default, a["self"], list(a["pad"]), a["value"] or 0.0)
    return _bordered(gm, node, a["self"], a["pad"], a["mode"]) if _is_quantized(node) else None


@gathers(
    aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default,
    aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default,
)  # fmt: skip
def own_pad(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    mode = "reflect" if "reflection" in str(node.target) else "replicate"
    return _bordered(gm, node, args_of(node)[0], args_of(node)[1], mode)


def _bordered(gm: fx.GraphModule, node: fx.Node, x: fx.Node, pads: Sequence[int], mode: str) -> fx.Node:
    """pads: as torch.nn.functional.pad."""
    rank = len(shape(x))
    for i in range(len(pads) // 2):
        before, after = pads[2 * i : 2 * i + 2]
        dim = rank - 1 - i
        size = shape(x)[dim]
        if before or after:
            x = picked(gm, node, x, dim, [_inside(k, size, mode) for k in range(-before, size + after)])
    return x


def _inside(k: int, size: int, mode: str) -> int:
    """The element that stands at position k of a padded dimension."""
    if mode == "circular":
        return k % size
    if mode == "replicate":
        return min(max(k, 0), size - 1)
    return size - 1 - abs(size - 1 - abs(k))


@gathers(aten.expand.default, aten.expand_copy.default)
def expand(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Copies; none for those who broadcast by themselves."""
    x = args_of(node)[0]
    for user in list(node.users):
        if user.target in BROADCASTING and any(
            other is not node and isinstance(other, fx.Node) and shape(other) == shape(user)
            for other in args_of(user)[:2]
        ):
            user.replace_input_with(node, x)
    if not node.users:
        return node
    x = _reshaped(gm, node, x, [1] * (len(shape(node)) - len(shape(x))) + list(shape(x)))
    for dim, size in enumerate(shape(node)):
        if shape(x)[dim] != size:
            x = repeated(gm, node, x, dim, size)
    return x


BROADCASTING = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor})


@gathers(aten.repeat.default, aten.tile.default)
def repeat(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    x, times = args_of(node)[0], list(args_of(node)[1])
    times = [1] * (len(shape(node)) - len(times)) + times
    x = _reshaped(gm, node, x, [1] * (len(shape(node)) - len(shape(x))) + list(shape(x)))
    for dim, count in enumerate(times):
        x = repeated(gm, node, x, dim, count)
    return x


@gathers(aten.repeat_interleave.self_int)
def repeat_interleave(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Copies along a new dimension, which then goes into the one before it."""
    a = arguments(node)
    x, times, dim = a["self"], int(a["repeats"]), a["dim"]
    if dim is None:
        x, dim = _reshaped(gm, node, x, [math.prod(shape(x))]), 0
    dim = normalized_dim(dim, len(shape(x)))
    sizes = [*shape(x)[: dim + 1], 1, *shape(x)[dim + 1 :]]
    copies = repeated(gm, node, _reshaped(gm, node, x, sizes), dim + 1, times)
    return _reshaped(gm, node, copies, shape(node))
