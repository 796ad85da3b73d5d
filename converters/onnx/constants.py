"""Constants, and what follows from shapes alone."""

from __future__ import annotations

import math

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode
from .tensors import sparse_to_tensor, torch_dtype
from .values import arange, bounded


@converts("onnx", "Constant")
def constant(g: OnnxBuilder, node: OnnxNode) -> Value:
    if node.has("value"):
        return node.tensor("value")
    if node.has("value_float"):
        return torch.tensor(node.float("value_float"), dtype=torch.float32)
    if node.has("value_floats"):
        return torch.tensor(node.floats("value_floats"), dtype=torch.float32)
    if node.has("value_int"):
        return torch.tensor(node.int("value_int"), dtype=torch.int64)
    if node.has("value_ints"):
        return torch.tensor(node.ints("value_ints"), dtype=torch.int64)
    if node.has("sparse_value"):
        return sparse_to_tensor(node.attributes["sparse_value"].sparse_tensor, g.where)
    if node.has("value_string") or node.has("value_strings"):
        raise g.unsupported("its value is a string; only numbers are supported")
    raise g.invalid("it has no value")


@converts("onnx", "ConstantOfShape", since=9)
def constant_of_shape(g: OnnxBuilder, node: OnnxNode) -> Value:
    sizes = g.int_list(node.require(0), "shape")
    value = node.tensor("value", torch.zeros(1))
    if value.numel() != 1:
        raise g.invalid(f"its value must have one element, got shape {list(value.shape)}")
    if any(size < 0 for size in sizes):
        raise g.invalid(f"its shape {sizes} has a negative size")
    bounded(g, sizes, value.dtype)
    return value.reshape([1] * len(sizes)).expand(sizes).contiguous()


@converts("onnx", "Shape")
def shape_(g: OnnxBuilder, node: OnnxNode) -> Value:
    sizes = shape(node.require(0))
    return torch.tensor(sizes[slice(node.int("start", 0), node.int("end", None))], dtype=torch.int64)


@converts("onnx", "Size")
def size(g: OnnxBuilder, node: OnnxNode) -> Value:
    return torch.tensor(math.prod(shape(node.require(0))), dtype=torch.int64)


@converts("onnx", "EyeLike", since=9)
def eye_like(g: OnnxBuilder, node: OnnxNode) -> Value:
    x = node.require(0)
    if len(shape(x)) != 2:
        raise g.invalid(f"its input must be a matrix, got shape {list(shape(x))}")
    kind = torch_dtype(node.int("dtype"), g.where) if node.has("dtype") else dtype(x)
    bounded(g, shape(x), torch.int64)
    rows, columns = (arange(g, n, axis=axis, rank=2) for axis, n in enumerate(shape(x)))
    return (columns == rows + node.int("k", 0)).to(kind)


@converts("onnx", "Range", since=11)
def range_(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Small floats are counted in float32."""
    start, limit, delta = (g.number(node.require(i), what) for i, what in enumerate(("start", "limit", "delta")))
    kind = dtype(node.require(0))
    if delta == 0 or not all(math.isfinite(v) for v in (start, limit, delta)):
        raise g.invalid(f"it counts from {start} to {limit} by {delta}")
    exact = torch.float64 if kind.is_floating_point else torch.int64
    count = max(math.ceil((limit - start) / delta) if exact == torch.float64 else -((start - limit) // delta), 0)
    bounded(g, [count], torch.float64)
    return (start + torch.arange(count, dtype=exact) * delta).to(kind)
