"""Measures the compiler and its runtimes, and writes what it found as JSON and as a table.

    python benchmarks/run.py [SECTION ...] [--networks resnet50,...] [--platforms SAKURA_1,...] [--output FOLDER]

cycles      simulated cycles against the lower bound, for every network and platform; deterministic
pairs       two networks in one program against one after the other: cycles, gain, the bound of both together
compile     seconds and peak memory from the quantized FX graph to the program on disk, each in a fresh process
inference   seconds of one inference on this CPU: our rungs, and PyTorch, ONNX Runtime, LiteRT where installed (median)
accuracy    the digit network on 2,000 held-out digits, the zoo's networks on its 20 labelled photos (needs the zoo)

A section that is not asked for keeps what the JSON already has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import report
from networks import NETWORKS

HERE = Path(__file__).resolve().parent
U2X32 = HERE / "platforms" / "u2x32.toml"
SECTIONS: dict[str, Callable[[list[str], list[str]], list[dict[str, Any]]]] = {
    "cycles": measure.cycles,
    "pairs": measure.pairs,
    "compile": measure.compilation,
    "inference": measure.inference,
    "accuracy": measure.accuracy,
}
MAIN_NETWORKS = ("resnet50", "mobilenet_v2")  # of the sections that take long
PAIR_PLATFORMS = ["SAKURA_1", "DNAF200L0003", str(U2X32)]


def main() -> int:
    import mera_torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--networks", help="names, comma separated; default: all (cycles), two (elsewhere)")
    parser.add_argument("--platforms", help="identifiers or TOML files, comma separated; default: all and u2x32.toml")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of results.json and .md")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    networks = options.networks.split(",") if options.networks else []
    unknown |= set(networks) - set(NETWORKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    platforms = options.platforms.split(",") if options.platforms else []
    platforms = platforms or [*(platform.name for platform in mera_torch.platform.platforms()), str(U2X32)]

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for section in options.sections or SECTIONS:
        chosen = networks or (list(NETWORKS) if section in ("cycles", "pairs") else list(MAIN_NETWORKS))
        few = section == "pairs" and not options.platforms
        rows = SECTIONS[section](chosen, PAIR_PLATFORMS if few else platforms)
        results[section] = {"machine": measure.machine(), "rows": rows}
        path.write_text(json.dumps(results, indent=1) + "\n")
        (options.output / "results.md").write_text(report.markdown(results))
    print((options.output / "results.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
