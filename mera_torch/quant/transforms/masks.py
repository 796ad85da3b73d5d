"""Masks before softmax: what hides entries with -1e4 or minus infinity stays in float.

In int8 the step would be so coarse that all entries which are not hidden became alike. Softmax after it stays in
float, too, as beside any float operator.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from ..findings import Finding
from ..graphs import operators as ops
from ..graphs.patterns import KEPT_IN_FLOAT, find_constants
from ..graphs.run import Inputs

LARGEST_STEP = 1.0
"""Of the logits: a step of 1 multiplies a probability by e."""
_SUMS = frozenset({ops.aten.add.Tensor, ops.aten.sub.Tensor})
_MASKS = _SUMS | {
    ops.aten.masked_fill.Scalar, ops.aten.masked_fill.Tensor, ops.aten.where.self, ops.aten.where.ScalarOther,
    ops.aten.where.ScalarSelf,
}  # fmt: skip


def keep_masks(model: GraphModule, batches: Sequence[Inputs]) -> list[Finding]:
    """Marks in `model` the sums and selections before a softmax whose int8 step would be above LARGEST_STEP, and what
    scales or moves them on the way; one finding for each."""
    masks = _masks_before_softmax(model)
    if not masks:
        return []
    ranges = _Ranges(model, masks)
    with torch.no_grad():
        for batch in batches:
            ranges.run(*batch)
    findings = []
    for node, (low, high) in ranges.found.items():
        step = (high - low) / 255
        if not step <= LARGEST_STEP:
            for masked in (node, *masks[node]):
                masked.meta[KEPT_IN_FLOAT] = "masked logits of a softmax"
            said = f"masked logits reach from {low:.4g} to {high:.4g}, int8 steps of {step:.3g}: kept in float"
            findings.append(Finding.at(node, "softmax-scale", "note", said, fixed=True))
    return findings


def _masks_before_softmax(model: GraphModule) -> dict[Node, list[Node]]:
    """Each, and what stands between it and softmax."""
    constants = find_constants(model.graph)
    found: dict[Node, list[Node]] = {}
    for node in model.graph.nodes:
        source: Any = node.args[0] if node.op == "call_function" and node.target in ops.SOFTMAX else None
        between: list[Node] = []
        while _passes(source, constants):
            between.append(source)
            source = source.args[0]
        if isinstance(source, Node) and source.target in _MASKS and len(source.all_input_nodes) > 1:
            found.setdefault(source, []).extend(between)
    return found


def _passes(node: Any, constants: set[Node]) -> bool:
    """Whether `node` moves or scales the value that is its first argument."""
    if not isinstance(node, Node) or node.op != "call_function":
        return False
    others = [source for source in node.all_input_nodes if source not in constants]
    scales = node.target in ops.ARITHMETIC - _SUMS or len(node.all_input_nodes) == 1 and node.target in _SUMS
    return (node.target in ops.MOVE or scales) and others == [node.args[0]]


class _Ranges(Interpreter):
    """Runs a graph and remembers the lowest and highest value of some nodes."""

    def __init__(self, model: GraphModule, nodes: Collection[Node]) -> None:
        super().__init__(model)
        self.nodes, self.found = nodes, dict[Node, tuple[float, float]]()

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.nodes:
            low, high = (float(v) for v in torch.aminmax(value))
            before = self.found.get(n, (low, high))
            self.found[n] = min(low, before[0]), max(high, before[1])
        return value
