"""Operators that move elements and compute nothing, and arithmetic on shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .context import LARGEST_TABLE, TORCH_DTYPES, Op, aten
from .conv import flattened

END = 2**63 - 1


# ---- another shape ----


def reshaped(op: Op, sizes: Sequence[int]) -> None:
    op.give_moved(flattened(op, 0, sizes))


@converts("tflite", "RESHAPE")
def reshape(op: Op) -> None:
    """The shape is an input, or stands in the options; one size may be -1."""
    if op.has(1):
        wanted = op.ints(1, "its new shape")
    else:
        wanted = op.op.options_vector("ReshapeOptions", "NewShape")
    total = math.prod(op.shape(0))
    known = math.prod([size for size in wanted if size != -1])
    if wanted.count(-1) > 1 or any(size < -1 for size in wanted):
        raise op.b.invalid(f"its new shape {wanted} must have sizes, one of which may be -1")
    if -1 in wanted:
        if known == 0 or total % known:
            raise op.b.invalid(f"{list(op.shape(0))} cannot be reshaped to {wanted}")
        wanted[wanted.index(-1)] = total // known
    if math.prod(wanted) != total:
        raise op.b.invalid(f"{list(op.shape(0))} cannot be reshaped to {wanted}")
    reshaped(op, wanted)


@converts("tflite", "SQUEEZE")
def squeeze(op: Op) -> None:
    sizes = op.shape(0)
    dims = {op.axis(d, len(sizes)) for d in op.op.options_vector("SqueezeOptions", "SqueezeDims")}
    dims = dims or {d for d, size in enumerate(sizes) if size == 1}
    if any(sizes[d] != 1 for d in dims):
        raise op.b.invalid(f"dimensions {sorted(dims)} of {list(sizes)} must have size 1")
    reshaped(op, [size for d, size in enumerate(sizes) if d not in dims])


@converts("tflite", "EXPAND_DIMS")
def expand_dims(op: Op) -> None:
    sizes = list(op.shape(0))
    axes = op.ints(1, "its axis")
    if len(axes) != 1:
        raise op.b.invalid(f"its axis must be one integer, got {axes}")
    sizes.insert(op.axis(axes[0], len(sizes) + 1), 1)
    reshaped(op, sizes)


@converts("tflite", "TRANSPOSE")
def transpose(op: Op) -> None:
    order = op.ints(1, "its permutation")
    rank = op.rank(0)
    order = [op.axis(d, rank) for d in order]
    if sorted(order) != list(range(rank)):
        raise op.b.invalid(f"{order} is no permutation of {rank} dimensions")
    op.give_moved(op.b.call(aten.permute.default, op.real(0), order))


# ---- parts ----


def _slices(op: Op, x: Value, ranges: Sequence[tuple[int, int]], first: bool) -> Value:
    """x[begin:end] in every dimension; ranges: (begin, end), channels last."""
    sizes = op.shape(0)
    for axis, (begin, end) in enumerate(ranges):
        if (begin, end) != (0, sizes[axis]):
            x = op.b.call(aten.slice.Tensor, x, op.dim(axis, first), begin, end)
    return x


@converts("tflite", "SLICE")
def slice_(op: Op) -> None:
    """size -1: up to the end."""
    begin, size = op.ints(1, "its begin"), op.ints(2, "its size")
    sizes = op.shape(0)
    if not len(begin) == len(size) == len(sizes):
        raise op.b.invalid(f"begin {begin} and size {size} must be as many as the dimensions of {list(sizes)}")
    ranges = [(b, n if s == -1 else b + s) for b, s, n in zip(begin, size, sizes, strict=True)]
    if any(not 0 <= b <= e <= n for (b, e), n in zip(ranges, sizes, strict=True)):
        raise op.b.invalid(f"begin {begin} and size {size} do not lie within {list(sizes)}")
    first = op.is_first(0)
    op.give_moved(_slices(op, op.real(0, first), ranges, first), first)


@converts("tflite", "STRIDED_SLICE")
def strided_slice(op: Op) -> None:
    begin, end, steps = (op.ints(i, f"its {what}") for i, what in ((1, "begin"), (2, "end"), (3, "strides")))
    if not len(begin) == len(end) == len(steps):
        raise op.b.invalid(f"begin {begin}, end {end} and strides {steps} must be equally many")
    if 0 in steps:
        raise op.b.invalid(f"its strides {steps} must not be 0")
    parts, sizes = _strided(op, begin, end, steps)
    first = op.is_first(0) and len(sizes) == 4 and all(kept for *_, kept in parts)
    x = op.real(0, first)
    current = list(op.shape(0))
    for axis, (b, e, step, _) in enumerate(parts):
        found = range(b, e, step)
        if len(found) == current[axis] and step == 1:
            continue
        dim = op.dim(axis, first)
        if step < 0:  # aten has no negative steps
            x = op.b.call(aten.flip.default, x, [dim])
            b, e, step = current[axis] - 1 - b, current[axis] - 1 - e, -step
        x = op.b.call(aten.slice.Tensor, x, dim, b, max(b, e), step)
        current[axis] = len(found)
    if not first and tuple(sizes) != tuple(shape(x)):
        x = op.b.call(aten.reshape.default, x, list(sizes))
    op.give_moved(x, first)


def _strided(
    op: Op, begin: list[int], end: list[int], steps: list[int]
) -> tuple[list[tuple[int, int, int, bool]], list[int]]:
    """((begin, end, step, whether the dimension is kept) for each dimension of the input, shape of the result)."""
    kind = "StridedSliceOptions"
    masks = {
        name: int(op.option(kind, f"{name}Mask")) for name in ("Begin", "End", "Ellipsis", "NewAxis", "ShrinkAxis")
    }
    sizes = op.shape(0)
    if bin(masks["Ellipsis"]).count("1") > 1:
        raise op.b.invalid("its ellipsis mask names more than one place")
    new = sum(masks["NewAxis"] >> i & 1 and not masks["Ellipsis"] >> i & 1 for i in range(len(begin)))
    hidden = len(sizes) - (len(begin) - new - (masks["Ellipsis"] != 0))
    if hidden < 0:
        raise op.b.invalid(f"{len(begin)} ranges are more than the dimensions of {list(sizes)}")
    parts: list[tuple[int, int, int, bool]] = []
    result: list[int] = []

    def whole(count: int) -> None:
        for _ in range(count):
            result.append(sizes[len(parts)])
            parts.append((0, sizes[len(parts)], 1, True))

    for i in range(len(begin)):
        if masks["Ellipsis"] >> i & 1:
            whole(hidden)
            hidden = 0
        elif masks["NewAxis"] >> i & 1:
            result.append(1)
        else:
            part = _range(op, masks, i, begin[i], end[i], steps[i], sizes[len(parts)])
            parts.append(part)
            if part[3]:
                result.append(len(range(*part[:3])))
    whole(len(sizes) - len(parts))
    return parts, result


def _range(
    op: Op, masks: dict[str, int], i: int, begin: int, end: int, step: int, size: int
) -> tuple[int, int, int, bool]:
    if masks["ShrinkAxis"] >> i & 1:
        begin += size if begin < 0 else 0
        if not 0 <= begin < size:
            raise op.b.invalid(f"index {begin} lies outside of a dimension of size {size}")
        return begin, begin + 1, 1, False
    if op.option("StridedSliceOptions", "Offset") and not masks["End"] >> i & 1:
        end += begin
    ends = slice(None if masks["Begin"] >> i & 1 else begin, None if masks["End"] >> i & 1 else end, step).indices(size)
    return (*ends, True)


@converts("tflite", "SPLIT", "SPLIT_V")
def split(op: Op) -> None:
    x, at = (1, 0) if op.code == "SPLIT" else (0, 2)
    sizes = op.shape(x)
    axes = op.ints(at, "its axis")
    if len(axes) != 1:
        raise op.b.invalid(f"its axis must be one integer, got {axes}")
    axis = op.axis(axes[0], len(sizes))
    count = len(op.op.outputs)
    if op.code == "SPLIT":
        if count == 0 or sizes[axis] % count:
            raise op.b.invalid(f"dimension {axis} of {list(sizes)} cannot be split into {count} equal parts")
        extents = [sizes[axis] // count] * count
    else:
        extents = op.ints(1, "its sizes")
        if extents.count(-1) == 1:
            extents[extents.index(-1)] = sizes[axis] - sum(extents) - 1
        if len(extents) != count or min(extents, default=0) < 0 or sum(extents) != sizes[axis]:
            raise op.b.invalid(f"sizes {extents} do not split dimension {axis} of {list(sizes)} into {count} parts")
    first = op.is_first(x)
    begin = 0
    for i, extent in enumerate(extents):
        part = op.b.call(aten.slice.Tensor, op.real(x, first), op.dim(axis, first), begin, begin + extent)
        op.give_moved(part, first, x, i)
        begin += extent


@converts("tflite", "UNPACK")
def unpack(op: Op) -> None:
    sizes = op.shape(0)
    axis = op.axis(op.option("UnpackOptions", "Axis"), len(sizes))
    if len(op.op.outputs) != sizes[axis]:
        raise op.b.invalid(f"dimension {axis} of {list(sizes)} is not unpacked into {len(op.op.outputs)} tensors")
    x = op.real(0)
    for i in range(sizes[axis]):
        op.give_moved(op.b.call(aten.select.int, x, axis, i), o=i)


# ---- joined ----


@converts("tflite", "CONCATENATION")
def concatenation(op: Op) -> None:
    """Inputs of other scales are brought to the result's (uint8 only, in TFLite)."""
    from .activation import fused

    rank = op.rank(0)
    axis = op.axis(op.option("ConcatenationOptions", "Axis"), rank)
    first = rank == 4 and op.any_first()
    parts = [op.real(i, first and op.rank(i) == 4) for i in range(op.count)]
    value = op.b.call(aten.cat.default, parts, op.dim(axis, first))
    fused(op, value, "ConcatenationOptions", first)


