"""silu computed as hardswish, x * clamp(x + 3, 0, 6) / 6, for networks that shall do without exponentials. (On the DNA
both are a table of 256 entries, at equal cost.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from ..config import QuantConfig
from ..findings import Finding
from ..graphs.capture import twin
from ..graphs.run import Inputs
from .fake import sqnr_db

aten: Any = torch.ops.aten
_NOTABLE_DB = 20.0


def map_silu(model: GraphModule, batches: Sequence[Inputs], config: QuantConfig, progress: Any) -> list[Finding]:
    """Replaces every silu of `model` that no rule is about by hardswish, in place. This changes the function.

    Args:
        model: Exported and recognized.
        batches: Inputs, to measure the change with.

    Returns:
        A finding for each output, with its change: signal to noise ratio and largest difference. A warning below 20
        dB: such a network should be trained on for a few steps.
    """
    silus = (node for node in model.graph.nodes if node.target is aten.silu.default)
    found = [node for node in silus if not config.keeps_apart(node, node)]
    if not found:
        return []
    before = twin(model)
    for node in found:
        node.target = aten.hardswish.default
    model.recompile()
    changes = _changes(before, model, batches)
    findings = []
    for index, (db, largest) in enumerate(changes):
        said = f"{len(found)} silu became hardswish: output {index} changed by {largest:.4g} at most, {db:.1f} dB"
        notable = db < _NOTABLE_DB
        remedy = "train the network on with hardswish, or hardswish=False" if notable else ""
        findings.append(Finding.at(found[-1], "hardswish", "warning" if notable else "note", said, remedy))
    return findings


def _changes(before: GraphModule, after: GraphModule, batches: Sequence[Inputs]) -> list[tuple[float, float]]:
    """Of each float output: (signal to noise ratio over all batches in dB, largest difference)."""
    pairs: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
    with torch.no_grad():
        for inputs in batches:
            rows = zip(*(pytree.tree_leaves(network(*inputs)) for network in (before, after)), strict=True)
            pairs.append([(a, b) for a, b in rows if isinstance(a, torch.Tensor) and a.is_floating_point()])
    return [
        (
            sqnr_db(torch.cat([a.reshape(-1) for a, _ in rows]), torch.cat([b.reshape(-1) for _, b in rows])),
            max(float((a - b).abs().max()) for a, b in rows if a.numel()),
        )
        for rows in zip(*pairs, strict=True)
    ]
