"""Dividing the channels of a value by factors without an operator for it: by changing the constants that made it.

Walks from the value back through what keeps elements apart (movement, relu, dropout, attention's product with the
values, products with another tensor) to weights and biases: those of a norm, a linear, a product or sum with a
constant. Which factor belongs to which element is followed by tensors of channel numbers, so that any reshape, head
split or packed projection is understood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from ..graphs import operators as ops
from ..graphs.parameters import new_parameter, own_parameter, replace_parameter
from ..graphs.patterns import KEPT_IN_FLOAT, constant_of, find_constants, provenance, value_of

aten: Any = torch.ops.aten

_MOVES = ops.MOVE - ops.NEAREST - {aten.amax.default, aten.amin.default}
_HOMOGENEOUS = frozenset({aten.relu.default, aten.leaky_relu.default})
"""f(x / d) = f(x) / d for d > 0."""
_NORM_WEIGHTS = {aten.layer_norm.default: (2, 3), aten.rms_norm.default: (2,)}
"""Norms over the last dimension: the arguments that scale with the result."""


@dataclass(frozen=True)
class Scaled:
    """Argument `index` of `node` is to be divided: element i of dimension `dim` by the factor of channels[i] (-1:
    none)."""

    node: Node
    index: int
    dim: int
    channels: torch.Tensor


@dataclass(frozen=True)
class Inserted:
    """The last dimension of `node` is to be divided, likewise, on its way to `readers`, in float."""

    node: Node
    readers: frozenset[Node]
    channels: torch.Tensor


Change = Scaled | Inserted


class Absorber:
    """Finds the changes of constants that divide a value's channels.

    Args:
        model: Exported; a value's shape must be known.
        in_float: Whether a value is computed in float, so that a product with factors may be put behind it where its
            constants cannot be changed.
    """

    def __init__(self, model: GraphModule, in_float: Callable[[Node], bool]) -> None:
        self._constants = find_constants(model.graph)
        self._in_float = in_float

    def absorb(self, value: Node, readers: frozenset[Node]) -> list[Change] | None:
        """The changes after which `readers`, and nobody else, see `value` with channel c of its last dimension divided
        by factor c; None if there are none such."""
        held = value_of(value)
        if held is None or held.dim() == 0:
            return None
        return self._absorb(value, torch.arange(held.shape[-1]).expand(held.shape), readers)

    def _absorb(self, node: Node, channels: torch.Tensor, readers: frozenset[Node]) -> list[Change] | None:
        changes = None
        if node.op == "call_function" and self._others_do_not_read(node, channels, readers):
            changes = self._through(node, channels)
        if changes is None and node.op == "call_function" and self._in_float(node):
            rows = _rows(channels)
            changes = [Inserted(node, readers, rows)] if rows is not None else None
        return changes

    def _others_do_not_read(self, node: Node, channels: torch.Tensor, readers: frozenset[Node]) -> bool:
        for user in node.users:
            if user in readers:
                continue
            taken = _positions(user, node)
            if taken is None or bool((channels.reshape(-1)[taken.reshape(-1)] >= 0).any()):
                return False
        return True

    def _through(self, node: Node, channels: torch.Tensor) -> list[Change] | None:
        """The changes that divide the result of `node`, which nobody else reads."""
        if node.target in _NORM_WEIGHTS:
            normalized: Any = node.args[1]
            rows = _rows(channels)
            return _scaled(node, _NORM_WEIGHTS[node.target], rows) if len(normalized) == 1 else None
        if node.target in ops.LINEAR:
            return _scaled(node, (1, 2), _rows(channels))
        if node.target in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor):
            return self._binary(node, channels)
        if node.target in _HOMOGENEOUS:
            return self._onwards(node, 0, channels)
        if node.target in (aten.scaled_dot_product_attention.default, aten.matmul.default, aten.bmm.default):
            return self._product(node, channels)
        if node.target in _MOVES and isinstance(node.args[0], Node):
            return self._movement(node, channels)
        return None

    def _onwards(self, node: Node, index: int, channels: torch.Tensor) -> list[Change] | None:
        """Those that divide argument `index` of `node`, and no other of its arguments."""
        source: Any = node.args[index]
        if sum(each is source for each in tree_leaves((node.args, node.kwargs))) > 1:
            return None
        return self._absorb(source, channels, frozenset({node}))

    def _movement(self, node: Node, channels: torch.Tensor) -> list[Change] | None:
        source: Any = node.args[0]
        held, taken = value_of(source), _positions(node, source)
        if held is None or taken is None:
            return None
        before = torch.full((held.numel(),), -1)
        before[taken.reshape(-1)] = channels.reshape(-1)
        if not torch.equal(before[taken.reshape(-1)], channels.reshape(-1)):
            return None  # an element that is shown twice, as different channels
        return self._onwards(node, 0, before.view(held.shape))

    def _binary(self, node: Node, channels: torch.Tensor) -> list[Change] | None:
        a, b = node.args[:2]
        if not isinstance(a, Node) or not isinstance(b, Node) or node.kwargs:
            return None
        product = node.target is aten.mul.Tensor
        constant = 0 if a in self._constants else 1 if b in self._constants else None
        if constant is not None:
            rows = _rows(channels)
            own = _scaled(node, (constant,), rows)
            if product or own is None:
                return own
            other = self._of_shape(node, 1 - constant, channels)
            return None if other is None else own + other
        if product:
            return self._of_shape(node, 0, channels) or self._of_shape(node, 1, channels)
        first, second = self._of_shape(node, 0, channels), self._of_shape(node, 1, channels)
        return None if first is None or second is None else first + second

    def _of_shape(self, node: Node, index: int, channels: torch.Tensor) -> list[Change] | None:
        held = value_of(node.args[index])  # type: ignore[arg-type]
        return self._onwards(node, index, channels) if held is not None and held.shape == channels.shape else None

    def _product(self, node: Node, channels: torch.Tensor) -> list[Change] | None:
        """Rows of the right operand's columns are summed up: its columns are the result's."""
        index = 2 if node.target is aten.scaled_dot_product_attention.default else 1
        source = node.args[index] if len(node.args) > index else None
        held = value_of(source) if isinstance(source, Node) and source not in self._constants else None
        if held is None or held.dim() != channels.dim() or held.shape[:-2] != channels.shape[:-2]:
            return None
        first = channels[..., :1, :]
        if held.shape[-1] != channels.shape[-1] or not bool((channels == first).all()):
            return None
        return self._onwards(node, index, first.expand(held.shape))


def apply(model: GraphModule, changes: list[Change], factors: torch.Tensor) -> None:
    """Divides by `factors` (float, above 0, one a channel) what `changes` say."""
    for change in changes:
        divisor = torch.where(change.channels < 0, 1.0, factors.double()[change.channels.clamp_min(0)])
        if isinstance(change, Inserted):
            _insert(model, change, 1 / divisor)
            continue
        parameter = own_parameter(model, change.node, change.index)
        held = constant_of(model, parameter)
        shape = [1] * max(held.dim(), 1)
        shape[change.dim] = -1
        replace_parameter(model, parameter, (held.double() / divisor.view(shape)).to(held.dtype))


def rows_of(linear: Node, channels: torch.Tensor) -> list[Change] | None:
    """The changes that divide the outputs of a linear; channels: int64 [Co]."""
    return _scaled(linear, (1, 2), channels)


def _insert(model: GraphModule, change: Inserted, factors: torch.Tensor) -> None:
    node, result = change.node, value_of(change.node)
    dtype = torch.float32 if result is None else result.dtype
    with model.graph.inserting_after(node):
        constant = new_parameter(model, f"{node.name}_smoothing", factors.to(dtype))
    with model.graph.inserting_after(constant):
        product = model.graph.call_function(aten.mul.Tensor, (node, constant))
    product.meta = {
        **provenance(node), "val": result, KEPT_IN_FLOAT: "beside the float operator whose result it smooths",
    }  # fmt: skip
    for reader in change.readers:
        reader.replace_input_with(node, product)


def _scaled(node: Node, indices: tuple[int, ...], rows: torch.Tensor | None) -> list[Change] | None:
    """The change of those of the arguments `indices` that are there; None unless the first is, and all are constant
    parameters."""
    if rows is None:
        return None
    found: list[Change] = []
    for index in indices:
        parameter = node.args[index] if len(node.args) > index else None
        if parameter is None and found:
            continue
        if not isinstance(parameter, Node) or parameter.op != "get_attr":
            return None
        found.append(Scaled(node, index, 0 if node.target in ops.LINEAR else -1, rows))
    return found


def _rows(channels: torch.Tensor) -> torch.Tensor | None:
    """int64 [C], the channels of the last dimension, if they are the same everywhere else."""
    rows = channels.reshape(-1, channels.shape[-1])
    return rows[0].clone() if bool((rows == rows[0]).all()) else None


def _positions(node: Node, source: Node) -> torch.Tensor | None:
    """Which elements of `source`, counted in order, a movement takes where; None for any other operator."""
    held = value_of(source)
    if node.op != "call_function" or node.target not in _MOVES or held is None or node.args[0] is not source:
        return None
    if len(node.all_input_nodes) != 1:
        return None
    function: Any = node.target
    result: torch.Tensor = function(torch.arange(held.numel()).view(held.shape), *node.args[1:], **node.kwargs)
    return result
