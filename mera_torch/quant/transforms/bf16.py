"""Operators in BF16 within the quantized network: bfloat16 operands and results around a float32 computation.

The canonical form mirrors that of int8: ``aten.to.dtype(x, torch.bfloat16)`` stands where int8 has its quantize,
``aten.to.dtype(b, torch.float32)`` where it has its dequantize. An operator in BF16 is one whose float32 operands are
all widened bfloat16 (but for biases, which join float32 accumulators, and a normalization's statistics) and whose
result is narrowed to bfloat16 at once:

    narrow -> widen -> operator -> [clamp fused into it] -> narrow -> widen

Between two operators in BF16 there is one pair. Rounding is to nearest, ties to even, subnormals kept (IEEE 754).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from mera_torch.ops.bf16 import is_bf16_cast

from ..config import QuantConfig
from ..graphs import operators as ops
from ..graphs.patterns import find_constants, is_float32, provenance, value_of
from ..rules import Resolver

CAST = ops.aten.to.dtype
_BORDER = frozenset({
    getattr(torch.ops.quantized_decomposed, f"{way}_{kind}").default
    for way in ("quantize", "dequantize") for kind in ("per_tensor", "per_channel")
})  # fmt: skip
_ROUNDED_CONSTANTS = {
    **dict.fromkeys(ops.CONV | ops.CONV_1D | ops.CONV_TRANSPOSED | ops.LINEAR | ops.PRELU, (1,)),
    **dict.fromkeys(ops.SCALAR_BINARY | (ops.PRODUCTS - {ops.aten.addmm.default}), (0, 1)),
    ops.aten.bmm.default: (0, 1),
    ops.aten.addmm.default: (1, 2),
}
"""Operators -> which of their arguments are rounded though they are constants."""


def round_to_bf16(module: GraphModule, config: QuantConfig) -> list[str]:
    """Puts every operator whose dtype is "bf16" in `config` into the canonical form, in place; gives their names.

    module: converted by the same `config`, so that no such operator is in int8.
    """
    rules = [replace(rule, required=False) for rule in config.all_rules]
    resolver = Resolver(config, rules, module.graph)
    return to_bf16(module, lambda node: resolver.dtype(node) == "bf16")


def to_bf16(module: GraphModule, chosen: Callable[[Node], bool]) -> list[str]:
    """As `round_to_bf16`, for the operators of which `chosen` says so."""
    constants = find_constants(module.graph)
    nodes = [node for node in module.graph.nodes if _computes(node, constants) and chosen(node)]
    inside = set(nodes)
    pairs: dict[Node, Node] = {}
    for node in nodes:
        for source in _operands(node, constants):
            if not _follows_at_once(source, node, inside):
                node.replace_input_with(source, _pair(module, source, node, pairs))
        if not any(_follows_at_once(node, user, inside) for user in node.users):
            _narrow(module, node, pairs)
    if nodes:
        module.graph.lint()
        module.recompile()
    return [node.name for node in nodes]


def _computes(node: Node, constants: set[Node]) -> bool:
    in_graph = node.op == "call_function" and node.target not in _BORDER and node not in constants
    return in_graph and is_float32(node) and not is_bf16_cast(node)


def _operands(node: Node, constants: set[Node]) -> list[Node]:
    """The values that are rounded before `node` reads them."""
    rounded = {node.args[i] for i in _ROUNDED_CONSTANTS.get(node.target, ()) if i < len(node.args)}
    read = dict.fromkeys(node.all_input_nodes)
    return [x for x in read if is_float32(_unquantized(x)) and (x not in constants or x in rounded)]


def _unquantized(node: Node) -> Node:
    """The float value behind quantize and dequantize, which torchao leaves without shape and dtype."""
    while node.target in _BORDER and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _follows_at_once(node: Node, user: Node, inside: set[Node]) -> bool:
    """Whether `user` is the clamp that is fused into `node`: no rounding stands between."""
    fused = node.target in ops.TAKES_CLAMP and user.target in ops.CLAMP and len(node.users) == 1
    return fused and node in inside and user in inside


def _pair(module: GraphModule, source: Node, reader: Node, pairs: dict[Node, Node]) -> Node:
    """`source` rounded: narrowed and widened before `reader`, the first to need it."""
    if source.target is CAST and is_bf16_cast(source):
        return source
    if source not in pairs:
        with module.graph.inserting_before(reader):
            narrow = _cast(module, source, source, torch.bfloat16)
            pairs[source] = _cast(module, narrow, source, torch.float32)
    return pairs[source]


def _narrow(module: GraphModule, node: Node, pairs: dict[Node, Node]) -> None:
    """All that reads `node` reads it rounded."""
    users = list(node.users)
    with module.graph.inserting_after(node):
        narrow = _cast(module, node, node, torch.bfloat16)
    with module.graph.inserting_after(narrow):
        wide = pairs[node] = _cast(module, narrow, node, torch.float32)
    for user in users:
        user.replace_input_with(node, wide)


def _cast(module: GraphModule, value: Node, origin: Node, dtype: torch.dtype) -> Node:
    suffix = "bf16" if dtype is torch.bfloat16 else "float"
    node = module.graph.create_node(
        "call_function", CAST, (value, dtype), {}, f"{origin.name.removesuffix('_bf16')}_{suffix}"
    )
    held: Any = value_of(_unquantized(value))
    node.meta = {**provenance(origin), "val": held.to(dtype)}
    return node
