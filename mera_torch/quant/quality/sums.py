"""What quality is computed from, summed up batch by batch: of the outputs, and of every operator."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from mera_torch.converters.model import info_of
from mera_torch.errors import CalibrationError, InvalidModelError
from mera_torch.execute import output_names
from mera_torch.ops.common import op_name, origins
from mera_torch.platform import Platform

from ..graphs import operators as ops
from ..graphs.patterns import value_of
from ..graphs.run import Inputs
from .attribution import (
    FLOAT,
    Format,
    Graph,
    Operator,
    find_operators,
    format_of,
    main_operator,
    number_format,
    origin,
    value_format,
)
from .histograms import CodeGrid, PairHistogram, PowerGrid, channel_axis
from .inputs import rows_of, samples_of
from .metrics import NoiseSums, PairSums
from .result import Added, Codes, Node, Output, StepsApart
from .side_by_side import Seen, SideBySide
from .target import EveryValue

# ---- one value ----


class ValueSums:
    """What is counted of one value."""

    def __init__(self, form: Format, axis: int | None, histograms: bool) -> None:
        self.form, self.axis = form, axis
        self._sums = PairSums()
        grid = CodeGrid(form.scale, form.zero_point, form.lowest) if form.is_byte else PowerGrid()  # type: ignore[arg-type]
        self._histogram = PairHistogram(grid, axis) if histograms else None

    def add(self, wanted: torch.Tensor, got: torch.Tensor, samples: int) -> None:
        self._sums.add(wanted, got, rows_of(wanted, samples))
        if self._histogram is not None:
            self._histogram.add(wanted, got)

    def fields(self, channels: int) -> dict[str, Any]:
        """Those that Output and Node have in common."""
        h = self._histogram
        held = {"scale": self.form.scale, "zero_point": self.form.zero_point}
        if h is None:
            return {**held, "error": self._sums.metrics()}
        return {
            **held, "error": self._sums.metrics(h.kl), "codes": self._codes(h), "histogram": h.histogram(),
            "channel_axis": self.axis, "channels": h.channels(channels), "channel_sqnr": h.channel_sqnr(),
        }  # fmt: skip

    def _codes(self, h: PairHistogram) -> Codes | None:
        if not self.form.is_byte:
            return None
        low, high = h.saturated
        used = h.codes_used
        return Codes(
            low, high, (low + high) / max(1, self._sums.elements), used, math.log2(used) if used else 0.0, h.entropy
        )


# ---- outputs ----


class OutputSums:
    def __init__(
        self, index: int, name: str, node: str, value: torch.Tensor, form: Format, layout: str, histograms: bool
    ) -> None:
        self.index, self.name, self.node, self.form = index, name, node, form
        self.shape, self.dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
        axis = 3 if layout == "NHWC" and len(self.shape) == 4 else channel_axis(self.shape, False)
        self._values = ValueSums(form, axis, histograms)
        self._transforms = NoiseSums()
        self._classifies = len(self.shape) == 2 and self.shape[1] > 1 and value.is_floating_point()
        self._agreeing = self._judged = 0

    def add(self, wanted: Sequence[Any], got: Sequence[Any], twin: Sequence[Any], samples: int, item: int) -> None:
        f, g = _tensor(wanted[self.index]), self._restored(_tensor(got[self.index]), _tensor(wanted[self.index]))
        for whose, value in (("float", f), ("quantized", g)):
            if value.is_floating_point() and bool(value.isnan().any()):
                raise CalibrationError(
                    f"evaluation item {item}: output {self.name!r} of the {whose} network holds NaN; "
                    "check the data and the model's weights"
                )
        if f.shape != g.shape:
            raise InvalidModelError(
                f"output {self.name!r} has shape {list(f.shape)} in the float network, {list(g.shape)} in the "
                "quantized one: they are not the same network"
            )
        self._values.add(f, g, samples)
        if twin:
            self._transforms.add(f, f, _tensor(twin[self.index]))
        if self._classifies:
            self._agreeing += int((f.argmax(1) == g.argmax(1)).sum())
            self._judged += len(f)

    def _restored(self, got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """An output that stays in its codes, as a float."""
        coded = self.form.scale is not None and wanted.is_floating_point() and not got.is_floating_point()
        return (got.float() - self.form.zero_point) * self.form.scale if coded else got  # type: ignore[operator]

    def result(self, channels: int) -> Output:
        return Output(
            self.index, self.name, self.node, self.shape, self.dtype,
            top1=self._agreeing / self._judged if self._judged else None,
            transforms=self._transforms.noise(), **self._values.fields(channels),
        )  # fmt: skip


def _tensor(value: Any) -> torch.Tensor:
    return value.detach().cpu() if isinstance(value, torch.Tensor) else torch.tensor(value)


def output_sums(graph: Graph, original: Any, wanted: Sequence[Any], histograms: bool) -> list[OutputSums]:
    nodes = pytree.tree_leaves(graph.output.args[0])
    if len(nodes) != len(wanted):
        raise InvalidModelError(
            f"the float network has {len(wanted)} outputs, the quantized one {len(nodes)}: "
            "they are not the same network"
        )
    known = info_of(original) or info_of(graph.module)
    infos = known.outputs if known is not None and len(known.outputs) == len(nodes) else ()
    layouts = [info.layout for info in infos] or [""] * len(nodes)
    names = output_names([info.name for info in infos], len(nodes))
    found = []
    for index, (name, layout, node, value) in enumerate(zip(names, layouts, nodes, wanted, strict=True)):
        is_node = isinstance(node, torch.fx.Node)
        form = format_of(graph, node) if is_node else FLOAT
        made_by = main_operator(graph, origin(node)).name if is_node else ""
        found.append(OutputSums(index, name, made_by, _tensor(value), form, layout, histograms))
    return found


# ---- operators ----


class NodeSums:
    """What is counted of every operator, in one pass over both graphs."""

    def __init__(self, quantized: Graph, reference: Graph, histograms: bool) -> None:
        self.graph = quantized
        self.operators = find_operators(quantized, reference)
        self._pass = SideBySide(quantized, reference, self.operators)
        makers = {node: operator.nodes[0].name for operator in self.operators for node in operator.nodes}
        self._rows = {
            operator.value: OperatorSums(
                quantized,
                operator,
                number_format(quantized, operator),
                [makers[s] for s in operator.sources],
                histograms,
            )
            for operator in self.operators
        }
        self._every: EveryValue | None = None
        self._codes: dict[str, torch.Tensor] = {}
        self._samples = 1

    def trace_on(self, module: GraphModule, inputs: Inputs, platform: str | os.PathLike[str] | Platform) -> None:
        """From now on the codes are compared with InterpreterHw's, too."""
        nodes = [
            operator.rounding.name
            for operator in self.operators
            if operator.rounding is not None and not operator.coded and format_of(self.graph, operator.rounding).is_byte
        ]
        self._every = EveryValue(module, inputs, nodes, platform)

    def add(self, inputs: Inputs, floats: Inputs) -> tuple[list[Any], list[Any]]:
        """The flat outputs of the quantized and of the float graph, which take `inputs` and `floats`."""
        self._codes = dict(self._every(inputs)) if self._every is not None else {}
        self._samples = samples_of(inputs)
        return self._pass.run(inputs, floats, self._visit)

    def _visit(self, seen: Seen) -> None:
        rounding = seen.operator.rounding
        codes = None if rounding is None else self._codes.pop(rounding.name, None)
        self._rows[seen.operator.value].add(seen, codes, self._samples)

    def results(self, channels: int) -> tuple[Node, ...]:
        return tuple(row.result(channels) for row in self._rows.values())


