"""Operators that move int8 values and compute nothing: concat, pad, slice, take, reshape, permute."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .common import (
    DEQUANTIZE,
    Operand,
    QParams,
    args_of,
    aten,
    constraint,
    dequantized,
    normalized_dim,
    shape,
    target_of,
)
from .registry import Fold, folds, lowers, quantized_op
from .table import INDICES, lut


@constraint
def few_inputs(*, count: int) -> bool:
    """cat must have 1 to 64 inputs, got {count}"""
    return 1 <= count <= 64


@constraint
def pad_not_negative(*, pads: list[int]) -> bool:
    """pad must add elements, got {pads} (a negative pad cuts)"""
    return min(pads) >= 0


@constraint
def pad_not_batch(*, rank: int, dims: int) -> bool:
    """pad must leave the first of up to 4 dimensions alone, got rank {rank} with {dims} dimensions padded"""
    return rank <= 4 and dims < max(rank, 2)


MOVEMENT = frozenset({aten.reshape.default, aten.permute.default, aten.slice.Tensor})
"""int8 operators that run on either side: they move values and compute nothing."""

MOVED = MOVEMENT | {aten.cat.default, aten.constant_pad_nd.default, aten.max_pool2d.default, aten.amax.default,
    aten.amin.default, aten.index_select.default,
}  # fmt: skip
"""Operators of PyTorch whose results are values of their inputs, whatever these stand for."""


# ---- quantized operators and their references ----


@quantized_op
def concat(tensors: list[torch.Tensor], dim: int) -> torch.Tensor:
    """int8 tensors of one quantization."""
    return torch.cat(tensors, dim)


@quantized_op
def pad(x: torch.Tensor, pads: list[int], value: int) -> torch.Tensor:
    """pads: as torch.nn.functional.pad; value: int8."""
    return F.pad(x, pads, "constant", value)


@quantized_op
def take(x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """The elements `index` (constant, int64 [K]) of dimension dim, in that order."""
    return x.index_select(dim, index)


# ---- folding ----


@folds(aten.cat.default)
def fold_cat(fold: Fold) -> fx.Node:
    """Inputs of another quantization than the result's are brought to it by a table (inputs of one quantization have
    moved to int8 before)."""
    nodes: Any = args_of(fold.core)[0]
    few_inputs(count=len(nodes))
    parts = [requantized(fold, dequantized(node, index)) for index, node in enumerate(nodes)]
    return fold.emit(concat, parts, normalized_dim(int(args_of(fold.core)[1]), len(shape(fold.core))))


def requantized(fold: Fold, x: Operand) -> fx.Node:
    """x under the quantization of the fold's result, with its activations and clamp: by a table if they change it."""
    if x.q == fold.y and fold.clamp == (-128, 127):
        return x.node
    return fold.emit(lut, x.node, fold.constant(requantization(x.q, fold), "table"), val=fold.int8(shape(x.node)))


def requantization(q: QParams, fold: Fold) -> torch.Tensor:
    """The int8 table [256] of: dequantize from q, the activations, quantize."""
    values = DEQUANTIZE(INDICES, q.scale, q.zero_point, -128, 127, torch.int8)
    for node in fold.activations:
        values = target_of(node)(values, *args_of(node)[1:])
    table: torch.Tensor = target_of(fold.quantize)(values, *args_of(fold.quantize)[1:])
    return table


# ---- lowering ----


@lowers(concat)
def lower_concat(low: Any, node: fx.Node) -> None:
    nodes: Any = args_of(node)[0]
    dim = int(args_of(node)[1])
    if len(nodes) == 1:
        low.alias(node, nodes[0])
        return
    inputs, layout, axis = low.joined(nodes, dim, shape(node))
    low.emit_like(node, "concat", inputs, {"axis": axis}, layout)


@lowers(pad)
def lower_pad(low: Any, node: fx.Node) -> None:
    x, axes, layout = low.by_dimension(args_of(node)[0], shape(node))
    names = {1: ("pad_top", "pad_bottom"), 2: ("pad_left", "pad_right"), 3: ("pad_channel_before", "pad_channel_after")}
    pads: Any = args_of(node)[1]
    rank = len(shape(node))
    attrs = {"value": int(args_of(node)[2])}
    for i in range(len(pads) // 2):
        if pads[2 * i] or pads[2 * i + 1]:
            axis = axes[rank - 1 - i]
            if axis == 0:
                low.reject(node, "pad has no DNA operator along the batch")
            attrs.update(zip(names[axis], pads[2 * i : 2 * i + 2], strict=True))
    low.emit_like(node, "pad", [x], attrs, layout)


@lowers(aten.slice.Tensor)
def lower_slice(low: Any, node: fx.Node) -> None:
    x, axes, layout = low.by_dimension(args_of(node)[0], shape(node), int(args_of(node)[1]))
    dim, begin, _, step = (int(a) for a in args_of(node)[1:5])
    letter = "nhwc"[axes[dim]]
    low.emit_like(node, "slice", [x], {f"begin_{letter}": begin, f"step_{letter}": step}, layout)


@lowers(take)
def lower_take(low: Any, node: fx.Node) -> None:
    low.take(node, args_of(node)[0], args_of(node)[1], low.constant(args_of(node)[2]))


@lowers(aten.reshape.default)
def lower_reshape(low: Any, node: fx.Node) -> None:
    low.reshape(node, args_of(node)[0], shape(node))


@lowers(aten.permute.default)
def lower_permute(low: Any, node: fx.Node) -> None:
    low.permute(node, args_of(node)[0], args_of(node)[1])
