"""Tensors and operators of PyTorch's own quantization (quantized::*) as dequantize, float operator, quantize."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from mera_torch.errors import InternalError

from ..graph import GraphBuilder, Value, identifier
from ..registry import converts
from .call import Call
from .values import STORED, Quantization, Ref

aten: Any = torch.ops.aten
qd: Any = torch.ops.quantized_decomposed
FORMAT = "torchscript"
INT32 = (-(2**31), 2**31 - 1, torch.int32)


# ---- tensors ----


def quantize(builder: GraphBuilder, value: Value, q: Quantization) -> Ref:
    """The float value rounded to q."""
    held = builder.call(qd.quantize_per_tensor.default, value, *q.arguments)
    return Ref(builder.call(qd.dequantize_per_tensor.default, held, *q.arguments), q)


def stored(builder: GraphBuilder, x: Ref) -> Value:
    """The value as it leaves the model: of a quantized tensor the integers."""
    return x.value if x.q is None else builder.call(qd.quantize_per_tensor.default, x.value, *x.q.arguments)


def constant(builder: GraphBuilder, tensor: torch.Tensor) -> Ref:
    """A quantized tensor of the file."""
    if tensor.qscheme() not in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        raise builder.unsupported("a constant is quantized per channel; only weights of operators may be")
    q = Quantization(tensor.q_scale(), tensor.q_zero_point(), tensor.dtype)
    return Ref(tensor.dequantize(), q)


def quantization(call: Call, scale: Any, zero_point: Any, dtype: torch.dtype) -> Quantization:
    """Checked. Raises InvalidModelError."""
    s, z = float(call.read(scale)), int(call.read(zero_point))
    q = Quantization(s, z, dtype)
    low, high = q.limits
    if not 0 < s < float("inf") or not low <= z <= high:
        raise call.builder.invalid(f"scale {s} and zero point {z} are no quantization to {dtype}")
    return q


def operand(call: Call, index: int) -> Ref:
    """The argument, which must be a quantized tensor."""
    x = call.tensor(index)
    if x.q is None:
        raise call.builder.invalid(f"argument {index} must be a quantized tensor, got {x.dtype}")
    return x


def _q(x: Ref) -> Quantization:
    if x.q is None:
        raise InternalError("a tensor without quantization where operand() lets none through")
    return x.q


def _like(call: Call, x: Ref, scale: Any, zero_point: Any) -> Quantization:
    return quantization(call, scale, zero_point, _q(x).dtype)


@converts(FORMAT, "aten::quantize_per_tensor")
def quantize_per_tensor(call: Call) -> Any:
    dtype = call.dtype(call.args[3])
    if dtype not in STORED:
        raise call.builder.unsupported(f"quantization to {dtype} is not supported")
    if isinstance(call.args[0], list):
        scales, zeros = (call.tensor(i).value.tolist() for i in (1, 2))
        rows = zip(call.args[0], scales, zeros, strict=True)
        return [quantize(call.builder, x.value, quantization(call, s, z, dtype)) for x, s, z in rows]
    return quantize(call.builder, call.tensor(0).value, quantization(call, call.args[1], call.args[2], dtype))


@converts(FORMAT, "aten::dequantize")
def dequantize(call: Call) -> Any:
    if isinstance(call.args[0], list):
        return [Ref(x.value) for x in call.args[0]]
    return Ref(call.tensor(0).value)


@converts(FORMAT, "aten::int_repr")
def int_repr(call: Call) -> Ref:
    return Ref(stored(call.builder, operand(call, 0)))


@converts(FORMAT, "aten::q_scale")
def q_scale(call: Call) -> float:
    return _q(operand(call, 0)).scale


@converts(FORMAT, "aten::q_zero_point")
def q_zero_point(call: Call) -> int:
    return _q(operand(call, 0)).zero_point


# ---- packed weights ----


def weight_and_bias(call: Call, packed: Any, unpack: Any, x_scale: float | None) -> tuple[Value, Value | None]:
    """(the dequantize of the int8 weight, that of the int32 bias or None) of packed parameters.

    x_scale: the input's scale, in whose units times the weight's the bias is kept; None: the bias stays float.
    """
    if not isinstance(packed, torch.ScriptObject):
        raise call.builder.invalid(f"its packed parameters are a {type(packed).__name__}")
    try:
        weight, bias = unpack(packed)
    except RuntimeError as error:
        raise call.builder.unsupported(f"its packed parameters cannot be unpacked: {error}") from error
    if not weight.is_quantized or weight.dtype is not torch.qint8:
        raise call.builder.unsupported(f"its weight must be quantized to qint8, got {weight.dtype}")
    value, scales = _weight(call, weight)
    if bias is None:
        return value, None
    bias = bias.detach().float()
    call.builder.node(bias, identifier(f"{call.path}_bias"))
    if x_scale is None:
        return value, bias
    units = x_scale * scales.double()
    levels = (bias.double() / units).round()
    if levels.abs().max() > 2**31 - 1:
        return value, bias
    return value, _integers(call, levels.to(torch.int32), units, torch.zeros_like(levels), 0, "bias", INT32)


def _weight(call: Call, weight: torch.Tensor) -> tuple[Value, torch.Tensor]:
    """(the dequantize of it, its scales: one, or one a channel)."""
    per_channel = weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
    if per_channel:
        scales, zeros = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
        axis = weight.q_per_channel_axis()
    else:
        scales, zeros = torch.tensor([weight.q_scale()]), torch.tensor([weight.q_zero_point()])
        axis = None
    return _integers(call, weight.int_repr(), scales, zeros, axis, "weight", (-128, 127, torch.int8)), scales


def _integers(
    call: Call, held: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, axis: int | None, name: str,
    limits: tuple[int, int, torch.dtype],
) -> Value:  # fmt: skip
    """The dequantize node of a constant; scales: one, or one for each index along axis."""
    name = identifier(f"{call.path}_{name}" if call.path else name)
    call.builder.node(held, name)
    if scales.numel() == 1:
        args = (float(scales), int(zeros.flatten()[0]), *limits)
        return call.builder.emit(qd.dequantize_per_tensor.default, held, *args)
    scales, zeros = scales.float(), zeros.to(torch.int64)
    call.builder.node(scales, f"{name}_scale")
    call.builder.node(zeros, f"{name}_zero_point")
    return call.builder.emit(qd.dequantize_per_channel.default, held, scales, zeros, axis, *limits)


# ---- convolution ----


def _conv_op(rank: int, transposed: bool) -> Any:
    if transposed:
        return (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)[rank - 1]
    return (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)[rank - 1]


def _convolution(call: Call, x: Ref, packed: Any, x_scale: float | None) -> Value:
    rank = next(n for n in (1, 2, 3) if f"{n}d" in call.name)
    transposed = "transpose" in call.name
    names: Any = torch.ops.quantized
    family = f"conv{'_transpose' if transposed else ''}{rank}d_unpack"
    weight, bias = weight_and_bias(call, packed, getattr(names, family), x_scale)
    stride, padding, dilation = (
        [int(v) for v in getattr(packed, what)()][-rank:] for what in ("stride", "padding", "dilation")
    )
    groups = int(packed.groups())
    if transposed:
        output_padding = [int(v) for v in packed.output_padding()][-rank:]
        settings: tuple[Any, ...] = (stride, padding, output_padding, groups, dilation)
    else:
        settings = (stride, padding, dilation, groups)
    return call.builder.call(_conv_op(rank, transposed), x.value, weight, bias, *settings)


@converts(
    FORMAT, "quantized::conv1d", "quantized::conv2d", "quantized::conv3d", "quantized::conv1d_relu",
    "quantized::conv2d_relu", "quantized::conv3d_relu", "quantized::conv_transpose1d", "quantized::conv_transpose2d",
    "quantized::conv_transpose3d",
)  # fmt: skip
def convolution(call: Call) -> Ref:
    x = operand(call, 0)
    y = _convolution(call, x, call.args[1], _q(x).scale)
    return _finish(call, y, _like(call, x, *call.args[-2:]))


@converts(FORMAT, "quantized::conv2d_add", "quantized::conv2d_add_relu")
def convolution_add(call: Call) -> Ref:
    """A convolution and the addition of a tensor, rounded once."""
    x, other = operand(call, 0), operand(call, 1)
    y = _convolution(call, x, call.args[2], _q(x).scale)
    y = call.builder.call(aten.add.Tensor, y, other.value)
    return _finish(call, y, _like(call, x, *call.args[-2:]))


@converts(
    FORMAT, "quantized::conv1d_dynamic", "quantized::conv2d_dynamic", "quantized::conv3d_dynamic",
    "quantized::conv_transpose1d_dynamic", "quantized::conv_transpose2d_dynamic",
    "quantized::conv_transpose3d_dynamic",
)  # fmt: skip
def dynamic_convolution(call: Call) -> Ref:
    x = Ref(_dynamic(call, call.tensor(0).value, bool(call.get(2, False))))
    return Ref(_convolution(call, x, call.args[1], None))


def _finish(call: Call, y: Value, q: Quantization) -> Ref:
    """y, or relu(y) if the operator's name says so, rounded to q."""
    if call.name.endswith("_relu") and not call.name.endswith("leaky_relu"):
        y = call.builder.call(aten.relu.default, y)
    return quantize(call.builder, y, q)


