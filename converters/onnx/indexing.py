"""Gathering and scattering, one-hot vectors, and operators whose result's shape depends on values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .values import arange, axis_of, bounded, cast, computed, cut, ordered, reshape, same_dtype, wrapped_index, wrapping

# ---- gathering ----


@converts("onnx", "Gather")
def gather(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Slices along an axis. One constant index is a select, consecutive ones are a slice."""
    x, index = node.require(0), node.require(1)
    axis = axis_of(g, node.int("axis", 0), len(shape(x)))
    size = shape(x)[axis]
    if isinstance(index, torch.Tensor):
        _check_within(g, index, size)
        places = [i % size for i in index.flatten().tolist()]
        if index.dim() == 0:
            return g.call(aten.select.int, x, axis, places[0])
        if index.dim() == 1 and places and places == list(range(places[0], places[0] + len(places))):
            return cut(g, x, axis, places[0], places[-1] + 1)
        index = torch.tensor(places, dtype=torch.int64).reshape(index.shape)
    return g.call(aten.index.Tensor, x, [*[None] * axis, cast(g, index, torch.int64)])


def _check_within(g: OnnxBuilder, index: Value, size: int) -> None:
    if isinstance(index, torch.Tensor) and bool(((index < -size) | (index >= size)).any()):
        raise g.invalid(f"an index is out of range for {size} elements")


