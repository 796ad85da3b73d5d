"""Where an inference's time goes: layer by layer, unit by unit, and why units did nothing. Needs numpy alone.

Every figure is counted by the Simulator's cycle model (docs/hardware.md, docs/profiling.md); only the host's times are
measured, on this host, and the energies are estimated (docs/power.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import native
from .backend.region import DnaRegion, metrics
from .energy import PowerMetrics, power_metrics
from .platform import Platform

BOUND = {
    "busy": "compute", "dram": "DRAM", "bank": "bank conflict", "dependency": "dependency", "fill": "weight fill",
    "drain": "drain", "issue": "issue",
}  # fmt: skip
"""What a layer is said to be bound by, for the kind of cycle that it spends most of its units' time in."""
UNITS = ("array", "window", "vector")
CHANNELS = ("const", "load", "store")
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LayerProfile:
    """A DNA node.

    cycles: from its first instruction to the end of its last. time: the run's cycles that are put down to it, by kind
    of cycle: see `attributed`. share: these as a part of the run, 0 to 1; shares sum to 1. bound_by: what most of them
    are, one of BOUND's values. accounts: cycles of the compute units by kind, summed over units.
    """

    region: str
    node: str
    op: str
    module: str
    source: str
    start_cycle: int
    cycles: int
    share: float
    macs: int
    utilization: float
    dram_bytes: int
    bound_by: str
    time: Mapping[str, float]
    accounts: Mapping[str, int]


@dataclass(frozen=True)
class Roofline:
    """macs_per_byte: of DRAM traffic; ridge: where the platform's arithmetic and its bandwidth are in balance;
    attainable, achieved: MACs a cycle."""

    macs_per_byte: float
    ridge: float
    peak: int
    attainable: float
    achieved: float

    @property
    def bound_by(self) -> str:
        return "compute" if self.macs_per_byte >= self.ridge else "DRAM"


@dataclass(frozen=True)
class HostStep:
    """An operator on the host: milliseconds of one run, measured."""

    name: str
    operator: str
    ms: float


@dataclass(frozen=True)
class Profile:
    """total: of Runner.metrics(), without its layers; units: cycles by kind of each sort of unit (summed over units)
    and of each DMA channel; count: how many units of that sort there are."""

    platform: str
    total: Mapping[str, Any]
    layers: tuple[LayerProfile, ...]
    units: Mapping[str, Mapping[str, int]]
    count: Mapping[str, int]
    roofline: Roofline
    power: PowerMetrics
    host: tuple[HostStep, ...] = ()

    @property
    def host_ms(self) -> float:
        return sum(step.ms for step in self.host)

    def to_dict(self) -> dict[str, Any]:
        """As JSON's types."""
        return {
            "platform": self.platform,
            "total": dict(self.total),
            "layers": [asdict(layer) for layer in self.layers],
            "units": {unit: {"count": self.count[unit], **kinds} for unit, kinds in self.units.items()},
            "kinds": native.cycle_kinds(),
            "roofline": {**asdict(self.roofline), "bound_by": self.roofline.bound_by},
            "power": self.power.to_dict(),
            "host": [asdict(step) for step in self.host],
            "host_ms": self.host_ms,
        }


def profile(
    regions: Sequence[DnaRegion], platform: Platform, target: str, lower_bound: int, host: Sequence[HostStep] = ()
) -> Profile:
    """Of one inference: the regions one after the other. lower_bound: cycles, see mera_torch.lower_bound."""
    total = metrics(regions, platform, target, lower_bound)
    del total["layers"]
    accounts = [region.simulator.cycles() for region in regions]
    layers = tuple(
        layer
        for region, cycles in zip(regions, accounts, strict=True)
        for layer in _layers(region, cycles, max(1, total["cycles"]))
    )
    units = {unit: _of_unit(regions, accounts, unit) for unit in (*UNITS, *CHANNELS)}
    count = {unit: platform.units if unit in UNITS else 1 for unit in units}
    return Profile(
        platform.name, total, layers, units, count, _roofline(total, platform), power_metrics(regions, platform),
        tuple(host),
    )  # fmt: skip


def _queues(region: DnaRegion, unit: str) -> npt.NDArray[np.bool_]:
    return np.array([name.rstrip("0123456789") == unit for name in region.program.queue_names])


def _of_unit(regions: Sequence[DnaRegion], accounts: Sequence[Counts], unit: str) -> dict[str, int]:
    summed = sum(cycles[_queues(region, unit)].sum((0, 1)) for region, cycles in zip(regions, accounts, strict=True))
    return {kind: int(n) for kind, n in zip(native.cycle_kinds(), np.atleast_1d(summed), strict=True)}


