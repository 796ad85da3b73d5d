"""Reductions, arg-max, top-k, cumulative sums and products, einsum and determinants."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .values import axes_of, axis_of, bounded, cast, cut, ordered, ordering, reshape, unordered, whole

REDUCTIONS: dict[str, Callable[[OnnxBuilder, Value, list[int], bool], Value]] = {}


def reduction(name: str) -> Callable[[Callable[..., Value]], Callable[..., Value]]:
    """Registers the reduction of x over the (one or more) axes; its result is of x's type or cast to it."""

    def register(function: Callable[..., Value]) -> Callable[..., Value]:
        REDUCTIONS[name] = function
        return function

    return register


@reduction("ReduceSum")
def _sum(g: OnnxBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    if dtype(x).is_floating_point:
        return g.call(aten.sum.dim_IntList, x, axes, keep)
    return g.call(aten.sum.dim_IntList, cast(g, x, torch.int64), axes, keep, dtype=torch.int64)


@reduction("ReduceMean")
def _mean(g: OnnxBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    """The mean of integers is rounded toward zero."""
    if dtype(x).is_floating_point:
        return g.call(aten.mean.dim, x, axes, keep)
    count = math.prod(shape(x)[axis] for axis in axes)
    if count == 0:
        raise g.invalid("the mean of no integers is not defined")
    return g.call(aten.div.Tensor_mode, _sum(g, x, axes, keep), count, rounding_mode="trunc")


@reduction("ReduceProd")
def _prod(g: OnnxBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    kind = dtype(x) if dtype(x).is_floating_point else torch.int64
    x = cast(g, x, kind)
    for axis in sorted(axes, reverse=True):
        x = g.call(aten.prod.dim_int, x, axis, keep, dtype=kind)
    return x


@reduction("ReduceMax")
def _max(g: OnnxBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    return _extreme(g, x, axes, keep, largest=True)


@reduction("ReduceMin")
def _min(g: OnnxBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    return _extreme(g, x, axes, keep, largest=False)


def _extreme(g: OnnxBuilder, x: Value, axes: list[int], keep: bool, largest: bool) -> Value:
    """Of an empty set, the type's least (greatest) value."""
    if any(shape(x)[axis] == 0 for axis in axes):
        return _full(g, _reduced(shape(x), axes, keep), _limit(dtype(x), least=largest), dtype(x))
    target = aten.amax.default if largest else aten.amin.default
    return ordering(g, lambda v: g.call(target, v, axes, keep), x)


def _limit(kind: torch.dtype, least: bool) -> float | int | bool:
    if kind == torch.bool:
        return not least
    if kind.is_floating_point:
        return -math.inf if least else math.inf
    return torch.iinfo(kind).min if least else torch.iinfo(kind).max


def _full(g: OnnxBuilder, sizes: list[int], number: float | int | bool, kind: torch.dtype) -> torch.Tensor:
    bounded(g, sizes, kind)
    return torch.full(sizes, number, dtype=kind)


def _reduced(sizes: tuple[int, ...], axes: list[int], keep: bool) -> list[int]:
    if keep:
        return [1 if axis in axes else n for axis, n in enumerate(sizes)]
    return [n for axis, n in enumerate(sizes) if axis not in axes]


@reduction("ReduceL1")
def _l1(g: OnnxBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    return _sum(g, g.call(aten.abs.default, x) if dtype(x).is_signed else x, axes, keep)


@reduction("ReduceL2")
def _l2(g: OnnxBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    return g.call(aten.sqrt.default, _sum_square(g, _as_float(g, x), axes, keep))


@reduction("ReduceSumSquare")
def _sum_square(g: OnnxBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    x = x if dtype(x).is_floating_point else cast(g, x, torch.int64)
    return _sum(g, g.call(aten.mul.Tensor, x, x), axes, keep)


@reduction("ReduceLogSum")
def _log_sum(g: OnnxBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    return g.call(aten.log.default, _sum(g, _as_float(g, x), axes, keep))


@reduction("ReduceLogSumExp")
def _log_sum_exp(g: OnnxBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    x = _as_float(g, x)
    if any(shape(x)[axis] == 0 for axis in axes):
        return _full(g, _reduced(shape(x), axes, keep), -math.inf, dtype(x))
    return g.call(aten.logsumexp.default, x, axes, keep)


def _as_float(g: OnnxBuilder, x: Value) -> Value:
    return x if dtype(x).is_floating_point else cast(g, x, torch.float64)


ELEMENTWISE: dict[str, Callable[[OnnxBuilder, Value], Value]] = {
    "ReduceL1": lambda g, x: g.call(aten.abs.default, x) if dtype(x).is_signed else x,
    "ReduceL2": lambda g, x: g.call(aten.abs.default, x) if dtype(x).is_signed else x,
    "ReduceLogSum": lambda g, x: g.call(aten.log.default, _as_float(g, x)),
    "ReduceSumSquare": lambda g, x: g.call(aten.mul.Tensor, x, x),
}
"""What remains of a reduction over no axes, where that is not the identity."""


@converts("onnx", *REDUCTIONS, since=1)
def reduce(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Axes are an attribute until opset 17 (ReduceSum: 12), an input since. No axes: all of them, or none if
    noop_with_empty_axes says so."""
    x = node.require(0)
    axes = _axes(g, node)
    rank = len(shape(x))
    if not axes and node.int("noop_with_empty_axes", 0):
        rest = ELEMENTWISE.get(node.op)
        return x if rest is None else cast(g, rest(g, x), dtype(x))
    axes = axes_of(g, axes or range(rank), rank)
    keep = bool(node.int("keepdims", 1))
    if not axes:
        one = reshape(g, x, [1])
        return reshape(g, cast(g, REDUCTIONS[node.op](g, one, [0], True), dtype(x)), [])
    return cast(g, REDUCTIONS[node.op](g, x, axes, keep), dtype(x))


def _axes(g: OnnxBuilder, node: OnnxNode) -> list[int]:
    if node.opset < (13 if node.op == "ReduceSum" else 18):
        axes: list[int] = node.ints("axes", [])
        return axes
    given = node.optional(1)
    return [] if given is None else g.int_list(given, "axes")


# ---- positions of extremes ----


@converts("onnx", "ArgMax", "ArgMin", since=1)
def arg_max_min(g: OnnxBuilder, node: OnnxNode) -> Value:
    """The first of equals, or the last if select_last_index says so."""
    x = node.require(0)
    if not shape(x):
        return torch.zeros([], dtype=torch.int64)
    axis = axis_of(g, node.int("axis", 0), len(shape(x)))
    size = shape(x)[axis]
    if size == 0:
        raise g.invalid(f"axis {axis} has no elements")
    last = bool(node.int("select_last_index", 0))
    x = ordered(g, x)
    x = g.call(aten.flip.default, x, [axis]) if last else x
    target = aten.argmax.default if node.op == "ArgMax" else aten.argmin.default
    index = g.call(target, x, axis, bool(node.int("keepdims", 1)))
    return g.call(aten.rsub.Scalar, index, size - 1) if last else index


@converts("onnx", "TopK", since=1, until=9)
def top_k_attribute(g: OnnxBuilder, node: OnnxNode) -> Value:
    return _top_k(g, node, node.int("k"))


@converts("onnx", "TopK", since=10)
def top_k(g: OnnxBuilder, node: OnnxNode) -> Value:
    return _top_k(g, node, whole(g, node.require(1), "k"))


def _top_k(g: OnnxBuilder, node: OnnxNode, k: int) -> Value:
    """Values and indices; of equal values the one with the lower index comes first."""
    x = node.require(0)
    axis = axis_of(g, node.int("axis", -1), len(shape(x)))
    if not 0 <= k <= shape(x)[axis]:
        raise g.invalid(f"k is {k}, and axis {axis} has {shape(x)[axis]} elements")
    found = g.call(aten.sort.stable, ordered(g, x), stable=True, dim=axis, descending=bool(node.int("largest", 1)))
    values, indices = (cut(g, item(g, found, i), axis, 0, k) for i in range(2))
    return unordered(g, values, dtype(x)), indices


def item(g: OnnxBuilder, results: Value, index: int) -> Value:
    """One of the results of an operator that has several."""
    return results[index] if isinstance(results, tuple | list) else g.call(operator.getitem, results, index)


# ---- running totals ----


@converts("onnx", "CumSum", since=11)
def cum_sum(g: OnnxBuilder, node: OnnxNode) -> Value:
    return _running(g, node, aten.cumsum.default, 0)


@converts("onnx", "CumProd", since=26)
def cum_prod(g: OnnxBuilder, node: OnnxNode) -> Value:
    return _running(g, node, aten.cumprod.default, 1)


def _running(g: OnnxBuilder, node: OnnxNode, target: Callable[..., Value], first: int) -> Value:
    x = node.require(0)
    axis = axis_of(g, whole(g, node.require(1), "axis"), len(shape(x)))
    kind = dtype(x) if dtype(x).is_floating_point else torch.int64
    y = cast(g, x, kind)
    backward = bool(node.int("reverse", 0))
    y = g.call(aten.flip.default, y, [axis]) if backward else y
    if node.int("exclusive", 0):
        y = cut(g, y, axis, 0, max(shape(y)[axis] - 1, 0))
        pads = [0] * (2 * len(shape(x)))
        pads[2 * (len(shape(x)) - 1 - axis)] = min(shape(x)[axis], 1)
        y = g.call(aten.constant_pad_nd.default, y, pads, first)
    y = g.call(target, y, axis, dtype=kind)
    return cast(g, g.call(aten.flip.default, y, [axis]) if backward else y, dtype(x))


# ---- sums of products ----


@converts("onnx", "Einsum", since=12)
def einsum(g: OnnxBuilder, node: OnnxNode) -> Value:
    values = [node.require(i) for i in range(len(node.inputs))]
    return g.call(aten.einsum.default, node.string("equation").replace(" ", ""), values)


@converts("onnx", "Det", since=11)
def det(g: OnnxBuilder, node: OnnxNode) -> Value:
    return g.call(aten.linalg_det.default, node.require(0))
