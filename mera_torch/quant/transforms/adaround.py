"""Rounding of weights by what it does to each layer's output, rather than to the nearest integer.

As in AdaRound (Nagel et al., arXiv 2004.10568) the squared error of each layer's output over the calibration data is
minimized, layer by layer, between the rounded and the float weights, both with the int8 network's inputs. (Section 3.3
goes on to take the float network's outputs for the target; then weights learn by heart what was clipped in the few
calibration data.) For one output channel with weights s q, float weights w and inputs x it is a quadratic form in the
integers q, so that it can be minimized as it stands, without relaxation or learning rate: coordinate descent moves one
integer of every output channel at a time to where the error is least, given the others, until nothing moves. Each move
lowers the error, hence the result is never worse than nearest rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from ..calibration.calibrate import ProgressOption, bar
from ..graphs import operators as ops
from ..graphs.int8 import IntegerParameter, integer_parameter, refresh
from ..graphs.patterns import argument, constant_of, for_each_dim
from ..graphs.run import Inputs, OperatorRun, fitting
from ..graphs.weighted import WEIGHTED, channel_axis, from_blocks, groups_of, is_transposed, to_blocks
from .correct_bias import match_means

aten: Any = torch.ops.aten

SWEEPS = 20
DAMPING = 4.0
MEMORY_LIMIT = 1 << 30
_BLOCK = 64
_MULTIPLICATIONS = 2e10  # that the second moments of one layer may cost; beyond it a sample of positions is taken
_TOLERANCE = 1e-4  # a sweep that lowers the error by less is the last one


@dataclass(frozen=True)
class RoundedLayer:
    """What was done to one layer.

    Attributes:
        node: Its name in the graph.
        nearest: Mean squared error that weights rounded to nearest make of its output, relative to the output's
            variance.
        rounded: The same with the weights it has now; never above `nearest`.
        moved: How many of its weights changed.
        weights: How many it has.
    """

    node: str
    nearest: float
    rounded: float
    moved: int
    weights: int


def adaround(
    module: GraphModule,
    reference: GraphModule,
    batches: Sequence[Inputs],
    *,
    sweeps: int = SWEEPS,
    progress: ProgressOption = False,
    seed: int = 0,
) -> list[RoundedLayer]:
    """Chooses the integers of every convolution's and linear's int8 weight anew, in place, and its int32 bias.

    Layers are taken in the order of the graph, each with the inputs that the layers before it, already rounded anew,
    give. Every integer stays within 1 of the nearest. Biases are corrected as ``correct_bias`` does; a layer without
    bias keeps none. Scales stay as they are. So do layers with more weights an output channel than `batches` have
    positions, whose weights could be fitted to anything.

    Args:
        module: Converted (``convert_pt2e``) network.
        reference: Its float twin; equal values have nodes of equal names in both.
        batches: Tuples of the network's inputs. As many are used, spread evenly, as MEMORY_LIMIT bytes of activations
            allow.
        sweeps: How often every integer is looked at, at most.
        progress: Show a progress bar on a terminal; or a function that is called with (stage, done, total) instead.
        seed: Of the sample of positions of a large layer.

    Returns:
        One entry for each layer that was rounded anew.
    """
    batches = fitting(module, batches, MEMORY_LIMIT)
    twins = {node.name: node for node in reference.graph.nodes}
    layers = {
        node: weight
        for node in module.graph.nodes
        if node.op == "call_function"
        and node.target in WEIGHTED
        and node.name in twins
        and _is_held(twins[node.name].args[1])
        and (weight := integer_parameter(module, node.args[1])) is not None
    }
    run = OperatorRun(module, batches)
    generator = torch.Generator().manual_seed(seed)
    report: list[RoundedLayer] = []
    with bar("rounding weights", len(layers), progress) as advance:
        for node in run if layers else ():
            if node not in layers:
                continue
            weight = layers.pop(node)
            if _positions(node, run.values[node]) >= to_blocks(node, weight.stored)[0, 0].numel():
                exact = constant_of(reference, twins[node.name].args[1])
                report.append(_round_layer(node, weight, exact, run, sweeps, generator))
            if (bias := _bias_of(module, node)) is not None:
                match_means(node, bias, run, reference, twins[node.name])
            advance()
            if not layers:
                break
    return report


def _is_held(weight: object) -> bool:
    """Whether the float weight is a parameter or buffer, not computed from one."""
    return isinstance(weight, Node) and weight.op == "get_attr"


def _bias_of(module: GraphModule, node: Node) -> IntegerParameter | None:
    return integer_parameter(module, node.args[2] if len(node.args) > 2 else None)


def _positions(node: Node, outputs: list[torch.Tensor]) -> int:
    """How many results each output channel has, over all batches."""
    return sum(y.numel() for y in outputs) // outputs[0].shape[channel_axis(node, outputs[0].dim())]


def _round_layer(
    node: Node,
    weight: IntegerParameter,
    float_weight: torch.Tensor,
    run: OperatorRun,
    sweeps: int,
    generator: torch.Generator,
) -> RoundedLayer:
    centred = _bias_of(run.model, node) is not None
    inputs, outputs = run.values[node.args[0]], run.values[node]  # type: ignore[index]
    moments = _moments(node, inputs, outputs, list(weight.stored.shape[2:]), centred=centred, generator=generator)
    scales, zeros = weight.shaped(weight.scale), weight.shaped(weight.zero_point)
    within = (float_weight / scales).clamp(weight.lowest - zeros, weight.highest - zeros)
    nearest, scale, exact = (
        to_blocks(node, values.expand(weight.stored.shape)).flatten(2).double()
        for values in (weight.stored - zeros, scales, within)
    )
    chosen = _descend(nearest, exact, scale, moments, sweeps)
    signal = max(_power(exact * scale, moments), 1e-30)
    before, after = (_power((steps - exact) * scale, moments) / signal for steps in (nearest, chosen))
    integers = from_blocks(node, chosen.view(to_blocks(node, weight.stored).shape), weight.stored.shape)
    weight.store(integers + zeros)
    refresh(run, weight)
    run.compute(node)
    return RoundedLayer(node.name, before, after, int((chosen != nearest).sum()), weight.stored.numel())


# ---- the error of a layer as a quadratic form ----


@dataclass(frozen=True)
class _Moments:
    """Of a layer with G groups and K inputs times taps: the mean square of its output with weights w [G, R, K] is,
    summed over a group's R outputs, sum(w H w'); H float64 [G, K, K]. count: over how many positions."""

    h: torch.Tensor
    count: int


def _moments(
    node: Node,
    inputs: list[torch.Tensor],
    outputs: list[torch.Tensor],
    taps: list[int],
    *,
    centred: bool,
    generator: torch.Generator,
) -> _Moments:
    """taps: The weight's, of each dimension. centred: about the means, since the bias takes their difference."""
    h = total = torch.zeros((), dtype=torch.float64)
    count = 0
    for x, y in zip(inputs, outputs, strict=True):
        columns = _sampled(_columns(node, x, taps, y.shape), len(inputs), generator)
        h = h + (columns @ columns.transpose(1, 2)).double()
        total = total + columns.double().sum(2)
        count += columns.shape[2]
    h, mean = h / count, total / count
    return _Moments(h - mean[:, :, None] * mean[:, None, :] if centred else h, count)


