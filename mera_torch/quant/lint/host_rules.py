"""Rules about operators that stay in float, on the host: what they cost, and what int8 before them does to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from mera_torch.ops.common import op_name

from ..findings import Finding, some
from ..graphs import operators as ops
from ..transforms.analysis import Analysis

if TYPE_CHECKING:
    from .linter import Context

aten: Any = torch.ops.aten

_DENOMINATORS = {aten.div.Tensor: 1, aten.reciprocal.default: 0, aten.rsqrt.default: 0}
_LOGARITHMS = frozenset({aten.log.default, aten.log2.default, aten.log10.default})
_EXPONENTIALS = frozenset({aten.exp.default, aten.expm1.default, aten.exp2.default})
_OVERFLOW = 80.0  # exp(88.7) is float32's largest number
_ADVICE = {
    "div": "multiply by the reciprocal where the divisor is a constant",
    "layer_norm": "it runs in float on the host; batch norm, where it does as well, costs nothing",
    "scaled_dot_product_attention": "it runs in float on the host, its linears on the DNA",
    "pow": "write x * x for a square",
}


def nan_prone(context: Context) -> Iterator[Finding]:
    """Operators that give infinity or NaN for what int8 makes of their input: a divisor, or an argument of log or
    rsqrt, that is nearer to 0 than half a step becomes 0; exp of more than 80 overflows soon."""
    analysis = context.analysis
    for node in analysis.model.graph.nodes:
        if node.op != "call_function" or node in analysis.constants:
            continue
        if node.target in _EXPONENTIALS and analysis.of(node.args[0]).high > _OVERFLOW:
            said = f"its argument reaches {analysis.of(node.args[0]).high:.4g}; float32 ends at exp(88.7)"
            yield Finding.at(node, "nan-prone", "warning", said, "clamp its argument")
        index = 0 if node.target in _LOGARITHMS else _DENOMINATORS.get(node.target)
        value = node.args[index] if index is not None else None
        if not isinstance(value, Node) or value not in analysis.int8_values or value in analysis.constants:
            continue
        low, high = analysis.domain_range(value)
        step, nearest = (high - low) / 255, analysis.of(value).nearest_zero
        if nearest < step / 2:
            said = f"{value.name} comes as near to 0 as {nearest:.3g}: less than half its int8 step of {step:.3g}, so 0"
            remedy = f"clamp {value.name} to at least {step:.2g}, or rules=(Rule(node={value.name!r}, dtype='float'),)"
            yield Finding.at(node, "nan-prone", "error", said, remedy)


def float_islands(context: Context) -> Iterator[Finding]:
    """Operators in float (div, exp, pow, log, layer_norm and others that int8 has no arithmetic for) between int8
    ones. Each crossing ends a region of the DNA's program, and its values go to the host and back."""
    analysis = replace(context.analysis, found=context.remaining)
    islands = _islands(analysis)
    regions = _regions(analysis, frozenset())
    by_operator: dict[str, list[Node]] = {}
    for node in islands:
        by_operator.setdefault(op_name(node.target), []).append(node)
    for name, nodes in by_operator.items():
        short = name.split(".")[1] if name.count(".") else name
        which = some([node.name for node in nodes])
        said = f"{len(nodes)} x {name} in float between int8 operators ({which}); {regions} regions"
        fewer = _regions(analysis, frozenset(nodes))
        if fewer < regions:
            said += f", {fewer} without them"
        yield Finding.at(nodes[0], "float-islands", "note", said, _ADVICE.get(short, "move it to the end of the model"))


def _islands(analysis: Analysis) -> list[Node]:
    """Operators in float that int8 operators come before and behind."""
    order = [n for n in analysis.model.graph.nodes if n.op == "call_function" and n not in analysis.constants]
    before: set[Node] = set()
    for node in order:
        if node in analysis.op_of or not before.isdisjoint(node.all_input_nodes):
            before.add(node)
    behind: set[Node] = set()
    for node in reversed(order):
        if node in analysis.op_of or not behind.isdisjoint(node.users):
            behind.add(node)
    return [
        node
        for node in order
        if node not in analysis.op_of
        and not before.isdisjoint(node.all_input_nodes)
        and not behind.isdisjoint(node.users)
        and node.target not in ops.MOVE
    ]


def _regions(analysis: Analysis, also: frozenset[Node]) -> int:
    """How many regions the DNA's program has; `also`: operators taken for int8 ones. As backend/partition.py counts:
    a region ends where the longest path to a node has left the DNA."""
    phases: dict[Node, int] = {}
    used = set()
    for node in analysis.model.graph.nodes:
        if node.op != "call_function" or node in analysis.constants:
            continue
        inside = node in analysis.op_of or node in also
        sources = [n for n in node.all_input_nodes if n in phases]
        phases[node] = max(
            (phases[n] + ((n in analysis.op_of or n in also) and not inside) for n in sources), default=0
        )
        if inside:
            used.add(phases[node])
    return len(used)


HOST_RULES = (nan_prone, float_islands)
