"""Every function of one int8 tensor, element by element, is a table of 256 entries: PyTorch's own function, run on the
256 dequantized values and quantized by PyTorch. Exact therefore, whatever the function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .common import (
    DEQUANTIZE,
    Operand,
    QParams,
    Unfit,
    args_of,
    aten,
    constant,
    dequantized,
    is_call,
    kwargs_of,
    shape,
    target_of,
)
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


LOOKUPS = frozenset({aten.index.Tensor, aten._unsafe_index.Tensor, aten.take.default})
"""Operators that, given a constant vector, are a table which the model spells out."""

CASTS = frozenset({aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout})

UNKNOWN = QParams(1.0, 0)
"""Stands for the quantization of an int8 value that nothing reads as a real number."""


@dataclass
class Cone:
    """A function of one int8 tensor, element by element: source, the nodes at which it is read, and what is computed
    from them, in order."""

    source: Operand
    leaves: list[fx.Node]
    nodes: list[fx.Node]


Leaf = Callable[[fx.Node], "Operand | None"]


def is_pointwise(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in target.tags:
        return False
    return torch.Tag.pointwise in target.tags or target in POINTWISE or target in CASTS


def looked_up(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The index, if the node looks its elements up in a constant vector; else None."""
    if node.target not in LOOKUPS or not isinstance(args_of(node)[0], fx.Node):
        return None
    table, index = constant(gm, args_of(node)[0]), args_of(node)[1]
    if isinstance(index, list | tuple):
        index = index[0] if len(index) == 1 else None
    return index if table is not None and table.dim() == 1 and isinstance(index, fx.Node) else None


def dequantized_leaf(node: fx.Node) -> Operand | None:
    """The int8 tensor that a dequantize node reads."""
    try:
        return dequantized(node) if is_call(node, DEQUANTIZE) else None
    except Unfit:
        return None


def cone(gm: fx.GraphModule, result: fx.Node, leaf: Leaf = dequantized_leaf) -> Cone | None:
    """The int8 tensor of which `result` is a function, element by element, and the nodes in between; else None.

    All that the function reads besides must be scalars, or tables that it looks up.
    """
    found: Cone | None = None
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
        operand = leaf(node)
        if operand is not None:
            if found is not None and operand != found.source:
                return None
            found = found or Cone(operand, [], order)
            found.leaves.append(node)
            continue
        index = looked_up(gm, node) if node.op == "call_function" else None
        if node.op != "call_function" or (index is None and not is_pointwise(node.target)):
            return None
        stack.append((node, True))
        stack.extend((i, False) for i in ([index] if index is not None else node.all_input_nodes))
    return found if found is not None and shape(found.source.node) == shape(result) else None


def evaluate_cone(gm: fx.GraphModule, found: Cone, levels: torch.Tensor) -> Callable[[Any], Any]:
    """What each node's value is when the leaves' is `levels`, as a function of the node. Raises Unfit."""
    values: dict[fx.Node, torch.Tensor] = dict.fromkeys(found.leaves, levels)

    def read(node: fx.Node) -> Any:
        if node in values:
            return values[node]
        held = constant(gm, node)
        return evaluate(gm, node) if held is None else held

    for node in found.nodes:
        args, kwargs = fx.map_arg(args_of(node), read), fx.map_arg(kwargs_of(node), read)
        try:
            values[node] = target_of(node)(*args, **kwargs)
        except (IndexError, RuntimeError) as error:
            raise Unfit(f"it cannot be tabulated: {error}") from error
    return read


def fold_table(fold: Fold, found: Cone) -> fx.Node:
    """The table node for a cone of float operators: dequantize, its nodes, quantize."""
    q, quantize = found.source.q, fold.quantize
    levels = DEQUANTIZE(INDICES, q.scale, q.zero_point, -128, 127, torch.int8)
    last = evaluate_cone(fold.gm, found, levels)(args_of(quantize)[0])
    table = target_of(quantize)(last, *args_of(quantize)[1:]).expand(256).contiguous()
    return fold.emit(lut, found.source.node, fold.constant(table, "table"))


@lowers(lut)
def lower_lut(low: Any, node: fx.Node) -> None:
    x, layout = low.any(args_of(node)[0])
    low.emit_like(node, "lut", [x, low.table(low.constant(args_of(node)[1]), node.name)], {}, layout)
