"""Plots of a measured quality as files: histograms, and the error along the network. They need matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mera_torch.atomic import atomic_file
from mera_torch.errors import ConfigError, MeraError, nearest

from .histograms import Channel, Histogram
from .metrics import Metrics, Noise
from .report_layers import axis_of, extremes_of, tail
from .report_numbers import plain, relative, round_percent
from .result import Node, Output, Quality

FORMATS = (".png", ".svg", ".pdf")
_FLOAT, _INT8, _LIMIT, _ADDED, _INHERITED, _TOTAL = "#4c86c6", "#b3430b", "#a3241f", "#f98a66", "#1f5fa8", "#1d2026"
_COLUMNS = 3  # of the channels' plots
_LONGEST = 40  # characters of a name
_LABELLED = 80  # layers of a longer network are numbered, not named
# Without dates and random identifiers, so that equal data makes equal files.
_METADATA = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def plot_histogram(
    held: Node | Output,
    file: str | os.PathLike[str],
    channels: int | Iterable[int] | None = None,
    axis: int | None = None,
    *,
    title: str | None = None,
) -> Path:
    """Draws how the float and the quantized values are distributed, on the same bins; returns the file's path.

    Args:
        held: A node or an output of a Quality.
        file: The file to write; its name ends in .png, .svg or .pdf.
        channels: Channels to draw, each by itself: float against quantized values of that channel. None draws the
            whole tensor.
        axis: The channels' dimension; it must be that along which they were counted (held.channel_axis).
        title: In place of name, operator and shape.

    Raises:
        ConfigError: a file of another kind, another axis, a channel of which no histogram is kept, or no histograms at
            all: the message says what there is.
        MeraError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    kind = picture_kind(file)
    wanted = _channels(held, channels, axis)
    if held.histogram is None or held.error is None:
        raise ConfigError(f"{held.name!r} has no histogram: measure with histograms=True, nodes with debug_mode=True")
    panels = [("", held.histogram, (held.error.low, held.error.high))]
    if wanted is not None:
        panels = [
            (f"channel {channel.index}: SQNR {plain(channel.sqnr)} dB", channel.histogram, extremes_of(channel))
            for channel in wanted
        ]
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    with plain_style():
        figure = new_figure(max(7.0, 4.0 * columns), 3.4 * rows if wanted is not None else 4.2)
        for i, (caption, histogram, extremes) in enumerate(panels, 1):
            axes = figure.add_subplot(rows, columns, i)
            _draw_histogram(axes, histogram, extremes, held.scale is not None)
            axes.set_title(caption, fontsize=9)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
        figure.suptitle(_heading(held) if title is None else title, fontsize=11, parse_math=False)
        return save_figure(figure, file, kind)


def plot_errors(quality: Quality, file: str | os.PathLike[str]) -> Path:
    """Draws the relative error of every layer, as RMS of the error over RMS of the value: what it adds, inherits, and
    has in total. Returns the file's path.

    Raises ConfigError (no nodes: measured without debug mode; a file of another kind), MeraError (matplotlib is not
    installed), StorageError.
    """
    if not quality.nodes:
        raise ConfigError("there are no layers to plot: measure with debug_mode=True")
    kind, nodes = picture_kind(file), quality.nodes
    place = range(len(nodes))
    added = [_visible(node.added.total if node.added else None) for node in nodes]
    inherited, total = [_visible(node.inherited) for node in nodes], [_visible(node.error) for node in nodes]
    with plain_style():
        figure = new_figure(min(40.0, max(8.0, 0.2 * len(nodes) + 1.5)), 5.0)
        axes = figure.add_subplot()
        axes.bar(place, added, color=_ADDED, label="added")
        line = {"marker": ".", "markersize": 4, "linewidth": 1.2}
        axes.plot(place, inherited, color=_INHERITED, linestyle=":", label="inherited", **line)
        axes.plot(place, total, color=_TOTAL, label="total", **line)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(_matplotlib().ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: round_percent(value))
        axes.yaxis.set_minor_formatter(_matplotlib().ticker.NullFormatter())
        axes.set_ylabel("error, RMS relative to the value")
        axes.set_xlim(-0.8, len(nodes) - 0.2)
        axes.grid(axis="y", color="#e2dfd8", linewidth=0.8)
        axes.set_axisbelow(True)
        if len(nodes) <= _LABELLED:
            axes.set_xticks(
                place,
                [tail(node.module or node.name, _LONGEST) for node in nodes],
                rotation=90,
                fontsize=7,
                parse_math=False,
            )
        else:
            axes.set_xlabel("layer")
        axes.legend(fontsize=8, frameon=False, ncols=3)
        return save_figure(figure, file, kind)


