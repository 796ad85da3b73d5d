"""The versions of all parts. Needs numpy and cffi alone."""

from __future__ import annotations

import sys
from importlib import metadata

PARTS = ("torch", "torchao", "numpy", "cffi", "safetensors", "pillow", "rich", "typer")


def versions() -> dict[str, str]:
    """Part -> version, in the order in which `mera --version` lists them; "not installed" where that is so."""
    from . import native

    found = {"mera_torch": _installed("mera_torch"), "C core": f"{native.core_version()} ({native.core_features()})"}
    found["python"] = sys.version.split()[0]
    return found | {part: _installed(part) for part in PARTS}


def table() -> str:
    """One line a part."""
    return "\n".join(f"{part:12} {version}" for part, version in versions().items())


def _installed(part: str) -> str:
    try:
        return metadata.version(part)
    except metadata.PackageNotFoundError:
        return "not installed"
