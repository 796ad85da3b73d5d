"""The exceptions of mera_torch. Every one says what went wrong, where, and which constraint was broken."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MeraError(Exception):
    """The base of every exception that mera_torch raises on purpose."""


class InvalidModelError(MeraError, ValueError):
    """A malformed graph, or an argument out of its documented range."""


class UnsupportedError(MeraError):
    """Well-formed, but the target has no way to run it; the message names the constraint."""


class DoesNotFitError(MeraError):
    """No tiling fits the platform's SRAM; the message says what would."""


class CorruptFileError(MeraError, ValueError):
    """A file that is truncated, altered, of another version, or hostile."""


class ConfigError(MeraError, ValueError):
    """An unknown or ill-valued platform, option or configuration key."""


class CalibrationError(MeraError, ValueError):
    """Calibration data that is empty, unlike the model's inputs in shape or dtype, or leads to NaN or infinity."""


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
