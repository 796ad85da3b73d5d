"""Functions of one tensor, element by element. Of an int8 tensor they are tables, filled by TFLite's own formulas."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..registry import converts
from . import tables
from .activation import BOUNDS, clamped
from .context import Op, aten


def is_int8(op: Op) -> bool:
    """Whether input and output are held as int8 with a scale."""
    return all(op.c.is_quantized(t) and op.c.qparams(t).dtype is torch.int8 for t in (op.tensor(0), op.out()))


def unary(op: Op, target: Any, *args: Any, **kwargs: Any) -> None:
    """In real numbers: for float tensors, and integers that have no table."""
    first = op.is_first(0)
    op.give(op.b.call(target, op.real(0, first), *args, **kwargs), first)


def given(op: Op, fill: Any, *args: Any) -> bool:
    """Gives a table's result if the operator is on int8."""
    if not is_int8(op):
        return False
    x, y = op.c.qparams(op.tensor(0)), op.c.qparams(op.out())
    op.give_table(fill(x, y, *args))
    return True


@converts("tflite", "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1")
def relu(op: Op) -> None:
    low, high = {**BOUNDS, "RELU_0_TO_1": (0.0, 1.0)}[op.code]
    if not given(op, tables.relu, low, high):
        first = op.is_first(0)
        op.give(clamped(op, op.real(0, first), low, high), first)


FLOAT: dict[str, Any] = {
    "LOGISTIC": aten.sigmoid.default,
    "TANH": aten.tanh.default,
    "HARD_SWISH": aten.hardswish.default,
    "ELU": aten.elu.default,
    "EXP": aten.exp.default,
    "LOG": aten.log.default,
    "SQRT": aten.sqrt.default,
    "RSQRT": aten.rsqrt.default,
    "SQUARE": aten.square.default,
    "ABS": aten.abs.default,
    "NEG": aten.neg.default,
    "SIN": aten.sin.default,
    "COS": aten.cos.default,
    "FLOOR": aten.floor.default,
    "CEIL": aten.ceil.default,
    "ROUND": aten.round.default,
    "SIGN": aten.sign.default,
    "LOGICAL_NOT": aten.logical_not.default,
    "ZEROS_LIKE": aten.zeros_like.default,
}


@converts("tflite", *FLOAT)
def function(op: Op) -> None:
    if op.code == "HARD_SWISH" and is_int8(op):
        x, y = (op.c.qparams(tensor).scale for tensor in (op.tensor(0), op.out()))
        if x >= 128 * y:
            raise op.b.invalid(f"its result's scale {y:g} must be above 1/128 of its input's, {x:g}")
    if op.code in tables.FUNCTIONS and given(op, tables.FUNCTIONS[op.code]):
        return
    unary(op, FLOAT[op.code])


@converts("tflite", "GELU")
def gelu(op: Op) -> None:
    approximate = bool(op.option("GeluOptions", "Approximate"))
    if not given(op, tables.gelu, approximate):
        unary(op, aten.gelu.default, approximate="tanh" if approximate else "none")


@converts("tflite", "LEAKY_RELU")
def leaky_relu(op: Op) -> None:
    alpha = float(op.option("LeakyReluOptions", "Alpha"))
    if not abs(alpha) <= 2**20:
        raise op.b.invalid(f"its alpha must be a number up to 2^20, got {alpha}")
    if not given(op, tables.leaky_relu, alpha):
        unary(op, aten.leaky_relu.default, alpha)


@converts("tflite", "PRELU")
def prelu(op: Op) -> None:
    """alpha broadcasts to the input; one for each channel of images, or one at all, is aten's own prelu."""
    rank = max(op.rank(0), op.rank(1))
    alpha = op.shape(1)
    if (
        op.rank(0) == 4
        and math.prod(alpha) == (alpha[-1] if alpha else 1)
        and alpha[-1:] in ((), (1,), op.shape(0)[3:])
    ):
        slope = op.real(1) if len(alpha) == 1 else op.b.call(aten.reshape.default, op.real(1), [math.prod(alpha)])
        op.give(op.b.call(aten.prelu.default, op.real(0, True), slope), True)
        return
    first = rank == 4 and op.any_first([0])
    x = op.operand(0, first, rank)
    op.give(op.b.call(aten._prelu_kernel.default, x, op.operand(1, first, rank)), first)
