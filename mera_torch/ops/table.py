"""Every function of one int8 tensor, element by element, is a table of 256 entries: PyTorch's own function, run on the
256 dequantized values and quantized by PyTorch. Exact therefore, whatever the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .common import DEQUANTIZE, DEQUANTIZE_OPS, Operand, args_of, aten, constant, dequantized, kwargs_of, target_of
from .registry import Fold, evaluate, lowers, quantized_op

POINTWISE = frozenset({
    aten.hardswish.default, aten.mish.default, aten.celu.default, aten.selu.default, aten.log_sigmoid.default,
    aten.rrelu.default, aten.hardshrink.default, aten.softshrink.default, aten.threshold.default, aten.square.default,
    aten.float_power.Tensor_Scalar,
})  # fmt: skip
"""Elementwise operators that PyTorch does not tag as pointwise."""

INDICES = torch.arange(-128, 128, dtype=torch.int8)


@quantized_op
def lut(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """table[x + 128]; table int8 [256]."""
    return table[x.long() + 128]


def is_pointwise(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in target.tags:
        return False
    return torch.Tag.pointwise in target.tags or target in POINTWISE


def cone(gm: fx.GraphModule, result: fx.Node) -> tuple[Operand, list[fx.Node]] | None:
    """The int8 tensor of which `result` is a function, element by element, and the nodes in between; else None.

    All that the function reads besides must be scalars.
    """
    source: Operand | None = None
    order: list[fx.Node] = []
    seen: set[fx.Node] = set()
    stack: list[tuple[fx.Node, bool]] = [(result, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            continue
        if node in seen:
            continue
        seen.add(node)
        held = evaluate(gm, node)
        if held is not None:
            if held.numel() != 1:
                return None
            continue
        if node.op == "call_function" and node.target is DEQUANTIZE:
            try:
                operand = dequantized(node)
            except Exception:
                return None
            if source is not None and operand != source:
                return None
            source = operand
            continue
        if node.op != "call_function" or not is_pointwise(node.target):
            return None
        stack.append((node, True))
        stack.extend((i, False) for i in node.all_input_nodes)
    return None if source is None else (source, order)


def tabulate(gm: fx.GraphModule, source: Operand, nodes: list[fx.Node], quantize: fx.Node) -> torch.Tensor:
    """The int8 table [256] of: dequantize, `nodes`, quantize."""
    x = DEQUANTIZE(INDICES, source.q.scale, source.q.zero_point, -128, 127, torch.int8)
    values: dict[fx.Node, torch.Tensor] = {}

    def read(node: fx.Node) -> Any:
        if node in values:
            return values[node]
        if node.target in DEQUANTIZE_OPS and args_of(node)[0] is source.node:
            return x
        held = constant(gm, node)
        return evaluate(gm, node) if held is None else held

    for node in nodes:
        args, kwargs = fx.map_arg(args_of(node), read), fx.map_arg(kwargs_of(node), read)
        values[node] = target_of(node)(*args, **kwargs)
    table: torch.Tensor = target_of(quantize)(read(args_of(quantize)[0]), *args_of(quantize)[1:])
    return table.expand(256).contiguous()


def fold_table(fold: Fold, source: Operand, nodes: list[fx.Node]) -> fx.Node:
    """The table node for a cone."""
    table = fold.constant(tabulate(fold.gm, source, nodes, fold.quantize), "table")
    return fold.emit(lut, source.node, table)


Table = Callable[[torch.Tensor], torch.Tensor]


@lowers(lut)
def lower_lut(low: Any, node: fx.Node) -> None:
    x, layout = low.any(args_of(node)[0])
    low.emit_like(node, "lut", [x, low.table(low.constant(args_of(node)[1]), node.name)], {}, layout)
