"""A network with its layers as the modules of torch.nn that people write it with.

The annotators of PT2E quantizers recognize a convolution by its module, nn.Conv2d itself: not a subclass (EfficientNet-
Lite's, padded as TensorFlow does), and not an operator of a graph that was imported (the ONNX networks').
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

aten: Any = torch.ops.aten


def plain(model: nn.Module, example: Tensor) -> GraphModule:
    """`model` as a graph that calls nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU and nn.ReLU6 wherever they do what
    its layers do, and operators of aten elsewhere. It computes the same, bit for bit."""
    graph_module: GraphModule = torch.export.export(model, (example,)).module(check_guards=False)
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or (found := _layer(graph_module, node)) is None:
            continue
        name = f"layer_{node.name}"
        graph_module.add_submodule(name, found)
        with graph.inserting_before(node):
            called = graph.call_module(name, (node.args[0],))
        called.meta.update(node.meta)
        node.replace_all_uses_with(called)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        node.meta.clear()  # it names the modules of the original, and export would take it over
    graph_module.recompile()
    return graph_module


def _layer(owner: GraphModule, node: Node) -> nn.Module | None:
    """The module that does what `node` does to its first argument, or None."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or node.target not in LAYERS:
        return None
    values = {argument.name: argument.default_value for argument in schema.arguments}
    given = dict(zip(values, node.args, strict=False))
    values |= {name: _value(owner, value) for name, value in (given | node.kwargs).items()}
    return LAYERS[node.target](**values)


def _value(owner: GraphModule, value: Any) -> Any:
    """An argument; a parameter or buffer as its tensor."""
    if isinstance(value, Node) and value.op == "get_attr":
        return operator.attrgetter(str(value.target))(owner).detach()
    return value


def _conv(
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    transposed: bool = False,
    **_: Any,
) -> nn.Module | None:
    if transposed or weight.dim() != 4:
        return None
    layer = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], weight.shape[2:], stride, padding, dilation, groups, bias is not None
    )
    return _with(layer, weight=weight, bias=bias)


def _linear(weight: Tensor, bias: Tensor | None, **_: Any) -> nn.Module:
    return _with(nn.Linear(weight.shape[1], weight.shape[0], bias is not None), weight=weight, bias=bias)


def _batch_norm(
    input: Node, weight: Any, bias: Any, running_mean: Tensor, running_var: Tensor, eps: float, **_: Any
) -> nn.Module | None:
    if input.meta["val"].dim() != 4 or weight is None:
        return None
    layer = nn.BatchNorm2d(len(running_mean), eps)
    return _with(layer, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)


def _hardtanh(min_val: float, max_val: float, **_: Any) -> nn.Module | None:
    return nn.ReLU6() if (min_val, max_val) == (0, 6) else None


def _with(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """`layer` in evaluation mode with these parameters and buffers."""
    layer.load_state_dict({name: value for name, value in tensors.items() if value is not None}, strict=False)
    return layer.eval()


LAYERS: dict[Any, Callable[..., nn.Module | None]] = {
    aten.conv2d.default: _conv,
    aten.convolution.default: _conv,
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten.relu.default: lambda **_: nn.ReLU(),
    aten.relu_.default: lambda **_: nn.ReLU(),
    aten.relu6.default: lambda **_: nn.ReLU6(),
    aten.hardtanh.default: _hardtanh,
    aten.hardtanh_.default: _hardtanh,
}
