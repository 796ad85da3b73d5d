"""Activation functions, softmax and dropout."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..graph import Value, dtype, is_constant, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .values import axis_of, broadcast, cast, ordering, reshape

_PLAIN: dict[str, Any] = {
    "Sigmoid": aten.sigmoid.default,
    "Tanh": aten.tanh.default,
    "HardSwish": aten.hardswish.default,
    "Mish": aten.mish.default,
}


@converts("onnx", *_PLAIN)
def plain(g: OnnxBuilder, node: OnnxNode) -> Value:
    return g.call(_PLAIN[node.op], node.require(0))


@converts("onnx", "Relu")
def relu(g: OnnxBuilder, node: OnnxNode) -> Value:
    return g.call(aten.relu.default, node.require(0))


@converts("onnx", "LeakyRelu")
def leaky_relu(g: OnnxBuilder, node: OnnxNode) -> Value:
    return g.call(aten.leaky_relu.default, node.require(0), node.float("alpha", 0.01))


@converts("onnx", "ThresholdedRelu", since=10)
def thresholded_relu(g: OnnxBuilder, node: OnnxNode) -> Value:
    return g.call(aten.threshold.default, node.require(0), node.float("alpha", 1.0), 0.0)


@converts("onnx", "PRelu", since=7)
def prelu(g: OnnxBuilder, node: OnnxNode) -> Value:
    """aten.prelu if there is one slope, or one for each channel; else a choice by sign."""
    x, slope = node.require(0), node.require(1)
    sizes = shape(x)
    if broadcast(g, shape(slope), sizes) != list(sizes):
        raise g.invalid(f"its slope of shape {list(shape(slope))} does not broadcast to {list(sizes)}")
    count = math.prod(shape(slope))
    aligned = [1] * (len(sizes) - len(shape(slope))) + list(shape(slope))
    per_channel = len(sizes) > 1 and aligned[1] == sizes[1] == count
    if dtype(x).is_floating_point and (count == 1 or per_channel):
        return g.call(aten.prelu.default, x, reshape(g, slope, [count]))
    scaled = g.call(aten.mul.Tensor, x, slope)
    return g.call(aten.where.self, g.call(aten.lt.Scalar, x, 0), scaled, x)


@converts("onnx", "Elu")
def elu(g: OnnxBuilder, node: OnnxNode) -> Value:
    return g.call(aten.elu.default, node.require(0), node.float("alpha", 1.0))


@converts("onnx", "Celu", since=12)
def celu(g: OnnxBuilder, node: OnnxNode) -> Value:
    return g.call(aten.celu.default, node.require(0), node.float("alpha", 1.0))


@converts("onnx", "Selu")
def selu(g: OnnxBuilder, node: OnnxNode) -> Value:
    """gamma * x, or gamma * alpha * (exp(x) - 1) below zero: elu's negcoef and scale."""
    alpha, gamma = node.float("alpha", 1.6732631921768188), node.float("gamma", 1.0507010221481323)
    return g.call(aten.elu.default, node.require(0), alpha, gamma)


