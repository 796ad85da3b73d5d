"""Functions: those that a model defines, and the bodies that ONNX's schemas define for operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, defs

from mera_torch.errors import InvalidModelError, UnsupportedError

from ..graph import dtype, shape
from .tensors import element_type

if TYPE_CHECKING:
    from .context import OnnxNode

Key = tuple[str, str, str]
"""Domain, name, overload."""

Body = Iterable[NodeProto]


def local_functions(model: onnx.ModelProto, most_nodes: int, deepest: int) -> dict[Key, FunctionProto]:
    """The model's own functions. Raises InvalidModelError if they call each other in a circle, are nested deeper than
    `deepest`, or come to more than `most_nodes` nodes (eight functions that each call the next ten times are 10^8)."""
    functions: dict[Key, FunctionProto] = {}
    for function in model.functions:
        key = (standard(function.domain), function.name, function.overload)
        if key in functions:
            raise InvalidModelError(f"onnx model: its function {function.name!r} is defined twice")
        functions[key] = function
    sizes: dict[Key, tuple[int, int]] = {}
    for key in functions:
        _size(key, functions, sizes, (), deepest)
    count, _ = _expanded(model.graph.node, functions, sizes, (), deepest)
    if max([count, *(n for n, _ in sizes.values())]) > most_nodes:
        raise InvalidModelError(f"onnx model: it has more than {most_nodes} nodes with its functions expanded")
    return functions


def _size(
    key: Key,
    functions: Mapping[Key, FunctionProto],
    sizes: dict[Key, tuple[int, int]],
    callers: tuple[Key, ...],
    deepest: int,
) -> tuple[int, int]:
    """Nodes and depth of a function with what it calls."""
    if key in callers:
        raise InvalidModelError(f"onnx model: its function {key[1]!r} calls itself; functions must not be recursive")
    if len(callers) >= deepest:
        raise InvalidModelError(f"onnx model: functions are nested more than {deepest} deep, at {key[1]!r}")
    if key not in sizes:
        count, depth = _expanded(functions[key].node, functions, sizes, (*callers, key), deepest)
        sizes[key] = count, depth + 1
    if len(callers) + sizes[key][1] > deepest:
        raise InvalidModelError(f"onnx model: functions are nested more than {deepest} deep, at {key[1]!r}")
    return sizes[key]


def _expanded(
    nodes: Body,
    functions: Mapping[Key, FunctionProto],
    sizes: dict[Key, tuple[int, int]],
    callers: tuple[Key, ...],
    deepest: int,
) -> tuple[int, int]:
    total = depth = 0
    for node in all_nodes(nodes):
        key = (standard(node.domain), node.op_type, node.overload)
        count, deep = _size(key, functions, sizes, callers, deepest) if key in functions else (1, 0)
        total, depth = total + count, max(depth, deep)
    return total, depth


def all_nodes(nodes: Body) -> Iterator[NodeProto]:
    """The nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that a node holds in its attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def standard(domain: str) -> str:
    """ONNX's own domain has two names."""
    return "" if domain == "ai.onnx" else domain


def bind_attributes(node: NodeProto, given: Mapping[str, AttributeProto]) -> NodeProto:
    """The node of a function's body with its references to the function's attributes replaced by their values."""
    bound = NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            bound.attribute.append(attribute)
        elif attribute.ref_attr_name in given:
            copy = bound.attribute.add()
            copy.CopyFrom(given[attribute.ref_attr_name])
            copy.name = attribute.name
    return bound


def schema_body(node: OnnxNode) -> FunctionProto | None:
    """The body that ONNX defines for a node, with the defaults of its attributes; None if there is none."""
    try:
        schema: Any = defs.get_schema(node.op, node.opset, node.domain)
    except (defs.SchemaError, RuntimeError):
        return None
    encoded = b""
    versions = [v for v in schema.function_opset_versions if v <= node.opset]
    if versions:
        encoded = schema.get_function_with_opset_version(max(versions))
    else:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= node.opset]
        if versions:
            encoded = schema.get_context_dependent_function_with_opset_version(
                max(versions), node.proto.SerializeToString(), _input_types(node)
            )
    if not encoded:
        return None
    body: FunctionProto = FunctionProto.FromString(encoded)
    known = {a.name for a in body.attribute_proto}
    for name, attribute in schema.attributes.items():
        if name not in known and attribute.default_value.type != AttributeProto.UNDEFINED:
            body.attribute_proto.append(attribute.default_value)
    if not body.opset_import:
        body.opset_import.append(onnx.helper.make_opsetid("", max(versions)))
    return body


def _input_types(node: OnnxNode) -> list[bytes]:
    found = []
    for value in node.inputs:
        if value is None:
            found.append(onnx.TypeProto().SerializeToString())
        elif isinstance(value, list):
            raise UnsupportedError(f"onnx operator {node.op} {node.name!r}: a sequence has no type to expand it by")
        else:
            kind = onnx.helper.make_tensor_type_proto(element_type(dtype(value)), list(shape(value)))
            found.append(kind.SerializeToString())
    return found
