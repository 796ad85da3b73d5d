"""A table of a table is one table; a table that changes nothing is none."""

from __future__ import annotations

import torch
from torch import fx

from ..ops.common import add_constant, args_of, call, constant, is_call, origins
from ..ops.table import INDICES, lut


def fuse_tables(gm: fx.GraphModule) -> None:
    """Composes chains of tables and removes identities."""
    for node in list(gm.graph.nodes):
        if not is_call(node, lut):
            continue
        source, table = args_of(node)[0], _table(gm, node)
        if is_call(source, lut):
            inner = _table(gm, source)
            with gm.graph.inserting_before(node):
                held = add_constant(gm, table[inner.long() + 128], "table")
                new = call(gm, node, lut, args_of(source)[0], held)
            new.meta.update(
                q=node.meta["q"], origins=(*origins(node), *(o for o in origins(source) if len(source.users) == 1))
            )
            node.replace_all_uses_with(new)
            gm.graph.erase_node(node)
            node, source, table = new, args_of(new)[0], _table(gm, new)
        if torch.equal(table, INDICES) and isinstance(source, fx.Node) and source.meta.get("q") == node.meta["q"]:
            node.replace_all_uses_with(source)
            gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()


def _table(gm: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    held = constant(gm, args_of(node)[1])
    if held is None:
        raise TypeError(f"{node.name}: the table must be a constant")
    return held
