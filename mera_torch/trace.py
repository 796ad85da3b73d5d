"""A run's timeline in Chrome's trace-event JSON, which ui.perfetto.dev and chrome://tracing open."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from . import native
from .atomic import atomic_file
from .backend.region import DnaRegion
from .platform import Platform


def write_trace(path: str | os.PathLike[str], regions: Sequence[DnaRegion], platform: Platform) -> None:
    """One process a region, one thread a queue of the machine, one slice an instruction, and one, of category "stall",
    for each time in which a queue's unit had none, with the reason; times in microseconds of the platform's clock. The
    layers have a thread of their own. Raises StorageError if the file cannot be written."""
    document = {"displayTimeUnit": "ns", "traceEvents": list(_events(regions, platform))}
    with atomic_file(path) as written:
        written.write_text(json.dumps(document), encoding="utf-8")


def _events(regions: Sequence[DnaRegion], platform: Platform) -> Iterator[dict[str, Any]]:
    begin = 0.0
    for pid, region in enumerate(regions):
        scale = 1.0 / platform.clock_mhz  # microseconds a cycle
        yield _meta("process_name", pid, 0, f"{region.name} on {platform.name}")
        yield _meta("thread_name", pid, 0, "layers")
        queues = region.program.queue_names
        for tid, name in enumerate(queues, start=1):
            yield _meta("thread_name", pid, tid, name)
        for row in region.layers():
            args = {key: row[key] for key in ("op", "aten", "module", "source", "macs", "utilization")}
            yield _slice(row["node"], pid, 0, begin + row["start_cycle"] * scale, row["cycles"] * scale, args)
        nodes, opcodes = region.program.nodes, native.instruction_names()
        end = 0
        for event in region.simulator.events():
            node = nodes[event["node"]][0] if 0 <= event["node"] < len(nodes) else ""
            start, cycles = int(event["start_cycle"]), int(event["end_cycle"] - event["start_cycle"])
            args = {"node": node, "instruction": int(event["instruction"]), "stall_cycles": int(event["stall_cycles"])}
            name = opcodes[int(event["opcode"])]
            yield _slice(name, pid, int(event["queue"]) + 1, begin + start * scale, cycles * scale, args)
            end = max(end, start + cycles)
        kinds = list(native.cycle_kinds())
        for stall in region.simulator.stalls():
            kind, start, stop = kinds[int(stall["kind"])], int(stall["start_cycle"]), int(stall["end_cycle"])
            if kind == "idle":
                continue
            node = nodes[stall["node"]][0] if 0 <= stall["node"] < len(nodes) else ""
            args = {"next": node, "instruction": int(stall["instruction"]), "cycles": stop - start}
            where = pid, int(stall["queue"]) + 1
            yield {
                **_slice(f"stall: {kind}", *where, begin + start * scale, (stop - start) * scale, args),
                "cat": "stall",
            }
        begin += end * scale


def _meta(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _slice(name: str, pid: int, tid: int, start: float, duration: float, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "X", "name": name, "pid": pid, "tid": tid, "ts": start, "dur": duration, "args": args}
