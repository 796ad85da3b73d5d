"""Bias correction: what rounding does to the mean of each channel is taken out of the bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..calibration.calibrate import ProgressOption, bar
from ..graphs.int8 import IntegerParameter, integer_parameter
from ..graphs.run import OperatorRun, fitting
from ..graphs.weighted import WEIGHTED, channel_axis, channel_vector

Inputs = tuple[Any, ...]

MEMORY_LIMIT = 1 << 30


def correct_bias(
    module: GraphModule, reference: GraphModule, batches: Sequence[Inputs], *, progress: ProgressOption = False
) -> list[str]:
    """Takes the mean error of each convolution and linear of a quantized network out of its int32 bias, in place.

    Rounding the weights shifts the mean of each output channel (Nagel et al., arXiv 1906.04721, section 4.2). Here the
    shift is measured: float and int8 network run on `batches`, operator by operator, so that each bias also makes up
    for the operators before. An operator without bias keeps none.

    Args:
        module: From ``convert_pt2e``.
        reference: Its float twin; equal values have nodes of equal names in both.
        batches: Tuples of the network's inputs. As many are used, spread evenly, as MEMORY_LIMIT bytes of activations
            allow.
        progress: Show a progress bar on a terminal; or a function that is called with (stage, done, total) instead.

    Returns:
        The names of the operators whose bias changed.
    """
    batches = fitting(module, batches, MEMORY_LIMIT // 2)
    twins = {node.name: node for node in reference.graph.nodes}
    biases = {
        node: bias
        for node in module.graph.nodes
        if node.op == "call_function"
        and node.target in WEIGHTED
        and node.name in twins
        and (bias := integer_parameter(module, node.args[2] if len(node.args) > 2 else None)) is not None
    }
    float_run, int8_run = OperatorRun(reference, batches), OperatorRun(module, batches)
    float_nodes = iter(float_run)
    changed, left = [], set(biases)
    with bar("correcting biases", len(biases), progress) as advance:
        for node in int8_run if biases else ():
            if node not in left:
                continue
            while next(float_nodes) is not twins[node.name]:
                pass
            if match_means(node, biases[node], int8_run, float_run.values[twins[node.name]]):
                changed.append(node.name)
            left.remove(node)
            advance()
            if not left:
                break
    return changed


def match_means(node: Node, bias: IntegerParameter, run: OperatorRun, targets: list[torch.Tensor]) -> bool:
    """Shifts the bias of `node` in its graph, and its output in `run`, so that its channels have the means of
    `targets`; whether anything changed."""
    outputs = run.values[node]
    axis = channel_axis(node, outputs[0].dim())
    error = torch.stack([_channel_sums(y - t, axis) for y, t in zip(outputs, targets, strict=True)])
    each = outputs[0].numel() // outputs[0].shape[axis]
    steps = (_usual_mean(error) / each / bias.scale).round()
    before = bias.stored.double()
    bias.store(before - steps)
    shift = ((bias.stored.double() - before) * bias.scale).to(outputs[0].dtype)
    run.values[node] = [y + channel_vector(shift, y.dim(), axis) for y in outputs]
    return bool(steps.any())


def _channel_sums(x: torch.Tensor, axis: int) -> torch.Tensor:
    return x.movedim(axis, 0).reshape(x.shape[axis], -1).sum(1, dtype=torch.float64)


def _usual_mean(errors: torch.Tensor) -> torch.Tensor:
    """The mean over batches [B, C] -> [C], without the tenth of them at either end: what a single odd image clips, no
    bias shall make up for."""
    odd = len(errors) // 10
    return errors.sort(0).values[odd : len(errors) - odd].mean(0)
