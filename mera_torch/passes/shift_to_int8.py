"""uint8 values that carry quantized numbers become int8, under zero points 128 lower: the DNA computes in int8 alone.

What makes such a value (a quantize, a table, movement of one) makes the int8 one in its place, and what reads it reads
that. Where the model itself takes or gives uint8, the host flips the highest bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..ops.common import DEQUANTIZE, QUANTIZE, add_constant, args_of, aten, call, constant, excluded, is_call, target_of
from ..ops.movement import MOVED
from ..ops.table import CASTS, LOOKUPS, looked_up


def shift_to_int8(gm: fx.GraphModule) -> None:
    """Rewrites every uint8 value that stands for a real number or indexes a table."""
    shifted: dict[fx.Node, fx.Node] = {}  # uint8 node -> its values less 128, as int8
    for node in list(gm.graph.nodes):
        if _is_uint8(node) and (is_call(node, QUANTIZE) or _read_as_number(node)):
            with gm.graph.inserting_after(node):
                shifted[node] = _shift(gm, node, shifted)
    for node, twin in shifted.items():
        for user in list(node.users):
            _read_twin(gm, user, node, twin)
    for node in reversed(shifted):
        if shifted[node].target is not aten._to_copy.default:  # that reads the uint8 itself
            _unshift(gm, node, shifted[node])
    gm.graph.eliminate_dead_code()


def _is_uint8(node: fx.Node) -> bool:
    val = node.meta.get("val")
    return node.op in ("placeholder", "call_function") and isinstance(val, torch.Tensor) and val.dtype is torch.uint8


def _read_as_number(node: fx.Node) -> bool:
    """Whether a dequantize or a table reads the value, perhaps after movement."""
    seen, stack = {node}, [node]
    while stack:
        for user in stack.pop().users:
            if is_call(user, DEQUANTIZE) or _is_index(user):
                return True
            if is_call(user, *MOVED) and user not in seen:
                seen.add(user)
                stack.append(user)
    return False


def _is_index(node: fx.Node) -> bool:
    """A cast of which a table is read."""
    if not is_call(node, *CASTS) or node.meta["val"].dtype not in (torch.int32, torch.int64):
        return False
    return any(is_call(user, *LOOKUPS) for user in node.users)


def _shift(gm: fx.GraphModule, node: fx.Node, shifted: dict[fx.Node, fx.Node]) -> fx.Node:
    """The int8 value, made as the uint8 one is if that is possible, else from it."""
    val = node.meta["val"].to(torch.int8)
    if is_call(node, QUANTIZE):
        source, scale, zero_point, low, high, _ = args_of(node)
        return call(gm, node, QUANTIZE, source, scale, zero_point - 128, low - 128, high - 128, torch.int8, val=val)
    if is_call(node, *MOVED) and not excluded(gm, node):
        first, *rest = args_of(node)
        sources = list(first) if isinstance(first, list | tuple) else [first]
        if all(source in shifted for source in sources):
            if is_call(node, aten.constant_pad_nd.default):
                rest = [rest[0], (rest[1] if len(rest) > 1 else 0) - 128]
            moved = [shifted[source] for source in sources]
            return call(
                gm, node, target_of(node), moved if isinstance(first, list | tuple) else moved[0], *rest, val=val
            )
    if node.op == "call_function" and looked_up(gm, node) is not None:
        table = constant(gm, args_of(node)[0])
        if table is not None:
            held = add_constant(gm, (table.to(torch.int16) - 128).to(torch.int8), "table")
            with gm.graph.inserting_after(held):
                return call(gm, node, target_of(node), held, *args_of(node)[1:], val=val)
    flipped = call(gm, node, aten.bitwise_xor.Scalar, node, 128)
    with gm.graph.inserting_after(flipped):
        return call(gm, node, aten._to_copy.default, flipped, val=val, dtype=torch.int8)


def _read_twin(gm: fx.GraphModule, user: fx.Node, node: fx.Node, twin: fx.Node) -> None:
    if is_call(user, DEQUANTIZE):
        _, scale, zero_point, low, high, dtype, *rest = args_of(user)
        if dtype is torch.uint8:
            user.args = (twin, scale, zero_point - 128, low - 128, high - 128, torch.int8, *rest)
    elif _is_index(user):
        with gm.graph.inserting_before(user):
            wide = call(gm, user, target_of(user), twin, *args_of(user)[1:], **user.kwargs)
            index = call(gm, user, aten.add.Tensor, wide, 128, val=user.meta["val"])
        user.replace_all_uses_with(index)


def _unshift(gm: fx.GraphModule, node: fx.Node, twin: fx.Node) -> None:
    """What else reads the uint8 value gets it from the int8 one."""
    if not node.users:
        gm.graph.erase_node(node)
        return
    with gm.graph.inserting_after(twin):
        cast: Any = call(gm, node, aten._to_copy.default, twin, val=node.meta["val"], dtype=torch.uint8)
    with gm.graph.inserting_after(cast):
        flipped = call(gm, node, aten.bitwise_xor.Scalar, cast, 128)
    node.replace_all_uses_with(flipped)
    gm.graph.erase_node(node)
