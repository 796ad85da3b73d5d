"""What the user gives (a converted PT2E module, an ExportedProgram, a .pt2 file) as one flat functional FX graph."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from ..errors import CorruptFileError, InvalidModelError, MeraError, UnsupportedError

INPUT_DTYPES = frozenset({
    torch.float32, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool,
})  # fmt: skip


@dataclass(frozen=True)
class InputSpec:
    """One flat input of the model: a tensor of that shape and dtype, or a constant that must be passed as it is."""

    name: str
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None  # None: not a tensor
    constant: Any = None


@dataclass
class Captured:
    """A flat graph of functional operators, constants as get_attr nodes, and how the model is called.

    in_spec, out_spec: the pytrees of (args, kwargs) and of the result.
    """

    gm: fx.GraphModule
    inputs: list[InputSpec]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    kept: list[Any] = field(default_factory=list)


def capture(model: Any, example_inputs: Sequence[Any] | None) -> Captured:
    """The model as one graph. Raises MeraError if the model cannot be captured, InvalidModelError if it is none."""
    if isinstance(model, str | os.PathLike):
        model = load_exported(model)
    if isinstance(model, ExportedProgram):
        return from_exported(model)
    if not isinstance(model, torch.nn.Module):
        raise InvalidModelError(
            f"model must be a torch.nn.Module, an ExportedProgram or the path of a .pt2 file, got {type(model).__name__}"
        )
    if example_inputs is None:
        raise InvalidModelError("example_inputs are needed to capture a module: a tuple of tensors")
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    try:
        with torch.no_grad():
            program = torch.export.export(model, inputs, strict=False)
    except MeraError:
        raise
    except Exception as error:
        raise UnsupportedError(f"torch.export cannot capture the model: {error}") from error
    return from_exported(program)


def load_exported(path: str | os.PathLike[str]) -> ExportedProgram:
    """Reads a file that torch.export.save wrote. Raises InvalidModelError (no such file), CorruptFileError."""
    if not os.path.isfile(path):
        raise InvalidModelError(f"model file {os.fspath(path)!r} does not exist")
    try:
        return torch.export.load(os.fspath(path))
    except Exception as error:
        raise CorruptFileError(f"{os.fspath(path)!r} is no .pt2 file of torch.export: {error}") from error


def from_exported(program: ExportedProgram) -> Captured:
    """Functional aten operators, with conv2d, linear and the like kept whole and q/dq kept as they are."""
    _check_static(program)
    program = program.run_decompositions({})
    signature = program.graph_signature
    for output in signature.output_specs:
        if output.kind not in (OutputKind.USER_OUTPUT,):
            raise UnsupportedError(
                f"the model changes {output.target!r} in place ({output.kind.name.lower()}): "
                "a deployment is a pure function of its inputs"
            )
    gm = fx.GraphModule(torch.nn.Module(), fx.Graph())
    values: dict[fx.Node, Any] = {}
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    inputs: list[InputSpec] = []
    for node in program.graph.nodes:
        spec = specs.get(node.name) if node.op == "placeholder" else None
        if spec is not None and spec.kind is not InputKind.USER_INPUT:
            values[node] = _constant(gm, program, node, spec)
            continue
        if node.op == "get_attr":
            held = fx.graph_module._get_attr(program.graph_module, str(node.target))
            if isinstance(held, torch.nn.Module):
                raise UnsupportedError(f"node {node.name}: control flow (a graph within the graph) is not supported")
            values[node] = _register(gm, node, held)
            continue
        if spec is not None:
            inputs.append(_input(node, spec))
        new = gm.graph.node_copy(node, values.__getitem__)
        values[node] = new
    gm.graph.lint()
    gm.recompile()
    if program.call_spec.in_spec is None or program.call_spec.out_spec is None:
        raise InvalidModelError("the exported program does not say how it is called")
    return Captured(gm, inputs, program.call_spec.in_spec, program.call_spec.out_spec)


def _constant(gm: fx.GraphModule, program: ExportedProgram, node: fx.Node, spec: Any) -> fx.Node:
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in program.state_dict:
        held = program.state_dict[spec.target]
    elif spec.target in program.constants:
        held = program.constants[spec.target]
    else:
        raise UnsupportedError(f"input {node.name} of kind {spec.kind.name.lower()} is not supported")
    return _register(gm, node, held)


def _register(gm: fx.GraphModule, node: fx.Node, held: Any) -> fx.Node:
    if not isinstance(held, torch.Tensor):
        raise UnsupportedError(f"constant {node.name} is no tensor but {type(held).__name__}")
    name = node.name
    while hasattr(gm, name):
        name += "_"
    gm.register_buffer(name, held.detach(), persistent=False)
    new = gm.graph.get_attr(name)
    new.meta = dict(node.meta)
    new.meta["val"] = node.meta.get("val", held)
    return new


def _input(node: fx.Node, spec: Any) -> InputSpec:
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        return InputSpec(node.name, constant=val)
    return InputSpec(node.name, tuple(int(s) for s in val.shape), val.dtype)


def _check_static(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        val = node.meta.get("val")
        if node.op != "placeholder" or not isinstance(val, torch.Tensor):
            continue
        for d, size in enumerate(val.shape):
            if not isinstance(size, int):
                raise UnsupportedError(
                    f"input {node.name!r} has a dynamic dimension {d} ({size}) in {[str(s) for s in val.shape]}: "
                    "the DNA's programs are compiled for fixed shapes; export without dynamic_shapes"
                )


def check_input_dtypes(captured: Captured) -> None:
    """Raises UnsupportedError if an input has a dtype that the border of the DNA does not take."""
    for index, spec in enumerate(captured.inputs):
        if spec.dtype is not None and spec.dtype not in INPUT_DTYPES:
            raise UnsupportedError(
                f"input {index} ({spec.name!r}) has dtype {spec.dtype}: it must be float32 (or an integer type); "
                "convert the model with model.float() and quantize again"
            )
