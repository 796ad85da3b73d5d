"""The measurements themselves; each gives rows for report.table."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS, PAIRS
from torch import Tensor
from torch.fx import GraphModule

import mera_torch
from mera_torch import native
from mera_torch.backend.capture import capture
from mera_torch.backend.region import DnaRegion
from mera_torch.compile import build, settings_of
from mera_torch.lower_bound import lower_bound_cycles

REPEATS = 7
PAIRS_EVERYWHERE = 2
MIB = 1 << 20
PARTS = ("mera_torch", "torch", "torchao", "numpy", "onnxruntime", "ai-edge-litert")
Rows = list[dict[str, Any]]


def machine() -> dict[str, Any]:
    """What a time depends on: CPU, cores, versions, date."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    found: dict[str, Any] = {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    for part in PARTS:
        try:
            found[part] = metadata.version(part)
        except metadata.PackageNotFoundError:
            found[part] = "not installed"
    found["date"] = datetime.date.today().isoformat()
    return found


def cycles(networks: list[str], platforms: list[str]) -> Rows:
    """Cycles, lower bound and traffic of every network on every platform."""
    rows: Rows = []
    for name in networks:
        with _missing_is_told(name):
            region = _region_of(name)
            for target in platforms:
                machine = mera_torch.platform.find(target)
                found, bound = _stats(region, target), lower_bound_cycles(region.lower_bound, machine)
                rows.append(
                    {
                        "network": name,
                        "platform": Path(target).stem,
                        "cycles": found["cycles"],
                        "lower_bound": bound,
                        "ratio": found["cycles"] / bound,
                        "latency_ms": found["cycles"] / (machine.clock_mhz * 1e3),
                        "utilization": found["macs"] / (found["cycles"] * machine.macs_per_cycle),
                        "dram_MiB": (found["dram_bytes_read"] + found["dram_bytes_written"]) / MIB,
                        "sram_peak_MiB": found["sram_peak_bytes"] / MIB,
                    }
                )
                _tell(rows[-1])
    return rows


def pairs(networks: list[str], platforms: list[str]) -> Rows:
    """Pairs of the networks as one program, each with its own input, against one after the other: all on the first
    platform, a few on the others."""
    rows: Rows = []
    for index, names in enumerate(PAIRS):
        if not set(names) <= set(networks):
            continue
        with _missing_is_told("+".join(names)):
            found = [_quantized(name) for name in names]
            together = mera_torch.fuse_models([quantized for quantized, _ in found])
            fused = _region(together, tuple(example for _, example in found))
            alone = [_region_of(name) for name in names]
            for target in platforms if index < PAIRS_EVERYWHERE else platforms[:1]:
                singles = [_stats(region, target)["cycles"] for region in alone]
                start = time.perf_counter()
                cycles = _stats(fused, target)["cycles"]
                seconds = time.perf_counter() - start
                bound = lower_bound_cycles(fused.lower_bound, mera_torch.platform.find(target))
                rows.append(
                    {
                        "networks": " + ".join(names),
                        "platform": Path(target).stem,
                        "first": singles[0],
                        "second": singles[1],
                        "sum": sum(singles),
                        "fused": cycles,
                        "gain": 1 - cycles / sum(singles),
                        "fused_bound": bound,
                        "ratio": cycles / bound,
                        "seconds": seconds,
                    }
                )
                _tell(rows[-1])
    return rows


@functools.cache
def _region_of(name: str) -> DnaRegion:
    quantized, example = _quantized(name)
    return _region(quantized, (example,))


def _region(model: Any, inputs: tuple[Tensor, ...]) -> DnaRegion:
    """The one region of a model; its graph is the same for every platform."""
    (region,) = build(capture(model, inputs), settings_of("SAKURA_1", "Simulator", None)).regions
    return region


def _stats(region: DnaRegion, target: str) -> dict[str, int]:
    program = region.graph.compile(mera_torch.platform.find(target), dict(region.options))
    return native.Simulator(program).stats()


