"""Moves dequantize nodes down past operators that compute nothing, so that those run on int8: f(dq(x)) = dq(f(x)) for
reshape, permute, slice, cat, pad, max pooling, clamp and resizing by whole factors."""

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
    constraint,
    dequantized,
    excluded,
    is_call,
    shape,
    value,
)
from ..ops.movement import concat, few_inputs, pad, pad_not_batch, pad_not_negative, resize_nearest
from ..ops.pool import images, max_pool2d, window
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
        if not any(is_call(i, DEQUANTIZE) for i in inputs):
            continue
        try:
            operands = [dequantized(i, index) for index, i in enumerate(inputs)]
            if any(o.q != operands[0].q for o in operands):
                continue  # passes/fold_quantized.py brings them to one scale
            _sink(gm, node, operands)
        except Unfit as reason:
            node.meta["mera_reason"] = str(reason)


def _sink(gm: fx.GraphModule, node: fx.Node, operands: list[Operand]) -> None:
    q, last = operands[0].q, args_of(node)[0]
    dequantize: Any = last[-1] if isinstance(last, list | tuple) else last

    def emit(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        new = call(gm, node, target, *args, val=value(node).to(torch.int8), **kwargs)
        new.meta["q"] = q
        return new

    with gm.graph.inserting_before(node):
        moved = MOVES[node.target](gm, node, operands, emit)
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
    return emit(pad, x[0].node, pads, x[0].q.quantize(float(a["value"])))


@moves(aten.max_pool2d.default)
def max_pool(gm: fx.GraphModule, node: fx.Node, x: list[Operand], emit: Callable[..., fx.Node]) -> fx.Node:
    images(rank=len(shape(x[0].node)))
    kernel, stride, padding, dilation, ceil_mode = window(node)
    return emit(
        max_pool2d, x[0].node, kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode,
        clamp=(-128, 127),
    )  # fmt: skip


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


@moves(aten.upsample_nearest2d.default)
def upsample(gm: fx.GraphModule, node: fx.Node, x: list[Operand], emit: Callable[..., fx.Node]) -> fx.Node:
    (h, w), (out_h, out_w) = shape(x[0].node)[-2:], shape(node)[-2:]
    return emit(resize_nearest, x[0].node, (out_h // h, out_w // w))


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
