"""Convolution, fully connected, batch norm and per-channel scaling: all run on the DNA's conv2d."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .common import (
    DEQUANTIZE,
    DEQUANTIZE_CHANNEL,
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
from .registry import Fold, folds, lowers, quantized_op, saturate

Scaling = tuple[torch.Tensor, torch.Tensor]
"""float64 [C] each: real result of channel c = the operator's * first[c] + second[c]."""

BIAS_LIMIT = 2**30
"""Biases stay below this, so that accumulators keep half of int32's range for the products."""


@constraint
def weight_constant(*, got: str) -> bool:
    """the weight must be a constant quantized to int8, got {got}"""
    return not got


@constraint
def weight_symmetric(*, zero_point: int) -> bool:
    """the weight's zero points must be 0, got {zero_point}"""
    return zero_point == 0


@constraint
def weight_axis(*, axis: int) -> bool:
    """the weight must be quantized per output channel (axis 0) or per tensor, got axis {axis}"""
    return axis == 0


@constraint
def not_transposed(*, transposed: bool) -> bool:
    """transposed convolution has no DNA operator (transposed = {transposed})"""
    return not transposed


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


# ---- constants ----


def int8_weight(fold: Fold, node: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 weight, float32 scales [Co]) behind a weight's dequantize node."""
    name = "" if is_call(node, DEQUANTIZE, DEQUANTIZE_CHANNEL) else _name(node)
    weight_constant(got=name)
    weight = fold.evaluate(args_of(node)[0])
    if weight is None or weight.dtype is not torch.int8:
        raise Unfit(f"the weight must be a constant quantized to int8, got {_name(args_of(node)[0])}")
    if node.target is DEQUANTIZE:
        scale, zero_point = torch.tensor([float(args_of(node)[1])]), torch.tensor([int(args_of(node)[2])])
    else:
        weight_axis(axis=int(args_of(node)[3]))
        scales, zero = fold.evaluate(args_of(node)[1]), fold.evaluate(args_of(node)[2])
        if scales is None:
            raise Unfit("the weight's scales must be constants")
        scale = scales
        zero_point = torch.zeros(1, dtype=torch.int64) if zero is None else zero
    worst = int(zero_point.flatten()[zero_point.abs().argmax()])
    weight_symmetric(zero_point=worst)
    return weight, scale.float().expand(weight.shape[0]).contiguous()


def _name(node: Any) -> str:
    if not isinstance(node, fx.Node):
        return repr(node)
    return str(node.target) if node.op == "call_function" else f"{node.op} {node.target}"


def int32_bias(fold: Fold, node: Any, channels: int) -> torch.Tensor:
    """The bias in real units, float64 [Co]; zeros if there is none."""
    if node is None:
        return torch.zeros(channels, dtype=torch.float64)
    bias = fold.evaluate(node)
    if bias is None:
        raise Unfit(f"the bias must be a constant, got {_name(node)}")
    return bias.double().flatten()


def accumulator_terms(
    weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, x_scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(int8 weight, int32 bias, float32 scale), the bias in units of x_scale * scale[c].

    Where a bias is so large beside its channel's weights that it would leave int32, the channel's scale grows: its
    weights are then below 2^-22 of the bias, and lose nothing that an int8 result could show.
    """
    unit = x_scale * scale.double()
    growth = torch.clamp(bias.abs() / (unit * BIAS_LIMIT), min=1.0)
    if bool((growth > 1).any()):
        scale = (scale.double() * growth).float()
        per_channel = growth.reshape(-1, *[1] * (weight.dim() - 1))
        weight = torch.round(weight.double() / per_channel).to(torch.int8)
    return weight, torch.round(bias / (x_scale * scale.double())).to(torch.int32), scale


# ---- folding ----


@folds(aten.convolution.default)
def fold_convolution(fold: Fold) -> fx.Node:
    return convolution(fold, fold.core)


def convolution(fold: Fold, node: fx.Node, scaling: Scaling | None = None) -> fx.Node:
    """The convolution `node`, its result scaled and shifted channel by channel if `scaling` says so."""
    a = arguments(node)
    x = dequantized(a["input"])
    not_transposed(transposed=a["transposed"])
    sizes = list(shape(x.node))
    two_dimensional(rank=len(sizes))
    weight, scale = int8_weight(fold, a["weight"])
    bias = int32_bias(fold, a["bias"], weight.shape[0])
    if scaling is not None:
        factor, shift = scaling
        weight = weight * torch.sign(factor).to(torch.int8).reshape(-1, *[1] * (weight.dim() - 1))
        scale = torch.where(factor == 0, scale.double(), scale.double() * factor.abs()).float()
        bias = bias * factor + shift
    stride, padding, dilation = (list(a[name]) for name in ("stride", "padding", "dilation"))
    flat = len(sizes) == 3
    if flat:  # [N,C,L] is [N,C,1,L]
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
        weight = weight.unsqueeze(2)
        x = Operand(reshaped(fold, x.node, [*sizes[:2], 1, sizes[2]], x.q), x.q)
    pads = (padding[0], padding[0], padding[1], padding[1])
    return _emit(fold, x, weight, scale, bias, tuple(stride), pads, tuple(dilation), a["groups"], flat)


def reshaped(fold: Fold, node: fx.Node, sizes: list[int], q: QParams) -> fx.Node:
    return fold.emit(aten.reshape.default, node, sizes, val=fold.int8(sizes), q=q)


def _emit(
    fold: Fold, x: Operand, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, stride: tuple[int, ...],
    padding: tuple[int, int, int, int], dilation: tuple[int, ...], groups: int, flat: bool,
) -> fx.Node:  # fmt: skip
    weight, bias, scale = accumulator_terms(weight, scale, bias, x.q.scale)
    out = list(shape(fold.quantize))
    y = fold.emit(
        conv2d, x.node, fold.constant(weight, "weight"), fold.constant(bias, "bias"), fold.constant(scale, "scale"),
        x_q=x.q, y_q=fold.y, stride=stride, padding=padding, dilation=dilation, groups=groups, clamp=fold.clamp,
        val=fold.int8([*out[:2], 1, out[2]] if flat else out),
    )  # fmt: skip
    return reshaped(fold, y, out, fold.y) if flat else y


@folds(aten.linear.default)
def fold_linear(fold: Fold) -> fx.Node:
    a = arguments(fold.core)
    x = dequantized(a["input"])
    weight, scale = int8_weight(fold, a["weight"])
    bias = int32_bias(fold, a["bias"], weight.shape[0])
    weight, bias, scale = accumulator_terms(weight, scale, bias, x.q.scale)
    constants = (fold.constant(weight, "weight"), fold.constant(bias, "bias"), fold.constant(scale, "scale"))
    return fold.emit(linear, x.node, *constants, x_q=x.q, y_q=fold.y, clamp=fold.clamp)


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
    weight, bias, weight_scale = accumulator_terms(weight, weight_scale, shift, x.q.scale)
    y = fold.emit(
        conv2d, whole.node, fold.constant(weight, "weight"), fold.constant(bias, "bias"),
        fold.constant(weight_scale, "scale"), x_q=x.q, y_q=fold.y, stride=(1, 1), padding=(0, 0, 0, 0),
        dilation=(1, 1), groups=channels, clamp=fold.clamp, val=fold.int8(shape(whole.node)),
    )  # fmt: skip
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
    low.emit_rows(node, "conv2d", [x, *low.weight(node, weight)], low.clamp(node), form, outputs)
