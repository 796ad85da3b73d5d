"""What `measure_quantization_quality` gives: figures for each output and, in debug mode, for each operator."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mera_torch.atomic import atomic_file
from mera_torch.errors import ConfigError, CorruptFileError, nearest

from .histograms import Channel, Histogram
from .metrics import Decibels, Metrics, Noise

SCHEMA = 1
"""Version of to_dict()'s layout."""


@dataclass(frozen=True)
class Codes:
    """How a tensor uses the codes of its 8-bit quantization.

    Attributes:
        saturated_low, saturated_high: Elements whose code is the lowest (highest) one while the float value lies beyond
            it: its code, unclamped, is lower (higher) still. saturation: both, as a part of all elements.
        used: How many codes occur; bits: log2 of that; entropy: of the codes' frequencies, in bits.
    """

    saturated_low: int
    saturated_high: int
    saturation: float
    used: int
    bits: float
    entropy: float


@dataclass(frozen=True)
class Output:
    """An output of the network.

    Attributes:
        index, name: Its position among the flat outputs, and its name.
        node: The operator that makes it, "" if none does.
        shape, dtype: Of one batch; dtype is torch's ("float32").
        scale, zero_point: Its quantization, None where it has none.
        error: The quantized network against the user's float network.
        top1: The part of rows of class scores [N, C >= 2] whose largest score is that of the same class in both (the
            first of several largest ones); None for other shapes.
        transforms: The error that the float transforms (equalization and the like) alone bring, in debug mode.
        codes: None without quantization or histograms.
        channel_axis, channels, channel_sqnr: The channels' dimension; some of them, those of least SQNR; and the SQNR
            of every one.
    """

    index: int
    name: str
    node: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int | None
    error: Metrics
    top1: float | None = None
    transforms: Noise | None = None
    codes: Codes | None = None
    histogram: Histogram | None = None
    channel_axis: int | None = None
    channels: tuple[Channel, ...] = ()
    channel_sqnr: tuple[Decibels, ...] = ()


@dataclass(frozen=True)
class Added:
    """The error that an operator brings into its value: total = input + weights + output, element by element.

    It is the error of the operator fed with the float network's values, as those who made them round them, against the
    float operator fed with the same. weights: of rounding its weights and bias; output: of rounding and clamping its
    result; input: of rounding its inputs once more, for itself alone.
    """

    total: Noise
    input: Noise
    weights: Noise
    output: Noise


@dataclass(frozen=True)
class StepsApart:
    """How the accelerator's integers differ from the q/dq module's: elements, and by how many steps at most."""

    different: int
    largest: int


@dataclass(frozen=True)
class Node:
    """An operator of the quantized network, with the activation fused into it; or one of its inputs.

    Attributes:
        name: Of its node; "fused": those of what is fused into it, the last of which gives the value.
        op: "conv2d", ..., "input" for an input of the network. activation: the operators fused into it, "relu".
        module, source: Path in the user's model, and its line ("model.py:12"), where they are known.
        inputs: The operators whose values it reads.
        shape: Of its value.
        dtype: In which it computes: "int8", "bf16" or "float"; "int64", "bool" and the like where its value is of
            integers that stand for themselves.
        scale, zero_point: The quantization of its value, None where it has none.
        twin: Whether the float reference has this value too; if not, note says why, and there are no figures.
        error: Its value in the running network against the float reference.
        alone: The error of the operator fed with float inputs, which it rounds with its own parameters: what its value
            would suffer if nothing before it were quantized. None where an input has no float twin.
        added: What of the error the operator brings in; None also where the float network computes it in another way.
        inherited: The rest, which came with its inputs: error = added + inherited, element by element.
        received: What it costs this value that those who made its inputs round them: the float operator fed with the
            float network's values as their makers round them, against fed with them as they are. It shows damage that
            a maker's own figures hide: beside an outlier channel, noise that ruins all others is small.
        apart: The accelerator's integers against the q/dq module's, if a target was given.
    """

    name: str
    op: str
    activation: str
    fused: tuple[str, ...]
    module: str
    source: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int | None
    twin: bool
    note: str = ""
    error: Metrics | None = None
    alone: Noise | None = None
    added: Added | None = None
    inherited: Noise | None = None
    received: Noise | None = None
    codes: Codes | None = None
    histogram: Histogram | None = None
    channel_axis: int | None = None
    channels: tuple[Channel, ...] = ()
    channel_sqnr: tuple[Decibels, ...] = ()
    apart: StepsApart | None = None

    @property
    def label(self) -> str:
        """The operator and what is fused into it: "conv2d + relu"."""
        return f"{self.op} + {self.activation}" if self.activation else self.op


