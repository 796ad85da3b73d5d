"""How a deployment describes the model's inputs and outputs: name, shape, dtype, layout, quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .backend.capture import Captured, InputSpec
from .backend.host import HostGraph, Ref, Step, decode, encode
from .backend.region import DnaRegion, Port
from .ops.common import DEQUANTIZE, QUANTIZE, args_of
from .pytrees import leaf_names

if TYPE_CHECKING:
    from .compile import Built
    from .converters import TensorInfo

Row = dict[str, Any]


def input_rows(built: Built) -> list[Row]:
    """One row a flat input: name (of the graph), source_name (of the file it came from, or null), shape, dtype, layout
    ("NCHW", "NHWC" or ""), quantization (scale, zero_point and dtype of the integers it becomes or is; or null), and
    the constant that must be passed where the input is no tensor."""
    infos = _infos(built.captured, "inputs", len(built.captured.inputs))
    names = [info.name if info and _is_named(built.captured) else None for info in infos]
    return [
        {
            **input_row(spec), "source_name": name, "layout": _layout(info, spec.shape),
            "quantization": _described(info) or _of_input(spec.name, built.graph, built.regions),
        }
        for spec, info, name in zip(built.captured.inputs, infos, names, strict=True)
    ]  # fmt: skip


def output_rows(built: Built) -> list[Row]:
    """One row a flat output, as input_rows; name: the file's, or that of :func:`mera_torch.pytrees.leaf_names`."""
    output = next(node for node in built.captured.gm.graph.nodes if node.op == "output")
    values = list(args_of(output)[0])
    infos = _infos(built.captured, "outputs", len(values))
    names = [info.name if info and _is_named(built.captured) else "" for info in infos]
    if "" in names or len(set(names)) < len(names):
        names = leaf_names(built.captured.out_spec)
    rows = []
    for name, value, info, given in zip(names, values, infos, built.graph.outputs, strict=True):
        held = value.meta["val"] if isinstance(value, fx.Node) else value
        is_tensor = isinstance(held, torch.Tensor)
        shape = tuple(int(size) for size in held.shape) if is_tensor else ()
        ref = given.name if isinstance(given, Ref) else ""
        rows.append({
            "name": name, "shape": list(shape), "dtype": encode(held.dtype) if is_tensor else None,
            "constant": None if is_tensor else encode(held), "layout": _layout(info, shape),
            "quantization": _described(info) or _of_output(ref, built.graph, built.regions),
        })  # fmt: skip
    return rows


def input_row(spec: InputSpec) -> Row:
    """What calling the model needs to know of an input."""
    return {
        "name": spec.name, "shape": list(spec.shape), "dtype": encode(spec.dtype), "constant": encode(spec.constant),
    }  # fmt: skip


def input_spec(row: Mapping[str, Any]) -> InputSpec:
    """input_row()'s inverse. Raises ValueError, KeyError or TypeError for anything else."""
    dtype = decode(row["dtype"])
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype {row['dtype']!r} is unknown")
    return InputSpec(str(row["name"]), tuple(int(s) for s in row["shape"]), dtype, decode(row["constant"]))


def _infos(captured: Captured, side: str, count: int) -> Sequence[TensorInfo | None]:
    """What the imported file says of them, if there is one and it speaks of as many."""
    infos: Sequence[TensorInfo] = getattr(captured.info, side) if captured.info is not None else ()
    return infos if len(infos) == count else [None] * count


def _is_named(captured: Captured) -> bool:
    """Whether inputs and outputs have names of their own; those of PyTorch's networks are the graph's."""
    return captured.info is not None and captured.info.format not in ("pt2", "pytorch")


def _layout(info: TensorInfo | None, shape: Sequence[int]) -> str:
    """The file's; where that does not say, PyTorch's convention."""
    return (info.layout if info else "") or ("NCHW" if len(shape) == 4 else "")


def _described(info: TensorInfo | None) -> Row | None:
    if info is None or info.scale is None or info.zero_point is None:
        return None
    return _quantization(info.scale, info.zero_point, info.dtype)


def _quantization(scale: float, zero_point: int, dtype: torch.dtype) -> Row:
    return {"scale": float(scale), "zero_point": int(zero_point), "dtype": encode(dtype)}


def _port(name: str, ports: Sequence[Port]) -> Row | None:
    found = next((port for port in ports if port.value == name), None)
    return _quantization(found.scale, found.zero_point, torch.int8) if found else None


def _of_input(name: str, graph: HostGraph, regions: Sequence[DnaRegion]) -> Row | None:
    """The quantization that the region reading it applies, or else the host."""
    found = _port(name, [port for region in regions for port in region.inputs])
    steps = [step for step in graph.steps if step.target is QUANTIZE and step.args[0] == Ref(name)]
    return found or (_of_step(steps[0]) if steps else None)


def _of_output(name: str, graph: HostGraph, regions: Sequence[DnaRegion]) -> Row | None:
    """The quantization that the region giving it ends, or else the host."""
    found = _port(name, [port for region in regions for port in region.outputs])
    steps = [step for step in graph.steps if step.target is DEQUANTIZE and step.name == name]
    return found or (_of_step(steps[0]) if steps else None)


def _of_step(step: Step) -> Row:
    _, scale, zero_point, _, _, dtype = step.args[:6]
    return _quantization(scale, zero_point, dtype)
