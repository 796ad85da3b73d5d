"""The rows as Markdown: a verdict for each network, then every method's figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from report import table

from . import metrics
from .methods import METHODS
from .networks import NETWORKS

Row = dict[str, Any]
OURS = "mera_torch"
TITLES = {
    "digits": "Digit networks, 2,000 held-out digits",
    "photos": "ImageNet networks, 500 crops of photographs and 20 labelled photos",
    "outputs": "Outputs of the ONNX networks and U-Net",
}
SCORES = {"digits": "top-1 accuracy, points", "photos": "agreement with float, points", "outputs": "PSNR, dB"}


def markdown(results: dict[str, Any]) -> str:
    """The whole page."""
    rows = sorted(results["rows"], key=order)
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    parts = ["# Quantization against peers", "", "Made by `python benchmarks/quantize.py`.", "", f"_{machine}_", ""]
    for method in METHODS.values():
        parts += [f"† not compared: {method.name}: {method.beyond}.", ""] if method.beyond else []
    for per_tensor in (False, True):
        chosen = [row for row in rows if row["per_tensor"] == per_tensor]
        if found := verdicts(chosen):
            weights = "one scale for each weight tensor" if per_tensor else "weights quantized per channel"
            parts += [f"## The verdict, {weights}", "", *table(found), ""]
    for kind, title in TITLES.items():
        for name in dict.fromkeys(row["network"] for row in rows if row["kind"] == kind):
            parts += [f"## {title}: {name}", ""]
            for per_tensor in (False, True):
                if shown := figures_of(name, rows, per_tensor=per_tensor):
                    parts += ["Weights per tensor:", ""] if per_tensor else []
                    parts += [*table(shown), ""]
    failed = [row for row in rows if "failed" in row]
    if failed:
        parts += ["## What could not be measured", ""]
        parts += [*table([{key: row[key] for key in ("network", "method", "version", "failed")} for row in failed]), ""]
    return "\n".join(parts)


def verdicts(rows: list[Row]) -> list[Row]:
    """For each network: the best of ours and of the peers, and their difference with its standard error."""
    found = []
    for name in dict.fromkeys(row["network"] for row in rows):
        measured = [row for row in rows if row["network"] == name and "failed" not in row]
        ours = [row for row in measured if row["tool"] == OURS]
        peers = [row for row in measured if row["tool"] != OURS and not METHODS[row["method"]].beyond]
        if ours and peers:
            default, best, peer = ours[0], max(ours, key=score), max(peers, key=score)
            found.append(
                {
                    "network": name,
                    "measured in": SCORES[best["kind"]],
                    "default": _score(default),
                    "best of ours": f"{_score(best)} ({_short(best)})",
                    "best peer": f"{_score(peer)} ({peer['method']})",
                    "best of ours - best peer": _difference(best, peer),
                    "verdict": verdict(best, peer),
                }
            )
    return found


def verdict(ours: Row, peer: Row) -> str:
    """best, within noise of best, or behind."""
    behind, error = compared(peer, ours)
    if behind <= 0:
        return "best"
    return "within noise of best" if metrics.is_within_noise(behind, error) else "behind"


def score(row: Row) -> float:
    """What a row is judged by, in points (of a hundred) or dB."""
    values = scores(row)
    return sum(values) / len(values)


def scores(row: Row) -> list[float]:
    """The same, of each item: right or not, as float or not (100 or 0), dB."""
    if row["kind"] == "outputs":
        return list(row["psnr_each"])
    flags = row["rights" if row["kind"] == "digits" else "agrees"]
    return [100 * value for value in metrics.unpacked(flags, row["inputs"])]


def compared(first: Row, second: Row) -> tuple[float, float]:
    """Mean difference of two rows of one network and its standard error, paired item by item."""
    groups = [index % first["groups"] for index in range(first["inputs"])]
    return metrics.difference(scores(first), scores(second), groups)


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
    mark = " †" if METHODS[row["method"]].beyond else ""
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
    shown["less the best"] = _difference(row, best)
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


def _difference(first: Row, second: Row) -> str:
    if first is second:
        return "0"
    mean, error = compared(first, second)
    return f"{mean:+.2f} ± {error:.2f}"


def _score(row: Row) -> str:
    return f"{score(row):.2f}"


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.2f} %"


def _short(row: Row) -> str:
    return row["method"].removeprefix(OURS).removeprefix(", ") or "default"
