"""Moves dequantize nodes down past operators that compute nothing, so that those run on int8: f(dq(x)) = dq(f(x)) for
reshape, permute, slice, index_select, cat, pad, max pooling, clamp and nearest resizing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..ops.common import (
    DEQUANTIZE,
    Operand,
    QParams,
    Unfit,
    add_constant,
    args_of,
    arguments,
    aten,
    call,
    constant,
    constraint,
    dequantized,
    excluded,
    is_call,
    normalized_dim,
    shape,
    value,
)
from ..ops.extrema import amax
from ..ops.movement import MOVEMENT, concat, few_inputs, pad, pad_not_batch, pad_not_negative, take
from ..ops.pool import images, max_pool2d, window
from ..ops.resize import NEAREST, positions, resize_nearest
from ..ops.table import INDICES, lut

Move = Callable[[fx.GraphModule, fx.Node, list[Operand], Callable[..., fx.Node]], fx.Node]
MOVES: dict[Any, Move] = {}


def moves(*targets: Any) -> Callable[[Move], Move]:
    def register(move: Move) -> Move:
        MOVES.update(dict.fromkeys(targets, move))
        return move

    return register


def sink_dequantize(gm: fx.GraphModule) -> None:
    """Rewrites f(dq(x), ...) into dq(f(x, ...)) wherever all inputs have one quantization."""
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node.target not in MOVES or excluded(gm, node):
            continue
        inputs = args_of(node)[0] if isinstance(args_of(node)[0], list | tuple) else [args_of(node)[0]]
        q = node.meta.get("q") if node.target not in MOVEMENT else None
        if q is None and not any(is_call(i, DEQUANTIZE) for i in inputs):
            continue
        try:
            if q is not None:  # int8 as the model has it
                _replace(gm, node, [Operand(i, q) for i in inputs])
                continue
            operands = [dequantized(i, index) for index, i in enumerate(inputs)]
            if any(o.q != operands[0].q for o in operands):
                continue  # passes/fold_quantized.py brings them to one scale
            _sink(gm, node, operands)
        except Unfit as reason:
            node.meta["mera_reason"] = str(reason)


def _moved(gm: fx.GraphModule, node: fx.Node, operands: list[Operand]) -> fx.Node:
    def emit(target: Any, *args: Any, val: Any = None, **kwargs: Any) -> fx.Node:
        new = call(gm, node, target, *args, val=value(node).to(torch.int8) if val is None else val, **kwargs)
        new.meta["q"] = operands[0].q
        return new

    with gm.graph.inserting_before(node):
        return MOVES[node.target](gm, node, operands, emit)


def _replace(gm: fx.GraphModule, node: fx.Node, operands: list[Operand]) -> None:
    node.replace_all_uses_with(_moved(gm, node, operands))
    gm.graph.erase_node(node)


def _sink(gm: fx.GraphModule, node: fx.Node, operands: list[Operand]) -> None:
    last = args_of(node)[0]
    dequantize: Any = last[-1] if isinstance(last, list | tuple) else last
    moved = _moved(gm, node, operands)
    with gm.graph.inserting_before(node):
        result = call(gm, node, DEQUANTIZE, moved, *args_of(dequantize)[1:])
        result.meta["origins"] = ()
    node.replace_all_uses_with(result)
    gm.graph.erase_node(node)


@moves(aten.reshape.default, aten.permute.default, aten.slice.Tensor)
def same(gm: fx.GraphModule, node: fx.Node, x: list[Operand], emit: Callable[..., fx.Node]) -> fx.Node:
    return emit(node.target, x[0].node, *args_of(node)[1:])


@moves(aten.cat.default)
def cat(gm: fx.GraphModule, node: fx.Node, x: list[Operand], emit: Callable[..., fx.Node]) -> fx.Node:
    few_inputs(count=len(x))
    return emit(concat, [o.node for o in x], args_of(node)[1])


@moves(aten.constant_pad_nd.default)
def constant_pad(gm: fx.GraphModule, node: fx.Node, x: list[Operand], emit: Callable[..., fx.Node]) -> fx.Node:
    a = arguments(node)
    pads = [int(p) for p in a["pad"]]
    pad_not_negative(pads=pads)
    pad_not_batch(rank=len(shape(x[0].node)), dims=max((i // 2 + 1 for i, p in enumerate(pads) if p), default=0))
    level = int(a["value"]) if value(node).dtype is torch.int8 else x[0].q.quantize(float(a["value"]))
    return emit(pad, x[0].node, pads, level)


@moves(aten.max_pool2d.default)
def max_pool(gm: fx.GraphModule, node: fx.Node, x: list[Operand], emit: Callable[..., fx.Node]) -> fx.Node:
    images(rank=len(shape(x[0].node)))
    kernel, stride, padding, dilation, ceil_mode = window(node)
    return emit(
        max_pool2d, x[0].node, kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode,
        clamp=(-128, 127),
    )  # fmt: skip


@moves(aten.amax.default, aten.amin.default)
def extremum(gm: fx.GraphModule, node: fx.Node, x: list[Operand], emit: Callable[..., fx.Node]) -> fx.Node:
    """The least is the complement of the greatest complement."""
    a, rank = arguments(node), len(shape(x[0].node))
    given = [a["dim"]] if isinstance(a["dim"], int) else list(a["dim"] or range(rank))
    window_of = {"dims": tuple(sorted({normalized_dim(d, rank) for d in given})), "keepdim": bool(a["keepdim"])}
    if node.target is aten.amax.default:
        return emit(amax, x[0].node, **window_of)
    turned = emit(lut, x[0].node, add_constant(gm, ~INDICES, "table"), val=value(x[0].node))
    return emit(lut, emit(amax, turned, **window_of), add_constant(gm, ~INDICES, "table"))


@constraint
def index_of_elements(*, index: fx.Node, count: int) -> bool:
    """index_select must have a constant index of at least one element, got {index} ({count} are known)"""
    return count > 0


@moves(aten.index_select.default)
def index_select(gm: fx.GraphModule, node: fx.Node, x: list[Operand], emit: Callable[..., fx.Node]) -> fx.Node:
    dim, index = args_of(node)[1:3]
    held = constant(gm, index)
    index_of_elements(index=index, count=0 if held is None else held.numel())
    return emit(take, x[0].node, normalized_dim(int(dim), len(shape(x[0].node))), index)


@constraint
def exact_bounds(*, bounds: list[Any], q: QParams) -> bool:
    """clamp's bounds {bounds} must be values that {q} has, for no quantize follows it"""
    for bound in bounds:
        level = float(bound) / q.scale + q.zero_point
        if -128 <= level <= 127 and abs(level - round(level)) > 1e-4:
            return False
    return True


