"""How long the host's operators of a model take, measured in PyTorch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from .backend.host import HostGraph
from .backend.region import DnaRegion
from .backend.runtime import last_uses, on, run_steps
from .profile import HostStep


def host_times(
    graph: HostGraph, regions: Sequence[DnaRegion], inputs: Sequence[Any], repeat: int = 3
) -> list[HostStep]:
    """The median of `repeat` runs on the inputs, operator by operator; the regions run on InterpreterHw, unmeasured."""
    measured: dict[str, list[float]] = {}
    dead = last_uses(graph, regions)
    with torch.no_grad():
        for _ in range(repeat):
            seconds: dict[str, float] = {}
            run_steps(graph, regions, on("InterpreterHw"), inputs, dead, seconds=seconds)
            for name, value in seconds.items():
                measured.setdefault(name, []).append(value)
    operators = {step.name: str(step.target) for step in graph.steps if step.region < 0}
    return [HostStep(name, operators[name], 1e3 * statistics.median(found)) for name, found in measured.items()]
