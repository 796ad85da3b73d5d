"""Arithmetic on elements: functions of one value, of two, and of several."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..graph import Value, dtype
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .values import cast, ordering, same_dtype, scalar_of, wrapping

# ---- functions of one value ----

UNARY = {
    "Acos": aten.acos.default,
    "Acosh": aten.acosh.default,
    "Asin": aten.asin.default,
    "Asinh": aten.asinh.default,
    "Atan": aten.atan.default,
    "Atanh": aten.atanh.default,
    "Ceil": aten.ceil.default,
    "Cos": aten.cos.default,
    "Cosh": aten.cosh.default,
    "Erf": aten.erf.default,
    "Exp": aten.exp.default,
    "Floor": aten.floor.default,
    "Log": aten.log.default,
    "Neg": aten.neg.default,
    "Reciprocal": aten.reciprocal.default,
    "Round": aten.round.default,  # halves to the even neighbour, as ONNX wants
    "Sin": aten.sin.default,
    "Sinh": aten.sinh.default,
    "Sqrt": aten.sqrt.default,
    "Tan": aten.tan.default,
}


@converts("onnx", *UNARY, since=6)
def unary(g: OnnxBuilder, node: OnnxNode) -> Value:
    return g.call(UNARY[node.op], node.require(0))


@converts("onnx", "Abs", "Sign", since=6)
def abs_sign(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    if node.op == "Abs" and not dtype(x).is_signed:
        return x
    if node.op == "Abs":
        return g.call(aten.abs.default, x)
    return wrapping(g, lambda v: g.call(aten.sign.default, v), x) if dtype(x) != torch.uint64 else _sign_uint64(g, x)


def _sign_uint64(g: OnnxBuilder, x: Value) -> Value:
    return cast(g, g.call(aten.ne.Scalar, cast(g, x, torch.int64), 0), torch.uint64)


@converts("onnx", "Identity", since=1)
def identity(g: OnnxBuilder, node: OnnxNode) -> Value:
    return node.require(0)


# ---- functions of two values ----


@converts("onnx", "Add", "Sub", "Mul", since=7)
def add_sub_mul(g: OnnxBuilder, node: OnnxNode) -> Value:
    """A constant of one element becomes a number: the function of one value that it then is."""
    a, b = node.require(0), node.require(1)
    same_dtype(g, a, b)
    if node.op != "Sub" and isinstance(a, torch.Tensor):
        a, b = b, a
    number = scalar_of(b, a)
    if number is not None and not isinstance(a, torch.Tensor):
        return g.call(_BINARY[node.op], a, number)
    number = scalar_of(a, b) if node.op == "Sub" else None
    if number is not None and not isinstance(b, torch.Tensor):
        return g.call(aten.rsub.Scalar, b, number)
    return wrapping(g, lambda x, y: g.call(_BINARY[node.op], x, y), a, b)


_BINARY = {"Add": aten.add.Tensor, "Sub": aten.sub.Tensor, "Mul": aten.mul.Tensor}


@converts("onnx", "Div", since=7)
def div(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Integers are divided toward zero."""
    a, b = node.require(0), node.require(1)
    kind = same_dtype(g, a, b)
    if kind == torch.uint64:
        return _divided_uint64(g, a, b)[0]
    if not kind.is_floating_point:
        return wrapping(g, lambda x, y: g.call(aten.div.Tensor_mode, x, y, rounding_mode="trunc"), a, b)
    number = scalar_of(b, a)
    if number and not isinstance(a, torch.Tensor):
        return g.call(aten.div.Tensor, a, number)
    return g.call(aten.div.Tensor, a, b)


def _divided_uint64(g: OnnxBuilder, a: Value, b: Value) -> tuple[Value, Value]:
    """Quotient and remainder of uint64 in int64 arithmetic.

    The quotient of a/2 is doubled and corrected by at most one; where b is 2^63 or more it is 0 or 1.
    """
    n, d = cast(g, a, torch.int64), cast(g, b, torch.int64)
    large = g.call(aten.lt.Scalar, d, 0)
    divisor = g.call(aten.where.ScalarOther, g.call(aten.logical_not.default, large), d, 1)
    half = g.call(aten.bitwise_and.Scalar, g.call(aten.bitwise_right_shift.Tensor_Scalar, n, 1), 2**63 - 1)
    doubled = g.call(aten.mul.Tensor, g.call(aten.div.Tensor_mode, half, divisor, rounding_mode="trunc"), 2)
    quotient = g.call(aten.where.ScalarSelf, large, 0, doubled)
    rest = g.call(aten.sub.Tensor, n, g.call(aten.mul.Tensor, quotient, d))
    one_more = cast(g, unsigned_less(g, rest, d, or_equal=False, negate=True), torch.int64)
    quotient = g.call(aten.add.Tensor, quotient, one_more)
    rest = g.call(aten.sub.Tensor, rest, g.call(aten.mul.Tensor, one_more, d))
    return cast(g, quotient, torch.uint64), cast(g, rest, torch.uint64)


