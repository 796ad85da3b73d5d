"""An estimate of energy and power, from the Simulator's counters. Needs numpy alone.

    metrics = power_metrics(regions, platform)
    print(metrics.report)

Nothing here was measured on a chip: EdgeCortix publishes no energy of single operations. Each counter (operations,
words of SRAM, bytes of DRAM, cycles) is multiplied by a published energy of such an event; `CONSTANTS` names value and
source of each. Figures like these are for comparing compilations and platforms; in absolute terms a factor of two is to
be expected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import ConfigError

if TYPE_CHECKING:
    from .backend.region import DnaRegion
    from .platform import Platform

ESTIMATE = "estimate: counters of the simulation times published energies; nothing was measured"
RAILS = ("core", "sram", "dram")
DEFAULT_WINDOWS = 100


@dataclass(frozen=True)
class Constant:
    """value in `unit`, and where it is from."""

    value: float
    unit: str
    source: str


Floats = npt.NDArray[np.float64]
TPU = "Jouppi et al., Ten Lessons From Three Generations Shaped Google's TPUv4i, ISCA 2021, table 2"
OURS = "assumption of this project"

CONSTANTS: dict[str, Constant] = {
    "int8_multiply_45nm": Constant(0.2, "pJ", TPU),
    "int8_multiply_7nm": Constant(0.07, "pJ", TPU),
    "int32_add_45nm": Constant(0.1, "pJ", TPU),
    "int32_add_7nm": Constant(0.03, "pJ", TPU),
    "sram_32KiB_64bit_45nm": Constant(20.0, "pJ", TPU),
    "sram_32KiB_64bit_7nm": Constant(8.5, "pJ", TPU),
    "sram_1MiB_64bit_45nm": Constant(100.0, "pJ", TPU),
    "sram_1MiB_64bit_7nm": Constant(14.0, "pJ", TPU),
    "dram_byte": Constant(64.0, "pJ", "LPDDR4 with its interface, 8 pJ a bit, as in the Accelergy/Timeloop models"),
    "fpga_dynamic": Constant(
        7.0, "x", "Kuon and Rose, Measuring the Gap Between FPGAs and ASICs, IEEE TCAD 26(2), 2007: 14 times the "
        "dynamic power in logic alone, about half of that where hard multipliers and memories do the work",
    ),
    "asic_process": Constant(12.0, "nm", f"published of SAKURA-I; of the other chips an {OURS}"),
    "fpga_process": Constant(16.0, "nm", "Alveo U50 (UltraScale+, 16 nm); IA-420 (10 nm) is put down as that, too"),
    "idle_mac": Constant(25.0, "uW", f"clock and leakage of one multiply-accumulate with its registers; {OURS}"),
    "idle_sram_MiB": Constant(20.0, "mW", f"leakage; {OURS}"),
    "idle_dram_GBps": Constant(8.0, "mW", f"refresh, clock and interface for each GB/s of bandwidth; {OURS}"),
    "fpga_idle": Constant(3.0, "x", f"clock and leakage of an FPGA against those of an ASIC; {OURS}"),
}  # fmt: skip
"""What the model stands on. Between the two processes a value is interpolated by value = a * nm ** b."""


def _of(name: str) -> float:
    return CONSTANTS[name].value


def _scaled(name: str, process: float) -> float:
    """A constant that is published for 45 and for 7 nm, in another process."""
    old, new = _of(f"{name}_45nm"), _of(f"{name}_7nm")
    exponent = math.log(old / new) / math.log(45.0 / 7.0)
    return float(new * (process / 7.0) ** exponent)


@dataclass(frozen=True)
class EnergyModel:
    """Energies of a platform's events, in picojoules, and what it draws without any, in watts a rail.

    mac: one INT8 multiplication and one INT32 addition; sram_word: one access of W bytes of a bank; dram_byte.
    """

    platform: str
    technology: str
    mac: float
    sram_word: float
    dram_byte: float
    idle: Mapping[str, float]


def is_fpga(platform: Platform) -> bool:
    """EdgeCortix's identifiers name the medium: DNAF for FPGAs, DNAA for ASICs; all else counts as an ASIC."""
    return platform.name.startswith("DNAF")


