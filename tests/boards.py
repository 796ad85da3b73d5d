"""Shared by the tests of the IP target: boards in this process, programs to run on them, what they must give."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import dna
import numpy as np

from mera_torch import native
from mera_torch.errors import DeviceFaultError
from mera_torch.platform import Platform

MACHINE = dna.machine()
OTHER = dna.machine(units=2, array=32, sram_kib=128)


@contextmanager
def served(folder: Path, platform: Platform = MACHINE, **options: Any) -> Iterator[native.Board]:
    """A board that a thread of this process is."""
    board = native.Board(platform, runtime_folder=folder, **options)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                board.serve(20)
            except DeviceFaultError:  # it was told to die
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join()
        board.close()


def pcie_options(root: Path) -> dict[str, Any]:
    """What makes the driver see the boards that pretend to be on PCI Express in a folder."""
    return {
        "sysfs": root / "sys", "dev": root / "dev", "hugepages": root / "hugepages", "pagemap": root / "pagemap",
        "dma_bytes": 1 << 20,
    }  # fmt: skip


@cache
def graph(name: str = "residual") -> native.Graph:
    """A small network: "residual", or "convolution"."""
    return dna.graph(dna.RESIDUAL_NET if name == "residual" else dna.convolution(h=20, w=20, ci=24, co=40))


@cache
def program(name: str = "residual", platform: Platform = MACHINE) -> native.Program:
    return graph(name).compile(platform)


def inputs(seed: int = 0, name: str = "residual") -> list[np.ndarray]:
    return dna.inputs(graph(name), seed)


@cache
def _wanted(seed: int, name: str) -> list[np.ndarray]:
    return native.Interpreter(graph(name)).run(inputs(seed, name))


def right(outputs: list[np.ndarray], seed: int = 0, name: str = "residual") -> bool:
    """Whether these are the outputs for inputs(seed, name)."""
    wanted = _wanted(seed, name)
    return len(outputs) == len(wanted) and all(
        np.array_equal(w.reshape(-1), o) for w, o in zip(wanted, outputs, strict=True)
    )
