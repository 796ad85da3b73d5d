"""Convolution, fully connected, batch norm and per-channel scaling: all run on the DNA's conv2d."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .common import (
    Clamp,
    Operand,
    QParams,
    Unfit,
    args_of,
    arguments,
    aten,
    constraint,
    dequantized,
    is_call,
    kwargs_of,
    origins,
    shape,
    single_use,
)
from .movement import concat
from .phases import Phases, phase_weight
from .registry import Fold, folds, lowers, quantized_op, saturate
from .resize import resize_nearest
from .weights import (
    Bias,
    Weight,
    accumulator_terms,
    constant_bias,
    fits_int8,
    int8_parts,
    quantized_weight,
    transposed_weight,
)

Scaling = tuple[torch.Tensor, torch.Tensor]
"""float64 [C] each: real result of channel c = the operator's * first[c] + second[c]."""


@constraint
def two_dimensional(*, rank: int) -> bool:
    """convolution must be 1-d or 2-d (input of rank 3 or 4), got rank {rank}"""
    return rank in (3, 4)


# ---- quantized operators and their references ----


@quantized_op
def conv2d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, weight_scale: torch.Tensor, *,
    x_q: QParams, y_q: QParams, stride: tuple[int, int], padding: tuple[int, int, int, int], dilation: tuple[int, int],
    groups: int, clamp: Clamp,
) -> torch.Tensor:  # fmt: skip
    """x int8 [N,Ci,H,W], weight int8 [Co,Ci/groups,Kh,Kw], bias int32 [Co] of scale x_q.scale * weight_scale[c];
    padding: top, bottom, left, right."""
    top, bottom, left, right = padding
    padded = F.pad(x.double() - x_q.zero_point, (left, right, top, bottom))
    sums = F.conv2d(padded, weight.double(), bias.double(), list(stride), 0, list(dilation), groups)
    scale = (x_q.scale * weight_scale.double()).reshape(1, -1, 1, 1)
    return saturate(sums * scale, QParams(*y_q), clamp)


@quantized_op
def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, weight_scale: torch.Tensor, *,
    x_q: QParams, y_q: QParams, clamp: Clamp,
) -> torch.Tensor:  # fmt: skip
    """x int8 [..., Ci], weight int8 [Co,Ci], bias int32 [Co]."""
    sums = F.linear(x.double() - x_q.zero_point, weight.double(), bias.double())
    return saturate(sums * (x_q.scale * weight_scale.double()), QParams(*y_q), clamp)


# ---- folding ----


@folds(aten.convolution.default)
def fold_convolution(fold: Fold) -> fx.Node:
    return convolution(fold, fold.core)


def convolution(fold: Fold, node: fx.Node, scaling: Scaling | None = None) -> fx.Node:
    """The convolution `node`, its result scaled and shifted channel by channel if `scaling` says so."""
    a = arguments(node)
    x = dequantized(a["input"])
    sizes = list(shape(x.node))
    two_dimensional(rank=len(sizes))
    transposed, groups = bool(a["transposed"]), int(a["groups"])
    held = transposed_weight(fold, a["weight"], groups) if transposed else quantized_weight(fold, a["weight"])
    weight, scale = held.levels, held.scale
    bias = constant_bias(fold, a["bias"], scale.numel())
    if scaling is not None:
        factor, shift = scaling
        weight = weight * torch.sign(factor).to(weight.dtype).reshape(-1, *[1] * (weight.dim() - 1))
        scale = torch.where(factor == 0, scale.double(), scale.double() * factor.abs()).float()
        bias = bias.scaled(factor, shift)
    stride, padding, dilation, extra = (list(a[n]) for n in ("stride", "padding", "dilation", "output_padding"))
    out = list(shape(fold.quantize))
    flat = len(sizes) == 3
    if flat:  # [N,C,L] is [N,C,1,L]
        stride, padding, dilation, extra = [1, *stride], [0, *padding], [1, *dilation], [0, *extra]
        weight = weight.unsqueeze(2)
        x = Operand(reshaped(fold, x.node, [*sizes[:2], 1, sizes[2]], x.q), x.q)
        out = [*out[:2], 1, out[2]]
    if transposed:
        y = transposed_convolution(fold, x, Weight(weight, scale), bias, stride, padding, dilation, groups, out)
    else:
        pads = (padding[0], padding[0], padding[1], padding[1])
        terms = accumulator_terms(weight, scale, bias, x.q.scale)
        y = emit_conv2d(fold, x, terms, (stride[0], stride[1]), pads, (dilation[0], dilation[1]), groups, out)
    return reshaped(fold, y, list(shape(fold.quantize)), fold.y) if flat else y


def reshaped(fold: Fold, node: fx.Node, sizes: list[int], q: QParams) -> fx.Node:
    return fold.emit(aten.reshape.default, node, sizes, val=fold.int8(sizes), q=q)


