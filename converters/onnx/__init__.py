"""ONNX models as FX graphs. See docs/onnx.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import torch
from torch import fx

from mera_torch.errors import UnsupportedError

from ..files import Source
from ..graph import shape
from ..model import ImportedModel
from . import families  # noqa: F401
from .biases import fuse_biases
from .context import OnnxBuilder, Scope, Unusable
from .layouts import spatial
from .reader import Opened, open_model
from .sizes import InputSizes, input_dtype


def from_onnx(
    source: Source | onnx.ModelProto,
    shape_mapping: Mapping[str, Any] | None = None,
    batch_num: int = 1,
    constants: Mapping[str, Any] | None = None,
) -> ImportedModel:
    """An ONNX model of opset 7 to 28 as a flat FX graph with static shapes.

    source: a path, a file's bytes, or a ModelProto (external data is read for paths alone).
    shape_mapping: {symbol: size} and {input: shape} for dimensions without size; batch_num: for first dimensions that
    have none. constants: {input: tensor} for inputs whose values are known: they are no inputs of the result.

    Raises CorruptFileError (no ONNX file), InvalidModelError (malformed, or sizes missing), UnsupportedError.
    """
    sizes = InputSizes(shape_mapping, batch_num, constants)
    return convert(open_model(source, sizes))


def convert(opened: Opened) -> ImportedModel:
    """The graph of a model that was opened."""
    graph = opened.model.graph
    g = OnnxBuilder(opened.functions)
    nchw = spatial(graph)
    scope = Scope(opened.opsets)
    for name, weight in opened.weights.items():
        scope.values[name] = g.named(weight, name)
    for info in graph.input:
        if info.name not in opened.weights:
            scope.values[info.name] = _input(g, info, info.name in nchw)
    names = [output.name for output in graph.output]
    values = g.graph_values(graph.node, names, scope)
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, fx.Node | torch.Tensor):
            raise UnsupportedError(f"{_maker(opened, name)}: model output {name!r} is no tensor; return tensors alone")
    outputs = [(name, value, _layout(value, name in nchw)) for name, value in zip(names, values, strict=True)]
    return fuse_biases(g.finish(outputs))


def _maker(opened: Opened, output: str) -> str:
    """The operator that makes an output of the model, for messages."""
    for index, node in enumerate(opened.model.graph.node):
        if output in node.output:
            opset = opened.opsets.get("" if node.domain == "ai.onnx" else node.domain, 0)
            return f"onnx operator {node.op_type} (opset {opset}) {node.name or f'{node.op_type}_{index}'!r}"
    return "onnx model"


def _input(g: OnnxBuilder, info: onnx.ValueInfoProto, nchw: bool) -> Any:
    """An input; one of a type that torch does not have is refused by the operator that reads it."""
    try:
        input_dtype(info)
    except UnsupportedError as error:
        return Unusable(str(error))
    sizes = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    layout = "NCHW" if nchw and len(sizes) == 4 else ""
    return g.input(info.name, sizes, input_dtype(info), layout)


def _layout(value: Any, nchw: bool) -> str:
    return "NCHW" if nchw and len(shape(value)) == 4 else ""
