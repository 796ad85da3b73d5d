"""What a model contains: its interface, its operators, their parameters and multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import fx

from .backend.costs import macs_of
from .converters import ImportedModel, TensorInfo
from .ops.common import DEQUANTIZE_OPS, QUANTIZE_OPS, op_name


@dataclass(frozen=True)
class Operators:
    """Operators of one kind: how many, their MACs and the constants that they read (elements)."""

    op: str
    count: int
    macs: int
    parameters: int


@dataclass(frozen=True)
class Contents:
    """quantized: "" for a float model, else the integer dtypes of its tensors."""

    format: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: tuple[Operators, ...]
    quantized: str

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.operators)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.operators)

    def to_dict(self) -> dict[str, Any]:
        """As JSON's types."""
        found = asdict(self)
        for tensor in (*found["inputs"], *found["outputs"]):
            tensor["dtype"] = str(tensor["dtype"]).removeprefix("torch.")
        return {**found, "macs": self.macs, "parameters": self.parameters}

    def __rich__(self) -> Any:
        """The tables for rich.print."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table

        ports = Table(box=SIMPLE_HEAD)
        for name in ("", "name", "shape", "dtype", "layout", "quantization"):
            ports.add_column(name)
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            for t in tensors:
                q = "" if t.scale is None else f"{t.scale:.6g} (q - {t.zero_point})"
                ports.add_row(kind, t.name, str(list(t.shape)), str(t.dtype).removeprefix("torch."), t.layout, q)
        table = Table(box=SIMPLE_HEAD, caption=self.summary())
        for name in ("operator", "count", "MACs", "share", "parameters"):
            table.add_column(name, justify="left" if name == "operator" else "right")
        for row in self.operators:
            share = f"{row.macs / self.macs:.1%}" if row.macs else ""
            table.add_row(row.op, str(row.count), f"{row.macs:,}" if row.macs else "", share, f"{row.parameters:,}")
        return Group(ports, table)

    def summary(self) -> str:
        """One line."""
        kind = f"quantized ({self.quantized})" if self.quantized else "float"
        count = sum(row.count for row in self.operators)
        return f"{self.format}, {kind}: {count} operators, {self.macs:,} MACs, {self.parameters:,} parameters"


def contents(model: ImportedModel) -> Contents:
    """Counts the operators of the file (not those of the graph that they became)."""
    info = model.info
    counts: dict[str, set[str]] = {}
    macs: dict[str, int] = {}
    parameters: dict[str, int] = {}
    seen: set[fx.Node] = set()
    for node in model.graph.nodes:
        if node.op != "call_function":
            continue
        found = (node.name, op_name(node.target)) if info.format in ("pt2", "pytorch") else _of_file(node)
        if found is None:
            continue
        name, op = found
        counts.setdefault(op, set()).add(name)
        macs[op] = macs.get(op, 0) + macs_of(node)
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in seen:
                seen.add(source)
                parameters[op] = parameters.get(op, 0) + math.prod(source.meta["val"].shape)
    rows = [Operators(op, len(names), macs[op], parameters.get(op, 0)) for op, names in counts.items()]
    rows.sort(key=lambda row: (-row.macs, -row.count, row.op))
    return Contents(info.format, info.inputs, info.outputs, tuple(rows), _quantized(model))


def _of_file(node: fx.Node) -> tuple[str, str] | None:
    """Name and operator in the file; None for what only changes the type of an input or output."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    if not stack:
        return None
    name, op = list(stack.values())[-1]
    return str(name), str(op).partition(".")[2]


def _quantized(model: ImportedModel) -> str:
    dtypes = {
        str(node.meta["val"].dtype).removeprefix("torch.") for node in model.graph.nodes if node.target in QUANTIZE_OPS
    } | {
        str(source.meta["val"].dtype).removeprefix("torch.")
        for node in model.graph.nodes
        if node.target in DEQUANTIZE_OPS
        for source in node.all_input_nodes[:1]
    }
    return ", ".join(sorted(dtypes))
