"""The report of a quantized network's quality, as it is written and as a browser shows it; its plots as files."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser as browsers
import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mera_torch
from mera_torch.errors import CorruptFileError, StorageError
from mera_torch.pages import layered, script_json
from mera_torch.profile import profile
from mera_torch.profile_page import page as profile_page
from mera_torch.quant import pipeline
from mera_torch.quant.quality.measure import measure
from mera_torch.quant.quality.metrics import Noise
from mera_torch.quant.quality.report import report
from mera_torch.quant.quality.report_layers import histograms_of, layers_of, tail
from mera_torch.quant.quality.report_numbers import THRESHOLDS_DB, percent, plain, relative, step_names, step_of
from mera_torch.quant.quality.result import Node, Quality

HOSTILE = (
    "</script><script>window.broken = 1</script>",
    '"><img src=x onerror="window.broken = 1">',
    "' onmouseover='window.broken = 1",
    "<!--<script>",
    "{{ 7 * 7 }}{% raw %}",
    "😀 \N{RIGHT-TO-LEFT OVERRIDE}txt\N{LINE SEPARATOR}&amp;",
    "long." * 1000,
    "</style></title></svg></textarea>",
)
FINDINGS = [
    {
        "rule": "unlike-ranges",
        "severity": "warning",
        "node": "cat",
        "module": "",
        "evidence": "3 and 40",
        "fixed": False,
    },
    {"rule": "dead-channels", "severity": "note", "node": "", "module": "x", "evidence": "2 of 8", "fixed": True},
]


@dataclasses.dataclass
class Measured:
    quality: Quality
    inputs: list[torch.Tensor]
    original: torch.nn.Module
    module: torch.nn.Module


@pytest.fixture(scope="module")
def measured() -> Measured:
    """A small network with branches, joins and a module of several nodes."""
    torch.manual_seed(0)
    model = models.set_batchnorm_statistics(models.Inception(), torch.randn(8, 3, 16, 16))
    calibration = [torch.randn(2, 3, 16, 16) for _ in range(4)]
    inputs = [3 * torch.randn(2, 3, 16, 16) for _ in range(2)]  # wider than what was calibrated: some of it saturates
    found = pipeline.run(model, calibration[0], calibration, None, False)
    quality = measure(
        found.original, found.reference, found.module, inputs, debug_mode=True, progress=False, channels=64
    )
    return Measured(quality, inputs, found.original, found.module)


@pytest.fixture(scope="module")
def page(measured: Measured, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    return report(
        measured.quality, path, findings=FINDINGS, config={"equalize": False}, facts={"calibration": "8 images"}
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browsers.chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    """The page, freshly loaded from its file, in a window of 1400 x 1000."""
    return load(browser, page)


def load(browser: Any, page: Path) -> Any:
    browsers.resize(browser, 1400, 1000)
    browsers.colours(browser, "light")
    browser.get("about:blank")
    browser.get_log("browser")
    browsers.requests(browser)
    browser.get(page.as_uri())
    return browser


def hostile(quality: Quality) -> Quality:
    """The same figures; every string is one that would break a page which did not escape it."""
    names = {node.name: f"{HOSTILE[i % len(HOSTILE)]}{i}" for i, node in enumerate(quality.nodes)}
    nodes = tuple(
        dataclasses.replace(
            node, name=names[node.name], fused=(names[node.name],), inputs=tuple(names[i] for i in node.inputs),
            op=HOSTILE[i % 7], activation=HOSTILE[-1], module=HOSTILE[i % len(HOSTILE)] + "module", source=HOSTILE[0],
            note=HOSTILE[1], dtype=HOSTILE[3],
        )
        for i, node in enumerate(quality.nodes)
    )  # fmt: skip
    outputs = tuple(dataclasses.replace(output, name=HOSTILE[0], dtype=HOSTILE[1]) for output in quality.outputs)
    return dataclasses.replace(
        quality, nodes=nodes, outputs=outputs, notes=HOSTILE, measured=HOSTILE[0], platform=HOSTILE[1],
        first_apart=nodes[2].name,
    )  # fmt: skip


# ---- what is written ----


class Parsed(HTMLParser):
    """Tags, texts and everything that could name another file."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_names_nothing_outside_itself(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [a[key] or "" for _, a in Parsed(text).tags for key in ("src", "href", "xlink:href", "action") if key in a]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bfetch\(|XMLHttpRequest|import\(", text)


