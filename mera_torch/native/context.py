"""Contexts, the lifetimes of what they own, and exceptions from status codes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from mera_torch import errors
from mera_torch._core import ffi, lib

EXCEPTIONS: dict[int, type[errors.MeraError]] = {
    lib.MERA_INVALID_ARGUMENT: errors.InvalidModelError,
    lib.MERA_OUT_OF_MEMORY: errors.OutOfMemoryError,
    lib.MERA_UNSUPPORTED: errors.UnsupportedError,
    lib.MERA_DOES_NOT_FIT: errors.DoesNotFitError,
    lib.MERA_CORRUPT: errors.CorruptFileError,
    lib.MERA_DEADLOCK: errors.InternalError,
    lib.MERA_INTERNAL: errors.InternalError,
    lib.MERA_STATE: errors.StateError,
    lib.MERA_STORAGE: errors.StorageError,
    lib.MERA_DEVICE_ABSENT: errors.DeviceAbsentError,
    lib.MERA_DEVICE_BUSY: errors.DeviceBusyError,
    lib.MERA_DEVICE_FAULT: errors.DeviceFaultError,
}


def text_of(pointer: Any) -> str:
    """The str of a C string; "" for NULL."""
    return ffi.string(pointer).decode("utf-8", "replace") if pointer else ""


class Handle:
    """A pointer to an object of the C core, which is destroyed with it."""

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer


class _Core:
    """A mera_context and the number of Python objects that need it; destroyed with the last of them.

    Only finalizers of those objects hold it, so that cyclic garbage is torn down in the right order.
    """

    def __init__(self, fail_after: int) -> None:
        self.pointer = lib.mera_context_create(fail_after)
        if self.pointer == ffi.NULL:
            raise errors.OutOfMemoryError("out of memory: no context")
        self.lock = threading.RLock()
        self.users = 0

    def retain(self, owner: object, destroy: Callable[[Any], None] | None = None, pointer: Any = None) -> None:
        """Lives as long as owner; when owner dies, destroy(pointer) is called."""
        with self.lock:
            self.users += 1
        weakref.finalize(owner, self._release, destroy, pointer).atexit = False

    def _release(self, destroy: Callable[[Any], None] | None, pointer: Any) -> None:
        with self.lock:
            if destroy is not None:
                destroy(pointer)
            self.users -= 1
            if self.users == 0:
                lib.mera_context_destroy(self.pointer)


class Context:
    """Owns everything that the C core allocates for the objects made with it.

    fail_after >= 0 lets that allocation and all later ones fail (for tests). kernels names a kernel set ("auto",
    "generic", "avx2", ...). threads = 0 means all.
    """

    def __init__(self, fail_after: int = -1, kernels: str = "auto", threads: int = 0) -> None:
        self._core = _Core(fail_after)
        self._core.retain(self)
        self.pointer = self._core.pointer
        self.lock = self._core.lock
        self.call(lib.mera_context_kernels, self.pointer, kernels.encode())
        self.call(lib.mera_context_threads, self.pointer, threads)

    def call(self, function: Callable[..., int], *args: Any) -> None:
        """Calls a function that returns a mera_status; raises the exception that the status stands for."""
        with self.lock:
            status = function(*args)
            if status != lib.MERA_OK:
                raise EXCEPTIONS.get(status, errors.InternalError)(text_of(lib.mera_last_error(self.pointer)))

    def make(self, kind: str, function: Callable[..., int], *args: Any) -> Handle:
        """Calls a function whose last parameter receives a new object: a mera_graph, mera_program, ..."""
        out = ffi.new(f"mera_{kind} **")
        with self.lock:
            self.call(function, *args, out)
            handle = Handle(out[0])
            self._core.retain(handle, getattr(lib, f"mera_{kind}_destroy"), out[0])
        return handle

    def text(self, function: Callable[..., int], *args: Any) -> str:
        """Calls a function whose last parameter receives text."""
        out = ffi.new("char **")
        with self.lock:
            self.call(function, *args, out)
            try:
                return text_of(out[0])
            finally:
                lib.mera_free_text(self.pointer, out[0])

    def saved(self, function: Callable[..., int], handle: Any) -> bytes:
        """Calls a function that gives bytes which belong to the object."""
        data, size = ffi.new("const uint8_t **"), ffi.new("size_t *")
        with self.lock:
            self.call(function, handle, data, size)
            return bytes(ffi.buffer(data[0], size[0]))
