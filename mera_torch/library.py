"""Operators that PyTorch lacks, as ``torch.ops.mera_torch.*``: they can be exported, quantized and compiled.

Resizing by tables: PyTorch has two rules for where a pixel of the result lies in the source, other formats have more of
them, with roundings of their own. A table of source positions expresses them all.
"""

from __future__ import annotations

import torch

NAMESPACES = ("aten", "quantized_decomposed", "mera_torch")
"""The namespaces of torch.ops that graphs and deployments may hold."""

POSITION_UNIT = 1024
"""Positions of resize_bilinear are in 1/1024 of a row or column."""


@torch.library.custom_op("mera_torch::resize_nearest", mutates_args=())
def resize_nearest(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x[n, c, rows[i], columns[j]]; x [N,C,H,W], rows int32 [Ho] of 0 to H-1, columns int32 [Wo] of 0 to W-1."""
    return x[:, :, rows.long()][:, :, :, columns.long()]


@torch.library.custom_op("mera_torch::resize_bilinear", mutates_args=())
def resize_bilinear(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x [N,C,H,W] of a floating dtype, between the pixels around each position.

    rows int32 [Ho] of 0 to 1024*(H-1), columns int32 [Wo] of 0 to 1024*(W-1), in units of 1/1024 row or column.
    """
    for dim, positions in ((2, rows), (3, columns)):
        index = (positions // POSITION_UNIT).long()
        weight = (positions % POSITION_UNIT).to(x.dtype) / POSITION_UNIT
        after = (index + 1).clamp(max=x.shape[dim] - 1)
        weight = weight.view([-1 if d == dim else 1 for d in range(4)])
        x = x.index_select(dim, index) * (1 - weight) + x.index_select(dim, after) * weight
    return x


@resize_nearest.register_fake
@resize_bilinear.register_fake
def _resized(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return x.new_empty([*x.shape[:2], rows.shape[0], columns.shape[0]])
