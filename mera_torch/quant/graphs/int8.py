"""The integers of a converted graph: int8 weights and int32 biases behind a dequantize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .patterns import attribute
from .run import OperatorRun

_qd: Any = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class IntegerParameter:
    """An int8 weight or int32 bias: value = scale * stored along dimension `axis`.

    Attributes:
        node: The dequantize in the graph.
        stored: The integers; `store` writes into them.
        scale: float64, one for each index of dimension `axis`, or a single one.
        axis: That dimension; 0 if there is a single scale.
        limit: The integers lie within -limit and limit.
    """

    node: Node
    stored: torch.Tensor
    scale: torch.Tensor
    axis: int
    limit: int

    @property
    def shaped_scale(self) -> torch.Tensor:
        """The scale in a shape that broadcasts with `stored`."""
        shape = [1] * self.stored.dim()
        shape[self.axis] = -1
        return self.scale.view(shape)

    def store(self, integers: torch.Tensor) -> None:
        """Writes integers (of any dtype, clamped) into the graph's tensor."""
        with torch.no_grad():
            self.stored.copy_(integers.double().round().clamp(-self.limit, self.limit).to(self.stored.dtype))


def integer_parameter(model: GraphModule, node: object) -> IntegerParameter | None:
    """The integers that `node`, an argument of a convolution or linear, dequantizes; None if it is something else."""
    if not isinstance(node, Node) or node.target not in (
        _qd.dequantize_per_channel.default,
        _qd.dequantize_per_tensor.default,
    ):
        return None
    source, scale = node.args[:2]
    stored = attribute(model, str(source.target)) if isinstance(source, Node) and source.op == "get_attr" else None
    if not isinstance(stored, torch.Tensor):
        return None
    limit = torch.iinfo(stored.dtype).max
    if not isinstance(scale, Node):
        return IntegerParameter(node, stored, torch.tensor([float(scale)], dtype=torch.float64), 0, limit)  # type: ignore[arg-type]
    scales = attribute(model, str(scale.target))
    if not isinstance(scales, torch.Tensor):
        return None
    axis: Any = node.args[3] if node.target is _qd.dequantize_per_channel.default else 0
    return IntegerParameter(node, stored, scales.detach().double().flatten(), int(axis), limit)


def refresh(run: OperatorRun, parameter: IntegerParameter) -> None:
    """Puts the parameter's new value where `run` keeps it."""
    node = parameter.node
    args: Any = tuple(attribute(run.model, str(a.target)) if isinstance(a, Node) else a for a in node.args)
    with torch.no_grad():
        run.values[node] = [node.target(*args)] * run.count  # type: ignore[operator]
