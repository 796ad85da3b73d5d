"""Sequences and optionals: Python lists, and values or EMPTY, known when the model is imported."""

from __future__ import annotations

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .context import EMPTY, OnnxBuilder, OnnxNode, aten
from .shapes import concatenated, parts_of
from .values import axis_of, reshape, whole

MOST_PARTS = 4096
"""Tensors into which one is split."""


def _sequence(g: OnnxBuilder, value: Value) -> list[Value]:
    if not isinstance(value, list):
        raise g.invalid("its input must be a sequence")
    return value


def _position(g: OnnxBuilder, node: OnnxNode, count: int, what: str) -> int:
    found = whole(g, node.require(1 if what != "insert" else 2), "position")
    last = count if what == "insert" else count - 1
    if not -count <= found <= last:
        raise g.invalid(f"position {found} is out of range for a sequence of {count}")
    return found + count if found < 0 else found


@converts("onnx", "SequenceConstruct", since=11)
def sequence_construct(g: OnnxBuilder, node: OnnxNode) -> Value:
    return [node.require(i) for i in range(len(node.inputs))]


@converts("onnx", "SequenceEmpty", since=11)
def sequence_empty(g: OnnxBuilder, node: OnnxNode) -> Value:
    return []


@converts("onnx", "SequenceAt", since=11)
def sequence_at(g: OnnxBuilder, node: OnnxNode) -> Value:
    values = _sequence(g, node.require(0))
    return values[_position(g, node, len(values), "at")]


@converts("onnx", "SequenceLength", since=11)
def sequence_length(g: OnnxBuilder, node: OnnxNode) -> Value:
    return torch.tensor(len(_sequence(g, node.require(0))), dtype=torch.int64)


@converts("onnx", "SequenceInsert", since=11)
def sequence_insert(g: OnnxBuilder, node: OnnxNode) -> Value:
    values = _sequence(g, node.require(0))
    place = len(values) if node.optional(2) is None else _position(g, node, len(values), "insert")
    return [*values[:place], node.require(1), *values[place:]]


@converts("onnx", "SequenceErase", since=11)
def sequence_erase(g: OnnxBuilder, node: OnnxNode) -> Value:
    values = _sequence(g, node.require(0))
    place = len(values) - 1 if node.optional(1) is None else _position(g, node, len(values), "erase")
    if not values:
        raise g.invalid("its sequence is empty")
    return [*values[:place], *values[place + 1 :]]


@converts("onnx", "ConcatFromSequence", since=11)
def concat_from_sequence(g: OnnxBuilder, node: OnnxNode) -> Value:
    values = _sequence(g, node.require(0))
    if not node.int("new_axis", 0):
        return concatenated(g, values, node.int("axis"))
    if len({(shape(v), dtype(v)) for v in values}) != 1:
        raise g.invalid("its sequence must hold tensors of one shape and type")
    return g.call(aten.stack.default, values, axis_of(g, node.int("axis"), len(shape(values[0])) + 1))


@converts("onnx", "SplitToSequence", since=11)
def split_to_sequence(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Into parts of one size (the last may be smaller), of given sizes, or of size 1, whose axis may then go."""
    x, split = node.take(2)
    axis = axis_of(g, node.int("axis", 0), len(shape(x)))
    total = shape(x)[axis]
    sizes = [1] if split is None else g.int_list(split, "split")
    if split is None or not shape(split):
        (each,) = sizes
        if each < 1 or total > MOST_PARTS * each:
            raise g.unsupported(f"{total} elements in parts of {each} are more than {MOST_PARTS} parts, or none")
        sizes = [min(each, total - start) for start in range(0, total, each)]
    if sum(sizes) != total or any(size < 0 for size in sizes):
        raise g.invalid(f"its parts {sizes} do not make up the {total} of axis {axis}")
    parts = parts_of(g, x, axis, sizes)
    if split is None and not node.int("keepdims", 1):
        parts = [reshape(g, v, [*shape(x)[:axis], *shape(x)[axis + 1 :]]) for v in parts]
    return parts


# ---- optionals ----


@converts("onnx", "Optional", since=15)
def optional(g: OnnxBuilder, node: OnnxNode) -> Value:
    value = node.optional(0)
    return EMPTY if value is None else value


@converts("onnx", "OptionalHasElement", since=15)
def optional_has_element(g: OnnxBuilder, node: OnnxNode) -> Value:
    value = node.optional(0)
    return torch.tensor(value is not None and value is not EMPTY)


@converts("onnx", "OptionalGetElement", since=15)
def optional_get_element(g: OnnxBuilder, node: OnnxNode) -> Value:
    value = node.require(0)
    if value is EMPTY:
        raise g.invalid("its optional has no element")
    return value
