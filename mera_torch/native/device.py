"""The driver of DNA boards, and the emulated board. Any number of threads may use one Device."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mera_torch import errors
from mera_torch._core import ffi, lib
from mera_torch.native.context import Context, text_of
from mera_torch.native.graph import Array
from mera_torch.native.program import Program
from mera_torch.native.run import Int8Array, int8_arrays
from mera_torch.native.tables import platform_from_c, platform_to_c, thread_context
from mera_torch.platform import Platform

PATHS = ("runtime_folder", "sysfs", "dev", "hugepages", "pagemap", "pcie_root")


@dataclass(frozen=True)
class DeviceInfo:
    """What a device says of itself, and what of it is free. version: major * 65536 + minor of its register map."""

    address: str
    platform: Platform
    memory_bytes: int
    memory_free: int
    dma_bytes: int
    vendor_id: int
    device_id: int
    version: int
    slots: int
    ring: int
    interrupts: bool


def _filled(kind: str, options: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """An options struct, and what must live as long as it is used."""
    row, alive = ffi.new(f"{kind} *"), []
    known = [name for name, _ in ffi.typeof(kind).fields]
    for name, value in options.items():
        if name not in known:
            raise errors.ConfigError(f"unknown option {name!r} of a device; {errors.nearest(name, known)}")
        if value is None:
            continue
        if name in PATHS:
            alive.append(ffi.new("char[]", os.fsencode(value)))
            value = alive[-1]
        elif name == "platform":
            alive.append(platform_to_c(value))
            value = alive[-1][0]
        try:
            setattr(row, name, value)
        except (TypeError, OverflowError) as error:
            raise errors.ConfigError(f"option {name} of a device: {error}") from None
    return row, alive


def device_list(**options: Any) -> list[dict[str, Any]]:
    """All boards: address, transport, state, holder, vendor, device, memory_bytes, platform, error; see driver.h."""
    row, _alive = _filled("device_options", options)
    context = thread_context()
    found: list[dict[str, Any]] = json.loads(context.text(lib.device_list, context.pointer, row))
    return found


class Device:
    """One board, open for this process alone. address: "emulated:0", "pcie:0000:01:00.0"; None for the first free one.

    options: the fields of device_options in driver.h. Raises DeviceAbsentError, DeviceBusyError, DeviceFaultError.
    """

    def __init__(self, address: str | None = None, **options: Any) -> None:
        row, _alive = _filled("device_options", options)
        out = ffi.new("dna_device **")
        name = ffi.NULL if address is None else address.encode()
        context = thread_context()
        context.call(lib.device_open, context.pointer, name, row, out)
        self._state = _Open(out[0])
        self._finalizer = weakref.finalize(self, self._state.close)
        self.address = self.info().address

    def _call(self, function: Callable[..., int], *args: Any) -> None:
        context = thread_context()
        with self._state.use() as pointer:
            context.call(function, context.pointer, pointer, *args)

    def info(self) -> DeviceInfo:
        """What the device says of itself, and what of its memory is free."""
        row = ffi.new("device_info *")
        with self._state.use() as pointer:
            lib.device_get_info(pointer, row)
        return DeviceInfo(
            text_of(row.address), platform_from_c(row.platform), row.memory_bytes, row.memory_free, row.dma_bytes,
            row.vendor_id, row.device_id, row.version, row.slots, row.ring, bool(row.interrupts),
        )  # fmt: skip

    def load(self, program: Program) -> int:
        """Copies a program to the device, which checks it; its slot."""
        slot = ffi.new("int32_t *")
        self._call(lib.device_load, program.handle, slot)
        return int(slot[0])

    def unload(self, slot: int) -> None:
        """Gives a slot and its device memory back."""
        self._call(lib.device_unload, slot)

    def verify(self, slot: int) -> None:
        """Lets the device check program and constants again. Raises DeviceFaultError; the next run loads them anew."""
        self._call(lib.device_verify, slot)

    def submit(self, slot: int, inputs: Sequence[Array], output_bytes: Sequence[int]) -> Request:
        """Starts a run with int8 arrays; Request.wait() gives its outputs. Requests are done in order."""
        arrays = int8_arrays(inputs)
        outputs = [np.empty(size, np.int8) for size in output_bytes]
        request = ffi.new("uint64_t *")
        self._call(
            lib.device_submit,
            slot,
            len(arrays),
            ffi.new("void *[]", [ffi.from_buffer(array) for array in arrays]),
            ffi.new("int64_t[]", [array.nbytes for array in arrays]),
            len(outputs),
            ffi.new("void *[]", [ffi.from_buffer(array, require_writable=True) for array in outputs]),
            ffi.new("int64_t[]", list(output_bytes)),
            request,
        )
        return Request(self, int(request[0]), arrays, outputs)

    def stats(self, slot: int) -> dict[str, int]:
        """What the last run of a slot cost, as Simulator.stats(). Raises StateError before the first."""
        row = ffi.new("mera_stats *")
        self._call(lib.device_stats, slot, row)
        return {name: int(getattr(row, name)) for name, _ in ffi.typeof("mera_stats").fields}

    def counters(self) -> dict[str, int]:
        """All counters since the last reset; see docs/device.md."""
        row = ffi.new("device_counters *")
        self._call(lib.device_read_counters, row)
        return {name: int(getattr(row, name)) for name, _ in ffi.typeof("device_counters").fields}

    def reset(self) -> None:
        """Stops what is in flight, and loads all programs again."""
        self._call(lib.device_reset)

    def alive(self) -> bool:
        """False if it is gone for good: its process ended, or it left the bus."""
        with self._state.use() as pointer:
            return bool(lib.device_alive(pointer))

    def engine(self, program: Program) -> DeviceEngine:
        """The program, loaded: its run() and stats() are as Simulator's."""
        return DeviceEngine(self, program)

    def close(self) -> None:
        """Gives the device up. Waits for calls of other threads; requests in flight are dropped."""
        self._finalizer()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Open:
    """The dna_device pointer, and how many calls use it."""

    def __init__(self, pointer: Any) -> None:
        self._pointer, self._users, self._changed = pointer, 0, threading.Condition()

    @contextmanager
    def use(self) -> Iterator[Any]:
        with self._changed:
            if self._pointer is None:
                raise errors.StateError("the device was closed")
            self._users += 1
        try:
            yield self._pointer
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            pointer, self._pointer = self._pointer, None
            self._changed.wait_for(lambda: self._users == 0)
        if pointer is not None:
            lib.device_close(pointer)

    def unload(self, slot: int) -> None:
        """For finalizers: no error matters any more."""
        try:
            with self.use() as pointer:
                lib.device_unload(thread_context().pointer, pointer, slot)
        except errors.StateError:
            pass


