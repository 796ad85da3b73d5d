"""Fourier transforms and mel filters."""

from __future__ import annotations

import math

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .tensors import torch_dtype
from .values import axis_of, bounded, cast, whole


@converts("onnx", "DFT", since=17, until=19)
def dft_attribute(g: OnnxBuilder, node: OnnxNode) -> Value:
    return _dft(g, node, node.int("axis", 1))


@converts("onnx", "DFT", since=20)
def dft(g: OnnxBuilder, node: OnnxNode) -> Value:
    axis = node.optional(2)
    return _dft(g, node, -2 if axis is None else whole(g, axis, "axis"))


def _dft(g: OnnxBuilder, node: OnnxNode, axis: int) -> Value:
    """The last axis holds a real part, or real and imaginary part; the result's too."""
    x, length = node.take(2)
    rank = len(shape(x))
    axis = axis_of(g, axis, rank)
    if axis == rank - 1 or shape(x)[-1] not in (1, 2):
        raise g.invalid(
            f"shape {list(shape(x))} must end in 1 or 2 (real and imaginary part), and axis {axis} be another"
        )
    inverse, onesided = bool(node.int("inverse", 0)), bool(node.int("onesided", 0))
    default = 2 * (shape(x)[axis] - 1) if inverse and onesided else shape(x)[axis]
    n = default if length is None else whole(g, length, "dft_length")
    if n < 1:
        raise g.invalid(f"its length must be positive, got {n}")
    bounded(g, [*shape(x)[:axis], n, *shape(x)[axis + 1 :]], dtype(x))
    signal, back = _signal(g, x, real=onesided)
    if onesided and inverse:
        y = g.call(aten.fft_irfft.default, signal, n, axis, "backward")
        return cast(g, g.call(aten.unsqueeze.default, y, rank - 1), back)
    if onesided and shape(x)[-1] == 2:
        raise g.invalid("a one-sided transform takes real signals")
    target = aten.fft_rfft.default if onesided else aten.fft_ifft.default if inverse else aten.fft_fft.default
    return cast(g, g.call(aten.view_as_real.default, g.call(target, signal, n, axis, "backward")), back)


def _signal(g: OnnxBuilder, x: Value, real: bool) -> tuple[Value, torch.dtype]:
    """A signal as a complex tensor (real: or a real one) without the last axis, and the type that the result must
    have."""
    back = dtype(x)
    x = x if back in (torch.float32, torch.float64) else cast(g, x, torch.float32)
    if shape(x)[-1] == 2:
        return g.call(aten.view_as_complex.default, x), back
    x = g.call(aten.select.int, x, len(shape(x)) - 1, 0)
    return x if real else g.call(aten.complex.default, x, g.call(aten.zeros_like.default, x)), back


@converts("onnx", "STFT", since=17)
def stft(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, step, window, length = node.take(4)
    hop = whole(g, node.require(1), "frame_step")
    if len(shape(x)) != 3 or shape(x)[-1] not in (1, 2):
        raise g.invalid(f"its signal must be [batch, length, 1 or 2], got shape {list(shape(x))}")
    total = shape(x)[1]
    size = total if window is None else math.prod(shape(window))
    if length is not None:
        size = whole(g, length, "frame_length")
    if hop < 1 or not 0 < size <= total or (window is not None and shape(window) != (size,)):
        raise g.invalid(f"frames of {size} every {hop} do not fit a signal of {total} or its window")
    onesided = bool(node.int("onesided", 1))
    if onesided and shape(x)[-1] == 2:
        raise g.invalid("a one-sided transform takes real signals")
    signal, back = _signal(g, x, real=onesided)
    frames = g.call(aten.unfold.default, signal, 1, size, hop)
    if window is not None:
        kind = torch.float64 if back == torch.float64 else torch.float32
        frames = g.call(aten.mul.Tensor, frames, cast(g, window, kind))
    target = aten.fft_rfft.default if onesided else aten.fft_fft.default
    return cast(g, g.call(aten.view_as_real.default, g.call(target, frames, size, -1, "backward")), back)


@converts("onnx", "MelWeightMatrix", since=17)
def mel_weight_matrix(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Triangles over the frequency bins, equally wide on the mel scale: [dft_length // 2 + 1, num_mel_bins]."""
    names = ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz")
    count, length, rate = (whole(g, node.require(i), names[i]) for i in range(3))
    lowest, highest = (g.number(node.require(i), names[i]) for i in (3, 4))
    kind = torch_dtype(node.int("output_datatype", 1), g.where)
    rows = length // 2 + 1
    if count < 1 or length < 1 or rate < 1 or not 0 <= lowest < highest < math.inf:
        raise g.invalid(f"{count} bins, length {length}, rate {rate} and {lowest} to {highest} Hz make no matrix")
    bounded(g, [rows, count], torch.float64)
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (lowest, highest))
    edges = [700 * (10 ** ((low + i * (high - low) / (count + 2)) / 2595) - 1) for i in range(count + 2)]
    bins = [int((length + 1) * edge // rate) for edge in edges]
    if bins[-1] >= rows:
        raise g.invalid(f"{highest} Hz is more than half of the sample rate {rate}")
    matrix = torch.zeros(rows, count, dtype=torch.float64)
    for i in range(count):
        left, middle, right = bins[i : i + 3]
        rise = torch.arange(left, middle + 1, dtype=torch.float64)
        matrix[left : middle + 1, i] = (rise - left) / (middle - left) if middle > left else 1.0
        if right > middle:
            fall = torch.arange(middle, right, dtype=torch.float64)
            matrix[middle:right, i] = (right - fall) / (right - middle)
    return matrix.to(kind)
