"""Batch, instance, layer, group, RMS, Lp and local response normalization."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..graph import Value, dtype, is_constant, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .pool import take
from .values import axis_of, broadcast, cast, reshape


@converts("onnx", "BatchNormalization", since=7)
def batch_norm(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, scale, bias, mean, variance = node.take(5)
    if node.int("training_mode", 0) or (node.opset < 14 and any(node.wants(i) for i in range(1, 5))):
        raise g.unsupported("it computes statistics of the batch, as in training: export the model in eval mode")
    if not node.int("spatial", 1):
        raise g.unsupported("statistics for each pixel (spatial = 0) are not supported")
    terms = [_required(g, t, what) for t, what in zip(
        (scale, bias, mean, variance), ("scale", "bias", "mean", "variance"), strict=True)]  # fmt: skip
    if len(shape(x)) < 2 or any(shape(t) != (shape(x)[1],) for t in terms):
        raise g.invalid(f"its parameters must be one for each channel of its input {list(shape(x))}")
    kinds = {dtype(x), *(dtype(t) for t in terms)}
    if len(kinds) > 1:  # statistics of more precision than the data: computed in it
        wide = torch.promote_types(torch.float32, max(kinds, key=lambda k: k.itemsize))
        y = _batch_norm(g, cast(g, x, wide), [cast(g, t, wide) for t in terms], node.float("epsilon", 1e-5))
        return cast(g, y, dtype(x))
    return _batch_norm(g, x, terms, node.float("epsilon", 1e-5))


def _batch_norm(g: OnnxBuilder, x: Value, terms: Sequence[Value], epsilon: float) -> Value:
    return g.call(aten.batch_norm.default, x, *terms, False, 0.0, epsilon, False)


def _required(g: OnnxBuilder, value: Value | None, what: str) -> Value:
    if value is None:
        raise g.invalid(f"its {what} is missing")
    return value


@converts("onnx", "InstanceNormalization", since=6)
def instance_norm(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Group normalization with a group for each channel."""
    x, scale, bias = node.take(3)
    return _group_norm(g, x, _channels(g, x), scale, bias, node.float("epsilon", 1e-5))


