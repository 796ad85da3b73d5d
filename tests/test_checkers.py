"""What the compiler's proofs stand on. csrc/tests/checkers.c: the checkers can fail, on programs spoilt in many ways.
csrc/tests/accesses.c: instructions touch no byte but those that the checkers reason about."""

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
FLAGS = ["-std=c11", "-O0", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the core's object files."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C compiler {compiler[0]!r}")
    folder = tmp_path_factory.mktemp("core")
    sources = [*CSRC.glob("*.c"), *CSRC.glob("ops/*.c")]
    subprocess.run([*compiler, *FLAGS, "-c", *sorted(sources)], check=True, cwd=folder)
    return folder


@pytest.mark.parametrize("driver", ["checkers", "accesses"])
def test_the_compilers_proofs_hold(driver: str, core: Path, tmp_path: Path) -> None:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    objects = sorted(core.glob("*.o"))
    command = [*compiler, *FLAGS, CSRC / "tests" / f"{driver}.c", *objects, "-o", tmp_path / driver, "-lm"]
    subprocess.run(command, check=True)
    graphs = [graph(RESIDUAL_NET)]
    graphs += [build(random_graph(random.Random(seed), nodes=6, max_elements=4000)) for seed in range(4)]
    files = [tmp_path / f"{index}.dna.txt" for index in range(len(graphs))]
    for file, built in zip(files, graphs, strict=True):
        file.write_text(built.text(), encoding="utf-8")
    done = subprocess.run([tmp_path / driver, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
