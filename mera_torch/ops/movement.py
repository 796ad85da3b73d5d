"""Operators that move int8 values and compute nothing: concat, pad, slice, reshape, permute, resize."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .common import DEQUANTIZE, QParams, args_of, aten, constraint, dequantized, normalized_dim, shape, target_of
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
def resize_nearest(x: torch.Tensor, scale: tuple[int, int]) -> torch.Tensor:
    """x int8 [N,C,H,W], each element repeated scale[0] times along H, scale[1] along W."""
    return x.repeat_interleave(scale[0], 2).repeat_interleave(scale[1], 3)


# ---- folding ----


@folds(aten.cat.default)
def fold_cat(fold: Fold) -> fx.Node:
    """Inputs of another quantization than the result's are brought to it by a table (inputs of one quantization have
    moved to int8 before)."""
    nodes: Any = args_of(fold.core)[0]
    few_inputs(count=len(nodes))
    parts = []
    for index, node in enumerate(nodes):
        x = dequantized(node, index)
        part = x.node
        if x.q != fold.y or fold.clamp != (-128, 127):
            table = fold.constant(_table(x.q, fold), "table")
            part = fold.emit(lut, x.node, table, val=fold.int8(shape(x.node)))
        parts.append(part)
    return fold.emit(concat, parts, normalized_dim(int(args_of(fold.core)[1]), len(shape(fold.core))))


def _table(q: QParams, fold: Fold) -> torch.Tensor:
    """dequantize from q, the activations, quantize."""
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
    x, axes, layout = low.by_dimension(args_of(node)[0], shape(node))
    dim, begin, _, step = (int(a) for a in args_of(node)[1:5])
    letter = "nhwc"[axes[dim]]
    low.emit_like(node, "slice", [x], {f"begin_{letter}": begin, f"step_{letter}": step}, layout)


@lowers(resize_nearest)
def lower_resize(low: Any, node: fx.Node) -> None:
    scale: Any = args_of(node)[1]
    attrs = {"scale_h": scale[0], "scale_w": scale[1]}
    low.emit_image(node, "resize_nearest", [low.image(args_of(node)[0])], attrs)


@lowers(aten.reshape.default)
def lower_reshape(low: Any, node: fx.Node) -> None:
    low.reshape(node, args_of(node)[0], shape(node))


@lowers(aten.permute.default)
def lower_permute(low: Any, node: fx.Node) -> None:
    low.permute(node, args_of(node)[0], args_of(node)[1])
