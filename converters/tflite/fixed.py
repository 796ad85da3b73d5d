"""Fixed-point arithmetic of TFLite's reference kernels in aten's integer operators, for what the DNA has no operator
for: it runs on the host, to the same bits."""

from __future__ import annotations

import operator
from typing import Any

import torch

from mera_torch.oracle import quantize_multiplier

from ..graph import Value
from .context import Op, aten


def centred(op: Op, i: int, first: bool, rank: int) -> Value:
    """Input i as int64, its zero point subtracted."""
    value = op.b.call(aten._to_copy.default, op.operand(i, first, rank, real=False), dtype=torch.int64)
    return op.b.call(aten.sub.Tensor, value, op.c.qparams(op.tensor(i)).zero_point)


def rescale(op: Op, x: Value, real: float) -> Value:
    """x * real for int64 x that holds int32 values: MultiplyByQuantizedMultiplier, with its two roundings."""
    multiplier, shift = (int(part) for part in quantize_multiplier(real))
    call, right = op.b.call, 31 + max(shift, 0) - shift
    x = call(aten.mul.Tensor, x, 1 << max(shift, 0))
    half, twice = 1 << (right - 1), (1 << 30 if right > 31 else 0)
    nudge = call(aten.where.self, call(aten.ge.Scalar, x, 0), torch.tensor(half + twice), torch.tensor(half - twice))
    product = call(aten.add.Tensor, call(aten.mul.Tensor, x, multiplier), nudge)
    return call(aten.bitwise_right_shift.Tensor_Scalar, product, right)


def inverse_square_root(op: Op, x: Value) -> tuple[Value, Value]:
    """(multiplier, shift) with 1 / sqrt(x) = multiplier * 2^-(31 + shift), for int64 x of 0 to 2^31 - 1: five Newton
    steps in 32-bit fixed point, GetInvSqrtQuantizedMultiplierExp of TFLite. tables.py has the same for one number."""
    call = op.b.call
    large = call(aten.ge.Scalar, x, 1 << 29)
    value = call(aten.where.self, large, call(aten.bitwise_right_shift.Tensor_Scalar, x, 2), x)
    _, bits = _parts(op, aten.frexp.Tensor, call(aten._to_copy.default, value, dtype=torch.float64))
    spare = call(aten.rsub.Scalar, call(aten._to_copy.default, bits, dtype=torch.int64), 31)
    pairs = call(aten.sub.Tensor, call(aten.bitwise_right_shift.Tensor_Scalar, spare, 1), 1)
    quarters = call(aten._to_copy.default, large, dtype=torch.int64)
    shift = call(aten.add.Tensor, call(aten.rsub.Scalar, pairs, 11), quarters)
    raw = call(aten.bitwise_left_shift.Tensor, value, call(aten.mul.Tensor, pairs, 2))
    half = call(aten.bitwise_right_shift.Tensor_Scalar, call(aten.add.Tensor, _right(op, raw, 1), 1), 1)
    root: Value = torch.tensor(1 << 28)
    for _ in range(5):
        cube = _widened(op, high_multiply(op, high_multiply(op, root, root), root), 6)
        above = high_multiply(op, root, (1 << 28) + (1 << 27))
        root = _widened(op, call(aten.sub.Tensor, above, high_multiply(op, half, cube)), 3)
    root = high_multiply(op, root, 1518500250)
    left = call(aten.clamp.default, call(aten.neg.default, shift), 0)
    root = call(aten.bitwise_left_shift.Tensor, root, left)
    small = call(aten.le.Scalar, x, 1)
    root = call(aten.where.self, small, torch.tensor(2**31 - 1), root)
    shift = call(aten.where.self, small, torch.tensor(0), call(aten.clamp.default, shift, 0))
    return root, shift


def multiplied(op: Op, x: Value, multiplier: Value, shift: Value) -> Value:
    """MultiplyByQuantizedMultiplier with tensors: x * multiplier * 2^(shift - 31), rounded twice."""
    call = op.b.call
    x = call(aten.bitwise_left_shift.Tensor, x, call(aten.clamp.default, shift, 0))
    right = call(aten.clamp.default, call(aten.neg.default, shift), 0)
    high = high_multiply(op, x, multiplier)
    mask = call(aten.sub.Tensor, call(aten.bitwise_left_shift.Tensor, torch.tensor(1), right), 1)
    negative = call(aten._to_copy.default, call(aten.lt.Scalar, high, 0), dtype=torch.int64)
    threshold = call(aten.add.Tensor, _right(op, mask, 1), negative)
    up = call(aten.gt.Tensor, call(aten.bitwise_and.Tensor, high, mask), threshold)
    low = call(aten.bitwise_right_shift.Tensor, high, right)
    return call(aten.add.Tensor, low, call(aten._to_copy.default, up, dtype=torch.int64))


def high_multiply(op: Op, a: Value, b: Value) -> Value:
    """Rounding doubling high multiply of 32-bit numbers in int64."""
    return _right(op, op.b.call(aten.add.Tensor, op.b.call(aten.mul.Tensor, a, b), 1 << 30), 31)


def _right(op: Op, x: Value, bits: int) -> Value:
    return op.b.call(aten.bitwise_right_shift.Tensor_Scalar, x, bits)


def _widened(op: Op, x: Value, bits: int) -> Value:
    """Shifted left, saturating to 32 bits."""
    return op.b.call(aten.clamp.default, op.b.call(aten.mul.Tensor, x, 1 << bits), -(2**31), 2**31 - 1)


def _parts(op: Op, target: Any, x: Value) -> list[Value]:
    both = op.b.call(target, x)
    return [op.b.call(operator.getitem, both, i) for i in (0, 1)] if not isinstance(both, tuple) else list(both)


def give_levels(op: Op, value: Value, first: bool = False) -> None:
    """The result, int64 without its zero point, saturated."""
    q = op.c.qparams(op.out())
    value = op.b.call(aten.add.Tensor, value, q.zero_point)
    value = op.b.call(aten.clamp.default, value, q.low, q.high)
    op.give_raw(op.b.call(aten._to_copy.default, value, dtype=q.dtype), first)


def quotient(*factors: float) -> float:
    """The product of all but the last, divided by that, each step rounded to float32."""
    found = torch.tensor(factors[0], dtype=torch.float32)
    for factor in factors[1:-1]:
        found = found * torch.tensor(factor, dtype=torch.float32)
    return float(found / torch.tensor(factors[-1], dtype=torch.float32))
