"""Figures of the report as text, and the steps of its colour scale."""

from __future__ import annotations

import math

from .metrics import Metrics, Noise

THRESHOLDS_DB = (50, 45, 40, 35, 30, 25, 20)
"""Signal-to-noise ratios between the steps of the colour scale, from little error to much."""
_SPACE = "\N{NO-BREAK SPACE}"


def relative(error: Noise | Metrics | None) -> float | None:
    """RMS of the error over RMS of the value: 0 where nothing differs, infinite where the values are all zeros."""
    if error is None:
        return None
    if error.mse == 0.0:
        return 0.0
    return 10 ** (-error.sqnr / 20) if math.isfinite(error.sqnr) else math.inf


def step_of(error: float | None) -> int | None:
    """The step of the colour scale, 0 to len(THRESHOLDS_DB), of a relative error; None of none, or of 0."""
    if not error:
        return None
    return sum(20 * math.log10(error) >= -threshold for threshold in THRESHOLDS_DB)


def step_names() -> list[str]:
    """The least relative error of each step."""
    bounds = [round_percent(10 ** (-threshold / 20)) for threshold in THRESHOLDS_DB]
    return [f"<{_SPACE}{bounds[0]}", *bounds[:-1], f"≥{_SPACE}{bounds[-1]}"]


def percent(part: float | None) -> str:
    """A part of 1 as per cent, to two digits; "" for None."""
    if part is None:
        return ""
    if not math.isfinite(part):
        return "∞"
    if part == 0:
        return f"0{_SPACE}%"
    if part < 1e-5:
        return f"<{_SPACE}0.001{_SPACE}%"
    digits = max(0, 1 - math.floor(math.log10(100 * part)))
    return f"{100 * part:,.{digits}f}{_SPACE}%"


def round_percent(part: float) -> str:
    """A round part of 1 as per cent, without zeros at its end: of an axis or a scale."""
    value = 100 * part
    return (f"{value:.2g}" if value < 100 else f"{value:,.0f}") + f"{_SPACE}%"


def plain(value: float | None, digits: int = 4) -> str:
    """A number in so many significant digits; "" for None."""
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("-", "−")


def decibels(error: Noise | Metrics | None, value: float | None = None) -> str:
    """A ratio to the tenth of a dB (the signal-to-noise ratio unless `value` is given); "exact" where nothing
    differs."""
    if error is None:
        return ""
    if error.mse == 0.0:
        return "exact"
    ratio = error.sqnr if value is None else value
    return f"{ratio:.1f}".replace("-", "−") if math.isfinite(ratio) else "−∞"
