"""The IP target: finding boards, running programs on one or several of them, and boards that are processes.

`python -m mera_torch.device` is an emulated board; it needs numpy and cffi alone. See docs/device.md.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import native
from .emulated import Emulated, main, start_emulated
from .errors import (
    ConfigError,
    DeviceAbsentError,
    DeviceBusyError,
    DeviceFaultError,
    InvalidModelError,
    MeraError,
)
from .native.device import PATHS
from .platform import Platform

__all__ = [
    "Emulated",
    "Engine",
    "Found",
    "addresses",
    "close_device",
    "discover",
    "engine",
    "open_device",
    "same_machine",
    "start_emulated",
]

log = logging.getLogger("mera_torch.device")

DeviceIds = Sequence["int | str"]


# ---- finding ----


@dataclass(frozen=True)
class Found:
    """A board. state: "free", "busy" (holder: its process, if known) or "unidentified" (error says why)."""

    address: str
    transport: str
    state: str
    holder: int | None
    platform: Platform | None
    memory_bytes: int
    vendor: int
    device: int
    error: str | None

    def __str__(self) -> str:
        what = self.platform.name if self.platform else self.error
        holder = f" by process {self.holder}" if self.holder else ""
        return f"{self.address}: {what}, {self.state}{holder}"


def discover(**options: Any) -> list[Found]:
    """All boards: those on PCI Express, then emulated ones. options: see native.Device."""
    found = []
    for row in native.device_list(**options):
        described = row.pop("platform")
        found.append(Found(platform=Platform(**described) if described else None, **row))
    return found


def same_machine(one: Platform, other: Platform) -> bool:
    """Whether programs for one run on the other: all but the name counts, as a device's registers can tell it."""

    def figures(p: Platform) -> tuple[object, ...]:
        rates = round(p.clock_mhz * 1e6), round(p.dram_gbps * 1e9)
        return (p.units, p.array, p.sram_bytes, p.sram_banks, bool(p.bf16), p.dram_latency_cycles, *rates)

    return figures(one) == figures(other)


# ---- devices of this process: opened once, shared by all that run on them ----

_Key = tuple[tuple[str, ...], str]


