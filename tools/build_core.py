"""Builds mera_torch._core, the C core behind cffi (API mode), from csrc/.

The compiler is $CC or the system's; OpenMP is used if the compiler has it and MERA_NO_OPENMP is not 1. No flag names an
instruction set: fast kernels are compiled per function and chosen at run time. MERA_SANITIZE=1 adds ASan and UBSan.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
# What Python calls.
HEADERS = ("mera.h", "device/driver.h", "device/board.h", "device/tables.h", "dna_runtime.h", "runtime/inner.h")
# Functions that Python defines: mera_progress and runner_executor.
CALLBACKS = """
extern "Python" int32_t mera_on_progress(void *, const char *, int64_t, int64_t);
extern "Python" dna_status mera_on_region(void *, int32_t, int32_t, const void *const *, const int64_t *, int32_t,
                                          void *const *, const int64_t *, mera_stats *, char *, size_t);
"""


def declarations(header: str) -> str:
    """The part of a header that cffi's parser reads."""
    text = (CSRC / header).read_text(encoding="utf-8")
    return text.split("/* ---- cffi: begin ---- */")[1].split("/* ---- cffi: end ---- */")[0]


def version() -> str:
    """The project's version; it stands in pyproject.toml alone."""
    found = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise RuntimeError("pyproject.toml names no version")
    return found.group(1)


def sources() -> list[str]:
    """Every C file of the core, relative to the project's root, as setuptools wants it."""
    files = [path for path in CSRC.rglob("*.c") if "tests" not in path.relative_to(CSRC).parts]
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def build_id() -> str:
    """A hash of all that decides what the core computes: every source, header and table of csrc/ but its tests."""
    digest = hashlib.sha256()
    for path in sorted(p for p in CSRC.rglob("*") if p.suffix in (".c", ".h", ".def")):
        name = path.relative_to(CSRC)
        if "tests" not in name.parts:
            content = path.read_bytes()
            digest.update(f"{name.as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def accepts(flag: str) -> bool:
    """Whether the compiler builds and links a program with the flag."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    program = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text(program, encoding="utf-8")
        command = [*compiler, flag, str(source), "-o", str(Path(folder) / "probe")]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def builder() -> cffi.FFI:
    ffi = cffi.FFI()
    ffi.cdef("\n".join(map(declarations, HEADERS)) + CALLBACKS)
    compile_args = ["-std=c11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=off"]
    link_args: list[str] = []
    if sys.platform != "darwin" and os.environ.get("MERA_NO_OPENMP") != "1" and accepts("-fopenmp"):
        compile_args.append("-fopenmp")
        link_args.append("-fopenmp")
    if os.environ.get("MERA_SANITIZE") == "1":
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]
        compile_args += sanitize
        link_args += sanitize
    ffi.set_source(
        "mera_torch._core",
        "".join(f'#include "{header}"\n' for header in HEADERS),
        sources=sources(),
        include_dirs=["csrc"],
        depends=sorted(p.relative_to(ROOT).as_posix() for p in CSRC.rglob("*") if p.suffix in (".h", ".def")),
        define_macros=[
            ("MERA_VERSION", f'"{version()}"'),
            ("MERA_BUILD", f'"{build_id()}"'),
            ("_GNU_SOURCE", None),
        ],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        libraries=["m"],
    )
    return ffi


ffibuilder = builder()
