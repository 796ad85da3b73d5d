"""Every ```python block of README.md and docs/*.md runs, in sequence per file; every `mera` command they name exists.

A block opened with ```python no-run: REASON is skipped, visibly, with its reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```\s*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of the first line of code
    info: str
    code: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, language: str) -> list[Block]:
    """The fenced blocks of one language."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        info = match["info"].strip()
        if info.split(" ")[0] == language:
            found.append(Block(page, text.count("\n", 0, match.start("code")) + 1, info, match["code"]))
    return found


def is_run(block: Block) -> bool:
    return "no-run" not in block.info


RUN = [page for page in PAGES if any(map(is_run, blocks(page, "python")))]
NOT_RUN = [block for page in PAGES for block in blocks(page, "python") if not is_run(block)]
COMMANDS = [
    (block, line.removeprefix("$").strip())
    for page in PAGES
    for language in ("bash", "sh", "shell", "console")
    for block in blocks(page, language)
    for line in block.code.splitlines()
    if re.match(r"(\$ *)?mera\b", line)
]


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in filter(is_run, blocks(page, "python")):
        # Blank lines before it, so that a traceback names the page's own line.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        exec(code, namespace)


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.where)
def test_python_blocks_not_run_say_why(block: Block) -> None:
    reason = block.info.partition("no-run")[2].lstrip(": ").strip()
    assert reason, f"{block.where}: write ```python no-run: REASON"
    compile(block.code, block.where, "exec")
    pytest.skip(f"{block.where}: {reason}")


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=[f"{b.where} {line}" for b, line in COMMANDS])
def test_commands_exist(block: Block, line: str) -> None:
    from mera_torch.cli import app

    group = typer.main.get_command(app)
    words = line.split("#")[0].split()[1:]
    command = group.commands.get(words[0], group) if words else group  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    if words and not words[0].startswith("-"):
        assert words[0] in group.commands, f"{block.where}: mera has no command {words[0]}"  # type: ignore[attr-defined]
    unknown = [word for word in words if word.startswith("-") and word.split("=")[0] not in known]
    assert not unknown, f"{block.where}: no such option: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_every_exception_is_in_the_table_of_errors() -> None:
    from mera_torch import errors, zoo

    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MeraError)]
    for kind in {*kinds, zoo.ZooError} - {errors.MeraError}:
        (row,) = [line for line in page.splitlines() if re.match(rf"\| `(zoo\.)?{kind.__name__}`", line)]
        builtin = next(base.__name__ for base in kind.__mro__ if base.__module__ == "builtins")
        assert builtin == "Exception" or row.endswith(f"| `{builtin}` |"), row
