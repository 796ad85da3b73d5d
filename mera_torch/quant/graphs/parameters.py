"""Constants of a graph, changed without touching the user's model, with which a graph shares its tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from mera_torch.errors import InvalidModelError

from .patterns import attribute


def replace_parameter(model: GraphModule, node: Any, value: torch.Tensor) -> None:
    """Lets the get_attr `node`, and all others of the same name, read `value` from now on."""
    owner_path, _, name = str(node.target).rpartition(".")
    owner: Any = attribute(model, owner_path) if owner_path else model
    held = getattr(owner, name)
    setattr(owner, name, _like(held, value))
    for each in model.graph.nodes:
        if each.op == "get_attr" and each.target == node.target and "val" in each.meta:
            each.meta["val"] = value


def freeze(model: GraphModule) -> None:
    """No parameter asks for a gradient from now on."""
    frozen: dict[int, torch.nn.Parameter] = {}
    for owner in model.modules():
        for name, held in owner._parameters.items():
            if held is not None and held.requires_grad:
                new = frozen.setdefault(id(held), torch.nn.Parameter(held.detach(), requires_grad=False))
                owner._parameters[name] = new


def own_parameter(model: GraphModule, reader: Node, index: int) -> Node:
    """The get_attr that is argument `index` of `reader`, after making it one that nobody else reads."""
    node = reader.args[index]
    if not isinstance(node, Node):
        raise InvalidModelError(f"argument {index} of {reader.name!r} must be a constant, got {node!r}")
    same = [n for n in model.graph.nodes if n.op == "get_attr" and n.target == node.target]
    if len(same) == 1 and len(node.users) == 1:
        return node
    held: Any = attribute(model, str(node.target))
    with model.graph.inserting_before(reader):
        made = new_parameter(model, f"{reader.name}_{index}", _like(held, held.detach().clone()))
    made.meta = dict(node.meta)
    reader.update_arg(index, made)
    return made


def new_parameter(model: GraphModule, name: str, value: torch.Tensor) -> Node:
    """A get_attr, at the graph's insertion point, of a new buffer (or Parameter, if it is one) of about that name."""
    while hasattr(model, name):
        name += "_"
    if isinstance(value, torch.nn.Parameter):
        model.register_parameter(name, value)
    else:
        model.register_buffer(name, value)
    made = model.graph.get_attr(name)
    made.meta["val"] = value
    return made


def _like(held: object, value: torch.Tensor) -> torch.Tensor:
    """The value as a Parameter, without gradient, if `held` is one."""
    return torch.nn.Parameter(value, requires_grad=False) if isinstance(held, torch.nn.Parameter) else value