# ---- fully connected ----


@converts(
    FORMAT, "quantized::linear", "quantized::linear_relu", "quantized::linear_leaky_relu", "quantized::linear_tanh"
)
def linear(call: Call) -> Ref:
    x = operand(call, 0)
    weight, bias = weight_and_bias(call, call.args[1], torch.ops.quantized.linear_unpack, _q(x).scale)
    y = call.builder.call(aten.linear.default, x.value, weight, bias)
    if call.name == "linear_leaky_relu":
        y = call.builder.call(aten.leaky_relu.default, y, call.number(4))
    if call.name == "linear_tanh":
        y = call.builder.call(aten.tanh.default, y)
    return _finish(call, y, _like(call, x, call.args[2], call.args[3]))


@converts(FORMAT, "quantized::linear_dynamic", "quantized::linear_relu_dynamic")
def dynamic_linear(call: Call) -> Ref:
    x = _dynamic(call, call.tensor(0).value, bool(call.get(2, False)))
    weight, bias = weight_and_bias(call, call.args[1], torch.ops.quantized.linear_unpack, None)
    y = call.builder.call(aten.linear.default, x, weight, bias)
    return Ref(call.builder.call(aten.relu.default, y) if "relu" in call.name else y)


def _dynamic(call: Call, x: Value, reduce_range: bool) -> Value:
    """x rounded to uint8 between its own smallest and largest value."""
    limits = (0, 127 if reduce_range else 255)
    found = call.builder.call(qd.choose_qparams.tensor, x, *limits, 1e-8, torch.uint8)
    if isinstance(found, fx.Node):
        found = tuple(call.builder.emit(operator.getitem, found, i) for i in (0, 1))
    scale, zero = found
    held = call.builder.call(qd.quantize_per_tensor.tensor, x, scale, zero, *limits, torch.uint8)
    return call.builder.call(qd.dequantize_per_tensor.tensor, held, scale, zero, *limits, torch.uint8)


