"""The compile cache."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..cache import SWITCH_VARIABLE, Cache, default
from ..errors import ConfigError
from .app import JsonOption, app, console

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@app.command()
def cache(
    every: Annotated[bool, typer.Option("--list", help="One row a program.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Remove every program.")] = False,
    limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Keep this much at most from now on, such as 500M or 2G.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The compile cache: where it is, what it holds, how much it may hold."""
    found = default()
    if found is None:
        raise ConfigError(f"the compile cache is switched off by {SWITCH_VARIABLE}")
    if limit is not None:
        found.limit_bytes = size(limit)
    removed = found.clear() if clear else 0
    entries = found.entries()
    total = sum(entry.bytes for entry in entries)
    if as_json:
        about = {"folder": str(found.folder), "limit_bytes": found.limit_bytes, "bytes": total, "removed": removed}
        typer.echo(json.dumps({**about, "entries": [vars(entry) for entry in entries]}, indent=2))
        return
    if every and entries:
        console.print(_table(found))
    if clear:
        console.print(f"removed {counted(removed)}")
    console.print(
        f"{found.folder}: {counted(len(entries))}, {text(total)} of at most {text(found.limit_bytes)}",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def size(given: str) -> int:
    """The bytes of "500M", "2GiB", "1.5g" or "1000". Raises ConfigError."""
    number = given.strip().upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in UNITS else ""
    try:
        found = float(number.removesuffix(unit)) * UNITS[unit]
        if not 0 <= found < 2**63:
            raise ValueError
    except ValueError:
        raise ConfigError(f"a size is a number with K, M, G or T behind it, such as 500M; got {given!r}") from None
    return int(found)


def counted(programs: int) -> str:
    return f"{programs} program{'s'[: programs != 1]}"


def text(count: int) -> str:
    """Bytes for people."""
    scaled = float(count)
    for unit in ("B", "KiB", "MiB"):
        if scaled < 1024:
            return f"{scaled:.4g} {unit}"
        scaled /= 1024
    return f"{scaled:.4g} GiB"


def _table(found: Cache) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for header in ("key", "graph", "platform", "size", "compiled in", "last used"):
        table.add_column(header, justify="right" if header in ("size", "compiled in") else "left")
    for entry in found.entries():
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(
            entry.key[:12], entry.graph, entry.platform, text(entry.bytes), f"{entry.seconds:.2f} s", used
        )  # fmt: skip
    return table
