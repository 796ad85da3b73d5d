"""The generated parts of the pages are what the tables say now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import gen_docs  # noqa: E402

PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_regenerating_changes_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert gen_docs.regenerated(text) == text, "run python tools/gen_docs.py"


def test_every_part_stands_on_some_page() -> None:
    found = {match["name"] for page in PAGES for match in gen_docs.PART.finditer(page.read_text(encoding="utf-8"))}
    assert found == set(gen_docs.PARTS)


def test_check_fails_on_a_stale_page(tmp_path: Path) -> None:
    copy = tmp_path / "tools" / "gen_docs.py"
    copy.parent.mkdir()
    copy.write_text((ROOT / "tools" / "gen_docs.py").read_text(encoding="utf-8"), encoding="utf-8")
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("a\n<!-- generated: aliases -->\nold\n<!-- end -->\nz\n", encoding="utf-8")

    def run(*arguments: str) -> int:
        return subprocess.run([sys.executable, copy, *arguments], cwd=ROOT, check=False, capture_output=True).returncode

    assert run("--check") == 1 and "old" in page.read_text(encoding="utf-8")
    assert run() == 0 and "DNAA600L0002" in page.read_text(encoding="utf-8")
    assert run("--check") == 0
