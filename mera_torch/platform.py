"""Platforms: the machines one can compile for. The table stands in csrc/dna_arch.def; users add
their own as TOML files.

SRAM sizes, banks, DRAM bandwidth and latency of the table are this project's assumptions; units, array and clock are
EdgeCortix's published ones.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mera_torch.errors import ConfigError, MeraError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class _UnknownName(ConfigError, AttributeError, KeyError):
    """Platform.NAME or Platform["NAME"] for a name that there is not."""

    __str__ = Exception.__str__  # KeyError would show the repr


class _Table(type):
    """The table's platforms and aliases as attributes of the class, by key, and in turn."""

    def __getattr__(cls, name: str) -> Platform:
        if not name[:1].isupper():
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        try:
            return find(name)
        except ConfigError as error:
            raise _UnknownName(str(error)) from None

    def __getitem__(cls, name: str) -> Platform:
        return cls.__getattr__(name)

    def __call__(cls, *args: Any, **values: Any) -> Any:
        """Platform("SAKURA_1"), as of an enum, or a Platform of its fields."""
        return find(args[0]) if len(args) == 1 and not values else super().__call__(*args, **values)

    def __iter__(cls) -> Iterator[Platform]:
        return iter(platforms())


@dataclass(frozen=True)
class Platform(metaclass=_Table):
    """One machine: `units` compute units, each with an `array` x `array` multiply-accumulate array.

    Platform.SAKURA_1, Platform["DNAF200L0003"], ...: those of the table, by name or alias; iterating over the class
    gives them all.
    Units: clock_mhz in 1e6 cycles a second, dram_gbps in 1e9 bytes a second, dram_latency_cycles in cycles of that
    clock.
    sram_banks and dram_latency_cycles may be left out: 32 banks a unit, to the next power of two, at most 256; 100 ns.
    """

    name: str
    units: int
    array: int
    clock_mhz: float
    sram_bytes: int
    dram_gbps: float
    bf16: bool = False
    sram_banks: int = -1
    dram_latency_cycles: int = -1

    def __post_init__(self) -> None:
        if self.sram_banks == -1 and self.units > 0:
            object.__setattr__(self, "sram_banks", min(256, 1 << (32 * self.units - 1).bit_length()))
        if self.dram_latency_cycles == -1 and 0 < self.clock_mhz < 1e6:
            object.__setattr__(self, "dram_latency_cycles", round(self.clock_mhz * 0.1))

    def __str__(self) -> str:
        return self.name

    @property
    def value(self) -> str:
        """The name, as MERA's enum has it."""
        return self.name

    @property
    def macs_per_cycle(self) -> int:
        """INT8 multiply-accumulates of all units in one cycle."""
        return self.units * self.array * self.array

    @property
    def dram_bytes_per_cycle(self) -> float:
        """Bytes that DRAM moves in one cycle of the platform's clock."""
        return self.dram_gbps * 1e3 / self.clock_mhz


def platforms() -> list[Platform]:
    """The platforms of the table."""
    from mera_torch import native

    return native.platforms()


def aliases() -> dict[str, str]:
    """Other accepted identifiers -> the platform's name."""
    from mera_torch import native

    return native.platform_aliases()


def find(platform: str | os.PathLike[str] | Platform) -> Platform:
    """The platform meant: a Platform (checked), a name or alias of the table, or the path of a TOML file.

    Raises ConfigError if there is none, naming the nearest.
    """
    if isinstance(platform, Platform):
        return check(platform)
    if not isinstance(platform, str | os.PathLike):
        raise ConfigError(f"a platform is a Platform, a name or a path, got {platform!r:.80}")
    text = os.fspath(platform)
    table = {row.name: row for row in platforms()}
    other = aliases()
    name = other.get(text, text)
    if name in table:
        return table[name]
    if isinstance(platform, os.PathLike) or text.endswith(".toml") or os.sep in text:
        return load(text)
    raise ConfigError(f"unknown platform {text!r}: {nearest(text, [*table, *other])} (or give the path of a TOML file)")


def check(platform: Platform) -> Platform:
    """The platform itself, if every value is within its range; else ConfigError naming the value and its range."""
    from mera_torch import native

    try:
        native.check_platform(platform)
    except MeraError as error:
        raise ConfigError(str(error)) from None
    return platform


def load(path: str | os.PathLike[str]) -> Platform:
    """Reads a platform from a TOML file whose keys are the fields of Platform.

    name, units, array, clock_mhz, sram_bytes and dram_gbps are required. Raises ConfigError: no such file, not TOML,
    a missing, unknown or ill-typed key, a value out of range.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"platform file {os.fspath(path)!r} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"platform file {os.fspath(path)!r} is not TOML: {error}") from None
    try:
        return check(_from_values(values))
    except ConfigError as error:
        raise ConfigError(f"platform file {os.fspath(path)!r}: {error}") from None


def to_toml(platform: Platform) -> str:
    """The platform as the text of a TOML file that `load` reads back."""

    def value(item: object) -> str:
        if isinstance(item, str):
            return '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return str(item).lower()

    return "".join(f"{key} = {value(item)}\n" for key, item in asdict(platform).items())


_KINDS: dict[str, Any] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}


def _from_values(values: dict[str, Any]) -> Platform:
    known = {field.name: field for field in fields(Platform)}
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key {key!r}: {nearest(key, known)}")
    checked: dict[str, Any] = {}
    for name, field in known.items():
        kind = str(field.type)
        if name in values:
            checked[name] = _checked(name, kind, values[name])
        elif field.default is MISSING:
            raise ConfigError(f"key {name!r} is missing")
    return Platform(**checked)


def _checked(name: str, kind: str, value: Any) -> Any:
    if not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise ConfigError(f"{name} must be {'a number' if kind == 'float' else kind}, got {value!r}")
    if kind == "int" and not 0 <= value < 2**31:
        raise ConfigError(f"{name} must be 0 to 2^31-1, got {value}")
    return float(value) if kind == "float" else value
