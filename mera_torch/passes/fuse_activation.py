"""A table that only clamps, behind an operator that can clamp its own result, becomes that operator's clamp."""

from __future__ import annotations

import torch
from torch import fx

from ..ops.common import args_of, constant, is_call, kwargs_of, origins
from ..ops.registry import QUANTIZED
from ..ops.table import INDICES, lut


def fuse_activation(gm: fx.GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if not is_call(node, lut):
            continue
        source, table = args_of(node)[0], constant(gm, args_of(node)[1])
        if not isinstance(source, fx.Node) or table is None or source.target not in QUANTIZED:
            continue
        if "clamp" not in kwargs_of(source) or len(source.users) != 1 or source.meta["q"] != node.meta["q"]:
            continue
        low, high = int(table.min()), int(table.max())
        if not torch.equal(table, INDICES.clamp(low, high)):
            continue
        own_low, own_high = kwargs_of(source)["clamp"]
        low, high = (min(max(bound, own_low), own_high) for bound in (low, high))
        source.kwargs = {**kwargs_of(source), "clamp": (low, high)}
        source.meta["origins"] = (*origins(source), *origins(node))
        node.replace_all_uses_with(source)
        gm.graph.erase_node(node)
