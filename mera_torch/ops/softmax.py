"""Softmax, in TFLite's fixed-point arithmetic: its exponentials are a table, made here."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from .common import (
    QParams,
    args_of,
    arguments,
    aten,
    constraint,
    dequantized,
    is_call,
    kwargs_of,
    normalized_dim,
    shape,
)
from .movement import requantization
from .registry import Fold, folds, lowers, quantized_op, real, saturate
from .table import lut

RESULT = QParams(1 / 256, -128)

_ONE = 2**31 - 1
_EXP_MINUS_EIGHTH, _THIRD = 1895147668, 715827883  # exp(-1/8), 1/3 in 2^-31
_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)  # exp(-2^k) in 2^-31, k = -2 to 4


@constraint
def result_of_256_levels(*, y: QParams) -> bool:
    """softmax's result must have a scale of at least 1/256, got {y}"""
    return y.scale >= RESULT.scale


@constraint
def softmax_in_float(*, dtype: object) -> bool:
    """softmax must keep its input's dtype, got dtype={dtype}"""
    return dtype in (None, False, torch.float32)


# ---- exponentials ----


def _high_mul(a: int, b: int) -> int:
    """2ab / 2^32 to the nearest, ties upwards, for |a|, |b| < 2^31."""
    return (a * b + 2**30) >> 31


def _rounding_shift(x: int, bits: int) -> int:
    """x / 2^bits to the nearest, ties away from zero."""
    half = (1 << bits) >> 1
    return (x + half) >> bits if x >= 0 else -((-x + half) >> bits)


def _exp(x: int) -> int:
    """exp(x / 2^26) in 2^-31 for -2^31 < x <= 0: gemmlowp's exp_on_negative_values with 5 integer bits.

    A Taylor series around -1/8 for the part of x in [-1/4, 0), then a factor for each bit of the rest.
    """
    if x == 0:
        return _ONE
    part = x % 2**24 - 2**24
    t = 32 * part + 2**28
    square = _high_mul(t, t)
    cube, fourth = _high_mul(square, t), _high_mul(square, square)
    series = t + _rounding_shift(_high_mul(_rounding_shift(fourth, 2) + cube, _THIRD) + square, 1)
    result = _EXP_MINUS_EIGHTH + _high_mul(_EXP_MINUS_EIGHTH, series)
    for bit, factor in enumerate(_POWERS, 24):
        if (part - x) >> bit & 1:
            result = _high_mul(result, factor)
    return result


def exponentials(scale: float, beta: float = 1.0) -> torch.Tensor:
    """int32 [256]: exp(-beta * scale * d) in 2^-31 for differences d = 0 to 255, 0 where TFLite leaves them out.

    scale and beta above 0 are rounded to float32. TFLite refuses products of at most 2^-26; here they go on.
    """
    factor = float(torch.tensor(beta, dtype=torch.float32)) * float(torch.tensor(scale, dtype=torch.float32))
    fraction, shift = math.frexp(min(factor * 2.0**26, 2.0**31 - 1))
    multiplier = math.floor(fraction * 2.0**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = 2**30, shift + 1
    largest = (31 * 2**26) >> shift if shift >= 0 else 255
    table = [0] * 256
    for d in range(min(largest, 255) + 1):
        x = _high_mul(-d << shift, multiplier) if shift >= 0 else _rounding_shift(_high_mul(-d, multiplier), -shift)
        table[d] = _exp(x)
    return torch.tensor(table, dtype=torch.int32)


# ---- quantized operator and its reference ----


@quantized_op
def softmax(x: torch.Tensor, *, dim: int, x_q: QParams, beta: float) -> torch.Tensor:
    """softmax(beta * x) of int8 x over dim; the result has scale 1/256 and zero point -128."""
    return saturate(torch.softmax(beta * real(x, QParams(*x_q)), dim), RESULT, (-128, 127))


# ---- folding ----


def _scaled(node: Any) -> tuple[Any, float]:
    """The tensor and the factor, above 0, of products with and quotients by numbers."""
    factor = 1.0
    while is_call(node, aten.mul.Scalar, aten.mul.Tensor, aten.div.Scalar, aten.div.Tensor):
        x, number = args_of(node)[:2]
        if not isinstance(number, int | float) or number <= 0 or kwargs_of(node):
            break
        factor = factor * number if "mul" in str(node.target) else factor / number
        node = x
    return node, factor


@folds(aten.softmax.int, aten._softmax.default)
def fold_softmax(fold: Fold) -> fx.Node:
    """A result of another quantization than RESULT comes by a table behind it."""
    a = arguments(fold.core)
    softmax_in_float(dtype=a["dtype"] if "dtype" in a else a["half_to_float"])
    source, beta = _scaled(a["self"])
    x = dequantized(source)
    dim = normalized_dim(int(a["dim"]), max(1, len(shape(x.node))))
    if fold.y == RESULT and fold.clamp == (-128, 127):
        return fold.emit(softmax, x.node, dim=dim, x_q=x.q, beta=beta)
    result_of_256_levels(y=fold.y)
    result = fold.emit(softmax, x.node, dim=dim, x_q=x.q, beta=beta, q=RESULT)
    return fold.emit(lut, result, fold.constant(requantization(RESULT, fold), "table"))


# ---- lowering ----


@lowers(softmax)
def lower_softmax(low: Any, node: fx.Node) -> None:
    k: Any = kwargs_of(node)
    x, form = low.dimension_last(args_of(node)[0], k["dim"])
    table = low.table(exponentials(QParams(*k["x_q"]).scale, k["beta"]), node.name)
    low.emit_like(node, "softmax", [x, table], {}, form)
