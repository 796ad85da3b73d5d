"""Tensors rounded to int8 and back, as float transforms do to compare what quantization would make of them."""

from __future__ import annotations

import math

import torch

from ..calibration.observers import affine

_SMALLEST_SCALE = torch.finfo(torch.float32).eps


def fake_activation(x: torch.Tensor, bounds: tuple[float, float] | None = None) -> torch.Tensor:
    """`x` (float32, any shape) on the affine int8 grid over `bounds`, or else over its own range."""
    low, high = bounds or (float(v) for v in torch.aminmax(x))
    scale, zero = affine(min(low, 0.0), max(high, 0.0))
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)


def fake_weight(weight: torch.Tensor, per_channel: bool = True) -> torch.Tensor:
    """`weight` [Co, ...] on the symmetric int8 grid, one scale an output channel or one for all."""
    if not per_channel:
        scale = max(float(weight.abs().max()) / 127, _SMALLEST_SCALE)
        return torch.fake_quantize_per_tensor_affine(weight, scale, 0, -127, 127)
    scales = (weight.abs().flatten(1).amax(1) / 127).clamp_min(_SMALLEST_SCALE)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -127, 127)


def sqnr_db(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """10 log10 of the power of `wanted` over that of the error of `found`; infinite if they are equal."""
    error = float((found - wanted).double().square().sum())
    power = float(wanted.double().square().sum())
    if error == 0.0:
        return math.inf
    return 10.0 * math.log10(power / error) if power else -math.inf