@converts("tflite", "PACK")
def pack(op: Op) -> None:
    axis = op.axis(op.option("PackOptions", "Axis"), op.rank(0) + 1)
    op.give_moved(op.b.call(aten.stack.default, [op.real(i) for i in range(op.count)], axis))


@converts("tflite", "TILE")
def tile(op: Op) -> None:
    counts = op.ints(1, "its counts")
    if len(counts) != op.rank(0) or min(counts, default=1) < 0:
        raise op.b.invalid(f"counts {counts} must be one for each dimension of {list(op.shape(0))}, none below 0")
    first = op.is_first(0)
    if first:
        counts = [counts[a] for a in (0, 3, 1, 2)]
    op.give_moved(op.b.call(aten.repeat.default, op.real(0, first), counts), first)


@converts("tflite", "BROADCAST_TO")
def broadcast_to(op: Op) -> None:
    sizes = op.ints(1, "its shape")
    if len(sizes) > 8 or min(sizes, default=0) < 0:
        raise op.b.invalid(f"its shape {sizes} must have up to 8 sizes, none below 0")
    op.give_moved(op.b.call(aten.expand.default, op.real(0), sizes))


# ---- reversed ----


@converts("tflite", "REVERSE_V2")
def reverse(op: Op) -> None:
    axes = [op.axis(a, op.rank(0)) for a in op.ints(1, "its axes")]
    if len(set(axes)) != len(axes):
        raise op.b.invalid(f"axes {axes} must be different ones")
    first = op.is_first(0)
    op.give_moved(op.b.call(aten.flip.default, op.real(0, first), [op.dim(a, first) for a in axes]), first)


