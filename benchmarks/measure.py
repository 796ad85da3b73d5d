"""The measurements themselves; each gives rows for report.table."""

from __future__ import annotations

import dataclasses
import datetime
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
from networks import NETWORKS
from torch import Tensor
from torch.fx import GraphModule

import mera_torch

REPEATS = 7
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
            quantized, example = _quantized(name)
            for target in platforms:
                with tempfile.TemporaryDirectory() as folder:
                    found = _runner(quantized, example, Path(folder), target, "Simulator").metrics()
                rows.append(
                    {
                        "network": name,
                        "platform": Path(target).stem,
                        "cycles": found["cycles"],
                        "lower_bound": round(found["lower_bound_cycles"]),
                        "ratio": found["cycles"] / found["lower_bound_cycles"],
                        "latency_ms": found["latency_ms"],
                        "utilization": found["utilization"],
                        "dram_MiB": (found["dram_bytes_read"] + found["dram_bytes_written"]) / MIB,
                        "sram_peak_MiB": found["sram_peak_bytes"] / MIB,
                    }
                )
                _tell(rows[-1])
    return rows


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
