"""Packages that only some importers need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mera_torch.errors import UnsupportedError

EXTRAS = {"tensorflow": "tensorflow", "ai_edge_litert": "reference"}
"""Packages that the extra `full` does not install -> the extra that does."""


@contextmanager
def needs(package: str, what: str) -> Iterator[None]:
    """Within, a failing import of `package` raises UnsupportedError saying how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        extra = EXTRAS.get(package, "full")
        raise UnsupportedError(f"{what}: package {package} is missing; pip install 'mera_torch[{extra}]'") from error
