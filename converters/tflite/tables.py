"""Functions of one int8 tensor as tables of 256 bytes, by the formulas of TFLite's reference kernels.

Each function takes the quantization of input and output as they are held and gives int8 [256]: entry i is the result
for the input i - 128. Fixed-point ones follow lite/kernels/activations.cc, elementwise.cc and quantize.cc of TFLite;
the others its LUTPopulate: dequantize, the function in float32, quantize with halves away from zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mera_torch.oracle import apply_scale, quantize_multiplier, rescale

from .context import QParams

Int64 = npt.NDArray[np.int64]
Table = npt.NDArray[np.int8]
Fill = Callable[..., Table]

INPUTS = np.arange(-128, 128, dtype=np.int64)
f32 = np.float32


def _levels(values: Int64, y: QParams) -> Table:
    """Saturated to int8 around the output's zero point."""
    return np.clip(values + y.zero_point, -128, 127).astype(np.int8)


def _ratio(x: QParams, y: QParams) -> float:
    """The quotient of the scales, rounded to float32."""
    return float(f32(x.scale) / f32(y.scale))


# ---- fixed point ----


def requantize(x: QParams, y: QParams) -> Table:
    """From one scale to another; the quotient is in double."""
    return _levels(rescale(INPUTS - x.zero_point, float(x.scale) / float(y.scale)), y)


def relu(x: QParams, y: QParams, low: float, high: float | None) -> Table:
    """min(max(x, low), high)."""
    values = rescale(INPUTS - x.zero_point, _ratio(x, y)) + y.zero_point
    least = max(-128, y.zero_point + _round(f32(low) / f32(y.scale)))
    most = 127 if high is None else min(127, y.zero_point + _round(f32(high) / f32(y.scale)))
    return np.minimum(np.maximum(values, least), most).astype(np.int8)


def leaky_relu(x: QParams, y: QParams, alpha: float) -> Table:
    values = INPUTS - x.zero_point
    below = rescale(values, abs(float(f32(x.scale) * f32(alpha) / f32(y.scale))))
    return _levels(np.where(values >= 0, rescale(values, _ratio(x, y)), np.copysign(1, alpha).astype(int) * below), y)


def absolute(x: QParams, y: QParams) -> Table:
    values = np.abs(INPUTS - x.zero_point)
    return _levels(values if x.scale == y.scale else rescale(values, _ratio(x, y)), y)


def negate(x: QParams, y: QParams) -> Table:
    """The integers are negated, whatever the scales are; -128 stays."""
    return (-INPUTS).astype(np.int8)


def hard_swish(x: QParams, y: QParams) -> Table:
    """16-bit fixed point: relu6(x + 3) / 6, times x."""
    fine = f32(1 / 128) * f32(x.scale)
    out_multiplier, out_shift = _multiplier16(float(fine / f32(y.scale)))
    multiplier, shift = _multiplier16(float(fine / (f32(3) / f32(32768))))
    value = (INPUTS - x.zero_point) << 7
    preshift = _high_multiply16(value, out_multiplier)
    slope = value
    if shift > 0:
        slope = _saturate16(slope << (shift - 1))
    slope = _high_multiply16(slope, multiplier)
    if shift > 0:
        slope = _saturate16(slope << 1)
    elif shift < 0:
        slope = _divide_by_power(slope, -shift)
    slope = (slope + 32768) >> 1
    product = np.trunc(slope * preshift / 32768).astype(np.int64)
    return _levels(_divide_by_power(product, -out_shift), y)


def rsqrt(x: QParams, y: QParams) -> Table:
    """1 / sqrt(x). TFLite refuses values below 0 when it meets them; here they are 127, as 0 is."""
    multiplier, shift = quantize_multiplier(1.0 / (float(np.sqrt(f32(x.scale))) * float(f32(y.scale))))
    found = np.full(256, 127, np.int64)
    for i, value in enumerate(INPUTS - x.zero_point):
        if value > 0:
            root, root_shift = _inverse_square_root(int(value))
            data = apply_scale(np.int64(1)[None], root, -root_shift + 20)
            found[i] = np.clip(apply_scale(data, multiplier, shift - 20)[0] + y.zero_point, -128, 127)
    return found.astype(np.int8)


def square_root(x: QParams, y: QParams) -> Table:
    """In float32, cut to an integer. Values below 0, which TFLite refuses, give the zero point."""
    values = np.sqrt(np.maximum(f32(x.scale) * (INPUTS - x.zero_point).astype(f32), f32(0)))
    return _levels((values / f32(y.scale)).astype(np.int64), y)


