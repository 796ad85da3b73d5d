"""The versions of all parts. Needs numpy and cffi alone."""

from __future__ import annotations

import sys
from importlib import metadata

PARTS = ("torch", "torchao", "numpy", "cffi", "safetensors", "pillow", "rich", "typer")
TOOLS = ("torch", "torchao", "numpy")


def versions() -> dict[str, str]:
    """Part -> version, in the order in which `mera --version` lists them; "not installed" where that is so."""
    found = {"mera_torch": _installed("mera_torch"), "C core": _core()}
    found["python"] = sys.version.split()[0]
    return found | {part: _installed(part) for part in PARTS}


def tool_versions() -> dict[str, str]:
    """What a deployment says of the tools that made it."""
    from . import native

    found = {"mera_torch": _installed("mera_torch"), "core": native.core_version(), "core_build": native.core_build()}
    return {**found, "python": sys.version.split()[0], **{part: _installed(part) for part in TOOLS}}


def _core() -> str:
    from . import native

    return f"{native.core_version()} (build {native.core_build()}; {native.core_features()})"


def table() -> str:
    """One line a part."""
    return "\n".join(f"{part:12} {version}" for part, version in versions().items())


def _installed(part: str) -> str:
    try:
        return metadata.version(part)
    except metadata.PackageNotFoundError:
        return "not installed"


__version__ = _installed("mera_torch")


def get_mera_version() -> str:
    """Of this package."""
    return __version__


def get_mera_dna_version() -> str:
    """Of the C core: compiler, interpreter, simulator."""
    return versions()["C core"]


def get_mera_tvm_version() -> str:
    """MERA is built on TVM, this package is not."""
    return "not used"


def get_versions() -> str:
    """table(), under the name that MERA gives it."""
    return table()
