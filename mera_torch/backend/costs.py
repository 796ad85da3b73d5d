"""What the operators of a model cost, for reports: multiply-accumulates as the model has them, and an estimate of what
it costs that an operator runs on the host amid others that do not."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from ..ops.common import DEQUANTIZE_OPS, QUANTIZE_OPS, args_of, arguments, aten, is_call
from ..platform import Platform

CONVOLUTIONS = frozenset({
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
    aten.conv3d.padding, aten.convolution.default,
})  # fmt: skip
TRANSPOSED = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input})
PRODUCTS = {
    aten.linear.default: 0, aten.mm.default: 0, aten.bmm.default: 0, aten.matmul.default: 0, aten.mv.default: 0,
    aten.addmm.default: 1, aten.baddbmm.default: 1,
}  # fmt: skip
"""Matrix products -> the argument whose last dimension is summed over."""


def macs_of(node: fx.Node) -> int:
    """Multiply-accumulates of one operator as captured: of convolutions, matrix products and attention, else 0."""
    if node.op != "call_function":
        return 0
    result = _numel(node)
    if node.target in CONVOLUTIONS or node.target in TRANSPOSED:
        x, weight = args_of(node)[:2]
        turned = node.target in TRANSPOSED or (
            node.target is aten.convolution.default and arguments(node)["transposed"]
        )
        return (_numel(x) if turned else result) * math.prod(_sizes(weight)[1:])
    if node.target in PRODUCTS:
        return result * _sizes(args_of(node)[PRODUCTS[node.target]])[-1]
    if node.target is aten.scaled_dot_product_attention.default:
        query, key, values = args_of(node)[:3]
        return math.prod(_sizes(query)[:-1]) * _sizes(key)[-2] * (_sizes(query)[-1] + _sizes(values)[-1])
    return 0


def _sizes(node: Any) -> tuple[int, ...]:
    val = node.meta.get("val") if isinstance(node, fx.Node) else None
    known = isinstance(val, torch.Tensor) and all(isinstance(size, int) for size in val.shape)
    return tuple(val.shape) if isinstance(val, torch.Tensor) and known else (0, 0)


def _numel(node: Any) -> int:
    return math.prod(_sizes(node))


class Crossings:
    """Which int8 tensors leave the DNA for a host operator or come back from it; each is counted once, for the operator
    that is the first to need it."""

    def __init__(self, on_dna: set[fx.Node]) -> None:
        self.on_dna = on_dna
        self.counted: set[fx.Node] = set()

    def of(self, node: fx.Node) -> list[int]:
        """The bytes of each tensor that crosses the border for this host operator."""
        sources = [_behind(source, DEQUANTIZE_OPS) for source in node.all_input_nodes]
        crossing = [source for source in sources if source in self.on_dna]
        if any(user in self.on_dna for user in node.users) or any(
            reader in self.on_dna for user in node.users if is_call(user, *QUANTIZE_OPS) for reader in user.users
        ):
            crossing.append(node)
        fresh = [tensor for tensor in dict.fromkeys(crossing) if tensor not in self.counted]
        self.counted.update(fresh)
        return [_numel(tensor) for tensor in fresh]


def _behind(node: fx.Node, targets: frozenset[Any]) -> fx.Node:
    """What a quantize or dequantize reads; any other node itself."""
    return node.all_input_nodes[0] if is_call(node, *targets) and node.all_input_nodes else node


def round_trip_cycles(tensors: list[int], platform: Platform) -> int:
    """An estimate: each tensor of so many bytes moves through DRAM once, at DRAM's bandwidth and after its latency. The
    host's own time is not in it, nor is what it costs that the DNA waits."""
    moved = math.ceil(sum(tensors) / platform.dram_bytes_per_cycle)
    return moved + len(tensors) * max(0, platform.dram_latency_cycles)
