"""Sampling at positions that the network computes, regions, and blocks put back into an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .values import arange, bounded, cast, cut, reshape

_MODES = {"linear": 0, "bilinear": 0, "nearest": 1, "cubic": 2, "bicubic": 2}
_PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}


@converts("onnx", "GridSample", since=16)
def grid_sample(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, grid = node.require(0), node.require(1)
    mode, padding = node.string("mode", "linear"), node.string("padding_mode", "zeros")
    if mode not in _MODES or padding not in _PADDINGS:
        raise g.invalid(f"mode {mode!r} or padding_mode {padding!r} is none of {[*_MODES]} and {[*_PADDINGS]}")
    rank = len(shape(x))
    if rank not in (4, 5) or (rank == 5 and _MODES[mode] == 2):
        raise g.unsupported(f"mode {mode} on an input of rank {rank}; images, and volumes without cubic, are supported")
    kind = torch.float64 if torch.float64 in (dtype(x), dtype(grid)) else torch.float32
    target = aten.grid_sampler_2d.default if rank == 4 else aten.grid_sampler_3d.default
    corners = bool(node.int("align_corners", 0))
    y = g.call(target, cast(g, x, kind), cast(g, grid, kind), _MODES[mode], _PADDINGS[padding], corners)
    return cast(g, y, dtype(x))


@converts("onnx", "Col2Im", since=18)
def col2im(g: OnnxBuilder, node: OnnxNode) -> Value:
    """[N, C * block, L] -> [N, C, *image]: every element is added at its place in the padded image."""
    x = node.require(0)
    image, block = (g.int_list(node.require(i), what) for i, what in ((1, "image_shape"), (2, "block_shape")))
    rank = len(image)
    strides, dilations = node.ints("strides", [1] * rank), node.ints("dilations", [1] * rank)
    pads = node.ints("pads", [0] * (2 * rank))
    given = [len(v) for v in (block, strides, dilations, pads[::2])]
    if rank < 1 or given != [rank] * 4 or len(pads) % 2 or len(shape(x)) != 3:
        raise g.invalid(f"its shapes and attributes are not all for {rank} axes")
    if min([*image, *block, *strides, *dilations], default=0) < 1 or min(pads) < 0:
        raise g.invalid("its sizes, strides and dilations must be positive, and its pads not negative")
    padded = [n + pads[i] + pads[rank + i] for i, n in enumerate(image)]
    counts = [(p - d * (b - 1) - 1) // s + 1 for p, d, b, s in zip(padded, dilations, block, strides, strict=True)]
    n, columns, length = shape(x)
    if length != math.prod(counts) or min(counts) < 1 or columns % math.prod(block):
        raise g.invalid(f"an input of shape {list(shape(x))} is not what {counts} blocks of {block} make")
    channels = columns // math.prod(block)
    bounded(g, [n, channels, *padded], dtype(x))
    bounded(g, [math.prod(block), length], torch.int64)
    places = torch.zeros([1] * (2 * rank), dtype=torch.int64)
    for i in range(rank):
        along = torch.arange(block[i])[:, None] * dilations[i] + torch.arange(counts[i])[None, :] * strides[i]
        sizes = [1] * (2 * rank)
        sizes[i], sizes[rank + i] = block[i], counts[i]
        places = places * padded[i] + along.reshape(sizes)
    values = reshape(g, x, [n * channels, math.prod(block) * length])
    empty = torch.zeros(n * channels, math.prod(padded), dtype=dtype(x))
    y = reshape(g, g.call(aten.index_add.default, empty, 1, places.flatten(), values), [n, channels, *padded])
    for i in range(rank):
        y = cut(g, y, 2 + i, pads[i], pads[i] + image[i])
    return y


# ---- regions ----


@converts("onnx", "RoiAlign", since=10)
def roi_align(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Each bin of each region is the mean (or maximum) of bilinear samples. Where their number depends on the size of
    the region (sampling_ratio 0), the regions must be constant."""
    x, rois, batch = node.require(0), node.require(1), node.require(2)
    mode, ratio = node.string("mode", "avg"), node.int("sampling_ratio", 0)
    default = "half_pixel" if node.opset >= 16 else "output_half_pixel"
    transform = node.string("coordinate_transformation_mode", default)
    if mode not in ("avg", "max") or transform not in ("half_pixel", "output_half_pixel") or ratio < 0:
        raise g.invalid(
            f"mode {mode!r}, coordinate_transformation_mode {transform!r} or sampling_ratio {ratio} is wrong"
        )
    if len(shape(x)) != 4 or len(shape(batch)) != 1 or shape(rois) != (*shape(batch), 4):
        raise g.invalid(f"shapes {list(shape(x))} and {list(shape(rois))} must be [N, C, H, W] and [regions, 4]")
    if min(node.int("output_height", 1), node.int("output_width", 1)) < 1:
        raise g.invalid("its output_height and output_width must be positive")
    regions = Regions(
        size=(node.int("output_height", 1), node.int("output_width", 1)),
        scale=node.float("spatial_scale", 1.0),
        shifted=transform == "half_pixel",
        mode=mode,
    )
    batch = cast(g, batch, torch.int64)
    if ratio:
        return _aligned(g, x, rois, batch, regions, (ratio, ratio))
    known = g.constant(rois, "regions (its sampling_ratio is 0)")
    if not 0 < len(known) <= MOST_REGIONS:
        raise g.unsupported(f"it has {len(known)} regions, and 1 to {MOST_REGIONS} are supported")
    parts = []
    for i in range(len(known)):
        _, sizes = _bounds(g, known[i : i + 1], regions)
        if not all(0 < v.item() < math.inf for v in sizes):
            raise g.unsupported(f"region {i} has no area")
        grid = [math.ceil(v.item() / n) for v, n in zip(sizes, regions.size, strict=True)]
        part = g.call(aten.slice.Tensor, batch, 0, i, i + 1)
        parts.append(_aligned(g, x, known[i : i + 1], part, regions, (grid[0], grid[1])))
    return g.call(aten.cat.default, parts, 0)


