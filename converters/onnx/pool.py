"""Max, average and Lp pooling, global or over windows, and max unpooling."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .quantization import dequantize_like, quantize_like
from .windows import Window, crop, numbers, pad, window_of


def _kernel(g: OnnxBuilder, node: OnnxNode) -> list[int]:
    kernel: list[int] = node.ints("kernel_shape")
    if not 1 <= len(kernel) <= 3 or any(not 1 <= k < 2**31 for k in kernel):
        raise g.unsupported(f"its kernel_shape must be 1 to 3 sizes from 1 on, got {kernel[:8]}")
    return kernel


def _as_images(g: OnnxBuilder, x: Value, w: Window) -> tuple[Value, Window]:
    """A sequence [N, C, L] is an image [N, C, 1, L]."""
    if w.rank != 1:
        return x, w
    x = g.call(aten.unsqueeze.default, x, 2)
    return x, Window([1, *w.kernel], [1, *w.stride], [1, *w.dilation], [0, *w.begin], [0, *w.end], [1, *w.output])


def _back(g: OnnxBuilder, y: Value, rank: int) -> Value:
    return g.call(aten.squeeze.dim, y, 2) if rank == 1 else y


def _overhang(x: Value, w: Window) -> list[int]:
    """Padding behind the data that the windows reach: more than w.end where sizes are rounded up."""
    sizes = shape(x)[2:]
    return [
        max(0, (o - 1) * s + e - size - b)
        for o, s, e, size, b in zip(w.output, w.stride, w.extents, sizes, w.begin, strict=True)
    ]


def _native(x: Value, w: Window, symmetric: bool = False) -> bool | None:
    """PyTorch's ceil_mode with which its pools visit these windows, padded by w.begin on both sides; None if neither
    does. Padding that no result counts may differ at the end; `symmetric` demands that it does not."""
    if (symmetric and not w.symmetric) or any(2 * b > k for b, k in zip(w.begin, w.kernel, strict=True)):
        return None
    for ceil in (False, True):
        steps = [_steps(*args, ceil) for args in _along(shape(x)[2:], w)]
        if steps == w.output:
            return ceil
    return None


def _along(sizes: Sequence[int], w: Window) -> Iterator[tuple[int, int, int, int]]:
    return zip(sizes, w.extents, w.stride, w.begin, strict=True)


def _steps(size: int, extent: int, stride: int, padding: int, ceil: bool) -> int:
    """Windows that PyTorch's pools visit along one dimension."""
    span = size + 2 * padding - extent
    count = span // stride + 1
    return count + int(ceil and bool(span % stride) and count * stride < size + padding)


# ---- max ----


