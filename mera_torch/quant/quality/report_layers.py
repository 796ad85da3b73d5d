"""What the report shows of each layer: its label, the table's cells, colour and bar of its error, its histograms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from .histograms import Channel, Histogram
from .metrics import Noise
from .report_numbers import decibels, percent, plain, relative, step_of
from .result import Node

BEYOND = 0.18
"""Values beyond the range of their type are drawn in at most this part of the range's width, on either side."""


@dataclass(frozen=True)
class Column:
    """A column of figures. value: what it is sorted by; show: its text. worst: the order in which the worst is first.
    brief: whether tooltips show it."""

    title: str
    about: str
    value: Callable[[Node], float | None]
    show: Callable[[Node], str]
    worst: str = "descending"
    brief: bool = False


def _relative(title: str, about: str, error: Callable[[Node], Any], brief: bool = False) -> Column:
    def value(node: Node) -> float | None:
        return relative(error(node))

    return Column(title, about, value, lambda node: percent(value(node)), brief=brief)


def _decibels(title: str, about: str, field: str, brief: bool = False) -> Column:
    def value(node: Node) -> float | None:
        return None if node.error is None else math.inf if node.error.mse == 0.0 else getattr(node.error, field)

    return Column(title, about, value, lambda node: decibels(node.error, value(node)), "ascending", brief)


def _metric(title: str, about: str, field: str, form: str, worst: str = "descending") -> Column:
    def value(node: Node) -> float | None:
        found: float | None = None if node.error is None else getattr(node.error, field)
        return found

    def show(node: Node) -> str:
        found = value(node)
        return "" if found is None else f"{found:{form}}".replace("e-0", "e-").replace("-", "−")

    return Column(title, about, value, show, worst)


def _part(name: str) -> Callable[[Node], Noise | None]:
    return lambda node: None if node.added is None else getattr(node.added, name)


def _apart(node: Node) -> float | None:
    return None if node.apart is None else node.apart.different


def _apart_text(node: Node) -> str:
    return "" if node.apart is None else f"{node.apart.different:,}"


def _saturation(node: Node) -> float | None:
    return None if node.codes is None else node.codes.saturation


COLUMNS = (
    _relative("added", "Relative error that the layer adds: its inputs are the float network's", _part("total"), True),
    _relative("inherited", "Relative error that comes with its inputs", lambda node: node.inherited, True),
    _relative("total", "Relative error: RMS of the error over RMS of the value", lambda node: node.error, True),
    _decibels("SQNR", "Signal-to-quantization-noise ratio, dB", "sqnr", True),
    _decibels("PSNR", "Peak signal-to-noise ratio, dB", "psnr"),
    _metric("cosine", "Cosine similarity", "cosine", ".5f", "ascending"),
    _metric("max error", "Largest magnitude of the error", "max_error", ".3g"),
    _metric("mean error", "Mean of the error: its bias", "mean_error", ".2g"),
    _metric("KL", "Kullback-Leibler divergence of the histograms, bits", "kl", ".2g"),
    _metric("score", "Median over the samples of 100 (1 - largest error / range)", "score", ".1f", "ascending"),
    Column(
        "saturated",
        "Part of the values beyond the range of their type",
        _saturation,
        lambda node: percent(_saturation(node)),
        brief=True,
    ),
    _relative("by inputs", "What rounding the inputs adds", _part("input")),
    _relative("by weights", "What rounding weights and bias adds", _part("weights")),
    _relative("by output", "What rounding and clamping the result adds", _part("output")),
    _relative("received", "What it costs this layer that those before it round its inputs", lambda node: node.received),
    Column("apart", "Elements whose integers on the accelerator are not the q/dq module's", _apart, _apart_text),
)
"""After place, layer and operator; type and shape follow. A column without any figure is left out, save the first."""


@dataclass(frozen=True)
class Cell:
    text: str
    sort: float | str | None


@dataclass(frozen=True)
class Layer:
    """A node as the page shows it.

    label: names it in the table; tail: in the graph, short. added, inherited, total: relative errors, None where
    unknown. step: of the colour scale; None where the node adds no error. inputs: indices of other layers.
    """

    name: str
    label: str
    tail: str
    op: str
    dtype: str
    shape: str
    kind: str
    cells: tuple[Cell, ...]
    added: float | None
    inherited: float | None
    total: float | None
    step: int | None
    inputs: tuple[int, ...]

    @property
    def colour(self) -> str:
        """The class of its colour in report.css."""
        return "en" if self.step is None else f"e{self.step}"


