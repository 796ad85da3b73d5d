"""The exceptions of mera_torch. Every one says what went wrong, where, and which constraint was broken."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MeraError(Exception):
    """The base of every exception that mera_torch raises on purpose."""


class InvalidModelError(MeraError, ValueError):
    """A malformed graph, or an argument out of its documented range."""


class ShapeNeededError(InvalidModelError):
    """A model's file does not say the shape of an input: `problem` says which, `command_line` what --input may be."""

    def __init__(self, problem: str, argument: str, command_line: str) -> None:
        super().__init__(f"{problem}; pass {argument}")
        self.problem, self.command_line = problem, command_line


class UnsupportedError(MeraError):
    """Well-formed, but the target has no way to run it; the message names the constraint."""


class DoesNotFitError(MeraError):
    """No tiling fits the platform's SRAM; the message says what would."""


class CorruptFileError(MeraError, ValueError):
    """A file that is truncated, altered, of another version, or hostile."""


class ConfigError(MeraError, ValueError):
    """An unknown or ill-valued platform, option or configuration key."""


class CalibrationError(MeraError, ValueError):
    """Data for calibration, or for measuring quality, that is empty, unlike the model's inputs in shape or dtype, or
    leads to NaN or infinity."""


class StateError(MeraError, RuntimeError):
    """A call out of order: run before set_input, get_output before run, a target that was not built."""


class LockedError(MeraError):
    """A project or cache that another process holds; the message names the holder."""


class StorageError(MeraError):
    """A file or folder that cannot be read or written: a full or read-only disk, missing permission."""


class DeviceError(MeraError):
    """A device (IP target); the subclasses say what is wrong with it."""


class DeviceAbsentError(DeviceError):
    """There is no such device."""


class DeviceBusyError(DeviceError):
    """The device is in use by another process; the message names the holder where it is known."""


class DeviceFaultError(DeviceError):
    """The device hung, died, identified itself with nonsense, or what it loaded does not match its checksum."""


class InternalError(MeraError, RuntimeError):
    """One of our own checkers caught a mistake of ours: a bug in mera_torch."""


class OutOfMemoryError(MeraError, MemoryError):
    """The C core could not allocate memory."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    folded = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return f"did you mean {folded[close[0]]!r}?" if close else f"known are {', '.join(names)}"