@converts("onnx", "MaxPool")
def max_pool(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    if node.wants(1):
        return _max_pool_with_indices(g, node, x)
    if not dtype(x).is_floating_point:
        return quantize_like(g, _max_pool(g, node, dequantize_like(g, x)), x)
    return _max_pool(g, node, x)


def _max_pool(g: OnnxBuilder, node: OnnxNode, x: Value) -> Value:
    w = window_of(g, node, x, _kernel(g, node))
    rank = w.rank
    x, w = _as_images(g, x, w)
    pool = aten.max_pool2d.default if w.rank == 2 else aten.max_pool3d.default
    ceil = _native(x, w)
    wider = _wider(x, w) if ceil is None else None
    if ceil is not None:
        y = g.call(pool, x, w.kernel, w.stride, w.begin, w.dilation, ceil)
    elif wider is not None:
        y = g.call(pool, x, w.kernel, w.stride, wider, w.dilation, False)
        for i in range(w.rank):
            y = crop(g, y, 2 + i, (wider[i] - w.begin[i]) // w.stride[i], w.output[i])
    else:
        padded = pad(g, x, w.begin, _overhang(x, w), -math.inf)
        y = g.call(pool, padded, w.kernel, w.stride, [0] * w.rank, w.dilation, False)
    return _back(g, y, rank)


def _wider(x: Value, w: Window) -> list[int] | None:
    """Padding of both sides with which a pool visits these windows and more; None if there is none."""
    found = [max(b, e) for b, e in zip(w.begin, _overhang(x, w), strict=True)]
    fits = all(2 * p <= k and (p - b) % s == 0 for p, k, b, s in zip(found, w.kernel, w.begin, w.stride, strict=True))
    return found if fits else None


def _max_pool_with_indices(g: OnnxBuilder, node: OnnxNode, x: Value) -> Value:
    """The second result: the position of each maximum in the whole flattened input."""
    if not dtype(x).is_floating_point:
        raise g.unsupported("indices of a maximum over integers are not supported")
    column_major = bool(node.int("storage_order", 0))
    w = window_of(g, node, x, _kernel(g, node))
    rank = w.rank
    x, w = _as_images(g, x, w)
    sizes = shape(x)[2:]
    behind = _overhang(x, w)
    padded = pad(g, x, w.begin, behind, -math.inf)
    target = aten.max_pool2d_with_indices.default if w.rank == 2 else aten.max_pool3d_with_indices.default
    both = g.call(target, padded, w.kernel, w.stride, [0] * w.rank, w.dilation, False)
    y, found = take(g, both, 0), take(g, both, 1)
    whole = [b + size + e for b, size, e in zip(w.begin, sizes, behind, strict=True)]
    steps = [math.prod(sizes[:i]) for i in range(w.rank)] if column_major else _strides(sizes)
    index: Value = _image_offsets(shape(x))
    for stride, size, begin, step in zip(_strides(whole), whole, w.begin, steps, strict=True):
        place = g.call(aten.remainder.Scalar, g.call(aten.floor_divide.default, found, stride), size)
        index = g.call(aten.add.Tensor, g.call(aten.mul.Tensor, g.call(aten.sub.Tensor, place, begin), step), index)
    return _back(g, y, rank), _back(g, index, rank)


def _strides(sizes: Any) -> list[int]:
    return [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]


def _image_offsets(sizes: Any) -> torch.Tensor:
    """Where the planes of [N, C, spatial...] begin, [N, C, 1...]."""
    planes: torch.Tensor = torch.arange(sizes[0] * sizes[1]) * math.prod(sizes[2:])
    return planes.reshape([sizes[0], sizes[1], *[1] * (len(sizes) - 2)])


def take(g: OnnxBuilder, results: Value, index: int) -> Value:
    """One of several results."""
    return results[index] if isinstance(results, tuple | list) else g.call(operator.getitem, results, index)


@converts("onnx", "GlobalMaxPool")
def global_max_pool(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    _spatial(g, x)
    if len(shape(x)) == 4:
        kernel = list(shape(x)[2:])
        return g.call(aten.max_pool2d.default, x, kernel, kernel, [0, 0], [1, 1], False)
    return g.call(aten.amax.default, x, list(range(2, len(shape(x)))), True)


@converts("onnx", "MaxUnpool")
def max_unpool(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, indices, output = node.take(3)
    kernel = _kernel(g, node)
    rank, sizes = len(kernel), shape(x)
    if len(sizes) != rank + 2 or indices is None or shape(indices) != sizes:
        raise g.invalid(f"its input must be of rank {rank + 2} and its indices of the same shape")
    stride = numbers(g, node, "strides", [1] * rank, 1)
    pads = numbers(g, node, "pads", [0] * 2 * rank, 0)
    inferred = [(sizes[2 + i] - 1) * stride[i] + kernel[i] - pads[i] - pads[rank + i] for i in range(rank)]
    whole = [*sizes[:2], *inferred]
    if any(s < 1 for s in whole):
        raise g.invalid(f"its result would have the shape {whole}")
    zeros = g.call(aten.new_zeros.default, x, [math.prod(whole)])
    flat = [g.call(aten.reshape.default, v, [-1]) for v in (indices, x)]
    y = g.call(aten.reshape.default, g.call(aten.scatter.src, zeros, 0, *flat), whole)
    if output is None:
        return y
    final = g.int_list(output, "output_shape")
    behind = [o - s for o, s in zip(final, whole, strict=False)]
    if len(final) != len(whole) or any(b < 0 for b in behind):
        raise g.invalid(f"its output_shape {final} must not be smaller than {whole}")
    return pad(g, y, [0] * len(whole), behind)


# ---- average ----


@converts("onnx", "AveragePool")
def average_pool(g: OnnxBuilder, node: OnnxNode) -> Value:
    return average(g, node, node.require(0))


def average(g: OnnxBuilder, node: OnnxNode, x: Value) -> Value:
    """The average pooling that the node's attributes describe, of x [N, C, spatial...]."""
    w = window_of(g, node, x, _kernel(g, node))
    rank = w.rank
    x, w = _as_images(g, x, w)
    return _back(g, _average(g, x, w, bool(node.int("count_include_pad", 0))), rank)


def _average(g: OnnxBuilder, x: Value, w: Window, include_pad: bool) -> Value:
    pool = aten.avg_pool2d.default if w.rank == 2 else aten.avg_pool3d.default
    ceil = _native(x, w, symmetric=include_pad)
    if ceil is not None and w.extents == w.kernel:
        return g.call(pool, x, w.kernel, w.stride, w.begin, ceil, include_pad, None)
    behind = _overhang(x, w)
    counted = torch.ones(1, 1, *shape(x)[2:], dtype=dtype(x))
    if include_pad:  # what lies beyond the stated padding is not counted
        stated = [min(e, b) for e, b in zip(w.end, behind, strict=True)]
        counted = pad(g, counted, w.begin, stated, 1.0)
        behind_counted = [b - s for b, s in zip(behind, stated, strict=True)]
        counted = pad(g, counted, [0] * w.rank, behind_counted)
    else:
        counted = pad(g, counted, w.begin, behind)
    share = _plain_average(g, counted, w, pool)
    y = _plain_average(g, pad(g, x, w.begin, behind), w, pool)
    return y if bool((share == 1).all()) else g.call(aten.mul.Tensor, y, share.reciprocal())


def _plain_average(g: OnnxBuilder, x: Value, w: Window, pool: Any) -> Any:
    """The average over every window of x, which is padded already."""
    if w.extents == w.kernel:
        return g.call(pool, x, w.kernel, w.stride, [0] * w.rank, False, True, None)
    channels = shape(x)[1]
    weight = torch.full((channels, 1, *w.kernel), 1 / math.prod(w.kernel), dtype=dtype(x))
    zeros = [0] * w.rank
    return g.call(aten.convolution.default, x, weight, None, w.stride, zeros, w.dilation, False, zeros, channels)


@converts("onnx", "GlobalAveragePool")
def global_average_pool(g: OnnxBuilder, node: OnnxNode) -> Value:
    return global_average(g, node.require(0))


def global_average(g: OnnxBuilder, x: Value) -> Value:
    """The mean over all spatial dimensions, which stay with size 1."""
    _spatial(g, x)
    return g.call(aten.mean.dim, x, list(range(2, len(shape(x)))), True)


def _spatial(g: OnnxBuilder, x: Value) -> None:
    if len(shape(x)) < 3:
        raise g.invalid(f"its input must be [N, C, spatial...], got shape {list(shape(x))}")


# ---- Lp ----


def _power(g: OnnxBuilder, node: OnnxNode) -> int:
    p: int = node.int("p", 2)
    if p < 1:
        raise g.invalid(f"its p must be from 1 on, got {p}")
    return p


@converts("onnx", "LpPool")
def lp_pool(g: OnnxBuilder, node: OnnxNode) -> Value:
    """(sum of |x|^p)^(1/p): padding counts as zeros."""
    x, p = node.require(0), _power(g, node)
    w = window_of(g, node, x, _kernel(g, node))
    rank = w.rank
    x, w = _as_images(g, g.call(aten.pow.Tensor_Scalar, g.call(aten.abs.default, x), p), w)
    pool = aten.avg_pool2d.default if w.rank == 2 else aten.avg_pool3d.default
    y = _plain_average(g, pad(g, x, w.begin, _overhang(x, w)), w, pool)
    y = g.call(aten.pow.Tensor_Scalar, g.call(aten.mul.Tensor, y, float(math.prod(w.kernel))), 1 / p)
    return _back(g, y, rank)


@converts("onnx", "GlobalLpPool")
def global_lp_pool(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    _spatial(g, x)
    return g.call(aten.linalg_vector_norm.default, x, _power(g, node), list(range(2, len(shape(x)))), True)
