"""Several networks as one, which the compiler schedules together."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from .assemble import joined
from .converters import ImportedModel
from .errors import InvalidModelError


def fuse_models(models: Sequence[torch.nn.Module], share_input: bool = False) -> fx.GraphModule:
    """One module that runs all models: for quantize, export, explain, torch.compile.

    models: two or more nn.Modules or imported models, of any formats, float or quantized. Its inputs are theirs, in
    order, named `<name>_<index of the model>`; its outputs, a tuple, are theirs, flattened, in order. Each output is
    what the model alone gives, to the bit.
    share_input: all models read one input; each must have exactly one, of the same dtype and, but for the layout,
    shape (the first one's layout is taken). It is named as the first model's.

    Raises InvalidModelError for what cannot be fused.
    """
    found = check_models(models)
    if all(isinstance(model, ImportedModel) for model in found):
        fused: fx.GraphModule = joined(found, ["model"] * len(found), share_input)
        return fused
    return _calls(found, share_input)


def check_models(models: Any) -> list[Any]:
    """The models as a list. Raises InvalidModelError if there are fewer than two, or other things among them."""
    if not isinstance(models, list | tuple):
        raise InvalidModelError(f"fuse_models takes a list of models, got {type(models).__name__}")
    if len(models) < 2:
        raise InvalidModelError(f"fuse_models takes two or more models, got {len(models)}")
    for index, model in enumerate(models):
        if not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
            raise InvalidModelError(
                f"fuse_models: model {index} is a {type(model).__name__}; load files with mera_torch.load_model "
                "or ModelLoader first"
            )
    return list(models)


def _calls(models: Sequence[torch.nn.Module], share_input: bool) -> fx.GraphModule:
    """A graph that calls the models, which torch.export then looks into."""
    graph = fx.Graph()
    names = [_inputs_of(index, model) for index, model in enumerate(models)]
    given: list[list[fx.Node]] = []
    for index, found in enumerate(names):
        if share_input and len(found) != 1:
            raise InvalidModelError(
                f"share_input: each model must have exactly one input, model {index} "
                f"({type(models[index]).__name__}) has {len(found)} ({', '.join(found)})"
            )
        if index == 0 or not share_input:
            given.append([graph.placeholder(f"{name}_{index}") for name in found])
    calls = [
        graph.call_module(f"model_{index}", tuple(given[0 if share_input else index])) for index in range(len(models))
    ]
    graph.output(graph.call_function(flat, (calls,)))
    root = torch.nn.Module()
    for index, model in enumerate(models):
        root.add_module(f"model_{index}", _Named(model) if isinstance(model, fx.GraphModule) else model)
    fused = fx.GraphModule(root, graph, class_name="FusedModel")
    fused.training = any(model.training for model in models)  # train() would reach modules that refuse it
    return fused


class _Named(torch.nn.Module):
    """Calls a graph module. torch.export notes the paths of modules, not of graph modules: so it notes this one's."""

    def __init__(self, called: fx.GraphModule) -> None:
        super().__init__()
        self.called = called
        self.training = called.training

    def forward(self, *inputs: Any) -> Any:
        return self.called(*inputs)


def flat(values: Any) -> tuple[Any, ...]:
    """The tensors within, in order."""
    return tuple(pytree.tree_leaves(values))


def _inputs_of(index: int, model: torch.nn.Module) -> list[str]:
    """The names of the inputs without a default, as forward's signature has them."""
    names = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.KEYWORD_ONLY):
            raise InvalidModelError(
                f"fuse_models: forward of model {index} ({type(model).__name__}) takes *{name}; wrap it in a module "
                "whose forward names its inputs"
            )
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.default is parameter.empty:
            names.append(name)
    return names
