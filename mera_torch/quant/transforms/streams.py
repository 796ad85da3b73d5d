"""Streams: values whose channels are scaled together, from the convolutions that write them to those that read them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..graphs import operators as ops
from ..graphs.patterns import argument, value_of
from ..graphs.weighted import WEIGHTED, channel_axis

aten: Any = torch.ops.aten

# f(x / d) = f(x) / d for d > 0 of each channel.
_POOLS = ops.MAX_POOL | ops.AVG_POOL | ops.ADAPTIVE_AVG_POOL | ops.NEAREST | ops.BILINEAR
_ELEMENTWISE = ops.PRELU | {
    aten.relu.default, aten.leaky_relu.default, aten.neg.default, aten.abs.default, aten.mul.Scalar, aten.div.Scalar,
    aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default,
}  # fmt: skip
_JOINS = ops.EXTREMA | {aten.add.Tensor, aten.sub.Tensor}


@dataclass
class Stream:
    """Values whose channels must be scaled together; channels are dimension `axis` of each."""

    axis: int
    channels: int
    values: dict[Node, None] = field(default_factory=dict)  # an ordered set
    producers: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)
    clamps: dict[Node, float] = field(default_factory=dict)
    broken: bool = False


def find_streams(model: GraphModule) -> list[Stream]:
    streams: dict[Node, Stream] = {}
    for node in model.graph.nodes:
        if node.op != "call_function":
            continue
        if _produces(node):
            value = value_of(node)
            if value is not None:
                axis = channel_axis(node, value.dim())
                streams[node] = Stream(axis, value.shape[axis], {node: None}, [node])
        elif (joined := _joined(node, streams)) is not None:
            stream, *others = joined
            for other in others:
                _merge(stream, other, streams)
            stream.values[node] = None
            if (bound := _bound(node)) is not None:
                stream.clamps[node] = bound
            streams[node] = stream
    held = Counter(str(node.target) for node in model.graph.nodes if node.op == "get_attr")
    return [s for s in {id(s): s for s in streams.values()}.values() if _close(s, held)]


def _merge(stream: Stream, other: Stream, streams: dict[Node, Stream]) -> None:
    if other is stream:
        return
    stream.values.update(other.values)
    stream.producers += other.producers
    stream.clamps.update(other.clamps)
    stream.broken |= other.broken
    for value in other.values:
        streams[value] = stream


def _close(stream: Stream, held: Counter[str]) -> bool:
    """Finds the stream's readers; whether factors can be moved from its producers into them."""
    stream.readers = [user for value in stream.values for user in value.users if user not in stream.values]
    if stream.broken or not stream.readers or not all(_reads(r, stream) for r in stream.readers):
        return False
    parameters: list[Any] = [n for p in stream.producers for n in p.args[1:3] if n is not None]
    parameters += [r.args[1] for r in stream.readers]
    return all(
        isinstance(n, Node) and n.op == "get_attr" and len(n.users) == 1 and held[str(n.target)] == 1
        for n in parameters
    )


def _joined(node: Node, streams: dict[Node, Stream]) -> list[Stream] | None:
    """The streams of the values that `node` joins to its own, if its output's channels scale as theirs do."""
    sources = [n for n in node.args[:2] if isinstance(n, Node) and n in streams]
    if not sources or not _keeps_channels(node, streams[sources[0]].axis):
        return None
    joined = [streams[n] for n in sources]
    if node.target in _JOINS:
        operands = [n for n in node.args[:2] if isinstance(n, Node)]
        shapes = {value.shape for n in operands if (value := value_of(n)) is not None}
        if len(operands) != 2 or len(shapes) != 1 or node.kwargs.get("alpha", 1) != 1:
            return None
        if len(sources) != 2 or joined[0].axis != joined[1].axis:  # what comes from elsewhere cannot be scaled
            joined[0].broken = True
    return joined


def _keeps_channels(node: Node, axis: int) -> bool:
    x, y = value_of(node.args[0]) if isinstance(node.args[0], Node) else None, value_of(node)
    if x is None or y is None or axis >= y.dim() or y.shape[axis] != x.shape[axis]:
        return False
    if node.target in _ELEMENTWISE:
        return node.target not in ops.PRELU or axis == 1
    if node.target in _POOLS:
        return x.dim() == 4 and axis == 1
    if node.target in ops.MEAN:
        dims = argument(node, 1, "dim")
        return isinstance(dims, (list, tuple)) and all(int(d) % x.dim() > axis for d in dims)
    if node.target in ops.PAD:
        pads: Any = argument(node, 1, "pad")
        return not _fill(node) and _pad_mode(node) == "constant" and axis < x.dim() - len(pads) // 2
    if node.target in (aten.flatten.using_ints, aten.reshape.default, aten.view.default, aten.squeeze.dims):
        return axis == 1 and y.dim() == 2 and tuple(y.shape) == tuple(x.shape[:2]) and x.shape[2:].numel() == 1
    if node.target in (aten.mul.Tensor, aten.div.Tensor):
        return isinstance(node.args[1], (int, float)) and node.kwargs.get("rounding_mode") is None
    return node.target in _JOINS or _bound(node) is not None


def _bound(node: Node) -> float | None:
    """b of a clamp from 0 to b > 0."""
    if node.target is aten.relu6.default:
        return 6.0
    if node.target is aten.hardtanh.default:
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    elif node.target is aten.clamp.default:
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
    else:
        return None
    return float(high) if low == 0 and isinstance(high, (int, float)) and high > 0 else None


def _fill(node: Node) -> float:
    value: Any = argument(node, 3 if node.target is aten.pad.default else 2, "value", 0)
    return float(value or 0)


def _pad_mode(node: Node) -> object:
    return argument(node, 2, "mode", "constant") if node.target is aten.pad.default else "constant"


def _produces(node: Node) -> bool:
    if node.target in ops.BATCH_NORM:
        return all(isinstance(n, Node) for n in node.args[1:3]) and node.target is aten.batch_norm.default
    return node.target in WEIGHTED and not any(u.target in ops.BATCH_NORM for u in node.users)


def _reads(node: Node, stream: Stream) -> bool:
    return (
        node.target in WEIGHTED
        and node.args[0] in stream.values
        and node.args[1] not in stream.values
        and channel_axis(node, dims_of(node.args[0])) == stream.axis
    )


def dims_of(node: Any) -> int:
    value = value_of(node)
    return value.dim() if value is not None else 0