# ---- arithmetic on shapes ----


def _integers(op: Op, values: Sequence[int] | int) -> None:
    wanted = TORCH_DTYPES.get(op.out().dtype)
    if wanted not in (torch.int32, torch.int64):
        raise op.b.invalid(f"its output {op.out()} must be INT32 or INT64")
    op.give(torch.tensor(values, dtype=wanted))


@converts("tflite", "SHAPE")
def shape_of(op: Op) -> None:
    _integers(op, list(op.shape(0)))


@converts("tflite", "RANK")
def rank_of(op: Op) -> None:
    _integers(op, op.rank(0))


@converts("tflite", "BROADCAST_ARGS")
def broadcast_args(op: Op) -> None:
    a, b = op.ints(0, "its first shape"), op.ints(1, "its second shape")
    rank = max(len(a), len(b))
    a, b = ([1] * (rank - len(s)) + s for s in (a, b))
    if any(m != n and 1 not in (m, n) for m, n in zip(a, b, strict=True)):
        raise op.b.invalid(f"shapes {a} and {b} do not broadcast")
    _integers(op, [n if m == 1 else m for m, n in zip(a, b, strict=True)])


@converts("tflite", "FILL")
def fill(op: Op) -> None:
    sizes = op.ints(0, "its shape")
    if min(sizes, default=0) < 0 or op.rank(1) != 0:
        raise op.b.invalid(f"its shape {sizes} must have no size below 0, and its value must be one number")
    op.give_moved(op.b.call(aten.expand.default, op.real(1), sizes), i=1)


@converts("tflite", "RANGE")
def range_(op: Op) -> None:
    held = [op.constant(i, what) for i, what in enumerate(("its start", "its limit", "its step"))]
    if any(h.numel() != 1 for h in held) or any(dtype(h) != dtype(held[0]) for h in held):
        raise op.b.invalid("start, limit and step must be single numbers of one element type")
    start, limit, step = (h.item() for h in held)
    if step == 0 or (limit - start) / step > LARGEST_TABLE:
        raise op.b.invalid(f"from {start} to {limit} by {step} is no range")
    if (limit - start) * step <= 0:
        op.give(torch.empty(0, dtype=dtype(held[0])))
        return
    op.give(op.b.call(aten.arange.start_step, start, limit, step, dtype=dtype(held[0])))
