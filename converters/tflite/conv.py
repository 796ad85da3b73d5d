"""Convolutions and fully connected layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..graph import Value, dtype, is_constant, shape
from ..registry import converts
from .activation import fused
from .context import Op, aten, quantized
from .fixed import centred, give_levels, rescale
from .reader import Tensor
from .unary import is_int8


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """(before, after) that make ceil(size / stride) windows; the odd element goes behind."""
    reach = (kernel - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def paddings(
    op: Op, kind: str, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """(before, after) of each spatial dimension. Raises InvalidModelError for steps below 1."""
    if min((*kernel, *stride, *dilation), default=1) < 1:
        raise op.b.invalid(
            f"kernel {list(kernel)}, stride {list(stride)} and dilation {list(dilation)} must be at least 1"
        )
    padding = op.option(kind, "Padding")
    if padding not in (0, 1):
        raise op.b.invalid(f"padding {padding} is neither SAME nor VALID")
    if padding == 1:
        return [(0, 0)] * len(kernel)
    return [same_padding(*of) for of in zip(sizes, kernel, stride, dilation, strict=True)]


def padded(op: Op, x: Value, pads: Sequence[tuple[int, int]], value: float = 0.0) -> tuple[Value, list[int]]:
    """(x, padding of the operator): x is padded itself where the two sides differ. x: channels first."""
    if all(before == after for before, after in pads):
        return x, [before for before, _ in pads]
    flat = [side for pair in reversed(pads) for side in pair]
    return op.b.call(aten.constant_pad_nd.default, x, flat, value), [0] * len(pads)


def weight(op: Op, i: int, order: Sequence[int]) -> Value:
    """Input i in real numbers, its dimensions in `order`. One that is quantized like the input stays so in the graph:
    int8, then a dequantize."""
    tensor, c = op.tensor(i), op.c
    if not c.is_constant(tensor):
        return op.b.call(aten.permute.default, c.real(tensor, False), list(order))
    key = tensor.index, tuple(order)
    if key not in c.weights:
        held = c.raw(tensor, False)
        if held.dim() != len(order):
            raise op.b.invalid(f"its weight must have rank {len(order)}, got {list(held.shape)}")
        c.weights[key] = held.permute(list(order)).contiguous()
    held, q = c.weights[key], tensor.quantization
    if not c.is_quantized(tensor) or q is None:
        return held
    emit = op.b.emit if c.is_quantized(op.out()) else op.b.call  # else: only the file is smaller for it
    if q.per_tensor:
        return emit(quantized.dequantize_per_tensor.default, held, *c.qparams(tensor))
    limits = -128, 127, torch.int8
    axis = list(order).index(q.axis)
    return emit(
        quantized.dequantize_per_channel.default, held, torch.from_numpy(q.scale.copy()),
        torch.from_numpy(c.zero_points(tensor).copy()), axis, *limits,
    )  # fmt: skip


def bias(op: Op, i: int, x: Tensor, w: Tensor, channels: int) -> Value | None:
    """The bias. Integers are in units of the scales of x and w, whatever the file says."""
    if not op.has(i):
        return None
    tensor = op.tensor(i)
    value = op.c.raw(tensor, False)
    if math.prod(shape(value)) != channels:
        raise op.b.invalid(f"its bias must have {channels} elements, got shape {list(shape(value))}")
    if len(shape(value)) != 1:
        value = op.b.call(aten.reshape.default, value, [channels])
    if dtype(value).is_floating_point:
        return value
    if dtype(value) not in (torch.int32, torch.int64):
        raise op.b.invalid(f"its bias must be float or of 32 or 64 bits, got {tensor.dtype}")
    if not op.c.is_quantized(x) or w.quantization is None:
        raise op.b.invalid(f"its bias is {tensor.dtype}, but its input {x} is not quantized")
    if w.quantization.scale.size not in (1, channels):
        raise op.b.invalid(f"{w} has {w.quantization.scale.size} scales for {channels} output channels")
    scale = np.float64(op.c.qparams(x).scale) * w.quantization.scale.astype(np.float64)
    if dtype(value) is not torch.int32 or not is_constant(value):
        scales = torch.from_numpy(scale.astype(np.float32))
        return op.b.call(aten.mul.Tensor, op.b.call(aten._to_copy.default, value, dtype=torch.float32), scales)
    limits = torch.iinfo(torch.int32)
    if scale.size == 1:
        single = float(np.float32(scale[0]))
        return op.b.emit(quantized.dequantize_per_tensor.default, value, single, 0, limits.min, limits.max, torch.int32)
    return op.b.emit(
        quantized.dequantize_per_channel.default, value, torch.from_numpy(scale.astype(np.float32)),
        torch.zeros(channels, dtype=torch.int64), 0, limits.min, limits.max, torch.int32,
    )  # fmt: skip


def _steps(op: Op, kind: str, letters: str, prefix: str) -> list[int]:
    return [int(op.option(kind, f"{prefix}{letter}")) for letter in letters]


def _dilations(op: Op, kind: str, letters: str) -> list[int]:
    return [int(op.option(kind, f"Dilation{letter}Factor")) for letter in letters]


def _image(op: Op, i: int, rank: int = 4) -> tuple[int, ...]:
    sizes = op.shape(i)
    if len(sizes) != rank:
        raise op.b.invalid(f"input {i} must have rank {rank}, got {list(sizes)}")
    return sizes


@converts("tflite", "CONV_2D")
def conv_2d(op: Op) -> None:
    sizes, kind = _image(op, 0), "Conv2DOptions"
    outputs, *kernel, depth = _image(op, 1)
    if depth == 0 or sizes[3] % depth:
        raise op.b.invalid(f"its {sizes[3]} input channels must be a multiple of its weight's {depth}")
    stride, dilation = _steps(op, kind, "HW", "Stride"), _dilations(op, kind, "HW")
    _convolution(op, kind, sizes, kernel, outputs, stride, dilation, sizes[3] // depth, (0, 3, 1, 2))


@converts("tflite", "DEPTHWISE_CONV_2D")
def depthwise_conv_2d(op: Op) -> None:
    sizes, kind = _image(op, 0), "DepthwiseConv2DOptions"
    _, *kernel, outputs = _image(op, 1)
    if sizes[3] == 0 or outputs % sizes[3]:
        raise op.b.invalid(f"its {outputs} output channels must be a multiple of its {sizes[3]} input channels")
    stride, dilation = _steps(op, kind, "HW", "Stride"), _dilations(op, kind, "HW")
    _convolution(op, kind, sizes, kernel, outputs, stride, dilation, sizes[3], (3, 0, 1, 2))


def _convolution(
    op: Op, kind: str, sizes: Sequence[int], kernel: list[int], outputs: int, stride: list[int], dilation: list[int],
    groups: int, order: Sequence[int],
) -> None:  # fmt: skip
    pads = paddings(op, kind, sizes[1:3], kernel, stride, dilation)
    x, padding = padded(op, op.real(0, True), pads)
    w, b = weight(op, 1, order), bias(op, 2, op.tensor(0), op.tensor(1), outputs)
    y = op.b.call(aten.conv2d.default, x, w, b, stride, padding, dilation, groups)
    fused(op, y, kind, True)


@converts("tflite", "TRANSPOSE_CONV")
def transpose_conv(op: Op) -> None:
    """Inputs: output shape, weight OHWI, x, bias. The result is cut out of the whole one where the padding says so."""
    kind = "TransposeConvOptions"
    outputs, *kernel, _ = _image(op, 1)
    sizes, wanted = _image(op, 2), op.ints(0, "its output shape")
    if len(wanted) != 4 or wanted[0] != sizes[0] or wanted[3] != outputs:
        raise op.b.invalid(f"its output shape {wanted} does not fit x {list(sizes)} and {outputs} output channels")
    stride = _steps(op, kind, "HW", "Stride")
    pads = paddings(op, kind, wanted[1:3], kernel, stride, [1, 1])
    w, b = weight(op, 1, (3, 0, 1, 2)), bias(op, 3, op.tensor(2), op.tensor(1), outputs)
    x = op.real(2, True)
    whole = [(n - 1) * s + k for n, s, k in zip(sizes[1:3], stride, kernel, strict=True)]
    crops = [(before, n - before - size) for (before, _), n, size in zip(pads, whole, wanted[1:3], strict=True)]
    extra = [before - after for before, after in crops]
    exact = all(0 <= e < s for e, s in zip(extra, stride, strict=True))
    padding = [before for before, _ in crops] if exact else [0, 0]
    y = op.b.call(aten.conv_transpose2d.input, x, w, b, stride, padding, extra if exact else [0, 0])
    if not exact:
        for dim, (before, after) in enumerate(crops, 2):
            if before < 0 or after < 0 or before + after >= whole[dim - 2]:
                raise op.b.unsupported(f"its output shape {wanted} reaches beyond what x {list(sizes)} gives")
            y = op.b.call(aten.slice.Tensor, y, dim, before, whole[dim - 2] - after)
    fused(op, y, kind, True)


@converts("tflite", "CONV_3D")
def conv_3d(op: Op) -> None:
    """x NDHWC, weight DHWIO."""
    sizes, kind = _image(op, 0, 5), "Conv3DOptions"
    *kernel, _, outputs = _image(op, 1, 5)
    stride, dilation = _steps(op, kind, "DHW", "Stride"), _dilations(op, kind, "DHW")
    pads = paddings(op, kind, sizes[1:4], kernel, stride, dilation)
    x = op.b.call(aten.permute.default, op.real(0), [0, 4, 1, 2, 3])
    x, padding = padded(op, x, pads)
    w, b = weight(op, 1, (4, 3, 0, 1, 2)), bias(op, 2, op.tensor(0), op.tensor(1), outputs)
    y = op.b.call(aten.conv3d.default, x, w, b, stride, padding, dilation)
    fused(op, op.b.call(aten.permute.default, y, [0, 2, 3, 4, 1]), kind)


@converts("tflite", "CONV_3D_TRANSPOSE")
def conv_3d_transpose(op: Op) -> None:
    """Inputs: output shape, weight DHWOI, x NDHWC, bias."""
    kind = "Conv3DOptions"
    *kernel, outputs, _ = _image(op, 1, 5)
    sizes, wanted = _image(op, 2, 5), op.ints(0, "its output shape")
    if len(wanted) != 5:
        raise op.b.invalid(f"its output shape must have 5 dimensions, got {wanted}")
    stride, dilation = _steps(op, kind, "DHW", "Stride"), _dilations(op, kind, "DHW")
    pads = paddings(op, kind, wanted[1:4], kernel, stride, dilation)
    x = op.b.call(aten.permute.default, op.real(2), [0, 4, 1, 2, 3])
    w, b = weight(op, 1, (4, 3, 0, 1, 2)), bias(op, 3, op.tensor(2), op.tensor(1), outputs)
    y = op.b.call(aten.conv_transpose3d.input, x, w, b, stride, 0, 0, 1, dilation)
    for dim, ((before, _), size) in enumerate(zip(pads, wanted[1:4], strict=True), 2):
        if before + size > shape(y)[dim]:
            raise op.b.unsupported(f"its output shape {wanted} reaches beyond what x {list(sizes)} gives")
        y = op.b.call(aten.slice.Tensor, y, dim, before, before + size)
    fused(op, op.b.call(aten.permute.default, y, [0, 2, 3, 4, 1]), kind)


@converts("tflite", "FULLY_CONNECTED")
def fully_connected(op: Op) -> None:
    kind = "FullyConnectedOptions"
    if op.option(kind, "WeightsFormat") != 0:
        raise op.b.unsupported("its weights are shuffled for one CPU; convert the model again")
    if op.rank(1) != 2:
        raise op.b.invalid(f"its weight must have rank 2, got {list(op.shape(1))}")
    outputs, depth = op.shape(1)
    sizes = op.shape(0)
    if op.option(kind, "KeepNumDims"):
        if not sizes or sizes[-1] != depth:
            raise op.b.invalid(f"its input {list(sizes)} must end with {depth}, as its weight does")
        x = op.real(0)
    else:
        total = int(np.prod(sizes, dtype=np.int64))
        if depth == 0 or total % depth:
            raise op.b.invalid(f"its input {list(sizes)} cannot be cut into rows of {depth}")
        x = flattened(op, 0, [total // depth, depth])
    y = op.b.call(aten.linear.default, x, weight(op, 1, (0, 1)), bias(op, 2, op.tensor(0), op.tensor(1), outputs))
    fused(op, y, kind)


def flattened(op: Op, i: int, sizes: Sequence[int], real: bool = True) -> Value:
    """Input i with the same elements, in TFLite's order, under another shape."""
    current = op.shape(i)
    read: Any = op.real if real else op.raw
    first = op.is_first(i) and (current[3] == 1 or current[1] * current[2] == 1)  # both layouts have one order
    x = read(i, first)
    return x if shape(x) == tuple(sizes) else op.b.call(aten.reshape.default, x, list(sizes))


