"""Nearest and bilinear resizing, by tables of source positions: for PyTorch's operators, PyTorch's own function run on
the indices gives them. Exact therefore, whatever sizes, scales and flags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .. import library
from .common import (
    QParams,
    Unfit,
    args_of,
    aten,
    constant,
    constraint,
    dequantized,
    is_call,
    kwargs_of,
    shape,
    target_of,
)
from .movement import requantization
from .registry import Fold, folds, lowers, quantized_op
from .table import lut

LIBRARY: Any = torch.ops.mera_torch
NEAREST = (
    aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec, aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact2d.vec, LIBRARY.resize_nearest.default,
)  # fmt: skip
BILINEAR = (aten.upsample_bilinear2d.default, aten.upsample_bilinear2d.vec, LIBRARY.resize_bilinear.default)


@constraint
def no_finer_result(*, x: QParams, y: QParams) -> bool:
    """bilinear resizing must have a result of its input's scale, or of a larger one, got {y} for {x}"""
    return y.scale >= x.scale


# ---- quantized operators and their references ----


@quantized_op
def resize_nearest(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x int8 [N,C,H,W]; rows int32 [Ho], columns int32 [Wo]: indices of x."""
    return x[:, :, rows.long()][:, :, :, columns.long()]


@quantized_op
def resize_bilinear(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x int8 [N,C,H,W]; rows int32 [Ho], columns int32 [Wo]: positions in 1/1024 row or column; ties away from zero."""
    y = library.resize_bilinear(x.double(), rows, columns)  # exact: a multiple of 2^-20 below 2^7
    rounded: torch.Tensor = (y.sign() * (y.abs() + 0.5).floor()).to(torch.int8)
    return rounded


# ---- positions ----


def positions(gm: fx.GraphModule, node: fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 tables of source positions for the rows and columns of a resizing node's result."""
    if is_call(node, LIBRARY.resize_nearest.default, LIBRARY.resize_bilinear.default):
        rows, columns = (constant(gm, table) for table in args_of(node)[1:3])
        if rows is None or columns is None:
            raise Unfit("the positions of its rows and columns must be constants")
        return rows, columns
    unit = library.POSITION_UNIT if node.target in BILINEAR else 1
    height, width = shape(args_of(node)[0])[-2:]
    shape(node)  # static

    def at(ramp: torch.Tensor) -> torch.Tensor:
        image = ramp.double().expand(1, 1, height, width)
        found: torch.Tensor = target_of(node)(image, *args_of(node)[1:], **kwargs_of(node))
        return torch.round(found[0, 0] * unit).int()

    with torch.no_grad():
        rows, columns = at(torch.arange(height).view(1, 1, -1, 1)), at(torch.arange(width).view(1, 1, 1, -1))
    return rows[:, 0].contiguous(), columns[0].contiguous()


# ---- folding (nearest resizing moves to int8 in passes/sink_dequantize.py) ----


@folds(*BILINEAR)
def fold_bilinear(fold: Fold) -> fx.Node:
    """A result of another quantization comes by a table behind the resizing."""
    x = dequantized(args_of(fold.core)[0])
    rows, columns = positions(fold.gm, fold.core)
    no_finer_result(x=x.q, y=fold.y)
    tables = fold.constant(rows, "rows"), fold.constant(columns, "columns")
    resized = fold.emit(resize_bilinear, x.node, *tables, q=x.q)
    if x.q == fold.y and fold.clamp == (-128, 127):
        return resized
    return fold.emit(lut, resized, fold.constant(requantization(x.q, fold), "table"))


# ---- lowering ----


def _lowering(op: str) -> Callable[[Any, fx.Node], None]:
    def lower(low: Any, node: fx.Node) -> None:
        x, *tables = args_of(node)
        constants = [
            low.table(low.constant(t), node.name, kind) for t, kind in zip(tables, ("rows", "columns"), strict=True)
        ]
        low.emit_image(node, op, [low.image(x), *constants], {})

    return lower


lowers(resize_nearest)(_lowering("resize_nearest"))
lowers(resize_bilinear)(_lowering("resize_bilinear"))