@dataclass(frozen=True)
class Regions:
    """size: bins down and across; scale: of coordinates to the input's; shifted: by half an element."""

    size: tuple[int, int]
    scale: float
    shifted: bool
    mode: str


MOST_REGIONS = 1024


def _bounds(g: OnnxBuilder, rois: Value, regions: Regions) -> tuple[list[Value], list[Value]]:
    """Where each region starts (down, across) and how large it is, each [R, 1]."""
    scaled = g.call(aten.mul.Tensor, rois, regions.scale)
    if regions.shifted:
        scaled = g.call(aten.sub.Tensor, scaled, 0.5)
    left, top, right, bottom = (cut(g, scaled, 1, i, i + 1) for i in range(4))
    sizes = [g.call(aten.sub.Tensor, end, start) for start, end in ((top, bottom), (left, right))]
    if not regions.shifted:
        sizes = [g.call(aten.clamp.default, v, 1.0) for v in sizes]
    return [top, left], sizes


def _aligned(g: OnnxBuilder, x: Value, rois: Value, batch: Value, regions: Regions, grid: tuple[int, int]) -> Value:
    """[R, C, bins down, bins across] from grid[0] x grid[1] samples in each bin."""
    starts, sizes = _bounds(g, rois, regions)
    axes = [_samples(g, starts[i], sizes[i], regions.size[i], grid[i], shape(x)[2 + i], dtype(x)) for i in range(2)]
    place = reshape(g, batch, [-1, 1, 1])
    corners = []
    for y, y_weight in axes[0]:
        for z, z_weight in axes[1]:
            index = [place, None, g.call(aten.unsqueeze.default, y, 2), g.call(aten.unsqueeze.default, z, 1)]
            values = g.call(aten.index.Tensor, x, index)  # [R, samples down, samples across, C]
            weight = g.call(aten.mul.Tensor, reshape(g, y_weight, [*shape(y), 1, 1]), _across(g, z_weight))
            corners.append(g.call(aten.mul.Tensor, values, weight))
    target = aten.add.Tensor if regions.mode == "avg" else aten.maximum.default
    total = corners[0]
    for corner in corners[1:]:
        total = g.call(target, total, corner)
    count = shape(total)[0]
    bins = reshape(g, total, [count, regions.size[0], grid[0], regions.size[1], grid[1], shape(x)[1]])
    pooled = g.call(aten.mean.dim if regions.mode == "avg" else aten.amax.default, bins, [2, 4])
    return g.call(aten.permute.default, pooled, [0, 3, 1, 2])


def _across(g: OnnxBuilder, weight: Value) -> Value:
    rows, columns = shape(weight)
    return reshape(g, weight, [rows, 1, columns, 1])


def _samples(
    g: OnnxBuilder, start: Value, size: Value, bins: int, grid: int, limit: int, kind: torch.dtype
) -> list[tuple[Value, Value]]:
    """Along one axis, the two elements next to each sample and their weights, each [R, bins * grid]. Samples more than
    one element outside weigh nothing."""
    fractions = (arange(g, bins * grid).to(torch.float64) + 0.5) / grid / bins
    place = g.call(aten.add.Tensor, start, g.call(aten.mul.Tensor, size, fractions.to(kind)[None]))
    inside = g.call(aten.logical_and.default, g.call(aten.ge.Scalar, place, -1), g.call(aten.le.Scalar, place, limit))
    place = g.call(aten.clamp.default, place, 0, limit - 1)
    below = g.call(aten.floor.default, place)
    upper = g.call(aten.sub.Tensor, place, below)
    lower = g.call(aten.rsub.Scalar, upper, 1.0)
    first = cast(g, below, torch.int64)
    second = g.call(aten.clamp.default, g.call(aten.add.Tensor, first, 1), None, limit - 1)
    weights = [g.call(aten.where.ScalarOther, inside, w, 0.0) for w in (lower, upper)]
    return [(first, weights[0]), (second, weights[1])]