class OperatorSums:
    def __init__(self, graph: Graph, operator: Operator, computes: str, inputs: list[str], histograms: bool) -> None:
        self.operator, self._inputs = operator, tuple(dict.fromkeys(inputs))
        self.form = value_format(graph, operator)
        self._shape: tuple[int, ...] = ()
        self._note = operator.note
        self._values: ValueSums | None = None
        self._histograms = histograms
        self._alone, self._added, self._inherited, self._received = (NoiseSums() for _ in range(4))
        self._parts = [NoiseSums() for _ in range(3)]  # input, weights, output
        self._different = self._largest = 0
        self._traced = False
        self._computes = computes
        self._layout = _layout_of(graph, operator.value)

    def add(self, seen: Seen, codes: torch.Tensor | None, samples: int) -> None:
        f, g = seen.wanted, seen.got
        self._shape = tuple(g.shape) if isinstance(g, torch.Tensor) else ()
        if isinstance(g, torch.Tensor) and not g.is_floating_point():
            self._computes = str(g.dtype).removeprefix("torch.")
        if not isinstance(g, torch.Tensor) or (f is not None and not isinstance(f, torch.Tensor)):
            self._note = self._note or "its value is no tensor; those who pick from it follow"
            return
        if codes is not None and seen.codes is not None:
            apart = (codes.to(torch.int32) - seen.codes.to(torch.int32)).abs()
            self._different += int(torch.count_nonzero(apart))
            self._largest = max(self._largest, int(apart.max()) if apart.numel() else 0)
            self._traced = True
        if f is None:
            return
        if f.is_floating_point() != g.is_floating_point():
            self._note = "its value is codes whose scale is not known here"
            return
        if f.shape != g.shape:
            self._note = f"its shape is {list(g.shape)}, the float network's {list(f.shape)}"
            return
        if self._values is None:
            self._values = ValueSums(self.form, self._channel_axis(), self._histograms)
        self._values.add(f, g, samples)
        if seen.alone is None:
            return
        a = seen.alone
        self._alone.add(f, f, a.value)
        if a.given is None or a.rounded is None:
            return
        self._added.add(f, a.given, a.value)
        if self.operator.sources:
            self._received.add(f, f, a.given)
        self._inherited.add(f, f.double() + (a.value.double() - a.given.double()), g)
        stages = (a.given, a.rounded, a.unrounded, a.value)
        for part, before, after in zip(self._parts, stages, stages[1:], strict=False):
            part.add(f, before, after)

    def _channel_axis(self) -> int | None:
        if self._layout == "NHWC" and len(self._shape) == 4:
            return 3
        return channel_axis(self._shape, self.operator.nodes[0].target in ops.CONV_1D | ops.CONV_TRANSPOSED)

    def result(self, channels: int) -> Node:
        first, *rest = self.operator.nodes
        known = origins(first)[0]
        noises = [sums.noise() for sums in (self._added, *self._parts)]
        added = None if any(noise is None for noise in noises) else Added(*noises)  # type: ignore[arg-type]
        fields = self._values.fields(channels) if self._values is not None else {
            "scale": self.form.scale, "zero_point": self.form.zero_point,
        }  # fmt: skip
        return Node(
            name=first.name, op="input" if first.op == "placeholder" else _short(first),
            activation=" + ".join(map(_short, rest)), fused=tuple(node.name for node in rest), module=known.module,
            source=known.source, inputs=self._inputs, shape=self._shape or _shape(first), dtype=self._computes,
            twin=self._values is not None, note=self._note, alone=self._alone.noise(), added=added,
            inherited=self._inherited.noise(), received=self._received.noise(),
            apart=StepsApart(self._different, self._largest) if self._traced else None, **fields,
        )  # fmt: skip


def _layout_of(graph: Graph, node: torch.fx.Node) -> str:
    """Of an input of an imported network, as far as its file says; "" for any other node."""
    known = info_of(graph.module)
    at = graph.inputs.index(node) if node in graph.inputs else -1
    return known.inputs[at].layout if known is not None and 0 <= at < len(known.inputs) else ""


def _short(node: torch.fx.Node) -> str:
    """ "conv2d" of aten.conv2d.default."""
    name = op_name(node.target)
    return name.split(".")[1] if name.count(".") >= 2 else name


def _shape(node: torch.fx.Node) -> tuple[int, ...]:
    value = value_of(node)
    return () if value is None else tuple(int(size) for size in value.shape)
