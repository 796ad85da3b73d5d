"""Runs the quantized graph and its float twin side by side, one batch at a time, holding only live values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from .attribution import Alone, FloatFed, Graph, Operator, is_rounding, restored

Side = Literal["quantized", "reference"]
Key = tuple[Side, Node]


@dataclass(frozen=True)
class Seen:
    """One operator's values for one batch: the float twin's, the running quantized graph's (restored to float), its
    codes as the graph holds them (None if it is not rounded), and what it makes of float inputs (None if an input has
    no twin)."""

    operator: Operator
    wanted: Any
    got: Any
    codes: Any
    alone: Alone | None


@dataclass(frozen=True)
class _Step:
    """Computes a node of one graph, or shows an operator; reads: what it needs, frees: what nothing needs after it."""

    side: Side
    node: Node
    operator: Operator | None
    reads: tuple[Key, ...]
    frees: tuple[Key, ...] = ()


class SideBySide:
    """Two graphs, ready to be run together; operators: of find_operators()."""

    def __init__(self, quantized: Graph, reference: Graph, operators: Sequence[Operator]) -> None:
        self.quantized, self.reference, self.operators = quantized, reference, operators
        self._float_fed = FloatFed(quantized, reference, operators)
        self._twins = self._float_fed.twins
        self._same = _same_roundings(quantized)
        self._steps = self._with_lifetimes(self._schedule())

    def run(
        self, inputs: Sequence[Any], floats: Sequence[Any], visit: Callable[[Seen], object]
    ) -> tuple[list[Any], list[Any]]:
        """Shows every operator to `visit`; gives the flat outputs of both graphs, which take `inputs` and `floats`."""
        values: dict[Key, Any] = {}
        for (side, graph), given in zip(self._graphs(), (inputs, floats), strict=True):
            flat = pytree.tree_leaves(tuple(given))
            values.update({(side, node): value for node, value in zip(graph.inputs, flat, strict=True)})
        with torch.no_grad():
            for step in self._steps:
                if step.operator is not None:
                    visit(self._seen(step.operator, values))
                elif (step.side, step.node) not in values:
                    values[step.side, step.node] = self._computed(step, values)
                for key in step.frees:
                    del values[key]
        first, second = (self._outputs(side, graph, values) for side, graph in self._graphs())
        return first, second

    def _graphs(self) -> tuple[tuple[Side, Graph], tuple[Side, Graph]]:
        return ("quantized", self.quantized), ("reference", self.reference)

    def _computed(self, step: _Step, values: dict[Key, Any]) -> Any:
        if step.side == "quantized" and step.node in self._same:
            return values["quantized", self._same[step.node]]
        graph = self.quantized if step.side == "quantized" else self.reference
        return graph.compute(step.node, lambda n: graph.constants[n] if n in graph.constants else values[step.side, n])

    def _outputs(self, side: Side, graph: Graph, values: dict[Key, Any]) -> list[Any]:
        found = torch.fx.map_arg(
            graph.output.args[0], lambda n: graph.constants[n] if n in graph.constants else values[side, n]
        )
        return pytree.tree_leaves(found)

    def _seen(self, operator: Operator, values: dict[Key, Any]) -> Seen:
        def quantized(node: Node) -> Any:
            return values["quantized", node]

        twin = operator.twin
        wanted = None if twin is None else values["reference", twin]
        codes = None if operator.rounding is None else quantized(operator.rounding)
        alone = None
        if self._float_fed.can_run(operator):
            floats = {node: values["reference", node] for node in self._float_reads(operator)}
            alone = self._float_fed.run(operator, floats)
        return Seen(operator, wanted, restored(self.quantized, operator, quantized), codes, alone)

    # ---- the order ----

    def _schedule(self) -> list[_Step]:
        """Both graphs in their own order; the float graph is ahead as far as each operator's twin."""
        after: dict[Node, list[Operator]] = {}
        for operator in self.operators:
            after.setdefault(operator.restored or operator.rounding or operator.value, []).append(operator)
        ahead = iter([node for node in self.reference.nodes if self.reference.is_computed(node)])
        done = {*self.reference.inputs}
        steps: list[_Step] = []

        def computed(side: Side, node: Node, graph: Graph) -> _Step:
            return _Step(side, node, None, tuple((side, source) for source in graph.variables(node)))

        for node in self.quantized.nodes:
            if self.quantized.is_computed(node):
                step = computed("quantized", node, self.quantized)
                same = self._same.get(node)
                steps.append(step if same is None else _Step("quantized", node, None, (("quantized", same),)))
            for operator in after.get(node, ()):
                while operator.twin is not None and operator.twin not in done:
                    done.add(float_node := next(ahead))
                    steps.append(computed("reference", float_node, self.reference))
                steps.append(_Step("quantized", node, operator, self._reads(operator)))
        return [*steps, *(computed("reference", node, self.reference) for node in ahead)]

    def _float_reads(self, operator: Operator) -> list[Node]:
        read = [*operator.sources, operator.value]
        return [self._twins[value] for value in read if value in self._twins]

    def _reads(self, operator: Operator) -> tuple[Key, ...]:
        own = [node for node in (operator.value, operator.rounding, operator.restored) if node is not None]
        floats: list[Key] = [("reference", node) for node in self._float_reads(operator)]
        return (*floats, *(("quantized", node) for node in own))

    def _with_lifetimes(self, steps: list[_Step]) -> list[_Step]:
        needed: set[Key] = set()
        for side, graph in self._graphs():
            needed.update((side, source) for source in graph.variables(graph.output))
        found = []
        for step in reversed(steps):
            own: set[Key] = {(step.side, step.node)} if step.operator is None else set()
            last = {*step.reads, *own} - needed  # a result that nothing reads is freed at once
            found.append(_Step(step.side, step.node, step.operator, step.reads, tuple(last)))
            needed.update(step.reads)
        return found[::-1]


def _same_roundings(graph: Graph) -> dict[Node, Node]:
    """Each rounding node that does what an earlier one does -> that one."""
    first: dict[Any, Node] = {}
    found = {}
    for node in graph.nodes:
        if is_rounding(node) and graph.is_computed(node):
            key = (node.target, node.args, tuple(sorted(node.kwargs.items(), key=lambda item: item[0])))
            earlier = first.setdefault(key, node)
            if earlier is not node:
                found[node] = earlier
    return found
