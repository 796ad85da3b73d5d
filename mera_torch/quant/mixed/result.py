"""What the mixed-precision search finds: the networks that it measured, and the trade-off between them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule

from ..config import QuantConfig
from .criteria import Criterion
from .cycles import Cycles
from .sensitivity import Sensitivity, finite
from .variants import Choice

if TYPE_CHECKING:
    from mera_torch.platform import Platform

Kept = tuple[Choice, ...]


@dataclass(frozen=True)
class Point:
    """One measured network: what is kept out of int8, its score, its cost."""

    kept: Kept
    score: float
    cycles: Cycles

    def to_dict(self) -> dict[str, Any]:
        names = [choice.name for choice in self.kept]
        return {"kept": len(names), "nodes": names, "score": finite(self.score), "cycles": self.cycles.to_dict()}


@dataclass
class MixedPrecision:
    """What the search found.

    Attributes:
        config: The given configuration with a rule for each operator kept: for `quantize`, `ModelQuantizer`, or
            `to_toml`.
        kept: The operators out of int8, in graph order.
        module: The network quantized by `config`.
        points: Every network measured on the way, in order, each quantized with its own configuration.
        before, after: The first of them, with all that can be in int8, and `module`.
        sensitivity: The ranking that the search followed.
        unlimited: The score with all operators in `dtype`.
        accuracy, budget_cycles, dtype, platform: What was asked for.
    """

    config: QuantConfig
    kept: Kept
    module: GraphModule
    points: list[Point]
    before: Point
    after: Point
    sensitivity: Sensitivity
    unlimited: float
    accuracy: float | None
    budget_cycles: int | None
    dtype: str
    platform: Platform
    criterion: Criterion = field(repr=False)

    @property
    def curve(self) -> list[Point]:
        """The trade-off: of all points those that no other beats in both score and cycles, the cheapest first."""
        return frontier(self.points, self.criterion)

    def to_dict(self) -> dict[str, Any]:
        """In types that JSON has; null is infinite."""
        one = self.criterion
        return {
            "metric": one.name, "unit": one.unit, "higher_is_better": one.higher_is_better,
            "dtype": self.dtype, "platform": self.platform.name, "accuracy": self.accuracy,
            "budget_cycles": self.budget_cycles, "kept": [choice.name for choice in self.kept],
            "modules": [choice.module for choice in self.kept], "operators": len(self.sensitivity.rows),
            "before": self.before.to_dict(), "after": self.after.to_dict(), "unlimited": finite(self.unlimited),
            "curve": [point.to_dict() for point in self.curve], "sensitivity": self.sensitivity.to_dict(),
            "config": self.config.to_dict(),
        }  # fmt: skip

    def summary(self) -> str:
        """One line."""
        one, before, after = self.criterion, self.before, self.after
        return (
            f"{len(self.kept)} of {len(self.sensitivity.rows)} operators in {self.dtype}: "
            f"{one.name} {one.text(before.score)} -> {one.text(after.score)} (all: {one.text(self.unlimited)}), "
            f"{before.cycles.total:,} -> {after.cycles.total:,} cycles on {self.platform.name}, "
            f"of which {after.cycles.dna:,} simulated and {after.cycles.estimated:,} estimated"
        )

    def __rich__(self) -> Any:
        """The trade-off curve for rich.print; a star marks what was chosen."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, title="Trade-off", title_justify="left")
        unit = f"{self.criterion.name}, {self.criterion.unit}".rstrip(", ")
        for name in ("", "kept", unit, "cycles", "simulated", "estimated"):
            table.add_column(name, justify="right")
        table.add_column("", justify="left")
        curve, notes = self.curve, [self.summary()]
        if self.after not in curve:  # fewer operators than a point that beats it
            curve = sorted([*curve, self.after], key=lambda point: point.cycles.total)
            notes.append("The network with a star has the fewest operators out of int8, not the fewest cycles.")
        bars = _bars([point.score for point in curve], self.criterion)
        for point, bar in zip(curve, bars, strict=True):
            cost = point.cycles
            star = "*" if point is self.after else ""
            cells = (star, str(len(point.kept)), self.criterion.figure(point.score), f"{cost.total:,}", f"{cost.dna:,}")
            table.add_row(*map(Text, (*cells, f"{cost.estimated:,}", bar)))
        kept = [f"  {choice.name} ({choice.module})" if choice.module else f"  {choice.name}" for choice in self.kept]
        return Group(table, *map(Text, (*notes, *kept)))

    def plot(self, file: str | os.PathLike[str]) -> None:
        """Draws the curve into a picture (.png, .svg, .pdf) with matplotlib.

        Raises:
            ConfigError: a file of another kind.
            MeraError: matplotlib is not installed.
            StorageError: the file cannot be written.
        """
        from ..quality.plots import new_figure, picture_kind, plain_style, save_figure

        kind = picture_kind(file)
        curve = [point for point in self.curve if math.isfinite(point.score)]
        with plain_style():
            figure = new_figure(7, 4)
            axes = figure.subplots()
            axes.plot([p.cycles.total for p in curve], [p.score for p in curve], "o-", drawstyle="steps-post")
            axes.plot([self.after.cycles.total], [self.after.score], "r*", markersize=14)
            axes.set_xlabel(f"cycles on {self.platform.name}: simulated int8 + estimated {self.dtype}")
            axes.set_ylabel(f"{self.criterion.name} ({self.criterion.unit})".replace(" ()", ""))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.grid(alpha=0.3)
            save_figure(figure, file, kind)


def first_best(points: Sequence[Point], criterion: Criterion) -> Point:
    best = points[0]
    for point in points[1:]:
        if criterion.better(point.score, best.score):
            best = point
    return best


def frontier(points: Iterable[Point], criterion: Criterion) -> list[Point]:
    """The points of rising cycles and rising score."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cycles.total, len(p.kept))):
        if found and point.cycles.total == found[-1].cycles.total and criterion.better(point.score, found[-1].score):
            found.pop()
        if not found or criterion.better(point.score, found[-1].score):
            found.append(point)
    return found


def _bars(scores: Sequence[float], criterion: Criterion, width: int = 18) -> list[str]:
    """A bar for each score, from the worst to the best."""
    finite_ones = [score for score in scores if math.isfinite(score)]
    low, high = (min(finite_ones), max(finite_ones)) if finite_ones else (0.0, 1.0)

    def length(score: float) -> int:
        share = 1.0 if high == low or score > high else max(0.0, (score - low) / (high - low))
        return 1 + round((share if criterion.higher_is_better else 1 - share) * (width - 1))

    return ["█" * length(score) for score in scores]
