"""Operators whose result shows the memory of their input: how a change of the one is carried over to the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ..graph import GraphBuilder, Value, shape
from .values import Ref, View

aten: Any = torch.ops.aten

Put = Callable[[Value, Value], Value]


def reshaped(builder: GraphBuilder, x: Ref, sizes: Sequence[int]) -> Ref:
    """x with the sizes, of the same elements in the same order."""
    sizes = list(sizes)

    def show(value: Value) -> Value:
        return value if list(shape(value)) == sizes else builder.call(aten.reshape.default, value, sizes)

    def put(base: Value, value: Value) -> Value:
        return builder.call(aten.reshape.default, value, list(shape(base)))

    found = view(x, View(show, put))
    return found if _one_memory(x.value, found.value) else Ref(found.value, x.q)


def permuted(builder: GraphBuilder, x: Ref, dims: Sequence[int]) -> Ref:
    """Dimension i of the result is dimension dims[i] of x."""
    dims = [d % max(len(dims), 1) for d in dims]
    inverse = [dims.index(i) for i in range(len(dims))]
    return view(
        x,
        View(
            lambda value: builder.call(aten.permute.default, value, dims),
            lambda base, value: builder.call(aten.permute.default, value, inverse),
        ),
    )


def sliced(builder: GraphBuilder, x: Ref, dim: int, start: int | None, end: int | None, step: int = 1) -> Ref:
    """x[..., start:end:step, ...]."""
    if (start or 0, step) == (0, 1) and (end is None or end >= x.shape[dim]):
        return view(x, View(lambda value: value, lambda base, value: value))
    start = start or 0
    return view(
        x,
        View(
            lambda value: builder.call(aten.slice.Tensor, value, dim, start, end, step),
            lambda base, value: builder.call(aten.slice_scatter.default, base, value, dim, start, end, step),
        ),
    )


def selected(builder: GraphBuilder, x: Ref, dim: int, index: int) -> Ref:
    """x[..., index, ...]."""
    return view(
        x,
        View(
            lambda value: builder.call(aten.select.int, value, dim, index),
            lambda base, value: builder.call(aten.select_scatter.default, base, value, dim, index),
        ),
    )


def _one_memory(a: Value, b: Value) -> bool:
    """Whether PyTorch shows one memory for both: reshape copies what it cannot view."""
    cells = {(v.meta["val"] if isinstance(v, fx.Node) else v).untyped_storage()._cdata for v in (a, b)}
    return len(cells) == 1


def view(x: Ref, how: View) -> Ref:
    """A view of x; of a quantized tensor, quantized alike."""
    return Ref(how.show(x.value), x.q, x, how)