@moves(aten.clamp.default)
def clamp(gm: fx.GraphModule, node: fx.Node, x: list[Operand], emit: Callable[..., fx.Node]) -> fx.Node:
    exact_bounds(bounds=[b for b in args_of(node)[1:3] if b is not None], q=x[0].q)
    low, high = clamp_bounds([node], x[0].q, (-128, 127))
    return emit(lut, x[0].node, add_constant(gm, INDICES.clamp(low, high), "table"))


@moves(*NEAREST)
def upsample(gm: fx.GraphModule, node: fx.Node, x: list[Operand], emit: Callable[..., fx.Node]) -> fx.Node:
    rows, columns = positions(gm, node)
    return emit(resize_nearest, x[0].node, add_constant(gm, rows, "rows"), add_constant(gm, columns, "columns"))


def clamp_bounds(clamps: list[fx.Node] | tuple[fx.Node, ...], q: Any, bounds: tuple[int, int]) -> tuple[int, int]:
    """The int8 bounds that clamp nodes (in any order) put on a tensor of quantization q."""
    low, high = bounds
    for node in clamps:
        a = arguments(node)
        if a["min"] is not None:
            low = max(low, q.quantize(float(a["min"])))
        if a["max"] is not None:
            high = min(high, q.quantize(float(a["max"])))
    return (low, high) if low <= high else (high, high)
