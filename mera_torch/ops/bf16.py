"""How an operator in BF16 looks in a graph; see mera_torch/quant/transforms/bf16.py, which makes it so."""

from __future__ import annotations

import torch
from torch import fx

from .common import DEQUANTIZE_OPS, QUANTIZE_OPS, aten

CASTS = frozenset({aten.to.dtype, aten._to_copy.default, aten.to.dtype_layout})
CLAMPS = frozenset({
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
    aten.clamp_max.default,
})  # fmt: skip
BORDER = QUANTIZE_OPS | DEQUANTIZE_OPS

ON_HOST = "it computes in BF16, which runs on the host until there is a BF16 target"
CAST_ON_HOST = "it rounds to bfloat16, or widens from it, for an operator in BF16, which runs on the host"


def is_bf16_cast(node: fx.Node) -> bool:
    """Whether `node` casts to or from bfloat16."""
    return node.target in CASTS and torch.bfloat16 in (_dtype(node), _dtype(node.all_input_nodes[0]))


def narrows(node: fx.Node) -> bool:
    """Whether `node` casts to bfloat16."""
    return node.target in CASTS and _dtype(node) is torch.bfloat16


def computes_in_bf16(node: fx.Node) -> bool:
    """Whether all operands of `node` (constants aside) are widened bfloat16, and all that reads it narrows it again; a
    clamp may be fused between."""
    if node.op != "call_function" or node.target in BORDER or is_bf16_cast(node):
        return False
    first, last = node, node
    if node.target in CLAMPS and _fuses(node.all_input_nodes[0]):
        first = node.all_input_nodes[0]
    elif _fuses(node):
        last = next(iter(node.users))
    reads = [source for source in first.all_input_nodes if source.op != "get_attr"]
    return bool(reads) and all(map(is_bf16_cast, reads)) and bool(last.users) and all(map(narrows, last.users))


def _fuses(node: fx.Node) -> bool:
    """Whether a clamp alone reads `node`."""
    users = list(node.users)
    return node.op == "call_function" and not is_bf16_cast(node) and len(users) == 1 and users[0].target in CLAMPS


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None