def energy_model(platform: Platform) -> EnergyModel:
    """The model of a platform. Platforms of a user's own are taken for ASICs unless their name begins with DNAF."""
    fpga = is_fpga(platform)
    process = _of("fpga_process" if fpga else "asic_process")
    dynamic, idle = (_of("fpga_dynamic"), _of("fpga_idle")) if fpga else (1.0, 1.0)
    bank = platform.sram_bytes / platform.sram_banks
    small, large = (_scaled(f"sram_{size}_64bit", process) for size in ("32KiB", "1MiB"))
    weight = min(1.0, max(0.0, math.log2(bank / 2**15) / 5.0))
    return EnergyModel(
        platform.name, f"{'FPGA' if fpga else 'ASIC'}, {process:g} nm",
        mac=dynamic * (_scaled("int8_multiply", process) + _scaled("int32_add", process)),
        sram_word=dynamic * small ** (1 - weight) * large**weight * platform.array / 8,
        dram_byte=_of("dram_byte"),
        idle={
            "core": idle * _of("idle_mac") * 1e-6 * platform.macs_per_cycle,
            "sram": idle * _of("idle_sram_MiB") * 1e-3 * platform.sram_bytes / 2**20,
            "dram": _of("idle_dram_GBps") * 1e-3 * platform.dram_gbps,
        },
    )  # fmt: skip


def dynamic_energy(stats: Mapping[str, int], model: EnergyModel) -> dict[str, float]:
    """Joules a rail of the events counted; stats: of Simulator.stats(), or a part of them."""
    words = stats.get("sram_words_read", 0) + stats.get("sram_words_written", 0)
    bytes_ = stats.get("dram_bytes_read", 0) + stats.get("dram_bytes_written", 0)
    return {
        "core": stats.get("macs", 0) * model.mac * 1e-12,
        "sram": words * model.sram_word * 1e-12,
        "dram": bytes_ * model.dram_byte * 1e-12,
    }