def test_page_shows_every_layer_and_figure(page: Path, measured: Measured) -> None:
    parsed = Parsed(page.read_text(encoding="utf-8"))
    rows = [a for tag, a in parsed.tags if tag == "tr" and "data-layer" in a]
    assert len(rows) == len(measured.quality.nodes) > 10
    shown = " ".join(parsed.text)
    output = measured.quality.outputs[0]
    for wanted in (output.name, f"{output.error.sqnr:.1f}", "8 images", "equalize", "unlike-ranges", "dead-channels"):
        assert wanted in shown


def test_dict_and_object_make_the_same_page(page: Path, measured: Measured, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "findings": FINDINGS,
        "config": {"equalize": False},
        "facts": {"calibration": "8 images"},
    }
    document = json.loads(json.dumps(measured.quality.to_dict()))
    assert report(document, tmp_path / "again.html", **options).read_bytes() == page.read_bytes()


def test_hostile_names_are_text(measured: Measured, tmp_path: Path) -> None:
    plain_page = report(measured.quality, tmp_path / "plain.html", title="t")
    finding = dict.fromkeys(("rule", "node", "module", "evidence", "remedy"), HOSTILE[0]) | {"severity": HOSTILE[1]}
    text = report(
        hostile(measured.quality), tmp_path / "hostile.html", title=HOSTILE[0], findings=[finding],
        config={HOSTILE[0]: HOSTILE[1]}, facts={HOSTILE[0]: HOSTILE[2]},
    ).read_text(encoding="utf-8")  # fmt: skip
    parsed, tags = Parsed(text), [tag for tag, _ in Parsed(text).tags]
    for tag in ("script", "style", "title"):
        assert tags.count(tag) == [t for t, _ in Parsed(plain_page.read_text(encoding="utf-8")).tags].count(tag)
    assert "img" not in tags and not any(name.startswith("on") for _, a in parsed.tags for name in a)
    data = next(t for t in parsed.text if t.startswith('{"thresholds"'))
    assert HOSTILE[0] in json.dumps(json.loads(data), ensure_ascii=False)


@pytest.mark.parametrize("text", [*HOSTILE, "\u2028\u2029", "a\0b"])
def test_script_json_cannot_end_its_element(text: str) -> None:
    written = str(script_json({"name": text}))
    assert not re.search("[<>&\u2028\u2029]", written)
    assert json.loads(written) == {"name": text}


def test_page_of_outputs_alone(measured: Measured, tmp_path: Path) -> None:
    outputs_only = dataclasses.replace(measured.quality, nodes=(), debug_mode=False, first_apart=None)
    text = report(outputs_only, tmp_path / "outputs.html").read_text(encoding="utf-8")
    assert "without debug mode" in text and "<script" not in text