@converts("onnx", "GroupNormalization", since=18)
def group_norm(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Up to opset 20 scale and bias are one for each group, later one for each channel."""
    x, scale, bias = node.take(3)
    groups, channels = node.int("num_groups"), _channels(g, x)
    if groups < 1 or channels % groups:
        raise g.invalid(f"its {channels} channels cannot be divided into {groups} groups")
    if node.opset < 21:
        scale, bias = (
            g.call(aten.repeat_interleave.self_int, _required(g, t, "scale or bias"), channels // groups, 0)
            for t in (scale, bias)
        )
    return _group_norm(g, x, groups, scale, bias, node.float("epsilon", 1e-5))


def _channels(g: OnnxBuilder, x: Value) -> int:
    if len(shape(x)) < 3:
        raise g.invalid(f"its input must be [N, C, spatial...], got shape {list(shape(x))}")
    return shape(x)[1]


def _group_norm(
    g: OnnxBuilder, x: Value, groups: int, scale: Value | None, bias: Value | None, epsilon: float
) -> Value:
    for term in (scale, bias):
        if term is None or shape(term) != (shape(x)[1],):
            raise g.invalid(f"its scale and bias must be one for each channel of its input {list(shape(x))}")
    return g.call(aten.group_norm.default, x, groups, scale, bias, epsilon, False)


@converts("onnx", "LayerNormalization", since=17)
def layer_norm(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Results: normalized, mean, 1 / standard deviation; the latter two in the type of stash_type."""
    x, scale, bias = node.take(3)
    axis = axis_of(g, node.int("axis", -1), len(shape(x)))
    sizes = list(shape(x)[axis:])
    wide = torch.float32 if node.int("stash_type", 1) == 1 else dtype(x)
    given, x = dtype(x), cast(g, x, wide)
    terms = [None if t is None else _spread(g, cast(g, t, wide), sizes) for t in (scale, bias)]
    epsilon = node.float("epsilon", 1e-5)
    if not node.wants(1) and not node.wants(2):
        return cast(g, g.call(aten.layer_norm.default, x, sizes, *terms, epsilon, False), given)
    results = g.call(aten.native_layer_norm.default, x, sizes, *terms, epsilon)
    y, mean, deviation = (take(g, results, i) for i in range(3))
    return cast(g, y, given), mean, deviation


def _spread(g: OnnxBuilder, term: Value, sizes: list[int]) -> Value:
    """A scale or bias in the full shape of what is normalized."""
    if broadcast(g, shape(term), sizes) != sizes:
        raise g.invalid(f"its scale or bias of shape {list(shape(term))} does not broadcast to {sizes}")
    if list(shape(term)) == sizes:
        return term
    term = g.call(aten.expand.default, term, sizes)
    return term.contiguous() if is_constant(term) else term


@converts("onnx", "RMSNormalization", since=23)
def rms_norm(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, scale = node.take(2)
    axis = axis_of(g, node.int("axis", -1), len(shape(x)))
    axes = list(range(axis, len(shape(x))))
    wide = torch.float32 if node.int("stash_type", 1) == 1 else dtype(x)
    y = cast(g, x, wide)
    mean = g.call(aten.mean.dim, g.call(aten.mul.Tensor, y, y), axes, True)
    deviation = g.call(aten.rsqrt.default, g.call(aten.add.Tensor, mean, node.float("epsilon", 1e-5)))
    y = cast(g, g.call(aten.mul.Tensor, y, deviation), dtype(x))
    return g.call(aten.mul.Tensor, y, _required(g, scale, "scale"))


@converts("onnx", "LRN")
def lrn(g: OnnxBuilder, node: OnnxNode) -> Value:
    """x / (bias + alpha * mean of x^2 over `size` neighbouring channels) ^ beta; channels beyond the ends are zero.

    The sum is a convolution along the channels."""
    x, size = node.require(0), node.int("size")
    channels = _channels(g, x)
    if not 1 <= size <= 2 * channels + 1:
        raise g.invalid(f"its size must be from 1 to {2 * channels + 1}, got {size}")
    squares = g.call(aten.pow.Tensor_Scalar, x, 2)
    planes = reshape(g, squares, [shape(x)[0], 1, channels, math.prod(shape(x)[2:]), 1])
    padded = g.call(aten.constant_pad_nd.default, planes, [0, 0, 0, 0, (size - 1) // 2, size // 2], 0.0)
    weight = torch.full((1, 1, size, 1, 1), node.float("alpha", 1e-4) / size, dtype=dtype(x))
    bias = torch.tensor([node.float("bias", 1.0)], dtype=dtype(x))
    steps, zeros = [1, 1, 1], [0, 0, 0]
    base = g.call(aten.convolution.default, padded, weight, bias, steps, zeros, steps, False, zeros, 1)
    divisor = g.call(aten.pow.Tensor_Scalar, reshape(g, base, shape(x)), node.float("beta", 0.75))
    return g.call(aten.div.Tensor, x, divisor)


@converts("onnx", "LpNormalization")
def lp_norm(g: OnnxBuilder, node: OnnxNode) -> Value:
    """x / |x|_p along an axis, and 0 where the norm is."""
    x, p = node.require(0), node.int("p", 2)
    if p not in (1, 2):
        raise g.invalid(f"its p must be 1 or 2, got {p}")
    axis = axis_of(g, node.int("axis", -1), len(shape(x)))
    norm = g.call(aten.linalg_vector_norm.default, x, p, [axis], True)
    safe = g.call(aten.where.self, g.call(aten.eq.Scalar, norm, 0), torch.ones((), dtype=dtype(x)), norm)
    return g.call(aten.div.Tensor, x, safe)
