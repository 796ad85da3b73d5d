"""Measures quantization against peers: accuracy and calibration time of every method on every network.

    python benchmarks/quantize.py [--networks mobilenet_v2,...] [--methods TEXT] [--calibration N] [--evaluation N]

A row is one network quantized by one method, measured in a process of its own and merged into the results as soon as it
is there: rows can be measured one by one, or --jobs of them side by side. --methods takes the method of that name, else
every method whose name contains TEXT (several: separated by ";"). With --calibration or --evaluation, or for a look
without keeping the result, name another folder by --output.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import measure
import torch
from filelock import FileLock
from quantization import rows, tables, verdicts
from quantization.methods import METHODS
from quantization.networks import NETWORKS

from mera_torch.atomic import atomic_file

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", help=f"comma separated, of {', '.join(NETWORKS)}; default: all")
    parser.add_argument(
        "--methods", help=f"parts of names, separated by ';', of {'; '.join(METHODS)}; default: those planned for it"
    )
    parser.add_argument("--missing", action="store_true", help="only the rows that the results do not have yet")
    parser.add_argument("--calibration", type=int, help="as many calibration inputs at most")
    parser.add_argument("--evaluation", type=int, help="as many evaluation inputs at most")
    parser.add_argument("--threads", type=int, default=1, help="of each tool (default 1)")
    parser.add_argument("--jobs", type=int, default=1, help="rows measured at the same time (default 1)")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of quantization.json and .md")
    options = parser.parse_args()
    networks = options.networks.split(",") if options.networks else list(NETWORKS)
    parts = options.methods.split(";") if options.methods else [""]
    methods = [name for name in METHODS if any(part == name or part in name and part not in METHODS for part in parts)]
    wanted = [(network, method) for network in networks for method in methods]
    if not options.methods:
        wanted = [pair for pair in wanted if pair in verdicts.planned()]
    unknown = set(networks) - set(NETWORKS)
    if unknown or not methods:
        parser.error(f"unknown: {', '.join(sorted(unknown)) or options.methods}")

    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "quantization.json"
    if options.missing:
        there = {(row["network"], row["method"]) for row in load(path)["rows"]}
        wanted = [pair for pair in wanted if pair not in there]
    effort = rows.Effort(options.calibration, options.evaluation)
    results = Results(path, {**measure.machine(), "threads": options.threads, "jobs": options.jobs})
    measure_all(wanted, effort, results, options.threads, options.jobs)
    return 0


@dataclass(frozen=True)
class Results:
    """The file of the results; `machine` is what a time depends on."""

    path: Path
    machine: dict[str, Any]

    def keep(self, row: rows.Row) -> None:
        """Prints a row and puts it into the file."""
        print(f"{row['network']}, {row['method']}: {line(row)}", flush=True)
        with FileLock(self.path.with_suffix(".lock")):  # others may be measuring other rows
            found = load(self.path)
            found["machine"] = self.machine
            merge(found, row)
            save(found, self.path)


def measure_all(wanted: list[tuple[str, str]], effort: rows.Effort, results: Results, threads: int, jobs: int) -> None:
    """Measures the rows, each in a process of its own, `jobs` at a time; a crash of the tool fails only its row.

    The processes are forked: this one has only imported what is needed, and started no threads.
    """
    context = multiprocessing.get_context("fork")
    running: dict[int, tuple[ForkProcess, str, str]] = {}
    for index, (network, method) in enumerate(wanted):
        while len(running) >= jobs:
            end_one(running, results)
        print(f"[{index + 1}/{len(wanted)}] {network}, {method} ...", flush=True)
        process = context.Process(target=measure_one, args=(network, method, effort, results, threads))
        process.start()
        running[process.sentinel] = process, network, method
    while running:
        end_one(running, results)


def measure_one(network: str, method: str, effort: rows.Effort, results: Results, threads: int) -> None:
    """What the process of a row does."""
    torch.set_num_threads(threads)
    results.keep(rows.measure(network, method, effort))


def end_one(running: dict[int, tuple[ForkProcess, str, str]], results: Results) -> None:
    """Waits until one of the processes, by their sentinels, has ended."""
    (sentinel, *_) = connection.wait(list(running))
    process, network, method = running.pop(sentinel)
    process.join()
    if process.exitcode:
        results.keep(
            rows.head(network, method) | {"failed": f"the tool ended its process, exit code {process.exitcode}"}
        )


def load(path: Path) -> dict[str, Any]:
    """The results so far."""
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"machine": {}, "rows": []}
    return results


def save(results: dict[str, Any], path: Path) -> None:
    """Writes the JSON file, and beside it the tables."""
    for target, text in (
        (path, json.dumps(results, indent=1) + "\n"),
        (path.with_suffix(".md"), tables.markdown(results)),
    ):
        with atomic_file(target) as scratch:
            scratch.write_text(text)


def merge(results: dict[str, Any], row: rows.Row) -> None:
    """Puts a row in the place of the one with its network and method."""
    others = [old for old in results["rows"] if (old["network"], old["method"]) != (row["network"], row["method"])]
    results["rows"] = sorted([*others, row], key=tables.order)


def line(row: rows.Row) -> str:
    """A row in a line."""
    if "failed" in row:
        return row["failed"]
    seconds = f"{row['seconds']:.1f} s ({row['user_seconds']:.1f} s user)"
    return f"{verdicts.score(row):.2f}, SQNR {row['sqnr_db']:.1f} dB, {seconds}"


if __name__ == "__main__":
    sys.exit(main())
