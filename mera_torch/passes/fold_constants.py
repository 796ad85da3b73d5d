"""Computes what depends on constants only, once. Dequantized weights stay: who reads them wants the int8."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from ..ops.common import (
    DEQUANTIZE_CHANNEL,
    DEQUANTIZE_OPS,
    add_constant,
    args_of,
    aten,
    call,
    constant,
    is_call,
    kwargs_of,
    normalized_dim,
    shape,
    target_of,
)

LIMIT_BYTES = 1 << 28
"""A constant is not grown beyond this."""


def fold_constants(gm: fx.GraphModule) -> None:
    """Replaces call_function nodes whose inputs are all constants by a get_attr of their value."""
    known: dict[fx.Node, torch.Tensor | None] = {}  # None: a dequantize, computed if something wants it

    def get(node: fx.Node) -> Any:
        held = known.get(node)
        if held is None:
            held = constant(gm, node)  # one that _move_levels made
        if held is None:
            held = known[node] = target_of(node)(*fx.map_arg(args_of(node), get), **fx.map_arg(kwargs_of(node), get))
        return held

    for node in list(gm.graph.nodes):
        held = constant(gm, node)
        if held is not None:
            known[node] = held
        elif not _foldable(node, known):
            continue
        elif node.target in DEQUANTIZE_OPS:
            known[node] = None
        elif _stays_quantized(gm, node):
            known[_move_levels(gm, node)] = None
        else:
            target: Any = node.target
            result = target(*fx.map_arg(args_of(node), get), **fx.map_arg(kwargs_of(node), get))
            with gm.graph.inserting_before(node):
                new = add_constant(gm, result.contiguous())
            new.meta.update({k: v for k, v in node.meta.items() if k != "val"})
            node.replace_all_uses_with(new)
            gm.graph.erase_node(node)
            known[new] = result


def _stays_quantized(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node only moves the elements of a dequantized weight."""
    source = args_of(node)[0]
    if not is_call(node, aten.permute.default, aten.reshape.default) or not is_call(source, *DEQUANTIZE_OPS):
        return False
    return constant(gm, args_of(source)[0]) is not None and _axis_after(node, source) is not None


def _axis_after(node: fx.Node, dequantize: fx.Node) -> int | None:
    """Where the axis of the scales (0 if there is but one) goes; None if it is split or merged."""
    if dequantize.target is not DEQUANTIZE_CHANNEL:
        return 0
    axis = normalized_dim(int(args_of(dequantize)[3]), len(shape(dequantize)))
    if is_call(node, aten.permute.default):
        return [normalized_dim(int(d), len(shape(node))) for d in args_of(node)[1]].index(axis)
    before, after = shape(dequantize), shape(node)
    lead = math.prod(before[:axis])
    return next((d for d, s in enumerate(after) if math.prod(after[:d]) == lead and s == before[axis]), None)


def _move_levels(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """movement(dequantize(levels)) becomes dequantize(movement(levels))."""
    source = args_of(node)[0]
    levels, *rest = args_of(source)
    held = constant(gm, levels)
    if source.target is DEQUANTIZE_CHANNEL:
        rest[2] = _axis_after(node, source)
    with gm.graph.inserting_before(node):
        moved = add_constant(gm, target_of(node)(held, *args_of(node)[1:]).contiguous(), "weight")
        new = call(gm, node, source.target, moved, *rest, val=node.meta["val"], **kwargs_of(source))
    node.replace_all_uses_with(new)
    gm.graph.erase_node(node)
    return new


def _foldable(node: fx.Node, known: dict[fx.Node, torch.Tensor | None]) -> bool:
    target: Any = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded in target.tags or target._schema.is_mutable:
        return False
    inputs = node.all_input_nodes
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and val.nbytes <= LIMIT_BYTES and all(i in known for i in inputs)
