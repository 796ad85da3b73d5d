"""Computes what depends on constants only, once. Dequantized weights stay: who reads them wants the int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..ops.common import DEQUANTIZE_OPS, add_constant, args_of, constant, kwargs_of, target_of

LIMIT_BYTES = 1 << 28
"""A constant is not grown beyond this."""


def fold_constants(gm: fx.GraphModule) -> None:
    """Replaces call_function nodes whose inputs are all constants by a get_attr of their value."""
    known: dict[fx.Node, torch.Tensor | None] = {}  # None: a dequantize, computed if something wants it

    def get(node: fx.Node) -> Any:
        held = known[node]
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
        else:
            target: Any = node.target
            result = target(*fx.map_arg(args_of(node), get), **fx.map_arg(kwargs_of(node), get))
            with gm.graph.inserting_before(node):
                new = add_constant(gm, result.contiguous())
            new.meta.update({k: v for k, v in node.meta.items() if k != "val"})
            node.replace_all_uses_with(new)
            gm.graph.erase_node(node)
            known[new] = result


def _foldable(node: fx.Node, known: dict[fx.Node, torch.Tensor | None]) -> bool:
    target: Any = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded in target.tags or target._schema.is_mutable:
        return False
    inputs = node.all_input_nodes
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and val.nbytes <= LIMIT_BYTES and all(i in known for i in inputs)
