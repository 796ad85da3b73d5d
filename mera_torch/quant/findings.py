"""What the linter and the float transforms have to say of a network: one finding a fact, with its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch.fx import Node

from mera_torch.ops.common import origin

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""error: the result is useless there; warning: accuracy is lost; note: worth knowing, or mended already."""
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        rule: Name of the rule (docs/lint.md) or of the transform.
        severity: "error", "warning" or "note".
        node: Name of the node in the exported graph; "" if it is about the data or the whole network.
        module: Path of its module in the model.
        evidence: What was measured, with figures.
        remedy: The line of configuration or code that mends it; "" if nothing need be done.
        fixed: Whether quantization with this configuration mends it by itself.
        op: The node's operator.
        source: Where the model's code calls it, "file:line"; "" where that is unknown.
    """

    rule: str
    severity: Severity
    node: str
    module: str
    evidence: str
    remedy: str = ""
    fixed: bool = False
    op: str = ""
    source: str = ""

    @classmethod
    def at(
        cls, node: Node, rule: str, severity: Severity, evidence: str, remedy: str = "", fixed: bool = False
    ) -> Finding:
        """A finding about `node`."""
        place = origin(node)
        op = place.op if node.op == "call_function" else "input" if node.op == "placeholder" else "constant"
        return cls(rule, severity, node.name, place.module, evidence, remedy, fixed, op, place.source)

    @property
    def open(self) -> bool:
        """Whether it costs accuracy and nothing mends it."""
        return self.severity != "note" and not self.fixed

    def to_dict(self) -> dict[str, Any]:
        """All fields, in types that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        where = f" {self.node}{f' ({self.module})' if self.module else ''}" if self.node else ""
        mended = " [mended]" if self.fixed else f"; remedy: {self.remedy}" if self.remedy else ""
        return f"{self.severity}: {self.rule}:{where}: {self.evidence}{mended}"


def sorted_findings(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first; what is mended after what is not; else in their order."""
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.fixed))


def summary(findings: Sequence[Finding]) -> str:
    """One line: how many of each severity, and how many are mended."""
    counts = [(severity, sum(f.severity == severity for f in findings)) for severity in SEVERITIES]
    said = ", ".join(f"{count} {severity}{'s'[: count != 1]}" for severity, count in counts if count)
    mended = sum(f.fixed for f in findings)
    return (said or "nothing found") + (f"; {mended} mended by quantization itself" if mended else "")


def table(findings: Sequence[Finding]) -> Table:
    """The findings for rich.print, the worst first; readable from 60 columns on."""
    made = Table(box=SIMPLE_HEAD, title=summary(findings), title_justify="left", leading=1)
    made.add_column("finding", min_width=18, overflow="fold")
    made.add_column("evidence and remedy", ratio=1, overflow="fold")
    for f in sorted_findings(findings):
        place, _, line = f.source.rpartition(":")
        source = f"{PurePath(place).name}:{line}" if place else ""
        node = f"{f.node} ({f.module})" if f.module else f.node
        left = Text("\n").join(
            [Text(f.rule, "bold"), Text(f.severity, _STYLES[f.severity]), *map(Text, filter(None, (node, source)))]
        )
        right = Text(f.evidence)
        if f.remedy or f.fixed:
            right.append(f"\n{'mended' if f.fixed else 'remedy'}{f.remedy and f': {f.remedy}'}", "italic dim")
        made.add_row(left, right)
    return made


def some(names: Sequence[str]) -> str:
    """The first four of `names`, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
