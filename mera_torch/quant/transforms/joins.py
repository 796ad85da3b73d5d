"""Joins of unlike values: where a concat forces one int8 scale on parts of which some need a far finer one.

Boxes in pixels beside scores in [0, 1] are the classic case: with one scale for both, all scores become zero. What can
be done depends on who reads the joined tensor:

- outputs, host operators, movement and cheap arithmetic only (the tail of a detection head): the join stays in float,
  and each part is dequantized with its own scale;
- convolutions or linears that read it directly: the small part is multiplied by a number before the join, and their
  weights divided by it, where the error measured at their outputs shrinks by that;
- in any case, who reads the small part elsewhere need not suffer: a part that has other readers is requantized for the
  join alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from ..graphs import operators as ops
from ..graphs.domains import sharing_domains
from ..graphs.patterns import QuantizedOp, argument, value_of
from .analysis import Analysis

COLLAPSED_DB = 25.0
"""Below this signal to noise ratio, and LOSS_DB below what it has on its own, a part counts as collapsed."""
LOSS_DB = 18.0  # three of eight bits
_CHEAP = ops.UNARY | ops.SCALAR_BINARY | ops.EXTREMA | ops.SOFTMAX | ops.PRELU


@dataclass(frozen=True)
class Part:
    """One input of a join: its range, and its signal to quantization noise ratio in dB, expected from its histogram,
    on a scale of its own and on the joined one."""

    value: Node
    low: float
    high: float
    alone_db: float
    joined_db: float

    @property
    def magnitude(self) -> float:
        return max(-self.low, self.high, 0.0)

    @property
    def collapsed(self) -> bool:
        return self.joined_db < COLLAPSED_DB and self.alone_db - self.joined_db >= LOSS_DB

    def __str__(self) -> str:
        return (
            f"{self.value.name} in [{self.low:.4g}, {self.high:.4g}] has {self.alone_db:.1f} dB alone, "
            f"{self.joined_db:.1f} dB joined"
        )


@dataclass(frozen=True)
class Join:
    """A concat with a collapsed part.

    Attributes:
        node: The concat, of the analysis' twin.
        parts: Its inputs, without repetition.
        tail: The concat and everything behind it, where all of that may stay in float; else None.
        read_elsewhere: The collapsed parts that other int8 operators compute with, too.
    """

    node: Node
    parts: tuple[Part, ...]
    tail: tuple[Node, ...] | None
    read_elsewhere: tuple[Node, ...]

    @property
    def collapsed(self) -> list[Part]:
        return [part for part in self.parts if part.collapsed]

    @property
    def magnitude(self) -> float:
        return max(part.magnitude for part in self.parts)

    @property
    def dim(self) -> int:
        """The dimension that the concat joins along."""
        given: Any = argument(self.node, 1, "dim", 0)
        return int(given)

    @property
    def evidence(self) -> str:
        ratio = self.magnitude / min(part.magnitude for part in self.collapsed)
        worst = sorted(self.collapsed, key=lambda part: part.joined_db)
        more = f" (and {len(worst) - 2} more)" if len(worst) > 2 else ""
        widest = max(self.parts, key=lambda part: part.magnitude)
        return (
            f"joins values of ranges {ratio:.0f} : 1 under one scale: {'; '.join(map(str, worst[:2]))}{more}; "
            f"{widest.value.name} reaches {widest.magnitude:.4g}"
        )


def find_joins(analysis: Analysis) -> list[Join]:
    """The concats and stacks computed in int8 that have a collapsed part, in graph order."""
    found = []
    for op in analysis.found:
        if op.nodes[0].target not in ops.CAT:
            continue
        parts = _parts(analysis, op.inputs)
        if any(part.collapsed for part in parts):
            collapsed = [part.value for part in parts if part.collapsed]
            elsewhere = tuple(value for value in collapsed if _read_elsewhere(analysis, value, op.output))
            found.append(Join(op.nodes[0], parts, _tail(analysis, op.output), elsewhere))
    return found


def read_by_joins(found: Iterable[QuantizedOp]) -> set[Node]:
    """The values whose statistics tell what joins do to their parts."""
    return {value for op in found if op.nodes[0].target in ops.CAT for value in op.inputs}


def _parts(analysis: Analysis, values: Iterable[Node]) -> tuple[Part, ...]:
    seen = [(value, analysis.of(value)) for value in values]
    seen = [(value, s) for value, s in seen if s.count > s.bad]
    low, high = min([0.0, *(s.low for _, s in seen)]), max([0.0, *(s.high for _, s in seen)])
    return tuple(Part(value, s.low, s.high, s.own_sqnr, s.sqnr(low, high)) for value, s in seen)


def _tail(analysis: Analysis, output: Node) -> tuple[Node, ...] | None:
    """`output` and all int8 operators behind it up to outputs and host operators; None if one of them is worth the
    DNA: a convolution, a linear, a pool."""
    tail: dict[Node, None] = {output: None}
    waiting = [output]
    while waiting:
        for user in waiting.pop().users:
            op = analysis.op_of.get(user)
            if op is None or user in tail:
                continue
            if not (op.moves or op.nodes[0].target in _CHEAP):
                return None
            tail.update(dict.fromkeys(op.nodes))
            waiting.append(op.output)
    return tuple(tail)


def _read_elsewhere(analysis: Analysis, value: Node, joined: Node) -> bool:
    """Whether int8 operators compute with `value`, or with what shares its scale without the join into `joined`."""
    others = [op for op in analysis.found if op.output is not joined]
    domains = sharing_domains(others)
    root = domains.find(value)
    return any(not op.shares and any(domains.find(x) is root for x in op.inputs) for op in others)


def positions_of(join: Join) -> list[tuple[Any, int, int]]:
    """(input, begin, end) of each of the concat's arguments along its dimension; [] for a stack or unknown shapes."""
    if join.node.target is not ops.aten.cat.default:
        return []
    found, begin = [], 0
    sources: Any = join.node.args[0]
    for source in sources:
        value = value_of(source)
        if value is None:
            return []
        found.append((source, begin, begin + int(value.shape[join.dim])))
        begin = found[-1][2]
    return found