def test_wrong_dict_is_refused_and_leaves_the_old_page(measured: Measured, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    for wrong in ({}, {"schema": 99}, {**measured.quality.to_dict(), "nodes": [{"name": 3}]}):
        with pytest.raises(CorruptFileError):
            report(wrong, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="folder"):
        report(measured.quality, tmp_path)


def test_exact_undefined_and_missing_figures() -> None:
    exact, undefined = Noise(math.inf, 0.0, 0.0, 0.0), Noise(-math.inf, 0.5, 0.1, 1.0)
    assert (relative(exact), relative(undefined), relative(None)) == (0.0, math.inf, None)
    assert (step_of(0.0), step_of(None), step_of(math.inf)) == (None, None, len(THRESHOLDS_DB))
    node = Node("a", "conv2d", "", ("a",), "", "", ("elsewhere",), (1, 2), "float", None, None, False, "no twin")
    (layer,) = layers_of([node])
    assert layer.colour == "en" and layer.inputs == () and "no twin" in layer.kind
    assert all(cell.text == "" and cell.sort is None for cell in layer.cells)
    assert histograms_of(node) == {"parts": [], "channels": []}


@pytest.mark.parametrize(
    ("part", "text"),
    [(0.0, "0 %"), (1e-9, "< 0.001 %"), (0.00123, "0.12 %"), (0.01, "1.0 %"), (0.1, "10 %"), (0.2564, "26 %"),
     (12.0, "1,200 %"), (math.inf, "∞"), (None, "")],
)  # fmt: skip
def test_percent(part: float | None, text: str) -> None:
    assert percent(part).replace("\N{NO-BREAK SPACE}", " ") == text


def test_steps_of_the_scale_have_their_names() -> None:
    assert len(step_names()) == len(THRESHOLDS_DB) + 1
    for step, threshold in enumerate(THRESHOLDS_DB, 1):
        error = 10 ** (-threshold / 20)
        assert (step_of(error * 0.999), step_of(error * 1.001)) == (step - 1, step)
        assert f"{100 * error:.2g}" in step_names()[step]


@settings(deadline=None)
@given(st.text("ab.", max_size=40), st.integers(4, 20))
def test_tail_is_an_end(path: str, most: int) -> None:
    short = tail(path, most)
    assert len(short) <= most and path.endswith(short.removeprefix("…"))
    assert plain(1.5e-7) == "1.5e−7"


# ---- the drawing of the network ----

GRAPHS = st.integers(1, 24).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(0, i - 1), max_size=3) if i else st.just([]) for i in range(n)))
)


@settings(deadline=None)
@given(GRAPHS)
def test_drawing_has_no_overlap_and_edges_go_down(inputs: tuple[list[int], ...]) -> None:
    drawing = layered.draw(inputs, width=40, height=10, lane=4, gap=(6, 8))
    assert drawing == layered.draw(inputs, width=40, height=10, lane=4, gap=(6, 8))
    for i, (x, y) in enumerate(drawing.points):
        assert 20 - 1e-6 <= x <= drawing.width - 20 + 1e-6 and 5 <= y <= drawing.height - 5
        for u, v in drawing.points[:i]:
            assert v != y or abs(x - u) >= 46 - 1e-6
    assert sorted((s, t) for s, t, _ in drawing.edges) == sorted((s, t) for t, ss in enumerate(inputs) for s in set(ss))
    for source, target, points in drawing.edges:
        assert (points[0], points[-1]) == (drawing.points[source], drawing.points[target])
        assert all(below[1] - above[1] == 18 for above, below in zip(points, points[1:], strict=False))


def test_drawing_of_a_chain_is_straight_and_skips_stand_beside_it() -> None:
    drawing = layered.draw([[], [0], [1], [2, 0]], width=40, height=10, lane=4, gap=(6, 8))
    lane = next(points for source, target, points in drawing.edges if (source, target) == (0, 3))
    for (x, y), node in zip(lane[1:-1], drawing.points[1:3], strict=True):
        assert y == node[1] and abs(x - node[0]) >= 28 - 1e-6
    with pytest.raises(ValueError, match="node 1"):
        layered.draw([[], [1]], width=1, height=1, lane=1, gap=(1, 1))


# ---- in a browser ----


def cells(driver: Any, column: int) -> list[str]:
    script = (
        "return [...document.querySelectorAll('#layers tbody tr')].filter(r => !r.hidden)"
        ".map(r => r.cells[arguments[0]].textContent)"
    )
    return driver.execute_script(script, column)


