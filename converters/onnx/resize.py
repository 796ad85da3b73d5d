"""Resize and Upsample. Resizing is separable: along each axis every result is a fixed weighted sum of the inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..graph import LARGEST, Value, dtype, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .quantization import dequantize_like, quantize_like
from .values import axes_of, permute

LARGEST_MATRIX = 2**24
"""Elements of the matrix of weights of one axis."""


@dataclass(frozen=True)
class Resizing:
    """How one axis is resized: coordinate i of the result is at `place(i)` of the input."""

    axis: int
    size: int
    result: int
    scale: float
    start: float = 0.0
    end: float = 1.0


@converts("onnx", "Upsample", since=7, until=9)
def upsample(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    if node.opset < 9:
        scales = node.floats("scales")
    else:
        scales = [float(s) for s in g.constant(node.require(1), "scales").flatten().tolist()]
    axes = _by_scales(g, x, list(range(len(shape(x)))), scales)
    return _resize(g, x, axes, node.string("mode", "nearest"), "asymmetric", "floor")


@converts("onnx", "Resize", since=10, until=10)
def resize_10(g: OnnxBuilder, node: OnnxNode) -> Value:
    """The version whose coordinates ONNX did not define: as ONNX Runtime computes them."""
    x = node.require(0)
    scales = [float(s) for s in g.constant(node.require(1), "scales").flatten().tolist()]
    axes = _by_scales(g, x, list(range(len(shape(x)))), scales)
    return _resize(g, x, axes, node.string("mode", "nearest"), "asymmetric", "simple")


@converts("onnx", "Resize", since=11)
def resize(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, roi, scales, sizes = node.take(4)
    transformation = node.string("coordinate_transformation_mode", "half_pixel")
    over = axes_of(g, node.ints("axes", list(range(len(shape(x))))), len(shape(x)))
    factors = [] if scales is None else [float(s) for s in g.constant(scales, "scales").flatten().tolist()]
    if factors and sizes is not None:
        raise g.invalid("it has both scales and sizes")
    if factors:
        axes = _by_scales(g, x, over, factors)
    elif sizes is not None:
        policy = node.string("keep_aspect_ratio_policy", "stretch")
        axes = _by_sizes(g, x, over, g.int_list(sizes, "sizes"), policy)
    else:
        raise g.invalid("it has neither scales nor sizes")
    if transformation == "tf_crop_and_resize":
        if roi is None:
            raise g.invalid("its roi is missing")
        region = [float(r) for r in g.constant(roi, "roi").flatten().tolist()]
        if len(region) != 2 * len(axes):
            raise g.invalid(f"its roi must have {2 * len(axes)} numbers, got {len(region)}")
        axes = [
            Resizing(a.axis, a.size, a.result, a.scale, region[i], region[len(axes) + i]) for i, a in enumerate(axes)
        ]
    return _resize(
        g, x, axes, node.string("mode", "nearest"), transformation, node.string("nearest_mode", "round_prefer_floor"),
        cubic=node.float("cubic_coeff_a", -0.75), exclude_outside=bool(node.int("exclude_outside", 0)),
        antialias=bool(node.int("antialias", 0)), outside=node.float("extrapolation_value", 0.0),
    )  # fmt: skip


# ---- sizes ----


def _by_scales(g: OnnxBuilder, x: Value, over: Sequence[int], scales: Sequence[float]) -> list[Resizing]:
    if len(scales) != len(over) or not all(0 < s < 2**31 for s in scales):
        raise g.invalid(f"its scales must be {len(over)} positive numbers, got {list(scales)[:8]}")
    sizes = shape(x)
    return [Resizing(a, sizes[a], math.floor(sizes[a] * s), s) for a, s in zip(over, scales, strict=True)]


def _by_sizes(g: OnnxBuilder, x: Value, over: Sequence[int], wanted: Sequence[int], policy: str) -> list[Resizing]:
    sizes = shape(x)
    if len(wanted) != len(over) or any(not 0 < w < 2**31 for w in wanted) or any(sizes[a] < 1 for a in over):
        raise g.invalid(f"its sizes must be {len(over)} positive numbers, got {list(wanted)[:8]}")
    scales = [w / sizes[a] for a, w in zip(over, wanted, strict=True)]
    if policy == "stretch":
        return [Resizing(a, sizes[a], w, s) for a, w, s in zip(over, wanted, scales, strict=True)]
    if policy not in ("not_larger", "not_smaller"):
        raise g.invalid(f"its keep_aspect_ratio_policy must be stretch, not_larger or not_smaller, got {policy!r}")
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [Resizing(a, sizes[a], math.floor(scale * sizes[a] + 0.5), scale) for a in over]


# ---- coordinates ----


def _half_pixel(i: np.ndarray, a: Resizing) -> np.ndarray:
    return (i + 0.5) / a.scale - 0.5


def _pytorch_half_pixel(i: np.ndarray, a: Resizing) -> np.ndarray:
    return _half_pixel(i, a) if a.scale * a.size != 1 else np.full_like(i, -0.5)


def _half_pixel_symmetric(i: np.ndarray, a: Resizing) -> np.ndarray:
    return a.size / 2 * (1 - a.result / (a.scale * a.size)) + _half_pixel(i, a)


def _align_corners(i: np.ndarray, a: Resizing) -> np.ndarray:
    whole = a.scale * a.size
    return i * (a.size - 1) / (whole - 1) if whole != 1 else np.zeros_like(i)


def _asymmetric(i: np.ndarray, a: Resizing) -> np.ndarray:
    return i / a.scale


def _tf_half_pixel(i: np.ndarray, a: Resizing) -> np.ndarray:
    return (i + 0.5) / a.scale


def _crop(i: np.ndarray, a: Resizing) -> np.ndarray:
    whole, last = a.scale * a.size, a.size - 1
    if whole == 1:
        return np.full_like(i, (a.end + a.start) * last / 2)
    return a.start * last + i * (a.end - a.start) * last / (whole - 1)


COORDINATES: dict[str, Callable[[np.ndarray, Resizing], np.ndarray]] = {
    "half_pixel": _half_pixel,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
    "tf_half_pixel_for_nn": _tf_half_pixel,
    "tf_crop_and_resize": _crop,
}

ROUNDINGS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "round_prefer_floor": lambda x, scale: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x, scale: np.floor(x + 0.5),
    "floor": lambda x, scale: np.floor(x),
    "ceil": lambda x, scale: np.ceil(x),
    "simple": lambda x, scale: np.ceil(x) if scale < 1 else np.floor(x),
}


# ---- resizing ----


def _resize(
    g: OnnxBuilder, x: Value, axes: Sequence[Resizing], mode: str, transformation: str, nearest: str,
    cubic: float = -0.75, exclude_outside: bool = False, antialias: bool = False, outside: float = 0.0,
) -> Value:  # fmt: skip
    if transformation not in COORDINATES:
        raise g.unsupported(f"coordinate_transformation_mode {transformation!r} is not known")
    if mode not in ("nearest", "linear", "cubic") or nearest not in ROUNDINGS:
        raise g.unsupported(f"mode {mode!r} with nearest_mode {nearest!r} is not known")
    if mode == "nearest" and antialias:
        raise g.invalid("it asks for antialias, which the nearest mode does not have")
    _check_sizes(g, x, axes)
    cropped = transformation == "tf_crop_and_resize"
    axes = [a for a in axes if a.size != a.result or a.scale != 1 or (cropped and (a.start, a.end) != (0, 1))]
    places = [COORDINATES[transformation](np.arange(a.result, dtype=np.float64), a) for a in axes]
    if mode == "nearest":
        y = _nearest(g, x, axes, [ROUNDINGS[nearest](p, a.scale) for p, a in zip(places, axes, strict=True)])
    elif not dtype(x).is_floating_point:
        again = _resize(g, dequantize_like(g, x), axes, mode, transformation, nearest, cubic, exclude_outside,
                        antialias, outside)  # fmt: skip
        return quantize_like(g, again, x)
    else:
        if any(a.size * a.result > LARGEST_MATRIX for a in axes):
            raise g.unsupported(f"it interpolates from {list(shape(x))}, which takes too large matrices")
        kernel = _Kernel(mode == "cubic", cubic, antialias, exclude_outside)
        y = _weighted(g, x, axes, [kernel.matrix(p, a) for p, a in zip(places, axes, strict=True)], mode)
    return _outside(g, y, axes, places, outside) if cropped else y


def _check_sizes(g: OnnxBuilder, x: Value, axes: Sequence[Resizing]) -> None:
    """Before anything of these sizes is made."""
    final = list(shape(x))
    for a in axes:
        final[a.axis] = a.result
        if a.size < 1 or a.result < 1:
            raise g.invalid(f"it would resize axis {a.axis} from {a.size} to {a.result}")
    if math.prod(final) * dtype(x).itemsize > LARGEST:
        raise g.invalid(f"its result of shape {final} is larger than {LARGEST >> 30} GiB")


def _nearest(g: OnnxBuilder, x: Value, axes: Sequence[Resizing], indices: Sequence[np.ndarray]) -> Value:
    """PyTorch's upsampling where it takes the same elements, else a choice of indices for each axis."""
    chosen = [np.clip(i, 0, a.size - 1).astype(np.int64) for i, a in zip(indices, axes, strict=True)]
    plain = all(np.array_equal(i, np.arange(a.result) * a.size // a.result) for i, a in zip(chosen, axes, strict=True))
    if plain and axes and len(shape(x)) == 4 and {a.axis for a in axes} <= {2, 3} and dtype(x).is_floating_point:
        return g.call(aten.upsample_nearest2d.vec, x, _image_size(x, axes), None)
    for a, index in zip(axes, chosen, strict=True):
        x = g.call(aten.index_select.default, x, a.axis, torch.from_numpy(index))
    return x


def _image_size(x: Value, axes: Sequence[Resizing]) -> list[int]:
    results = {a.axis: a.result for a in axes}
    return [results.get(axis, shape(x)[axis]) for axis in (2, 3)]


@dataclass(frozen=True)
class _Kernel:
    cubic: bool
    coefficient: float
    antialias: bool
    exclude_outside: bool

    def matrix(self, places: np.ndarray, a: Resizing) -> torch.Tensor:
        """[result, size] weights (float32): linear interpolation, or Keys' cubic convolution of the coefficient."""
        squeeze = min(a.scale, 1.0) if self.antialias else 1.0
        reach = math.ceil((2 if self.cubic else 1) / squeeze)
        taps = np.floor(places)[:, None] + np.arange(1 - reach, reach + 1)
        weights = self._weight(np.abs(taps - places[:, None]) * squeeze)
        if self.antialias:
            weights = weights / weights.sum(1, keepdims=True)
        if self.exclude_outside:
            weights = np.where((taps < 0) | (taps >= a.size), 0, weights)
            total = weights.sum(1, keepdims=True)
            weights = weights / np.where(total == 0, 1, total)
        found = np.zeros((a.result, a.size))
        columns = np.clip(taps, 0, a.size - 1).astype(np.int64)
        np.add.at(found, (np.arange(a.result)[:, None], columns), weights)
        return torch.from_numpy(found).to(torch.float32)

    def _weight(self, x: np.ndarray) -> Any:
        """The weight of an element at distance x."""
        if not self.cubic:
            return 1 - np.minimum(x, 1)
        c = self.coefficient
        near = ((c + 2) * x - (c + 3)) * x * x + 1
        far = ((c * x - 5 * c) * x + 8 * c) * x - 4 * c
        return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _weighted(g: OnnxBuilder, x: Value, axes: Sequence[Resizing], matrices: Sequence[torch.Tensor], mode: str) -> Value:
    """PyTorch's bilinear upsampling where it has the same weights, else a product for each axis."""
    rank = len(shape(x))
    if mode == "linear" and rank == 4 and axes and {a.axis for a in axes} <= {2, 3}:
        for corners in (False, True):
            if all(_is_interpolation(m, corners) for m in matrices):
                return g.call(aten.upsample_bilinear2d.vec, x, _image_size(x, axes), corners, None)
    for a, matrix in zip(axes, matrices, strict=True):
        last = [*(i for i in range(rank) if i != a.axis), a.axis]
        back = [last.index(i) for i in range(rank)]
        x = permute(g, g.call(aten.linear.default, permute(g, x, last), matrix.to(dtype(x))), back)
    return x


def _is_interpolation(matrix: torch.Tensor, corners: bool) -> bool:
    result, size = matrix.shape
    theirs = F.interpolate(torch.eye(size)[None], size=result, mode="linear", align_corners=corners)[0].t()
    return torch.allclose(matrix, theirs, rtol=0, atol=1e-5)


def _outside(g: OnnxBuilder, y: Value, axes: Sequence[Resizing], places: Sequence[np.ndarray], value: float) -> Value:
    """The extrapolation value wherever an axis' coordinate lies outside the input."""
    for a, place in zip(axes, places, strict=True):
        beyond = torch.from_numpy((place < 0) | (place > a.size - 1))
        if bool(beyond.any()):
            beyond = beyond.reshape([-1 if i == a.axis else 1 for i in range(len(shape(y)))])
            y = g.call(aten.masked_fill.Scalar, y, beyond, value)
    return y
