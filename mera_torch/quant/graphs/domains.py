"""Domains: the values of a network that must have one scale and zero point.

An operator that only moves values (slice, reshape, pad, ...), that picks some of them (max pool), or that puts several
tensors into one (cat) has no arithmetic to rescale with: what goes in and what comes out have one quantization, and so
has everything that a chain of such operators connects.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Node

from . import operators as ops
from .patterns import QuantizedOp


class Domains:
    """Disjoint sets of values that have one quantization; a value that was never joined is a domain of its own."""

    def __init__(self) -> None:
        self._parent: dict[Node, Node] = {}

    def find(self, value: Node) -> Node:
        """The value that stands for the domain of `value`."""
        root = value
        while (parent := self._parent.get(root, root)) is not root:
            root = parent
        while (parent := self._parent.get(value, value)) is not root:
            self._parent[value], value = root, parent
        return root

    def join(self, values: Iterable[Node]) -> None:
        """Makes one domain of those of all `values`."""
        first, *others = values
        for other in others:
            self._parent[self.find(other)] = self.find(first)

    def members(self, values: Iterable[Node]) -> dict[Node, list[Node]]:
        """Which of `values` each domain holds, in their order, by the value that stands for it."""
        found: dict[Node, list[Node]] = {}
        for value in values:
            found.setdefault(self.find(value), []).append(value)
        return found


def sharing_domains(found: Iterable[QuantizedOp]) -> Domains:
    """The domains that the given operators, computed in int8, make of the values they read and give."""
    domains = Domains()
    for op in found:
        if op.shares:
            domains.join((*op.inputs, op.output))
    return domains


def drop_idle(found: list[QuantizedOp]) -> list[QuantizedOp]:
    """Without the operators that only move values among float operators, inner ones beside a float operator, and
    arithmetic between float operators alone: int8 would cost accuracy and gain nothing there."""

    def idles(op: QuantizedOp) -> bool:
        return op.moves or op.inner

    made = {op.output for op in found if not idles(op)}
    for op in found:
        if idles(op) and not made.isdisjoint(op.inputs):
            made.add(op.output)
    used = {value for op in found if not idles(op) for value in op.inputs}
    for op in reversed(found):
        if idles(op) and op.output in used:
            used.update(op.inputs)

    def works(op: QuantizedOp) -> bool:
        sides = op.output in made, op.output in used
        return all(sides) if op.inner else any(sides) or not op.moves

    islands = _islands(found)
    kept = [op for op in found if works(op) and op.output not in islands]
    return kept if len(kept) == len(found) else drop_idle(kept)


def _islands(found: list[QuantizedOp]) -> set[Node]:
    """The results of sums, products and moves that read what a float operator computes, pass values on among themselves
    alone, and give them to float operators: such as what scales and masks the logits of an attention."""
    made = {op.output for op in found}
    together = Domains()
    for op in found:
        together.join((op.output, *made.intersection(op.inputs)))
    left: set[Node] = set()  # by the value that stands for a set of operators: it is no island
    fed: set[Node] = set()
    for op in found:
        island = together.find(op.output)
        light = len(op.nodes) == 1 and (op.moves or op.nodes[0].target in ops.ARITHMETIC)
        if not light or any(user.op == "output" for user in op.output.users):
            left.add(island)
        if any(value.op == "call_function" and value not in made and value.all_input_nodes for value in op.inputs):
            fed.add(island)
    return {op.output for op in found if together.find(op.output) in fed - left}


def fixed_domains(found: list[QuantizedOp], domains: Domains) -> dict[Node, tuple[float, int]]:
    """Scale and zero point of the domains all of whose values come from operators of the same known range."""
    produced = {op.output for op in found}
    wanted: dict[Node, set[tuple[float, int] | None]] = {}
    for op in found:
        if not op.shares:
            wanted.setdefault(domains.find(op.output), set()).add(op.fixed)
        for value in op.inputs:
            if value not in produced:
                wanted.setdefault(domains.find(value), set()).add(None)
    return {
        domain: only
        for domain, ranges in wanted.items()
        if len(ranges) == 1 and (only := next(iter(ranges))) is not None
    }
