"""Operators of two tensors, element by element, with broadcasting."""

from __future__ import annotations

from typing import Any

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .activation import fused
from .context import Op, aten
from .fixed import centred, give_levels, rescale
from .unary import is_int8


def operands(op: Op, a: int = 0, b: int = 1, real: bool = True) -> tuple[Value, Value, bool]:
    """Two operands in one layout, which is channels first (True) if one of them is held so."""
    rank = max(op.rank(a), op.rank(b))
    first = rank == 4 and op.any_first([a, b])
    return op.operand(a, first, rank, real), op.operand(b, first, rank, real), first


@converts("tflite", "ADD", "SUB", "MUL")
def arithmetic(op: Op) -> None:
    target, kind = {
        "ADD": (aten.add.Tensor, "AddOptions"),
        "SUB": (aten.sub.Tensor, "SubOptions"),
        "MUL": (aten.mul.Tensor, "MulOptions"),
    }[op.code]
    a, b, first = operands(op)
    if is_int8(op):
        a = _whole(op, a, b)
    fused(op, op.b.call(target, a, b), kind, first)


def _whole(op: Op, a: Value, b: Value) -> Value:
    """a, repeated to the result's shape if neither operand has that: the DNA broadcasts one of them only."""
    sizes = [shape(x) for x in (a, b)]
    rank = max(map(len, sizes))
    m, n = ([1] * (rank - len(s)) + list(s) for s in sizes)
    wanted = [max(pair) for pair in zip(m, n, strict=True)]
    if wanted in (m, n) or 0 in (*m, *n) or max(wanted) > 64:
        return a
    a = op.b.call(aten.reshape.default, a, m) if len(sizes[0]) < rank else a
    for dim, (size, count) in enumerate(zip(m, wanted, strict=True)):
        a = a if size == count else op.b.call(aten.cat.default, [a] * count, dim)
    return a


@converts("tflite", "DIV")
def div(op: Op) -> None:
    """Integers are divided towards zero."""
    a, b, first = operands(op)
    rounding = {} if dtype(a).is_floating_point else {"rounding_mode": "trunc"}
    target = aten.div.Tensor_mode if rounding else aten.div.Tensor
    fused(op, op.b.call(target, a, b, **rounding), "DivOptions", first)


PLAIN: dict[str, Any] = {
    "FLOOR_MOD": aten.remainder.Tensor,
    "POW": aten.pow.Tensor_Tensor,
    "ATAN2": aten.atan2.default,
    "BITWISE_XOR": aten.bitwise_xor.Tensor,
    "RIGHT_SHIFT": aten.bitwise_right_shift.Tensor,
    "EQUAL": aten.eq.Tensor,
    "NOT_EQUAL": aten.ne.Tensor,
    "GREATER": aten.gt.Tensor,
    "GREATER_EQUAL": aten.ge.Tensor,
    "LESS": aten.lt.Tensor,
    "LESS_EQUAL": aten.le.Tensor,
}


@converts("tflite", *PLAIN)
def plain(op: Op) -> None:
    a, b, first = operands(op)
    op.give(op.b.call(PLAIN[op.code], a, b), first)


@converts("tflite", "FLOOR_DIV")
def floor_div(op: Op) -> None:
    a, b, first = operands(op)
    op.give(op.b.call(aten.div.Tensor_mode, a, b, rounding_mode="floor"), first)


@converts("tflite", "SQUARED_DIFFERENCE")
def squared_difference(op: Op) -> None:
    """Of int8 tensors in fixed point: both at 2^-7 of twice the larger scale, then the square."""
    if is_int8(op):
        rank = max(op.rank(0), op.rank(1))
        first = rank == 4 and op.any_first()
        x, y, z = (op.c.qparams(t).scale for t in (op.tensor(0), op.tensor(1), op.out()))
        twice = 2 * max(x, y)
        a, b = (
            rescale(op, op.b.call(aten.mul.Tensor, centred(op, i, first, rank), 128), scale / twice)
            for i, scale in enumerate((x, y))
        )
        difference = op.b.call(aten.sub.Tensor, a, b)
        square = op.b.call(aten.mul.Tensor, difference, difference)
        give_levels(op, rescale(op, square, twice * twice / (2**14 * z)), first)
        return
    a, b, first = operands(op)
    difference = op.b.call(aten.sub.Tensor, a, b)
    op.give(op.b.call(aten.mul.Tensor, difference, difference), first)


@converts("tflite", "MAXIMUM", "MINIMUM")
def extremum(op: Op) -> None:
    a, b, first = operands(op)
    target = aten.maximum.default if op.code == "MAXIMUM" else aten.minimum.default
    op.give_moved(op.b.call(target, a, b), first)


@converts("tflite", "ADD_N")
def add_n(op: Op) -> None:
    first = op.any_first()
    total = op.real(0, first)
    for i in range(1, op.count):
        total = op.b.call(aten.add.Tensor, total, op.real(i, first))
    op.give(total, first)


@converts("tflite", "LOGICAL_AND", "LOGICAL_OR")
def logical(op: Op) -> None:
    a, b, first = operands(op)
    target = aten.logical_and.default if op.code == "LOGICAL_AND" else aten.logical_or.default
    op.give(op.b.call(target, a, b), first)


@converts("tflite", "SELECT", "SELECT_V2")
def select(op: Op) -> None:
    """SELECT takes a condition of the values' shape, or one for each of their first dimension."""
    rank = max(op.rank(i) for i in range(3))
    first = rank == 4 and op.any_first([1, 2])
    if op.code == "SELECT" and op.rank(0) == 1 and rank > 1:
        condition = op.b.call(aten.reshape.default, op.raw(0), [-1] + [1] * (rank - 1))
    else:
        condition = op.operand(0, first, rank)
    if dtype(condition) is not torch.bool:
        raise op.b.invalid(f"its condition must be BOOL, got {op.tensor(0).dtype}")
    a, b = op.operand(1, first, rank), op.operand(2, first, rank)
    op.give_moved(op.b.call(aten.where.self, condition, a, b), first, 1)
