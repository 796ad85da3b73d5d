"""Measures how well a quantized network follows its float network: per output and, on request, per operator."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from mera_torch.errors import CalibrationError, ConfigError
from mera_torch.native import Progress
from mera_torch.platform import Platform, find
from mera_torch.progress import progress_bar

from ..calibration.calibrate import ProgressOption
from ..calibration.data import length_of
from ..graphs.run import Inputs
from .attribution import Graph
from .inputs import checked, float_readers, samples_of
from .result import Node, Quality
from .sums import NodeSums, OutputSums, output_sums
from .target import OnTarget

__all__ = ["CHANNELS", "QDQ", "THRESHOLD_DB", "Quality", "measure"]

QDQ = "q/dq module"
THRESHOLD_DB = 20.0
"""Below it a node counts as parted from the float network: noise of a hundredth of the signal's power."""
CHANNELS = 8
"""So many channels of a value, those of least SQNR, keep a histogram."""


def measure(
    original: torch.nn.Module,
    reference: GraphModule | None,
    module: GraphModule,
    data: Iterable[Any],
    *,
    debug_mode: bool = False,
    target: str | None = None,
    progress: ProgressOption = True,
    histograms: bool = True,
    platform: str | os.PathLike[str] | Platform = "SAKURA_1",
    threshold: float = THRESHOLD_DB,
    channels: int = CHANNELS,
) -> Quality:
    """Runs a quantized network and its float network on `data` and compares them; memory holds one batch at a time.

    Args:
        original: The user's float network, which the outputs are compared with.
        reference: The float twin of `module`, whose nodes have the same names for the same values; needed in debug
            mode. The exported float network itself will do if nothing but batch norms was transformed.
        module: The quantized network: aten and ``quantized_decomposed`` operators.
        data: An iterable of inputs, each a tensor or array, or a tuple or list of the model's inputs; it is read once.
            Data that calibration has not seen.
        debug_mode: Compare every operator, too, and tell what error it adds and what it inherits.
        target: Measure the outputs of "InterpreterHw", "Simulator" or "IP" (a device) in place of the q/dq module's; in
            debug mode also where its integers differ from the q/dq module's.
        progress: Show a progress bar on a terminal; or a function that is called with (stage, done, total).
        histograms: Count histograms of values, KL divergences and channels, too.
        platform: Of the target.
        threshold: SQNR in dB below which a node counts as parted from the float network.
        channels: How many channels of a value, those of least SQNR, keep a histogram.

    Raises:
        CalibrationError: no data; an item unlike the model's inputs in number, shape or dtype; NaN or infinity in it;
            NaN in an output of either network.
        ConfigError: an unknown target or platform, debug mode without a reference, threshold or channels out of range.
        UnsupportedError: nothing of the network runs on the target.
    """
    begin = time.perf_counter()
    _check_options(debug_mode, reference, threshold, channels)
    platform = find(platform)
    total = length_of(data) or getattr(data, "total", None) or 0
    with progress_bar(progress is True, "quality") as bar:
        tell = progress if callable(progress) else bar
        found = _Measurement(original, reference if debug_mode else None, module, target, platform, histograms, tell)
        for inputs in checked(data, found.graph):
            found.add(inputs)
            if tell is not None:
                tell("measuring", found.batches, total)
    if not found.batches:
        raise CalibrationError("there is no data to measure quality with: give at least one input")
    nodes = found.nodes.results(channels) if found.nodes is not None else ()
    return Quality(
        measured=QDQ if found.runner is None else found.runner.target,
        platform="" if found.runner is None else found.runner.platform.name,
        batches=found.batches, samples=found.samples, debug_mode=debug_mode,
        outputs=tuple(output.result(channels) for output in found.outputs), nodes=nodes, threshold=threshold,
        first_apart=next((n.name for n in nodes if n.error is not None and n.error.sqnr < threshold), None),
        first_different=next((n.name for n in nodes if n.apart is not None and n.apart.different), None),
        notes=tuple(_notes(found.runner, nodes)), seconds=time.perf_counter() - begin,
    )  # fmt: skip


class _Measurement:
    """The networks, and what has been summed up of them so far. reference: in debug mode."""

    def __init__(
        self, original: torch.nn.Module, reference: GraphModule | None, module: GraphModule, target: str | None,
        platform: str | os.PathLike[str] | Platform, histograms: bool, tell: Progress | None,
    ) -> None:  # fmt: skip
        self._original, self._module = original, module
        self._target, self._platform, self._histograms, self._tell = target, platform, histograms, tell
        self.graph = Graph(module)
        self._readers = float_readers(original, self.graph)
        self.nodes = NodeSums(self.graph, Graph(reference), histograms) if reference is not None else None
        self.outputs: list[OutputSums] = []
        self.runner: OnTarget | None = None
        self.batches = self.samples = 0

    def add(self, inputs: Inputs) -> None:
        """Runs a batch on all networks."""
        if not self.batches and self._target is not None:
            self.runner = OnTarget(self._module, inputs, self._target, self._platform, self._tell)
            if self.nodes is not None:
                self.nodes.trace_on(self._module, inputs, self._platform)
        floats = tuple(read(x) for read, x in zip(self._readers, inputs, strict=True))
        with torch.no_grad():
            wanted = pytree.tree_leaves(self._original(*floats))
            got, twin = self.nodes.add(inputs, floats) if self.nodes is not None else ([], [])
            if self.runner is not None:
                got = self.runner(inputs)
            elif self.nodes is None:
                got = pytree.tree_leaves(self._module(*inputs))
        self.outputs = self.outputs or output_sums(self.graph, self._original, wanted, self._histograms)
        samples = samples_of(inputs)
        for output in self.outputs:
            output.add(wanted, got, twin, samples, self.batches)
        self.batches += 1
        self.samples += samples


def _check_options(debug_mode: bool, reference: GraphModule | None, threshold: float, channels: int) -> None:
    if debug_mode and reference is None:
        raise ConfigError("debug mode compares every operator with a float one: it needs the float reference network")
    if not math.isfinite(threshold):
        raise ConfigError(f"threshold must be a finite number of dB, got {threshold!r}")
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 0:
        raise ConfigError(f"channels must be an integer of at least 0, got {channels!r}")


def _notes(runner: OnTarget | None, nodes: Sequence[Node]) -> Iterator[str]:
    if runner is not None and runner.on_host:
        yield f"{runner.on_host} operators run on the host, not on {runner.target}"
    without = [node.name for node in nodes if not node.twin]
    if without:
        yield f"{len(without)} nodes have no float twin: {', '.join(without[:5])}{', ...' if len(without) > 5 else ''}"
