"""The constants of convolutions and fully connected layers: int8 weights with any zero points, int32 biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .common import DEQUANTIZE, DEQUANTIZE_CHANNEL, Unfit, args_of, constraint, is_call, normalized_dim, shape
from .registry import Fold

BIAS_LIMIT = 2**30
"""Biases stay below this, so that accumulators keep half of int32's range for the products."""


@constraint
def weight_constant(*, got: str) -> bool:
    """the weight must be a constant quantized to int8, got {got}"""
    return not got


@constraint
def weight_range(*, low: int, high: int) -> bool:
    """the weight less its zero point must be -255 to 255 (8 bits), got {low} to {high}"""
    return -255 <= low <= high <= 255


@constraint
def weight_axis(*, axis: int, wanted: int) -> bool:
    """the weight must be quantized per output channel (axis {wanted}) or per tensor, got axis {axis}"""
    return axis == wanted


@constraint
def bias_constant(*, got: str) -> bool:
    """the bias must be a constant, got {got}"""
    return not got


@dataclass(frozen=True)
class Weight:
    """A constant weight: real = scale * levels. levels: int16, the zero point taken off; scale: float32, one for each
    entry along the axis of the output channels."""

    levels: torch.Tensor
    scale: torch.Tensor


def quantized_weight(fold: Fold, node: Any, axis: int = 0) -> Weight:
    """The weight behind its dequantize node, whose output channels lie along `axis`."""
    quantized = is_call(node, DEQUANTIZE, DEQUANTIZE_CHANNEL)
    levels: Any = fold.evaluate(args_of(node)[0]) if quantized else None
    known = levels is not None and not levels.is_floating_point()
    weight_constant(got="" if known else _name(args_of(node)[0] if quantized else node))
    channels = levels.shape[axis]
    zero_point: Any
    if node.target is DEQUANTIZE:
        scale, zero_point = torch.tensor([float(args_of(node)[1])]), torch.tensor([int(args_of(node)[2])])
    else:
        found, zero_point = fold.evaluate(args_of(node)[1]), fold.evaluate(args_of(node)[2])
        if found is None:
            raise Unfit("the weight's scales must be constants")
        scale, zero_point = found.flatten(), torch.zeros(1) if zero_point is None else zero_point.flatten()
        if scale.numel() != 1:
            weight_axis(axis=normalized_dim(int(args_of(node)[3]), levels.dim()), wanted=axis)
    per_channel = [channels if d == axis else 1 for d in range(levels.dim())]
    wide = levels.to(torch.int32) - zero_point.to(torch.int32).expand(channels).reshape(per_channel)
    weight_range(low=int(wide.min()), high=int(wide.max()))
    return Weight(wide.to(torch.int16), scale.float().expand(channels).contiguous())


def _name(node: Any) -> str:
    if not isinstance(node, fx.Node):
        return repr(node)
    if node.op == "get_attr":
        return "a constant in float"
    return str(node.target) if node.op == "call_function" else f"{node.op} {node.target}"


@dataclass(frozen=True)
class Bias:
    """A constant bias [Co]: real numbers in float64 and, if it is quantized, its int32 levels and their scales."""

    real: torch.Tensor
    levels: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    def scaled(self, factor: torch.Tensor, shift: torch.Tensor) -> Bias:
        return Bias(self.real * factor + shift)

    def repeated(self, times: int) -> Bias:
        """As many copies, one after another."""
        levels = None if self.levels is None else self.levels.repeat(times)
        return Bias(self.real.repeat(times), levels, None if self.scale is None else self.scale.repeat(times))


def constant_bias(fold: Fold, node: Any, channels: int) -> Bias:
    """Zeros if there is none."""
    if node is None:
        return Bias(torch.zeros(channels, dtype=torch.float64))
    real: Any = fold.evaluate(node)
    bias_constant(got="" if real is not None else _name(node))
    if is_call(node, DEQUANTIZE, DEQUANTIZE_CHANNEL):
        levels: Any
        levels, scale, zero = (fold.evaluate(a) if isinstance(a, fx.Node) else a for a in args_of(node)[:3])
        scale = torch.as_tensor(scale, dtype=torch.float64).flatten().expand(channels)
        levels = levels.flatten().to(torch.int64) - torch.as_tensor(zero).flatten()
        return Bias(levels * scale, levels, scale)
    return Bias(real.double().flatten())


SAME_SCALE = 1e-3
"""A bias's scale is taken for s_x * s_w[c] if it is no farther from it than this, relatively."""


def accumulator_terms(
    weight: torch.Tensor, scale: torch.Tensor, bias: Bias, x_scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weight, int32 bias, float32 scale), the bias in units of x_scale * scale[c]: an int32 bias of that scale as it
    is.

    Where a bias is so large beside its channel's weights that it would leave int32, the channel's scale grows: its
    weights are then below 2^-22 of the bias, and lose nothing that an int8 result could show.
    """
    unit = x_scale * scale.double()
    if bias.levels is not None and bias.scale is not None and bool(((bias.scale / unit - 1).abs() < SAME_SCALE).all()):
        return weight, bias.levels.to(torch.int32), scale
    growth = torch.clamp(bias.real.abs() / (unit * BIAS_LIMIT), min=1.0)
    if bool((growth > 1).any()):
        scale = (scale.double() * growth).float()
        per_channel = growth.reshape(-1, *[1] * (weight.dim() - 1))
        weight = torch.round(weight.double() / per_channel).to(weight.dtype)
    return weight, torch.round(bias.real / (x_scale * scale.double())).to(torch.int32), scale


def fits_int8(weight: torch.Tensor) -> bool:
    return -128 <= int(weight.min()) and int(weight.max()) <= 127


def int8_parts(weight: torch.Tensor) -> list[torch.Tensor]:
    """Two int8 weights whose sum is a weight of -255 to 254; three if it has a 255."""
    parts: list[torch.Tensor] = []
    while not parts or bool(weight.any()):
        parts.append(weight.clamp(-128, 127))
        weight = weight - parts[-1]
    return [part.to(torch.int8) for part in parts]


def transposed_weight(fold: Fold, node: Any, groups: int) -> Weight:
    """The weight [Ci, Co/groups, Kh, Kw] of a transposed convolution as [Co, Ci/groups, Kh, Kw]; scales [Co].

    Quantized per output channel, that is along axis 1, or along axis 0 where each group has one input channel.
    """
    axis = 1
    if is_call(node, DEQUANTIZE_CHANNEL) and int(args_of(node)[3]) == 0 and shape(node)[0] == groups:
        axis = 0
    held = quantized_weight(fold, node, axis)
    inputs, outputs, *kernel = held.levels.shape
    levels = held.levels.reshape(groups, inputs // groups, outputs, *kernel).transpose(1, 2)
    scale = held.scale.repeat(groups) if axis == 1 else held.scale.repeat_interleave(outputs)
    return Weight(levels.reshape(groups * outputs, inputs // groups, *kernel), scale)
