"""Pooling."""

from __future__ import annotations

from typing import Any

from ..graph import Value
from ..registry import converts
from .activation import BOUNDS, clamped
from .context import Op, aten
from .conv import paddings
from .reader import ACTIVATIONS

KIND = "Pool2DOptions"


def _window(op: Op) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """kernel, stride, (before, after) of height and width."""
    if op.rank(0) != 4:
        raise op.b.invalid(f"its input must be images (rank 4), got {list(op.shape(0))}")
    kernel = [int(op.option(KIND, "FilterHeight")), int(op.option(KIND, "FilterWidth"))]
    stride = [int(op.option(KIND, "StrideH")), int(op.option(KIND, "StrideW"))]
    sizes = op.shape(0)[1:3]
    pads = paddings(op, KIND, sizes, kernel, stride, [1, 1])
    for size, k, (before, after) in zip(sizes, kernel, pads, strict=True):
        if size + before + after < k:
            raise op.b.invalid(f"its window {kernel} is larger than its input {list(op.shape(0))}")
    return kernel, stride, pads


def _give(op: Op, value: Value) -> None:
    """TFLite pools within one quantization: the integers are those of the input's."""
    name = ACTIVATIONS.get(op.option(KIND, "FusedActivationFunction"), "unknown")
    if name != "NONE":
        if name not in BOUNDS:
            raise op.b.unsupported(f"the fused activation {name} has no kernel in TFLite")
        value = clamped(op, value, *BOUNDS[name])
    op.give_moved(value, True)


def _pool(op: Op, x: Value, target: Any, head: list[Any], tail: list[Any]) -> Value:
    """A pool of aten, which pads both sides alike; head, tail: its arguments before and after ceil_mode.

    Where TFLite pads one more behind, ceil_mode makes the last window reach beyond the end. With stride 1 it does not:
    then both sides are padded like the end, which makes one window too many in front.
    """
    kernel, stride, pads = _window(op)
    odd = [after > before for before, after in pads]
    before, after = ([pair[side] for pair in pads] for side in (0, 1))
    dims = zip(odd, op.shape(0)[1:3], kernel, stride, before, strict=True)
    if not any(odd):
        return op.b.call(target, x, kernel, stride, before, *head, False, *tail)
    if all(s > 1 if o else (n + 2 * b - k) % s == 0 for o, n, k, s, b in dims):
        return op.b.call(target, x, kernel, stride, before, *head, True, *tail)
    y = op.b.call(target, x, kernel, [1, 1], after, *head, False, *tail)
    for dim, (o, s) in enumerate(zip(odd, stride, strict=True), 2):
        if o or s > 1:
            y = op.b.call(aten.slice.Tensor, y, dim, int(o), 2**31 - 1, s)
    return y


@converts("tflite", "MAX_POOL_2D")
def max_pool_2d(op: Op) -> None:
    _give(op, _pool(op, op.real(0, True), aten.max_pool2d.default, [[1, 1]], []))


@converts("tflite", "AVERAGE_POOL_2D")
def average_pool_2d(op: Op) -> None:
    """Padding does not count."""
    _give(op, _pool(op, op.real(0, True), aten.avg_pool2d.default, [], [False]))


@converts("tflite", "L2_POOL_2D")
def l2_pool_2d(op: Op) -> None:
    """The root of the mean square; padding does not count."""
    x = op.real(0, True)
    squares = op.b.call(aten.mul.Tensor, x, x)
    _give(op, op.b.call(aten.sqrt.default, _pool(op, squares, aten.avg_pool2d.default, [], [False])))