def layers_of(nodes: Sequence[Node]) -> list[Layer]:
    """One for each of Quality.nodes."""
    place = {node.name: i for i, node in enumerate(nodes)}
    times = Counter(node.module for node in nodes)
    found = []
    for node in nodes:
        alone = times[node.module] == 1
        label = (node.module if alone else f"{node.module} · {node.name}") if node.module else node.name
        shape = "×".join(map(str, node.shape))
        about = (node.label, shape, node.name if alone and node.module else "", PurePath(node.source).name, node.note)
        added = relative(node.added.total) if node.added else None
        short = tail(node.module if alone and node.module else node.name, 19)
        found.append(Layer(
            node.name, label, short, node.label, node.dtype, shape, " · ".join(filter(None, about)),
            tuple(Cell(column.show(node), sortable(column.value(node))) for column in COLUMNS),
            added, relative(node.inherited), relative(node.error), step_of(added),
            tuple(place[source] for source in node.inputs if source in place),
        ))  # fmt: skip
    return found


def sortable(value: float | None) -> float | str | None:
    """A number that JavaScript reads back."""
    return value if value is None or math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def tail(path: str, most: int) -> str:
    """The end of a module's path, in so many characters, cut at a dot where there is one."""
    if len(path) <= most:
        return path
    end = path[len(path) - most + 1 :]
    _, dot, rest = end.partition(".")
    return "…" + (rest if dot and len(rest) >= most // 2 else end)


def shortened(text: str, most: int) -> str:
    """The beginning of `text`, in so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def histograms_of(node: Node) -> dict[str, Any]:
    """What report.js draws: the histograms of the whole value and of some channels, the SQNR of every channel."""
    parts = []
    scale = node.scale
    if node.histogram is not None and node.error is not None:
        saturated = [node.codes.saturated_low, node.codes.saturated_high] if node.codes else [0, 0]
        extremes = node.error.low, node.error.high
        parts.append(_drawn("all channels", node.histogram, extremes, saturated, scale))
        parts[-1]["note"] += f" {percent(node.codes.saturation)} of the values saturate." if node.codes else ""
    for channel in node.channels:
        parts.append(_drawn(f"channel {channel.index}", channel.histogram, extremes_of(channel), [0, 0], scale))
        ratio = f"{channel.sqnr:.1f} dB" if math.isfinite(channel.sqnr) else "∞"
        parts[-1] |= {"channel": channel.index, "note": f"SQNR {ratio}. " + parts[-1]["note"]}
    ratios = [round(ratio, 1) if math.isfinite(ratio) else None for ratio in node.channel_sqnr]
    return {"parts": parts, "channels": ratios}


def extremes_of(channel: Channel) -> tuple[float, float]:
    """Of its float values."""
    return channel.reference_low, channel.reference_high


def axis_of(histogram: Histogram, extremes: tuple[float, float], quantized: bool) -> tuple[float, float]:
    """The ends of the axis: those of the bins, and room for values beyond the range of a quantized value."""
    low, high = histogram.low, histogram.low + histogram.width * len(histogram.reference)
    room = BEYOND * (high - low) if quantized else 0.0
    return max(min(low, extremes[0]), low - room), min(max(high, extremes[1]), high + room)


def _drawn(
    name: str, histogram: Histogram, extremes: tuple[float, float], saturated: Sequence[int], scale: float | None
) -> dict[str, Any]:
    """low, high: of the bins; from, to: of the axis; saturated: how many values are beyond the bins, low and high."""
    low, high = histogram.low, histogram.low + histogram.width * len(histogram.reference)
    start, stop = axis_of(histogram, extremes, scale is not None)
    note = f"Float values reach from {plain(extremes[0])} to {plain(extremes[1])}"
    note += f"; int8 holds {plain(low + scale / 2)} to {plain(high - scale / 2)}." if scale else "."
    return {
        "name": name, "low": low, "high": high, "from": start, "to": stop, "float": histogram.reference,
        "int8": histogram.measured, "saturated": list(saturated), "quantized": scale is not None, "note": note,
    }  # fmt: skip
