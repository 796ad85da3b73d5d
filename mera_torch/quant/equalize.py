"""Equalization: channels of one tensor are brought to like ranges, since int8 gives all of them one scale.

A factor d[c] may be taken out of channel c of a value and put into the weights that read it, when everything in between
is linear or clamps at zero only: relu(x / d) = relu(x) / d. This reaches over whole residual streams, whose adds keep
channels apart. (Nagel et al., arXiv 1906.04721, section 4.1, does so with the ranges of weights; here those of the
activations are measured.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from . import operators as ops
from .canonicalize import remove_dropout, remove_in_place
from .patterns import argument, constant_of, value_of
from .run import run_by_operator

Inputs = tuple[Any, ...]
aten: Any = torch.ops.aten

_LARGEST_FACTOR = 64.0
# f(x / d) = f(x) / d for d > 0 of each channel.
_HOMOGENEOUS = (
    ops.MAX_POOL | ops.AVG_POOL | ops.ADAPTIVE_AVG_POOL | ops.MEAN | ops.NEAREST | ops.BILINEAR | {aten.relu.default}
)


@dataclass
class _Stream:
    """Values whose channels must be scaled together."""

    values: dict[Node, None] = field(default_factory=dict)  # an ordered set
    producers: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)


def equalize(model: GraphModule, batches: Sequence[Inputs], strength: float = 0.5) -> int:
    """Equalizes `model`, exported in evaluation mode, in place; its function stays the same but for float rounding.

    Args:
        model: From ``torch.export.export(m, args).module()``.
        batches: Tuples of its inputs, to measure the ranges with.
        strength: 0 to 1; the factor of a channel is r ** strength / w ** (1 - strength), r the largest magnitude seen
            in it, w the largest weight that reads it.

    Returns:
        How many streams of values were equalized.
    """
    remove_in_place(model)
    remove_dropout(model)
    streams = _find_streams(model)
    watched = {value for stream in streams for value in stream.values}
    largest: dict[Node, torch.Tensor] = {}

    def measure(node: Node, outputs: list[Any]) -> list[Any]:
        if node in watched:
            largest[node] = torch.stack([y.abs().movedim(1, 0).flatten(1).amax(1) for y in outputs]).amax(0)
        return outputs

    run_by_operator(model, batches, measure)
    for stream in streams:
        ranges = torch.stack([largest[value] for value in stream.values]).amax(0).double()
        weights = torch.stack([_reading_weights(model, reader) for reader in stream.readers]).amax(0)
        factor = ranges**strength / weights ** (1 - strength)
        usable = (ranges > 0) & (weights > 0)
        if not usable.any():
            continue
        factor = factor / factor[usable].log().mean().exp()
        factor = torch.where(usable, factor.clamp(1 / _LARGEST_FACTOR, _LARGEST_FACTOR), 1.0)
        for producer in stream.producers:
            for index in (1, 2):  # weight and bias, of a convolution as of a batch norm
                if len(producer.args) > index and isinstance(parameter := producer.args[index], Node):
                    _scale(model, parameter, 1 / factor, 0)
        for reader in stream.readers:
            _scale(model, reader.args[1], factor, 0 if _is_depthwise(reader) else 1)
    model.recompile()
    return len(streams)


def _find_streams(model: GraphModule) -> list[_Stream]:
    streams: dict[Node, _Stream] = {}
    for node in model.graph.nodes:
        if node.op != "call_function" or not _joins(node):
            if _produces(node):
                streams[node] = _Stream({node: None}, [node])
            continue
        stream = streams.get(node.args[0], _Stream(producers=[node.args[0]]))
        other = (
            streams.get(node.args[1], _Stream(producers=[node.args[1]])) if node.target is aten.add.Tensor else stream
        )
        if other is not stream:
            stream.values.update(other.values)
            stream.producers += other.producers
            for value in other.values:
                streams[value] = stream
        stream.values[node] = None
        streams[node] = stream
    found = []
    for stream in {id(s): s for s in streams.values()}.values():
        stream.readers = [user for value in stream.values for user in value.users if user not in stream.values]
        parameters = [n for p in stream.producers for n in p.all_input_nodes[1:]] + [
            r.args[1] for r in stream.readers if len(r.args) > 1
        ]
        alone = all(isinstance(n, Node) and n.op == "get_attr" and len(n.users) == 1 for n in parameters)
        if stream.readers and alone and all(map(_produces, stream.producers)) and all(map(_reads, stream.readers)):
            found.append(stream)
    return found


def _joins(node: Node) -> bool:
    """Whether the output's channels scale as the inputs' do."""
    if node.target is aten.add.Tensor:
        a, b = (value_of(n) if isinstance(n, Node) else None for n in node.args[:2])
        return a is not None and b is not None and a.shape == b.shape and a.dim() == 4 and not node.kwargs
    if node.target is aten.flatten.using_ints:
        x, y = value_of(node.args[0]), value_of(node)  # type: ignore[arg-type]
        return x is not None and y is not None and x.dim() == 4 and y.dim() == 2 and x.shape[1] == y.shape[1]
    return node.target in _HOMOGENEOUS and isinstance(node.args[0], Node)


def _produces(node: Any) -> bool:
    if not isinstance(node, Node) or node.op != "call_function":
        return False
    norm = node.target is aten.batch_norm.default and isinstance(node.args[1], Node) and isinstance(node.args[2], Node)
    return norm or (node.target is aten.conv2d.default and not any(u.target in ops.BATCH_NORM for u in node.users))


def _reads(node: Node) -> bool:
    if node.target is aten.linear.default:
        value = value_of(node)
        return value is not None and value.dim() == 2
    return node.target is aten.conv2d.default and (_is_depthwise(node) or argument(node, 6, "groups", 1) == 1)


def _is_depthwise(node: Node) -> bool:
    weight = value_of(node.args[1])  # type: ignore[arg-type]
    groups = argument(node, 6, "groups", 1) if node.target is aten.conv2d.default else 1
    return weight is not None and groups != 1 and groups == weight.shape[0] and weight.shape[1] == 1


def _reading_weights(model: GraphModule, reader: Node) -> torch.Tensor:
    """float64 [C]: the largest weight that reads each channel."""
    weight = constant_of(model, reader.args[1]).double()
    return weight.abs().movedim(0 if _is_depthwise(reader) else 1, 0).flatten(1).amax(1)


def _scale(model: GraphModule, parameter: Any, factor: torch.Tensor, dim: int) -> None:
    """Replaces (never writes into: the original model owns it) a parameter by its product with factor[c] along
    `dim`."""
    old = constant_of(model, parameter)
    shape = [1] * old.dim()
    shape[dim] = -1
    owner, _, name = str(parameter.target).rpartition(".")
    new = (old.double() * factor.view(shape)).to(old.dtype)
    module = model.get_submodule(owner)
    is_parameter = isinstance(getattr(module, name), torch.nn.Parameter)
    setattr(module, name, torch.nn.Parameter(new, requires_grad=False) if is_parameter else new)
