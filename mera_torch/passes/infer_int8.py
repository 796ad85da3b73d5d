"""Finds out what the model does on int8 values by itself: tables that it spells out become tables, and int8 values that
only move get the quantization of what they come from or go to."""

from __future__ import annotations

import torch
from torch import fx

from ..ops.common import (
    DEQUANTIZE,
    QUANTIZE,
    Operand,
    QParams,
    Unfit,
    add_constant,
    args_of,
    call,
    excluded,
    is_call,
)
from ..ops.movement import MOVED
from ..ops.table import INDICES, UNKNOWN, cone, evaluate_cone, is_pointwise, looked_up, lut


def infer_int8(gm: fx.GraphModule) -> None:
    """Int8 in, int8 out: tables and movement, each with its quantization."""
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and _is_int8(node) and node.target not in MOVED:
            _tabulate(gm, node)
    infer_quantization(gm)
    gm.graph.eliminate_dead_code()


def _is_int8(node: fx.Node) -> bool:
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and val.dtype is torch.int8


# ---- tables ----


def _tabulate(gm: fx.GraphModule, node: fx.Node) -> None:
    """A function of one int8 tensor, element by element, computed in integers, is a table."""
    if not is_pointwise(node.target) and looked_up(gm, node) is None:
        return

    def leaf(inner: fx.Node) -> Operand | None:
        return Operand(inner, UNKNOWN) if inner is not node and _is_int8(inner) and inner.op != "get_attr" else None

    found = cone(gm, node, leaf)
    if found is None:
        return
    reason = next((r for n in found.nodes if (r := excluded(gm, n))), "")
    if reason:
        node.meta["mera_reason"] = reason
        return
    try:
        table = evaluate_cone(gm, found, INDICES)(node)
    except Unfit as why:
        node.meta["mera_reason"] = str(why)
        return
    with gm.graph.inserting_before(node):
        held = add_constant(gm, table.contiguous(), "table")
        new = call(gm, node, lut, found.source.node, held)
    node.replace_all_uses_with(new)
    gm.graph.erase_node(node)


# ---- quantization ----


class _Groups:
    """Int8 values of one quantization."""

    def __init__(self) -> None:
        self.parent: dict[fx.Node, fx.Node] = {}

    def find(self, node: fx.Node) -> fx.Node:
        while (above := self.parent.get(node, node)) is not node:
            self.parent[node] = self.parent.get(above, above)
            node = above
        return node

    def join(self, a: fx.Node, b: fx.Node) -> None:
        self.parent[self.find(a)] = self.find(b)


def infer_quantization(gm: fx.GraphModule) -> None:
    """meta["q"] of every int8 value that is quantized, dequantized or looked up, or moves to or from such a one.

    Where int8 values are read under another quantization than they were made with, a table that changes nothing but the
    quantization goes between.
    """
    values = [node for node in gm.graph.nodes if _is_int8(node) and node.op != "get_attr"]
    groups = _Groups()
    for node in values:
        if is_call(node, *MOVED):
            for source in node.all_input_nodes:
                groups.join(source, node)
    known: dict[fx.Node, QParams] = {}
    for node in values:
        if is_call(node, QUANTIZE):
            known.setdefault(groups.find(node), _stated(node))
    for node in values:
        for reader in node.users:
            if is_call(reader, DEQUANTIZE):
                known.setdefault(groups.find(node), _stated(reader))
    for node in values:
        tables = [user for user in node.users if is_call(user, lut)]
        if is_call(node, lut) or tables:
            known.setdefault(groups.find(node), UNKNOWN)
    for node in values:
        q = known.get(groups.find(node))
        if q is not None:
            node.meta["q"] = q
            _reinterpret(gm, node, q)


def _stated(node: fx.Node) -> QParams:
    """The quantization that a quantize or dequantize states."""
    return QParams(float(args_of(node)[1]), int(args_of(node)[2]))


def _reinterpret(gm: fx.GraphModule, node: fx.Node, q: QParams) -> None:
    if is_call(node, QUANTIZE) and _stated(node) != q:
        readers, made = list(node.users), _stated(node)
        new = _renamed(gm, node, q)
        for reader in readers:
            reader.replace_input_with(node, new)
        new.meta["q"], node.meta["q"] = q, made
        node = new
    for reader in list(node.users):
        if is_call(reader, DEQUANTIZE) and _stated(reader) != q:
            new = _renamed(gm, node, _stated(reader))
            reader.replace_input_with(node, new)


def _renamed(gm: fx.GraphModule, node: fx.Node, q: QParams) -> fx.Node:
    """The same int8 values under quantization q."""
    with gm.graph.inserting_after(node):
        held = add_constant(gm, INDICES.clone(), "table")
    with gm.graph.inserting_after(held):
        new = call(gm, node, lut, node, held)
    new.meta["q"] = q
    return new
