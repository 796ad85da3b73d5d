"""RESIZE_NEAREST_NEIGHBOR and RESIZE_BILINEAR, in each of their three pixel modes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mera_torch import library
from mera_torch.positions import tflite_bilinear, tflite_nearest

from ..graph import Value, dtype
from ..registry import converts
from .context import Op, aten

LIBRARY: Any = torch.ops.mera_torch


def _sizes(op: Op) -> list[int]:
    wanted = op.ints(1, "its size")
    if op.rank(0) != 4 or len(wanted) != 2 or min(wanted) < 1 or 0 in op.shape(0):
        raise op.b.invalid(
            f"images (rank 4) must be resized to two sizes of at least 1, got {list(op.shape(0))}, {wanted}"
        )
    op.listable(*wanted, *op.shape(0)[1:3])
    return wanted


def _modes(op: Op, kind: str) -> tuple[bool, bool]:
    """(align_corners, half_pixel_centers)."""
    align, half = bool(op.option(kind, "AlignCorners")), bool(op.option(kind, "HalfPixelCenters"))
    if align and half:
        raise op.b.invalid("align_corners and half_pixel_centers must not both be set")
    return align, half


@converts("tflite", "RESIZE_NEAREST_NEIGHBOR")
def resize_nearest(op: Op) -> None:
    """One of aten's own resizes where it picks the same pixels."""
    wanted, x, modes = _sizes(op), op.real(0, True), _modes(op, "ResizeNearestNeighborOptions")
    sizes = op.shape(0)[1:3]
    tables = [tflite_nearest(n, w, *modes) for n, w in zip(sizes, wanted, strict=True)]
    for target in (aten.upsample_nearest2d.default, aten._upsample_nearest_exact2d.default):
        if all(torch.equal(_picked(target, n, w), t) for n, w, t in zip(sizes, wanted, tables, strict=True)):
            op.give_moved(op.b.call(target, x, wanted), True)
            return
    op.give_moved(op.b.call(LIBRARY.resize_nearest.default, x, *tables), True)


def _picked(target: Any, size: int, wanted: int) -> torch.Tensor:
    """The pixels that an operator of aten picks along one dimension."""
    ramp = torch.arange(size, dtype=torch.float64).reshape(1, 1, size, 1)
    found: torch.Tensor = target(ramp, [wanted, 1]).flatten().to(torch.int32)
    return found


@converts("tflite", "RESIZE_BILINEAR")
def resize_bilinear(op: Op) -> None:
    """Quantized tensors: by TFLite's table of positions in 1/1024 pixel."""
    wanted, x, modes = _sizes(op), op.real(0, True), _modes(op, "ResizeBilinearOptions")
    sizes = op.shape(0)[1:3]
    exact = all(library.POSITION_UNIT * n % w == 0 for n, w in zip(sizes, wanted, strict=True))
    if not dtype(x).is_floating_point:
        raise op.b.unsupported(f"its input {op.tensor(0)} must be float or quantized")
    if op.c.is_quantized(op.tensor(0)) or (exact and not any(modes)):
        tables = [tflite_bilinear(n, w, *modes) for n, w in zip(sizes, wanted, strict=True)]
        y = op.b.call(LIBRARY.resize_bilinear.default, x, *tables)
    elif any(modes):
        y = op.b.call(aten.upsample_bilinear2d.default, x, wanted, modes[0])
    else:
        y = x
        for dim, (size, count) in enumerate(zip(sizes, wanted, strict=True), 2):
            y = _interpolated(op, y, dim, size, count)
    op.give_moved(y, True)


def _interpolated(op: Op, x: Value, dim: int, size: int, wanted: int) -> Value:
    """Along one dimension: element i of the result lies at i * size / wanted of the input."""
    places = np.arange(wanted, dtype=np.float32) * (np.float32(size) / np.float32(wanted))
    low = np.minimum(np.floor(places).astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    part = torch.from_numpy((places - low).astype(np.float32)).reshape([-1 if d == dim else 1 for d in range(4)])
    a, b = (op.b.call(aten.index_select.default, x, dim, torch.from_numpy(i)) for i in (low, high))
    return op.b.call(aten.add.Tensor, op.b.call(aten.mul.Tensor, a, 1 - part), op.b.call(aten.mul.Tensor, b, part))
