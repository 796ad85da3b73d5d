"""Changes of element type."""

from __future__ import annotations

import torch

from ..graph import Value, dtype
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .tensors import torch_dtype
from .values import cast

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)

E4M3FN_LARGEST = 464.0
"""What is rounded to 448, the greatest float8_e4m3fn: the middle between it and the next step."""


@converts("onnx", "Cast", since=6)
def cast_(g: OnnxBuilder, node: OnnxNode) -> Value:
    return converted(g, node.require(0), torch_dtype(node.int("to"), g.where), bool(node.int("saturate", 1)))


@converts("onnx", "CastLike", since=15)
def cast_like(g: OnnxBuilder, node: OnnxNode) -> Value:
    return converted(g, node.require(0), dtype(node.require(1)), bool(node.int("saturate", 1)))


def converted(g: OnnxBuilder, x: Value, to: torch.dtype, saturate: bool) -> Value:
    """x as dtype `to` by ONNX's rules. saturate: what exceeds an 8-bit float becomes its greatest number, not NaN or
    infinity."""
    if to in FLOAT8:
        x = cast(g, x, torch.float32)
        if saturate:
            x = g.call(aten.clamp.default, x, torch.finfo(to).min, torch.finfo(to).max)
        elif to == torch.float8_e4m3fn:  # torch saturates this type alone
            over = g.call(aten.gt.Scalar, g.call(aten.abs.default, x), E4M3FN_LARGEST)
            x = g.call(aten.where.ScalarSelf, over, float("nan"), x)
    elif dtype(x) in FLOAT8 and not to.is_floating_point:
        x = cast(g, x, torch.float32)
    return cast(g, x, to)


@converts("onnx", "BitCast", since=26)
def bit_cast(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, to = node.require(0), torch_dtype(node.int("to"), g.where)
    if to.itemsize != dtype(x).itemsize:
        raise g.invalid(f"{dtype(x)} and {to} have different widths")
    return x if to == dtype(x) else g.call(aten.view.dtype, x, to)
