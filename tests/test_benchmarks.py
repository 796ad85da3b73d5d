"""The targets of the benchmarks hold, and the published cycles are those that are measured now."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import measure  # noqa: E402
import report  # noqa: E402

U2X32 = str(BENCHMARKS / "platforms" / "u2x32.toml")
RESULTS = BENCHMARKS / "results"


def published(section: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / "results.json").read_text())[section]["rows"]
    return rows


@pytest.mark.slow
def test_resnet50_is_within_135_percent_of_the_lower_bound() -> None:
    rows = measure.cycles(["resnet50"], ["SAKURA_1", U2X32])
    assert [row["platform"] for row in rows] == ["SAKURA_1", "u2x32"]
    assert all(1.0 <= row["ratio"] <= 1.35 for row in rows)
    assert all(row in published("cycles") for row in rows), "run python benchmarks/run.py"


@pytest.mark.slow
def test_mobilenet_v2_takes_at_most_half_a_million_cycles() -> None:
    (row,) = measure.cycles(["mobilenet_v2"], [U2X32])
    assert row["cycles"] <= 500_000
    assert row in published("cycles"), "run python benchmarks/run.py"


def test_the_table_is_that_of_the_json() -> None:
    results = json.loads((RESULTS / "results.json").read_text())
    assert (RESULTS / "results.md").read_text() == report.markdown(results)


def test_published_cycles_respect_the_lower_bound() -> None:
    rows = published("cycles")
    assert {row["network"] for row in rows} >= {"resnet50", "mobilenet_v2", "unet128"}
    assert all(row["cycles"] >= row["lower_bound"] for row in rows)


def test_tables_are_markdown() -> None:
    lines = list(report.table([{"network": "a", "cycles": 1234567, "ratio": 1.5}, {"network": "b", "cycles": 1}]))
    assert lines == [
        "| network | cycles | ratio |",
        "| --- | ---: | ---: |",
        "| a | 1,234,567 | 1.500 |",
        "| b | 1 |  |",
    ]
