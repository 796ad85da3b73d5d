"""What conversions of several families need: casts, numbers, axes, and unsigned types that torch hardly computes in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..graph import LARGEST, Value, dtype, first_line, shape
from .context import OnnxBuilder, aten

WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
"""Unsigned types for which torch has hardly any kernels, and signed ones in which their arithmetic wraps alike."""

SIGN = -(2**63)


def cast(g: OnnxBuilder, x: Value, to: torch.dtype) -> Value:
    """x as dtype `to`; x itself if it is."""
    return x if dtype(x) == to else g.call(aten._to_copy.default, x, dtype=to)


def scalar_of(value: Value, like: Value) -> int | float | None:
    """The number that a constant of one element stands for, if broadcasting it leaves like's shape; else None."""
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or value.dim() > len(shape(like)):
        return None
    if value.dtype in (torch.bool, *WIDER) or value.dtype.is_complex or value.dtype.itemsize == 0:
        return None
    number: int | float = value.item()
    return number


def wrapping(g: OnnxBuilder, function: Callable[..., Value], *values: Value) -> Value:
    """function(*values) for operators that give the same low bits in a wider signed type (add, gather, ...)."""
    to = WIDER.get(dtype(values[0]))
    if to is None:
        return function(*values)
    return cast(g, function(*(cast(g, v, to) for v in values)), dtype(values[0]))


def ordered(g: OnnxBuilder, x: Value) -> Value:
    """x in a signed type that has its order: uint64 is shifted down by 2^63."""
    to = WIDER.get(dtype(x))
    if to is None:
        return x
    y = cast(g, x, to)
    return g.call(aten.bitwise_xor.Scalar, y, SIGN) if dtype(x) == torch.uint64 else y


def unordered(g: OnnxBuilder, y: Value, to: torch.dtype) -> Value:
    """The inverse of ordered() for a result of dtype `to`."""
    if to == torch.uint64:
        y = g.call(aten.bitwise_xor.Scalar, y, SIGN)
    return cast(g, y, to)


def ordering(g: OnnxBuilder, function: Callable[..., Value], *values: Value) -> Value:
    """function(*values) for operators that only compare and select (max, sort, ...)."""
    return unordered(g, function(*(ordered(g, v) for v in values)), dtype(values[0]))


def axis_of(g: OnnxBuilder, axis: int, rank: int, what: str = "axis") -> int:
    """The axis counted from the front. Raises InvalidModelError if it is out of range."""
    if not -rank <= axis < rank:
        raise g.invalid(f"its {what} {axis} is out of range for rank {rank}")
    return axis % rank


def axes_of(g: OnnxBuilder, axes: Sequence[int], rank: int) -> list[int]:
    """Distinct axes counted from the front, in the order given."""
    found = [axis_of(g, axis, rank, "axes") for axis in axes]
    if len(set(found)) != len(found):
        raise g.invalid(f"its axes {list(axes)} name one twice")
    return found


def same_dtype(g: OnnxBuilder, *values: Value) -> torch.dtype:
    """The dtype that all values must have."""
    kinds = [dtype(v) for v in values]
    if len(set(kinds)) > 1:
        raise g.invalid(f"its inputs must be of one type, got {', '.join(map(str, kinds))}")
    return kinds[0]


def broadcast(g: OnnxBuilder, *shapes: Sequence[int]) -> list[int]:
    """The shape to which these broadcast."""
    if any(size < 0 for sizes in shapes for size in sizes):
        raise g.invalid(f"a size is negative in {', '.join(str(list(s)) for s in shapes)}")
    try:
        return list(np.broadcast_shapes(*map(tuple, shapes)))
    except ValueError:
        raise g.invalid(f"shapes {', '.join(str(list(s)) for s in shapes)} do not broadcast") from None


def reshape(g: OnnxBuilder, x: Value, sizes: Sequence[int]) -> Value:
    """x with another shape; x itself if it has it."""
    return x if list(shape(x)) == list(sizes) else g.call(aten.reshape.default, x, list(sizes))


def permute(g: OnnxBuilder, x: Value, order: Sequence[int]) -> Value:
    """x with its axes in another order; x itself if they are."""
    return x if list(order) == list(range(len(order))) else g.call(aten.permute.default, x, list(order))


def cut(g: OnnxBuilder, x: Value, axis: int, start: int, end: int, step: int = 1) -> Value:
    """x[start:end:step] along one axis, with 0 <= start, end <= size and step > 0; x itself if that is all of it."""
    size = shape(x)[axis]
    if start == 0 and end >= size and step == 1:
        return x
    return g.call(aten.slice.Tensor, x, axis, start, end, step)


def wrapped_index(g: OnnxBuilder, index: Value, size: int) -> Value:
    """An int64 index tensor with its negative entries counted from the end."""
    index = cast(g, index, torch.int64)
    if isinstance(index, torch.Tensor) and not bool((index < 0).any()):
        return index
    negative = g.call(aten.lt.Scalar, index, 0)
    return g.call(aten.where.self, negative, g.call(aten.add.Tensor, index, size), index)


def bounded(g: OnnxBuilder, sizes: Sequence[int], kind: torch.dtype) -> None:
    """Raises InvalidModelError if a tensor of these sizes is too large to be made here."""
    if math.prod(sizes) * kind.itemsize > LARGEST:
        raise g.invalid(f"a tensor of shape {list(sizes)} and {kind} is larger than {LARGEST >> 30} GiB")


def arange(g: OnnxBuilder, count: int, *, axis: int = 0, rank: int = 1) -> torch.Tensor:
    """0..count-1 (int64) along one of `rank` axes."""
    bounded(g, [count], torch.int64)
    return torch.arange(count).reshape([count if i == axis else 1 for i in range(rank)])


def whole(g: OnnxBuilder, value: Value, what: str) -> int:
    """A constant whole number."""
    number = g.number(value, what)
    if isinstance(number, bool) or not isinstance(number, int):
        raise g.invalid(f"its {what} must be a whole number, got {number!r}")
    return number


def computed(g: OnnxBuilder, function: Callable[..., Any], *args: Any) -> Any:
    """function(*args) of constants alone, where builder.call cannot tell the result's shape beforehand."""
    try:
        return function(*args)
    except (RuntimeError, NotImplementedError) as error:
        raise g.unsupported(f"torch does not compute it: {first_line(error)}") from error