def text_of(element: Any) -> str:
    """As the page holds it: selenium makes its no-break spaces plain."""
    return str(element.get_attribute("innerText"))


def column_of(driver: Any, title: str) -> tuple[int, Any]:
    heads = driver.find_elements("css selector", "#layers thead button")
    names = [head.text for head in heads]
    return names.index(title), heads[names.index(title)]


def chosen(driver: Any) -> tuple[list[str], list[str], list[str], str]:
    """The selected layers of table, graph and plot, and what the detail shows."""
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.dataset.layer)"
    found = [driver.execute_script(script, s) for s in ("tr[aria-selected=true]", ".node.selected", ".hit.selected")]
    return (*found, driver.find_element("id", "chosen").text)


def test_opens_without_network_or_errors(opened: Any, page: Path) -> None:
    assert opened.get_log("browser") == []
    assert [url for url in browsers.requests(opened) if not url.startswith("data:")] == [page.as_uri()]
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_click_on_a_header_sorts(opened: Any, measured: Measured) -> None:
    column, head = column_of(opened, "added")
    errors = [layer.added for layer in layers_of(measured.quality.nodes)]
    known = sorted((e for e in errors if e is not None), reverse=True)
    head.click()
    assert cells(opened, column)[: len(known)] == [percent(e) for e in known]
    assert head.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    head.click()
    assert cells(opened, column)[: len(known)] == [percent(e) for e in reversed(known)]
    _, place = column_of(opened, "#")
    place.send_keys("\ue007")  # Enter: the keyboard does it too
    assert cells(opened, 0) == [str(i) for i in range(len(errors))]
    layer, by_name = column_of(opened, "layer")
    by_name.click()
    assert sorted(cells(opened, layer)) == sorted(layer.label for layer in layers_of(measured.quality.nodes))
    assert [c.lower() for c in cells(opened, layer)][0] == min(c.lower() for c in cells(opened, layer))


def test_filters(opened: Any, measured: Measured) -> None:
    layers = layers_of(measured.quality.nodes)
    search = opened.find_element("id", "search")
    search.send_keys("three conv2d")
    wanted = [layer.label for layer in layers if "three" in layer.label and "conv2d" in layer.op]
    assert cells(opened, 1) == wanted and 0 < len(wanted) < len(layers)
    assert opened.find_element("id", "count").text == f"{len(wanted)} of {len(layers)}"
    dimmed = opened.execute_script("return document.querySelectorAll('#network .node.dim').length")
    assert dimmed == len(layers) - len(wanted)
    opened.execute_script("arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input'))", search)
    steps = [layer.step for layer in layers if layer.step is not None]
    least = sorted(steps)[len(steps) // 2]
    script = "const e = document.getElementById('least'); e.value = arguments[0]; e.dispatchEvent(new Event('change'))"
    opened.execute_script(script, str(least))
    assert cells(opened, 1) == [layer.label for layer in layers if layer.step is not None and layer.step >= least]


def test_click_on_a_layer_shows_its_histogram(opened: Any, measured: Measured) -> None:
    at = next(i for i, node in enumerate(measured.quality.nodes) if node.codes and node.codes.saturated_high > 0)
    node = measured.quality.nodes[at]
    opened.find_element("css selector", f"tr[data-layer='{at}']").click()
    label = layers_of(measured.quality.nodes)[at].label
    assert chosen(opened) == ([str(at)], [str(at)], [str(at)], label)
    assert node.histogram and node.codes
    counts = np.array(node.histogram.reference, float)
    counts[0] -= node.codes.saturated_low
    counts[-1] -= node.codes.saturated_high
    check_bars(opened, counts, np.array(node.histogram.measured), node.codes.saturated_high)
    assert percent(node.codes.saturation) in text_of(opened.find_element("id", "histogram-note"))
    opened.find_element("id", "log").click()
    check_bars(opened, np.log1p(counts), np.log1p(node.histogram.measured), math.log1p(node.codes.saturated_high))
    opened.find_element("id", "log").click()
    channel = node.channels[1]
    opened.find_element("css selector", f"#channel option[value='{2}']").click()
    check_bars(opened, np.array(channel.histogram.reference), np.array(channel.histogram.measured), 0)
    assert f"SQNR {channel.sqnr:.1f} dB" in text_of(opened.find_element("id", "histogram-note"))


def check_bars(driver: Any, float_counts: np.ndarray, int8_counts: np.ndarray, saturated: float) -> None:
    """Heights of the bars, read back, are in the counts' proportions, for float and int8 alike."""
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect().height)"
    heights = np.array(driver.execute_script(script, "#histogram .bin"))
    path = driver.find_element("css selector", "#histogram .int8").get_attribute("d")
    steps = 100 - np.array([float(y) for y in re.findall(r"V([\d.e-]+)H", path)])
    top = max(float_counts.max(), int8_counts.max(), saturated)
    pixels = driver.execute_script("return document.getElementById('histogram').getBoundingClientRect().height")
    np.testing.assert_allclose(heights, 0.96 * pixels * float_counts / top, atol=0.02)
    np.testing.assert_allclose(steps, 96 * int8_counts / top, atol=1e-3)


