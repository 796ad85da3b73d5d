"""Boards that are processes: starting them, and being one. Needs numpy and cffi alone; see docs/device.md."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import native
from .errors import ConfigError, DeviceFaultError, MeraError, nearest
from .platform import Platform, find

FAULTS = (
    "garbage", "hang_at_run", "die_at_run", "flip_code_at_load", "flip_constants_at_load", "flip_memory_after_run",
    "lose_interrupt", "slow_ms",
)  # fmt: skip
READY = "ready: "
START_SECONDS = 60.0
SERVE_MS = 200  # between looks at whether to stop


@dataclass
class Emulated:
    """A process that is a board. It ends with the process that started it."""

    address: str
    platform: Platform
    process: subprocess.Popen[str]

    def stop(self) -> None:
        """Ends it."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Emulated:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_emulated(platform: str | os.PathLike[str] | Platform = "SAKURA_1", **options: Any) -> Emulated:
    """Starts a process that is a board, and waits until it is ready.

    options: the fields of board_options (csrc/device/board.h): memory_bytes, dma_bytes, slots, runtime_folder,
    pcie_root, and faults. Raises MeraError with what the process said if it does not become ready.
    """
    machine = find(platform)
    given = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in options.items()}
    described = json.dumps({"platform": asdict(machine), "options": given})
    # The package that runs here is the one that runs there.
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "mera_torch.device", "--describe", described, "--until-eof"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    started = Emulated("", machine, process)
    text = _first_line(process)
    if not text.startswith(READY):
        process.kill()
        started.stop()
        raise MeraError(f"an emulated device did not start: {text.strip() or 'it said nothing'}")
    started.address = text.removeprefix(READY).split()[0]
    return started


def _first_line(process: subprocess.Popen[str]) -> str:
    output = process.stdout
    if output is None or not select.select([output], [], [], START_SECONDS)[0]:
        return f"nothing was heard of it for {START_SECONDS:g} s"
    line = output.readline()
    return line if line.startswith(READY) else line + output.read()


def serve(boards: Sequence[native.Board], stdin: int | None = None) -> None:
    """Is the boards until SIGINT, SIGTERM or, if stdin is given, its end. Boards beyond the first have threads."""
    stop = threading.Event()

    def on_signal(*_: object) -> None:
        stop.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    if stdin is not None:
        threading.Thread(target=_wait_for_end, args=(stdin, stop), daemon=True).start()
    threads = [threading.Thread(target=_serve_one, args=(board, stop), daemon=True) for board in boards[1:]]
    try:
        for thread in threads:
            thread.start()
        _serve_one(boards[0], stop)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _serve_one(board: native.Board, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            board.serve(SERVE_MS)
        except DeviceFaultError:  # it was told to die: as a crash does, without cleaning up
            os.kill(os.getpid(), signal.SIGKILL)


def _wait_for_end(stdin: int, stop: threading.Event) -> None:
    while os.read(stdin, 4096):
        pass
    stop.set()
    time.sleep(30)  # a run that takes longer is not waited for
    os._exit(0)


# ---- the command, for the runtime install; `mera device` is the same with more comfort ----


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mera_torch.device", description="An emulated DNA board.")
    parser.add_argument("--list", action="store_true", help="list the boards there are, as JSON, and end")
    parser.add_argument("--platform", default="SAKURA_1", help="a name, or a TOML file")
    parser.add_argument("--count", type=int, default=1, help="how many boards")
    parser.add_argument("--memory-mib", type=int, default=0, help="device memory of each")
    parser.add_argument("--runtime-folder", help="where the boards can be found")
    parser.add_argument("--pcie-root", help="pretend to be on PCI Express, in this folder")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    parser.add_argument("--describe", help=argparse.SUPPRESS)
    parser.add_argument("--fault", action="append", default=[], metavar="NAME=N", help=f"one of {', '.join(FAULTS)}")
    return parser


def faults(given: Sequence[str]) -> dict[str, int]:
    """The options for texts such as hang_at_run=3. Raises ConfigError."""
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in FAULTS:
            raise ConfigError(f"unknown fault {name!r}: {nearest(name, FAULTS)}")
        if not value.isdecimal():
            raise ConfigError(f"a fault is NAME=N, such as hang_at_run=3; got {text!r}")
        found[name] = int(value)
    return found


def make_boards(
    platform: str | os.PathLike[str] | Platform, count: int, options: Mapping[str, Any]
) -> list[native.Board]:
    """Boards in this process, for serve()."""
    if count < 1:
        raise ConfigError(f"the number of devices must be 1 or more, got {count}")
    machine = find(platform)
    return [native.Board(machine, **options) for _ in range(count)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    given = _parser().parse_args(arguments)
    boards: list[native.Board] = []
    try:
        if given.list:
            from .device import discover

            found = discover(runtime_folder=given.runtime_folder)
            print(json.dumps([asdict(board) for board in found], indent=1))
            return 0
        if given.describe is not None:
            described = json.loads(given.describe)
            boards = make_boards(Platform(**described["platform"]), 1, described["options"])
        else:
            options: dict[str, Any] = {"memory_bytes": given.memory_mib << 20, **faults(given.fault)}
            options |= {"runtime_folder": given.runtime_folder, "pcie_root": given.pcie_root}
            boards = make_boards(given.platform, given.count, options)
        print(READY + " ".join(board.address for board in boards), flush=True)
        serve(boards, sys.stdin.fileno() if given.until_eof else None)
    except MeraError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        for board in boards:
            board.close()
    return 0
