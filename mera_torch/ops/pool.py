"""Max pooling, average pooling, mean and sum."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .common import (
    Clamp,
    QParams,
    args_of,
    arguments,
    aten,
    constraint,
    dequantized,
    is_call,
    kwargs_of,
    normalized_dim,
    pair,
    shape,
)
from .conv import emit_conv2d
from .registry import Fold, folds, lowers, quantized_op, real, saturate
from .weights import Bias, accumulator_terms


@constraint
def images(*, rank: int) -> bool:
    """pooling must be over images (rank 4), got rank {rank}"""
    return rank == 4


@constraint
def same_scale(*, x: QParams, y: QParams) -> bool:
    """average pooling that leaves its padding out must have one quantization for input and output, got {x} and {y}"""
    return x == y


@constraint
def reduced_in_float(*, dtype: object) -> bool:
    """a mean or sum must keep its input's dtype, got dtype={dtype}"""
    return dtype is None


def window(node: fx.Node) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], bool]:
    """kernel, stride, padding, dilation, ceil_mode of a 2-d pooling node."""
    a = arguments(node)
    kernel = pair(a["kernel_size"])
    stride = pair(a["stride"]) if a["stride"] else kernel
    return kernel, stride, pair(a["padding"]), pair(a.get("dilation", 1)), bool(a["ceil_mode"])


# ---- quantized operators and their references ----


@quantized_op
def max_pool2d(
    x: torch.Tensor, *, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    dilation: tuple[int, int], ceil_mode: bool, clamp: Clamp,
) -> torch.Tensor:  # fmt: skip
    """x int8 [N,C,H,W]; the result has x's quantization."""
    y = F.max_pool2d(x.float(), list(kernel), list(stride), list(padding), list(dilation), ceil_mode)
    return y.clamp(*clamp).to(torch.int8)


@quantized_op
def avg_pool2d(
    x: torch.Tensor, *, x_q: QParams, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    ceil_mode: bool, count_include_pad: bool, clamp: Clamp,
) -> torch.Tensor:  # fmt: skip
    """x int8 [N,C,H,W]; the result has x's quantization x_q."""
    x_real = real(x, QParams(*x_q))
    y = F.avg_pool2d(x_real, list(kernel), list(stride), list(padding), ceil_mode, count_include_pad)
    return saturate(y, QParams(*x_q), clamp)


@quantized_op
def mean(
    x: torch.Tensor, *, dims: tuple[int, ...], keepdim: bool, x_q: QParams, y_q: QParams, clamp: Clamp
) -> torch.Tensor:
    """x int8; the mean over dims."""
    return saturate(real(x, QParams(*x_q)).mean(list(dims), keepdim), QParams(*y_q), clamp)


@quantized_op
def reduce_sum(
    x: torch.Tensor, *, dims: tuple[int, ...], keepdim: bool, x_q: QParams, y_q: QParams, clamp: Clamp
) -> torch.Tensor:
    """x int8; the sum over dims."""
    return saturate(real(x, QParams(*x_q)).sum(list(dims), keepdim), QParams(*y_q), clamp)


# ---- folding (max pooling moves to int8 in passes/sink_dequantize.py) ----


@folds(aten.avg_pool2d.default)
def fold_avg_pool(fold: Fold) -> fx.Node:
    a = arguments(fold.core)
    x = dequantized(a["self"])
    images(rank=len(shape(x.node)))
    kernel, stride, padding, _, ceil_mode = window(fold.core)
    divisor = a["divisor_override"]
    counted = a["count_include_pad"] or padding == (0, 0)
    if divisor is None and x.q == fold.y:
        return fold.emit(
            avg_pool2d, x.node, x_q=x.q, kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode,
            count_include_pad=a["count_include_pad"], clamp=fold.clamp,
        )  # fmt: skip
    if ceil_mode or (divisor is None and not counted):
        same_scale(x=x.q, y=fold.y)
    # a depthwise convolution with all weights 1 and scale 1/n: rounds once
    channels = shape(x.node)[1]
    weight = torch.ones(channels, 1, *kernel, dtype=torch.int8)
    scale = torch.full((channels,), 1.0 / (divisor or kernel[0] * kernel[1]))
    bias = Bias(torch.zeros(channels, dtype=torch.float64))
    terms = accumulator_terms(weight, scale, bias, x.q.scale)
    pads = (padding[0], padding[0], padding[1], padding[1])
    return emit_conv2d(fold, x, terms, stride, pads, (1, 1), channels, list(shape(fold.quantize)))


@folds(aten.mean.dim, aten.sum.dim_IntList)
def fold_reduction(fold: Fold) -> fx.Node:
    a = arguments(fold.core)
    x = dequantized(a["self"])
    reduced_in_float(dtype=a["dtype"])
    rank = len(shape(x.node))
    dims = tuple(sorted({normalized_dim(d, rank) for d in (a["dim"] or range(rank))}))
    target = mean if is_call(fold.core, aten.mean.dim) else reduce_sum
    return fold.emit(target, x.node, dims=dims, keepdim=a["keepdim"], x_q=x.q, y_q=fold.y, clamp=fold.clamp)


# ---- lowering ----


def _window_attrs(node: fx.Node) -> dict[str, int]:
    k: Any = kwargs_of(node)
    names = ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_top", "pad_left", "pad_bottom", "pad_right")
    return dict(zip(names, (*k["kernel"], *k["stride"], *k["padding"], *k["padding"]), strict=True))


@lowers(max_pool2d)
def lower_max_pool(low: Any, node: fx.Node) -> None:
    dilation: Any = kwargs_of(node)["dilation"]
    attrs = {**_window_attrs(node), "dilation_h": dilation[0], "dilation_w": dilation[1], **low.clamp(node)}
    low.emit_image(node, "max_pool2d", [low.image(args_of(node)[0])], attrs)


@lowers(avg_pool2d)
def lower_avg_pool(low: Any, node: fx.Node) -> None:
    attrs = {
        **_window_attrs(node),
        "count_include_pad": int(bool(kwargs_of(node)["count_include_pad"])),
        **low.clamp(node),
    }
    low.emit_image(node, "avg_pool2d", [low.image(args_of(node)[0])], attrs)


@lowers(mean)
@lowers(reduce_sum)
def lower_reduction(low: Any, node: fx.Node) -> None:
    dims: Any = kwargs_of(node)["dims"]
    x, kept = low.reduction(args_of(node)[0], dims)
    attrs = {"sum": int(is_call(node, reduce_sum)), **low.clamp(node)}
    low.emit_reduced(node, "mean", [x], attrs, kept, bool(kwargs_of(node)["keepdim"]), dims)
