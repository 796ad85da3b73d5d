"""The C runtime as other languages see it: runtime/test.sh does the work, which needs cmake and compilers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {
    "headers": ("cc", "c++"),
    "native": ("cc", "c++", "cmake", "nm"),
    "install": ("cc", "c++", "cmake", "pkg-config"),
    "device": ("cc", "c++", "cmake"),
    "sanitize": ("cc", "c++", "cmake"),
    "cross": ("cmake", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++", "qemu-aarch64"),
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c_runtime")


@pytest.mark.parametrize(
    "part", ["headers", *(pytest.param(part, marks=pytest.mark.slow) for part in TOOLS if part != "headers")]
)
def test_script(part: str, build: Path) -> None:
    missing = [tool for tool in TOOLS[part] if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}")
    environment = {**os.environ, "BUILD": str(build), "PYTHON": sys.executable}
    done = subprocess.run(["sh", "runtime/test.sh", part], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_sdist_holds_all_that_the_library_is_built_from(tmp_path: Path) -> None:
    """csrc/ and runtime/, whole."""
    pytest.importorskip("setuptools")
    checkout = tmp_path / "checkout"
    shutil.copytree(
        ROOT, checkout, ignore=shutil.ignore_patterns(".git", "build", "*.so", "*.egg-info", "__pycache__", ".*_cache")
    )
    build = "from setuptools import build_meta as b; import sys; b.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=checkout, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = [
        path.relative_to(ROOT).as_posix()
        for folder in ("csrc", "runtime")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    ]
    assert not set(wanted) - names
    assert {"pyproject.toml", "setup.py", "tools/build_core.py"} <= names
