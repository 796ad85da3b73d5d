"""Operators that are spelled otherwise, or vanish, in evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ..registry import converts
from .aten import generic, write
from .call import Call
from .values import Ref

aten: Any = torch.ops.aten
FORMAT = "torchscript"

_TRAINING = "the model is in training mode: call .eval() before it is traced, scripted or saved"


@converts(
    FORMAT, "aten::dropout", "aten::dropout_", "aten::feature_dropout", "aten::feature_dropout_",
    "aten::alpha_dropout", "aten::alpha_dropout_", "aten::feature_alpha_dropout", "aten::feature_alpha_dropout_",
    "aten::native_dropout",
)  # fmt: skip
def dropout(call: Call) -> Ref:
    if call.args[2] and call.args[1]:
        raise call.builder.unsupported(_TRAINING)
    return call.tensor(0)


@converts(FORMAT, "aten::batch_norm", "aten::native_batch_norm")
def batch_norm(call: Call) -> Any:
    if call.args[5]:
        raise call.builder.unsupported(_TRAINING)
    return generic(call)


@converts(FORMAT, "aten::_convolution", "aten::convolution")
def convolution(call: Call) -> Ref:
    """conv1d..3d, or conv_transpose1d..3d, after the rank of the weight."""
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = call.args[:9]
    values = [None if a is None else a.value for a in (x, weight, bias)]
    rank = len(call.tensor(1).shape) - 2
    if rank not in (1, 2, 3):
        raise call.builder.unsupported(f"convolution has 1 to 3 dimensions, got {rank}")
    if transposed:
        op = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)[rank - 1]
        return Ref(call.builder.call(op, *values, stride, padding, output_padding, groups, dilation))
    op = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)[rank - 1]
    return Ref(call.builder.call(op, *values, stride, padding, dilation, groups))


@converts(FORMAT, "aten::addmm", "aten::mm", "aten::matmul")
def matmul(call: Call) -> Any:
    """linear, if the right operand is a constant matrix."""
    bias, x, weight = call.args[:3] if call.name == "addmm" else (None, *call.args[:2])
    plain = call.name != "addmm" or (call.get(3, 1) == 1 and call.get(4, 1) == 1 and len(call.tensor(0).shape) == 1)
    fits = isinstance(x.value, fx.Node) and weight.is_constant and len(weight.shape) == 2 and len(x.shape) >= 2
    if not plain or not fits or bias is not None and bias.shape[0] != weight.shape[1]:
        return generic(call)
    args = (x.value, weight.value.t().contiguous(), *(() if bias is None else (bias.value,)))
    return Ref(call.builder.call(aten.linear.default, *args))


@converts(FORMAT, "aten::copy_")
def copy_into(call: Call) -> Ref:
    x, source = call.tensor(0), call.tensor(1)
    if x.q is not None or source.q is not None:
        raise call.builder.unsupported("quantized tensors are copied in place; dequantize them before")
    write(call, x, source.value)
    return x


@converts(FORMAT, "aten::index", "aten::index_put", "aten::index_put_")
def index(call: Call) -> Any:
    """A constant mask is the indices of its ones: so the result has a fixed shape."""
    indices: list[Any] = []
    for item in call.args[1]:
        mask = isinstance(item, Ref) and item.is_constant and item.dtype in (torch.bool, torch.uint8)
        indices += [Ref(i) for i in item.value.nonzero(as_tuple=True)] if mask else [item]
    return generic(replace(call, args=[call.args[0], indices, *call.args[2:]]))
