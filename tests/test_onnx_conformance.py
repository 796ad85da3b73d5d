"""ONNX's own backend node tests through from_onnx; docs/onnx_operators.md is what they gave."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import onnx_conformance  # noqa: E402

STORED = onnx_conformance.load()
VERDICTS = {name: case["mera_torch"] for name, case in STORED["cases"].items()}

same_onnx = pytest.mark.skipif(
    onnx.__version__ != STORED["onnx"], reason=f"the verdicts are for onnx {STORED['onnx']}, this is {onnx.__version__}"
)


def check(*options: str) -> None:
    command = [sys.executable, ROOT / "tools" / "onnx_conformance.py", "--check", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_most_cases_pass_and_none_is_wrong() -> None:
    counts = Counter(map(onnx_conformance.kind, VERDICTS.values()))
    assert set(counts) == {"pass", "refused"}
    assert counts["pass"] >= 1660
    assert len(VERDICTS) >= 1884


def test_refusals_name_operator_opset_and_reason() -> None:
    form = re.compile(r"refused: onnx operator \S+ \(opset \d+\) '.+': \S.{10}")
    assert [verdict for verdict in VERDICTS.values() if verdict.startswith("refused") and not form.match(verdict)] == []


def test_the_page_is_made_from_the_verdicts() -> None:
    text = onnx_conformance.PAGE.read_text(encoding="utf-8")
    assert text == onnx_conformance.page(STORED), "run python tools/onnx_conformance.py"


@same_onnx
def test_a_sample_gives_the_stored_verdicts() -> None:
    check("--every", "8")


@same_onnx
@pytest.mark.slow
def test_every_case_gives_the_stored_verdict() -> None:
    check()


def test_a_wrong_result_is_seen() -> None:
    """The comparison itself: shapes, dtypes, values, NaN, and what rounding explains."""
    import numpy as np
    import torch

    class Case:
        rtol, atol = 1e-3, 1e-7

    def compared(result: object, expected: object) -> str:
        return onnx_conformance.compare([result], [expected], Case)

    ones = np.ones((2, 3), np.float32)
    assert compared(torch.ones(2, 3), ones) == ""
    assert "instead of" in compared(torch.ones(3, 2), ones)
    assert "instead of" in compared(torch.ones(2, 3, dtype=torch.float64), ones)
    assert "0.99 instead of 1 at [0, 0]" in compared(torch.full((2, 3), 0.99), ones)
    assert compared(torch.tensor([1.0, float("nan")]), np.array([1, np.nan], np.float32)) == ""
    assert "nan" in compared(torch.tensor([1.0, float("nan")]), np.array([1, 1], np.float32))
    assert compared(torch.tensor([0.0, 100.0]), np.array([2e-6, 100], np.float32)) == onnx_conformance.ROUNDING
    assert "instead of" in compared(torch.tensor([0.0, 1.0]), np.array([2e-6, 1], np.float32))
    assert "instead of" in compared(torch.tensor([3]), np.array([4]))
