"""Operators on quantized integers: QLinear..., and those of ONNX Runtime's domain; integer products on the host."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .activation import softmax_along, softmax_from
from .context import OnnxBuilder, OnnxNode, aten
from .conv import convolution
from .gemm import general_product, product
from .pool import average, global_average
from .quantization import Affine, dequantize, quantize
from .values import axis_of, cast, permute, reshape


def _per_tensor(g: OnnxBuilder, scale: Value | None, zero_point: Value | None, what: str) -> Affine:
    """One constant scale and zero point."""
    if scale is None:
        raise g.invalid(f"the scale of its {what} is missing")
    found = float(g.number(scale, f"scale of its {what}"))
    if not 0 < found < math.inf:
        raise g.invalid(f"the scale of its {what} must be a positive number, got {found}")
    zero = 0 if zero_point is None else int(g.number(zero_point, f"zero point of its {what}"))
    return Affine(torch.tensor(found, dtype=torch.float32), torch.tensor(zero))


def _per_axis(g: OnnxBuilder, x: Value, scale: Value | None, zero_point: Value | None, axis: int, what: str) -> Affine:
    """One constant scale and zero point, or one for each index of an axis."""
    if scale is None:
        raise g.invalid(f"the scale of its {what} is missing")
    scales = g.constant(scale, f"scale of its {what}")
    if scales.numel() == 1:
        return _per_tensor(g, scale, zero_point, what)
    scales = scales.flatten().to(torch.float32)
    count = shape(x)[axis]
    zeros = torch.zeros(1) if zero_point is None else g.constant(zero_point, f"zero point of its {what}").flatten()
    if len(scales) != count or len(zeros) not in (1, count) or not bool((scales > 0).all()):
        raise g.invalid(f"the scales of its {what} must be {count} positive numbers, got {len(scales)}")
    return Affine(scales, zeros.expand(count).contiguous().to(torch.int64), axis)


def _dequantized(g: OnnxBuilder, x: Value | None, scale: Value | None, zero_point: Value | None, what: str) -> Value:
    if x is None:
        raise g.invalid(f"its {what} is missing")
    return dequantize(g, x, _per_tensor(g, scale, zero_point, what))


def _requantized(g: OnnxBuilder, y: Value, scale: Value | None, zero_point: Value | None, like: Value) -> Value:
    """y with the result's quantization; its type is its zero point's, else that of `like`."""
    to = dtype(like) if zero_point is None else dtype(zero_point)
    if to not in (torch.int8, torch.uint8, torch.int16, torch.uint16):
        raise g.invalid(f"its zero point is of type {to}, which is no type of a quantized result")
    return quantize(g, y, _per_tensor(g, scale, zero_point, "result"), to)


@converts("onnx", "QLinearConv", "com.microsoft.QLinearConv", since=1)
def qlinear_conv(g: OnnxBuilder, node: OnnxNode) -> Value:
    """The bias is int32 with the scale of the input times that of the weight."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = node.take(9)
    if node.int("channels_last", 0):
        raise g.unsupported("channels_last is not supported")
    real = _dequantized(g, x, x_scale, x_zero, "input")
    if w is None or not shape(w):
        raise g.invalid("its weight is missing")
    affine = _per_axis(g, w, w_scale, w_zero, 0, "weight")
    if bias is not None:
        bias = _bias(g, bias, _per_tensor(g, x_scale, x_zero, "input").scale, affine)
    y = convolution(g, node, real, dequantize(g, w, affine), bias)
    return _requantized(g, y, y_scale, y_zero, x)


def _bias(g: OnnxBuilder, bias: Value, x_scale: torch.Tensor, weight: Affine) -> Value:
    """An int32 bias, [Co], dequantized."""
    scale = (x_scale.double() * weight.scale.double()).float()
    if weight.axis is None:
        return dequantize(g, bias, Affine(scale, torch.tensor(0)))
    if shape(bias) != tuple(scale.shape):
        raise g.invalid(f"its bias must be one for each of its {len(scale)} output channels, got {list(shape(bias))}")
    return dequantize(g, bias, Affine(scale, torch.zeros(len(scale), dtype=torch.int64), 0))


@converts("onnx", "QLinearMatMul", "com.microsoft.QLinearMatMul", since=1)
def qlinear_matmul(g: OnnxBuilder, node: OnnxNode) -> Value:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.take(8)
    if b is None or not shape(a) or not shape(b):
        raise g.invalid("its inputs must be two matrices")
    left = dequantize(g, a, _per_axis(g, a, a_scale, a_zero, max(0, len(shape(a)) - 2), "input 0"))
    right = dequantize(g, b, _per_axis(g, b, b_scale, b_zero, len(shape(b)) - 1, "input 3"))
    return _requantized(g, product(g, left, right), y_scale, y_zero, a)


