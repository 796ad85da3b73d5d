"""Where each operator of a model runs and, if on the host, which constraint it broke."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import fx

from ..errors import CalibrationError, InvalidModelError, UnsupportedError
from ..ops import bf16
from ..ops.common import DEQUANTIZE_OPS, QUANTIZE_OPS, op_name, origins
from ..ops.movement import MOVEMENT
from ..ops.registry import FOLDS
from ..ops.table import is_pointwise
from ..passes.sink_dequantize import MOVES
from ..platform import Platform
from .costs import Crossings, macs_of, round_trip_cycles
from .hints import hint_for
from .partition import Partition

NOT_QUANTIZED = "not quantized: the model computes in float; quantize it with mera_torch.quantize(model, ...)"

AS_QUANTIZED = "the model is float: these are the places once it is quantized with mera_torch.quantize(model, ...)"


@dataclass(frozen=True)
class Row:
    """One operator of the model as captured.

    where: "DNA region 0", ..., "border" (the runner quantizes or dequantizes there) or "host"; reason: the constraint
    that keeps it on the host, else ""; hint: what to do about it, where that is known.
    macs: its multiply-accumulates; border_bytes: what crosses between host and DNA because it runs on the host, and
    cycles: how long that takes, estimated (costs.round_trip_cycles).
    """

    node: str
    op: str
    module: str
    source: str
    where: str
    reason: str = ""
    hint: str = ""
    macs: int = 0
    border_bytes: int = 0
    cycles: int = 0


COLUMNS = ("node", "operator", "module", "source", "where", "MACs", "round trip", "reason")


@dataclass
class Explanation:
    """rows, in the order of execution; platform: whose cycles they count. str() is a table, to_dict() is for JSON,
    counts_by_reason() sums up."""

    rows: list[Row]
    regions: int
    platform: Platform
    notes: list[str] = field(default_factory=list)

    @property
    def on_dna(self) -> int:
        """How many operators run on the DNA."""
        return sum(row.where.startswith("DNA") for row in self.rows)

    @property
    def on_host(self) -> int:
        """How many operators run on the host."""
        return sum(row.where == "host" for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole model, the host's included."""
        return sum(row.macs for row in self.rows)

    @property
    def macs_on_dna(self) -> float:
        """The DNA's share of these, 0 to 1; 1 if there are none."""
        return sum(row.macs for row in self.rows if row.where.startswith("DNA")) / self.macs if self.macs else 1.0

    def share(self, row: Row) -> float:
        """The row's share of all multiply-accumulates, 0 to 1."""
        return row.macs / self.macs if self.macs else 0.0

    def microseconds(self, row: Row) -> float:
        """How long the row's round trip takes, estimated."""
        return row.cycles / self.platform.clock_mhz

    def counts_by_reason(self) -> dict[str, int]:
        """How many operators each reason keeps on the host, most frequent first."""
        return dict(Counter(row.reason for row in self.rows if row.where == "host").most_common())

    def hints(self) -> dict[str, list[str]]:
        """Each hint -> the nodes that it is for."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            if row.hint:
                found.setdefault(row.hint, []).append(row.node)
        return found

    def why_nothing_runs(self) -> str:
        """One sentence for a model of which nothing runs on the DNA."""
        reasons = list(self.counts_by_reason())
        if NOT_QUANTIZED in reasons or not reasons:
            return f"nothing in the model can run on the DNA: {NOT_QUANTIZED}"
        return "nothing in the model can run on the DNA: " + "; ".join(reasons[:3])

    def summary(self) -> str:
        """One line."""
        places = f"{self.on_dna} operators on the DNA in {self.regions} regions, {self.on_host} on the host"
        share = f"{self.macs_on_dna:.1%} of {self.macs:,} MACs on the DNA" if self.macs else ""
        cycles = sum(row.cycles for row in self.rows)
        trips = f"round trips about {cycles / self.platform.clock_mhz:.1f} us on {self.platform.name}" if cycles else ""
        return "; ".join(filter(None, (places, share, trips)))

    def to_dict(self) -> dict[str, Any]:
        """All of it, in types that JSON has: shares 0 to 1, times in microseconds."""
        return {
            "platform": self.platform.name,
            "regions": self.regions,
            "operators_on_dna": self.on_dna,
            "operators_on_host": self.on_host,
            "macs": self.macs,
            "macs_on_dna_share": self.macs_on_dna,
            "round_trip_us": sum(self.microseconds(row) for row in self.rows),
            "reasons": self.counts_by_reason(),
            "notes": list(self.notes),
            "rows": [
                {**asdict(row), "macs_share": self.share(row), "round_trip_us": self.microseconds(row)}
                for row in self.rows
            ],
        }

    def _cells(self, row: Row) -> tuple[str, ...]:
        share = f"{self.share(row):.1%}" if row.macs else ""
        trip = f"{row.border_bytes:,} B, {self.microseconds(row):.1f} us" if row.border_bytes else ""
        return (row.node, row.op, row.module, row.source, row.where, share, trip, row.reason)

    def __str__(self) -> str:
        cells = [COLUMNS, *map(self._cells, self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS) - 1)]
        lines = [
            "  ".join((*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1])).rstrip() for row in cells
        ]
        reasons = [f"{count:5d} x {reason}" for reason, count in self.counts_by_reason().items()]
        return "\n".join([*lines, "", self.summary(), *reasons, *self._advice(), *self.notes])

    def _advice(self) -> list[str]:
        return [f"hint: {_some(nodes)}: {hint}" for hint, nodes in self.hints().items()]

    def __rich__(self) -> Any:
        """The table for rich.print."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.summary())
        for name in COLUMNS:
            table.add_column(name, justify="right" if name in ("MACs", "round trip") else "left")
        for row in self.rows:
            style = "green" if row.where.startswith("DNA") else "yellow" if row.where == "host" else None
            table.add_row(*map(Text, self._cells(row)), style=style)
        return Group(table, *map(Text, [*self._advice(), *self.notes]))