def _where(options: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells boards of one address apart: the folders in which they were looked for."""
    return (os.environ.get("XDG_RUNTIME_DIR", ""), *(str(options.get(name) or "") for name in PATHS))


class _Opened:
    """The devices that this process has open, by where they were looked for and address."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.devices: dict[_Key, native.Device] = {}
        self.started: dict[_Key, Emulated] = {}
        self.process = os.getpid()

    def forget_after_fork(self) -> None:
        """A child process has none of its parent's devices, and must not give them up either."""
        if self.process != os.getpid():
            self.__init__()  # type: ignore[misc]

    def get(self, address: str, **options: Any) -> native.Device:
        key = (_where(options), address)
        with self.lock:
            if key not in self.devices:
                self.devices[key] = native.Device(address, **options)
            return self.devices[key]

    def holds(self, device: native.Device) -> bool:
        with self.lock:
            return device in self.devices.values()

    def drop(self, address: str, device: native.Device | None = None) -> None:
        """Gives up what is open at the address; only that device, if one is given."""
        with self.lock:
            keys = {key for key in (*self.devices, *self.started) if key[1] == address}
            keys = {key for key in keys if device is None or self.devices.get(key) is device}
            devices = [self.devices.pop(key) for key in keys if key in self.devices]
            boards = [self.started.pop(key) for key in keys if key in self.started]
        for opened in devices:
            opened.close()
        for board in boards:
            board.stop()

    def close(self) -> None:
        if self.process == os.getpid():
            for _, address in [*self.devices, *self.started]:
                self.drop(address)


_opened = _Opened()
atexit.register(_opened.close)
os.register_at_fork(after_in_child=_opened.forget_after_fork)


def open_device(address: str, **options: Any) -> native.Device:
    """The device at an address, shared by all of this process. Raises DeviceAbsentError, DeviceBusyError, ..."""
    return _opened.get(address, **options)


def close_device(address: str) -> None:
    """Gives a device up, and ends it if this process started it."""
    _opened.drop(address)


def _free_device(platform: Platform, **options: Any) -> native.Device:
    """A device for programs of the platform: one that is open already, one that is free, or a new emulated one."""
    with _opened.lock:
        for (where, _), device in _opened.devices.items():
            if where == _where(options) and same_machine(device.info().platform, platform):
                return device
        boards = discover(**options)
        real = [b for b in boards if b.transport == "pcie"]
        for board in boards:
            if board.state == "free" and board.platform is not None and same_machine(board.platform, platform):
                try:
                    return _opened.get(board.address, **options)
                except (DeviceAbsentError, DeviceBusyError):  # another process was faster
                    continue
        if real:
            raise _no_real_device(real, platform)
        started = start_emulated(platform, **{k: v for k, v in options.items() if k == "runtime_folder"})
        _opened.started[_where(options), started.address] = started
        log.warning(
            "no free device for %s was found: %s, an emulated one, was started (process %d); its time is no device's",
            platform.name, started.address, started.process.pid,
        )  # fmt: skip
        return _opened.get(started.address, **options)


def _no_real_device(boards: Sequence[Found], platform: Platform) -> MeraError:
    fitting = [b for b in boards if b.platform is not None and same_machine(b.platform, platform)]
    listed = "; ".join(map(str, boards))
    if fitting:
        return DeviceBusyError(f"no device for {platform.name} is free: {listed}")
    if any(b.platform for b in boards):
        return InvalidModelError(
            f"the program was compiled for platform {platform.name}, no device is one: {listed}; compile for the "
            "device's platform, or name an emulated device"
        )
    return DeviceFaultError(f"no device can be used: {listed}")


def addresses(device_ids: DeviceIds, **options: Any) -> list[str]:
    """The addresses meant: addresses themselves, or indices into discover(). Raises DeviceAbsentError."""
    boards: list[Found] | None = None
    found = []
    for given in device_ids:
        if isinstance(given, str):
            found.append(given)
            continue
        boards = discover(**options) if boards is None else boards
        if isinstance(given, bool) or not isinstance(given, int):
            raise ConfigError(f"device_ids holds addresses and indices, got {given!r}")
        if not 0 <= given < len(boards):
            raise DeviceAbsentError(f"there is no device {given}: {len(boards)} were found")
        found.append(boards[given].address)
    if not found:
        raise ConfigError("device_ids is empty: name at least one device, or give None")
    if len(set(found)) < len(found):
        raise ConfigError(f"device_ids names a device twice: {', '.join(found)}")
    return found


# ---- running ----


class Engine:
    """A program on one or several devices. run() is as Simulator's, for any number of threads."""

    def __init__(self, program: native.Program, device_ids: DeviceIds | None = None, **options: Any) -> None:
        self.program = program
        self._platform, self._options = program.platform, options
        self._lock = threading.Lock()
        self._turn = itertools.count()
        self._named = device_ids is not None
        if device_ids is None:
            self._places = [_Place(self, None)]
        else:
            self._places = [_Place(self, address) for address in addresses(device_ids, **options)]

    @property
    def devices(self) -> list[str]:
        """The addresses of its devices."""
        return [place.engine().device.address for place in self._places]

    def _next(self) -> _Place:
        """The place with the fewest runs under way; in turn among equals."""
        with self._lock:
            first = next(self._turn) % len(self._places)
            order = self._places[first:] + self._places[:first]
            place = min(order, key=lambda p: p.running)
            place.running += 1
            return place

    def _done(self, place: _Place) -> None:
        with self._lock:
            place.running -= 1

    def run(self, inputs: Sequence[native.Array], timeout_ms: int = 0) -> list[native.Int8Array]:
        """int8 arrays of program.input_bytes bytes each -> flat int8 arrays of program.output_bytes.

        Raises DeviceFaultError if the device hangs, dies or fails a checksum: the next run resets it and loads the
        program again, on a new emulated device if this process had started the old one.
        """
        place = self._next()
        try:
            return place.engine().run(inputs, timeout_ms)
        except DeviceFaultError:
            place.check()
            raise
        finally:
            self._done(place)

    def start(self, inputs: Sequence[native.Array]) -> native.Request:
        """Starts a run on one of the devices; Request.wait() gives its outputs."""
        place = self._next()
        try:
            return place.engine().start(inputs)
        finally:
            self._done(place)

    def stats(self) -> dict[str, int]:
        """What a run costs, from the counters of the first device, as Simulator.stats()."""
        return self._places[0].engine().stats()

    def counters(self) -> dict[str, dict[str, int]]:
        """Of each device by address: what it has done since its last reset, for whatever program."""
        return {e.device.address: e.device.counters() for e in (place.engine() for place in self._places)}


class _Place:
    """A device of an Engine, and the program on it; opened when first used. address: None for any."""

    def __init__(self, owner: Engine, address: str | None) -> None:
        self.running = 0
        self._owner, self._address = owner, address
        self._lock = threading.Lock()
        self._engine: native.DeviceEngine | None = None
        self.engine()  # so that what is wrong with it is known at once

    def engine(self) -> native.DeviceEngine:
        with self._lock:
            if self._engine is None or not _opened.holds(self._engine.device):
                owner = self._owner
                if self._address is None:
                    device = _free_device(owner._platform, **owner._options)
                else:
                    device = open_device(self._address, **owner._options)
                self._engine = device.engine(owner.program)
            return self._engine

    def check(self) -> None:
        """After a fault: a device that is gone is given up, so that the next run looks for it, or another, anew."""
        with self._lock:
            engine = self._engine
        if engine is not None and not engine.device.alive():
            _opened.drop(engine.device.address, engine.device)


def engine(program: native.Program, device_ids: DeviceIds | None = None, **options: Any) -> Engine:
    """The program on devices. device_ids: addresses or indices into discover(), to spread runs over; None for one that
    is free, or, where no board is found, an emulated one, which is started and said so.

    Raises DeviceAbsentError, DeviceBusyError, DeviceFaultError, OutOfMemoryError (device memory), InvalidModelError
    (the program was compiled for another platform).
    """
    return Engine(program, device_ids, **options)


if __name__ == "__main__":
    sys.exit(main())
