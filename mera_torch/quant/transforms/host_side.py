"""What int8 need not do to a transformer whose norms and attention run on the host: sums and outputs beside them.

The residual sums stand between norms in float. In int8 they would lose what the outliers of the residual stream leave
over, and gain nothing, since their operands come from the host or go there in any case. And a linear whose result only
the host reads may have a scale for each output channel: its rows are divided by the channels' ranges, and the host
multiplies by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..config import QuantConfig
from ..findings import Finding
from ..graphs import operators as ops
from ..graphs.patterns import KEPT_IN_FLOAT, find_constants
from ..graphs.run import Inputs, run_batch
from . import absorb
from .analysis import as_quantized
from .fake import fake_activation, sqnr_db

_ROWS = 256  # of an output, kept to measure the error with
_LEAST_GAIN_DB = 10.0


def free_sums(model: GraphModule, config: QuantConfig) -> list[Finding]:
    """Keeps in float, by a mark in `model`, the sums that only operators in float (and such sums) read, and of which
    an operand comes from one or is an input. A finding if there are any."""
    found = as_quantized(model, config)[1].found
    in_int8 = {node.name for op in found for node in op.nodes}
    constants = find_constants(model.graph)

    def is_sum(node: Node) -> bool:
        return node.op == "call_function" and node.target is ops.aten.add.Tensor and len(node.all_input_nodes) == 2

    sums = {node for node in model.graph.nodes if is_sum(node) and node.name in in_int8}
    while True:

        def in_float(node: Node, sums: set[Node] = sums) -> bool:
            computed = node.op == "call_function" and node not in constants
            return node in sums or node.op == "placeholder" or (computed and node.name not in in_int8)

        kept = {
            node
            for node in sums
            if all(in_float(user) for user in node.users) and any(map(in_float, node.all_input_nodes))
        }
        if len(kept) == len(sums):
            break
        sums = kept
    # A chain of sums in which no other float operator stands is no residual stream of norms.
    if not any(user.name not in in_int8 for node in sums for user in node.users):
        return []
    for node in sums:
        node.meta[KEPT_IN_FLOAT] = "a sum between operators in float"
    ordered = [node for node in model.graph.nodes if node in sums]
    said = f"{len(ordered)} sums between float operators stay in float"
    return [Finding.at(ordered[0], "smoothquant", "note", said, fixed=True)] if ordered else []


def spread_outputs(model: GraphModule, batches: Sequence[Inputs], config: QuantConfig) -> list[Finding]:
    """Gives the int8 linears whose result only the host reads a scale for each output channel, where that gains 10 dB;
    in place, the function stays. A finding for each."""
    if not config.per_channel_weights:
        return []  # rows of unlike size would need scales of their own
    copy, quantizer = as_quantized(model, config)
    found = quantizer.found
    op_of = {op.nodes[0].name: op for op in found}
    nodes = {node.name: node for node in copy.graph.nodes}
    linears = [
        node
        for node in model.graph.nodes
        if node.op == "call_function" and node.target in ops.LINEAR and node.name in op_of
        and len(op_of[node.name].nodes) == 1 and _host_reads(nodes[node.name], op_of)
    ]  # fmt: skip
    rows: dict[Node, list[torch.Tensor]] = {node: [] for node in linears}

    def observe(node: Node, value: Any) -> None:
        if node in rows:
            flat = value.reshape(-1, value.shape[-1])
            share = max(1, _ROWS // len(batches))
            kept = flat[:: max(1, len(flat) // share)][:share]
            rows[node].append(torch.cat([kept, flat.amax(0, keepdim=True), flat.amin(0, keepdim=True)]))

    for inputs in batches if linears else ():
        run_batch(model, inputs, observe)
    return [finding for node in linears if (finding := _spread(model, node, torch.cat(rows[node]))) is not None]


def _host_reads(node: Node, op_of: dict[str, Any]) -> bool:
    """Whether all who read `node`, past movement, compute in float; and somebody does."""
    for user in node.users:
        op = op_of.get(user.name)
        if user.op == "output" or (op is not None and not (op.moves and _host_reads(user, op_of))):
            return False
    return bool(node.users)


def _spread(model: GraphModule, node: Node, rows: torch.Tensor) -> Finding | None:
    """rows: float32 [n, C], samples of the result with its extremes."""
    largest = rows.abs().amax(0)
    divisor = torch.where(largest > 0, largest, 1.0) / largest.max().clamp_min(1e-30)
    divisor = divisor.clamp_min(1e-3)
    before = sqnr_db(rows, fake_activation(rows))
    after = sqnr_db(rows, fake_activation(rows / divisor) * divisor)
    channels = torch.arange(rows.shape[1])
    changes = absorb.rows_of(node, channels)
    if changes is None or after - before < _LEAST_GAIN_DB:
        return None
    absorb.apply(model, [absorb.Inserted(node, frozenset(node.users), channels)], 1 / divisor)
    absorb.apply(model, changes, divisor)
    said = f"its output channels, {float(1 / divisor.median()):.0f} : 1 (largest : median), have scales of their own"
    return Finding.at(node, "smoothquant", "note", f"{said}: {before:.1f} -> {after:.1f} dB", fixed=True)
