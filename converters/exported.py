""".pt2 files of torch.export."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from mera_torch.backend.capture import InputSpec, from_exported
from mera_torch.errors import CorruptFileError, UnsupportedError

from .files import describe, read
from .graph import first_line
from .model import ImportedModel, TensorInfo


def from_pt2(source: str | os.PathLike[str] | bytes | ExportedProgram) -> ImportedModel:
    """A .pt2 file (as torch.export.save writes it), its bytes, or an ExportedProgram, as a flat graph.

    Raises CorruptFileError (no such file), UnsupportedError (dynamic shapes, buffers changed in place, ...).
    """
    captured = from_exported(source if isinstance(source, ExportedProgram) else load_exported(source))
    outputs = [node for node in captured.gm.graph.nodes if node.op == "output"][0].all_input_nodes
    infos = [TensorInfo(node.name, tuple(node.meta["val"].shape), node.meta["val"].dtype) for node in outputs]
    model = ImportedModel.of(captured.gm, captured.gm.graph, "pt2", [_info(s) for s in captured.inputs], infos)
    model.graph.set_codegen(_codegen(model, captured.in_spec, captured.out_spec))
    model.recompile()
    return model


def save_pt2(model: torch.nn.Module, inputs: tuple[Any, ...], path: str | os.PathLike[str]) -> None:
    """Writes a module (imported, quantized, ...) as a .pt2 file, for the shapes of inputs."""
    program = torch.export.export(model, inputs)
    for node in program.graph.nodes:  # torch.export cannot read back what it writes of names with ; , or brackets
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {_plain(key): (_plain(name), kind) for key, (name, kind) in stack.items()}
    data = io.BytesIO()  # torch's own writer ends the process if the disk is full
    torch.export.save(program, data)
    Path(path).write_bytes(data.getbuffer())


def _plain(name: str) -> str:
    return re.sub(r"[;,()]", "_", name)


def load_exported(source: str | os.PathLike[str] | bytes) -> ExportedProgram:
    """torch.export.load of a path or of bytes."""
    data = read(source)
    try:
        return torch.export.load(io.BytesIO(data))
    except Exception as error:  # the loader's errors have no common base
        raise CorruptFileError(f"{describe(source)} is no .pt2 file of torch.export: {first_line(error)}") from error


def _info(spec: InputSpec) -> TensorInfo:
    if spec.dtype is None:
        raise UnsupportedError(f"pt2 input {spec.name!r} must be a tensor, it is {spec.constant!r}")
    return TensorInfo(spec.name, spec.shape, spec.dtype)


def _codegen(model: ImportedModel, in_spec: Any, out_spec: Any) -> Any:
    names = [str(node.target) for node in model.graph.nodes if node.op == "placeholder"]
    return torch.fx.graph._PyTreeCodeGen(torch.fx.graph._PyTreeInfo(names, in_spec, out_spec))