@converts("tflite", "BATCH_MATMUL")
def batch_matmul(op: Op) -> None:
    """By a constant matrix it is a fully connected layer; of int8 tensors it is exact in float64."""
    kind = "BatchMatMulOptions"
    if min(op.rank(0), op.rank(1)) < 2:
        raise op.b.invalid(f"its inputs must have rank 2 or more, got {list(op.shape(0))} and {list(op.shape(1))}")
    turn_x, turn_y = bool(op.option(kind, "AdjX")), bool(op.option(kind, "AdjY"))
    if op.c.is_constant(op.tensor(1)) and op.rank(1) == 2 and not turn_x:
        op.give(op.b.call(aten.linear.default, op.real(0), weight(op, 1, (0, 1) if turn_y else (1, 0))))
        return
    x, y = (_matrix(op, i, turn) for i, turn in enumerate((turn_x, turn_y)))
    product = op.b.call(aten.matmul.default, x, y)
    if not is_int8(op):
        op.give(product)
        return
    a, b, z = (op.c.qparams(t).scale for t in (op.tensor(0), op.tensor(1), op.out()))
    sums = op.b.call(aten._to_copy.default, product, dtype=torch.int64)
    give_levels(op, rescale(op, sums, float(np.float32(a) * np.float32(b)) / z))


def _matrix(op: Op, i: int, turned: bool) -> Value:
    x = op.real(i)
    if is_int8(op):
        x = op.b.call(aten._to_copy.default, centred(op, i, False, op.rank(i)), dtype=torch.float64)
    return op.b.call(aten.transpose.int, x, -1, -2) if turned else x
