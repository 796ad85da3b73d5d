"""What the user gives (a converted PT2E module, an imported model, an ExportedProgram) as one flat FX graph."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators of quantized graphs, which a .pt2 file names
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from ..errors import InvalidModelError, MeraError, UnsupportedError
from ..library import NAMESPACES

if TYPE_CHECKING:
    from ..converters import ModelInfo

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

    in_spec, out_spec: the pytrees of (args, kwargs) and of the result. info: how the file of an imported model speaks
    of its inputs and outputs.
    """

    gm: fx.GraphModule
    inputs: list[InputSpec]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    kept: list[Any] = field(default_factory=list)
    info: ModelInfo | None = None


def capture(model: Any, example_inputs: Sequence[Any] | None) -> Captured:
    """The model as one graph. Raises MeraError if the model cannot be captured, InvalidModelError if it is none."""
    if isinstance(model, ExportedProgram):
        return from_exported(model)
    if not isinstance(model, torch.nn.Module):
        raise InvalidModelError(
            f"model must be an nn.Module, an ExportedProgram or the path of a model file, got {type(model).__name__}"
        )
    if example_inputs is None:
        raise InvalidModelError("example_inputs are needed to capture a module: a tuple of tensors")
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    if isinstance(model, fx.GraphModule) and is_functional(model):
        return from_graph(model, inputs)
    try:
        with torch.no_grad():
            program = torch.export.export(model, inputs, strict=False)
    except MeraError:
        raise
    except Exception as error:
        raise UnsupportedError(f"torch.export cannot capture the model: {error}") from error
    return from_exported(program)


def is_functional(gm: fx.GraphModule) -> bool:
    """Whether the graph is what torch.export gives, flat and without operators that change their inputs: then it need
    not be exported again, which takes most of the time of a compilation."""
    if not isinstance(gm.graph._codegen, fx.graph._PyTreeCodeGen) or gm.graph._codegen.pytree_info.out_spec is None:
        return False
    return all(_is_flat(node) for node in gm.graph.nodes)


def _is_flat(node: fx.Node) -> bool:
    if node.op != "call_function":
        return node.op in ("placeholder", "get_attr", "output")
    target: Any = node.target
    if target is operator.getitem:
        return True
    known = isinstance(target, torch._ops.OpOverload) and target.namespace in NAMESPACES
    return known and not target._schema.is_mutable and "sym_" not in str(target)


def from_graph(model: fx.GraphModule, inputs: tuple[Any, ...]) -> Captured:
    """A copy of an is_functional() graph with every shape and dtype."""
    codegen: Any = model.graph._codegen
    info = codegen.pytree_info
    gm = fx.GraphModule(torch.nn.Module(), fx.Graph())
    values: dict[fx.Node, fx.Node] = {}
    flat, spec = pytree.tree_flatten((inputs, {}))
    placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
    if info.in_spec is not None and spec != info.in_spec or len(flat) != len(placeholders):
        raise InvalidModelError(f"example_inputs: the model takes {len(placeholders)} inputs, got {len(flat)}")
    interpreter = _Shapes(gm, FakeTensorMode(allow_non_fake_inputs=True))
    given = iter(flat)
    specs = []
    for node in model.graph.nodes:
        if node.op == "get_attr":
            values[node] = _register(gm, node, fx.graph_module._get_attr(model, str(node.target)))
            continue
        new = values[node] = gm.graph.node_copy(node, values.__getitem__)
        if node.op == "placeholder":
            interpreter.give(new, next(given))
            specs.append(_input(new))
        elif node.op == "call_function":
            interpreter.compute(new)
    gm.graph.lint()
    gm.recompile()
    return Captured(gm, specs, spec, info.out_spec)


class _Shapes:
    """Fills in meta["val"] node by node, computing with fake tensors."""

    def __init__(self, gm: fx.GraphModule, mode: FakeTensorMode) -> None:
        self.gm, self.mode = gm, mode

    def give(self, node: fx.Node, value: Any) -> None:
        node.meta["val"] = (
            self.mode.from_tensor(value, static_shapes=True) if isinstance(value, torch.Tensor) else value
        )

    def compute(self, node: fx.Node) -> None:
        target: Any = node.target
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        try:
            with self.mode, torch.no_grad():
                node.meta["val"] = target(*args, **kwargs)
        except Exception as error:
            raise InvalidModelError(
                f"node {node.name} ({target}) does not take the shapes of example_inputs: {error}"
            ) from error


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
            inputs.append(_input(node))
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
    new.meta["val"] = held
    return new


def _input(node: fx.Node) -> InputSpec:
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
