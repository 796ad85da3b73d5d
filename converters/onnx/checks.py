"""What a model must keep before it is converted: our own bounds first, then ONNX's checker and shape inference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, ValueInfoProto, checker, shape_inference

from mera_torch.errors import CorruptFileError, InvalidModelError

from . import functions
from .context import DEEPEST
from .sizes import is_tensor


def check_bounds(model: ModelProto) -> None:
    """What ONNX's own code, in C++, takes for granted. Raises InvalidModelError, or CorruptFileError for names that are
    no text. Before local_functions() looks at names."""
    _check_text(model)
    _check_versions(model)
    _check_nesting(model.graph.node, 0)
    _check_order(model.graph, [])
    _check_attributes(model)


def _check_text(model: ModelProto) -> None:
    """protobuf gives the bytes of a name that is no UTF-8."""
    for text in _texts(model):
        if not isinstance(text, str):
            raise CorruptFileError(f"onnx model: the name {bytes(text)[:40]!r} is no UTF-8 text")


def _texts(model: ModelProto) -> Iterator[Any]:
    for owner in (model, *model.functions):
        yield from (opset.domain for opset in owner.opset_import)
    for function in model.functions:
        yield from (function.name, function.domain, function.overload, *function.input, *function.output)
        yield from (attribute.name for attribute in function.attribute_proto)
    for graph in (model.graph, *_inner_graphs(model)):
        for info in (*graph.input, *graph.output, *graph.value_info):
            yield info.name
            yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim)
        yield from (tensor.name for tensor in graph.initializer)
        yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in _nodes(model):
        yield from (node.op_type, node.domain, node.name, node.overload, *node.input, *node.output)
        for attribute in node.attribute:
            yield from (attribute.name, attribute.ref_attr_name)


def _nodes(model: ModelProto) -> Iterator[onnx.NodeProto]:
    for body in (model.graph.node, *(function.node for function in model.functions)):
        yield from functions.all_nodes(body)


def _inner_graphs(model: ModelProto) -> Iterator[GraphProto]:
    for node in _nodes(model):
        yield from functions.subgraphs(node)


def _check_versions(model: ModelProto) -> None:
    for owner in (model, *model.functions):
        for opset in owner.opset_import:
            if not 1 <= opset.version < 2**31:
                raise InvalidModelError(f"onnx model: opset {opset.version} of domain {opset.domain!r} does not exist")


def _check_nesting(nodes: Sequence[onnx.NodeProto], depth: int) -> None:
    if depth > DEEPEST:
        raise InvalidModelError(f"onnx model: subgraphs are nested more than {DEEPEST} deep")
    for node in nodes:
        for graph in functions.subgraphs(node):
            _check_nesting(graph.node, depth + 1)


def _check_order(graph: GraphProto, around: list[set[str]]) -> None:
    """Every node reads what nodes before it make, or the graph's inputs and initializers, or those of `around`."""
    known = {i.name for i in graph.input} | {t.name for t in graph.initializer} | {""}
    known |= {t.values.name for t in graph.sparse_initializer}
    makers = {name for node in graph.node for name in node.output}
    for index, node in enumerate(graph.node):
        where = f"onnx operator {node.op_type} {node.name or f'{node.op_type}_{index}'!r}"
        for name in node.input:
            if name not in known and not any(name in names for names in around):
                late = "only by a node after it, or by itself: nodes must be in order, without cycles"
                why = late if name in makers else "by no node"
                raise InvalidModelError(f"{where}: its input {name!r} is made {why}")
        for inner in functions.subgraphs(node):
            _check_order(inner, [*around, known])
        known.update(node.output)
    for output in graph.output:
        if output.name not in known and not any(output.name in names for names in around):
            raise InvalidModelError(f"onnx output {output.name!r} is made by no node")


_WIDE = frozenset({"starts", "ends", "pads", "value_int", "value_ints"})
"""Attributes that may be any int64. ONNX's shape inference takes the others for int32, unchecked."""


def _check_attributes(model: ModelProto) -> None:
    """Numbers by which ONNX's shape inference would read or reserve memory beyond all bounds."""
    for node in _nodes(model):
        for attribute in node.attribute:
            why = _bad_number(node, attribute)
            if why:
                where = f"onnx operator {node.op_type} {node.name!r}"
                raise InvalidModelError(f"{where}: its attribute {attribute.name!r} {why}")


def _bad_number(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> str:
    numbers = [attribute.i, *attribute.ints] if attribute.name not in _WIDE else []
    for number in numbers:
        if not -(2**31) <= number < 2**31:
            return f"is {number}, which is no 32-bit number"
    if node.op_type == "Split" and attribute.name == "num_outputs" and attribute.i != len(node.output):
        return f"is {attribute.i}, and it lists {len(node.output)} outputs"
    if node.op_type == "Einsum" and attribute.name == "equation" and not is_equation(attribute.s):
        return f"is no equation: {attribute.s[:80]!r}"
    return ""


def is_equation(text: bytes) -> bool:
    """Whether Einsum's equation is made of letters, dots, commas and an arrow; others hang ONNX's shape inference."""
    return re.fullmatch(rb"[A-Za-z., ]*(->[A-Za-z. ]*)?", text) is not None


def check(model: ModelProto) -> None:
    """ONNX's own checker and its shape inference. Without propagating data: that lists every element of vectors, so a
    small file could take all memory; the conversion computes every shape anyway."""
    _state_axes(model)
    checked = model
    if not all(_has_shape(output) for output in model.graph.output):  # which the checker demands
        checked = ModelProto()
        checked.CopyFrom(model)
        for output in checked.graph.output:
            if not _has_shape(output):
                output.type.tensor_type.shape.SetInParent()
    try:
        checker.check_model(checked)
    except (checker.ValidationError, ValueError, RuntimeError, EncodeError, MemoryError) as error:
        raise InvalidModelError(f"onnx model: {one_line(error)}") from error
    try:
        shape_inference.infer_shapes(model, strict_mode=True)
    except (shape_inference.InferenceError, ValueError, RuntimeError, MemoryError) as error:
        raise InvalidModelError(f"onnx model: {one_line(error)}") from error


def _state_axes(model: ModelProto) -> None:
    """Writes a default out that ONNX's shape inference would miss when it expands the operator."""
    for node in functions.all_nodes(model.graph.node):
        if node.op_type == "MeanVarianceNormalization" and not node.attribute:
            node.attribute.append(onnx.helper.make_attribute("axes", [0, 2, 3]))


def _has_shape(info: ValueInfoProto) -> bool:
    return not is_tensor(info) or info.type.tensor_type.HasField("shape")


def one_line(error: BaseException) -> str:
    """ONNX's message on one line, without its addresses."""
    text = " ".join(str(error).split())
    return text if len(text) <= 500 else f"{text[:500]}..."
