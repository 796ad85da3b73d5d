"""Where each operator of a model runs and, if on the host, which constraint it broke."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..ops.common import DEQUANTIZE_OPS, QUANTIZE_OPS, op_name, origins
from ..ops.registry import FOLDS
from ..ops.table import is_pointwise
from ..passes.sink_dequantize import MOVES
from .partition import MOVEMENT, Partition

NOT_QUANTIZED = "not quantized: the model computes in float; quantize it with mera_torch.quantize(model, ...)"


@dataclass(frozen=True)
class Row:
    """One operator of the model as captured.

    where: "DNA region 0", ..., "border" (the runner quantizes or dequantizes there) or "host"; reason: the constraint
    that keeps it on the host, else "".
    """

    node: str
    op: str
    module: str
    source: str
    where: str
    reason: str = ""


@dataclass
class Explanation:
    """rows, in the order of execution. str() is a table; counts_by_reason() sums up."""

    rows: list[Row]
    regions: int
    notes: list[str] = field(default_factory=list)

    @property
    def on_dna(self) -> int:
        """How many operators run on the DNA."""
        return sum(row.where.startswith("DNA") for row in self.rows)

    @property
    def on_host(self) -> int:
        """How many operators run on the host."""
        return sum(row.where == "host" for row in self.rows)

    def counts_by_reason(self) -> dict[str, int]:
        """How many operators each reason keeps on the host, most frequent first."""
        return dict(Counter(row.reason for row in self.rows if row.where == "host").most_common())

    def why_nothing_runs(self) -> str:
        """One sentence for a model of which nothing runs on the DNA."""
        reasons = list(self.counts_by_reason())
        if NOT_QUANTIZED in reasons or not reasons:
            return f"nothing in the model can run on the DNA: {NOT_QUANTIZED}"
        return "nothing in the model can run on the DNA: " + "; ".join(reasons[:3])

    def summary(self) -> str:
        """One line."""
        return f"{self.on_dna} operators on the DNA in {self.regions} regions, {self.on_host} on the host"

    def __str__(self) -> str:
        header = ("node", "operator", "module", "source", "where", "reason")
        cells = [header, *((r.node, r.op, r.module, r.source, r.where, r.reason) for r in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(5)]
        lines = [
            "  ".join((*(c.ljust(w) for c, w in zip(row[:5], widths, strict=True)), row[5])).rstrip() for row in cells
        ]
        reasons = [f"{count:5d} x {reason}" for reason, count in self.counts_by_reason().items()]
        return "\n".join([*lines, "", self.summary(), *reasons, *self.notes])

    def __rich__(self) -> Any:
        """The table for rich.print."""
        from rich.table import Table

        table = Table(title=self.summary())
        for name in ("node", "operator", "module", "source", "where", "reason"):
            table.add_column(name)
        for row in self.rows:
            style = "green" if row.where.startswith("DNA") else "yellow" if row.where == "host" else None
            table.add_row(row.node, row.op, row.module, row.source, row.where, row.reason, style=style)
        return table


def explain(model: Any, inputs: Any = None) -> Explanation:
    """Says of each operator of a model whether it runs on the DNA and, if not, why not. Compiles and writes nothing.

    model: as for mera_torch.export, or a float module (nothing of which runs on the DNA). inputs: a tuple of tensors.
    """
    from ..compile import build, settings_of
    from .capture import capture

    return build(capture(model, inputs), settings_of("SAKURA_1", "InterpreterHw", None)).explanation


def explain_nodes(gm: fx.GraphModule, parts: Partition) -> Explanation:
    """The explanation of a graph that has been through the passes and partitioned."""
    region_of = {node: region.index for region in parts.regions for node in region.nodes}
    quantized = any(n.target in QUANTIZE_OPS | DEQUANTIZE_OPS or n in region_of for n in gm.graph.nodes)
    rows: list[Row] = []
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        if node in region_of:
            where, reason = f"DNA region {region_of[node]}", ""
        elif _at_border(node, region_of):
            where, reason = "border", ""
        else:
            where, reason = "host", _reason(node, quantized, region_of)
        rows.extend(Row(o.name, o.op, o.module, o.source, where, reason) for o in _unfolded(node))
    return Explanation(_unique(rows), len(parts.regions))


def _unfolded(node: fx.Node) -> Sequence[Any]:
    found = origins(node)
    if node.target in QUANTIZE_OPS | DEQUANTIZE_OPS or len(found) == 1:
        return found
    skipped = {op_name(t) for t in QUANTIZE_OPS | DEQUANTIZE_OPS}
    return [o for o in found if o.op not in skipped] or found[:1]


def _unique(rows: Iterable[Row]) -> list[Row]:
    """One row an operator: one that became several nodes is on the host if any of these is."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.node not in found or (row.where == "host" and found[row.node].where != "host"):
            found[row.node] = row
    return list(found.values())


def _at_border(node: fx.Node, region_of: dict[fx.Node, int]) -> bool:
    if node.target in QUANTIZE_OPS:
        return any(user in region_of for user in node.users)
    return node.target in DEQUANTIZE_OPS and any(source in region_of for source in node.all_input_nodes)


def _is_weight(node: fx.Node) -> bool:
    return node.target in DEQUANTIZE_OPS and node.all_input_nodes[0].op == "get_attr"


def _reason(node: fx.Node, quantized: bool, region_of: dict[fx.Node, int]) -> str:
    if "mera_reason" in node.meta:
        return str(node.meta["mera_reason"])
    if not quantized:
        return NOT_QUANTIZED
    target: Any = node.target
    if target in MOVEMENT and node.meta["val"].dtype is torch.int8:
        return "it only moves data, and stands beside no DNA operator"
    if _is_weight(node):
        return "the operator that reads this weight runs on the host"
    if target in QUANTIZE_OPS | DEQUANTIZE_OPS:
        return "it quantizes for, or dequantizes from, an operator on the host"
    if target not in FOLDS and not is_pointwise(target) and target not in MOVES:
        return f"{op_name(target)} has no DNA operator"
    floats = [i for i in node.all_input_nodes if i.op != "get_attr" and i.target not in DEQUANTIZE_OPS]
    if floats:
        return f"its input {floats[0].name} is float: a host operator or no quantize stands before it"
    return "its result stays float: no quantize follows it"
