"""Bias correction: what rounding the weights does to the mean of each channel is taken out of the bias."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import GraphModule, Node

from ..calibration.calibrate import ProgressOption, bar
from ..graphs.int8 import IntegerParameter, integer_parameter
from ..graphs.patterns import evaluate
from ..graphs.run import Inputs, OperatorRun, fitting
from ..graphs.weighted import WEIGHTED, channel_axis, channel_vector

MEMORY_LIMIT = 1 << 30


def correct_bias(
    module: GraphModule, reference: GraphModule, batches: Sequence[Inputs], *, progress: ProgressOption = False
) -> list[str]:
    """Takes the mean error of each convolution and linear of a quantized network out of its int32 bias, in place.

    Rounding the weights shifts the mean of each output channel by the mean of (rounded - float weights) * inputs (Nagel
    et al., arXiv 1906.04721, section 4.2). Here the shift is measured: the int8 network runs on `batches`, operator by
    operator, and each layer is computed on the int8 inputs with its float weights, too. What int8 does to the inputs
    stays as it is: how often they are clipped differs from one data set to the next, and no bias shall learn it by
    heart. An operator without bias keeps none.

    Args:
        module: From ``convert_pt2e``.
        reference: Its float twin; equal values have nodes of equal names in both.
        batches: Tuples of the network's inputs. As many are used, spread evenly, as MEMORY_LIMIT bytes of activations
            allow.
        progress: Show a progress bar on a terminal; or a function that is called with (stage, done, total) instead.

    Returns:
        The names of the operators whose bias changed.
    """
    twins = {node.name: node for node in reference.graph.nodes}
    biases = {
        node: bias
        for node in module.graph.nodes
        if node.op == "call_function"
        and node.target in WEIGHTED
        and node.name in twins
        and (bias := integer_parameter(module, node.args[2] if len(node.args) > 2 else None)) is not None
    }
    run = OperatorRun(module, fitting(module, batches, MEMORY_LIMIT))
    changed, left = [], set(biases)
    with bar("correcting biases", len(biases), progress) as advance:
        for node in run if biases else ():
            if node not in left:
                continue
            if match_means(node, biases[node], run, reference, twins[node.name]):
                changed.append(node.name)
            left.remove(node)
            advance()
            if not left:
                break
    return changed


def match_means(node: Node, bias: IntegerParameter, run: OperatorRun, reference: GraphModule, twin: Node) -> bool:
    """Shifts the bias of `node` in its graph, and its output in `run`, so that its channels have the means that the
    float weights of its `twin` give with the same inputs; whether anything changed."""
    outputs = run.values[node]
    axis = channel_axis(node, outputs[0].dim())
    error = torch.zeros(outputs[0].shape[axis], dtype=torch.float64)
    weight, float_bias = (evaluate(reference, each) for each in twin.args[1:3])  # type: ignore[arg-type]
    with torch.no_grad():
        for x, y in zip(run.values[node.args[0]], outputs, strict=True):  # type: ignore[index]
            exact = node.target(x, weight, float_bias, *node.args[3:], **node.kwargs)  # type: ignore[operator]
            error += (y - exact).movedim(axis, 0).reshape(len(error), -1).sum(1, dtype=torch.float64)
    each = outputs[0].numel() // len(error)
    steps = (error / (each * len(outputs)) / bias.scale).round()
    before = bias.stored.double()
    bias.store(before - steps)
    shift = ((bias.stored.double() - before) * bias.scale).to(outputs[0].dtype)
    run.values[node] = [y + channel_vector(shift, y.dim(), axis) for y in outputs]
    return bool(steps.any())