def test_graph_has_every_node_in_the_colour_of_its_added_error(opened: Any, measured: Measured) -> None:
    layers = layers_of(measured.quality.nodes)
    script = (
        "return [...document.querySelectorAll('#network .node')].map(n => "
        "[n.dataset.layer, n.getAttribute('aria-label'), getComputedStyle(n.querySelector('rect')).fill])"
    )
    found = opened.execute_script(script)
    assert [label for _, label, _ in found] == [layer.label for layer in layers]
    legend = opened.execute_script(
        "return [...document.querySelectorAll('.graph .scale span')].map(s => getComputedStyle(s).backgroundColor)"
    )
    assert len(legend) == len(set(legend)) == len(step_names())
    for (_, _, colour), layer in zip(found, layers, strict=True):
        if layer.step is None:
            assert colour not in legend
        else:
            assert colour == legend[layer.step]
    assert len({colour for _, _, colour in found}) > 2
    edges = opened.execute_script("return document.querySelectorAll('#network .edge').length")
    assert edges == sum(len(set(layer.inputs)) for layer in layers)


def test_clicks_and_keys_choose_the_same_layer_everywhere(opened: Any, measured: Measured) -> None:
    labels = [layer.label for layer in layers_of(measured.quality.nodes)]
    opened.find_element("id", "fit").click()
    opened.find_elements("css selector", "#network .node")[3].click()
    assert chosen(opened) == (["3"], ["3"], ["3"], labels[3])
    opened.find_elements("css selector", "#plot .hit")[5].click()
    assert chosen(opened) == (["5"], ["5"], ["5"], labels[5])
    opened.find_element("css selector", "tr[data-layer='5']").send_keys("\ue015")  # arrow down
    assert chosen(opened) == (["6"], ["6"], ["6"], labels[6])
    assert opened.switch_to.active_element.get_attribute("data-layer") == "6"
    opened.find_element("id", "plot").send_keys("\ue012")  # arrow left
    opened.find_element("id", "graph").send_keys("\ue011")  # home
    assert chosen(opened) == (["0"], ["0"], ["0"], labels[0])
    picked = opened.find_element("css selector", ".verdicts [data-pick]")
    picked.click()
    assert chosen(opened)[3] == picked.text


def test_tooltip_has_the_figures(opened: Any, measured: Measured) -> None:
    from selenium.webdriver import ActionChains

    opened.find_element("id", "fit").click()
    node, layer = measured.quality.nodes[4], layers_of(measured.quality.nodes)[4]
    ActionChains(opened).move_to_element(opened.find_elements("css selector", "#network .node")[4]).perform()
    text = text_of(opened.find_element("id", "tip"))
    assert layer.label in text and node.error and node.added
    for figure in (percent(relative(node.added.total)), percent(relative(node.error)), f"{node.error.sqnr:.1f}"):
        assert figure in text
    ActionChains(opened).move_to_element(opened.find_element("tag name", "h1")).perform()
    assert not opened.find_element("id", "tip").is_displayed()