def _columns(node: Node, x: torch.Tensor, taps: list[int], result: torch.Size) -> torch.Tensor:
    """float32 [groups, inputs of a group * taps, positions]: what the weights of one output channel are multiplied
    with, to give a result of that shape."""
    groups = groups_of(node)
    if node.target in ops.LINEAR:
        return x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
    stride, padding, dilation = _geometry(node, len(taps))
    if x.dim() == len(taps) + 1:  # without a batch
        x, result = x.unsqueeze(0), torch.Size([1, *result])
    if x.dim() == 3:  # a 1-d convolution is one over a height of 1
        x, taps, stride, padding, dilation = x.unsqueeze(2), [1, *taps], [1, *stride], [0, *padding], [1, *dilation]
    if is_transposed(node):
        x = _spread(x, taps, stride, padding, dilation, list(result[2:]) if len(result) == 4 else [1, result[2]])
        padding, stride = [0, 0], [1, 1]
    if all(t == 1 for t in taps) and not any(padding):
        columns = x[:, :, :: stride[0], :: stride[1]].flatten(2)
    else:
        columns = F.unfold(x, tuple(taps), tuple(dilation), tuple(padding), tuple(stride))
    if is_transposed(node):  # a transposed convolution reads its taps backwards
        columns = columns.view(len(x), x.shape[1], -1, columns.shape[2]).flip(2).flatten(1, 2)
    by_group = columns.view(len(x), groups, -1, columns.shape[2])
    return by_group.permute(1, 2, 0, 3).flatten(2)