def unsigned_less(g: OnnxBuilder, a: Value, b: Value, *, or_equal: bool, negate: bool = False) -> Value:
    """a < b (or <=) of int64 that hold the bits of uint64."""
    low = -(2**63)
    x, y = (g.call(aten.bitwise_xor.Scalar, v, low) for v in (a, b))
    found = g.call(aten.le.Tensor if or_equal else aten.lt.Tensor, x, y)
    return g.call(aten.logical_not.default, found) if negate else found


@converts("onnx", "Mod", since=10)
def mod(g: OnnxBuilder, node: OnnxNode) -> Value:
    """fmod=0: the divisor's sign; fmod=1: the dividend's. Before opset 28, floats must be of the latter kind."""
    a, b = node.require(0), node.require(1)
    kind = same_dtype(g, a, b)
    truncates = node.int("fmod", 0)
    if truncates not in (0, 1):
        raise g.invalid(f"its fmod must be 0 or 1, got {truncates}")
    if kind.is_floating_point and not truncates:
        return _floor_mod(g, a, b)
    if kind == torch.uint64:
        return _divided_uint64(g, a, b)[1]
    return wrapping(g, lambda x, y: g.call(aten.fmod.Tensor if truncates else aten.remainder.Tensor, x, y), a, b)


def _floor_mod(g: OnnxBuilder, a: Value, b: Value) -> Value:
    """The remainder of division toward minus infinity: fmod, plus b where its sign is not b's; a zero has b's sign."""
    rest = g.call(aten.fmod.Tensor, a, b)
    zero = g.call(aten.eq.Scalar, rest, 0.0)
    other = g.call(aten.ne.Tensor, g.call(aten.lt.Scalar, rest, 0.0), g.call(aten.lt.Scalar, b, 0.0))
    moved = g.call(aten.where.self, other, g.call(aten.add.Tensor, rest, b), rest)
    return g.call(aten.where.self, zero, g.call(aten.copysign.Tensor, rest, b), moved)


@converts("onnx", "Pow", since=7)
def pow(g: OnnxBuilder, node: OnnxNode) -> Value:
    """The result has the base's type, whatever the exponent's."""
    x, y = node.require(0), node.require(1)
    kind = dtype(x)
    number = scalar_of(y, x)
    if number is not None and kind.is_floating_point:
        return g.call(aten.pow.Tensor_Scalar, x, number)
    if kind.is_floating_point:
        return g.call(aten.pow.Tensor_Tensor, x, cast(g, y, kind))
    if not dtype(y).is_floating_point:
        return g.call(aten.pow.Tensor_Tensor, x, cast(g, y, torch.int64 if kind == torch.int64 else kind))
    power = g.call(aten.pow.Tensor_Tensor, cast(g, x, torch.float64), cast(g, y, torch.float64))
    return cast(g, power, kind)


# ---- functions of several values ----


def _folded(g: OnnxBuilder, node: OnnxNode, function: Callable[[Value, Value], Value]) -> Value:
    values = [node.require(i) for i in range(len(node.inputs))]
    if not values:
        raise g.invalid("it has no inputs")
    same_dtype(g, *values)
    total = values[0]
    for value in values[1:]:
        total = function(total, value)
    return total


@converts("onnx", "Sum", "Mean", since=8)
def sum_mean(g: OnnxBuilder, node: OnnxNode) -> Value:
    total = _folded(g, node, lambda a, b: g.call(aten.add.Tensor, a, b))
    if node.op == "Sum" or len(node.inputs) == 1:
        return total
    return g.call(aten.div.Tensor, total, len(node.inputs))


@converts("onnx", "Sum", "Mean", since=6, until=7)
def sum_mean_of_one_shape(g: OnnxBuilder, node: OnnxNode) -> Value:
    return sum_mean(g, node)


@converts("onnx", "Max", "Min", since=6)
def max_min(g: OnnxBuilder, node: OnnxNode) -> Value:
    """NaN if any is NaN. Against a constant of one element it is a clamp."""
    values = [v for v in node.inputs if v is not None]
    largest = node.op == "Max"
    if len(values) == 2 and isinstance(values[0], torch.Tensor):
        values.reverse()
    if len(values) == 2 and not isinstance(values[0], torch.Tensor):
        number = scalar_of(values[1], values[0])
        if number is not None and number == number and dtype(values[0]) == dtype(values[1]):
            return g.call(aten.clamp.default, values[0], *((number,) if largest else (None, number)))
    target = aten.maximum.default if largest else aten.minimum.default
    return _folded(g, node, lambda a, b: ordering(g, lambda x, y: g.call(target, x, y), a, b))
