"""Runs a graph operator by operator, on one batch or on all batches at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree
from torchao.quantization.pt2e import ObserverBase

from .patterns import attribute, find_constants, value_of

Inputs = tuple[Any, ...]
"""The positional arguments of one call of a network: a batch."""


class OperatorRun:
    """Computes each operator of `model` on all batches before the next one; observers are passed over.

    Attributes:
        values: Of each node that is still to be read, its results, one a batch.
    """

    def __init__(self, model: GraphModule, batches: Sequence[Inputs]) -> None:
        self.model, self.count = model, len(batches)
        placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
        leaves = [pytree.tree_leaves(batch) for batch in batches]
        self.values: dict[Node, list[Any]] = {p: [leaf[i] for leaf in leaves] for i, p in enumerate(placeholders)}

    def __iter__(self) -> Iterator[Node]:
        """Every called function, once it is computed; what it read is still there, and `values` may be changed."""
        constants = find_constants(self.model.graph)
        last_reader = {source: node for node in self.model.graph.nodes for source in node.all_input_nodes}
        for node in self.model.graph.nodes:
            if node.op == "output":
                return
            with torch.no_grad():
                if node.op == "get_attr":
                    self.values[node] = [attribute(self.model, str(node.target))] * self.count
                elif node in constants:
                    self.values[node] = [self._compute(node, 0)] * self.count
                elif node.op != "placeholder":
                    self.compute(node)
            if node.op == "call_function":
                yield node
            for source in node.all_input_nodes:
                if last_reader[source] is node:
                    del self.values[source]

    def compute(self, node: Node) -> None:
        """Computes `node`, perhaps once more, from what it reads."""
        self.values[node] = [self._compute(node, i) for i in range(self.count)]

    def _compute(self, node: Node, i: int) -> Any:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: self.values[n][i])
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            return args[0] if isinstance(module, ObserverBase) else module(*args, **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def run_batch(model: GraphModule, inputs: Iterable[Any], visit: Callable[[Node, Any], object]) -> None:
    """Computes `model` on one batch, each value forgotten after its last reader; `visit` sees every node's value.

    Constants are visited as well. `inputs` are the model's positional inputs.
    """
    leaves = iter(pytree.tree_leaves(tuple(inputs)))
    last_reader = {source: node for node in model.graph.nodes for source in node.all_input_nodes}
    values: dict[Node, Any] = {}
    with torch.no_grad():
        for node in model.graph.nodes:
            if node.op == "output":
                return
            if node.op == "placeholder":
                values[node] = next(leaves)
            elif node.op == "get_attr":
                values[node] = attribute(model, str(node.target))
            else:
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
                function: Any = model.get_submodule(str(node.target)) if node.op == "call_module" else node.target
                values[node] = function(*args, **kwargs)
            visit(node, values[node])
            for source in node.all_input_nodes:
                if last_reader[source] is node:
                    del values[source]


def largest_frontier(model: GraphModule) -> int:
    """How many bytes of values an `OperatorRun` of `model` holds at most for one batch, constants aside."""
    constants = find_constants(model.graph)
    last_reader = {source: node for node in model.graph.nodes for source in node.all_input_nodes}
    held: dict[Node, int] = {}
    most = 0
    for node in model.graph.nodes:
        value = value_of(node)
        if node not in constants and value is not None:
            held[node] = value.numel() * value.element_size()
        most = max(most, sum(held.values()))
        for source in node.all_input_nodes:
            if last_reader[source] is node:
                held.pop(source, None)
    return most


def fitting(model: GraphModule, batches: Sequence[Inputs], limit: int) -> Sequence[Inputs]:
    """As many of `batches`, spread evenly, as an `OperatorRun` of `model` holds within `limit` bytes; at least one."""
    count = max(1, limit // max(1, largest_frontier(model)))
    if count >= len(batches):
        return batches
    return [batches[i * len(batches) // count] for i in range(count)]
