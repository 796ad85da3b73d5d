"""One operator for what other formats spell as several: so networks from all front ends are quantized alike.

x * sigmoid(x) is silu; clamp(x + 3, 0, 6) / 6 is hardsigmoid, x times it hardswish; zeros padded before a convolution,
and the lowest numbers before a max pool, are its own padding; a pad before a permute stands behind it. Calibration
must not depend on the format either: float sums are rounded alike only in one memory layout and by one kernel, so what
is permuted is made contiguous, and global average pooling is a mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from . import operators as ops
from .patterns import Apart, argument, attribute, is_float32, never, new_call, pair, value_of

aten: Any = torch.ops.aten

LOWEST = -1e30
"""What is padded before a max pool may be any number so low that no activation reaches it."""
_ADD = frozenset({aten.add.Tensor, aten.add.Scalar})
_MUL = frozenset({aten.mul.Tensor, aten.mul.Scalar})
_DIV = frozenset({aten.div.Tensor, aten.div.Scalar})


def recognize(model: GraphModule, apart: Apart = never) -> None:
    """Rewrites `model` in place; every rewrite computes the same function, up to float rounding. No operator vanishes
    of which `apart` says so."""
    for node in list(model.graph.nodes):
        if node.op == "get_attr":
            _contiguous_constant(model, str(node.target))
        if node.op != "call_function" or not node.users or not is_float32(node):
            continue
        for rule in RULES:
            if rule(model, node, apart):
                break
    model.graph.eliminate_dead_code()
    model.recompile()


# ---- activations ----


def _activation(model: GraphModule, node: Node, apart: Apart) -> bool:
    for target, spelled in _ACTIVATIONS.items():
        x = spelled(model, node)
        if x is not None and not any(apart(each, node) for each in _computed_of(x, node)):
            return _becomes(model, node, target, x)
    return False


def _computed_of(x: Node, result: Node) -> set[Node]:
    """The operators from `x` (without it) to `result`."""
    found, left = set(), [result]
    while left:
        node = left.pop()
        if node is not x and node.op == "call_function":
            found.add(node)
            left += node.all_input_nodes
    return found


def _silu(model: GraphModule, node: Node) -> Node | None:
    """x of x * sigmoid(x)."""
    if node.target not in _MUL:
        return None
    for x, gate in _either_way(node):
        if isinstance(x, Node) and _is_call(gate, aten.sigmoid.default) and gate.args[0] is x:
            return x
    return None


def _hardswish(model: GraphModule, node: Node) -> Node | None:
    """x of x * hardsigmoid(x), or (x * clamp(x + 3, 0, 6)) / 6."""
    if node.target in _MUL:
        for x, gate in _either_way(node):
            if isinstance(x, Node) and _is_call(gate, aten.hardsigmoid.default) and gate.args[0] is x:
                return x
    product = _sixth(model, node)
    if product is None or product.target not in _MUL:
        return None
    for x, gate in _either_way(product):
        if isinstance(x, Node) and _six_above(model, gate) is x:
            return x
    return None


def _hardsigmoid(model: GraphModule, node: Node) -> Node | None:
    """x of clamp(x + 3, 0, 6) / 6."""
    return _six_above(model, _sixth(model, node))


_ACTIVATIONS: dict[Any, Callable[[GraphModule, Node], Node | None]] = {
    aten.silu.default: _silu, aten.hardswish.default: _hardswish, aten.hardsigmoid.default: _hardsigmoid,
}  # fmt: skip


def _sixth(model: GraphModule, node: Any) -> Node | None:
    """x of x / 6 or x * (1 / 6)."""
    if node.target in _DIV and node.kwargs.get("rounding_mode") is None and _near(_number(model, node.args[1]), 6.0):
        return node.args[0] if isinstance(node.args[0], Node) else None
    if node.target in _MUL:
        for x, factor in _either_way(node):
            if isinstance(x, Node) and _near(_number(model, factor), 1 / 6):
                return x
    return None


def _six_above(model: GraphModule, node: Any) -> Node | None:
    """x of clamp(x + 3, 0, 6)."""
    if not isinstance(node, Node) or node.target not in ops.CLAMP:
        return None
    bounds = {
        aten.relu6.default: (0.0, 6.0),
        aten.hardtanh.default: (argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)),
        aten.clamp.default: (argument(node, 1, "min"), argument(node, 2, "max")),
    }.get(node.target)
    total = node.args[0]
    if bounds != (0, 6) or not isinstance(total, Node) or total.target not in _ADD or total.kwargs.get("alpha", 1) != 1:
        return None
    for x, three in _either_way(total):
        if isinstance(x, Node) and _number(model, three) == 3:
            return x
    return None


# ---- padding ----


def _pad_behind_permute(model: GraphModule, node: Node, apart: Apart) -> bool:
    """permute(pad(x)) = pad(permute(x)), where nothing else reads the padded value."""
    pad = node.args[0] if node.target is aten.permute.default else None
    if not isinstance(pad, Node) or not _is_pad(pad) or len(pad.users) != 1 or not isinstance(pad.args[0], Node):
        return False
    if apart(pad, node):
        return False
    dims: Any = node.args[1]
    rank = len(dims)
    pads: Any = [*_pads(pad), *[0] * (2 * rank)][: 2 * rank]  # the last dimension's first
    moved = [pads[2 * (rank - 1 - dims[rank - 1 - i] % rank) + side] for i in range(rank) for side in (0, 1)]
    while len(moved) > 2 and moved[-2:] == [0, 0]:
        moved = moved[:-2]
    with model.graph.inserting_before(node):
        permuted = new_call(model, node, aten.permute.default, pad.args[0], dims)
    return _becomes(model, node, aten.constant_pad_nd.default, permuted, moved, _fill(pad))


def _pad_of_convolution(model: GraphModule, node: Node, apart: Apart) -> bool:
    if node.target not in (aten.conv2d.default, aten.convolution.default):
        return False
    if node.target is aten.convolution.default and node.args[6]:
        return False
    return _absorb_pad(node, 4, lambda fill: fill == 0, apart)


def _pad_of_max_pool(model: GraphModule, node: Node, apart: Apart) -> bool:
    if node.target is not aten.max_pool2d.default or argument(node, 5, "ceil_mode", False):
        return False
    (h, w), own = pair(node.args[1]), pair(argument(node, 3, "padding", 0))
    pads = _own_padding(node)
    if pads is None or pads[0] + own[0] > h // 2 or pads[1] + own[1] > w // 2:
        return False
    return _absorb_pad(node, 3, lambda fill: fill <= LOWEST, apart)


def _absorb_pad(node: Node, index: int, fits: Callable[[float], bool], apart: Apart) -> bool:
    """The pad before `node` is added to its own padding, argument `index`."""
    pads, pad = _own_padding(node), node.args[0]
    if pads is None or not isinstance(pad, Node) or not fits(_fill(pad)) or node.kwargs or apart(pad, node):
        return False
    defaults: list[Any] = [None, None, None, [1, 1], [0, 0]] if index == 4 else [None, None, [], [0, 0]]
    args = [*node.args, *defaults[len(node.args) :]]
    own = pair(args[index])
    args[0], args[index] = pad.args[0], [own[0] + pads[0], own[1] + pads[1]]
    node.args = tuple(args)
    return True


def _own_padding(node: Node) -> tuple[int, int] | None:
    """(rows, columns) of a pad before `node` that is the same on both sides and of no other dimension."""
    pad = node.args[0]
    if not isinstance(pad, Node) or not _is_pad(pad) or not isinstance(pad.args[0], Node):
        return None
    left, right, top, bottom, *others = [*_pads(pad), 0, 0, 0, 0]
    fits = left == right >= 0 and top == bottom >= 0 and not any(others)
    return (top, left) if fits else None


def _is_pad(node: Node) -> bool:
    if node.target is aten.pad.default:
        return argument(node, 2, "mode", "constant") == "constant"
    return node.target is aten.constant_pad_nd.default


def _pads(node: Node) -> list[int]:
    pads: Any = node.args[1]
    return [int(p) for p in pads]


def _fill(node: Node) -> float:
    value: Any = argument(node, 3, "value") if node.target is aten.pad.default else argument(node, 2, "value", 0)
    return float(value or 0)


# ---- rounding ----


def _contiguous(model: GraphModule, node: Node, apart: Apart) -> bool:
    result = value_of(node)
    if node.target is not aten.permute.default or result is None or result.dim() != 4:
        return False
    if any(user.target is aten.clone.default for user in node.users):
        return False
    users = list(node.users)
    with model.graph.inserting_after(node):
        copy = new_call(model, node, aten.clone.default, node, memory_format=torch.contiguous_format)
    for user in users:
        user.replace_input_with(node, copy)
    return True


def _contiguous_constant(model: GraphModule, path: str) -> None:
    held = attribute(model, path)
    if not isinstance(held, torch.Tensor) or held.is_contiguous():
        return
    *owners, name = path.split(".")
    owner: Any = attribute(model, ".".join(owners)) if owners else model
    copy = held.detach().contiguous()
    is_parameter = isinstance(held, torch.nn.Parameter)
    setattr(owner, name, torch.nn.Parameter(copy, requires_grad=held.requires_grad) if is_parameter else copy)


def _global_average(model: GraphModule, node: Node, apart: Apart) -> bool:
    result = value_of(node)
    if node.target not in ops.ADAPTIVE_AVG_POOL or result is None or tuple(result.shape[2:]) != (1, 1):
        return False
    node.target, node.args, node.kwargs = aten.mean.dim, (node.args[0], [2, 3], True), {}
    return True


# ---- helpers ----


def _either_way(node: Node) -> list[tuple[Any, Any]]:
    """The two operands, in both orders."""
    a, b = node.args[:2]
    return [(a, b), (b, a)]


def _is_call(node: Any, target: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target is target


def _number(model: GraphModule, value: Any) -> float | None:
    """A number, or the one element of a constant."""
    if isinstance(value, Node):
        if value.op != "get_attr":
            return None
        held = attribute(model, str(value.target))
        if not isinstance(held, torch.Tensor) or held.numel() != 1:
            return None
        return float(held)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _near(value: float | None, wanted: float) -> bool:
    return value is not None and math.isclose(value, wanted, rel_tol=1e-6)


def _becomes(model: GraphModule, node: Node, target: Any, *args: Any) -> bool:
    x, result = value_of(args[0]), value_of(node)
    if target is not aten.constant_pad_nd.default and (x is None or result is None or x.shape != result.shape):
        return False  # a broadcast constant
    node.target, node.args, node.kwargs = target, args, {}
    return True


RULES: tuple[Callable[[GraphModule, Node, Apart], bool], ...] = (
    _activation, _pad_behind_permute, _pad_of_convolution, _pad_of_max_pool, _contiguous, _global_average,
)  # fmt: skip
