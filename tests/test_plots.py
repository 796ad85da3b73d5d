"""Plots of a quantized network's quality: what is drawn, the files, and what is refused."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mera_torch.errors import ConfigError, MeraError, StorageError
from mera_torch.quant import pipeline
from mera_torch.quant.quality.measure import measure
from mera_torch.quant.quality.plots import plot_errors, plot_histogram
from mera_torch.quant.quality.report_numbers import relative
from mera_torch.quant.quality.result import Quality

pytest.importorskip("matplotlib", reason='needs matplotlib: pip install "mera_torch[plots]"')


@pytest.fixture(scope="module")
def measured() -> tuple[Quality, np.ndarray, np.ndarray]:
    """A network of one convolution of 6 unlike channels; its float and its quantized outputs [4, 6, 8, 8]."""
    torch.manual_seed(0)
    model = nn.Conv2d(3, 6, 3, padding=1)
    with torch.no_grad():
        model.weight *= torch.logspace(-1.5, 0, 6).view(6, 1, 1, 1)
    calibration = [torch.randn(2, 3, 8, 8) for _ in range(3)]
    inputs = [1.5 * torch.randn(2, 3, 8, 8) for _ in range(2)]
    found = pipeline.run(model, calibration[0], calibration, None, False)
    quality = measure(found.original, found.reference, found.module, inputs, debug_mode=True, progress=False)
    with torch.no_grad():
        values = [torch.cat([net(x) for x in inputs]).numpy() for net in (found.original, found.module)]
    return quality, values[0], values[1]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The figures that were saved."""
    from matplotlib.figure import Figure

    saved: list[Any] = []
    write = Figure.savefig

    def savefig(self: Any, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        write(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    yield saved


def counted(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Values beyond the ends are counted at the ends."""
    middles = (edges[0] + edges[1]) / 2, (edges[-1] + edges[-2]) / 2
    return np.histogram(np.clip(values, *middles), edges)[0]


def drawn(axes: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """(counts, edges) of float and of quantized values."""
    from matplotlib.patches import StepPatch

    return [patch.get_data()[:2] for patch in axes.patches if isinstance(patch, StepPatch)]


def test_histogram_of_the_whole_tensor(measured: Any, figures: list[Any], tmp_path: Path) -> None:
    quality, wanted, got = measured
    plot_histogram(quality.outputs[0], tmp_path / "all.png")
    ((float_counts, edges), (int8_counts, same)) = drawn(figures[0].axes[0])
    np.testing.assert_array_equal(edges, same)
    assert np.abs(float_counts - counted(wanted, edges)).sum() <= 2  # float32 at an edge
    np.testing.assert_array_equal(int8_counts, counted(got, edges))


@pytest.mark.parametrize("axis", [None, 1, -3])
def test_histogram_of_each_channel_is_of_that_channel(
    measured: Any, figures: list[Any], tmp_path: Path, axis: int | None
) -> None:
    quality, wanted, got = measured
    plot_histogram(quality.outputs[0], tmp_path / "channels.svg", channels=[4, 0, 5], axis=axis)
    assert len(figures[0].axes) == 3
    for axes, channel in zip(figures[0].axes, (4, 0, 5), strict=True):
        assert axes.get_title().startswith(f"channel {channel}:")
        ((float_counts, edges), (int8_counts, _)) = drawn(axes)
        assert np.abs(float_counts - counted(wanted[:, channel], edges)).sum() <= 2
        np.testing.assert_array_equal(int8_counts, counted(got[:, channel], edges))
        assert not np.array_equal(float_counts, int8_counts)


def test_one_channel_by_number(measured: Any, figures: list[Any], tmp_path: Path) -> None:
    plot_histogram(measured[0].nodes[-1], tmp_path / "one.pdf", channels=3)
    assert [axes.get_title()[:10] for axes in figures[0].axes] == ["channel 3:"]


def test_heading(measured: Any, figures: list[Any], tmp_path: Path) -> None:
    for title in (None, "mine", ""):
        plot_histogram(measured[0].nodes[-1], tmp_path / "a.png", channels=[1, 2], title=title)
    assert [figure.get_suptitle() for figure in figures] == ["conv2d, conv2d, 2×6×8×8", "mine", ""]


def test_errors_of_every_layer(measured: Any, figures: list[Any], tmp_path: Path) -> None:
    quality = measured[0]
    plot_errors(quality, tmp_path / "errors.png")
    (axes,) = figures[0].axes
    added = [relative(node.added.total) if node.added else None for node in quality.nodes]
    np.testing.assert_allclose(
        [bar.get_height() for bar in axes.containers[0]], [error or math.nan for error in added], rtol=1e-6
    )
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_allclose(lines["total"], [relative(node.error) or math.nan for node in quality.nodes])
    np.testing.assert_allclose(lines["inherited"], [relative(node.inherited) or math.nan for node in quality.nodes])


def test_nothing_differs_anywhere(measured: Any, tmp_path: Path) -> None:
    none = dataclasses.replace(measured[0].nodes[0], error=None, added=None, inherited=None)
    plot_errors(dataclasses.replace(measured[0], nodes=(none, none)), tmp_path / "none.png")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_equal_data_makes_equal_files(measured: Any, tmp_path: Path, kind: str) -> None:
    beginnings = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    output = measured[0].outputs[0]
    files = [plot_histogram(output, tmp_path / f"{i}.{kind}", channels=range(2)) for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes() and files[0].read_bytes().startswith(beginnings[kind])


def test_style_of_the_user_is_neither_used_nor_changed(measured: Any, tmp_path: Path) -> None:
    import matplotlib

    first = plot_errors(measured[0], tmp_path / "first.svg").read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        again = plot_errors(measured[0], tmp_path / "again.svg").read_bytes()
        assert matplotlib.rcParams["font.size"] == 30
    assert again == first


def test_what_is_refused(measured: Any, tmp_path: Path) -> None:
    quality = measured[0]
    output = quality.outputs[0]
    with pytest.raises(ConfigError, match=r"axis 1, not 2"):
        plot_histogram(output, tmp_path / "a.png", channels=[0], axis=2)
    with pytest.raises(ConfigError, match=r"channel 6 .* kept are 0, 1, 2, 3, 4, 5"):
        plot_histogram(output, tmp_path / "a.png", channels=[6])
    with pytest.raises(ConfigError, match="channels is empty"):
        plot_histogram(output, tmp_path / "a.png", channels=[])
    with pytest.raises(ConfigError, match=r"\.png, \.svg, \.pdf, not '.*a\.jpg'"):
        plot_histogram(output, tmp_path / "a.jpg")
    with pytest.raises(ConfigError, match="histograms=True"):
        plot_histogram(dataclasses.replace(output, histogram=None), tmp_path / "a.png")
    with pytest.raises(ConfigError, match="debug_mode=True"):
        plot_errors(dataclasses.replace(quality, nodes=()), tmp_path / "a.png")
    with pytest.raises(StorageError):
        plot_errors(quality, tmp_path / "missing" / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_names_are_no_formulas(measured: Any, tmp_path: Path) -> None:
    node = dataclasses.replace(measured[0].nodes[-1], name=r"$\frac{a}$", module="x$_$" * 40)
    plot_histogram(node, tmp_path / "a.png", channels=0)
    plot_errors(dataclasses.replace(measured[0], nodes=(node,)), tmp_path / "b.png")


def test_without_matplotlib_the_extra_is_named(measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MeraError, match=r'pip install "mera_torch\[plots\]"'):
        plot_errors(measured[0], tmp_path / "a.png")