def test_graph_zooms_and_moves(opened: Any) -> None:
    camera = "return document.getElementById('camera').getAttribute('transform')"
    scales = []
    for button in ("fit", "zoom-in", "zoom-in", "zoom-out"):
        opened.find_element("id", button).click()
        scales.append(float(re.search(r"scale\((.*)\)", opened.execute_script(camera))[1]))
    assert scales[0] < scales[1] < scales[2] and scales[3] == pytest.approx(scales[1])
    for _ in range(12):  # to the largest scale, at which the network is higher than its pane
        opened.find_element("id", "zoom-in").click()
    before = opened.execute_script(camera)
    wheel = "new WheelEvent('wheel', {deltaY: arguments[0], cancelable: true})"
    for distance in (-2000, 60):
        opened.execute_script(f"document.getElementById('graph').dispatchEvent({wheel})", distance)
    assert opened.execute_script(camera) != before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(opened: Any, scheme: str) -> None:
    browsers.colours(opened, scheme)
    ratios = browsers.contrasts(opened)
    assert len(ratios) > 50
    assert {name: round(ratio, 2) for name, ratio in ratios.items() if ratio < 4.5} == {}
    dark = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    opened.find_element("id", "theme").click()
    assert opened.execute_script("return getComputedStyle(document.body).backgroundColor") != dark


@pytest.mark.parametrize("width", [320, 390, 768, 1000, 1920])
def test_no_width_overflows(opened: Any, width: int) -> None:
    browsers.resize(opened, width, 800)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width


def test_hostile_names_in_the_browser(browser: Any, measured: Measured, tmp_path: Path) -> None:
    quality = hostile(measured.quality)
    load(browser, report(quality, tmp_path / "hostile.html", title=HOSTILE[0], facts={HOSTILE[6]: HOSTILE[6]}))
    assert browser.get_log("browser") == []
    assert browser.find_element("tag name", "h1").text == HOSTILE[0]
    assert cells(browser, 1) == [layer.label for layer in layers_of(quality.nodes)]
    for row in browser.find_elements("css selector", "#layers tbody tr")[:8]:
        row.click()
    assert browser.execute_script("return window.broken") is None
    for width in (1400, 390):
        browsers.resize(browser, width, 800)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_page_of_a_network_of_one_node(browser: Any, measured: Measured, tmp_path: Path) -> None:
    bare = Node("a", "conv2d", "", ("a",), "", "", (), (1, 2), "float", None, None, False, "no twin")
    quality = dataclasses.replace(measured.quality, nodes=(bare,), first_apart=None)
    load(browser, report(quality, tmp_path / "one.html"))
    assert browser.get_log("browser") == []
    assert chosen(browser)[3] == "a"
    assert "No histogram" in browser.find_element("id", "histogram-note").text