def _layers(region: DnaRegion, cycles: Counts, total: int) -> list[LayerProfile]:
    accounts, times = cycles[_any_unit(region)].sum(0), attributed(region, cycles)
    names = {name: index for index, (name, *_) in enumerate(region.program.nodes)}
    kinds = list(native.cycle_kinds())
    rows = []
    for row in region.layers():
        index = names[row["node"]]
        time = {kind: float(n) for kind, n in zip(kinds, times[index], strict=True) if kind in BOUND}
        longest = max(time, key=lambda kind: time[kind])
        rows.append(LayerProfile(
            region.name, row["node"], row["op"], row["module"], row["source"], row["start_cycle"], row["cycles"],
            float(times[index].sum()) / total, row["macs"], row["utilization"],
            row["dram_bytes_read"] + row["dram_bytes_written"], BOUND[longest] if time[longest] else "", time,
            {kind: int(n) for kind, n in zip(kinds, accounts[index], strict=True)},
        ))  # fmt: skip
    return rows


def attributed(region: DnaRegion, cycles: Counts) -> npt.NDArray[np.float64]:
    """The run's cycles by node and kind of cycle: they sum to the cycles of the run.

    A cycle in which compute units work belongs to the nodes they work on, in equal parts, and a node's part to the
    kinds of cycle of the units that work on it or have it next. One in which none works belongs to the node that begins
    next, and to what it waits for; where nothing is left to compute, to the node that is being stored.
    """
    program = region.program
    is_channel = ~_any_unit(region)
    events, stalls = region.simulator.events(), region.simulator.stalls()
    kinds = list(native.cycle_kinds())
    dram, idle = kinds.index("dram"), kinds.index("idle")
    events = events[events["node"] >= 0]
    stalls = stalls[(stalls["node"] >= 0) & (stalls["kind"] != idle) & ~is_channel[stalls["queue"]]]
    working = _Sweep(events[~is_channel[events["queue"]]])
    waiting, moving = _Sweep(stalls), _Sweep(events[is_channel[events["queue"]]])
    end = region.simulator.stats()["cycles"]
    edges = np.unique(np.concatenate([[0, end], *(sweep.edges for sweep in (working, waiting, moving))]))
    found = np.zeros((len(program.nodes), len(kinds)))
    inside = _inside(cycles, stalls, ~is_channel)
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        for sweep in (working, waiting, moving):
            sweep.advance(start)
        if at_work := Counter(int(working.rows[i]["node"]) for i in working.active):
            kinds_of = {node: inside[node] * units for node, units in at_work.items()}
            for i in waiting.active:
                if (node := int(waiting.rows[i]["node"])) in kinds_of:
                    kinds_of[node][waiting.rows[i]["kind"]] += 1
            for node, spent in kinds_of.items():
                found[node] += (stop - start) / len(kinds_of) * spent / spent.sum()
        elif waiting.active:
            first = waiting.rows[min(waiting.active, key=lambda i: int(waiting.rows[i]["end_cycle"]))]
            found[first["node"], first["kind"]] += stop - start
        elif nodes := {int(moving.rows[i]["node"]) for i in moving.active} or {moving.last}:
            for node in nodes:
                found[node, dram] += (stop - start) / len(nodes)
    return found


class _Sweep:
    """Which of some rows with start_cycle and end_cycle hold at a moment that only goes forward."""

    def __init__(self, rows: npt.NDArray[np.void]) -> None:
        self.rows = rows[np.argsort(rows["start_cycle"], kind="stable")]
        self.edges = np.concatenate([rows["start_cycle"], rows["end_cycle"]])
        self.active: list[int] = []
        self.last = int(self.rows["node"][0]) if len(rows) else 0
        self._starts = self.rows["start_cycle"].tolist()
        self._ends = self.rows["end_cycle"].tolist()
        self._next = 0

    def advance(self, now: int) -> None:
        self.active = [i for i in self.active if self._ends[i] > now]
        while self._next < len(self._starts) and self._starts[self._next] <= now:
            if self._ends[self._next] > now:
                self.active.append(self._next)
            self.last = int(self.rows["node"][self._next])
            self._next += 1


def _inside(cycles: Counts, stalls: npt.NDArray[np.void], units: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """What the time within each node's instructions is made of: parts of 1, by kind."""
    spent = cycles[units, :-1].sum(0).astype(np.float64)
    np.add.at(
        spent, (stalls["node"], stalls["kind"]), -(stalls["end_cycle"] - stalls["start_cycle"]).astype(np.float64)
    )
    spent = np.maximum(spent, 0)
    spent[:, list(native.cycle_kinds()).index("idle")] = 0
    nothing = spent.sum(1) == 0
    spent[nothing, list(native.cycle_kinds()).index("busy")] = 1
    found: npt.NDArray[np.float64] = spent / spent.sum(1, keepdims=True)
    return found


def _any_unit(region: DnaRegion) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.any([_queues(region, unit) for unit in UNITS], axis=0)
    return found


def _roofline(total: Mapping[str, Any], platform: Platform) -> Roofline:
    moved = total["dram_bytes_read"] + total["dram_bytes_written"]
    intensity = total["macs"] / moved if moved else 0.0
    attainable = min(float(platform.macs_per_cycle), intensity * platform.dram_bytes_per_cycle)
    return Roofline(
        intensity, platform.macs_per_cycle / platform.dram_bytes_per_cycle, platform.macs_per_cycle, attainable,
        total["macs"] / total["cycles"] if total["cycles"] else 0.0,
    )  # fmt: skip
