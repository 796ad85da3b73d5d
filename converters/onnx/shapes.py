"""Operators that move values without changing them: shapes, slices, pads, repetitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .values import (
    arange,
    axes_of,
    axis_of,
    bounded,
    broadcast,
    cast,
    cut,
    permute,
    reshape,
    same_dtype,
    whole,
    wrapping,
)

# ---- shapes ----


@converts("onnx", "Reshape", since=5)
def reshape_(g: OnnxBuilder, node: OnnxNode) -> Value:
    """0 copies the input's size unless allowzero says that it is a size; -1 is what remains."""
    x = node.require(0)
    wanted = g.int_list(node.require(1), "shape")
    before = shape(x)
    sizes = list(wanted)
    for axis, size in enumerate(wanted):
        if size == 0 and not node.int("allowzero", 0):
            if axis >= len(before):
                raise g.invalid(f"its shape {wanted} copies size {axis} of an input of shape {list(before)}")
            sizes[axis] = before[axis]
    if any(size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise g.invalid(f"its shape {wanted} must have at most one -1 and no other negative size")
    if -1 in sizes:
        known = -math.prod(sizes)
        if known == 0 or math.prod(before) % known:
            raise g.invalid(f"an input of shape {list(before)} does not fit its shape {wanted}")
        sizes[sizes.index(-1)] = math.prod(before) // known
    if math.prod(sizes) != math.prod(before):
        raise g.invalid(f"an input of shape {list(before)} does not fit its shape {wanted}")
    return reshape(g, x, sizes)


@converts("onnx", "Flatten")
def flatten(g: OnnxBuilder, node: OnnxNode) -> Value:
    """To a matrix: the axes before `axis`, and those from it on. axis may be the rank."""
    x = node.require(0)
    sizes = shape(x)
    axis = node.int("axis", 1)
    if not -len(sizes) <= axis <= len(sizes):
        raise g.invalid(f"its axis {axis} is out of range for rank {len(sizes)}")
    axis = axis + len(sizes) if axis < 0 else axis
    return reshape(g, x, [math.prod(sizes[:axis]), math.prod(sizes[axis:])])


@converts("onnx", "Transpose")
def transpose(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    rank = len(shape(x))
    order = node.ints("perm", list(range(rank))[::-1])
    if sorted(order) != list(range(rank)):
        raise g.invalid(f"its perm {order} is no permutation of {rank} axes")
    return permute(g, x, order)


def _axes(g: OnnxBuilder, node: OnnxNode) -> list[int] | None:
    """Squeeze and Unsqueeze: an attribute until opset 12, an input since."""
    if node.opset < 13:
        found: list[int] | None = node.ints("axes", None)
        return found
    given = node.optional(1)
    return None if given is None else g.int_list(given, "axes")


@converts("onnx", "Squeeze")
def squeeze(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    sizes = shape(x)
    axes = _axes(g, node)
    gone = [i for i, n in enumerate(sizes) if n == 1] if axes is None else axes_of(g, axes, len(sizes))
    if any(sizes[axis] != 1 for axis in gone):
        raise g.invalid(f"its axes {axes} are not all of size 1 in shape {list(sizes)}")
    return reshape(g, x, [n for axis, n in enumerate(sizes) if axis not in gone])


@converts("onnx", "Unsqueeze")
def unsqueeze(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    axes = _axes(g, node)
    if axes is None:
        raise g.invalid("its axes are missing")
    rank = len(shape(x)) + len(axes)
    new = axes_of(g, axes, rank)
    sizes = iter(shape(x))
    return reshape(g, x, [1 if axis in new else next(sizes) for axis in range(rank)])


@converts("onnx", "Expand", since=8)
def expand(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    wanted = g.int_list(node.require(1), "shape")
    sizes = broadcast(g, shape(x), wanted)
    return x if sizes == list(shape(x)) else g.call(aten.expand.default, x, sizes)


@converts("onnx", "Tile", since=6)
def tile(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    repeats = g.int_list(node.require(1), "repeats")
    if len(repeats) != len(shape(x)) or any(n < 0 for n in repeats):
        raise g.invalid(f"its repeats {repeats} must be {len(shape(x))} counts")
    return x if all(n == 1 for n in repeats) else g.call(aten.repeat.default, x, repeats)


# ---- parts ----


@converts("onnx", "Slice", until=9)
def slice_attributes(g: OnnxBuilder, node: OnnxNode) -> Value:
    starts, ends = node.ints("starts"), node.ints("ends")
    return _sliced(g, node.require(0), starts, ends, node.ints("axes", None), None)


@converts("onnx", "Slice", since=10)
def slice_(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    names = ("starts", "ends", "axes", "steps")
    given = [None if node.optional(i + 1) is None else g.int_list(node.optional(i + 1), n) for i, n in enumerate(names)]
    starts, ends, axes, steps = given
    if starts is None or ends is None:
        raise g.invalid("its starts or ends are missing")
    return _sliced(g, x, starts, ends, axes, steps)


def _sliced(
    g: OnnxBuilder,
    x: Value,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Value:
    """A negative step is a slice followed by a flip."""
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        counts = [len(v) for v in (starts, ends, axes, steps)]
        raise g.invalid(f"starts, ends, axes and steps must have one entry each per axis, got {counts}")
    if 0 in steps:
        raise g.invalid("a step of 0 is none")
    backward = []
    for axis, start, end, step in zip(axes_of(g, axes, len(shape(x))), starts, ends, steps, strict=True):
        places = _places(start, end, step, shape(x)[axis])
        if step < 0 and len(places) > 1:
            backward.append(axis)
        first, last = (min(places[0], places[-1]), max(places[0], places[-1])) if places else (0, -1)
        x = cut(g, x, axis, first, last + 1, abs(step) if len(places) > 1 else 1)
    return g.call(aten.flip.default, x, backward) if backward else x


def _places(start: int, end: int, step: int, size: int) -> range:
    """The places of a slice. As Python's, but that a start before the first element is the first also backward."""
    start, end = (place + size if place < 0 else place for place in (start, end))
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


@converts("onnx", "Split", since=2)
def split(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Into given sizes, or into equal ones of which the last may be smaller (since opset 18)."""
    x = node.require(0)
    axis = axis_of(g, node.int("axis", 0), len(shape(x)))
    given = node.ints("split", None) if node.opset < 13 else node.optional(1)
    if node.int("num_outputs", node.outputs) != node.outputs:
        raise g.invalid(f"its num_outputs is {node.int('num_outputs')}, and it has {node.outputs} outputs")
    if given is not None:
        sizes = given if node.opset < 13 else g.int_list(given, "split")
    else:
        sizes = equal_parts(g, shape(x)[axis], node.outputs, uneven=node.opset >= 18)
    if sum(sizes) != shape(x)[axis] or any(size < 0 for size in sizes) or len(sizes) < node.outputs:
        raise g.invalid(f"its parts {sizes} must be {node.outputs} that make up the {shape(x)[axis]} of axis {axis}")
    return tuple(parts_of(g, x, axis, sizes))


def equal_parts(g: OnnxBuilder, total: int, parts: int, uneven: bool) -> list[int]:
    """The sizes of `parts` parts."""
    if parts < 1 or (total % parts and not uneven):
        raise g.invalid(f"{total} elements cannot be split into {parts} equal parts")
    each = -(-total // parts)
    return [max(min(each, total - i * each), 0) for i in range(parts)]


def parts_of(g: OnnxBuilder, x: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
    """Slices of these sizes, one after the other."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [cut(g, x, axis, end - size, end) for end, size in zip(ends, sizes, strict=True)]


@converts("onnx", "Concat", since=4)
def concat(g: OnnxBuilder, node: OnnxNode) -> Value:
    values = [node.require(i) for i in range(len(node.inputs))]
    return concatenated(g, values, node.int("axis"))


def concatenated(g: OnnxBuilder, values: Sequence[Value], axis: int) -> Value:
    """The values one after the other; their other sizes must agree (torch overlooks an empty list of another rank)."""
    if not values:
        raise g.invalid("it has no inputs")
    same_dtype(g, *values)
    axis = axis_of(g, axis, len(shape(values[0])))
    others = {(*shape(v)[:axis], *shape(v)[axis + 1 :]) for v in values}
    if len(others) > 1 or len({len(shape(v)) for v in values}) > 1:
        raise g.invalid(f"shapes {', '.join(str(list(shape(v))) for v in values)} differ not only along axis {axis}")
    return values[0] if len(values) == 1 else g.call(aten.cat.default, list(values), axis)


@converts("onnx", "Trilu", since=14)
def trilu(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, k = node.require(0), node.optional(1)
    offset = 0 if k is None else whole(g, k, "k")
    limit = max(shape(x)[-2:], default=0)
    offset = max(min(offset, limit), -limit)
    target = aten.triu.default if node.int("upper", 1) else aten.tril.default
    return wrapping(g, lambda v: g.call(target, v, offset), x)


# ---- pads ----

PAD_MODES = ("constant", "reflect", "edge", "wrap")


@converts("onnx", "Pad", since=2, until=10)
def pad_attributes(g: OnnxBuilder, node: OnnxNode) -> Value:
    return padded(g, node.require(0), node.ints("pads"), node.string("mode", "constant"), node.float("value", 0.0))


@converts("onnx", "Pad", since=11)
def pad(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, pads, value, axes = node.take(4)
    rank = len(shape(x))
    given = g.int_list(node.require(1), "pads")
    named = list(range(rank)) if axes is None else axes_of(g, g.int_list(axes, "axes"), rank)
    if len(given) != 2 * len(named):
        raise g.invalid(f"its pads {given} must be a begin and an end for each of {len(named)} axes")
    pads = [0] * (2 * rank)
    for place, axis in enumerate(named):
        pads[axis], pads[rank + axis] = given[place], given[len(named) + place]
    number = 0 if value is None else g.number(value, "constant value")
    return padded(g, x, pads, node.string("mode", "constant"), number)


def padded(g: OnnxBuilder, x: Value, pads: Sequence[int], mode: str, number: float) -> Value:
    """x with elements added before and after (or removed, where negative) along each axis."""
    rank = len(shape(x))
    if mode not in PAD_MODES:
        raise g.invalid(f"its mode must be one of {', '.join(PAD_MODES)}, got {mode!r}")
    if len(pads) != 2 * rank:
        raise g.invalid(f"its pads {list(pads)} must be a begin and an end for each of {rank} axes")
    if any(n < -shape(x)[i % rank] for i, n in enumerate(pads)):
        raise g.invalid(f"its pads {list(pads)} remove more than shape {list(shape(x))} has")
    bounded(g, [max(n + pads[i] + pads[rank + i], 0) for i, n in enumerate(shape(x))], dtype(x))
    if mode == "constant":
        amounts = [n for axis in reversed(range(rank)) for n in (pads[axis], pads[rank + axis])]
        return g.call(aten.constant_pad_nd.default, x, _trimmed(amounts), number) if any(amounts) else x
    if mode in _TORCH_PADS and dtype(x).is_floating_point and _fits_torch(shape(x), pads, rank, mode):
        amounts = [n for axis in (rank - 1, rank - 2) for n in (pads[axis], pads[rank + axis])]
        return g.call(_TORCH_PADS[mode], x, amounts) if any(amounts) else x
    for axis in range(rank):
        before, after, size = pads[axis], pads[rank + axis], shape(x)[axis]
        if before or after:
            index = _sources(g, arange(g, before + size + after) - before, size, mode)
            x = g.call(aten.index.Tensor, x, [*[None] * axis, index])
    return x


_TORCH_PADS = {"reflect": aten.reflection_pad2d.default, "edge": aten.replication_pad2d.default}


def _fits_torch(sizes: Sequence[int], pads: Sequence[int], rank: int, mode: str) -> bool:
    """Whether torch's own two-dimensional pad does the same: images, padded by less than their size."""
    if rank != 4 or any(pads[i] for i in (0, 1, 4, 5)) or any(n < 0 for n in pads) or 0 in sizes:
        return False
    return mode == "edge" or all(max(pads[i], pads[4 + i]) < sizes[i] for i in (2, 3))


def _trimmed(amounts: list[int]) -> list[int]:
    """Without the pads of nothing along the outer axes."""
    while len(amounts) > 2 and amounts[-2:] == [0, 0]:
        amounts = amounts[:-2]
    return amounts


def _sources(g: OnnxBuilder, places: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """From where the element at each place (counted from the first one of the input) comes."""
    if size == 0:
        raise g.invalid(f"an axis without elements cannot be padded in mode {mode}")
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * size - 2, 1)
    return (size - 1 - (places % period - (size - 1)).abs()) if size > 1 else torch.zeros_like(places)


# ---- space and depth ----


@converts("onnx", "DepthToSpace")
def depth_to_space(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, block = node.require(0), node.int("blocksize")
    n, c, h, w = _image(g, x)
    if block < 1 or c % (block * block):
        raise g.invalid(f"{c} channels cannot become blocks of {block} x {block}")
    mode = node.string("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise g.invalid(f"its mode must be DCR or CRD, got {mode!r}")
    if mode == "CRD":
        return g.call(aten.pixel_shuffle.default, x, block)
    y = reshape(g, x, [n, block, block, c // block**2, h, w])
    return reshape(g, permute(g, y, [0, 3, 4, 1, 5, 2]), [n, c // block**2, h * block, w * block])


@converts("onnx", "SpaceToDepth")
def space_to_depth(g: OnnxBuilder, node: OnnxNode) -> Value:
    """DCR (the only one until opset 27): the place within the block is the slower part of the channel."""
    x, block = node.require(0), node.int("blocksize")
    n, c, h, w = _image(g, x)
    if block < 1 or h % block or w % block:
        raise g.invalid(f"{h} x {w} elements cannot be divided into blocks of {block} x {block}")
    mode = node.string("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise g.invalid(f"its mode must be DCR or CRD, got {mode!r}")
    if mode == "CRD":
        return g.call(aten.pixel_unshuffle.default, x, block)
    y = reshape(g, x, [n, c, h // block, block, w // block, block])
    return reshape(g, permute(g, y, [0, 3, 5, 1, 2, 4]), [n, c * block**2, h // block, w // block])


def _image(g: OnnxBuilder, x: Value) -> tuple[int, int, int, int]:
    if len(shape(x)) != 4:
        raise g.invalid(f"its input must be [N, C, H, W], got shape {list(shape(x))}")
    n, c, h, w = shape(x)
    return n, c, h, w


@converts("onnx", "ReverseSequence", since=10)
def reverse_sequence(g: OnnxBuilder, node: OnnxNode) -> Value:
    """The first sequence_lens[b] elements of each sequence b are reversed."""
    x, lengths = node.require(0), node.require(1)
    time, batch = node.int("time_axis", 0), node.int("batch_axis", 1)
    if {time, batch} != {0, 1}:
        raise g.invalid(f"time_axis and batch_axis must be 0 and 1, got {time} and {batch}")
    if len(shape(x)) < 2 or len(shape(lengths)) != 1:
        raise g.invalid(
            f"shapes {list(shape(x))} and {list(shape(lengths))} are not those of sequences and their lengths"
        )
    steps = shape(x)[time]
    places = arange(g, steps, axis=time, rank=2)
    ends = reshape(g, cast(g, lengths, torch.int64), [-1, 1] if time else [1, -1])
    reversed_ = g.call(aten.sub.Tensor, g.call(aten.sub.Tensor, ends, 1), places)
    index = g.call(aten.where.self, g.call(aten.lt.Tensor, places, ends), reversed_, places)
    rows = arange(g, shape(x)[batch], axis=batch, rank=2)
    return g.call(aten.index.Tensor, x, [index, rows] if time == 0 else [rows, index])