def compilation(networks: list[str], platforms: list[str]) -> Rows:
    """Seconds and memory of mera_torch.export for the first platform, in a fresh process each."""
    rows: Rows = []
    for name in networks:
        with _missing_is_told(name), tempfile.TemporaryDirectory() as folder:
            quantized, example = _quantized(name)
            model = Path(folder) / "model.pt2"
            torch.export.save(torch.export.export(quantized, (example,)), model)
            command = [sys.executable, __file__, str(model), platforms[0], str(Path(folder) / "deployment")]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(child.stdout.splitlines()[-1])
            rows.append({"network": name, "platform": Path(platforms[0]).stem, **found})
            _tell(rows[-1])
    return rows


def compile_and_print(model: str, target: str, folder: str) -> None:
    """The child of compilation(): compiles one .pt2 file, prints what it took as one line of JSON."""
    from mera_torch.backend.capture import load_exported

    program = load_exported(model)
    before = _status_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    start, cpu = time.perf_counter(), time.process_time()
    mera_torch.export(program, None, folder, platform=target, target="Simulator")
    found = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps({**found, "memory_MiB": (_status_kib("VmHWM") - before) / 1024}))


def inference(networks: list[str], platforms: list[str]) -> Rows:
    """Median seconds of one inference: our rungs for the first platform, and peers."""
    import peers

    rows: Rows = []
    for name in networks:
        with _missing_is_told(name), tempfile.TemporaryDirectory() as folder:
            model = NETWORKS[name].prepared()
            quantized, example = _quantized(name)
            for target in ("InterpreterHw", "Simulator"):
                runner = _runner(quantized, example, Path(folder) / target, platforms[0], target)
                rows.append({"network": name, "runtime": target, "seconds": median_seconds(runner, example)})
                _tell(rows[-1])
            for runtime, prepare in peers.PEERS.items():
                try:
                    run = prepare(name, model, example, Path(folder))
                except ImportError as error:
                    print(f"  {runtime}: left out, {error}", flush=True)
                    continue
                rows.append({"network": name, "runtime": runtime, "seconds": median_seconds(run, example)})
                _tell(rows[-1])
    return rows


def median_seconds(run: Callable[[Tensor], object], example: Tensor) -> float:
    """The median of REPEATS runs, after one to warm up."""
    times = []
    with torch.no_grad():
        run(example)
        for _ in range(REPEATS):
            start = time.perf_counter()
            run(example)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def accuracy(networks: list[str], platforms: list[str]) -> Rows:
    """Float against INT8 on the interpreter: 2,000 held-out digits, and the zoo's photos. Ignores networks."""
    from mera_torch import demo
    from mera_torch.zoo_models import zoo_digits

    _, digits = zoo_digits()
    tasks = {name: demo.task(name) for name in demo.MODELS}
    tasks["digits"] = dataclasses.replace(tasks["digits"], inputs=digits.images.split(1), labels=digits.labels.tolist())
    rows: Rows = []
    for name, task in tasks.items():
        model, inputs, labels = task.model, task.inputs, task.labels
        quantized = mera_torch.quantize(model, (inputs[0],), list(task.calibration), config=task.config)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            runner = _runner(quantized, inputs[0], Path(folder), platforms[0], "InterpreterHw")
            floats = [int(model(image).argmax()) for image in inputs]
            int8 = [int(runner(image).argmax()) for image in inputs]
        rows.append(
            {
                "network": name,
                "images": len(labels),
                "float": sum(map(int.__eq__, floats, labels)) / len(labels),
                "int8": sum(map(int.__eq__, int8, labels)) / len(labels),
                "same_answer": sum(map(int.__eq__, int8, floats)),
            }
        )
        _tell(rows[-1])
    return rows


def _runner(quantized: GraphModule, example: Tensor, folder: Path, platform: str, target: str) -> Any:
    return mera_torch.export(quantized, (example,), folder, platform=platform, target=target).get_runner()


@functools.cache
def _quantized(name: str) -> tuple[GraphModule, Tensor]:
    network = NETWORKS[name]
    example = network.inputs()
    return mera_torch.quantize(network.prepared(), (example,), network.calibration()), example


@contextmanager
def _missing_is_told(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        print(f"{name}: left out, {error}", flush=True)


def _tell(row: dict[str, Any]) -> None:
    print("  ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()), flush=True)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _status_kib(field: str) -> int:
    """A line of /proc/self/status, in KiB."""
    return next(int(line.split()[1]) for line in _lines("/proc/self/status") if line.startswith(f"{field}:"))


if __name__ == "__main__":
    compile_and_print(*sys.argv[1:])
