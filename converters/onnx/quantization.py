"""QuantizeLinear and DequantizeLinear, and what stands for them in the graph.

Every quantized operator is dequantize -> float operator -> quantize, which the compiler folds into one exact
operator on integers. Weights and biases stay integers with a dequantize.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from ..graph import Value, dtype, is_constant, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten, qd
from .tensors import NARROW, torch_dtype
from .values import axis_of, cast, reshape

_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)


class Affine(NamedTuple):
    """real = scale * (q - zero_point). One each, or one for each index of `axis`, or for each block along it."""

    scale: torch.Tensor
    zero_point: torch.Tensor
    axis: int | None = None
    block: int = 0


# ---- QuantizeLinear, DequantizeLinear ----


@converts("onnx", "QuantizeLinear", "com.microsoft.QuantizeLinear")
def quantize_linear(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, scale, zero_point = node.take(3)
    scale = node.require(1) if scale is None else scale
    to = _quantized_dtype(g, node, zero_point)
    x = cast(g, x, torch.float32) if dtype(x) != torch.float64 else x
    if to in _INTEGERS and _is_computed(scale, zero_point):
        return _quantize_dynamically(g, x, scale, zero_point, to)
    return quantize(g, x, _affine(g, node, x, scale, zero_point, to), to, saturate=bool(node.int("saturate", 1)))


def _quantized_dtype(g: OnnxBuilder, node: OnnxNode, zero_point: Value | None) -> torch.dtype:
    stated = node.int("output_dtype", 0)
    if stated in NARROW or (zero_point is not None and node.narrow(2)):
        raise g.unsupported("its result is of 4-bit integers, which are supported as constants only")
    to = torch.uint8 if zero_point is None else dtype(zero_point)
    if stated:
        stated = torch_dtype(stated, g.where)
        if zero_point is not None and stated != to:
            raise g.invalid(f"its output_dtype {stated} differs from its zero point's type {to}")
        to = stated
    if to not in (*_INTEGERS, *_FLOAT8):
        raise g.unsupported(f"quantizing to {to} is not supported")
    return to


@converts("onnx", "DequantizeLinear", "com.microsoft.DequantizeLinear")
def dequantize_linear(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, scale, zero_point = node.take(3)
    scale = node.require(1) if scale is None else scale
    if zero_point is not None and dtype(zero_point) != dtype(x):
        raise g.invalid(f"its zero point's type {dtype(zero_point)} differs from its input's {dtype(x)}")
    kind = node.int("output_dtype", 0)
    to = torch_dtype(kind, g.where) if kind else dtype(scale)
    if _is_computed(scale, zero_point):
        return cast(g, _dequantize_dynamically(g, x, scale, zero_point), to)
    return cast(g, dequantize(g, x, _affine(g, node, x, scale, zero_point, dtype(x))), to)


def _affine(
    g: OnnxBuilder, node: OnnxNode, x: Value, scale: Value, zero_point: Value | None, kind: torch.dtype
) -> Affine:
    """The quantization that constant inputs and the attributes axis and block_size describe."""
    scale = g.constant(scale, "scale")
    given = torch.zeros(scale.shape, dtype=kind) if zero_point is None else g.constant(zero_point, "zero point")
    if given.numel() != scale.numel():
        raise g.invalid(f"it has {scale.numel()} scales and {given.numel()} zero points")
    wide = scale.to(torch.float32)
    if not bool((torch.isfinite(wide) & (wide > 0)).all()):
        raise g.invalid("its scale must be a positive number")
    block = node.int("block_size", 0)
    if scale.numel() == 1 and not block:
        return Affine(wide.reshape(()), given.reshape(()))
    axis = axis_of(g, node.int("axis", 1), len(shape(x)))
    sizes = list(shape(x))
    if block:
        expected = [*sizes[:axis], -(-sizes[axis] // block) if block > 0 else 0, *sizes[axis + 1 :]]
        if list(scale.shape) != expected:
            raise g.invalid(f"its scales must be of shape {expected} for blocks of {block}, got {list(scale.shape)}")
        return Affine(wide, given, axis, block)
    if list(scale.shape) != [sizes[axis]]:
        raise g.invalid(f"its scales must be one for each of {sizes[axis]} indices, got shape {list(scale.shape)}")
    return Affine(wide, given, axis)


def dequantize(g: OnnxBuilder, x: Value, a: Affine) -> Value:
    """The real numbers, float32. What dequantizes integers stays in the graph, also if these are constant."""
    if isinstance(x, torch.Tensor) and x.dtype == torch.uint8:  # the DNA has int8 alone
        x = g.named((x.to(torch.int16) - 128).to(torch.int8), g.name_of(x))
        a = a._replace(zero_point=a.zero_point.to(torch.int64) - 128)
    kind = dtype(x)
    if kind not in _INTEGERS:
        return _dequantize_elementwise(g, x, a)
    limits = torch.iinfo(kind)
    if a.axis is None:
        scale, zero = float(a.scale), int(a.zero_point)
        return g.emit(qd.dequantize_per_tensor.default, x, scale, zero, limits.min, limits.max, kind)
    if a.block or kind == torch.uint16:  # with which torch does not compute
        return _dequantize_elementwise(g, x, a)
    zeros = a.zero_point.to(torch.int64)
    return g.emit(qd.dequantize_per_channel.default, x, a.scale, zeros, a.axis, limits.min, limits.max, kind)


def quantize(g: OnnxBuilder, x: Value, a: Affine, to: torch.dtype, saturate: bool = True) -> Value:
    """The nearest values of type `to`, halves to even, saturating. x is float32 (or float64, which is made so)."""
    x = cast(g, x, torch.float32)
    if to not in _INTEGERS:
        return _quantize_float8(g, x, a, to, saturate)
    limits = torch.iinfo(to)
    if a.axis is None and to != torch.uint16:
        scale, zero = float(a.scale), int(a.zero_point)
        return g.call(qd.quantize_per_tensor.default, x, scale, zero, limits.min, limits.max, to)
    if a.block or to == torch.uint16:
        divisor, zero_point = _spread(a, shape(x))
        return _round(g, g.call(aten.div.Tensor, x, divisor), zero_point, to)
    zeros = a.zero_point.to(torch.int64)
    return g.call(qd.quantize_per_channel.default, x, a.scale, zeros, a.axis, limits.min, limits.max, to)


def _spread(a: Affine, sizes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point (float32), to be broadcast over a tensor of these sizes."""
    zero_point = a.zero_point.to(torch.float32)
    if a.axis is None:
        return a.scale, zero_point
    if a.block:
        scale, zero_point = (t.repeat_interleave(a.block, a.axis) for t in (a.scale, zero_point))
        return scale.narrow(a.axis, 0, sizes[a.axis]), zero_point.narrow(a.axis, 0, sizes[a.axis])
    aligned = [-1 if i == a.axis else 1 for i in range(len(sizes))]
    return a.scale.reshape(aligned), zero_point.reshape(aligned)


