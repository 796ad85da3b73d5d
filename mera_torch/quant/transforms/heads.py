"""Separate scales for what a concat joins, where one scale would collapse a part: detection heads above all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..config import QuantConfig
from ..findings import Finding, some
from ..graphs.canonicalize import products_to_linear
from ..graphs.parameters import replace_parameter
from ..graphs.patterns import KEPT_IN_FLOAT, argument, constant_of, provenance, value_of
from ..graphs.run import Inputs, run_batch
from .analysis import Analysis, analyze
from .fake import fake_activation, fake_weight, sqnr_db
from .joins import Join, find_joins, positions_of, read_by_joins

aten: Any = torch.ops.aten

STRENGTHS = (0.5, 1.0)
"""How much of the ratio of ranges a part is multiplied by; 0 leaves the join as it is."""
_GAIN_DB = 1.0


@dataclass(frozen=True)
class Decision:
    """What becomes of a join with a collapsed part.

    Attributes:
        join: The join.
        factors: Of each argument of the concat, what it is multiplied by before; () where nothing is.
        before_db, after_db: Measured at the outputs of the operators that read the join, without and with factors.
    """

    join: Join
    factors: tuple[float, ...] = ()
    before_db: float = 0.0
    after_db: float = 0.0

    @property
    def mends(self) -> bool:
        return self.join.tail is not None or bool(self.factors) or bool(self.join.read_elsewhere)

    @property
    def cure(self) -> str:
        """What is done, in words."""
        if self.join.tail is not None:
            return f"{some([n.name for n in self.join.tail])} in float, each part dequantized with its own scale"
        said = []
        if self.factors:
            shown = ", ".join(f"{factor:.3g}" for factor in self.factors)
            said.append(
                f"inputs multiplied by {shown} and the reading weights divided by it: "
                f"{self.before_db:.1f} -> {self.after_db:.1f} dB at their output"
            )
        if self.join.read_elsewhere:
            names = some([value.name for value in self.join.read_elsewhere])
            said.append(f"{names} requantized for the join alone, since others read it")
        return "; ".join(said)


def split_heads(model: GraphModule, batches: Sequence[Inputs], config: QuantConfig, progress: Any) -> list[Finding]:
    """Gives the parts of joins separate scales where one would collapse some of them; in place, the function stays.

    Args:
        model: Exported and recognized; float transforms that change ranges come before.
        batches: Inputs, to measure ranges with.

    Returns:
        A finding for each join that was changed.
    """
    products_to_linear(model)
    analysis = analyze(model, batches, config, read_by_joins)
    nodes = {node.name: node for node in model.graph.nodes}
    findings = []
    for decision in decide(analysis, batches[0]):
        if decision.mends:
            _apply(model, nodes, decision)
            node = decision.join.node
            findings.append(Finding.at(node, "split-heads", "note", decision.cure, fixed=True))
    model.graph.lint()
    model.recompile()
    return findings


def decide(analysis: Analysis, inputs: Inputs) -> list[Decision]:
    """What to do with each join that has a collapsed part, by what the statistics show; the outputs of operators that
    read joins are compared on one batch, `inputs`."""
    joins = find_joins(analysis)
    measured = [join for join in joins if join.tail is None and _readers(join)]
    values = _inputs_of(analysis.model, measured, inputs)
    return [_weighed(analysis, join, values) if join in measured else Decision(join) for join in joins]


# ---- joins that convolutions and linears read ----


def _readers(join: Join) -> list[Node]:
    """The convolutions and linears that read the joined channels, if nothing else does; else []."""
    value = value_of(join.node)
    if value is None or not positions_of(join):
        return []
    dim = join.dim % value.dim()

    def reads(user: Node) -> bool:
        if not isinstance(user.args[1], Node) or user.args[1].op != "get_attr" or len(user.args[1].users) != 1:
            return False
        if user.target is aten.conv2d.default:
            return dim == 1 and value.dim() == 4 and argument(user, 6, "groups", 1) == 1
        return user.target is aten.linear.default and dim == value.dim() - 1

    users = list(join.node.users)
    return users if users and all(user.op == "call_function" and reads(user) for user in users) else []


def _inputs_of(model: GraphModule, joins: Sequence[Join], inputs: Inputs) -> dict[Node, torch.Tensor]:
    """What the joins read."""
    wanted = {source for join in joins for source, *_ in positions_of(join)}
    found: dict[Node, torch.Tensor] = {}

    def keep(node: Node, value: Any) -> None:
        if node in wanted:
            found[node] = value

    if wanted:
        run_batch(model, inputs, keep)
    return found


def _weighed(analysis: Analysis, join: Join, values: dict[Node, torch.Tensor]) -> Decision:
    """The factors of least error at the outputs of the join's readers."""
    places = positions_of(join)
    magnitude = {part.value: part.magnitude for part in join.parts}
    tried = {}
    for strength in (0.0, *STRENGTHS):
        factors = tuple(
            (join.magnitude / magnitude[source]) ** strength if magnitude.get(source) else 1.0
            for source, *_ in places
        )  # fmt: skip
        x = torch.cat([values[s] * f for (s, *_), f in zip(places, factors, strict=True)], join.dim)
        tried[strength] = (factors, min(_reader_db(analysis, r, join, x, factors) for r in _readers(join)))
    best = max(tried, key=lambda strength: tried[strength][1])
    before, after = tried[0.0][1], tried[best][1]
    factors = tried[best][0] if after - before >= _GAIN_DB else ()
    return Decision(join, factors, before, after)


