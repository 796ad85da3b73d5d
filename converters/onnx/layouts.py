"""Which tensors of a model are images, [N, C, H, W]."""

from __future__ import annotations

import onnx
from onnx import GraphProto

_SPATIAL = frozenset({
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool",
    "QLinearConv", "ConvInteger", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN",
    "SpaceToDepth", "DepthToSpace", "MaxUnpool", "QLinearAveragePool", "QLinearGlobalAveragePool", "DeformConv",
})  # fmt: skip
"""Operators whose first input is [N, C, spatial...]."""

_SAME_LAYOUT = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "Identity", "Dropout", "Relu", "Clip",
    "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Selu", "Softplus", "Exp", "Log",
    "Sqrt", "Abs", "Neg", "Add", "Sub", "Mul", "Div", "Pad", "Resize", "Upsample", "Concat", "Max", "Min", "Sum",
    "Gelu", "Mish", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu", "Where",
    "Slice", "Split",
})  # fmt: skip

_SYMMETRIC = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Concat"})
"""Operators of _SAME_LAYOUT all of whose inputs are alike."""


def spatial(graph: GraphProto) -> set[str]:
    """The tensors that are [N, C, spatial...]: those of convolutions and the like, and what is computed of them
    element by element."""
    found: set[str] = set()
    for node in graph.node:
        if node.op_type in _SPATIAL:
            found.update((*node.input[:1], *node.output[:1]))
    same = [_same_layout(node) for node in graph.node if node.op_type in _SAME_LAYOUT]
    for tensors in (*same, *reversed(same), *same, *reversed(same)):
        if not found.isdisjoint(tensors):
            found |= tensors
    return found - {""}


def _same_layout(node: onnx.NodeProto) -> set[str]:
    """The node's tensors that have one layout."""
    return {*node.input, *node.output} if node.op_type in _SYMMETRIC else {*node.input[:1], *node.output[:1]}
