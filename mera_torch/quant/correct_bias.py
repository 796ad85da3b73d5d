"""Bias correction: what rounding does to the mean of each channel is taken out of the bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from . import operators as ops
from .patterns import attribute
from .run import run_by_operator

Inputs = tuple[Any, ...]
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_channel.default


def correct_bias(prepared: GraphModule, batches: Sequence[Inputs]) -> GraphModule:
    """Converts a calibrated module and takes the mean error of each convolution and linear out of its bias.

    Rounding the weights shifts the mean of each output channel (Nagel et al., arXiv 1906.04721, section 4.2). Here the
    shift is measured: float and int8 network run on `batches`, the latter operator by operator, so that each bias also
    makes up for the operators before.

    Args:
        prepared: From ``prepare_pt2e`` with :class:`MeraQuantizer`, calibrated. It is used up, as by ``convert_pt2e``.
        batches: Tuples of the model's inputs; some 8 to 64 images.

    Returns:
        The module that ``convert_pt2e`` gives, with other int32 biases; an operator without bias keeps none.
    """
    wanted: dict[str, torch.Tensor] = {}

    def remember(node: Node, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        if node.target in ops.CONV or node.target in ops.LINEAR:
            wanted[node.name] = _channel_means(node, outputs)
        return outputs

    run_by_operator(prepared, batches, remember)
    converted: GraphModule = convert_pt2e(prepared)

    def correct(node: Node, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        bias = node.args[2] if len(node.args) > 2 else None
        if node.name not in wanted or not isinstance(bias, Node) or bias.target is not _DEQUANTIZE:
            return outputs
        stored, scale = (attribute(converted, str(arg.target)) for arg in bias.args[:2] if isinstance(arg, Node))
        if not isinstance(stored, torch.Tensor) or not isinstance(scale, torch.Tensor):
            return outputs
        steps = ((_channel_means(node, outputs) - wanted[node.name]) / scale).round()
        limit = torch.iinfo(torch.int32).max
        with torch.no_grad():
            stored.copy_((stored.double() - steps).clamp(-limit, limit).to(torch.int32))
        shift = (steps * scale).to(outputs[0].dtype)
        return [y - _per_channel(node, shift) for y in outputs]

    run_by_operator(converted, batches, correct)
    return converted


def _channel_means(node: Node, outputs: list[torch.Tensor]) -> torch.Tensor:
    """float64 [C], the mean of each channel: dimension 1 of a convolution's [N, C, H, W], the last of a linear's [...,
    C]."""
    axis = 1 if node.target in ops.CONV else -1
    by_channel = [y.movedim(axis, 0).reshape(y.shape[axis], -1) for y in outputs]
    sums = torch.stack([y.sum(1, dtype=torch.float64) for y in by_channel]).sum(0)
    return sums / sum(y.shape[1] for y in by_channel)


def _per_channel(node: Node, vector: torch.Tensor) -> torch.Tensor:
    return vector.view(1, -1, 1, 1) if node.target in ops.CONV else vector
