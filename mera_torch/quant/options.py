"""One option of a table of options: its default, which values it accepts, what it means.

The checks, the messages, the documentation's tables and the command line's help are all made of these.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mera_torch.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Accepts:
    """The values that an option takes: `text` completes "must be ...", `holds` tells whether a value is one.

    `choices` names them where they can be counted.
    """

    text: str
    holds: Callable[[Any], bool]
    choices: tuple[Any, ...] = ()


def option(default: Any, accepts: Accepts, meaning: str) -> Any:
    """A dataclass field that carries its `accepts` and `meaning` as metadata."""
    return dataclasses.field(default=default, metadata={"accepts": accepts, "meaning": meaning})


def one_of(*choices: str) -> Accepts:
    shown = ", ".join(f'"{choice}"' for choice in choices)
    return Accepts(f"one of {shown}", lambda value: isinstance(value, str) and value in choices, choices)


def flag() -> Accepts:
    return Accepts("True or False", lambda value: isinstance(value, bool), (True, False))


def integer(low: int, high: int) -> Accepts:
    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Accepts(f"an integer from {low} to {high}", holds)


def number(low: float, high: float, *, above: bool = False) -> Accepts:
    """From `low` to `high`; `above`: not `low` itself."""

    def holds(value: Any) -> bool:
        return is_number(value) and (low < value if above else low <= value) and value <= high

    return Accepts(f"a number above {low:g} and at most {high:g}" if above else f"a number {low:g} to {high:g}", holds)


def strings() -> Accepts:
    return Accepts(
        "a tuple of strings",
        lambda value: isinstance(value, (tuple, list)) and all(isinstance(item, str) for item in value),
    )


def is_number(value: Any) -> bool:
    """A finite int or float; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check(where: str, field: dataclasses.Field[Any], value: Any) -> None:
    """Raises ConfigError, naming the option and what it accepts, if `value` is not among that."""
    accepts: Accepts = field.metadata["accepts"]
    if accepts.holds(value):
        return
    hint = ""
    if isinstance(value, str) and accepts.choices and all(isinstance(choice, str) for choice in accepts.choices):
        hint = f"; {nearest(value, accepts.choices)}"
    raise ConfigError(f"{where}: {field.name} must be {accepts.text}, got {value!r}{hint}")


def check_keys(where: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises ConfigError for a key that is not known, naming the nearest that is."""
    names = list(known)
    for key in given:
        if key not in names:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(str(key), names)}")


def documented(fields: Iterable[dataclasses.Field[Any]]) -> list[tuple[str, str, str, str]]:
    """(name, default, values, meaning) of each option, as the documentation shows them."""
    return [
        (field.name, _shown(field.default), field.metadata["accepts"].text, field.metadata["meaning"])
        for field in fields
    ]


def _shown(default: Any) -> str:
    return f'"{default}"' if isinstance(default, str) else repr(default)