@dataclass(frozen=True)
class Quality:
    """How well a quantized network follows its float network.

    Attributes:
        measured: What ran: "q/dq module", or the target.
        platform: Of the target, "" without one.
        batches, samples: How many were run.
        outputs, nodes: The figures; nodes, in the order of execution, in debug mode alone.
        threshold: The SQNR in dB below which a node counts as parted from the float network.
        first_apart: The first node that is; None if none is, or without debug mode.
        first_different: The first node of the q/dq module whose integers are not the accelerator's, in debug mode with
            a target; None if none is.
        notes: What else a reader must know.
        seconds: How long it took.
    """

    measured: str
    platform: str
    batches: int
    samples: int
    debug_mode: bool
    outputs: tuple[Output, ...]
    nodes: tuple[Node, ...]
    threshold: float
    first_apart: str | None
    first_different: str | None
    notes: tuple[str, ...]
    seconds: float
    schema: int = SCHEMA

    __pydantic_config__ = ConfigDict(extra="forbid")

    # ---- JSON ----

    def to_dict(self) -> dict[str, Any]:
        """All of it, in JSON's types: null stands for an infinite ratio (nothing differs), there is no NaN."""
        found: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return found

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Quality:
        """to_dict()'s inverse. Raises CorruptFileError for anything else, naming the first wrong field."""
        schema = document.get("schema") if isinstance(document, Mapping) else None
        if schema != SCHEMA:
            raise CorruptFileError(f"this is no quality report of version {SCHEMA}: its schema is {schema!r}")
        try:
            return _adapter().validate_python(dict(document))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CorruptFileError(f"quality report: {where}: {first['msg']}") from error

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes to_dict() as a JSON file, whole or not at all. Raises StorageError."""
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    # ---- MERA's face: one number an output ----

    @property
    def psnr(self) -> tuple[float, ...]:
        """PSNR of each output in dB; infinite where it is equal."""
        return tuple(output.error.psnr for output in self.outputs)

    @property
    def score(self) -> tuple[float, ...]:
        """Score of each output: the median over the samples, at most 100."""
        return tuple(output.error.score for output in self.outputs)

    @property
    def mean_error(self) -> tuple[float, ...]:
        """Mean error of each output."""
        return tuple(output.error.mean_error for output in self.outputs)

    @property
    def max_abs_error(self) -> tuple[float, ...]:
        """Largest magnitude of an error of each output."""
        return tuple(output.error.max_error for output in self.outputs)

    @property
    def mean_squared_error(self) -> tuple[float, ...]:
        """Mean squared error of each output."""
        return tuple(output.error.mse for output in self.outputs)

    @property
    def node_metrics(self) -> dict[str, Metrics]:
        """Of every node that has a float twin, by its name."""
        return {node.name: node.error for node in self.nodes if node.error is not None}

    # ---- questions ----

    def node(self, name: str) -> Node:
        """The node of that name, or that it is fused into. Raises ConfigError naming the nearest."""
        for found in self.nodes:
            if name == found.name or name in found.fused:
                return found
        if not self.nodes:
            raise ConfigError(f"there is no node {name!r}: measure with debug_mode=True to see nodes")
        raise ConfigError(f"there is no node {name!r}: {nearest(name, [node.name for node in self.nodes])}")

    def worst(self, n: int = 10) -> tuple[Node, ...]:
        """The n nodes that add most error to their values: those of least added SQNR, worst first."""
        adding = [node for node in self.nodes if node.added is not None and node.added.total.mse > 0.0]
        return tuple(sorted(adding, key=lambda node: node.added.total.sqnr if node.added else 0.0)[: max(0, n)])

    def makers(self, node: Node) -> tuple[Node, ...]:
        """Those whose rounding `node` reads: its inputs, or, where one only moves values, the inputs of that."""
        known = {held.name: held for held in self.nodes}
        found: dict[str, Node] = {}
        waiting = [known[name] for name in node.inputs if name in known]
        while waiting:
            source = waiting.pop(0)
            if source.inputs and source.added is not None and source.added.total.mse == 0.0:
                waiting += [known[name] for name in source.inputs if name in known]
            else:
                found[source.name] = source
        return tuple(found.values())

    @property
    def misread(self) -> Node | None:
        """The node that suffers most from how its inputs are rounded, if its `received` is below the threshold: its
        makers have outlier channels, or a range that is wrong."""
        low = [node for node in self.nodes if node.received is not None and node.received.sqnr < self.threshold]
        return min(low, key=lambda node: node.received.sqnr if node.received else 0.0, default=None)

    # ---- pictures ----

    def plot_histogram(
        self, dest_file: str | os.PathLike[str], channels: int | Iterable[int] | None = None,
        output_id: int | None = None, plot_title: str | None = None, axis: int | None = None, *,
        node: str | None = None,
    ) -> Path:  # fmt: skip
        """Draws how the float and the quantized values of an output, or of a node, are distributed.

        Args:
            dest_file: The file to write; its name ends in .png, .svg or .pdf.
            channels: One channel, MERA's (first, end) of several, or any other iterable of channels; None: the whole
                tensor. Of each node and output those of least SQNR are kept (`measure(channels=)`).
            output_id: Which output; may be left out where there is one.
            plot_title: In place of the name and shape.
            axis: The channels' dimension; only `channel_axis` has been counted.
            node: A node in place of an output.

        Raises:
            ConfigError: no such output, node or channel; no histograms; a file of another kind.
            MeraError: matplotlib is not installed.
            StorageError: the file cannot be written.
        """
        from .plots import plot_histogram

        held = self.node(node) if node is not None else self._output(output_id)
        if isinstance(channels, tuple) and len(channels) == 2:
            channels = range(*channels)
        return plot_histogram(held, dest_file, channels, axis, title=plot_title)

    def plot_errors(self, dest_file: str | os.PathLike[str]) -> Path:
        """Draws what every node adds, inherits and has of error; raises as `plot_histogram`."""
        from .plots import plot_errors

        return plot_errors(self, dest_file)

    def _output(self, index: int | None) -> Output:
        if index is None and len(self.outputs) > 1:
            names = ", ".join(f"{output.index} ({output.name})" for output in self.outputs)
            raise ConfigError(f"there are {len(self.outputs)} outputs: give output_id, one of {names}")
        if index is not None and (isinstance(index, bool) or index not in range(len(self.outputs))):
            raise ConfigError(f"output_id must be from 0 to {len(self.outputs) - 1}, got {index!r}")
        return self.outputs[index or 0]

    def __rich__(self) -> Any:
        from .table import tables

        return tables(self)


@cache
def _adapter() -> TypeAdapter[Quality]:
    return TypeAdapter(Quality)
