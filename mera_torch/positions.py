"""TFLite's rules of resizing, as tables of source positions for ``torch.ops.mera_torch.resize_nearest`` and
``resize_bilinear``.

All give int32 [outputs] for an extent (height or width) of `inputs` elements that becomes one of `outputs`.
"""

from __future__ import annotations

import numpy as np
import torch

from .library import POSITION_UNIT


def tflite_nearest(inputs: int, outputs: int, align_corners: bool, half_pixel_centers: bool) -> torch.Tensor:
    """Indices, 0 to inputs-1, as RESIZE_NEAREST_NEIGHBOR takes them: float32 arithmetic, its errors included."""
    aligned = align_corners and outputs > 1
    scale = np.float32(inputs - aligned) / np.float32(outputs - aligned)
    at = (np.arange(outputs, dtype=np.float32) + np.float32(0.5 * half_pixel_centers)) * scale
    index = np.floor(at + np.float32(0.5)) if align_corners else np.floor(at)  # positive: half goes up
    return torch.from_numpy(index.clip(0, inputs - 1).astype(np.int32))


def tflite_bilinear(inputs: int, outputs: int, align_corners: bool, half_pixel_centers: bool) -> torch.Tensor:
    """Positions, 0 to 1024*(inputs-1), as the integer RESIZE_BILINEAR takes them: the scale is rounded to 1/1024.

    Over hundreds of outputs that rounding can lead beyond the input, where TFLite reads other memory; here the last
    element goes on.
    """
    aligned = align_corners and outputs > 1
    scale = (POSITION_UNIT * (inputs - aligned) + (outputs - aligned) // 2) // (outputs - aligned)
    at = np.arange(outputs, dtype=np.int64) * scale
    if half_pixel_centers:
        at += scale // 2 - POSITION_UNIT // 2
    return torch.from_numpy(at.clip(0, POSITION_UNIT * (inputs - 1)).astype(np.int32))