@converts(FORMAT, "quantized::embedding_byte", "quantized::embedding_4bit")
def embedding(call: Call) -> Ref:
    unpack = {"embedding_byte": torch.ops.quantized.embedding_bag_unpack}.get(call.name)
    if unpack is None or not isinstance(call.args[0], torch.ScriptObject):
        raise call.builder.unsupported("4-bit embeddings have no conversion")
    table = unpack(call.args[0]).dequantize()
    return Ref(call.builder.call(aten.embedding.default, table, call.tensor(1).value))


# ---- elementwise ----


@converts(FORMAT, "quantized::add", "quantized::add_relu", "quantized::mul", "quantized::mul_relu", "quantized::matmul")
def binary(call: Call) -> Ref:
    if not isinstance(call.args[1], Ref) or call.overload.startswith("Scalar"):
        found: Ref = scalar_binary(call)
        return found
    a, b = operand(call, 0), operand(call, 1)
    name = call.name.removesuffix("_relu")
    op = {"add": aten.add.Tensor, "mul": aten.mul.Tensor, "matmul": aten.matmul.default}[name]
    return _finish(call, call.builder.call(op, a.value, b.value), _like(call, a, call.args[2], call.args[3]))


@converts(
    FORMAT, "quantized::add_scalar", "quantized::add_scalar_relu", "quantized::mul_scalar",
    "quantized::mul_scalar_relu",
)  # fmt: skip
def scalar_binary(call: Call) -> Ref:
    """A number is added or multiplied by changing scale and zero point (qadd.cpp and qmul.cpp of ATen)."""
    first = 0 if isinstance(call.args[0], Ref) and call.args[0].q is not None else 1
    x, number = operand(call, first), float(call.number(1 - first))
    if call.name.startswith("mul"):
        q = _scaled(_q(x), number)
        y = call.builder.call(aten.mul.Tensor, x.value, number)
    else:
        level = round(number / _q(x).scale)
        q = _shifted(_q(x), level)
        y = call.builder.call(aten.add.Tensor, x.value, level * _q(x).scale)
    return _finish(call, y, q)