def _reader_db(
    analysis: Analysis, reader: Node, join: Join, x: torch.Tensor, factors: Sequence[float]
) -> float:  # fmt: skip
    """Signal to noise ratio of what `reader` gives for the joined `x`, with both quantized to int8, in dB."""
    weight = divided(constant_of(analysis.model, reader.args[1]), join, factors)
    function: Any = reader.target
    rest = reader.args[3:]
    with torch.no_grad():
        wanted = function(x, weight, None, *rest)
        found = function(fake_activation(x), fake_weight(weight, analysis.config.per_channel_weights), None, *rest)
    return sqnr_db(wanted, found)


def divided(weight: torch.Tensor, join: Join, factors: Sequence[float]) -> torch.Tensor:
    """The weight [Co, Ci, ...] of a reader, the columns of each part divided by the part's factor."""
    made = weight.clone()
    for (_, begin, end), factor in zip(positions_of(join), factors, strict=True):
        made[:, begin:end] /= factor
    return made


# ---- the rewrite ----


def _apply(model: GraphModule, nodes: dict[str, Node], decision: Decision) -> None:
    join = decision.join
    if join.tail is not None:
        for node in join.tail:
            nodes[node.name].meta[KEPT_IN_FLOAT] = f"the parts of {join.node.name} need separate scales"
        return
    real = nodes[join.node.name]
    sources: Any = real.args[0]
    wanted = {value.name for value in join.read_elsewhere}
    factors = decision.factors or (1.0,) * len(sources)
    made = [
        _multiplied(model, real, source, factor) if factor != 1.0 or source.name in wanted else source
        for source, factor in zip(sources, factors, strict=True)
    ]
    real.args = (made, *real.args[1:])
    if decision.factors:
        for reader in _readers(join):
            weight = nodes[reader.name].args[1]
            replace_parameter(model, weight, divided(constant_of(model, weight), join, decision.factors))


def _multiplied(model: GraphModule, join: Node, source: Node, factor: float) -> Node:
    """source * factor: an operator of its own scale, a table on the DNA."""
    with model.graph.inserting_before(join):
        node = model.graph.call_function(aten.mul.Scalar, (source, factor))
    node.meta = {**provenance(join), "val": value_of(source)}
    return node