@dataclass(frozen=True)
class PowerMetrics:
    """What one inference draws, estimated.

    watts: one row a time window, one column a rail of RAILS; seconds: the windows' lengths; dynamic: joules a rail of
    events; idle: joules a rail of clock and leakage.
    """

    platform: str
    technology: str
    watts: Floats
    seconds: Floats
    dynamic: Mapping[str, float]
    idle: Mapping[str, float]
    model: EnergyModel = field(repr=False)

    @property
    def duration(self) -> float:
        """Seconds that the platform works."""
        return float(self.seconds.sum())

    @property
    def energy_mj(self) -> float:
        """Millijoules of one inference, all rails."""
        return 1e3 * (sum(self.dynamic.values()) + sum(self.idle.values()))

    @cached_property
    def report_raw(self) -> dict[str, dict[str, float]]:
        """{rail: {"avg", "min", "max", "median"}} in watts.

        "total" is a rail beside those of RAILS. avg is weighted by the windows' lengths, as is the median.
        """
        columns = {rail: self.watts[:, i] for i, rail in enumerate(RAILS)} | {"total": self.watts.sum(1)}
        return {rail: _summary(column, self.seconds) for rail, column in columns.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON's types: {"estimate": True, "rails": report_raw, "energy_mj", ...}."""
        return {
            "estimate": True,
            "note": ESTIMATE,
            "platform": self.platform,
            "technology": self.technology,
            "unit": "W",
            "rails": self.report_raw,
            "duration_ms": 1e3 * self.duration,
            "windows": len(self.seconds),
            "energy_mj": self.energy_mj,
            "energy_by_rail_mj": {rail: 1e3 * (self.dynamic[rail] + self.idle[rail]) for rail in RAILS},
            "dynamic_mj": 1e3 * sum(self.dynamic.values()),
            "idle_mj": 1e3 * sum(self.idle.values()),
        }

    @property
    def report(self) -> str:
        """The same as text."""
        raw = self.to_dict()
        lines = [
            f"power of one inference on {self.platform} ({self.technology}), {ESTIMATE}",
            f"{'rail':8}" + "".join(f"{name + ' W':>11}" for name in ("avg", "min", "max", "median")),
        ]
        lines += [
            f"{rail:8}" + "".join(f"{watts:11.3f}" for watts in row.values()) for rail, row in raw["rails"].items()
        ]
        lines.append(
            f"energy: {raw['energy_mj']:.4f} mJ in {raw['duration_ms']:.4f} ms "
            f"({raw['dynamic_mj']:.4f} mJ of events, {raw['idle_mj']:.4f} mJ of clock and leakage)"
        )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.report


def _summary(watts: Floats, seconds: Floats) -> dict[str, float]:
    order = np.argsort(watts)
    half = np.searchsorted(np.cumsum(seconds[order]), seconds.sum() / 2)
    return {
        "avg": float((watts * seconds).sum() / seconds.sum()),
        "min": float(watts.min()),
        "max": float(watts.max()),
        "median": float(watts[order[min(int(half), len(order) - 1)]]),
    }


def power_metrics(regions: Sequence[DnaRegion], platform: Platform, windows: int = DEFAULT_WINDOWS) -> PowerMetrics:
    """Energy and power of one inference: the regions one after the other, without the host's steps between them.

    windows: into how many the time is cut (fewer if the program is shorter than that many cycles). Each instruction's
    share of its layer's events is spread evenly over the cycles from its start to its end. Raises ConfigError if
    windows is below 1.
    """
    if windows < 1:
        raise ConfigError(f"windows must be at least 1, got {windows}")
    model = energy_model(platform)
    stats = [region.simulator.stats() for region in regions]
    total = sum(s["cycles"] for s in stats)
    edges = np.linspace(0, max(total, 1), min(windows, max(total, 1)) + 1)
    joules = np.zeros((len(edges) - 1, len(RAILS)))
    dynamic = dict.fromkeys(RAILS, 0.0)
    begin = 0
    for region, counted in zip(regions, stats, strict=True):
        for i, (rail, energy) in enumerate(dynamic_energy(counted, model).items()):
            joules[:, i] += _spread(region, rail, energy, begin, edges)
            dynamic[rail] += energy
        begin += counted["cycles"]
    seconds = np.diff(edges) / (platform.clock_mhz * 1e6)
    idle = np.array([model.idle[rail] for rail in RAILS])
    watts = joules / seconds[:, None] + idle
    return PowerMetrics(
        platform.name, model.technology, watts, seconds, dynamic,
        {rail: model.idle[rail] * float(seconds.sum()) for rail in RAILS}, model,
    )  # fmt: skip


def _spread(region: DnaRegion, rail: str, energy: float, begin: int, edges: Floats) -> Floats:
    """The energy of a rail in each window, placed where the instructions that cause it work."""
    events = region.simulator.events()
    weights = _weights(region, events, rail)
    if len(events) == 0 or weights.sum() == 0:
        length = region.simulator.stats()["cycles"]
        starts, ends, weights = np.array([0.0]), np.array([float(max(length, 1))]), np.array([1.0])
    else:
        starts, ends = events["start_cycle"].astype(float), events["end_cycle"].astype(float)
    rate = energy * weights / weights.sum() / np.maximum(ends - starts, 1.0)
    return np.diff(_integral(rate, starts + begin, ends + begin, edges))


def _integral(rate: Floats, starts: Floats, ends: Floats, edges: Floats) -> Floats:
    """The energy up to each edge: an instruction adds rate * (edge - start) until it ends."""

    def ramp(points: Floats) -> Floats:
        """The sum of rate * (edge - point) over the points before each edge."""
        order = np.argsort(points, kind="stable")
        before = np.searchsorted(points[order], edges, side="left")
        rates = np.concatenate(([0.0], np.cumsum(rate[order])))
        moments = np.concatenate(([0.0], np.cumsum((rate * points)[order])))
        found: Floats = rates[before] * edges - moments[before]
        return found

    return ramp(starts) - ramp(np.maximum(ends, starts + 1.0))


def _weights(region: DnaRegion, events: npt.NDArray[Any], rail: str) -> Floats:
    """How much of a rail's energy each instruction is taken to cause, relatively."""
    queues = region.program.queue_names
    unit = np.array([name.rstrip("0123456789") for name in queues])[events["queue"]]
    cycles: Floats = (events["end_cycle"] - events["start_cycle"]).astype(np.float64)
    if rail == "sram":
        return cycles
    if rail == "dram":
        return np.where(np.isin(unit, ("const", "load", "store")), cycles, 0.0)
    layers = region.simulator.layers()
    multiplies = np.where(np.isin(unit, ("array", "window")), cycles, 0.0)
    nodes = events["node"]
    known = nodes >= 0
    busy = np.bincount(nodes[known], multiplies[known], minlength=len(layers))
    macs = np.array([row["macs"] for row in layers], float)
    share = np.divide(macs, busy, out=np.zeros(len(layers)), where=busy > 0)
    return np.where(known, multiplies * share[np.maximum(nodes, 0)] if len(layers) else 0.0, 0.0)