def _round(value: Any) -> int:
    """Halves away from zero."""
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), value))


def _multiplier16(real: float) -> tuple[int, int]:
    multiplier, shift = (int(part) for part in quantize_multiplier(real))
    return min((multiplier + 32768) >> 16, 32767), shift


def _saturate16(value: Int64) -> Int64:
    return np.clip(value, -32768, 32767)


def _high_multiply16(a: Int64, b: int) -> Int64:
    """Saturating rounding doubling high multiply of 16-bit numbers."""
    product = a * b
    nudged = product + np.where(product >= 0, 1 << 14, 1 - (1 << 14))
    return _saturate16(np.trunc(nudged / 32768).astype(np.int64))


def _divide_by_power(value: Int64, exponent: int) -> Int64:
    """Rounding right shift, halves away from zero."""
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (value < 0)
    return (value >> exponent) + ((value & mask) > threshold)


def _inverse_square_root(value: int) -> tuple[int, int]:
    """(root, shift) with 1 / sqrt(value) = root * 2^-(31 + shift): five Newton steps in 32-bit fixed point with 3
    integer bits."""
    if value <= 1:
        return 2**31 - 1, 0
    pairs = (32 - value.bit_length() - 1) // 2 - 1
    shift, raw = 11 - pairs, (value << 2 * pairs) >> 1
    half = _divide(raw, 1)
    x = 1 << 28
    for _ in range(5):
        cube = _widen(_multiply(_multiply(x, x), x), 6)
        x = _widen(_multiply((1 << 28) + (1 << 27), x) - _multiply(half, cube), 3)
    root = _multiply(x, 1518500250)
    return (root << -shift, 0) if shift < 0 else (root, shift)


def _multiply(a: int, b: int) -> int:
    """Saturating rounding doubling high multiply of 32-bit numbers."""
    product = a * b
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    return nudged // 2**31 if nudged >= 0 else -(-nudged // 2**31)


def _divide(value: int, exponent: int) -> int:
    return int(_divide_by_power(np.array(value, np.int64), exponent))


def _widen(value: int, bits: int) -> int:
    return max(min(value << bits, 2**31 - 1), -(2**31))


# ---- float32 ----


def tabulated(function: Callable[..., Any]) -> Fill:
    """LUTPopulate of a function of float32 numbers."""

    def fill(x: QParams, y: QParams, *args: Any) -> Table:
        inverse = f32(1) / f32(y.scale)
        with np.errstate(over="ignore", invalid="ignore"):
            values = f32(x.scale) * (INPUTS - x.zero_point).astype(f32)
            results = np.array([function(v, *args) for v in values], f32) * inverse
            rounded = np.copysign(np.floor(np.abs(results.astype(np.float64)) + 0.5), results)
            shifted = rounded.astype(f32) + f32(y.zero_point)
        found: Table = np.clip(shifted, -128, 127).astype(np.int8)
        return found

    return fill


def _exp(value: Any) -> Any:
    return f32(math.exp(min(float(value), 709.0)))


def _logistic(value: Any) -> Any:
    return f32(1) / (f32(1) + _exp(-value))


def _tanh(value: Any) -> Any:
    return f32(math.tanh(float(value)))


def _elu(value: Any) -> Any:
    return f32(math.expm1(float(value))) if value < 0 else value


def _gelu(value: Any, approximate: bool) -> Any:
    if approximate:
        inner = f32(math.sqrt(2 / math.pi)) * (value + f32(0.044715) * value * value * value)
        return f32(0.5) * value * (f32(1) + _tanh(inner))
    return f32(0.5) * value * f32(math.erfc(float(value * f32(-math.sqrt(0.5)))))


def log(x: QParams, y: QParams) -> Table:
    """Values that have no logarithm give the least output."""
    least = f32(-128 - y.zero_point) * f32(y.scale)
    return tabulated(lambda value: f32(math.log(float(value))) if value > 0 else least)(x, y)


gelu = tabulated(_gelu)

FUNCTIONS: dict[str, Fill] = {
    "LOGISTIC": tabulated(_logistic),
    "TANH": tabulated(_tanh),
    "ELU": tabulated(_elu),
    "EXP": tabulated(_exp),
    "LOG": log,
    "SQRT": square_root,
    "RSQRT": rsqrt,
    "ABS": absolute,
    "NEG": negate,
    "HARD_SWISH": hard_swish,
}
"""Those without options, by the names of TFLite's operators."""
