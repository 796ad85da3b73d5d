"""A region of quantized FX nodes, written as a DNA graph through mera_torch.native.

Each family of operators says in mera_torch/ops how its nodes are lowered; this class holds the graph under construction
and gives every tensor in the shape in which an operator wants it, without moving bytes where the layout allows it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import fx

from .. import native
from ..errors import InvalidModelError, UnsupportedError
from ..ops.common import QParams, Rejected, args_of, constant, kwargs_of, origins, shape
from ..ops.registry import LOWERINGS
from .forms import IMAGE, Form, Groups, Shape4, form_of, form_of_input, spread
from .layout import Axes, Layout, moves


@dataclass(frozen=True)
class Value:
    """A tensor of the DNA graph."""

    tensor: int
    form: Form
    q: QParams


@dataclass(frozen=True)
class Border:
    """An input or output of a region: which FX node, and how it lies in memory."""

    node: fx.Node
    form: Form
    q: QParams
    tensor: int


class Lowering:
    """Builds the DNA graph of one region.

    inputs: the int8 FX nodes outside that the region reads; nodes: its nodes in order; outputs: those read outside.
    """

    def __init__(self, name: str, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.graph = native.Graph(name)
        self.values: dict[fx.Node, Value] = {}
        self.inputs: list[Border] = []
        self.outputs: list[Border] = []
        self.counts = {"transpose": 0, "permutation": 0, "reshape": 0}
        self._node: fx.Node | None = None
        self._forms: dict[tuple[int, Axes, Shape4], Value] = {}
        self._names: dict[str, int] = {}
        self._owners: dict[str, fx.Node] = {}  # of the DNA nodes, by name
        self._shape_of: dict[int, Shape4] = {}

    def run(self, inputs: Sequence[fx.Node], nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> list[Rejected]:
        """Builds the graph; gives the nodes that cannot go to the DNA, without which it must be built anew."""
        try:
            for node in inputs:
                self._input(node, nodes)
            for node in nodes:
                self._node = node
                LOWERINGS[node.target](self, node)
            given = {border.tensor for border in self.inputs}
            idle = [node for node in outputs if self.values[node].tensor in given]
            if idle:
                return [Rejected(node, "it only rearranges an input, which the host does in passing") for node in idle]
            for node in outputs:
                value = self.values[node]
                if value.tensor not in {border.tensor for border in self.outputs}:
                    self.graph.output(value.tensor)
                self.outputs.append(Border(node, value.form, value.q, value.tensor))
            self._finish()
        except Rejected as rejection:
            return [rejection]
        return []

    def _finish(self) -> None:
        """The core's own check of the graph; what it refuses, of a node that it names, is left to the host."""
        try:
            self.graph.finish()
        except (InvalidModelError, UnsupportedError) as error:
            message = str(error)
            named = [name for name in self._owners if f'"{name}"' in message]
            if not named:
                raise
            raise Rejected(self._owners[max(named, key=len)], _sentence(message)) from error

    # ---- what the lowering rules of mera_torch.ops read ----

    def constant(self, node: Any) -> torch.Tensor:
        held = constant(self.gm, node)
        if held is None:
            self.reject(self._current, f"{node} must be a constant")
        return held

    def image(self, node: Any) -> int:
        """The tensor as NHWC; node: [N,C,H,W]."""
        return self.read(node, IMAGE).tensor

    def any(self, node: Any) -> tuple[int, Form]:
        """The tensor in whatever form it has."""
        value = self.values[node]
        return value.tensor, value.form

    def clamp(self, node: fx.Node) -> dict[str, int]:
        low, high = kwargs_of(node)["clamp"]
        return {"clamp_min": low, "clamp_max": high}

    def weight(self, node: fx.Node, weight: torch.Tensor) -> list[int]:
        """The constants of a convolution: weight OHWI int8, and the node's bias and scales (args 2 and 3)."""
        name = origins(node)[0].name
        w = self.graph.constant(self._unique(f"{name}.weight"), weight.numpy())
        scale = self.constant(args_of(node)[3])
        self.graph.quantize(w, scale.numpy(), torch.zeros(scale.shape, dtype=torch.int32).numpy())
        bias = self.constant(args_of(node)[2]).reshape(1, 1, 1, -1).contiguous()
        return [w, self.graph.constant(self._unique(f"{name}.bias"), bias.numpy())]

    def table(self, table: torch.Tensor, name: str, kind: str = "table") -> int:
        return self.graph.constant(self._unique(f"{name}.{kind}"), table.reshape(1, 1, 1, -1).contiguous().numpy())

    def rows(self, node: Any) -> tuple[int, Form, list[int], list[int]]:
        """The tensor as rows of its last dimension: (tensor, form, sizes, order).

        The last dimension may consist of several storage axes: `sizes` of these in PyTorch's order, and `order`, which
        of them comes first, second, ... in memory.
        """
        value = self.values[node]
        last, rank = value.form.layout.dims[-1], len(value.form.layout.dims)
        total = len(value.form.layout.sizes)
        lead = [a for a in range(total) if a not in last]
        if lead != list(range(len(lead))):
            value = self._reorder(value, (*lead, *sorted(last)))
            last = value.form.layout.dims[-1]
        layout = value.form.layout
        sizes = [layout.sizes[a] for a in last]
        order = sorted(range(len(last)), key=lambda i: last[i])
        depth = layout.extent(last)
        rest = math.prod(layout.sizes) // depth
        batch = layout.dims[0] if rank > 1 else ()
        first = layout.extent(batch) if batch == tuple(range(len(batch))) else 1
        middle = [layout.dims[d] for d in range(1, rank - 1)]
        if rank == 4 and [*batch, *middle[0], *middle[1]] == list(range(len(lead))):
            shape4 = (first, layout.extent(middle[0]), layout.extent(middle[1]), depth)
        else:
            shape4 = (first, 1, rest // first, depth)
        value = self._shaped(value, shape4)
        return value.tensor, value.form, sizes, order

    def reduction(self, node: Any, reduced: Sequence[int]) -> tuple[int, Layout]:
        """The tensor with the reduced dimensions as H and W: (tensor, layout of what is kept, keeping dims empty)."""
        value = self.values[node]
        layout = value.form.layout
        gone = {a for d in reduced for a in layout.dims[d]}
        first = min(gone, default=len(layout.sizes))
        before = [a for a in range(len(layout.sizes)) if a < first]
        after = [a for a in range(len(layout.sizes)) if a > first and a not in gone]
        if not gone and layout.sizes:  # only dimensions of size 1 are reduced: the last axis plays the channels
            before, after = before[:-1], before[-1:]
        order = (*before, *sorted(gone), *after)
        value = self._reorder(value, order)
        height = layout.sizes[first] if gone else 1
        width = math.prod(layout.sizes[a] for a in gone) // height
        n, c = (math.prod(layout.sizes[a] for a in part) for part in (before, after))
        value = self._shaped(value, (n, height, width, c))
        position = {axis: i for i, axis in enumerate([*before, *after])}
        dims = tuple(tuple(position[a] for a in axes if a not in gone) for axes in layout.dims)
        return value.tensor, Layout(tuple(layout.sizes[a] for a in [*before, *after]), dims)

    def dimension_last(self, node: Any, dim: int) -> tuple[int, Form]:
        """The tensor with PyTorch's dimension dim as the channels: (tensor, form)."""
        value = self.values[node]
        axes = value.form.layout.dims[dim]
        lead = [a for a in range(len(value.form.layout.sizes)) if a not in axes]
        value = self._reorder(value, (*lead, *sorted(axes)))
        depth = value.form.layout.extent(value.form.layout.dims[dim])
        if value.form.shape[3] != depth:
            value = self._shaped(value, (1, math.prod(value.form.shape) // depth, 1, depth))
        return value.tensor, value.form

    def by_dimension(
        self, node: Any, result: tuple[int, ...], only: int | None = None
    ) -> tuple[int, dict[int, int], Form]:
        """The tensor with each PyTorch dimension (or at least `only`) in a DNA dimension of its own: (tensor, DNA
        dimension of each, form of a result of shape `result` in the same order)."""
        needed = [d for d, size in enumerate(result) if size != 1]
        groups = self._groups(node, needed) if only is None else self._around(node, only, needed)
        value = self.read(node, groups)
        axes = {d: axis for axis, group in enumerate(groups) for d in group}
        return value.tensor, axes, form_of(result, groups)

    def joined(self, nodes: Sequence[Any], dim: int, result: tuple[int, ...]) -> tuple[list[int], Form, int]:
        """Inputs of a concatenation in one order: (tensors, form of the result, DNA dimension of dim)."""
        lead = next((n for n in nodes if n in self.values), None)
        if lead is None:
            self.reject(self._current, "all inputs of cat are constants")
        groups = self._around(lead, dim, [d for d, size in enumerate(result) if size != 1])
        axis = next(i for i, group in enumerate(groups) if dim in group)
        q = self._current.meta["q"]
        return [self.read(node, groups, q).tensor for node in nodes], form_of(result, groups), axis

    def broadcast(self, a: Any, a_q: Any, b: Any, b_q: Any, result: tuple[int, ...]) -> tuple[int, int, Form]:
        """Both operands of an elementwise operator in one order: (tensor a, tensor b, form of the result)."""
        rank = len(result)
        whole = a if shape(a) == result and a in self.values else b
        if whole not in self.values:
            self.reject(self._current, "the operand that is not broadcast must not be a constant")
        other = b if whole is a else a
        v, w = self.values[whole], self.values.get(other)
        if w is not None and v.form.layout == w.form.layout:
            w = self._shaped(w, v.form.shape)
            pair = {whole: v.tensor, other: w.tensor}
            return pair[a], pair[b], v.form
        groups = self._groups(whole, [])
        v = self.read(whole, groups)
        small = self.read(other, groups, QParams(*(b_q if whole is a else a_q)), rank).tensor
        pair = {whole: v.tensor, other: small}
        return pair[a], pair[b], v.form

    # ---- what they emit ----

    def emit_image(self, node: fx.Node, op: str, inputs: list[int], attrs: dict[str, int]) -> None:
        """An operator with a result [N,C,H,W] in PyTorch, NHWC here."""
        self.emit_like(node, op, inputs, attrs, form_of(shape(node), IMAGE))

    def emit_rows(
        self, node: fx.Node, op: str, inputs: list[int], attrs: dict[str, int], form: Form, outputs: int
    ) -> None:
        """A result like `form`, with `outputs` in the last dimension."""
        last = form.layout.dims[-1]
        lead = len(form.layout.sizes) - len(last)
        sizes = form.layout.sizes[:lead] + ((outputs,) if outputs != 1 else ())
        dims = (*form.layout.dims[:-1], (lead,) if outputs != 1 else ())
        self.emit_like(node, op, inputs, attrs, Form((*form.shape[:3], outputs), Layout(sizes, dims)))

    def emit_reduced(
        self, node: fx.Node, op: str, inputs: list[int], attrs: dict[str, int], kept: Layout, keepdim: bool,
        reduced: Sequence[int],
    ) -> None:  # fmt: skip
        """A result [N,1,1,C] for `kept` of reduction()."""
        n, _, _, c = self._shape_of[inputs[0]]
        dims = kept.dims if keepdim else tuple(axes for d, axes in enumerate(kept.dims) if d not in set(reduced))
        self.emit_like(node, op, inputs, attrs, Form((n, 1, 1, c), Layout(kept.sizes, dims)))

    def emit_like(self, node: fx.Node, op: str, inputs: list[int], attrs: dict[str, int], form: Form) -> None:
        q = QParams(*node.meta["q"])
        self.values[node] = Value(self._emit(op, inputs, form.shape, q, attrs, self._name(node)), form, q)

    def alias(self, node: fx.Node, source: Any) -> None:
        self.values[node] = self.values[source]

    def reshape(self, node: fx.Node, source: Any, result: tuple[int, ...]) -> None:
        value = self.values[source]
        layout = value.form.layout.reshaped(result)
        if layout is None:  # the elements must first stand in PyTorch's order
            order = tuple(a for axes in value.form.layout.dims for a in axes)
            value = self._reorder(value, order)
            layout = Layout.of(result)
        self.values[node] = replace(value, form=Form(value.form.shape, layout))

    def permute(self, node: fx.Node, source: Any, order: Any) -> None:
        value = self.values[source]
        self.values[node] = replace(value, form=Form(value.form.shape, value.form.layout.permuted(tuple(order))))

    def take(self, node: fx.Node, source: Any, dim: int, index: torch.Tensor) -> None:
        """The elements `index` (int64 [K]) of dimension dim: a resize of the rows or columns that it plays."""
        value = self.values[source]
        axes = value.form.layout.dims[dim]
        if axes and list(axes) != list(range(axes[0], axes[0] + len(axes))):
            lead = [a for a in range(len(value.form.layout.sizes)) if a not in axes]
            value = self._reorder(value, (*axes, *lead))
            axes = value.form.layout.dims[dim]
        layout, count = value.form.layout, index.numel()
        begin, end = (axes[0], axes[-1] + 1) if axes else (0, 0)
        before, extent, after = (math.prod(layout.sizes[i:j]) for i, j in ((0, begin), (begin, end), (end, None)))
        new = (count,) if count != 1 else ()
        sizes = (*layout.sizes[:begin], *new, *layout.sizes[end:])
        moved = {a: a - (end - begin) + len(new) for a in range(end, len(layout.sizes))}
        dims = [tuple(moved.get(a, a) for a in d) for d in layout.dims]
        dims[dim] = (begin,) if new else ()
        table, every = index.reshape(-1).to(torch.int32), torch.arange(before, dtype=torch.int32)
        images = before == 1
        given: Shape4 = (1, extent, 1, after) if images else (1, before, extent, after)
        result: Shape4 = (1, count, 1, after) if images else (1, before, count, after)
        rows, columns = (table, every) if images else (every, table)
        inputs = [self._shaped(value, given).tensor]
        inputs += [self.table(rows, node.name, "rows"), self.table(columns, node.name, "columns")]
        self.emit_like(node, "resize_nearest", inputs, {}, Form(result, Layout(sizes, tuple(dims))))

    def reject(self, node: fx.Node, reason: str) -> NoReturn:
        raise Rejected(node, reason)

    # ---- forms ----

    def read(self, node: Any, groups: Groups, q: QParams | None = None, rank: int | None = None) -> Value:
        """A tensor, or a constant of quantization q, with its dimensions grouped and ordered as `groups` says; rank:
        the rank to which dimensions of size 1 in front are added."""
        if node not in self.values:
            return self._constant(node, groups, q, rank)
        value = self.values[node]
        layout = value.form.layout
        if rank is not None and rank > len(layout.dims):
            layout = Layout(layout.sizes, ((),) * (rank - len(layout.dims)) + layout.dims)
            value = replace(value, form=Form(value.form.shape, layout))
        order = tuple(a for group in groups for d in group for a in layout.dims[d])
        value = self._reorder(value, order)
        layout = value.form.layout
        extents = [math.prod(layout.extent(layout.dims[d]) for d in group) for group in groups]
        return self._shaped(value, (extents[0], extents[1], extents[2], extents[3]))

    def _constant(self, node: Any, groups: Groups, q: QParams | None, rank: int | None) -> Value:
        held = self.constant(node)
        if rank is not None:
            held = held.reshape((1,) * (rank - held.dim()) + tuple(held.shape))
        order = [d for group in groups for d in group]
        order = [d for d in range(held.dim()) if d not in order] + order
        extents = [math.prod(held.shape[d] for d in group) for group in groups]
        shape4 = (extents[0], extents[1], extents[2], extents[3])
        data = held.permute(order).reshape(shape4).contiguous()
        tensor = self.graph.constant(self._name(node), data.numpy())
        if q is None:
            self.reject(self._current, f"the constant {node} has no quantization")
        self.graph.quantize(tensor, q.scale, q.zero_point)
        return Value(tensor, Form(shape4, Layout.of(tuple(held.shape), tuple(order))), q)

    def _groups(self, node: Any, needed: Sequence[int]) -> Groups:
        """Each PyTorch dimension in a DNA dimension of its own, in the order of memory if possible; those in `needed`
        and all of size above 1 are there."""
        layout = self.values[node].form.layout
        rank = len(layout.dims)
        dims = [d for d in range(rank) if rank <= 4 or layout.dims[d] or d in set(needed)]
        if len(dims) > 4:
            self.reject(self._current, f"at most 4 dimensions may be larger than 1, got {list(layout.shape)}")
        fast = layout.fast_dims()
        for order in ([0, 2, 3, 1] if rank == 4 else dims, dims):
            if fast is not None and [d for d in order if d in fast] == list(fast):
                break
        else:
            if fast is None:
                order = [0, 2, 3, 1] if rank == 4 else dims
            else:
                order = [d for d in dims if d not in fast] + list(fast)
        return spread(order)

    def _around(self, node: Any, dim: int, needed: Sequence[int]) -> Groups:
        """_groups(), or if there are too many dimensions: `dim` in one of its own between those before and behind."""
        layout = self.values[node].form.layout
        present = [d for d in range(len(layout.dims)) if layout.dims[d] or d in set(needed)]
        if len(present) <= 4:
            return self._groups(node, needed)
        others = [d for d in present if d != dim and layout.dims[d]]
        fast = layout.fast_dims()
        order = others if fast is None else [d for d in fast if d != dim]
        if layout.dims[dim] and fast is not None:
            at = fast.index(dim)
        else:  # behind the dimension that it may merge with
            before = [d for d in others if d < dim]
            at = order.index(before[-1]) + 1 if before else 0
        missing = [d for d in present if d != dim and d not in order]
        return (*missing, *order[:at]), (), (dim,), tuple(order[at:])

    def shape_of(self, tensor: int) -> Shape4:
        """The DNA shape of a tensor."""
        return self._shape_of[tensor]

    def _reorder(self, value: Value, order: Axes) -> Value:
        """Storage axes brought into `order`: nothing, or an exchange of two blocks, as often as it takes."""
        key = (value.tensor, order, (0, 0, 0, 0))
        if order == tuple(range(len(order))):
            return value
        if key in self._forms:
            return replace(self._forms[key], form=Form(self._forms[key].form.shape, value.form.layout.reordered(order)))
        layout = value.form.layout
        sizes, current = list(layout.sizes), value
        for begin, middle, end in moves(order):
            a, b, c, d = (math.prod(sizes[i:j]) for i, j in ((0, begin), (begin, middle), (middle, end), (end, None)))
            sizes[begin:end] = sizes[middle:end] + sizes[begin:middle]
            exchange = self._convolved if cheaper_as_convolution(a, b, c, d) else self._transposed
            current = replace(exchange(current, (a, b, c, d)), form=Form((a, c, b, d), layout))
        current = replace(current, form=Form(current.form.shape, layout.reordered(order)))
        self._forms[key] = current
        return current

    def _transposed(self, value: Value, blocks: Shape4) -> Value:
        """The second and third of four blocks of storage axes exchanged."""
        a, b, c, d = blocks
        value = self._shaped(value, blocks)
        attrs = {"perm_0": 0, "perm_1": 2, "perm_2": 1, "perm_3": 3}
        tensor = self._emit("transpose", [value.tensor], (a, c, b, d), value.q, attrs, self._name(None, "transpose"))
        self.counts["transpose"] += 1
        return replace(value, tensor=tensor)

    def _convolved(self, value: Value, blocks: Shape4) -> Value:
        """The same by a 1x1 convolution whose weight is a permutation matrix: at scale 1 each sum is one element."""
        a, b, c, d = blocks
        channels = b * c * d
        value = self._shaped(value, (1, a, 1, channels))
        source = torch.arange(channels).reshape(b, c, d).transpose(0, 1).flatten()
        weight = torch.zeros(channels, 1, 1, channels, dtype=torch.int8)
        weight[torch.arange(channels), 0, 0, source] = 1
        name = self._name(None, "permutation")
        w = self.graph.constant(self._unique(f"{name}.weight"), weight.numpy())
        self.graph.quantize(w, 1.0)
        bias = torch.zeros(1, 1, 1, channels, dtype=torch.int32)
        constants = [w, self.graph.constant(self._unique(f"{name}.bias"), bias.numpy())]
        shape4 = (1, a, 1, channels)
        moved = self._emit("conv2d", [value.tensor, *constants], shape4, value.q, {}, name)
        self.counts["permutation"] += 1
        return self._shaped(Value(moved, Form(shape4, value.form.layout), value.q), (a, c, b, d))

    def _shaped(self, value: Value, shape4: Shape4) -> Value:
        """The same bytes under another DNA shape."""
        if value.form.shape == shape4:
            return value
        key = (value.tensor, (), shape4)
        if key not in self._forms:
            tensor = self._emit("reshape", [value.tensor], shape4, value.q, {}, self._name(None, "reshape"))
            self.counts["reshape"] += 1
            self._forms[key] = Value(tensor, Form(shape4, value.form.layout), value.q)
        return Value(self._forms[key].tensor, Form(shape4, value.form.layout), value.q)

    # ---- the graph ----

    def _input(self, node: fx.Node, nodes: Sequence[fx.Node]) -> None:
        form = form_of_input(node, set(nodes))
        q = QParams(*node.meta["q"])
        tensor = self._tensor(self._name(node), form.shape, q)
        self.graph.input(tensor)
        self.values[node] = Value(tensor, form, q)
        self.inputs.append(Border(node, form, q, tensor))

    def _tensor(self, name: str, shape4: Shape4, q: QParams) -> int:
        tensor: int = self.graph.tensor(name, shape4)
        self.graph.quantize(tensor, q.scale, q.zero_point)
        self._shape_of[tensor] = shape4
        return tensor

    def _emit(self, op: str, inputs: list[int], shape4: Shape4, q: QParams, attrs: dict[str, int], name: str) -> int:
        where = origins(self._current)[0]
        try:
            tensor = self._tensor(name, shape4, q)
            self.graph.node(op, inputs, tensor, attrs, name=name, layer=where.module, source=where.source)
            self._owners[name] = self._current
        except (UnsupportedError, InvalidModelError) as error:
            raise Rejected(self._current, _sentence(str(error))) from error
        return tensor

    @property
    def _current(self) -> fx.Node:
        if self._node is None:
            raise InvalidModelError("lowering has not begun")
        return self._node

    def _name(self, node: fx.Node | None, kind: str = "") -> str:
        """That of the captured operator, made unique in the graph."""
        base = (node.name if node.op != "call_function" else origins(node)[0].name) if node is not None else ""
        return self._unique(base or f"{origins(self._current)[0].name}.{kind}")

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, -1) + 1
        return name if count == 0 else f"{name}.{count}"


LANES, BYTES_A_CYCLE = 32, 60
"""Of the smallest machine, for what is cheaper: array width, and what DRAM brings."""


def cheaper_as_convolution(a: int, b: int, c: int, d: int) -> bool:
    """Whether a convolution exchanges blocks b and c of [a, b, c, d] sooner than a transpose, which moves one run of d
    bytes a cycle: that is so for channel shuffles."""
    channels = b * c * d
    return a * (-(-channels // LANES)) ** 2 + channels**2 // BYTES_A_CYCLE < a * b * c


def _sentence(message: str) -> str:
    """The core's message without the operator, name, layer and source that it begins with."""
    found = re.match(r'\w+ "[^"]*"(?: in layer \S+)?(?: \(.*?\))?: (.*)', message, re.DOTALL)
    return found[1] if found else message
