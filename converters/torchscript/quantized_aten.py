"""Operators of ATen on quantized tensors: computed on the dequantized values, and rounded as ATen rounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .aten import functional, write
from .call import Call
from .quantized import quantize
from .values import Quantization, Ref, refs

SAME = frozenset({
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "threshold", "leaky_relu", "gelu", "max_pool1d",
    "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "adaptive_max_pool2d", "mean", "cat", "stack", "flip", "index_select", "masked_fill",
    "gather", "constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad1d",
    "replication_pad2d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "upsample_bilinear2d", "roll", "repeat", "tile", "amax", "amin", "min", "max", "sort", "topk", "index",
    "native_channel_shuffle", "rot90", "maximum", "minimum",
})  # fmt: skip
"""Their result has the quantization of their (first) input."""

FIXED = {"sigmoid": (1 / 256, 0), "hardsigmoid": (1 / 256, 0), "tanh": (2 / 256, 128)}
"""(scale, zero point) of results in quint8; in qint8 the zero point is 128 lower."""

QUESTIONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "equal", "argmax", "argmin"})
"""Their result is not quantized."""


def convert(call: Call) -> Any:
    """The result of an operator some of whose inputs are quantized."""
    name = call.name.removesuffix("_")
    q = next(ref.q for ref in refs(call.args) if ref.q is not None)
    if name not in SAME and name not in FIXED and name not in QUESTIONS:
        raise call.builder.unsupported("it has no conversion for quantized tensors; dequantize before it")
    plain = replace(call, args=[_plain(a) for a in call.args])
    result, target = functional(plain)
    if name in QUESTIONS:
        return result
    if name in FIXED:
        scale, zero = FIXED[name]
        q = Quantization(scale, zero - 128 * (q.dtype is torch.qint8), q.dtype)
    rounded = _quantized(call, result, q)
    if target is None:
        return rounded
    original = call.tensor(0)
    original.q = q
    write(call, original, rounded.value)
    return original


def _plain(value: Any) -> Any:
    if isinstance(value, Ref):
        return Ref(value.value) if value.q is not None else value
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _quantized(call: Call, result: Any, q: Quantization) -> Any:
    if isinstance(result, list | tuple):
        return [_quantized(call, r, q) for r in result]
    return quantize(call.builder, result.value, q) if result.dtype.is_floating_point else result