def _some(names: list[str]) -> str:
    """At most three of the names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def explain(model: Any, inputs: Any = None) -> Explanation:
    """Says of each operator of a model whether it runs on the DNA and, if not, why not. Compiles and writes nothing.

    model: as for mera_torch.export. inputs: a tuple of tensors (None for files, imported models and ExportedPrograms).
    A float model is explained as it will be once quantized, and a note says so.
    """
    from ..compile import build, opened, settings_of
    from .capture import capture

    module, inputs = opened(model, inputs)
    captured = capture(module, inputs)
    settings = settings_of("SAKURA_1", "InterpreterHw", None)
    if is_quantized(captured.gm):
        return build(captured, settings).explanation
    quantized = _quantized(module, inputs)
    if quantized is None:
        return build(captured, settings).explanation
    explanation = build(capture(quantized, inputs), settings).explanation
    explanation.notes.append(AS_QUANTIZED)
    return explanation


def is_quantized(gm: fx.GraphModule) -> bool:
    """Whether anything in the graph is quantized."""
    return any(node.target in QUANTIZE_OPS | DEQUANTIZE_OPS for node in gm.graph.nodes)


def _quantized(model: Any, inputs: Any) -> fx.GraphModule | None:
    """The model quantized on its example inputs, for the sake of the places; None if nothing in it can be."""
    from ..quant import quantize

    try:
        return quantize(model, inputs, [inputs], progress=False)
    except (UnsupportedError, InvalidModelError, CalibrationError):
        return None


def explain_nodes(gm: fx.GraphModule, parts: Partition, captured: fx.GraphModule, platform: Platform) -> Explanation:
    """The explanation of a graph that has been through the passes and partitioned; captured: as it was before."""
    region_of = {node: region.index for region in parts.regions for node in region.nodes}
    quantized = is_quantized(gm) or bool(region_of)
    macs = {node.name: macs_of(node) for node in captured.graph.nodes}
    crossings = Crossings(set(region_of))
    rows: list[Row] = []
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        where, reason, tensors = f"DNA region {region_of.get(node)}", "", []
        if node not in region_of and _at_border(node, region_of):
            where = "border"
        elif node not in region_of:
            where, reason, tensors = "host", _reason(node, quantized, region_of), crossings.of(node)
        for index, o in enumerate(_unfolded(node)):
            moved = tensors if index == 0 else []
            hint = hint_for(o.op, reason) if reason else ""
            rows.append(
                Row(
                    o.name, o.op, o.module, o.source, where, reason, hint, macs.get(o.name, 0), sum(moved),
                    round_trip_cycles(moved, platform),
                )
            )  # fmt: skip
    return Explanation(_unique(rows), len(parts.regions), platform)


def _unfolded(node: fx.Node) -> Sequence[Any]:
    found = origins(node)
    if node.target in QUANTIZE_OPS | DEQUANTIZE_OPS or len(found) == 1:
        return found
    skipped = {op_name(t) for t in QUANTIZE_OPS | DEQUANTIZE_OPS}
    return [o for o in found if o.op not in skipped] or found[:1]


def _unique(rows: Iterable[Row]) -> list[Row]:
    """One row an operator: one that became several nodes is on the host if any of these is, and costs what they do."""
    found: dict[str, Row] = {}
    for row in rows:
        first = found.get(row.node)
        if first is None:
            found[row.node] = row
            continue
        chosen = row if row.where == "host" and first.where != "host" else first
        found[row.node] = replace(
            chosen, border_bytes=first.border_bytes + row.border_bytes, cycles=first.cycles + row.cycles
        )
    return list(found.values())


def _at_border(node: fx.Node, region_of: dict[fx.Node, int]) -> bool:
    if node.target in QUANTIZE_OPS:
        return any(user in region_of for user in node.users)
    return node.target in DEQUANTIZE_OPS and any(source in region_of for source in node.all_input_nodes)


def _is_weight(node: fx.Node) -> bool:
    return node.target in DEQUANTIZE_OPS and node.all_input_nodes[0].op == "get_attr"


def _reason(node: fx.Node, quantized: bool, region_of: dict[fx.Node, int]) -> str:
    if bf16.is_bf16_cast(node):
        return bf16.CAST_ON_HOST
    if bf16.computes_in_bf16(node):
        return bf16.ON_HOST
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
        dtype = getattr(floats[0].meta.get("val"), "dtype", torch.float32)
        kind = "float" if dtype.is_floating_point else str(dtype).removeprefix("torch.")
        return f"its input {floats[0].name} is {kind}: a host operator or no quantize stands before it"
    return f"{op_name(target)} has no DNA operator whose result stays float: no quantize follows it"
