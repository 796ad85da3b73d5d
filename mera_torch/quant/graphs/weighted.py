"""Convolutions and linears of every kind in one form: groups, output channels, input channels, taps."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from . import operators as ops
from .patterns import argument

aten: Any = torch.ops.aten

WEIGHTED = ops.CONV | ops.CONV_1D | ops.CONV_TRANSPOSED | ops.LINEAR


def is_transposed(node: Node) -> bool:
    """Whether `node` is a transposed convolution: its weight is [Cin, Cout / groups, *taps]."""
    return node.target in ops.CONV_TRANSPOSED or (node.target is aten.convolution.default and bool(node.args[6]))


def groups_of(node: Node) -> int:
    if node.target in ops.LINEAR:
        return 1
    found: Any = argument(node, 8 if node.target is aten.convolution.default else 6, "groups", 1)
    return int(found)


def channel_axis(node: Node, dims: int) -> int:
    """The dimension of a convolution's [N, C, ...] (or [C, ...]), batch norm's [N, C, ...] or linear's [..., C]
    input or output that is the channels'."""
    if node.target in ops.LINEAR:
        return dims - 1
    if node.target in ops.BATCH_NORM:
        return 1
    if node.target is aten.convolution.default:
        return dims - 1 - len(node.args[3])  # type: ignore[arg-type]
    return dims - (2 if node.target in ops.CONV_1D or node.target is aten.conv_transpose1d.default else 3)


def to_blocks(node: Node, weight: torch.Tensor) -> torch.Tensor:
    """The weight of `node` as [groups, outputs of a group, inputs of a group, taps]; a linear has one tap."""
    groups = groups_of(node)
    if is_transposed(node):
        inputs, outputs = weight.shape[0] // groups, weight.shape[1]
        return weight.reshape(groups, inputs, outputs, -1).transpose(1, 2)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def from_blocks(node: Node, blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The inverse of `to_blocks`: a weight of `shape`."""
    return (blocks.transpose(1, 2) if is_transposed(node) else blocks).reshape(shape)


def channel_vector(vector: torch.Tensor, dims: int, axis: int) -> torch.Tensor:
    """`vector` [C] in a shape that broadcasts along dimension `axis` of a tensor of `dims` dimensions."""
    shape = [1] * dims
    shape[axis] = -1
    return vector.view(shape)