def _visible(error: Noise | Metrics | None) -> float:
    """The relative error; NaN, which matplotlib leaves out, where a logarithmic axis has no place for it."""
    found = relative(error)
    return found if found and math.isfinite(found) else math.nan


def _channels(held: Node | Output, channels: int | Iterable[int] | None, axis: int | None) -> list[Channel] | None:
    rank = len(held.shape)
    if axis is not None and (held.channel_axis is None or not -rank <= axis < rank or axis % rank != held.channel_axis):
        counted = "has no channels" if held.channel_axis is None else f"has its channels along axis {held.channel_axis}"
        raise ConfigError(f"plot_histogram: {held.name!r} of shape {tuple(held.shape)} {counted}, not {axis}")
    if channels is None:
        return None
    wanted = [channels] if isinstance(channels, int) else list(channels)
    kept = {channel.index: channel for channel in held.channels}
    for index in wanted:
        if index not in kept:
            what = f"kept are {', '.join(map(str, sorted(kept)))}" if kept else "none are kept"
            raise ConfigError(
                f"plot_histogram: no histogram of channel {index} of {held.name!r}; {what} (those of least SQNR; "
                "measure with a larger channels=)"
            )
    if not wanted:
        raise ConfigError("plot_histogram: channels is empty; name at least one, or pass None for the whole tensor")
    return [kept[index] for index in wanted]


def _heading(held: Node | Output) -> str:
    shape = "×".join(map(str, held.shape))
    names = [held.module, held.name, held.label] if isinstance(held, Node) else [held.name]
    return ", ".join([*(tail(name, _LONGEST) for name in names if name), shape])


def _draw_histogram(axes: Any, histogram: Histogram, extremes: tuple[float, float], quantized: bool) -> None:
    low, bins = histogram.low, len(histogram.reference)
    high = low + histogram.width * bins
    edges = [low + i * histogram.width for i in range(bins + 1)]
    axes.stairs(histogram.reference, edges, fill=True, color=_FLOAT, alpha=0.5, label="float")
    axes.stairs(histogram.measured, edges, color=_INT8, linewidth=1.3, label="quantized")
    if quantized:
        start, stop = axis_of(histogram, extremes, quantized)
        for end, beyond, label in ((low, start, "end of the range"), (high, stop, None)):
            axes.axvline(end, color=_LIMIT, linestyle="--", linewidth=1, label=label)
            if beyond != end:
                axes.axvspan(*sorted((end, beyond)), color=_LIMIT, alpha=0.12, linewidth=0)
    axes.set_yticks([])
    axes.tick_params(labelsize=8)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)


def _matplotlib() -> Any:
    try:
        import matplotlib.figure
        import matplotlib.style
        import matplotlib.ticker
    except ImportError as error:
        raise MeraError('plots need matplotlib: pip install "mera_torch[plots]"') from error
    return matplotlib


def plain_style() -> AbstractContextManager[None]:
    """matplotlib's own defaults, whatever the user has set; identifiers in SVG that do not change."""
    context: AbstractContextManager[None] = _matplotlib().style.context(["default", {"svg.hashsalt": "mera_torch"}])
    return context


def new_figure(width: float, height: float) -> Any:
    """In inches."""
    return _matplotlib().figure.Figure(figsize=(width, height), layout="constrained")


def picture_kind(file: str | os.PathLike[str]) -> str:
    """ ".png", ".svg" or ".pdf". Raises ConfigError for another one, MeraError if matplotlib is not installed: ask
    before long work."""
    _matplotlib()
    kind = Path(file).suffix.lower()
    if kind not in FORMATS:
        known = ", ".join(FORMATS)
        raise ConfigError(f"plots are written as {known}, not {os.fspath(file)!r}; {nearest(kind, FORMATS)}")
    return kind


def save_figure(figure: Any, file: str | os.PathLike[str], kind: str) -> Path:
    """Writes it whole or not at all."""
    with atomic_file(file) as written:
        figure.savefig(written, format=kind[1:], dpi=150, metadata=_METADATA[kind])
    return Path(file)
