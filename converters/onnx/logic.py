"""Comparisons, logic, and operations on bits."""

from __future__ import annotations

import torch

from ..graph import Value, dtype
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .values import WIDER, cast, ordered, same_dtype, scalar_of

# ---- comparisons ----

COMPARISONS = {
    "Equal": (aten.eq.Tensor, aten.eq.Scalar),
    "Greater": (aten.gt.Tensor, aten.gt.Scalar),
    "GreaterOrEqual": (aten.ge.Tensor, aten.ge.Scalar),
    "Less": (aten.lt.Tensor, aten.lt.Scalar),
    "LessOrEqual": (aten.le.Tensor, aten.le.Scalar),
}


@converts("onnx", *COMPARISONS, since=7)
def compare(g: OnnxBuilder, node: OnnxNode) -> Value:
    a, b = node.require(0), node.require(1)
    same_dtype(g, a, b)
    tensors, number = COMPARISONS[node.op]
    limit = scalar_of(b, a)
    if limit is not None and not isinstance(a, torch.Tensor):
        return g.call(number, a, limit)
    return g.call(tensors, ordered(g, a), ordered(g, b))


@converts("onnx", "IsNaN", since=9)
def is_nan(g: OnnxBuilder, node: OnnxNode) -> Value:
    return g.call(aten.isnan.default, _float(g, node.require(0)))


@converts("onnx", "IsInf", since=10)
def is_inf(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = _float(g, node.require(0))
    positive, negative = node.int("detect_positive", 1), node.int("detect_negative", 1)
    if positive and negative:
        return g.call(aten.isinf.default, x)
    if not positive and not negative:
        return g.call(aten.zeros_like.default, x, dtype=torch.bool)
    return g.call(aten.eq.Scalar, x, float("inf") if positive else -float("inf"))


def _float(g: OnnxBuilder, x: Value) -> Value:
    """x in a type that torch compares: 8-bit floats as float32, which holds them all."""
    return cast(g, x, torch.float32) if dtype(x).itemsize == 1 else x


# ---- logic ----

LOGIC = {"And": aten.logical_and.default, "Or": aten.logical_or.default, "Xor": aten.logical_xor.default}


@converts("onnx", *LOGIC, since=7)
def logic(g: OnnxBuilder, node: OnnxNode) -> Value:
    return g.call(LOGIC[node.op], node.require(0), node.require(1))


@converts("onnx", "Not")
def not_(g: OnnxBuilder, node: OnnxNode) -> Value:
    return g.call(aten.logical_not.default, node.require(0))


@converts("onnx", "Where", since=9)
def where(g: OnnxBuilder, node: OnnxNode) -> Value:
    condition, a, b = node.require(0), node.require(1), node.require(2)
    same_dtype(g, a, b)
    return g.call(aten.where.self, condition, a, b)


# ---- bits ----

BITWISE = {
    "BitwiseAnd": aten.bitwise_and.Tensor,
    "BitwiseOr": aten.bitwise_or.Tensor,
    "BitwiseXor": aten.bitwise_xor.Tensor,
}


@converts("onnx", *BITWISE, since=18)
def bitwise(g: OnnxBuilder, node: OnnxNode) -> Value:
    a, b = node.require(0), node.require(1)
    same_dtype(g, a, b)
    return g.call(BITWISE[node.op], a, b)


@converts("onnx", "BitwiseNot", since=18)
def bitwise_not(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    return cast(g, g.call(aten.bitwise_not.default, cast(g, x, WIDER.get(dtype(x), dtype(x)))), dtype(x))


@converts("onnx", "BitShift", since=11)
def bit_shift(g: OnnxBuilder, node: OnnxNode) -> Value:
    """In int64. A shift by the type's width or more, or by a negative number, leaves the sign's bits alone."""
    x, y = node.require(0), node.require(1)
    kind = same_dtype(g, x, y)
    direction = node.string("direction")
    if direction not in ("LEFT", "RIGHT"):
        raise g.invalid(f"its direction must be LEFT or RIGHT, got {direction!r}")
    bits = kind.itemsize * 8
    wide, amount = cast(g, x, torch.int64), cast(g, y, torch.int64)
    outside = g.call(aten.logical_or.default, g.call(aten.lt.Scalar, amount, 0), g.call(aten.ge.Scalar, amount, bits))
    within = g.call(aten.where.ScalarSelf, outside, 0, amount)
    if direction == "LEFT":
        shifted = g.call(aten.bitwise_left_shift.Tensor, wide, within)
        rest = g.call(aten.zeros_like.default, shifted)
    else:
        shifted, rest = _shifted_right(g, wide, within, signed=kind.is_signed, full=kind == torch.uint64)
    return cast(g, g.call(aten.where.self, outside, rest, shifted), kind)


def _shifted_right(g: OnnxBuilder, wide: Value, amount: Value, *, signed: bool, full: bool) -> tuple[Value, Value]:
    """int64 shifted right, and what shifting everything out leaves. full: the 64 bits are those of a uint64, so that
    the copies of the sign bit that come in are masked away."""
    shifted = g.call(aten.bitwise_right_shift.Tensor, wide, amount)
    if full:
        ones = g.call(aten.bitwise_left_shift.Tensor, torch.tensor(-2), g.call(aten.rsub.Scalar, amount, 63))
        shifted = g.call(aten.bitwise_and.Tensor, shifted, g.call(aten.bitwise_not.default, ones))
    rest = g.call(aten.bitwise_right_shift.Tensor_Scalar, wide, 63) if signed else None
    return shifted, g.call(aten.zeros_like.default, shifted) if rest is None else rest
