"""QUANTIZE, DEQUANTIZE, FAKE_QUANT and CAST."""

from __future__ import annotations

import math

import torch

from ..graph import Value, dtype, is_constant
from ..registry import converts
from . import tables
from .context import TORCH_DTYPES, Op, QParams, aten
from .unary import given


@converts("tflite", "QUANTIZE")
def quantize(op: Op) -> None:
    """Of real numbers, or from one scale to another."""
    if not op.c.is_quantized(op.out()):
        raise op.b.invalid(f"its output {op.out()} must be quantized")
    if given(op, tables.requantize):
        return
    first = op.is_first(0)
    if op.c.is_quantized(op.tensor(0)):
        op.give(op.real(0, first), first)
    else:
        op.give_raw(rounded(op, op.real(0, first), op.c.qparams(op.out())), first)


def rounded(op: Op, x: Value, q: QParams) -> Value:
    """round(x / scale) + zero point, saturated; halves round away from zero (aten's quantize rounds them to even, and
    multiplies by the reciprocal). Adding the float below 1/2 and cutting is that rounding for all |x| < 2^23."""
    call = op.b.call
    x = call(aten.div.Tensor, x, q.scale)
    limit = float(2**20)
    x = call(aten.clamp.default, x, -limit, limit)
    half = call(aten.mul.Tensor, call(aten.sign.default, x), 0.49999997019767761)
    x = call(aten.trunc.default, call(aten.add.Tensor, x, half))
    x = call(aten.clamp.default, call(aten.add.Tensor, x, float(q.zero_point)), float(q.low), float(q.high))
    return call(aten._to_copy.default, x, dtype=q.dtype)


@converts("tflite", "DEQUANTIZE")
def dequantize(op: Op) -> None:
    """Of constants (float16 or int8 weights of float models) it leaves float constants."""
    tensor = op.tensor(0)
    first = op.is_first(0)
    if not op.c.is_quantized(tensor):
        x = op.raw(0, first)
        op.give(x if dtype(x) is torch.float32 else op.b.call(aten._to_copy.default, x, dtype=torch.float32), first)
        return
    q = tensor.quantization
    value = op.raw(0, first)
    if not is_constant(value) or q is None:
        op.give(op.real(0, first), first)
        return
    shape = [1] * value.dim()
    shape[q.axis if not q.per_tensor else -1] = -1
    scale, zero = torch.from_numpy(q.scale.copy()), torch.from_numpy(op.c.zero_points(tensor).copy())
    if q.per_tensor:
        op.give((value.to(torch.float32) - zero.float()) * scale)
    else:
        op.give((value.to(torch.float32) - zero.float().reshape(shape)) * scale.reshape(shape))


@converts("tflite", "FAKE_QUANT")
def fake_quant(op: Op) -> None:
    """Quantized training leaves it in float models: round to the nearest of 2^bits levels between min and max."""
    kind = "FakeQuantOptions"
    low, high, bits = (op.option(kind, name) for name in ("Min", "Max", "NumBits"))
    levels = 2 ** int(bits) - 1
    quant_min = 1 if op.option(kind, "NarrowRange") else 0
    if not 2 <= bits <= 16 or not -math.inf < low <= 0 <= high < math.inf or not high - low > 1e-20:
        raise op.b.invalid(f"{bits} bits between {low} and {high} must be 2 to 16 bits around 0")
    scale = (high - low) / (levels - quant_min)
    zero = min(max(round(quant_min - low / scale), quant_min), levels)
    first = op.is_first(0)
    target = aten.fake_quantize_per_tensor_affine.default
    op.give(op.b.call(target, op.real(0, first), scale, int(zero), quant_min, levels), first)


@converts("tflite", "CAST")
def cast(op: Op) -> None:
    """Of integers as the file has them, whatever scale they have."""
    first = op.is_first(0)
    value, tensor, out = op.raw(0, first), op.tensor(0), op.out()
    if out.dtype not in TORCH_DTYPES:
        raise op.b.unsupported(f"{out} has element type {out.dtype}")
    if tensor.dtype == "UINT8" and op.c.is_quantized(tensor):
        value = op.b.call(aten._to_copy.default, value, dtype=torch.int16)
        value = op.b.call(aten.add.Tensor, value, 128)
    if op.c.is_quantized(out):
        wanted = op.c.qparams(out).dtype
        if out.dtype == "UINT8":
            raise op.b.unsupported(f"its output {out} is quantized to uint8")
    else:
        wanted = TORCH_DTYPES[out.dtype]
    op.give_raw(op.b.call(aten._to_copy.default, value, dtype=wanted), first)
