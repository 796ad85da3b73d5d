"""The one table of conversions: (format, operator, version range) -> function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mera_torch.errors import UnsupportedError, nearest

Convert = Callable[..., Any]


@dataclass(frozen=True)
class Entry:
    """A conversion for the versions since..until of an operator, both included."""

    since: int
    until: int | None
    convert: Convert

    def takes(self, version: int) -> bool:
        return self.since <= version and (self.until is None or version <= self.until)


REGISTRY: dict[tuple[str, str], list[Entry]] = {}


def converts(format: str, *ops: str, since: int = 1, until: int | None = None) -> Callable[[Convert], Convert]:
    """Registers the conversion of operators of a format. Two conversions of one operator and version are an error."""

    def register(function: Convert) -> Convert:
        for op in ops:
            entries = REGISTRY.setdefault((format, op), [])
            for entry in entries:
                if entry.takes(since) or (until is None or entry.since <= until) and entry.since >= since:
                    raise ValueError(f"{format} {op} {since}..{until} is registered twice")
            entries.append(Entry(since, until, function))
        return function

    return register


def find(format: str, op: str, version: int, where: str) -> Convert:
    """The conversion. Raises UnsupportedError naming operator, version and what there is."""
    entries = REGISTRY.get((format, op), [])
    for entry in entries:
        if entry.takes(version):
            return entry.convert
    if entries:
        ranges = ", ".join(f"{e.since} to {e.until or 'newest'}" for e in entries)
        raise UnsupportedError(f"{where}: version {version} of {op} is not supported ({ranges} is)")
    known = operators(format)
    raise UnsupportedError(f"{where}: operator {op} (version {version}) is not supported; {nearest(op, known)}")


def operators(format: str) -> list[str]:
    """The operators of a format that have a conversion."""
    return sorted(op for held, op in REGISTRY if held == format)