def _scaled(q: Quantization, factor: float) -> Quantization:
    low, high = q.limits
    if factor == 0:
        return Quantization(1.0, 0, q.dtype)
    return Quantization(q.scale * abs(factor), q.zero_point if factor > 0 else high - (q.zero_point - low), q.dtype)


def _shifted(q: Quantization, level: int) -> Quantization:
    low, high = q.limits
    zero = q.zero_point - level
    if zero < low:
        return Quantization((high - zero) / (high - low) * q.scale, low, q.dtype)
    if zero > high:
        return Quantization((zero - low) / (high - low) * q.scale, high, q.dtype)
    return Quantization(q.scale, zero, q.dtype)


@converts(FORMAT, "quantized::cat", "quantized::cat_relu")
def cat(call: Call) -> Ref:
    tensors: Sequence[Any] = call.args[0]
    if not tensors or any(not isinstance(t, Ref) or t.q is None for t in tensors):
        raise call.builder.invalid("it joins tensors that are not quantized")
    q = _q(tensors[0])
    if call.get(2) is not None:
        q = quantization(call, call.args[2], call.args[3], q.dtype)
    return _finish(call, call.builder.call(aten.cat.default, [t.value for t in tensors], call.args[1]), q)


def _unary(name: str, scale: int, op: Any, *settings: int) -> None:
    """quantized::name: op(x, the arguments at `settings`), rounded to the scale and zero point at scale, scale + 1."""

    def unary(call: Call) -> Ref:
        x = operand(call, 0)
        args = [call.args[i].value if isinstance(call.args[i], Ref) else call.args[i] for i in settings]
        y = call.builder.call(op, x.value, *args)
        return _finish(call, y, _like(call, x, call.args[scale], call.args[scale + 1]))

    converts(FORMAT, f"quantized::{name}")(unary)


_unary("hardswish", 1, aten.hardswish.default)
_unary("sigmoid", 1, aten.sigmoid.default)
_unary("leaky_relu", 3, aten.leaky_relu.default, 1)
_unary("elu", 1, aten.elu.default, 3, 4, 5)
_unary("celu", 1, aten.celu.default, 3)
_unary("softmax", 2, aten.softmax.int, 1)
_unary("prelu", 2, aten.prelu.default, 1)
_unary("layer_norm", 5, aten.layer_norm.default, 1, 2, 3, 4)
_unary("group_norm", 5, aten.group_norm.default, 1, 2, 3, 4)


@converts(FORMAT, "quantized::instance_norm")
def instance_norm(call: Call) -> Ref:
    x = operand(call, 0)
    weight, bias = (a.value if isinstance(a, Ref) else None for a in call.args[1:3])
    args = (weight, bias, None, None, True, 0.0, call.args[3], False)
    y = call.builder.call(aten.instance_norm.default, x.value, *args)
    return quantize(call.builder, y, _like(call, x, call.args[4], call.args[5]))


@converts(
    FORMAT, "quantized::batch_norm", "quantized::batch_norm_relu", "quantized::batch_norm1d",
    "quantized::batch_norm1d_relu", "quantized::batch_norm2d", "quantized::batch_norm2d_relu",
    "quantized::batch_norm3d", "quantized::batch_norm3d_relu",
)  # fmt: skip
def batch_norm(call: Call) -> Ref:
    x = operand(call, 0)
    weight, bias, mean, variance = (a.value if isinstance(a, Ref) else None for a in call.args[1:5])
    args = (weight, bias, mean, variance, False, 0.0, call.args[5], False)
    y = call.builder.call(aten.batch_norm.default, x.value, *args)
    return _finish(call, y, _like(call, x, call.args[6], call.args[7]))


@converts(FORMAT, "quantized::clamp", "quantized::threshold", "quantized::relu6", "quantized::max_pool2d",
          "quantized::max_pool1d")  # fmt: skip
def same_quantization(call: Call) -> Ref:
    x = operand(call, 0)
    op, count = {
        "clamp": (aten.clamp.default, 2), "threshold": (aten.threshold.default, 2), "relu6": (aten.relu6.default, 0),
        "max_pool2d": (aten.max_pool2d.default, 5), "max_pool1d": (aten.max_pool1d.default, 5),
    }[call.name]  # fmt: skip
    return quantize(call.builder, call.builder.call(op, x.value, *call.args[1 : 1 + count]), _q(x))


@converts(FORMAT, "quantized::dropout")
def dropout(call: Call) -> Ref:
    if call.get(4, False):
        raise call.builder.unsupported("the model is in training mode: call .eval() before it is traced or saved")
    return operand(call, 0)