@converts("onnx", "GatherElements", since=11)
def gather_elements(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, index = node.require(0), node.require(1)
    axis = axis_of(g, node.int("axis", 0), len(shape(x)))
    _check_within(g, index, shape(x)[axis])
    index = wrapped_index(g, index, shape(x)[axis])
    return wrapping(g, lambda v: g.call(aten.gather.default, v, axis, index), x)


@converts("onnx", "GatherND", since=11)
def gather_nd(g: OnnxBuilder, node: OnnxNode) -> Value:
    """The last axis of the indices holds places along as many axes of the data, after the batch axes."""
    x, index = node.require(0), node.require(1)
    batch = node.int("batch_dims", 0)
    depth = _depth(g, x, index, batch)
    rank = len(shape(index)) - 1
    places = [arange(g, shape(x)[axis], axis=axis, rank=rank) for axis in range(batch)]
    return g.call(aten.index.Tensor, x, places + _columns(g, index, depth))


def _depth(g: OnnxBuilder, x: Value, index: Value, batch: int) -> int:
    """Over how many axes the indices go."""
    data, indices = shape(x), shape(index)
    if not indices or not 0 <= batch < min(len(data), len(indices)) or data[:batch] != indices[:batch]:
        raise g.invalid(f"{batch} batch axes do not fit shapes {list(data)} and {list(indices)}")
    if not 1 <= indices[-1] <= len(data) - batch:
        raise g.invalid(f"indices of {indices[-1]} places do not fit data of shape {list(data)}")
    return indices[-1]


def _columns(g: OnnxBuilder, index: Value, depth: int) -> list[Value]:
    index = cast(g, index, torch.int64)
    return [g.call(aten.select.int, index, len(shape(index)) - 1, i) for i in range(depth)]


# ---- scattering ----

REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@converts("onnx", "Scatter", "ScatterElements", since=9)
def scatter_elements(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, index, updates = node.require(0), node.require(1), node.require(2)
    same_dtype(g, x, updates)
    axis = axis_of(g, node.int("axis", 0), len(shape(x)))
    _check_within(g, index, shape(x)[axis])
    if shape(index) != shape(updates):
        raise g.invalid(f"indices of shape {list(shape(index))} do not fit updates of shape {list(shape(updates))}")
    index = wrapped_index(g, index, shape(x)[axis])
    how = _reduction(g, node)
    if how == "none":
        return wrapping(g, lambda v, u: g.call(aten.scatter.src, v, axis, index, u), x, updates)
    return _scatter_reduced(g, x, axis, index, updates, how)


def _reduction(g: OnnxBuilder, node: OnnxNode) -> str:
    how: str = node.string("reduction", "none")
    if how != "none" and how not in REDUCTIONS:
        raise g.invalid(f"its reduction must be none, {', '.join(REDUCTIONS)}, got {how!r}")
    return how


def _scatter_reduced(g: OnnxBuilder, x: Value, axis: int, index: Value, updates: Value, how: str) -> Value:
    if dtype(x) == torch.uint64 and how in ("max", "min"):
        raise g.unsupported(f"the {how} of uint64 has no kernel in torch")
    return wrapping(g, lambda v, u: g.call(aten.scatter_reduce.two, v, axis, index, u, REDUCTIONS[how]), x, updates)


@converts("onnx", "ScatterND", since=11)
def scatter_nd(g: OnnxBuilder, node: OnnxNode) -> Value:
    """On the data with the indexed axes made one, since torch reduces along one axis."""
    x, index, updates = node.require(0), node.require(1), node.require(2)
    same_dtype(g, x, updates)
    depth = _depth(g, x, index, 0)
    sizes = shape(x)
    if shape(updates) != (*shape(index)[:-1], *sizes[depth:]):
        raise g.invalid(f"updates of shape {list(shape(updates))} do not fit indices of shape {list(shape(index))}")
    how = _reduction(g, node)
    if how == "none":
        places = _columns(g, index, depth)
        return wrapping(g, lambda v, u: g.call(aten.index_put.default, v, places, u), x, updates)
    rows, width = math.prod(sizes[:depth]), math.prod(sizes[depth:])
    places = reshape(g, _linear(g, index, sizes[:depth]), [-1, 1])
    places = g.call(aten.expand.default, places, [shape(places)[0], width])
    flat = reshape(g, updates, [shape(places)[0], width])
    return reshape(g, _scatter_reduced(g, reshape(g, x, [rows, width]), 0, places, flat, how), sizes)


def _linear(g: OnnxBuilder, index: Value, sizes: Sequence[int]) -> Value:
    """Indices over several axes as indices into the elements of these axes."""
    total: Value = torch.zeros([], dtype=torch.int64)
    for axis, column in enumerate(_columns(g, index, len(sizes))):
        _check_within(g, column, sizes[axis])
        column = wrapped_index(g, column, sizes[axis])
        total = g.call(aten.add.Tensor, g.call(aten.mul.Tensor, total, sizes[axis]), column)
    return total


@converts("onnx", "TensorScatter", since=24)
def tensor_scatter(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Updates written into a cache from each sample's write index on, along the sequence axis."""
    cache, update, starts = node.take(3)
    update = node.require(1)
    rank = len(shape(cache))
    axis = axis_of(g, node.int("axis", -2), rank)
    mode = node.string("mode", "linear")
    if mode not in ("linear", "circular"):
        raise g.invalid(f"its mode must be linear or circular, got {mode!r}")
    if axis == 0:
        raise g.invalid("its axis must not be that of the batch, 0")
    places: Value = arange(g, shape(update)[axis], axis=axis, rank=rank)
    if starts is not None:
        first = reshape(g, cast(g, starts, torch.int64), [-1, *[1] * (rank - 1)])
        places = g.call(aten.add.Tensor, places, first)
    if mode == "circular":
        places = g.call(aten.remainder.Scalar, places, shape(cache)[axis])
    places = g.call(aten.expand.default, places, list(shape(update)))
    return wrapping(g, lambda c, u: g.call(aten.scatter.src, c, axis, places, u), cache, update)


# ---- one-hot vectors ----


@converts("onnx", "OneHot", since=9)
def one_hot(g: OnnxBuilder, node: OnnxNode) -> Value:
    """values holds the numbers for off and on. An index outside -depth..depth-1 is off everywhere."""
    index, values = node.require(0), node.require(2)
    number = g.number(node.require(1), "depth")
    if not math.isfinite(number):
        raise g.invalid(f"its depth must be a number, got {number}")
    depth = int(number)
    rank = len(shape(index)) + 1
    axis = axis_of(g, node.int("axis", -1), rank)
    if depth < 0 or shape(values) != (2,):
        raise g.invalid(f"depth {depth} must not be negative, and values of shape {list(shape(values))} must be two")
    bounded(g, [*shape(index), depth], torch.int64)
    index = wrapped_index(g, index, depth)
    index = g.call(aten.unsqueeze.default, index, axis)
    hot = g.call(aten.eq.Tensor, index, arange(g, depth, axis=axis, rank=rank))
    off, on = (g.call(aten.select.int, values, 0, i) for i in range(2))
    return g.call(aten.where.self, hot, on, off)


# ---- results whose shape depends on values: of constants alone ----


@converts("onnx", "Compress", since=9)
def compress(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, condition = node.require(0), g.constant(node.require(1), "condition")
    if condition.dim() != 1:
        raise g.invalid(f"its condition must have one axis, got shape {list(condition.shape)}")
    if not node.has("axis"):
        x = reshape(g, x, [math.prod(shape(x))])
    axis = axis_of(g, node.int("axis", 0), len(shape(x)))
    kept = torch.nonzero(condition[: shape(x)[axis]])[:, 0]
    return g.call(aten.index_select.default, x, axis, kept)


@converts("onnx", "NonZero", since=9)
def non_zero(g: OnnxBuilder, node: OnnxNode) -> Value:
    return computed(g, torch.nonzero, g.constant(node.require(0), "input")).T.contiguous()


@converts("onnx", "Unique", since=11)
def unique(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Values, where each first occurs, which one each element is, and how often each occurs."""
    x = g.constant(node.require(0), "input")
    if node.has("axis"):
        axis = axis_of(g, node.int("axis"), x.dim())
    else:
        axis, x = 0, x.flatten()
    if x.numel() == 0:
        raise g.unsupported("its input has no elements")
    _, inverse = computed(g, lambda: torch.unique(ordered(g, x), return_inverse=True, dim=axis))
    count = int(inverse.max()) + 1
    first = torch.full([count], len(inverse)).scatter_reduce(0, inverse, torch.arange(len(inverse)), "amin")
    if not node.int("sorted", 1):
        order = first.argsort()
        first, inverse = first[order], order.argsort()[inverse]
    return x.index_select(axis, first), first, inverse, torch.bincount(inverse, minlength=count)
