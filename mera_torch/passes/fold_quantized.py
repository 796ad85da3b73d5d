"""dq -> operator -> [clamp] -> q becomes one quantized node that carries scales and zero points; a function of one
tensor, element by element, becomes a table. What cannot is left in float, with the constraint that it breaks in
node.meta["mera_reason"]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from ..ops.common import QUANTIZE, QParams, Unfit, args_of, aten, excluded, is_call, op_name, origins, single_use
from ..ops.elementwise import is_int8_binary
from ..ops.registry import FOLDS, Fold
from ..ops.table import cone, fold_table
from .sink_dequantize import clamp_bounds


def fold_quantized(gm: fx.GraphModule) -> None:
    """Folds every quantize node whose producer the DNA has."""
    for node in list(gm.graph.nodes):
        if not is_call(node, QUANTIZE) or not isinstance(args_of(node)[0], fx.Node):
            continue
        core, activations = _core(args_of(node)[0])
        try:
            with gm.graph.inserting_before(node):
                new = _fold(gm, node, core, activations)
        except Unfit as reason:
            core.meta.setdefault("mera_reason", str(reason))
            continue
        new.meta["q"] = QParams(float(args_of(node)[1]), int(args_of(node)[2]))
        node.replace_all_uses_with(new)
        _erase(gm, node)


def _erase(gm: fx.GraphModule, node: fx.Node) -> None:
    """Erases a node and what only it read."""
    stack = [node]
    while stack:
        dead = stack.pop()
        if dead.users or dead.op != "call_function" or dead.graph is not gm.graph or dead._erased:
            continue
        sources = dead.all_input_nodes
        gm.graph.erase_node(dead)
        stack.extend(sources)


def _core(node: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """The operator behind clamps, and these in order of execution."""
    activations: list[fx.Node] = []
    while is_call(node, aten.clamp.default) and isinstance(args_of(node)[0], fx.Node):
        activations.insert(0, node)
        node = args_of(node)[0]
    return node, tuple(activations)


def _fold(gm: fx.GraphModule, quantize: fx.Node, core: fx.Node, activations: tuple[fx.Node, ...]) -> fx.Node:
    _, scale, zero_point, low, high, dtype = args_of(quantize)
    if dtype is not torch.int8:
        raise Unfit(f"its result must be quantized to int8, got {dtype}")
    _check_not_excluded(gm, (core, *activations))
    y = QParams(float(scale), int(zero_point))
    bounds = clamp_bounds(activations, y, (int(low), int(high)))
    fold = Fold(gm, quantize, core, activations, y, bounds)
    unary = None if is_int8_binary(core) else cone(gm, args_of(quantize)[0])
    if unary is not None:
        _check_not_excluded(gm, unary.nodes)
        new = fold_table(fold, unary)
        if unary.nodes:
            new.meta["origins"] = tuple(o for n in reversed(unary.nodes) for o in origins(n))
        return new
    if core.op != "call_function":
        raise Unfit("it is an input or a constant in float")
    if core.target not in FOLDS:
        raise Unfit(f"{op_name(core.target)} has no DNA operator")
    for node in (core, *activations):
        single_use(users=len(node.users))
    return FOLDS[core.target](fold)


def _check_not_excluded(gm: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
    for node in nodes:
        reason = excluded(gm, node)
        if reason:
            raise Unfit(reason)
