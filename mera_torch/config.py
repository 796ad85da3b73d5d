"""build_config: the options of a deployment, each with its range, default and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError, UnsupportedError, nearest


@dataclass(frozen=True)
class Option:
    """One key: its default, what values it takes, what it means."""

    default: Any
    kind: type
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


OPTIONS: dict[str, Option] = {
    "compiler_workers": Option(1, int, "threads of the compiler; the result does not depend on it", 1, 256),
    "sim_freq_mhz": Option(0.0, float, "clock of the simulated platform in MHz; 0: the platform's own", 0, 10000),
    "max_tile_height": Option(0, int, "rows of one DMA tile at most; 0: no limit", 0, 65535),
    "max_tile_width": Option(0, int, "columns of one array tile at most; 0: no limit", 0, 65535),
    "max_acc_tile_height": Option(0, int, "rows of one accumulator tile at most; 0: no limit", 0, 65535),
    "max_acc_tile_width": Option(0, int, "columns of one accumulator tile at most; 0: no limit", 0, 65535),
    "batch_cutting_factor": Option(1, int, "parts into which a batch is cut; only 1 so far", 1, 65535),
    "cache": Option(True, bool, "keep programs in the compile cache and take them from it"),
    "dump_ir": Option(False, bool, "write every stage of the compiler as text into the deployment"),
}

SCHEDULER_OPTIONS: dict[str, Option] = {
    "mode": Option("Fast", str, "Fast, or Slow: searches for a better schedule", choices=("Fast", "Slow")),
    "pre_scheduling_iterations": Option(8000, int, "Slow: steps of the first search", 0, 10**9),
    "main_scheduling_iterations": Option(32000, int, "Slow: steps of the second search", 0, 10**9),
    "batch_interleave": Option(False, bool, "Slow: interleave the images of a batch"),
    "partitions": Option(1, int, "Slow: parts of the network scheduled apart", 1, 65535),
    "consider_allocation": Option(True, bool, "Slow: weigh memory while scheduling"),
    "progress_bars": Option(False, bool, "show progress at once, not after a second"),
}


@dataclass(frozen=True)
class BuildConfig:
    """A checked build_config with every default filled in: see OPTIONS and SCHEDULER_OPTIONS."""

    values: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def scheduler(self) -> Mapping[str, Any]:
        held: Mapping[str, Any] = self.values["scheduler_config"]
        return held

    def compiler_options(self) -> dict[str, int]:
        """The C compiler's options (mera_options of csrc/mera.h)."""
        names = ("max_tile_height", "max_tile_width", "max_acc_tile_height", "max_acc_tile_width")
        return {
            "mode": ("Fast", "Slow").index(self.scheduler["mode"]),
            "workers": self["compiler_workers"],
            **{name: self[name] for name in names},
        }


def build_config(given: Mapping[str, Any] | None = None) -> BuildConfig:
    """Checks a build_config and fills in the defaults; a partial scheduler_config is merged with its defaults.

    Raises ConfigError for an unknown key (naming the nearest), a value of the wrong type or out of range;
    UnsupportedError for what is foreseen but not there yet.
    """
    given = dict(_mapping("build_config", given))
    scheduler = _check(
        "scheduler_config", _mapping("scheduler_config", given.pop("scheduler_config", None)), SCHEDULER_OPTIONS
    )
    values = _check("build_config", given, OPTIONS, extra=("scheduler_config",))
    if values["batch_cutting_factor"] != 1:
        raise UnsupportedError("build_config: batch_cutting_factor must be 1 so far")
    return BuildConfig({**values, "scheduler_config": scheduler})


def _mapping(name: str, given: Any) -> Mapping[str, Any]:
    if given is None:
        return {}
    if isinstance(given, BuildConfig):
        return given.values
    if not isinstance(given, Mapping):
        raise ConfigError(f"{name} must be a dict, got {type(given).__name__}")
    return given


def _check(
    where: str, given: Mapping[str, Any], table: Mapping[str, Option], extra: tuple[str, ...] = ()
) -> dict[str, Any]:
    values = {key: option.default for key, option in table.items()}
    for key, value in given.items():
        if key not in table:
            raise ConfigError(f"{where}: unknown key {key!r}: {nearest(str(key), [*table, *extra])}")
        values[key] = _value(f"{where}: {key}", value, table[key])
    return values


def _value(where: str, value: Any, option: Option) -> Any:
    fits = isinstance(value, (int, float) if option.kind is float else option.kind)
    if not fits or (isinstance(value, bool) and option.kind is not bool):
        raise ConfigError(f"{where} must be {option.kind.__name__}, got {value!r}")
    if option.choices and value not in option.choices:
        raise ConfigError(
            f"{where} must be one of {', '.join(option.choices)}: {nearest(str(value), option.choices)}; got {value!r}"
        )
    if option.low is not None and option.high is not None and not option.low <= value <= option.high:
        raise ConfigError(f"{where} must be {option.low} to {option.high}, got {value!r}")
    return option.kind(value)


def describe() -> str:
    """All keys, as a Markdown table."""
    rows = ["| key | default | range | meaning |", "|---|---|---|---|"]
    for prefix, table in (("", OPTIONS), ("scheduler_config.", SCHEDULER_OPTIONS)):
        for key, option in table.items():
            span = ", ".join(option.choices) or ("" if option.low is None else f"{option.low} to {option.high}")
            rows.append(f"| `{prefix}{key}` | {option.default!r} | {span} | {option.meaning} |")
    return "\n".join(rows)