@dataclass
class Request:
    """A run in flight. It keeps its arrays alive, and is waited for once."""

    device: Device
    number: int
    inputs: list[Array]
    outputs: list[Int8Array]

    def wait(self, timeout_ms: int = 0) -> list[Int8Array]:
        """The outputs, flat. timeout_ms: the watchdog's limit for this request; 0 for the device's."""
        self.device._call(lib.device_wait, self.number, timeout_ms)
        return self.outputs

    def done(self) -> bool:
        """Whether wait() would return at once."""
        done = ffi.new("int32_t *")
        self.device._call(lib.device_poll, self.number, done)
        return bool(done[0])


class DeviceEngine:
    """A program on a device."""

    def __init__(self, device: Device, program: Program) -> None:
        self.device, self.program = device, program
        self._output_bytes = program.output_bytes
        self.slot = device.load(program)
        self._finalizer = weakref.finalize(self, device._state.unload, self.slot)
        self._finalizer.atexit = False

    def start(self, inputs: Sequence[Array]) -> Request:
        """Starts a run; several may be in flight."""
        return self.device.submit(self.slot, inputs, self._output_bytes)

    def run(self, inputs: Sequence[Array], timeout_ms: int = 0) -> list[Int8Array]:
        """int8 arrays of program.input_bytes bytes each -> flat int8 arrays of program.output_bytes."""
        return self.start(inputs).wait(timeout_ms)

    def stats(self) -> dict[str, int]:
        """What a run costs, from the device's counters, as Simulator.stats(). Runs once, on zeros, if it never ran."""
        try:
            return self.device.stats(self.slot)
        except errors.StateError:
            self.run([np.zeros(size, np.int8) for size in self.program.input_bytes])
            return self.device.stats(self.slot)

    def unload(self) -> None:
        """Gives its slot and device memory back."""
        self._finalizer()


def _destroy_board(pointer: Any, context: Context) -> None:
    """Destroys a board while its context, which the finalizer keeps alive, is still there."""
    with context.lock:
        lib.board_destroy(pointer)


class Board:
    """An emulated board: whoever calls serve() again and again is the board. Of one thread.

    options: the fields of board_options in board.h, its faults among them.
    """

    def __init__(self, platform: Platform, **options: Any) -> None:
        row, _alive = _filled("board_options", {"platform": platform, **options})
        self.context = Context()
        out = ffi.new("dna_board **")
        self.context.call(lib.board_create, self.context.pointer, row, out)
        self._pointer = out[0]
        self._finalizer = weakref.finalize(self, _destroy_board, out[0], self.context)
        self.address = text_of(lib.board_address(out[0]))

    def serve(self, milliseconds: int) -> None:
        """Does what the driver asks for, for about so long. Raises DeviceFaultError if it is told to die."""
        self.context.call(lib.board_serve, self._pointer, milliseconds)

    def close(self) -> None:
        """Takes the board away."""
        self._finalizer()
