"""The integers of a converted graph: int8 weights and int32 biases behind a dequantize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .patterns import attribute
from .run import OperatorRun
from .weighted import channel_vector

_qd: Any = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class IntegerParameter:
    """An int8 weight or int32 bias: value = scale * (stored - zero_point) along dimension `axis`.

    Attributes:
        node: The dequantize in the graph.
        stored: The integers; `store` writes into them.
        scale, zero_point: float64, one for each index of dimension `axis`, or a single one.
        axis: That dimension; 0 if there is a single scale.
        lowest, highest: What the integers lie within.
    """

    node: Node
    stored: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor
    axis: int
    lowest: int
    highest: int

    def shaped(self, each: torch.Tensor) -> torch.Tensor:
        """`scale` or `zero_point` in a shape that broadcasts with `stored`."""
        return channel_vector(each, self.stored.dim(), self.axis)

    def store(self, integers: torch.Tensor) -> None:
        """Writes integers (of any dtype, clamped) into the graph's tensor."""
        with torch.no_grad():
            held = integers.double().round().clamp(self.lowest, self.highest)
            self.stored.copy_(held.to(self.stored.dtype))


def integer_parameter(model: GraphModule, node: object) -> IntegerParameter | None:
    """The integers that `node`, an argument of a convolution or linear, dequantizes; None if it is something else."""
    if not isinstance(node, Node) or node.target not in (
        _qd.dequantize_per_channel.default,
        _qd.dequantize_per_tensor.default,
    ):
        return None
    given: tuple[Any, ...] = node.args
    source, scale, zero_point, *others = given
    stored = attribute(model, str(source.target)) if isinstance(source, Node) and source.op == "get_attr" else None
    if not isinstance(stored, torch.Tensor):
        return None
    axis = others.pop(0) if node.target is _qd.dequantize_per_channel.default else 0
    lowest, highest = others[:2]
    scales, zeros = (_vector(model, each) for each in (scale, zero_point))
    return IntegerParameter(node, stored, scales, zeros, int(axis), lowest, highest)


def _vector(model: GraphModule, given: Any) -> torch.Tensor:
    """float64 [C] of a constant, or [1] of a number."""
    held: Any = attribute(model, str(given.target)) if isinstance(given, Node) else torch.tensor(given)
    found: torch.Tensor = held.detach().double().flatten()
    return found


def refresh(run: OperatorRun, parameter: IntegerParameter) -> None:
    """Puts the parameter's new value where `run` keeps it."""
    node = parameter.node
    args: Any = tuple(attribute(run.model, str(a.target)) if isinstance(a, Node) else a for a in node.args)
    with torch.no_grad():
        run.values[node] = [node.target(*args)] * run.count  # type: ignore[operator]
