"""Exporters write a bias as an addition of its own: it returns into the convolution or linear before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..graph import dtype, shape
from ..model import ImportedModel

aten: Any = torch.ops.aten


def fuse_biases(model: ImportedModel) -> ImportedModel:
    """linear(x, w) + b -> linear(x, w, b), and likewise convolution, where b is one constant for each channel."""
    for node in list(model.graph.nodes):
        if node.op != "call_function" or node.target is not aten.add.Tensor or node.kwargs:
            continue
        for product, term in (node.args, node.args[::-1]):
            if _takes_bias(product) and _is_bias(product, term):
                _fuse(model, node, product, term)
                break
    model.recompile()
    return model


def _takes_bias(product: Any) -> bool:
    if not isinstance(product, fx.Node) or product.op != "call_function" or len(product.users) != 1:
        return False
    return (product.target is aten.linear.default and len(product.args) == 2) or (
        product.target is aten.convolution.default and product.args[2] is None
    )


def _is_bias(product: fx.Node, term: Any) -> bool:
    """Whether the term is a constant with one value a channel (of the last dimension, or of a convolution's second)."""
    if not isinstance(term, fx.Node) or term.op != "get_attr" or dtype(term) != dtype(product):
        return False
    sizes, rank = shape(product), len(shape(product))
    if len(shape(term)) > rank:
        return False
    aligned = (1,) * (rank - len(shape(term))) + shape(term)
    axis = rank - 1 if product.target is aten.linear.default else 1
    return aligned == tuple(size if i == axis else 1 for i, size in enumerate(sizes))


def _fuse(model: ImportedModel, node: fx.Node, product: Any, term: fx.Node) -> None:
    held: torch.Tensor = getattr(model, str(term.target))
    name = f"{product.name}_bias"
    while hasattr(model, name):
        name += "_"
    model.register_parameter(name, torch.nn.Parameter(held.detach().flatten(), requires_grad=False))
    with model.graph.inserting_before(product):
        bias = model.graph.get_attr(name)
    bias.meta["val"] = term.meta["val"].flatten()
    product.args = (*product.args[:2], bias, *product.args[3:])
    node.replace_all_uses_with(product)
    model.graph.erase_node(node)
    if not term.users:
        model.graph.erase_node(term)
        delattr(model, str(term.target))
