"""Convolution that samples its input where the network says."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .values import arange, cast, reshape


@dataclass(frozen=True)
class Kernel:
    """What each element of the kernel samples, down and across. groups: of channels with offsets of their own."""

    size: tuple[int, int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]
    groups: int
    output: tuple[int, int]


@converts("onnx", "DeformConv", since=19)
def deform_conv(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Bilinear samples at the kernel's places plus offsets, times the mask, then a matrix product by the weights."""
    x, weight, offset, bias, mask = node.take(5)
    weight, offset = node.require(1), node.require(2)
    groups = node.int("group", 1)
    kernel = _kernel(g, node, x, weight, offset, mask)
    n, channels = shape(x)[:2]
    outputs, inputs = shape(weight)[:2]
    if groups < 1 or outputs % groups or inputs * groups != channels:
        raise g.invalid(f"{groups} groups do not fit shapes {list(shape(x))} and {list(shape(weight))}")
    columns = _columns(g, x, offset, mask, kernel)
    places, pixels = math.prod(kernel.size), math.prod(kernel.output)
    columns = reshape(g, columns, [n, groups, inputs * places, pixels])
    matrix = reshape(g, weight, [1, groups, outputs // groups, inputs * places])
    y = reshape(g, g.call(aten.matmul.default, matrix, columns), [n, outputs, *kernel.output])
    return y if bias is None else g.call(aten.add.Tensor, y, reshape(g, bias, [1, -1, 1, 1]))


def _kernel(g: OnnxBuilder, node: OnnxNode, x: Value, weight: Value, offset: Value, mask: Value | None) -> Kernel:
    if len(shape(x)) != 4 or len(shape(weight)) != 4 or len(shape(offset)) != 4:
        raise g.unsupported("only images [N, C, H, W] are supported")
    size = (shape(weight)[2], shape(weight)[3])
    strides, dilations = node.ints("strides", [1, 1]), node.ints("dilations", [1, 1])
    pads, groups = node.ints("pads", [0] * 4), node.int("offset_group", 1)
    if node.ints("kernel_shape", list(size)) != list(size) or [len(strides), len(dilations), len(pads)] != [2, 2, 4]:
        raise g.invalid(f"its attributes do not fit a kernel of {size[0]} x {size[1]}")
    if min([*strides, *dilations, groups]) < 1 or min(pads) < 0 or shape(x)[1] % groups:
        raise g.invalid("its strides, dilations and offset_group must be positive, and its pads not negative")
    rows, columns = (
        (shape(x)[2 + i] + pads[i] + pads[2 + i] - dilations[i] * (size[i] - 1) - 1) // strides[i] + 1 for i in (0, 1)
    )
    places = groups * math.prod(size)
    if shape(offset) != (shape(x)[0], 2 * places, rows, columns):
        raise g.invalid(f"its offsets have shape {list(shape(offset))}, not {[shape(x)[0], 2 * places, rows, columns]}")
    if mask is not None and shape(mask) != (shape(x)[0], places, rows, columns):
        raise g.invalid(f"its mask has shape {list(shape(mask))}, not {[shape(x)[0], places, rows, columns]}")
    return Kernel(size, strides, dilations, pads, groups, (rows, columns))


def _columns(g: OnnxBuilder, x: Value, offset: Value, mask: Value | None, kernel: Kernel) -> Value:
    """[N, groups, C / groups, places * pixels]: what each element of the kernel sees at each pixel of the output."""
    n, channels, height, width = shape(x)
    count = math.prod(kernel.size) * math.prod(kernel.output)
    offsets = reshape(g, offset, [n, kernel.groups, *kernel.size, 2, *kernel.output])
    axes = [_neighbours(g, offsets, i, kernel, (height, width)[i], dtype(x)) for i in (0, 1)]
    image = reshape(g, x, [n, kernel.groups, channels // kernel.groups, height * width])
    total: Value | None = None
    for y, y_weight in axes[0]:
        for z, z_weight in axes[1]:
            index = g.call(aten.add.Tensor, g.call(aten.mul.Tensor, y, width), z)
            index = reshape(g, index, [n, kernel.groups, 1, count])
            index = g.call(aten.expand.default, index, [n, kernel.groups, channels // kernel.groups, count])
            weight = reshape(g, g.call(aten.mul.Tensor, y_weight, z_weight), [n, kernel.groups, 1, count])
            part = g.call(aten.mul.Tensor, g.call(aten.gather.default, image, 3, index), weight)
            total = part if total is None else g.call(aten.add.Tensor, total, part)
    if mask is None:
        return total
    return g.call(aten.mul.Tensor, total, reshape(g, mask, [n, kernel.groups, 1, count]))


def _neighbours(
    g: OnnxBuilder, offsets: Value, axis: int, kernel: Kernel, limit: int, kind: torch.dtype
) -> list[tuple[Value, Value]]:
    """Along one axis, the two elements next to each sample and their weights, 0 outside the image; each
    [N, groups, kernel down, kernel across, rows, columns]."""
    base = arange(g, kernel.size[axis], axis=axis, rank=4) * kernel.dilations[axis] - kernel.pads[axis]
    base = base + arange(g, kernel.output[axis], axis=2 + axis, rank=4) * kernel.strides[axis]
    place = g.call(aten.add.Tensor, g.call(aten.select.int, offsets, 4, axis), base.to(kind))
    place = g.call(aten.clamp.default, place, -1, limit)  # further outside is as far outside
    below = g.call(aten.floor.default, place)
    upper = g.call(aten.sub.Tensor, place, below)
    found = []
    for step, weight in ((0, g.call(aten.rsub.Scalar, upper, 1.0)), (1, upper)):
        element = g.call(aten.add.Tensor, cast(g, below, torch.int64), step)
        inside = g.call(
            aten.logical_and.default, g.call(aten.ge.Scalar, element, 0), g.call(aten.lt.Scalar, element, limit)
        )
        held = g.call(aten.clamp.default, element, 0, limit - 1)
        found.append((held, g.call(aten.where.ScalarOther, inside, weight, 0.0)))
    return found
