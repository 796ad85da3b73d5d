"""Stage tests: each file of tests/text is a DNA graph whose comments say what to run and what to find.

# RUN: STAGE PLATFORM     compiles up to the stage (see Graph.dump) and looks at its text; "equal" runs oracle,
                          interpreter and simulator instead; PLATFORM is a name or UNITSxARRAYxKIB
# CHECK: text             the text stands in the output, behind what the CHECK before found; {{...}} is a regex
# CHECK-NOT: text         ... does not stand between its neighbours
# ERROR: text             the run, or reading the graph, fails with a message that holds the text
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_inputs

from mera_torch import graph_text, native, oracle
from mera_torch.errors import MeraError
from mera_torch.platform import Platform, find

FILES = sorted((Path(__file__).parent / "text").glob("*.dna"))


@dataclass
class Run:
    stage: str
    platform: Platform
    checks: list[tuple[str, str]] = field(default_factory=list)


def platform(name: str) -> Platform:
    size = re.fullmatch(r"(\d+)x(\d+)x(\d+)", name)
    if size is None:
        return find(name)
    units, array, kib = (int(n) for n in size.groups())
    return Platform(f"{units}x{array}", units, array, 500.0, kib * 1024, 8.0)


def runs_of(text: str) -> list[Run]:
    runs: list[Run] = []
    for kind, rest in re.findall(r"^# (RUN|CHECK|CHECK-NOT|ERROR): *(.*)$", text, re.MULTILINE):
        if kind == "RUN":
            stage, name = rest.split()
            runs.append(Run(stage, platform(name)))
        else:
            runs[-1].checks.append((kind, rest))
    return runs


def pattern(text: str) -> str:
    """Literal text with {{regular expressions}} in it; any white space matches any other."""
    parts = re.split(r"\{\{(.*?)\}\}", text)
    return "".join(part if i % 2 else r"\s+".join(map(re.escape, part.split(" "))) for i, part in enumerate(parts))


def check(output: str, checks: list[tuple[str, str]]) -> None:
    at, forbidden = 0, []
    for kind, text in [*checks, ("CHECK", "")]:
        if kind == "CHECK-NOT":
            forbidden.append(text)
            continue
        last = (kind, text) == ("CHECK", "")
        found = re.compile(r"\Z" if last else pattern(text)).search(output, at)
        assert found, f"not found: {text}\nin:\n{output[at:]}"
        for bad in forbidden:
            assert not re.search(pattern(bad), output[at : found.start()]), f"found: {bad}\nin:\n{output}"
        at, forbidden = found.end(), []


def execute(text: str, run: Run) -> str:
    graph = native.Graph.parse(text)
    if run.stage != "equal":
        return graph.dump(run.stage, run.platform)
    model = graph_text.read(text, {name: info.attrs for name, info in native.OPS.items()})
    inputs = random_inputs(model)
    program = graph.compile(run.platform)
    rungs = oracle.run(model, inputs), native.Interpreter(graph).run(inputs), native.Simulator(program).run(inputs)
    return (
        "equal"
        if all(len({np.asarray(v).tobytes() for v in values}) == 1 for values in zip(*rungs, strict=True))
        else "differ"
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_text(file: Path) -> None:
    text = file.read_text()
    runs = runs_of(text)
    assert runs and all(run.checks for run in runs), "the file checks nothing"
    for run in runs:
        errors = [rest for kind, rest in run.checks if kind == "ERROR"]
        if not errors:
            check(execute(text, run), run.checks)
            continue
        with pytest.raises(MeraError) as raised:
            execute(text, run)
        for error in errors:
            assert re.search(pattern(error), str(raised.value)), f"not said: {error}\nsaid: {raised.value}"
