"""Streams: values whose channels are scaled together, from the convolutions that write them to those that read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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
    """Values whose channels must be scaled together.

    Attributes:
        axis: The dimension of the values that is the channels'.
        channels: How many there are in all values together.
        values: Value -> int64 [channels of the value], which of the stream's channels each is. Those of a concat are
            those of what it joins.
        producers: The operators whose outputs are scaled; values, too.
        readers: The operators that undo it; args[0] is a value.
        clamps: Clamp -> its bound.
    """

    axis: int
    channels: int
    values: dict[Node, torch.Tensor]
    producers: list[Node]
    readers: list[Node]
    clamps: dict[Node, float]

    def source(self, reader: Node) -> Node:
        """The value that `reader` reads."""
        return reader.args[0]  # type: ignore[return-value]


class _Channels:
    """Channels of all values; those that must have one factor are one."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def fresh(self, count: int) -> list[int]:
        begin = len(self._parent)
        self._parent += range(begin, begin + count)
        return list(range(begin, begin + count))

    def find(self, channel: int) -> int:
        while self._parent[channel] != channel:
            self._parent[channel] = channel = self._parent[self._parent[channel]]
        return channel

    def union(self, several: Sequence[int], others: Sequence[int]) -> None:
        for a, b in zip(several, others, strict=True):
            self._parent[self.find(b)] = self.find(a)


def find_streams(model: GraphModule) -> list[Stream]:
    channels, axes, broken = _Channels(), dict[Node, int](), set[Node]()
    held: dict[Node, list[int]] = {}
    producers: list[Node] = []
    for node in model.graph.nodes:
        value = value_of(node)
        if node.op != "call_function" or value is None:
            continue
        if _produces(node):
            axes[node] = channel_axis(node, value.dim())
            held[node] = channels.fresh(value.shape[axes[node]])
            producers.append(node)
        elif (sources := _sources(node, axes)) is not None:
            known = [source for source in sources if source in held]
            axes[node] = axes[known[0]]
            if len(known) != len(sources) or len({axes[source] for source in known}) > 1:
                broken.update(known)  # what comes from elsewhere cannot be scaled
                held[node] = channels.fresh(value.shape[axes[node]])
                broken.add(node)
            elif node.target is aten.cat.default:
                held[node] = [c for source in sources for c in held[source]]
            else:
                for source in known[1:]:
                    channels.union(held[known[0]], held[source])
                held[node] = held[known[0]]
    return _streams(model, channels, held, axes, producers, broken)


def _streams(
    model: GraphModule,
    channels: _Channels,
    held: dict[Node, list[int]],
    axes: dict[Node, int],
    producers: list[Node],
    broken: set[Node],
) -> list[Stream]:
    """Values that have channels in common, directly or through others, are one stream."""
    first: dict[int, Node] = {}
    together = _Channels()
    number = {node: i for i, node in enumerate(held)}
    together.fresh(len(held))
    roots = {node: [channels.find(c) for c in own] for node, own in held.items()}
    for node, own in roots.items():
        for channel in own:
            together.union([number[first.setdefault(channel, node)]], [number[node]])
    groups: dict[int, list[Node]] = {}
    for node in held:
        groups.setdefault(together.find(number[node]), []).append(node)
    names = Counter(str(node.target) for node in model.graph.nodes if node.op == "get_attr")
    found = []
    for members in groups.values():
        index = {c: i for i, c in enumerate(dict.fromkeys(c for node in members for c in roots[node]))}
        values = {node: torch.tensor([index[c] for c in roots[node]]) for node in members}
        readers = dict.fromkeys(user for value in members for user in value.users if user not in values)
        clamps = {node: bound for node in members if (bound := _bound(node)) is not None}
        writers = [node for node in producers if node in values]
        stream = Stream(axes[members[0]], len(index), values, writers, list(readers), clamps)
        if broken.isdisjoint(members) and _is_closed(stream, names):
            found.append(stream)
    return found


def _is_closed(stream: Stream, held: Counter[str]) -> bool:
    """Whether factors can be moved from its producers into its readers."""
    if not stream.readers or not all(_reads(r, stream) for r in stream.readers):
        return False
    parameters: list[Any] = [n for p in stream.producers for n in p.args[1:3] if n is not None]
    parameters += [r.args[1] for r in stream.readers]
    return all(
        isinstance(n, Node) and n.op == "get_attr" and len(n.users) == 1 and held[str(n.target)] == 1
        for n in parameters
    )


def _sources(node: Node, axes: dict[Node, int]) -> list[Node] | None:
    """The values whose channels the channels of `node` are, if it keeps them apart and any is known."""
    joins = node.target is aten.cat.default
    given: Any = node.args[0] if joins and node.args else node.args[:2]
    sources = [n for n in given if isinstance(n, Node)]
    known = [n for n in sources if n in axes]
    if not known:
        return None
    if joins:
        dims = dims_of(node)
        return sources if int(argument(node, 1, "dim", 0)) % max(dims, 1) == axes[known[0]] else None  # type: ignore[call-overload]
    if not _keeps_channels(node, axes[known[0]]):
        return None
    if node.target not in _JOINS:
        return known[:1]
    shapes = {value.shape for n in sources if (value := value_of(n)) is not None}
    return sources if len(sources) == 2 and len(shapes) == 1 and node.kwargs.get("alpha", 1) == 1 else None


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
