"""A table of a table is one table; a table that changes nothing is none. An operator on a tensor and a table of the
same tensor (x * sigmoid(x), x + relu(x)) is a table as well."""

from __future__ import annotations

import torch
from torch import fx

from .. import native
from ..errors import MeraError
from ..ops.common import QParams, add_constant, args_of, call, constant, is_call, kwargs_of, origins
from ..ops.elementwise import add, mul, sub
from ..ops.registry import QUANTIZED
from ..ops.table import INDICES, lut


def fuse_tables(gm: fx.GraphModule) -> None:
    """Composes chains of tables and removes identities."""
    for node in list(gm.graph.nodes):
        if is_call(node, add, sub, mul):
            _tabulate(gm, node)
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


def _tabulate(gm: fx.GraphModule, node: fx.Node) -> None:
    """Makes a table of an operator whose operands are one tensor and a table of it, or two tables of it."""
    operands = args_of(node)[:2]
    sources = {args_of(o)[0] if is_call(o, lut) else o for o in operands}
    if len(sources) != 1 or not any(is_call(o, lut) for o in operands):
        return
    levels = [_table(gm, o) if is_call(o, lut) else INDICES for o in operands]
    try:
        table = _on_dna(node, levels)
    except MeraError:  # the DNA has no such operator: lowering says why
        return
    with gm.graph.inserting_before(node):
        new = call(gm, node, lut, sources.pop(), add_constant(gm, table, "table"))
    tables = [o for operand in operands if is_call(operand, lut) and len(operand.users) == 1 for o in origins(operand)]
    new.meta.update(q=node.meta["q"], origins=tuple(dict.fromkeys((*origins(node), *tables))))
    node.replace_all_uses_with(new)
    gm.graph.erase_node(node)


def _on_dna(node: fx.Node, levels: list[torch.Tensor]) -> torch.Tensor:
    """What the DNA's own operator gives for 256 pairs of int8 values: its rounding is not PyTorch's."""
    k = kwargs_of(node)
    graph = native.Graph("table")
    a, b, y = (graph.tensor(name, (1, 1, 1, 256)) for name in "aby")
    for tensor, q in ((a, k["a_q"]), (b, k["b_q"]), (y, k["y_q"])):
        graph.quantize(tensor, *QParams(*q))
    graph.input(a)
    graph.input(b)
    low, high = k["clamp"]
    graph.node(QUANTIZED[node.target], [a, b], y, {"clamp_min": low, "clamp_max": high}, name=node.name)
    graph.output(y)
    (found,) = native.Interpreter(graph.finish()).run([x.numpy().reshape(1, 1, 1, 256) for x in levels])
    return torch.from_numpy(found.reshape(256))


def _table(gm: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    held = constant(gm, args_of(node)[1])
    if held is None:
        raise TypeError(f"{node.name}: the table must be a constant")
    return held
