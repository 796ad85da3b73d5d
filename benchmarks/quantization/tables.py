"""The rows as Markdown: the aims, a verdict for each network, then every method's figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from report import table

from .methods import METHODS
from .networks import NETWORKS
from .verdicts import aims, difference, left_out, score, scores, verdicts

Row = dict[str, Any]
TITLES = {
    "digits": "Digit networks, 2,000 held-out digits",
    "photos": "ImageNet networks, 500 crops of photographs and 20 labelled photos",
    "outputs": "Outputs of the nine ONNX networks and U-Net, all with random weights",
}


def markdown(results: dict[str, Any]) -> str:
    """The whole page."""
    rows = sorted(results["rows"], key=order)
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    parts = ["# Quantization against peers", "", "Made by `python benchmarks/quantize.py`.", "", f"_{machine}_", ""]
    parts += [*notes(results), ""]
    parts += ["## The aims", "", *table(aims(rows)), ""]
    for kind, title in TITLES.items():
        for per_tensor, weights in ((False, "weights per channel"), (True, "one scale for each weight tensor")):
            if found := verdicts(rows, kind=kind, per_tensor=per_tensor):
                parts += [f"## {title}: the verdict, {weights}", "", *table(found), ""]
    for kind, title in TITLES.items():
        for name in dict.fromkeys(row["network"] for row in rows if row["kind"] == kind):
            parts += [f"## {title}: {name}", ""]
            for per_tensor in (False, True):
                if shown := figures_of(name, rows, per_tensor=per_tensor):
                    parts += ["Weights per tensor:", ""] if per_tensor else []
                    parts += [*table(shown), ""]
    if found := failures(rows):
        parts += ["## What could not be measured", "", *table(found), ""]
    return "\n".join(parts)


def notes(results: dict[str, Any]) -> list[str]:
    """What the tables do not say themselves, as a Markdown list."""
    jobs = results["machine"].get("jobs", 1)
    beside = f", with {jobs} rows measured side by side" if jobs > 1 else ""
    found = [
        f"- seconds, user: of quantizing, from the float module to one that can run{beside}; user is the time of this "
        "row's process alone.",
        "- less the best: the mean difference to the best of the table, paired item by item, and its standard error.",
    ]
    for floats in dict.fromkeys(method.floats for method in METHODS.values() if method.floats):
        names = "; ".join(method.name for method in METHODS.values() if method.floats == floats)
        found.append(f"- ‡ leaves in float32 what is int8 on the DNA, an easier task: {names} ({floats}).")
    for beyond in dict.fromkeys(method.beyond for method in METHODS.values() if method.beyond):
        names = "; ".join(method.name for method in METHODS.values() if method.beyond == beyond)
        found.append(f"- † not compared, the DNA cannot compute it: {names} ({beyond}).")
    return found + [f"- To save time, {sentence}." for sentence in left_out()]


def failures(rows: list[Row]) -> list[Row]:
    """The rows that could not be measured, and why."""
    return [{key: row[key] for key in ("network", "method", "version", "failed")} for row in rows if "failed" in row]


def figures_of(network: str, rows: list[Row], *, per_tensor: bool) -> list[Row]:
    """The table of one network: every method's figures, and how far it is behind the best of this table."""
    chosen = [row for row in rows if row["network"] == network and row["per_tensor"] == per_tensor]
    measured = [row for row in chosen if "failed" not in row and not METHODS[row["method"]].beyond]
    best = max(measured, key=score) if measured else None
    return [figures(row, best) for row in chosen]


def seconds(network: str, rows: list[Row]) -> list[Row]:
    """What quantization of one network took, by method."""
    chosen = [row for row in rows if row["network"] == network and not row["per_tensor"] and "failed" not in row]
    return [
        {"method": row["method"], "seconds": f"{row['seconds']:.1f}", "user seconds": f"{row['user_seconds']:.1f}"}
        for row in chosen
    ]


def figures(row: Row, best: Row | None) -> Row:
    """One method's figures."""
    method = METHODS[row["method"]]
    mark = " †" * bool(method.beyond) + " ‡" * bool(method.floats)
    shown: Row = {"method": row["method"] + mark, "version": row["version"]}
    if "failed" in row or best is None:
        return shown
    if "right" in row:
        shown |= {"top-1": _percent(row["right"], row["inputs"]), "float": _percent(row["float_right"], row["inputs"])}
    if "agree" in row:
        shown["agrees with float"] = _percent(row["agree"], row["inputs"])
    if photos := row.get("photos"):
        shown["photos right"] = f"{photos['right']} of {photos['inputs']} (float {photos['float_right']})"
        shown["photos agree"] = f"{photos['agree']} of {photos['inputs']}"
    shown |= {"SQNR, dB": f"{row['sqnr_db']:.1f}", "PSNR, dB": f"{row['psnr_db']:.1f}"}
    shown["less the best"] = difference(row, best)
    return shown | {"seconds": f"{row['seconds']:.1f}", "user": f"{row['user_seconds']:.1f}"}


def check(results: dict[str, Any]) -> Iterable[str]:
    """What is wrong with results as read from JSON: one sentence each."""
    keys = {"network", "kind", "method", "tool", "version", "options", "per_tensor"}
    measured = {"calibration_inputs", "seconds", "user_seconds", "inputs", "groups", "sqnr_db", "psnr_db"}
    answers = {"agree", "agrees"}
    own = {
        "digits": answers | {"right", "rights", "float_right"},
        "photos": answers | {"photos"},
        "outputs": {"psnr_each"},
    }
    seen = set()
    for row in results["rows"]:
        name = f"{row.get('network')}, {row.get('method')}"
        wanted = keys | ({"failed"} if "failed" in row else measured | own.get(row.get("kind", ""), set()))
        if set(row) != wanted:
            yield f"{name}: keys {sorted(set(row) ^ wanted)} are missing or too many"
        elif "failed" not in row and len(scores(row)) != row["inputs"]:
            yield f"{name}: {len(scores(row))} scores for {row['inputs']} inputs"
        if name in seen:
            yield f"{name} is there twice"
        seen.add(name)


def order(row: Row) -> tuple[int, int]:
    """The place of a row: as its network and its method are listed."""
    return list(NETWORKS).index(row["network"]), list(METHODS).index(row["method"])


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.2f} %"
