"""Reductions over dimensions: MEAN, SUM and kin, ARG_MAX, cumulative sums, softmax and normalization."""

from __future__ import annotations

import operator
from typing import Any

import torch

from ..graph import Value, dtype, is_constant, shape
from ..registry import converts
from .activation import fused
from .context import AXES_FIRST, TORCH_DTYPES, Op, aten
from .fixed import centred, give_levels, inverse_square_root, multiplied
from .unary import is_int8

KIND = "ReducerOptions"


def _axes(op: Op) -> list[int]:
    found = {op.axis(a, op.rank(0)) for a in op.ints(1, "its axes")} if op.has(1) else set(range(op.rank(0)))
    return sorted(found)


def _reduced(op: Op, target: Any, *rest: Any) -> tuple[Value, bool]:
    """(result, whether it is channels first). target takes (x, dims, keepdim)."""
    axes, keep = _axes(op), bool(op.option(KIND, "KeepDims"))
    first = op.is_first(0)
    x = op.real(0, first)
    if not axes:
        return x, first
    dims = sorted(AXES_FIRST[a] for a in axes) if first else axes
    y = target(x, dims, keep, *rest)
    if not first or keep:
        return y, first
    left = [a for a in (0, 3, 1, 2) if a not in axes]  # channels last axes, in the order in which they stand
    order = [left.index(a) for a in sorted(left)]
    if order != sorted(order):
        y = op.b.call(aten.permute.default, y, order)
    return y, False


@converts("tflite", "MEAN", "SUM")
def mean(op: Op) -> None:
    target = aten.mean.dim if op.code == "MEAN" else aten.sum.dim_IntList

    def reduce(x: Value, dims: list[int], keep: bool) -> Value:
        if dtype(x).is_floating_point:
            return op.b.call(target, x, dims, keep)
        total = op.b.call(aten.sum.dim_IntList, x, dims, keep, dtype=torch.int64)
        if op.code == "MEAN":
            count = 1
            for d in dims:
                count *= shape(x)[d]
            total = op.b.call(aten.div.Tensor_mode, total, max(count, 1), rounding_mode="trunc")
        return op.b.call(aten._to_copy.default, total, dtype=dtype(x))

    op.give(*_reduced(op, reduce))


@converts("tflite", "REDUCE_MAX", "REDUCE_MIN")
def extremes(op: Op) -> None:
    target = aten.amax.default if op.code == "REDUCE_MAX" else aten.amin.default
    op.give_moved(*_reduced(op, lambda x, dims, keep: op.b.call(target, x, dims, keep)))


@converts("tflite", "REDUCE_ANY", "REDUCE_ALL")
def truth(op: Op) -> None:
    target = aten.any.dims if op.code == "REDUCE_ANY" else aten.all.dims
    op.give(*_reduced(op, lambda x, dims, keep: op.b.call(target, x, dims, keep)))


@converts("tflite", "REDUCE_PROD")
def product(op: Op) -> None:
    def reduce(x: Value, dims: list[int], keep: bool) -> Value:
        kind = dtype(x)
        for d in reversed(dims):
            x = op.b.call(aten.prod.dim_int, x, d, keep, dtype=kind)
        return x

    op.give(*_reduced(op, reduce))


@converts("tflite", "ARG_MAX", "ARG_MIN")
def arg_extreme(op: Op) -> None:
    """The first of several; quantized tensors need no dequantize."""
    axes = op.ints(1, "its axis")
    if len(axes) != 1:
        raise op.b.invalid(f"its axis must be one integer, got {axes}")
    axis = op.axis(axes[0], op.rank(0))
    target = aten.argmax.default if op.code == "ARG_MAX" else aten.argmin.default
    wanted = TORCH_DTYPES.get(op.out().dtype)
    if wanted not in (torch.int32, torch.int64):
        raise op.b.invalid(f"its output {op.out()} must be INT32 or INT64")
    found = op.b.call(target, op.raw(0), axis)
    op.give(found if wanted is torch.int64 else op.b.call(aten._to_copy.default, found, dtype=wanted))


@converts("tflite", "CUMSUM")
def cumsum(op: Op) -> None:
    axes = op.ints(1, "its axis")
    if len(axes) != 1:
        raise op.b.invalid(f"its axis must be one integer, got {axes}")
    axis = op.axis(axes[0], op.rank(0))
    exclusive, reverse = (bool(op.option("CumsumOptions", name)) for name in ("Exclusive", "Reverse"))
    x = op.real(0)
    kind = dtype(x)
    x = op.b.call(aten.flip.default, x, [axis]) if reverse else x
    y = op.b.call(aten.cumsum.default, x, axis, dtype=kind)
    y = op.b.call(aten.sub.Tensor, y, x) if exclusive else y
    op.give(op.b.call(aten.flip.default, y, [axis]) if reverse else y)


