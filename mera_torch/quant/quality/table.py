"""A quality report as tables on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .result import Node, Output, Quality

MOST_NODES = 20
_WIDEST = 1000  # columns


def tables(quality: Quality, most: int | None = MOST_NODES) -> Group:
    """For rich.print: the outputs, the nodes that add most error (all of them if `most` is None), and a summary."""
    parts: list[Any] = [outputs_table(quality.outputs)]
    if quality.nodes:
        shown = ranked(quality.nodes)
        left = 0 if most is None else max(0, len(shown) - most)
        parts.append(_Fitting(shown[: len(shown) - left]))
        if left:
            parts.append(Text(f"and {left} nodes more that add less"))
    return Group(*parts, Text(summary(quality)))


def outputs_table(outputs: Sequence[Output]) -> Table:
    """One row an output."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title="outputs (PSNR and SQNR in dB)",
        title_justify="left",
    )
    classes = any(output.top1 is not None for output in outputs)
    figures = ("PSNR", "SQNR", "cosine", "mean err", "max err", "score", "min", *(("top-1",) if classes else ()))
    _columns(table, ("output", "shape"), figures)
    for output in outputs:
        e = output.error
        top1 = "" if output.top1 is None else f"{output.top1:.1%}"
        table.add_row(
            Text(output.name), _shape(output.shape), decibels(e.psnr), decibels(e.sqnr), f"{e.cosine:.4f}",
            f"{e.mean_error:.2g}", f"{e.max_error:.2g}", f"{e.score:.2f}", f"{e.score_min:.2f}",
            *((top1,) if classes else ()),
        )  # fmt: skip
    return table


class _Fitting:
    """The table of nodes, as wide as the terminal allows."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = nodes_table(self._nodes)
        fits = Measurement.get(console, options.update(width=_WIDEST), wide).maximum <= options.max_width
        yield wide if fits else nodes_table(self._nodes, scales=False)


def nodes_table(nodes: Sequence[Node], *, scales: bool = True) -> Table:
    """One row a node; with its scale and zero point, if asked."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title="nodes, by the error they add (SQNR in dB: low is bad)",
        title_justify="left",
    )
    form = ("scale", "zero") if scales else ()
    _columns(table, ("node", "operator", "module"), ("dtype", *form, "added", "inherits", "error", "clipped"))
    for node in nodes:
        scale = "" if node.scale is None else f"{node.scale:.3g}"
        zero_point = "" if node.zero_point is None else str(node.zero_point)
        table.add_row(
            Text(node.name), node.label, Text(node.module), node.dtype, *((scale, zero_point) if scales else ()),
            "" if node.added is None else decibels(node.added.total.sqnr),
            "" if node.inherited is None else decibels(node.inherited.sqnr),
            "no twin" if node.error is None else decibels(node.error.sqnr),
            "" if node.codes is None else f"{node.codes.saturation:.2%}",
        )  # fmt: skip
    return table


def _mostly(node: Node) -> str:
    """What the largest part of the added error comes from."""
    if node.added is None:
        return ""
    parts = {"input": node.added.input, "weights": node.added.weights, "output": node.added.output}
    return max(parts, key=lambda name: parts[name].mse)


def ranked(nodes: Sequence[Node]) -> list[Node]:
    """By added error, the largest first; last those of which it is not known."""
    return sorted(nodes, key=lambda node: math.inf if node.added is None else node.added.total.sqnr)


def summary(quality: Quality) -> str:
    """What was measured, and where the networks part."""
    where = quality.measured + (f" ({quality.platform})" if quality.platform else "")
    lines = [f"{where} against float, {quality.samples} samples in {quality.batches} batches, {quality.seconds:.1f} s"]
    if quality.debug_mode:
        apart = quality.first_apart
        named = f"first at {_named(quality.node(apart))}" if apart is not None else "nowhere"
        lines.append(f"below {quality.threshold:g} dB: {named}")
        worst = quality.worst(1)
        lines += [f"adds most error: {_named(node)}, mostly by rounding its {_mostly(node)}" for node in worst]
        if (node := quality.misread) is not None:
            makers = ", ".join(_named(maker) for maker in quality.makers(node))
            lines.append(f"suffers most from how its inputs are rounded: {_named(node)}, by {makers}")
    if quality.first_different is not None:
        node = quality.node(quality.first_different)
        steps = f"{node.apart.different} elements, up to {node.apart.largest} steps" if node.apart else ""
        lines.append(f"the accelerator's integers differ from the q/dq module's first at {_named(node)}: {steps}")
    return "\n".join([*lines, *quality.notes])


def decibels(value: float) -> str:
    """ "equal" where nothing differs."""
    return "equal" if math.isinf(value) else f"{value:.1f}"


def _named(node: Node) -> str:
    return f"{node.name} ({node.module})" if node.module else node.name


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _columns(table: Table, texts: Sequence[str], figures: Sequence[str]) -> None:
    for name in texts:
        table.add_column(name, overflow="fold", min_width=min(6, len(name) + 2))
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