def test_network_of_300_nodes(browser: Any, measured: Measured, tmp_path: Path) -> None:
    held = measured.quality.nodes
    nodes = tuple(
        dataclasses.replace(
            held[i % len(held)], name=f"n{i}", module=f"stage{i // 30}.block{i // 5}.conv{i}",
            inputs=tuple(f"n{j}" for j in (i - 1, i - 2 - i % 40) if j >= 0),
        )
        for i in range(300)
    )  # fmt: skip
    load(browser, report(dataclasses.replace(measured.quality, nodes=nodes), tmp_path / "large.html"))
    assert browser.get_log("browser") == []
    shown = (
        "const [r, p] = [...arguments].map(s => document.querySelector(s).getBoundingClientRect()); "
        "return r.top >= p.top && r.bottom <= p.bottom && r.left >= p.left && r.right <= p.right"
    )
    height = "return document.querySelector('.node.selected').getBoundingClientRect().height"
    for key, last in (("\ue010", 299), ("\ue011", 0)):  # end, home
        browser.find_element("id", "plot").send_keys(key)
        assert chosen(browser)[0] == [str(last)]
        assert browser.execute_script(shown, "#network .node.selected", ".graph .canvas")
        assert browser.execute_script(shown, "tr[aria-selected=true] td", ".layers .scroll")
        assert browser.execute_script(height) > 12
    browser.find_element("id", "fit").click()
    for index in (0, 299):
        assert browser.execute_script(shown, f"#network .node[data-layer='{index}']", ".graph .canvas")
    browsers.resize(browser, 390, 800)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390


def test_trade_off_curve(browser: Any, measured: Measured, tmp_path: Path) -> None:
    def point(kept: int, score: float | None, cycles: int) -> dict[str, Any]:
        nodes = [f"conv2d_{i}" for i in range(kept)]
        return {"kept": kept, "nodes": nodes, "score": score, "cycles": {"total": cycles, "dna": cycles}}

    points = [point(0, 20.0, 1000), point(2, 25.0, 1500), point(5, 30.0, 3000), point(9, None, 9000)]
    curve = {
        "metric": "sqnr",
        "unit": "dB",
        "dtype": "bf16",
        "platform": "SAKURA_II",
        "curve": points,
        "after": points[1],
    }
    load(browser, report(measured.quality, tmp_path / "curve.html", curve=curve))
    assert browser.get_log("browser") == []
    charts = browser.execute_script(
        "const middle = e => { const r = e.getBoundingClientRect(); return (r.top + r.bottom) / 2; }; "
        "return [...document.querySelectorAll('.chart')].map(c => ['.tick', '.grid'].map(s => "
        "[...c.querySelectorAll(s)].map(middle)))"
    )
    assert len(charts) == 2
    for ticks, lines in charts:
        assert ticks == pytest.approx(lines, abs=1.5) and len(ticks) > 2
    for width in (320, 390, 1400):
        browsers.resize(browser, width, 800)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    rows = browser.find_elements("css selector", "#curve-points tbody tr")
    assert [row.text.split()[0] == "chosen" for row in rows] == [False, True, False, False]
    marks = browser.find_elements("css selector", ".curve path.mark")
    ys = [float(re.search(r"M\S+ (\S+)h", mark.get_attribute("d"))[1]) for mark in marks]
    assert len(ys) == 3 and ys[0] - ys[1] == pytest.approx(ys[1] - ys[2])  # equal steps of 5 dB
    assert ["chosen" in mark.get_attribute("class") for mark in marks] == [False, True, False]


def test_page_of_the_profiler(browser: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.PlainCnn().eval()
    images = [(torch.randn(1, 3, 16, 16),) for _ in range(4)]
    quantized = mera_torch.quantize(model, images[0], images, progress=False)
    deployment = mera_torch.export(quantized, images[0], tmp_path / "deployment")
    found = profile(deployment.regions, deployment.platform, "Simulator", deployment.lower_bound_cycles)
    path = tmp_path / "profile.html"
    path.write_text(profile_page(found, HOSTILE[0]), encoding="utf-8")
    load(browser, path)
    assert browser.get_log("browser") == [] and browser.find_element("tag name", "h1").text.startswith(HOSTILE[0])
    assert [url for url in browsers.requests(browser) if not url.startswith("data:")] == [path.as_uri()]
    for scheme in ("light", "dark"):
        browsers.colours(browser, scheme)
        assert {name: ratio for name, ratio in browsers.contrasts(browser).items() if ratio < 4.5} == {}
    assert len(browser.find_elements("css selector", "section:nth-of-type(2) tbody tr")) == len(found.layers)
    browsers.resize(browser, 360, 800)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
