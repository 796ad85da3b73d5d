"""Emulated devices, and which devices there are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from .app import JsonOption, PlatformOption, app, emit

if TYPE_CHECKING:
    from ..device import Found


@app.command()
def device(
    platform: PlatformOption = "SAKURA_1",
    count: Annotated[int, typer.Option(help="How many devices.", min=1)] = 1,
    memory_mib: Annotated[int, typer.Option(help="Device memory of each; 0 for 8192.", min=0)] = 0,
    list_: Annotated[bool, typer.Option("--list", help="List the devices there are, and end.")] = False,
    fault: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="A fault to try error handling with; see docs/device.md.")
    ] = None,
    runtime_folder: Annotated[Path | None, typer.Option(help="The folder of emulated devices.")] = None,
    pcie_root: Annotated[
        Path | None, typer.Option(help="Pretend to be on PCI Express, with sysfs and /dev in this folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Be one or more emulated devices, until Ctrl-C; or list all devices."""
    from ..device import discover
    from ..emulated import faults, make_boards, serve

    if list_:
        found = discover(runtime_folder=runtime_folder)
        emit(as_json, [asdict(board) for board in found], _table(found))
        return
    options: dict[str, Any] = {"memory_bytes": memory_mib << 20, **faults(fault or [])}
    boards = make_boards(platform, count, {**options, "runtime_folder": runtime_folder, "pcie_root": pcie_root})
    try:
        addresses = [board.address for board in boards]
        emit(
            as_json, {"platform": platform, "devices": addresses},
            f"ready: {', '.join(addresses)} ({platform}); Ctrl-C ends",
        )  # fmt: skip
        serve(boards)
    finally:
        for board in boards:
            board.close()


def _table(found: list[Found]) -> Table | str:
    if not found:
        return "no device was found; `mera device` starts an emulated one"
    table = Table(box=SIMPLE_HEAD)
    for header in ("device", "platform", "state", "process", "memory"):
        table.add_column(header, justify="right" if header == "memory" else "left", overflow="fold")
    for board in found:
        what = board.platform.name if board.platform else str(board.error)
        holder = str(board.holder or "")
        table.add_row(board.address, what, board.state, holder, f"{board.memory_bytes / 2**20:g} MiB")
    return table
