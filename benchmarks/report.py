"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

TITLES = {
    "cycles": "Simulated cycles (batch 1; deterministic)",
    "pairs": "Two networks in one program (simulated cycles; each with its own input)",
    "compile": "Compilation, from the quantized FX graph to the program on disk",
    "inference": "One inference on this CPU",
    "accuracy": "Accuracy",
}
NOTES = {
    "cycles": "lower bound = max(MACs / peak MACs a cycle, compulsory DRAM bytes / DRAM bytes a cycle); compulsory: "
    "inputs, outputs, weights and biases once.",
    "pairs": "sum: of the two programs, one after the other; gain: the part of it that the fused program saves; fused "
    "bound: of the MACs and the compulsory DRAM bytes of both together; ratio: fused to "
    "its bound; seconds: from the fused graph to its program, all arrangements tried, and one simulation.",
    "compile": "memory: the highest resident size of a fresh process while compiling, less its size before.",
    "inference": "median of several runs, all in the same session.",
    "accuracy": "20 photos are a smoke test; the 2,000 digits are not.",
}


def markdown(results: dict[str, Any]) -> str:
    """One table a section, each with the machine that it was measured on."""
    parts = ["# Benchmarks", "", "Made by `python benchmarks/run.py`.", ""]
    for section, title in TITLES.items():
        if section not in results:
            continue
        found = results[section]
        machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
        parts += [f"## {title}", "", NOTES[section], "", *table(found["rows"]), "", f"_{machine}_", ""]
    return "\n".join(parts)


def table(rows: list[dict[str, Any]]) -> Iterable[str]:
    """The rows under the union of their keys."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    yield "| " + " | ".join(key.replace("_", " ") for key in keys) + " |"
    numeric = {key for key in keys if all(isinstance(row.get(key, 0), (int, float)) for row in rows)}
    yield "|" + "|".join(" ---: " if key in numeric else " --- " for key in keys) + "|"
    for row in rows:
        yield "| " + " | ".join(text(row.get(key, "")) for key in keys) + " |"


def text(value: object) -> str:
    """1234567 -> 1,234,567; 1.23456 -> 1.235."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