@converts("onnx", "com.microsoft.QGemm")
def qgemm(g: OnnxBuilder, node: OnnxNode) -> Value:
    """alpha * A @ B + C with C int32 of scale alpha * a_scale * b_scale; without a result's scale it stays float."""
    a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero = node.take(9)
    alpha, trans_b = node.float("alpha", 1.0), bool(node.int("transB", 0))
    if b is None or len(shape(b)) != 2:
        raise g.invalid("its B must be a matrix")
    weight = _per_axis(g, b, b_scale, b_zero, 0 if trans_b else 1, "B")
    x_scale = _per_tensor(g, a_scale, a_zero, "A").scale
    if c is not None:
        terms = Affine(weight.scale * alpha, weight.zero_point, None if weight.axis is None else 0)
        if len(shape(c)) == 2 and shape(c)[0] == 1:
            c = reshape(g, c, [shape(c)[1]])
        c = _bias(g, c, x_scale, terms)
    weight = Affine(weight.scale * alpha, *weight[1:])
    real = _dequantized(g, a, a_scale, a_zero, "A")
    trans_a = bool(node.int("transA", 0))
    y = general_product(g, real, dequantize(g, b, weight), c, 1.0, 1.0, trans_a, trans_b)
    return y if y_scale is None else _requantized(g, y, y_scale, y_zero, a)


@converts("onnx", "com.microsoft.QLinearAdd", "com.microsoft.QLinearMul")
def qlinear_binary(g: OnnxBuilder, node: OnnxNode) -> Value:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.take(8)
    target = aten.add.Tensor if node.op == "QLinearAdd" else aten.mul.Tensor
    left, right = _dequantized(g, a, a_scale, a_zero, "A"), _dequantized(g, b, b_scale, b_zero, "B")
    return _requantized(g, g.call(target, left, right), y_scale, y_zero, a)


@converts("onnx", "com.microsoft.QLinearConcat")
def qlinear_concat(g: OnnxBuilder, node: OnnxNode) -> Value:
    y_scale, y_zero, *rest = node.inputs
    if not rest or len(rest) % 3:
        raise g.invalid(f"it must have a scale and a zero point for each tensor, got {len(rest)} inputs for them all")
    parts = [_dequantized(g, rest[i], rest[i + 1], rest[i + 2], f"tensor {i // 3}") for i in range(0, len(rest), 3)]
    axis = axis_of(g, node.int("axis"), len(shape(parts[0])))
    return _requantized(g, g.call(aten.cat.default, parts, axis), y_scale, y_zero, rest[0])


@converts(
    "onnx", "com.microsoft.QLinearSigmoid", "com.microsoft.QLinearLeakyRelu", "com.microsoft.QLinearAveragePool",
    "com.microsoft.QLinearGlobalAveragePool", "com.microsoft.QLinearSoftmax",
)  # fmt: skip
def qlinear_unary(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, x_scale, x_zero, y_scale, y_zero = node.take(5)
    y = _UNARY[node.op](g, node, _dequantized(g, x, x_scale, x_zero, "input"))
    return _requantized(g, y, y_scale, y_zero, x)


def _sigmoid(g: OnnxBuilder, node: OnnxNode, x: Value) -> Value:
    return g.call(aten.sigmoid.default, x)


def _leaky_relu(g: OnnxBuilder, node: OnnxNode, x: Value) -> Value:
    return g.call(aten.leaky_relu.default, x, node.float("alpha", 0.01))


def _average_pool(g: OnnxBuilder, node: OnnxNode, x: Value) -> Value:
    last = bool(node.int("channels_last", 0))
    rank = len(shape(x))
    x = permute(g, x, [0, rank - 1, *range(1, rank - 1)]) if last else x
    y = average(g, node, x) if node.op == "QLinearAveragePool" else global_average(g, x)
    return permute(g, y, [0, *range(2, rank), 1]) if last else y


def _softmax(g: OnnxBuilder, node: OnnxNode, x: Value) -> Value:
    """Its attribute `opset` says whose Softmax it is: up to 12 that flattens from axis on."""
    axis = node.int("axis", -1)
    return softmax_from(g, "Softmax", x, axis) if node.int("opset", 13) < 13 else softmax_along(g, "Softmax", x, axis)


_UNARY: dict[str, Any] = {
    "QLinearSigmoid": _sigmoid,
    "QLinearLeakyRelu": _leaky_relu,
    "QLinearAveragePool": _average_pool,
    "QLinearGlobalAveragePool": _average_pool,
    "QLinearSoftmax": _softmax,
}


# ---- integer results: exact in float64, on the host ----


@converts("onnx", "ConvInteger", since=10)
def conv_integer(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, w, x_zero, w_zero = node.take(4)
    if w is None or not shape(w):
        raise g.invalid("its weight is missing")
    wide = _less(g, x, x_zero, -1), _less(g, w, w_zero, 0)
    return cast(g, convolution(g, node, *wide, None), torch.int32)


@converts("onnx", "MatMulInteger", since=10)
def matmul_integer(g: OnnxBuilder, node: OnnxNode) -> Value:
    a, b, a_zero, b_zero = node.take(4)
    if b is None or not shape(a) or not shape(b):
        raise g.invalid("its inputs must not be scalars")
    left = _less(g, a, a_zero, len(shape(a)) - 2)
    right = _less(g, b, b_zero, len(shape(b)) - 1)
    return cast(g, g.call(aten.matmul.default, left, right), torch.int32)


def _less(g: OnnxBuilder, x: Value, zero_point: Value | None, axis: int) -> Value:
    """x - zero point in float64; a vector of zero points goes along the axis."""
    wide = cast(g, x, torch.float64)
    if zero_point is None:
        return wide
    zero = cast(g, zero_point, torch.float64)
    if len(shape(zero)) == 1 and shape(zero) != (1,):
        zero = reshape(g, zero, [-1 if i == axis else 1 for i in range(len(shape(x)))])
    elif shape(zero) == (1,):
        zero = reshape(g, zero, [])
    return g.call(aten.sub.Tensor, wide, zero)
