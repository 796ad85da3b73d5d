"""What runs outside the DNA, and in which order: a straight list of steps that a deployment stores as JSON.

Only operators of the namespaces of library.py, and getitem, can be stored: loading a deployment runs no code of its
own.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..errors import UnsupportedError
from ..library import NAMESPACES

FORBIDDEN = ("from_file", "_print", "_assert", "save", "load")


@dataclass(frozen=True)
class Ref:
    """The value that an earlier step, an input or a constant made."""

    name: str


@dataclass(frozen=True)
class Step:
    """results = target(*args, **kwargs), or, if region >= 0, region number `region` run on its ports' values.

    source: the line of the model that it comes from ("model.py:12"), if known.
    """

    name: str
    target: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    region: int = -1
    source: str = ""


@dataclass
class HostGraph:
    """inputs: the flat inputs' names; outputs: the flat outputs, Refs or constants; constants by name."""

    inputs: list[str]
    steps: list[Step]
    outputs: list[Any]
    constants: dict[str, torch.Tensor]


def refs(args: Any) -> Any:
    """FX arguments with Refs for nodes."""
    replace: Callable[[Any], Any] = lambda a: Ref(a.name) if isinstance(a, fx.Node) else a  # noqa: E731
    found: Any = fx.node.map_aggregate(args, replace)
    return found


def names(args: Any) -> set[str]:
    """The names of all Refs within."""
    if isinstance(args, Ref):
        return {args.name}
    if isinstance(args, Mapping):
        return set().union(*map(names, args.values()))
    if isinstance(args, list | tuple):
        return set().union(*map(names, args))
    return set()


# ---- JSON ----

_TORCH_VALUES = (torch.dtype, torch.layout, torch.memory_format)


def encode(value: Any) -> Any:
    """An FX argument as JSON. Raises UnsupportedError for what has no JSON form."""
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    if isinstance(value, _TORCH_VALUES):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise UnsupportedError(f"a value of type {type(value).__name__} cannot be stored in a deployment")


def decode(value: Any) -> Any:
    """encode()'s inverse (tuples come back as lists). Raises ValueError for anything else."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "ref":
        return Ref(str(content))
    if kind == "float":
        return float(content)
    if kind == "device":
        return torch.device(str(content))
    if kind == "torch":
        found = getattr(torch, str(content), None)
        if isinstance(found, _TORCH_VALUES):
            return found
    raise ValueError(f"unknown value {value!r}")


def target_name(target: Any) -> str:
    """ "aten.add.Tensor", "quantized_decomposed....", or "getitem". Raises UnsupportedError for other callables."""
    if target is operator.getitem:
        return "getitem"
    if isinstance(target, torch._ops.OpOverload) and target.namespace in NAMESPACES:
        return str(target)
    raise UnsupportedError(f"operator {target} cannot be stored in a deployment: only {' and '.join(NAMESPACES)} can")


def find_target(name: str) -> Callable[..., Any]:
    """target_name()'s inverse. Raises ValueError for a name that is not allowed or unknown."""
    if name == "getitem":
        return operator.getitem
    parts = name.split(".")
    if len(parts) != 3 or parts[0] not in NAMESPACES or any(part in parts[1] for part in FORBIDDEN):
        raise ValueError(f"operator {name!r} is not allowed")
    packet = getattr(getattr(torch.ops, parts[0]), parts[1], None)
    found = getattr(packet, parts[2], None)
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"operator {name!r} is unknown")
    return found


def steps_to_json(graph: HostGraph) -> dict[str, Any]:
    """Everything but the constants."""
    rows = []
    for step in graph.steps:
        if step.region >= 0:
            rows.append({"region": step.region, "name": step.name})
            continue
        kwargs = {key: encode(v) for key, v in step.kwargs.items()}
        row = {"name": step.name, "target": target_name(step.target), "args": encode(step.args), "kwargs": kwargs}
        rows.append({**row, "source": step.source} if step.source else row)
    return {"inputs": graph.inputs, "steps": rows, "outputs": [encode(o) for o in graph.outputs]}


def steps_from_json(values: Mapping[str, Any], constants: dict[str, torch.Tensor], regions: int) -> HostGraph:
    """steps_to_json()'s inverse. Raises ValueError, KeyError or TypeError for anything else."""
    steps = []
    for row in values["steps"]:
        if "region" in row:
            index = int(row["region"])
            if not 0 <= index < regions:
                raise ValueError(f"there is no region {index}")
            steps.append(Step(str(row["name"]), region=index))
        else:
            kwargs = {str(key): decode(v) for key, v in row["kwargs"].items()}
            target, args = find_target(str(row["target"])), tuple(decode(row["args"]))
            steps.append(Step(str(row["name"]), target, args, kwargs, source=str(row.get("source", ""))))
    return HostGraph([str(n) for n in values["inputs"]], steps, [decode(o) for o in values["outputs"]], constants)
