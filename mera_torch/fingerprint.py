"""Hashes of a captured model: of its graph, without the weights, and of the weights. The same model gives the same
hashes in every process."""

from __future__ import annotations

import hashlib

import torch
from torch import fx


def graph_hash(gm: fx.GraphModule) -> str:
    """sha256 over every node: name, operator, arguments, and the dtype and shape of its result."""
    digest = hashlib.sha256()
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        kind = f"{value.dtype}{list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        digest.update(f"{node.op} {node.name} {node.target} {node.args} {node.kwargs} {kind}\n".encode())
    return digest.hexdigest()


def weights_hash(gm: fx.GraphModule) -> str:
    """sha256 over every tensor that a node names: name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    names = sorted({str(node.target) for node in gm.graph.nodes if node.op == "get_attr"})
    for name in names:
        held = fx.graph_module._get_attr(gm, name)
        digest.update(f"{name} {held.dtype}{list(held.shape)}\n".encode())
        flat = held.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()
