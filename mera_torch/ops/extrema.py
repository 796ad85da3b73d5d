"""The greatest and the least: along dimensions, and of two tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .common import args_of, aten, constraint, dequantized, kwargs_of, shape
from .movement import concat, requantized
from .registry import Fold, folds, lowers, quantized_op
from .table import INDICES, lut


@constraint
def operands_alike(*, a: list[int], b: list[int]) -> bool:
    """both operands of maximum and minimum must have one shape, got {a} and {b}"""
    return a == b


@quantized_op
def amax(x: torch.Tensor, *, dims: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    """x int8; the greatest over dims, of x's quantization."""
    return x.amax(dims, keepdim)


@folds(aten.maximum.default, aten.minimum.default)
def fold_of_two(fold: Fold) -> fx.Node:
    """Both brought to the result's quantization, side by side along a new dimension. The least is the greatest of the
    complements: -1 - q, int8 as well."""
    pair = [dequantized(node, index) for index, node in enumerate(args_of(fold.core)[:2])]
    sizes = list(shape(fold.quantize))
    operands_alike(a=list(shape(pair[0].node)), b=list(shape(pair[1].node)))
    least = fold.core.target is aten.minimum.default
    rows = []
    for operand in pair:
        x = requantized(fold, operand)
        x = _complement(fold, x) if least else x
        rows.append(fold.emit(aten.reshape.default, x, [1, *sizes], val=fold.int8([1, *sizes])))
    both = fold.emit(concat, rows, 0, val=fold.int8([2, *sizes]))
    y = fold.emit(amax, both, dims=(0,), keepdim=False)
    return _complement(fold, y) if least else y


def _complement(fold: Fold, x: fx.Node) -> fx.Node:
    return fold.emit(lut, x, fold.constant(~INDICES, "table"), val=fold.int8(shape(x)))


@lowers(amax)
def lower_amax(low: Any, node: fx.Node) -> None:
    """Max pooling with one window."""
    k: Any = kwargs_of(node)
    x, kept = low.reduction(args_of(node)[0], k["dims"])
    _, height, width, _ = low.shape_of(x)
    low.emit_reduced(node, "max_pool2d", [x], {"kernel_h": height, "kernel_w": width}, kept, k["keepdim"], k["dims"])