@converts("onnx", "HardSigmoid")
def hard_sigmoid(g: OnnxBuilder, node: OnnxNode) -> Value:
    """max(0, min(1, alpha * x + beta)); PyTorch's function is the one with alpha = 1/6, beta = 1/2."""
    x, alpha, beta = node.require(0), node.float("alpha", 0.2), node.float("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return g.call(aten.hardsigmoid.default, x)
    line = g.call(aten.add.Tensor, g.call(aten.mul.Tensor, x, alpha), beta)
    return g.call(aten.clamp.default, line, 0.0, 1.0)


@converts("onnx", "Softplus")
def softplus(g: OnnxBuilder, node: OnnxNode) -> Value:
    """log(1 + exp(x)); PyTorch's is x itself above a threshold, where float32 shows no difference."""
    x = node.require(0)
    return g.call(aten.softplus.default, x, 1, 20 if dtype(x) != torch.float64 else 40)


@converts("onnx", "Softsign")
def softsign(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    return g.call(aten.div.Tensor, x, g.call(aten.add.Tensor, g.call(aten.abs.default, x), 1))


@converts("onnx", "Gelu", since=20)
def gelu(g: OnnxBuilder, node: OnnxNode) -> Value:
    approximate = node.string("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise g.invalid(f"its approximate must be none or tanh, got {approximate!r}")
    return g.call(aten.gelu.default, node.require(0), approximate=approximate)


@converts("onnx", "com.microsoft.Gelu")
def microsoft_gelu(g: OnnxBuilder, node: OnnxNode) -> Value:
    return g.call(aten.gelu.default, node.require(0), approximate="none")


@converts("onnx", "com.microsoft.FastGelu", "com.microsoft.BiasGelu")
def biased_gelu(g: OnnxBuilder, node: OnnxNode) -> Value:
    """gelu(x + bias), by tanh if it is called fast."""
    x, bias = node.take(2)
    x = x if bias is None else g.call(aten.add.Tensor, x, bias)
    return g.call(aten.gelu.default, x, approximate="tanh" if node.op == "FastGelu" else "none")


@converts("onnx", "Swish", since=24)
def swish(g: OnnxBuilder, node: OnnxNode) -> Value:
    """x * sigmoid(alpha * x)."""
    x, alpha = node.require(0), node.float("alpha", 1.0)
    if alpha == 1:
        return g.call(aten.silu.default, x)
    return g.call(aten.mul.Tensor, x, g.call(aten.sigmoid.default, g.call(aten.mul.Tensor, x, alpha)))


@converts("onnx", "com.microsoft.QuickGelu")
def quick_gelu(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    scaled = g.call(aten.mul.Tensor, x, node.float("alpha", 1.702))
    return g.call(aten.mul.Tensor, x, g.call(aten.sigmoid.default, scaled))


@converts("onnx", "Shrink", since=9)
def shrink(g: OnnxBuilder, node: OnnxNode) -> Value:
    """x + bias below -lambd, x - bias above lambd, else 0."""
    x, bias, lambd = node.require(0), node.float("bias", 0.0), node.float("lambd", 0.5)
    kind = dtype(x)
    below, above = g.call(aten.lt.Scalar, x, -lambd), g.call(aten.gt.Scalar, x, lambd)
    zero = torch.zeros((), dtype=kind)
    high = g.call(aten.where.self, above, cast(g, g.call(aten.sub.Tensor, x, bias), kind), zero)
    return g.call(aten.where.self, below, cast(g, g.call(aten.add.Tensor, x, bias), kind), high)


# ---- clip ----


@converts("onnx", "Clip", since=6, until=10)
def clip_by_attributes(g: OnnxBuilder, node: OnnxNode) -> Value:
    low, high = node.float("min", -torch.finfo(torch.float32).max), node.float("max", torch.finfo(torch.float32).max)
    return _clip(g, node.require(0), low, high)


@converts("onnx", "Clip", since=11)
def clip(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, low, high = node.take(3)
    if (low is None or is_constant(low)) and (high is None or is_constant(high)):
        bounds = [None if b is None else g.number(b, "bound") for b in (low, high)]
        if dtype(x) in (torch.uint16, torch.uint32, torch.uint64):
            return ordering(g, lambda *v: _limit(g, *v), *_bounds_as_tensors(x, bounds))
        return _clip(g, x, *bounds)
    return _limit(g, x, low, high)


def _bounds_as_tensors(x: Value, bounds: list[Any]) -> list[Value]:
    """x and its bounds, as tensors of x's type."""
    limits = torch.iinfo(dtype(x))
    full = [limit if b is None else b for b, limit in zip(bounds, (limits.min, limits.max), strict=True)]
    return [x, *(torch.tensor(b, dtype=dtype(x)) for b in full)]


def _limit(g: OnnxBuilder, x: Value, low: Value | None, high: Value | None) -> Value:
    """max, then min: where the bounds are the wrong way round, the upper one holds."""
    if low is not None:
        x = g.call(aten.maximum.default, x, reshape(g, low, []))
    return x if high is None else g.call(aten.minimum.default, x, reshape(g, high, []))


def _clip(g: OnnxBuilder, x: Value, low: float | None, high: float | None) -> Value:
    """Infinite bounds are none; what stays of relu and relu6 is called so."""
    kind = dtype(x)
    if kind.is_floating_point:
        largest = torch.finfo(torch.float32).max if kind == torch.float32 else math.inf
        low = None if low is not None and low <= -largest else low
        high = None if high is not None and high >= largest else high
    else:
        low, high = (None if b is None else int(b) for b in (low, high))
    if low is None and high is None:
        return x
    if low == 0 and kind.is_floating_point:
        if high is None:
            return g.call(aten.relu.default, x)
        return g.call(aten.hardtanh.default, x, float(low), float(high)) if high >= low else _min(g, x, high)
    if low is not None and high is not None and low > high:
        return _min(g, x, high)
    return g.call(aten.clamp.default, x, low, high)


def _min(g: OnnxBuilder, x: Value, high: float) -> Value:
    return g.call(aten.full_like.default, x, high)


# ---- softmax ----


@converts("onnx", "Softmax", "LogSoftmax", "Hardmax", until=12)
def softmax_of_rest(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Over all dimensions from axis on, taken as one."""
    return softmax_from(g, node.op, node.require(0), node.int("axis", 1))


def softmax_from(g: OnnxBuilder, op: str, x: Value, axis: int) -> Value:
    sizes = shape(x)
    axis = len(sizes) if axis == len(sizes) else axis_of(g, axis, len(sizes))
    if axis == len(sizes) - 1:
        return softmax_along(g, op, x, axis)
    flat = reshape(g, x, [math.prod(sizes[:axis]), math.prod(sizes[axis:])])
    return reshape(g, softmax_along(g, op, flat, 1), sizes)


@converts("onnx", "Softmax", "LogSoftmax", "Hardmax", since=13)
def softmax(g: OnnxBuilder, node: OnnxNode) -> Value:
    return softmax_along(g, node.op, node.require(0), node.int("axis", -1))


def softmax_along(g: OnnxBuilder, op: str, x: Value, axis: int) -> Value:
    axis = axis_of(g, axis, len(shape(x)))
    if op == "Softmax":
        return g.call(aten.softmax.int, x, axis)
    if op == "LogSoftmax":
        return g.call(aten.log_softmax.int, x, axis)
    first = g.call(aten.argmax.default, x, axis, True)
    ones = g.call(aten.ones_like.default, first, dtype=dtype(x))
    return g.call(aten.scatter.src, g.call(aten.zeros_like.default, x), axis, first, ones)


# ---- dropout ----


@converts("onnx", "Dropout", since=7)
def dropout(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Nothing but its input at inference; the mask that it may give besides is all true."""
    x, ratio, training = node.take(3)
    drops = ratio is None or g.number(ratio, "ratio") != 0
    if drops and training is not None and g.number(training, "training_mode"):
        raise g.unsupported("it drops values at random, as in training: export the model in eval mode")
    return (x, torch.ones(shape(x), dtype=torch.bool)) if node.wants(1) else x
