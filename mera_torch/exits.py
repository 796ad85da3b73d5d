"""What the exit codes of `mera` mean. Needs nothing but the exceptions."""

from __future__ import annotations

from . import errors

STORAGE = errors.StorageError
OK, DIFFERENT, USAGE, INTERNAL, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 70, 130, 141

FAMILIES: dict[type[errors.MeraError], int] = {
    errors.InvalidModelError: 3,
    errors.UnsupportedError: 4,
    errors.DoesNotFitError: 5,
    errors.CorruptFileError: 6,
    errors.ConfigError: 7,
    errors.CalibrationError: 8,
    errors.StateError: 9,
    errors.LockedError: 10,
    errors.StorageError: 11,
    errors.DeviceAbsentError: 12,
    errors.DeviceBusyError: 13,
    errors.DeviceFaultError: 14,
    errors.DeviceError: 15,
    errors.OutOfMemoryError: 16,
    errors.InternalError: INTERNAL,
    errors.MeraError: 17,
}
"""From the most special class to the most general one."""

MEANINGS: dict[int, str] = {
    OK: "done; compared things are equal",
    DIFFERENT: "a difference was found (compare, bisect, verify), or a fault that nothing mends (lint)",
    USAGE: "no such command, option or argument",
    3: "InvalidModelError: a malformed model, input or argument",
    4: "UnsupportedError: the target has no way to run it",
    5: "DoesNotFitError: no tiling fits the platform's SRAM",
    6: "CorruptFileError: a file is truncated, altered, or of another version",
    7: "ConfigError: an unknown platform, target, option or key, or a value out of range",
    8: "CalibrationError: calibration data that does not fit the model",
    9: "StateError: something is missing that an earlier step makes",
    10: "LockedError: another process holds it",
    11: "StorageError: a file cannot be read or written",
    12: "DeviceAbsentError: there is no such device",
    13: "DeviceBusyError: another process uses the device",
    14: "DeviceFaultError: the device hung, died, or failed a checksum",
    15: "DeviceError: any other trouble with a device",
    16: "OutOfMemoryError",
    17: "any other MeraError: a download, a tool that is missing",
    INTERNAL: "InternalError: a mistake of mera_torch, which --debug shows",
    INTERRUPTED: "stopped by Ctrl-C",
    BROKEN_PIPE: "what read the output went away",
}


def exit_code(error: BaseException) -> int:
    """The exit code of an exception."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    if isinstance(error, OSError):
        return FAMILIES[STORAGE]
    return next((code for family, code in FAMILIES.items() if isinstance(error, family)), INTERNAL)
