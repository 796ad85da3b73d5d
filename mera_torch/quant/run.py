"""Runs a graph one operator at a time over a whole set of inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import ObserverBase

from .patterns import attribute, find_constants


def run_by_operator(
    model: GraphModule, batches: Sequence[tuple[Any, ...]], visit: Callable[[Node, list[Any]], list[Any]]
) -> None:
    """Computes each operator of `model` on all batches before the next one; observers are passed over.

    `visit(node, outputs)` sees the results, one a batch, of every called function, and returns what later operators
    shall read. A value is forgotten after its last reader.
    """
    placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
    values: dict[Node, list[Any]] = {node: [batch[i] for batch in batches] for i, node in enumerate(placeholders)}
    constants = find_constants(model.graph)
    last_reader = {source: node for node in model.graph.nodes for source in node.all_input_nodes}
    with torch.no_grad():
        for node in model.graph.nodes:
            if node.op == "output":
                return
            if node.op == "get_attr":
                values[node] = [attribute(model, str(node.target))] * len(batches)
            elif node in constants:
                values[node] = [_compute(model, node, values, 0)] * len(batches)
            elif node.op != "placeholder":
                values[node] = [_compute(model, node, values, i) for i in range(len(batches))]
            if node.op == "call_function":
                values[node] = visit(node, values[node])
            for source in node.all_input_nodes:
                if last_reader[source] is node:
                    del values[source]


def _compute(model: GraphModule, node: Node, values: dict[Node, list[Any]], i: int) -> Any:
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: values[n][i])
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return args[0] if isinstance(module, ObserverBase) else module(*args, **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]