# ---- over the last dimension ----


def _last(op: Op, first: bool) -> int:
    return 1 if first else -1


@converts("tflite", "SOFTMAX", "LOG_SOFTMAX")
def softmax(op: Op) -> None:
    beta = float(op.option("SoftmaxOptions", "Beta")) if op.code == "SOFTMAX" else 1.0
    first = op.is_first(0)
    x = op.real(0, first)
    if beta != 1.0:
        x = op.b.call(aten.mul.Tensor, x, beta)
    target = aten.softmax.int if op.code == "SOFTMAX" else aten.log_softmax.int
    op.give(op.b.call(target, x, _last(op, first)), first)


@converts("tflite", "L2_NORMALIZATION")
def l2_normalization(op: Op) -> None:
    """x / sqrt(sum of x^2); of int8 tensors in fixed point, the result in 1/128."""
    first = op.is_first(0)
    dim = _last(op, first)
    if is_int8(op):
        if op.c.qparams(op.out())[:2] != (1 / 128, 0):
            raise op.b.invalid(f"its output {op.out()} must have scale 1/128 and zero point 0")
        x = centred(op, 0, first, op.rank(0))
        sums = op.b.call(aten.sum.dim_IntList, op.b.call(aten.mul.Tensor, x, x), [dim], True)
        root, shift = inverse_square_root(op, sums)
        if op.tensor(0).dtype == "UINT8":  # another kernel, which scales before the product
            x, shift = op.b.call(aten.mul.Tensor, x, 128), op.b.call(aten.neg.default, shift)
        else:
            shift = op.b.call(aten.rsub.Scalar, shift, 7)
        give_levels(op, multiplied(op, x, root, shift), first)
        return
    x = op.real(0, first)
    squares = op.b.call(aten.sum.dim_IntList, op.b.call(aten.mul.Tensor, x, x), [dim], True)
    norm = op.b.call(aten.clamp.default, op.b.call(aten.sqrt.default, squares), 1e-6)
    fused(op, op.b.call(aten.div.Tensor, x, norm), "L2NormOptions", first)


@converts("tflite", "LOCAL_RESPONSE_NORMALIZATION")
def local_response_normalization(op: Op) -> None:
    """x / (bias + alpha * sum of the squares of channels c - radius to c + radius - 1)^beta."""
    kind = "LocalResponseNormalizationOptions"
    radius = int(op.option(kind, "Radius"))
    bias, alpha, beta = (float(op.option(kind, name)) for name in ("Bias", "Alpha", "Beta"))
    if op.rank(0) != 4 or not 0 < radius < 2**16:
        raise op.b.invalid(f"its input must be images (rank 4) and its radius {radius} from 1 to 65535")
    call, x = op.b.call, op.real(0)
    n, h, w, c = op.shape(0)
    squares = call(aten.reshape.default, call(aten.mul.Tensor, x, x), [n * h, w, c])
    padded = call(aten.constant_pad_nd.default, squares, [radius, radius - 1], 0.0)
    means = call(aten.avg_pool2d.default, padded, [1, 2 * radius], [1, 1])
    sums = call(aten.mul.Tensor, call(aten.reshape.default, means, [n, h, w, c]), float(2 * radius))
    base = call(aten.add.Tensor, call(aten.mul.Tensor, sums, alpha), bias)
    op.give(call(aten.div.Tensor, x, call(aten.pow.Tensor_Scalar, base, beta)))


@converts("tflite", "TOPK_V2")
def top_k(op: Op) -> None:
    """The k largest of the last dimension; equal ones in the order of their indices."""
    ks = op.ints(1, "its k")
    if len(ks) != 1 or op.rank(0) == 0 or not 0 <= ks[0] <= op.shape(0)[-1]:
        raise op.b.invalid(f"its k {ks} must be one integer, at most the last size of {list(op.shape(0))}")
    x = op.real(0)
    if is_constant(x):
        values, indices = torch.sort(x, stable=True, dim=-1, descending=True)
    else:
        both = op.b.call(aten.sort.stable, x, stable=True, dim=-1, descending=True)
        values, indices = (op.b.call(operator.getitem, both, i) for i in (0, 1))
    op.give_moved(op.b.call(aten.slice.Tensor, values, -1, 0, ks[0]))
    indices = op.b.call(aten._to_copy.default, indices, dtype=TORCH_DTYPES.get(op.out(1).dtype, torch.int32))
    op.give(op.b.call(aten.slice.Tensor, indices, -1, 0, ks[0]), i=1)
