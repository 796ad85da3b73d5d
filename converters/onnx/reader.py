"""Opens an ONNX model: bytes to ModelProto, weights, checks, versions and the sizes of its inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, TensorProto, version_converter

from mera_torch.errors import CorruptFileError, InvalidModelError, UnsupportedError

from ..files import Source, describe, read
from ..graph import first_line
from . import functions
from .checks import check, check_bounds, one_line
from .context import DEEPEST, MOST_NODES
from .sizes import InputSizes
from .tensors import external_data, sparse_to_tensor, to_tensor

OLDEST, NEWEST = 7, 28
"""The opsets of ai.onnx that are converted. Older models are brought to OLDEST by ONNX's version converter first."""

SMALL = 1024
"""Bytes up to which a weight takes part in ONNX's own checks: larger ones are no shapes."""


@dataclass(frozen=True)
class Opened:
    """A model that ONNX's checker accepts. weights: its top-level initializers, which `model` holds no more."""

    model: ModelProto
    weights: dict[str, torch.Tensor]
    functions: dict[functions.Key, onnx.FunctionProto]
    opsets: dict[str, int]


def open_model(source: Source | ModelProto, sizes: InputSizes) -> Opened:
    """Reads and checks a model, its inputs having the sizes that were asked for.

    Raises CorruptFileError for what is no ModelProto or external data that is not there, InvalidModelError for what
    ONNX's checker or shape inference refuse, UnsupportedError for versions that are not converted.
    """
    model, folder = _parse(source)
    check_bounds(model)
    own_functions = functions.local_functions(model, MOST_NODES, DEEPEST)
    _check_opset(model)
    _load_external(model, folder)
    model = _modern(model)
    weights = _take_weights(model, folder)
    sizes.apply(model.graph, weights)
    check(model)
    opsets = {functions.standard(o.domain): o.version for o in model.opset_import}
    return Opened(model, weights, own_functions, opsets)


def _parse(source: Source | ModelProto) -> tuple[ModelProto, Path | None]:
    """A copy of the model and the folder of its external data."""
    model = ModelProto()
    if isinstance(source, ModelProto):
        model.CopyFrom(source)
        return model, None
    data = read(source)
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise CorruptFileError(f"{describe(source)} is no ONNX model, or is cut off: {first_line(error)}") from error
    if not model.HasField("graph"):
        raise CorruptFileError(f"{describe(source)} is no ONNX model: it has no graph")
    is_path = not isinstance(source, bytes | bytearray | memoryview)
    return model, Path(os.fspath(source)).parent if is_path else None  # type: ignore[arg-type]


def _check_opset(model: ModelProto) -> None:
    version = next((o.version for o in model.opset_import if functions.standard(o.domain) == ""), None)
    if version is None:
        if any(functions.standard(node.domain) == "" for node in functions.all_nodes(model.graph.node)):
            raise InvalidModelError("onnx model: it does not say which opset of ai.onnx it uses (opset_import)")
        return
    if version > NEWEST:
        raise UnsupportedError(f"onnx model: opset {version} is newer than {NEWEST}, the newest one supported")


# ---- weights ----


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Tensors stored in a graph other than its initializers: in attributes and subgraphs."""
    for node in functions.all_nodes(graph.node):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for inner in functions.subgraphs(node):
            yield from inner.initializer


def _load_external(model: ModelProto, folder: Path | None) -> None:
    """Brings the external data of attributes and subgraphs into the model; initializers are read one by one later."""
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            data = external_data(tensor, f"onnx tensor {tensor.name!r}", folder)
            del tensor.external_data[:]
            tensor.data_location = TensorProto.DEFAULT
            tensor.raw_data = data


def _take_weights(model: ModelProto, folder: Path | None) -> dict[str, torch.Tensor]:
    """The top-level initializers. Large ones leave the model, which lists them as inputs instead."""
    graph = model.graph
    weights: dict[str, torch.Tensor] = {}
    listed = {i.name for i in graph.input}
    small = []
    for tensor in graph.initializer:
        _once(tensor.name, weights)
        found = weights[tensor.name] = to_tensor(tensor, "onnx initializer", folder)
        if found.numel() * found.itemsize <= SMALL and tensor.data_location != TensorProto.EXTERNAL:
            small.append(tensor)
        elif tensor.name not in listed:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        _once(name, weights)
        weights[name] = sparse_to_tensor(sparse, "onnx initializer")
        if name not in listed:
            info = onnx.helper.make_tensor_value_info(name, sparse.values.data_type, list(sparse.dims))
            graph.input.append(info)
    kept = [TensorProto.FromString(tensor.SerializeToString()) for tensor in small]
    del graph.initializer[:]
    del graph.sparse_initializer[:]
    graph.initializer.extend(kept)
    return weights


def _once(name: str, known: Mapping[str, Any]) -> None:
    if not name:
        raise InvalidModelError("onnx model: an initializer has no name")
    if name in known:
        raise InvalidModelError(f"onnx model: initializer {name!r} is defined twice")


def _modern(model: ModelProto) -> ModelProto:
    """A model older than OLDEST is brought to it by ONNX's version converter; others are converted as they are."""
    version = next((o.version for o in model.opset_import if functions.standard(o.domain) == ""), OLDEST)
    if version >= OLDEST:
        return model
    check(model)
    try:
        return version_converter.convert_version(model, OLDEST)
    except (version_converter.ConvertError, RuntimeError, ValueError) as error:
        raise UnsupportedError(
            f"onnx model: opset {version} is older than {OLDEST}, and ONNX's version converter refuses it: "
            f"{one_line(error)}"
        ) from error
