"""The user's float network as one graph, ready for the float transforms."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch.fx import GraphModule, Node

from mera_torch.errors import InvalidModelError, UnsupportedError

from .canonicalize import (
    keep_batch_statistics,
    remove_dropout,
    remove_in_place,
    restore_batch_norms,
    restore_convolutions,
)
from .patterns import value_of
from .run import Inputs


def export_float(model: torch.nn.Module, examples: Inputs) -> GraphModule:
    """`model`, which stays as it is, exported in evaluation mode for inputs like `examples`.

    Raises:
        InvalidModelError: it cannot be exported, or is already quantized.
        UnsupportedError: it is not in float32, or has dynamic shapes.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidModelError("quantize: a ScriptModule cannot be exported; give the nn.Module it was made from")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise UnsupportedError(
                f"quantize: parameter {name!r} is {parameter.dtype}, only torch.float32 can be quantized; "
                "call model.float() first"
            )
        if parameter.is_meta:
            raise InvalidModelError(
                f"quantize: parameter {name!r} is on the meta device, without values: load them first"
            )
    _refuse_quantized(model)
    with _in_evaluation(model), torch.no_grad():
        try:
            exported = _functional(torch.export.export(model, examples))
        except Exception as error:  # torch.export has no common base of its errors
            raise InvalidModelError(
                f"quantize: torch.export cannot capture {type(model).__name__}: {_first_line(error)}"
            ) from error
    _refuse_autocast(exported)
    _keep_inputs(exported)
    restore_convolutions(exported)
    restore_batch_norms(exported)
    keep_batch_statistics(exported)
    _weights_as_parameters(exported)
    _refuse_quantized(exported)
    for node in exported.graph.nodes:
        if node.op == "placeholder" and (value := value_of(node)) is not None:
            if any(not isinstance(size, int) for size in value.shape):
                raise UnsupportedError(
                    f"quantize: input {node.name!r} has a dynamic shape {tuple(value.shape)}; the DNA needs fixed ones"
                )
    return exported


def _refuse_quantized(model: torch.nn.Module) -> None:
    graphs = (part.graph for part in model.modules() if isinstance(part, GraphModule))
    if any("quantized_decomposed" in str(node.target) for graph in graphs for node in graph.nodes):
        raise InvalidModelError("quantize: the model is already quantized (it contains quantized_decomposed operators)")


def _refuse_autocast(exported: GraphModule) -> None:
    if any("autocast" in str(node.target) for node in exported.graph.nodes):
        raise UnsupportedError(
            "quantize: the model's forward() enters torch.autocast, which says itself what computes in which type; "
            "quantize the model without it"
        )


def _keep_inputs(exported: GraphModule) -> None:
    """Takes out what writes results back into the model's inputs, whose new values the network reads anyway.

    Raises UnsupportedError if a buffer is written: then one call would decide over the next.
    """
    for node in list(exported.graph.nodes):
        if node.target is not torch.ops.aten.copy_.default or not isinstance(node.args[0], Node) or node.users:
            continue
        target = node.args[0]
        same = [n for n in exported.graph.nodes if n.op == "get_attr" and n.target == target.target]
        if target.op == "get_attr" and any(user is not node for each in same for user in each.users):
            raise UnsupportedError(
                f"quantize: the model changes its buffer {str(target.target)!r} in evaluation mode, so that one "
                "call decides over the next; the DNA computes functions of the inputs alone"
            )
        if target.op in ("placeholder", "get_attr"):
            exported.graph.erase_node(node)
    exported.recompile()


def _first_line(error: Exception) -> str:
    """What torch.export says, without its advice on debugging; a KeyError's text is its key alone."""
    lines = str(error).strip().splitlines()
    if not lines or isinstance(error, KeyError):
        return f"{type(error).__name__} {error}".strip()
    why = next((line.strip() for line in lines if line.strip().startswith("Explanation:")), "")
    return f"{lines[0]} {why}".strip()[:1000]


def _functional(program: torch.export.ExportedProgram) -> GraphModule:
    """The program as a graph that changes no value in place: observers would copy what is written through a view."""
    exported: GraphModule = program.module(check_guards=False)
    remove_dropout(exported)
    remove_in_place(exported)
    if any(node.op == "call_function" and _writes(node) for node in exported.graph.nodes):
        exported = program.run_decompositions({}).module(check_guards=False)
    return exported


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def twin(model: GraphModule) -> GraphModule:
    """A copy of `model` with a graph of its own. Both share their tensors, which must be replaced, never written into,
    to change one of the two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about its own treespecs
        new = GraphModule(model, copy.deepcopy(model.graph))
    new.meta.update(model.meta)
    return new


def _weights_as_parameters(exported: GraphModule) -> None:
    """Imported models hold weights as buffers; torchao folds batch norms into parameters alone."""
    read = [source for node in exported.graph.nodes if "conv" in str(node.target) for source in node.args[1:3]]
    for name in dict.fromkeys(str(node.target) for node in read if isinstance(node, Node) and node.op == "get_attr"):
        path, _, field = name.rpartition(".")
        owner = exported.get_submodule(path)
        held = owner._buffers.pop(field, None)
        if held is not None:
            owner.register_parameter(field, torch.nn.Parameter(held, requires_grad=False))


@contextmanager
def _in_evaluation(model: torch.nn.Module) -> Iterator[None]:
    """`model` in evaluation mode; afterwards every module is as it was."""
    modes = {module: module.training for module in model.modules()}
    with suppress(NotImplementedError):  # an exported module is in one mode for ever
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
