"""The compiler's checkers can fail: csrc/tests/checkers.c spoils programs in many ways and counts what is refused."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from dna import RESIDUAL_NET, graph
from random_graphs import random_graph

from mera_torch.bisect import build

CSRC = Path(__file__).resolve().parents[1] / "csrc"


@pytest.fixture(scope="module")
def checkers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C compiler {compiler[0]!r}")
    binary = tmp_path_factory.mktemp("checkers") / "checkers"
    sources = [*CSRC.glob("*.c"), *CSRC.glob("ops/*.c"), CSRC / "tests" / "checkers.c"]
    flags = ["-std=c11", "-O0", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
    subprocess.run([*compiler, *flags, "-o", binary, *sorted(sources), "-lm"], check=True)
    return binary


def test_spoilt_programs_are_refused(checkers: Path, tmp_path: Path) -> None:
    graphs = [graph(RESIDUAL_NET)]
    graphs += [build(random_graph(random.Random(seed), nodes=6, max_elements=4000)) for seed in range(4)]
    files = [tmp_path / f"{index}.dna.txt" for index in range(len(graphs))]
    for file, built in zip(files, graphs, strict=True):
        file.write_text(built.text(), encoding="utf-8")
    done = subprocess.run([checkers, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