def _dequantize_elementwise(g: OnnxBuilder, x: Value, a: Affine) -> Value:
    scale, zero_point = _spread(a, shape(x))
    y = cast(g, x, torch.float32)
    if bool(zero_point.any()):
        y = g.call(aten.sub.Tensor, y, zero_point)
    return g.call(aten.mul.Tensor, y, scale)


def _quantize_float8(g: OnnxBuilder, x: Value, a: Affine, to: torch.dtype, saturate: bool) -> Value:
    """8-bit floats: only the scale counts, a zero point is 0."""
    scale, _ = _spread(a, shape(x))
    y = g.call(aten.div.Tensor, x, scale)
    if saturate:
        limit = torch.finfo(to).max
        y = g.call(aten.clamp.default, y, -limit, limit)
    return cast(g, y, to)


def _round(g: OnnxBuilder, scaled: Value, zero_point: Value, to: torch.dtype) -> Value:
    limits = torch.iinfo(to)
    y = g.call(aten.add.Tensor, g.call(aten.round.default, scaled), cast(g, zero_point, torch.float32))
    return cast(g, cast(g, g.call(aten.clamp.default, y, limits.min, limits.max), torch.int32), to)


def _is_computed(scale: Value, zero_point: Value | None) -> bool:
    """Whether the scale or the zero point is one number that depends on an input of the model."""
    constant = is_constant(scale) and (zero_point is None or is_constant(zero_point))
    return not constant and shape(scale) in ((), (1,)) and (zero_point is None or shape(zero_point) in ((), (1,)))


def _quantize_dynamically(g: OnnxBuilder, x: Value, scale: Value, zero_point: Value | None, to: torch.dtype) -> Value:
    """With a scale that is computed: on the host."""
    zero = torch.zeros(()) if zero_point is None else reshape(g, zero_point, [])
    return _round(g, g.call(aten.div.Tensor, x, reshape(g, scale, [])), zero, to)


def _dequantize_dynamically(g: OnnxBuilder, x: Value, scale: Value, zero_point: Value | None) -> Value:
    y = cast(g, x, torch.float32)
    if zero_point is not None:
        y = g.call(aten.sub.Tensor, y, reshape(g, cast(g, zero_point, torch.float32), []))
    return g.call(aten.mul.Tensor, y, reshape(g, scale, []))


# ---- weights ----


def dequantized_constant(value: Value) -> fx.Node | None:
    """The value itself if it is a dequantize of a constant, else None."""
    targets = (qd.dequantize_per_tensor.default, qd.dequantize_per_channel.default)
    if isinstance(value, fx.Node) and value.target in targets:
        source = value.args[0]
        return value if isinstance(source, fx.Node) and source.op == "get_attr" else None
    return None


def transposed_weight(g: OnnxBuilder, weight: Value) -> Value:
    """A constant matrix, or a dequantize of one, transposed: integers stay integers."""
    if isinstance(weight, torch.Tensor):
        return weight.t().contiguous()
    found: Any = dequantized_constant(weight)
    held = getattr(g.root, found.args[0].target).t().contiguous()
    args = list(found.args[1:])
    if found.target is qd.dequantize_per_channel.default:
        args[2] = 1 - args[2]
    return g.emit(found.target, g.node(held, str(found.args[0].target)), *args)


# ---- integers that an operator takes as they are ----

_MOVES = frozenset({
    aten.reshape.default, aten.permute.default, aten.slice.Tensor, aten.unsqueeze.default, aten.squeeze.dim,
    aten.alias.default, aten.max_pool2d.default,
})  # fmt: skip


def dequantize_like(g: OnnxBuilder, x: Value) -> Value:
    """The real numbers for which quantized integers stand: by the quantize that made them, else as they are."""
    return dequantize(g, x, _made_by(x))


def quantize_like(g: OnnxBuilder, y: Value, x: Value) -> Value:
    """y in the quantization and type of x."""
    return quantize(g, y, _made_by(x), dtype(x))


def _made_by(x: Value) -> Affine:
    while isinstance(x, fx.Node) and x.op == "call_function" and x.target in _MOVES:
        x = x.args[0]
    if isinstance(x, fx.Node) and x.target is qd.quantize_per_tensor.default:
        scale, zero_point = x.args[1:3]
        return Affine(torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point))
    return Affine(torch.tensor(1.0), torch.tensor(0))