def _spread(
    x: torch.Tensor, taps: list[int], stride: list[int], padding: list[int], dilation: list[int], result: list[int]
) -> torch.Tensor:
    """The input of a transposed convolution with zeros between and around, so that it becomes a plain one of stride 1
    (Dumoulin and Visin, arXiv 1603.07285, section 4)."""
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, (h - 1) * stride[0] + 1, (w - 1) * stride[1] + 1)
    spread[:, :, :: stride[0], :: stride[1]] = x
    reach = [d * (t - 1) for d, t in zip(dilation, taps, strict=True)]
    before = [r - p for r, p in zip(reach, padding, strict=True)]
    after = [size + r - b - have for size, r, b, have in zip(result, reach, before, spread.shape[2:], strict=True)]
    return F.pad(spread, (before[1], after[1], before[0], after[0]))


def _geometry(node: Node, dims: int) -> tuple[list[int], list[int], list[int]]:
    """Stride, padding, dilation of a convolution, each one number a dimension."""
    last = 7 if node.target in ops.CONV_TRANSPOSED else 5
    given = argument(node, 3, "stride", 1), argument(node, 4, "padding", 0), argument(node, last, "dilation", 1)
    stride, padding, dilation = (for_each_dim(value, dims) for value in given)
    return stride, padding, dilation


def _sampled(columns: torch.Tensor, batches: int, generator: torch.Generator) -> torch.Tensor:
    """A random part of the positions, where second moments of all would cost too much."""
    groups, k, positions = columns.shape
    most = max(1, int(max(_MULTIPLICATIONS / (groups * k * k), 4.0 * k) / batches))
    return columns if positions <= most else columns[:, :, torch.randperm(positions, generator=generator)[:most]]


def _power(weights: torch.Tensor, moments: _Moments) -> float:
    """The mean square of the outputs with these weights, of all channels together."""
    return max(float(((weights @ moments.h) * weights).sum()), 0.0)


# ---- coordinate descent ----


def _descend(
    nearest: torch.Tensor,
    exact: torch.Tensor,
    scale: torch.Tensor,
    moments: _Moments,
    sweeps: int,
    damping: float = DAMPING,
) -> torch.Tensor:
    """The integers [G, R, K], float64, each `exact` rounded up or down, that coordinate descent from `nearest` ends
    with.

    The error is damped: moving a weight away from its float value costs, beside what calibration saw, what it would
    with an input of the mean variance times `damping` times weights of an output channel over positions seen. So where
    there are few positions for many weights, which could be fitted to anything, rounding stays near to nearest.
    """
    h, k = moments.h.clone(), nearest.shape[2]
    diagonal = h.diagonal(dim1=1, dim2=2)
    diagonal += damping * k / moments.count * diagonal.mean(1, keepdim=True) + 1e-12
    lowest, highest = torch.minimum(exact.floor(), nearest), torch.maximum(exact.ceil(), nearest)
    integers = nearest.clone()
    slope = ((integers - exact) * scale) @ h  # half the gradient
    for _ in range(sweeps):
        gained = torch.zeros((), dtype=torch.float64)
        for start in range(0, k, _BLOCK):
            block = slice(start, min(start + _BLOCK, k))
            here, inner = slope[:, :, block].clone(), h[:, block, block]
            moves = torch.zeros_like(here)
            for i in range(here.shape[2]):
                j = start + i
                s, curvature = scale[:, :, j], inner[:, i, i].unsqueeze(1)
                wanted = integers[:, :, j] - here[:, :, i] / (curvature * s)
                new = torch.minimum(torch.maximum(wanted.round(), lowest[:, :, j]), highest[:, :, j])
                move = (new - integers[:, :, j]) * s
                gained += (move * (2 * here[:, :, i] + move * curvature)).sum()
                integers[:, :, j] = new
                moves[:, :, i] = move
                here += move.unsqueeze(2) * inner[:, i].unsqueeze(1)
            slope += moves @ h[:, block]
        if -float(gained) <= _TOLERANCE * max(float((slope * (integers - exact) * scale).sum()), 1e-30):
            break
    return integers
