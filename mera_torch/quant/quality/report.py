"""The quality of a quantized network as one page of HTML that opens without a network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mera_torch import versions
from mera_torch.atomic import atomic_file
from mera_torch.pages import render

from .report_drawings import error_chart, network, trade_off
from .report_layers import COLUMNS, histograms_of, layers_of, shortened
from .report_numbers import THRESHOLDS_DB, decibels, percent, plain, relative, step_names
from .result import Node, Output, Quality

_NAMED = 5  # layers that the summary names
_OUTPUT_HEADERS = (
    "output", "shape", "error", "SQNR, dB", "PSNR, dB", "cosine", "score", "max error", "mean error",
    "same top-1", "by float transforms",
)  # fmt: skip


def report(
    quality: Quality | Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    findings: Iterable[Any] | None = None,
    config: Any = None,
    curve: Any = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the page, whole or not at all; returns its path.

    Args:
        quality: What `measure_quantization_quality` gave, or its to_dict(). Layers, their histograms and the graph need
            one that was measured with debug_mode=True.
        path: The file to write, "report.html".
        title: The page's headline; "Quantization quality" if None.
        findings: Of the linter: objects with to_dict(), or such dicts; None leaves their section out.
        config: A QuantConfig or the dict of one; None leaves its section out.
        curve: What a mixed-precision search found (MixedPrecision), or its to_dict(); None leaves its section out.
        facts: What else the summary shall say, such as {"calibration": "100 images"}.

    Raises:
        CorruptFileError: `quality` is a dict that no Quality gives.
        StorageError: the file cannot be written.
    """
    found = quality if isinstance(quality, Quality) else Quality.from_dict(quality)
    values = {
        "title": title or "Quantization quality",
        **_summary(found, facts or {}),
        **_layers(found),
        "findings": None if findings is None else sorted((_finding(_dict(f)) for f in findings), key=_rank),
        "curve": None if curve is None else trade_off(_dict(curve)),
        "tables": [] if config is None else [{"title": "Configuration", "rows": _rows(_dict(config))}],
    }
    values["tables"].append({"title": "Versions", "rows": list(versions.versions().items())})
    page = render("report.html", values)
    with atomic_file(path) as written:
        written.write_text(page, encoding="utf-8")
    return Path(path)


def _dict(value: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = value if isinstance(value, Mapping) else value.to_dict()
    return found


def _rows(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, value if isinstance(value, str) else repr(value)) for name, value in options.items()]


def _finding(finding: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("rule", "severity", "node", "module", "evidence", "remedy")
    where = finding.get("module") or finding.get("node") or ""
    fixed = bool(finding.get("fixed"))
    return {
        **{key: finding.get(key) or "" for key in keys}, "fixed": fixed, "where": where,
        "kind": "fixed" if fixed else finding.get("severity"),
    }  # fmt: skip


def _rank(finding: Mapping[str, Any]) -> tuple[bool, int]:
    known = ("error", "warning", "note")
    return finding["fixed"], known.index(finding["severity"]) if finding["severity"] in known else len(known)


# ---- summary ----


def _summary(quality: Quality, facts: Mapping[str, Any]) -> dict[str, Any]:
    target = f"{quality.measured} on {quality.platform}" if quality.platform else quality.measured
    said = {"samples": f"{quality.samples:,}", **facts}
    if quality.nodes:
        types = [node.dtype for node in quality.nodes if node.op != "input"]
        said["operators"] = ", ".join(f"{types.count(kind)} in {kind}" for kind in dict.fromkeys(sorted(types)[::-1]))
    return {
        "subtitle": f"{target}, against the float network in PyTorch",
        "facts": list(said.items()),
        "outputs": _filled(_OUTPUT_HEADERS, [_output(output) for output in quality.outputs]),
        "notes": quality.notes,
    }


def _output(output: Output) -> tuple[str, ...]:
    error = output.error
    return (
        output.name, "×".join(map(str, output.shape)), percent(relative(error)), decibels(error),
        decibels(error, error.psnr), f"{error.cosine:.5f}", f"{error.score:.2f}".replace("-", "−"),
        plain(error.max_error), plain(error.mean_error), percent(output.top1), percent(relative(output.transforms)),
    )  # fmt: skip


def _filled(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A table without its empty columns."""
    kept = [i for i in range(len(headers)) if any(row[i] for row in rows)]
    return {"headers": [headers[i] for i in kept], "rows": [[row[i] for i in kept] for row in rows]}


# ---- layers ----


def _layers(quality: Quality) -> dict[str, Any]:
    layers = layers_of(quality.nodes)
    place = {name: i for i, node in enumerate(quality.nodes) for name in (*node.fused, node.name)}
    kept = [i for i in range(len(COLUMNS)) if i == 0 or any(layer.cells[i].text for layer in layers)]
    worst = max(range(len(layers)), key=lambda i: layers[i].added or 0.0, default=0)
    return {
        "layers": layers, "columns": COLUMNS, "kept": kept, "steps": step_names(), "thresholds": THRESHOLDS_DB,
        "operators": sorted({layer.op for layer in layers}), "ops": [shortened(node.op, 13) for node in quality.nodes],
        "chart": error_chart(layers), "graph": network(layers),
        "place": place, "verdicts": _verdicts(quality, place),
        "data": {
            "thresholds": THRESHOLDS_DB, "first": worst,
            "layers": [
                {"kind": layer.kind, **histograms_of(node)} for layer, node in zip(layers, quality.nodes, strict=True)
            ],
        },
    }  # fmt: skip


def _verdicts(quality: Quality, place: Mapping[str, int]) -> list[dict[str, Any]]:
    """Sentences, each with the layers that it names."""
    found = []

    def say(text: str, names: Iterable[str]) -> None:
        if known := [place[name] for name in names if name in place]:
            found.append({"text": text, "layers": known})

    say("Most error is added by", [node.name for node in quality.worst(_NAMED)])
    if (node := quality.misread) is not None:
        say("Suffers most from how its inputs are rounded", [node.name])
        say("These inputs come from", [maker.name for maker in quality.makers(node)])
    if quality.first_apart:
        ratio = plain(quality.threshold)
        say(f"Float and integer networks first part ways (SQNR below {ratio} dB) at", [quality.first_apart])
    if quality.first_different:
        say("The accelerator's integers first differ from the q/dq module's at", [quality.first_different])
    saturated = [node for node in quality.nodes if node.codes and node.codes.saturation > 0.001 and _rounds(node)]
    saturated.sort(key=lambda node: -node.codes.saturation if node.codes else 0.0)
    say("Most values saturate at", [node.name for node in saturated[:_NAMED]])
    return found


def _rounds(node: Node) -> bool:
    """Whether it may clip values by itself, as what moves values that are clipped already does not."""
    return node.added is None or node.added.output.mse > 0