def emit_conv2d(
    fold: Fold, x: Operand, terms: tuple[torch.Tensor, torch.Tensor, torch.Tensor], stride: tuple[int, int],
    padding: tuple[int, int, int, int], dilation: tuple[int, int], groups: int, out: list[int],
) -> fx.Node:  # fmt: skip
    """conv2d of accumulator_terms; out: the result's shape.

    A weight that needs 9 bits, as one with a zero point may, is the sum of k int8 ones, k being 2 (or 3, for 255): each
    element of x then stands there k times, side by side, under one column of each of them.
    """
    weight, bias, scale = terms
    if not fits_int8(weight):
        parts = int8_parts(weight)
        k = len(parts)
        sizes = list(shape(x.node))
        sizes[3] *= k
        tables = [torch.arange(sizes[2]).int(), torch.arange(sizes[3]).int() // k]
        repeats = [fold.constant(t, name) for t, name in zip(tables, ("rows", "columns"), strict=True)]
        x = Operand(fold.emit(resize_nearest, x.node, *repeats, val=fold.int8(sizes), q=x.q), x.q)
        wide = weight.new_zeros(*weight.shape[:3], k * dilation[1] * (weight.shape[3] - 1) + k)
        for i, part in enumerate(parts):
            wide[..., i :: k * dilation[1]] = part
        weight, stride, dilation = wide, (stride[0], k * stride[1]), (dilation[0], 1)
        padding = (*padding[:2], k * padding[2], k * padding[3])
    constants = [
        fold.constant(tensor, hint)
        for tensor, hint in ((weight.to(torch.int8), "weight"), (bias, "bias"), (scale, "scale"))
    ]
    return fold.emit(
        conv2d, x.node, *constants, x_q=x.q, y_q=fold.y, stride=stride, padding=padding, dilation=dilation,
        groups=groups, clamp=fold.clamp, val=fold.int8(out),
    )  # fmt: skip


@folds(aten.linear.default)
def fold_linear(fold: Fold) -> fx.Node:
    a = arguments(fold.core)
    x = dequantized(a["input"])
    held = quantized_weight(fold, a["weight"])
    bias = constant_bias(fold, a["bias"], held.scale.numel())
    weight, terms, scale = accumulator_terms(held.levels, held.scale, bias, x.q.scale)
    if not fits_int8(weight):  # as in emit_conv2d
        parts = int8_parts(weight)
        sizes = list(shape(x.node))
        sizes[-1] *= len(parts)
        x = Operand(fold.emit(concat, [x.node] * len(parts), len(sizes) - 1, val=fold.int8(sizes), q=x.q), x.q)
        weight = torch.cat(parts, 1)
    constants = [
        fold.constant(tensor, hint)
        for tensor, hint in ((weight.to(torch.int8), "weight"), (terms, "bias"), (scale, "scale"))
    ]
    return fold.emit(linear, x.node, *constants, x_q=x.q, y_q=fold.y, clamp=fold.clamp)


# ---- transposed convolution ----


def transposed_convolution(
    fold: Fold, x: Operand, weight: Weight, bias: Bias, stride: list[int], padding: list[int], dilation: list[int],
    groups: int, out: list[int],
) -> fx.Node:  # fmt: skip
    """weight: transposed_weight()'s. A convolution that computes all phases of a position as channels, whose results
    are then put side by side: sums of the same products, exact therefore."""
    n, outputs = out[:2]
    h, w = (Phases.of(weight.levels.shape[2 + i], stride[i], padding[i], dilation[i], out[2 + i]) for i in range(2))
    height, width = (p.computed(shape(x.node)[2 + i]) for i, p in enumerate((h, w)))
    phases, each = h.stride * w.stride, outputs // groups
    levels = phase_weight(weight.levels, h, w).reshape(phases, groups, each, *weight.levels.shape[1:2], -1)
    kernel = [len(h.taps[0]), len(w.taps[0])]
    levels = levels.transpose(0, 1).reshape(phases * outputs, -1, *kernel)  # by group, phase, channel

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.reshape(groups, 1, each).expand(-1, phases, -1).flatten()

    grouped = Bias(*(None if v is None else spread(v) for v in (bias.real, bias.levels, bias.scale)))  # type: ignore[arg-type]
    terms = accumulator_terms(levels, spread(weight.scale), grouped, x.q.scale)
    pads = (*h.pads(shape(x.node)[2]), *w.pads(shape(x.node)[3]))
    y = emit_conv2d(
        fold, x, terms, (1, 1), pads, (h.step, w.step), groups, [n, phases * outputs, height, width]
    )  # fmt: skip

    def move(target: Any, node: fx.Node, sizes: list[int], *args: Any) -> fx.Node:
        return fold.emit(target, node, *args, val=fold.int8(sizes))

    if phases > 1:
        split = [n, groups, h.stride, w.stride, each, height, width]
        order = [0, 1, 4, 5, 2, 6, 3]
        y = reshaped(fold, y, split, fold.y)
        y = move(aten.permute.default, y, [split[d] for d in order], order)
        y = reshaped(fold, y, [n, outputs, height * h.stride, width * w.stride], fold.y)
    sizes = list(shape(y))
    for dim, p in ((2, h), (3, w)):
        if p.begin or sizes[dim] != out[dim]:
            sizes[dim] = out[dim]
            y = move(aten.slice.Tensor, y, sizes, dim, p.begin, p.begin + out[dim], 1)
    return y


@folds(aten.batch_norm.default)
def fold_batch_norm(fold: Fold) -> fx.Node:
    """A scale and a shift for each channel: those of the convolution in front if there is one, else a convolution's."""
    a = arguments(fold.core)
    if a["training"]:
        raise Unfit("batch norm must be in inference mode, it is in training mode")
    channels = shape(a["input"])[1]
    terms = [a[name] for name in ("weight", "bias", "running_mean", "running_var")]
    gamma, beta, mean, variance = (
        default if term is None else fold.evaluate(term)
        for term, default in zip(terms, (torch.ones(channels), torch.zeros(channels), None, None), strict=True)
    )
    if gamma is None or beta is None or mean is None or variance is None:
        raise Unfit("batch norm's weight, bias and statistics must be constants")
    scale = gamma.double() / torch.sqrt(variance.double() + a["eps"])
    shift = beta.double() - mean.double() * scale
    if is_call(a["input"], aten.convolution.default):
        single_use(users=len(a["input"].users))
        new = convolution(fold, a["input"], (scale, shift))
        new.meta["origins"] = (*origins(a["input"]), *origins(new))
        return new
    return per_channel(fold, dequantized(a["input"]), scale, shift)


def per_channel(fold: Fold, x: Operand, scale: torch.Tensor, shift: torch.Tensor) -> fx.Node:
    """x * scale[c] + shift[c] as a 1x1 depthwise convolution: exact, as each channel's weight is +-127 in its scale.

    scale, shift: float64 [C]; x: [N,C], [N,C,L] or [N,C,H,W].
    """
    sizes = list(shape(x.node))
    channels = sizes[1]
    weight_scale = torch.where(scale == 0, torch.ones_like(scale), scale.abs() / 127).float()
    weight = (torch.sign(scale) * 127).to(torch.int8).reshape(channels, 1, 1, 1)
    whole = x
    if len(sizes) != 4:
        sizes4 = [*sizes[:2], 1, math.prod(sizes[2:])]
        whole = Operand(reshaped(fold, x.node, sizes4, x.q), x.q)
    terms = accumulator_terms(weight, weight_scale, Bias(shift), x.q.scale)
    y = emit_conv2d(fold, whole, terms, (1, 1), (0, 0, 0, 0), (1, 1), channels, list(shape(whole.node)))
    return y if len(sizes) == 4 else reshaped(fold, y, sizes, fold.y)


# ---- lowering ----


@lowers(conv2d)
def lower_conv2d(low: Any, node: fx.Node) -> None:
    k = kwargs_of(node)
    x = low.image(args_of(node)[0])
    weight = low.constant(args_of(node)[1]).permute(0, 2, 3, 1)
    top, bottom, left, right = k["padding"]
    attrs = {
        "stride_h": k["stride"][0], "stride_w": k["stride"][1],
        "pad_top": top, "pad_bottom": bottom, "pad_left": left, "pad_right": right,
        "dilation_h": k["dilation"][0], "dilation_w": k["dilation"][1],
        "groups": k["groups"], **low.clamp(node),
    }  # fmt: skip
    inputs = [x, *low.weight(node, weight.contiguous())]
    low.emit_image(node, "conv2d", inputs, attrs)


@lowers(linear)
def lower_linear(low: Any, node: fx.Node) -> None:
    """A 1x1 convolution. The input may lie in memory in another order than PyTorch's (after a flatten): then the
    weight's columns are brought into that order, not the data."""
    weight = low.constant(args_of(node)[1])
    x, form, sizes, order = low.rows(args_of(node)[0])
    outputs, depth = weight.shape
    if order != sorted(order):
        columns = torch.arange(depth).reshape(sizes).permute(order).flatten()
        weight = weight[:, columns]
    weight = weight.reshape(outputs, 1, 1, depth).contiguous()
    attrs = {"float64_rescale": 1, **low.clamp(node)}  # as TFLite's FULLY_CONNECTED
    low.emit_rows(node, "conv2d", [x, *low.weight(node, weight)], attrs, form, outputs)
