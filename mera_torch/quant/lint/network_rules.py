"""Rules about the network, judged by what calibration data shows of its values. A rule is a function whose docstring
explains it in docs/lint.md; its name, with hyphens, is that of its findings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from ..calibration.observers import BIAS_LIMIT
from ..findings import Finding
from ..graphs import operators as ops
from ..graphs.patterns import QuantizedOp, argument, attribute
from ..transforms.activation_statistics import ActivationStatistics
from .host_rules import HOST_RULES

if TYPE_CHECKING:
    from ..transforms.analysis import Analysis
    from .linter import Context

aten: Any = torch.ops.aten

_FLAT = 4 / 256
_OUTLIER_RATIO = 32.0
_COLLAPSED_SHARE = 0.5
_DEAD_SHARE = 0.25
_RANGE_OUTLIER = 10.0
_POOR_DB, _VANISHING = 15.0, 0.9
_FAR = 100.0
_SATURATED = 0.95
_LOST_SHARE = 0.1
_ENOUGH = 64  # values of a channel, to tell that it is constant
_MANY = 10_000  # values, to tell what is rare among them


def not_finite(context: Context) -> Iterator[Finding]:
    """NaN or infinity in the float network itself, on the calibration data. Calibration will refuse it; this names the
    first operator whose result is not finite. Infinity that reaches no int8 operator, as in a mask, is none."""
    analysis = context.analysis
    if not any(analysis.statistics[node].bad for node in analysis.int8_values if node in analysis.statistics):
        return
    for node, seen in analysis.statistics.items():
        if seen.bad:
            said = f"{seen.bad} of {seen.count} values are NaN or infinite"
            yield Finding.at(node, "not-finite", "error", said, "look for a bad weight, a division by 0, log(0), exp")
            return


def concat_ranges(context: Context) -> Iterator[Finding]:
    """Concat of unlike ranges. All parts get one scale; a part whose values are below a step of it becomes zero, as the
    scores beside the boxes of a detection head do. Signal to noise ratios are expected from the histograms. Mended by
    `split_heads` where that is possible (docs/heads.md); where convolutions make and read the parts, equalization
    helps."""
    for decision in context.decisions:
        fixed = decision.mends and context.config.split_heads
        remedy = decision.cure
        if not decision.mends:
            remedy = (
                "equalize=True where convolutions make and read the parts, or bring them to like ranges in the model, "
            )
            remedy += "or keep its readers in float by rules"
        elif not fixed:
            remedy = f"QuantConfig(split_heads=True): {remedy}"
        said = decision.join.evidence
        yield Finding.at(decision.join.node, "concat-ranges", "error" if not fixed else "warning", said, remedy, fixed)


def sigmoid_second_consumer(context: Context) -> Iterator[Finding]:
    """A sigmoid (or tanh, hardsigmoid, softmax) with a second consumer. Its range is known, [0, 1], and its scale so
    fine; but if one of the consumers is a concat or pool with something wider, that scale becomes the other
    consumer's, too. x * sigmoid(x) whose sigmoid is read elsewhere is computed as silu and sigmoid apart (a note)."""
    analysis = context.analysis
    mended = replace(analysis, found=context.remaining)
    for op in analysis.found:
        node = op.nodes[0]
        if node.target not in ops.FIXED_QPARAMS or not node.users:
            continue
        if any(user is not node and user.target is aten.silu.default for user in op.inputs[0].users):
            said = "x * sigmoid(x) whose sigmoid others read, too: silu is computed beside it"
            yield Finding.at(node, "sigmoid-second-consumer", "note", said, "recognized as silu", True)
        if len(node.users) > 1 and _is_widened(analysis, op):
            low, high = analysis.domain_range(op.output)
            names = ", ".join(user.name for user in node.users)
            said = f"read by {names}, and shares the range [{low:.4g}, {high:.4g}] with what it is joined with"
            fixed = not _is_widened(mended, op)
            remedy = "split_heads" if fixed else "split_heads=True, or compute the sigmoid twice"
            yield Finding.at(node, "sigmoid-second-consumer", "warning", said, remedy, fixed)


def softmax_scale(context: Context) -> Iterator[Finding]:
    """Softmax whose int8 input is too coarse or too fine, or whose result is too flat. A step of more than 1 in the
    logits multiplies a probability by more than e; with a step of at most 2^-26 TFLite's reference kernel aborts, and
    all classes are alike in int8 anyway; a result below 1/256 is zero."""
    analysis = context.analysis
    for node in analysis.model.graph.nodes:
        source = node.args[0] if node.op == "call_function" and node.target in ops.SOFTMAX else None
        if not isinstance(source, Node) or source not in analysis.int8_values:
            continue
        low, high = analysis.domain_range(source)
        step, remedy = (high - low) / 255, "rules=(Rule(op='softmax', dtype='float'),), and a smaller range before it"
        if step > 1:
            said = (
                f"its input's range [{low:.4g}, {high:.4g}] has int8 steps of {step:.3g}, each a factor of e^{step:.2g}"
            )
            yield Finding.at(node, "softmax-scale", "warning", said, remedy)
        elif step <= 2.0**-26:
            said = f"its input's range [{low:.4g}, {high:.4g}] has int8 steps of {step:.3g}, at most 2^-26"
            yield Finding.at(node, "softmax-scale", "error", said, "check the weights before it, its input is near 0")
        largest = analysis.of(node).high
        if node in analysis.op_of and largest < _FLAT:
            said = f"its largest result is {largest:.3g} = {largest * 256:.2g} steps of 1/256"
            severity: Any = "error" if largest < 1 / 512 else "warning"
            yield Finding.at(node, "softmax-scale", severity, said, "rules=(Rule(op='softmax', dtype='float'),)")


def outlier_channels(context: Context) -> Iterator[Finding]:
    """Outlier channels before a convolution or linear: a few channels are so large that most others have fewer than 8
    int8 levels. Equalization (convolutions) and SmoothQuant (linears) move the difference into the weights."""
    analysis, told = context.analysis, set()
    for op in analysis.found:
        if op.weight is None or op.inputs[0] in told:
            continue
        told.add(op.inputs[0])
        if op.inputs[0].target in ops.SOFTMAX:  # a probability near 0 is no channel that vanishes
            continue
        magnitudes = _channel_magnitudes(analysis.of(op.inputs[0]))
        live = magnitudes[magnitudes > 0]
        if len(live) < 4:
            continue
        low, high = analysis.domain_range(op.inputs[0])
        step, ratio = (high - low) / 255, float(live.max() / live.median())
        coarse = float((live < 8 * step).double().mean())
        if ratio < _OUTLIER_RATIO or coarse < _COLLAPSED_SHARE:
            continue
        top = torch.argsort(magnitudes, descending=True)[:3].tolist()
        said = (
            f"channel{'s'[: len(top) != 1]} {', '.join(map(str, top))} reach {float(live.max()):.4g}, the median "
            f"channel {float(live.median()):.4g} ({ratio:.0f} : 1); {coarse:.0%} of channels have fewer than 8 levels"
        )
        linear = op.nodes[0].target in ops.LINEAR
        fixed = bool(context.config.smoothquant if linear else context.config.equalize)
        remedy = 'smoothquant="auto"' if linear else "equalize=True"
        yield Finding.at(op.nodes[0], "outlier-channels", "warning", f"its input's {said}", remedy, fixed)


def outlier_weights(context: Context) -> Iterator[Finding]:
    """Weights of unlike size under one scale: output channels under a scale per tensor, of which the smaller ones have
    few levels left."""
    for op in context.analysis.found:
        weight = _weight(context, op)
        if weight is None or context.config.per_channel_weights:
            continue
        rows = weight.abs().flatten(1).amax(1)
        live = rows[rows > 0]
        if len(live) < 2:
            continue
        coarse = float((live < live.max() / 16).double().mean())  # fewer than 8 levels on each side of zero
        if coarse > 0.25:
            ratio = float(live.max() / live.median())
            said = (
                f"output channels of {ratio:.0f} : 1 (largest : median), {coarse:.0%} have fewer than 8 levels a side"
            )
            yield Finding.at(
                op.nodes[0], "outlier-weights", "warning", said, "per_channel_weights=True, or equalize=True",
                context.config.equalize,
            )  # fmt: skip


def dead_channels(context: Context) -> Iterator[Finding]:
    """Output channels that never change on the calibration data: all weights zero, or a relu that never fires. They
    cost cycles and carry nothing; if all are constant, nothing comes through at all."""
    analysis = context.analysis
    for op in analysis.found:
        seen = analysis.of(op.output)
        low, high = seen.channel_low, seen.channel_high
        if op.weight is None or low is None or high is None or seen.count < _ENOUGH * len(low) or len(low) < 2:
            continue
        constant = low == high
        dead = int(constant.sum())
        if dead < max(1.0, _DEAD_SHARE * len(low)):
            continue
        if dead == len(low) and analysis.of(op.inputs[0]).variance == 0:
            continue  # told of what made its input
        weight = _weight(context, op)
        zero = int((weight.abs().flatten(1).amax(1) == 0).sum()) if weight is not None and op.axis == 0 else 0
        which = ", ".join(map(str, constant.nonzero().flatten()[:4].tolist())) + (", ..." if dead > 4 else "")
        said = f"{dead} of {len(low)} output channels are constant ({which}), {zero} of them for zero weights"
        severity: Any = "error" if dead == len(low) else "note"
        yield Finding.at(op.nodes[0], "dead-channels", severity, said, "prune them, or check the calibration data")


def bias_overflow(context: Context) -> Iterator[Finding]:
    """A bias too large for int32 at the scale of its weights and input, as beside weights that are all but zero. The
    weight scale is raised until the bias fits, which costs those weights their levels."""
    analysis = context.analysis
    for op in analysis.found:
        weight = _weight(context, op)
        if weight is None or op.bias is None or op.bias.op != "get_attr" or op.axis != 0:
            continue
        bias = attribute(analysis.model, str(op.bias.target))
        low, high = analysis.domain_range(op.inputs[0])
        step = max((high - low) / 255, torch.finfo(torch.float32).eps)
        if not isinstance(bias, torch.Tensor) or bias.numel() != len(weight):
            continue
        rows = weight.abs().flatten(1).amax(1).double()
        rows = rows if context.config.per_channel_weights else rows.amax().expand_as(rows)
        scale = (rows / 127).clamp_min(torch.finfo(torch.float32).eps)
        factor = bias.detach().abs().double() / (step * BIAS_LIMIT) / scale
        raised = factor > 1
        if not raised.any():
            continue
        spread = float(analysis.of(op.inputs[0]).magnitude) * weight[raised].abs().flatten(1).sum(1).double()
        matters = bool((spread > 1e-3 * bias.detach()[raised].abs().double()).any())
        said = (
            f"{int(raised.sum())} of {len(bias)} biases exceed int32 at their scale, by {float(factor.max()):.3g} x; "
            f"their weights keep {127 / float(factor.max()):.3g} levels a side"
        )
        yield Finding.at(
            op.nodes[0], "bias-overflow", "warning" if matters else "note", said, "the weight scale is raised", True
        )


def range_outliers(context: Context) -> Iterator[Finding]:
    """A value whose range is made by single outliers: 99.99 % of it lies within a tenth. Observers that clip
    (auto, histogram, percentile, entropy) leave them out; the others give them almost all levels."""
    analysis = context.analysis
    for op in analysis.found:
        seen = analysis.of(op.output)
        if op.shares or op.fixed is not None or seen.count < _MANY or seen.variance == 0:
            continue
        usual = seen.quantile_of_magnitude(0.9999)
        if usual and seen.magnitude > _RANGE_OUTLIER * usual:
            said = f"reaches {seen.magnitude:.4g}, but 99.99 % of its values lie within {usual:.4g}"
            clips = analysis.kinds.get(op.output) in ("auto", "histogram", "percentile", "entropy")
            result = "" if analysis.kinds.get(op.output) != context.config.output_observer else "output_observer or "
            remedy = f'{result}activation_observer="auto"'
            yield Finding.at(op.nodes[0], "range-outliers", "warning", said, remedy, clips)


def dynamic_range(context: Context) -> Iterator[Finding]:
    """A value of so large a dynamic range that 256 even steps keep little of it, as what exp, pow or a product of wide
    values gives: 90 % of what is not 0 is below half a step of its range, or it keeps less than 15 dB of its
    variance."""
    analysis = context.analysis
    for op in analysis.found:
        seen = analysis.of(op.output)
        if op.shares or op.fixed is not None or not seen.count or seen.variance == 0:
            continue
        if seen.own_sqnr < _POOR_DB or seen.vanishing > _VANISHING:
            said = (
                f"of values in [{seen.low:.4g}, {seen.high:.4g}], {seen.vanishing:.1%} of those other than 0 become 0 "
                f"in int8, and {seen.own_sqnr:.1f} dB of their variance stay"
            )
            remedy = f"rules=(Rule(node={op.nodes[0].name!r}, dtype='float'),)"
            yield Finding.at(op.nodes[0], "dynamic-range", "warning", said, remedy)


def operand_ranges(context: Context) -> Iterator[Finding]:
    """Add, sub or mul of unlike ranges: an operand smaller than half a step of the sum vanishes in it, and so does a
    tenth or more of a constant that is smaller than half a step of the constant's own range (in sums: if that is wider
    than the sum's, whose rounding hides it otherwise)."""
    analysis = context.analysis
    for op in analysis.found:
        node = op.nodes[0]
        if node.target not in ops.BINARY or len(op.inputs) != 2:
            continue
        low, high = analysis.domain_range(op.output)
        step = (high - low) / 255
        for value in op.inputs:
            seen = analysis.of(value)
            if node.target is not aten.mul.Tensor and 0 < seen.magnitude < step / 2:
                said = f"{value.name} reaches {seen.magnitude:.4g}, less than half of the result's step of {step:.4g}"
                remedy = f"rules=(Rule(node={node.name!r}, dtype='float'),), or leave it out of the model"
                yield Finding.at(node, "operand-ranges", "warning", said, remedy)
            elif value in analysis.constants and (lost := _vanishing(context, value)) >= _LOST_SHARE:
                if node.target is not aten.mul.Tensor and seen.span <= high - low:
                    continue
                said = f"{lost:.0%} of the elements of the constant {value.name} are below half a step of its range"
                yield Finding.at(node, "operand-ranges", "warning", said, "split the constant by size in the model")


def clamp_range(context: Context) -> Iterator[Finding]:
    """A clamp, hardtanh or relu6 whose bounds are far from the data: nearly all values saturate (nothing comes
    through), or none comes within a hundredth of a bound (it does nothing)."""
    analysis = context.analysis
    for node in analysis.model.graph.nodes:
        if node.op != "call_function" or node.target not in ops.CLAMP or node.target is aten.relu.default:
            continue
        low, high = _bounds(node)
        seen = analysis.of(node.args[0])
        if not seen.count or seen.variance == 0:
            continue
        inside = seen.share(low, high)
        bound = min((abs(b) for b in (low, high) if b != 0 and math.isfinite(b)), default=math.inf)
        said = f"bounds [{low:.4g}, {high:.4g}], values in [{seen.low:.4g}, {seen.high:.4g}]"
        if inside < 1 - _SATURATED:
            yield Finding.at(
                node, "clamp-range", "warning", f"{said}: {1 - inside:.1%} saturate", "check the bounds and the data"
            )
        elif math.isfinite(bound) and seen.magnitude * _FAR < bound:
            yield Finding.at(node, "clamp-range", "note", f"{said}: it does nothing", "check the data's scale")


# ---- helpers ----


def _is_widened(analysis: Analysis, op: QuantizedOp) -> bool:
    """Whether an operator of known range shares its scale with values of more than twice that."""
    low, high = analysis.domain_range(op.output)
    return high - low > 2 * max(analysis.of(op.output).span, 1.0)


def _channel_magnitudes(seen: ActivationStatistics) -> torch.Tensor:
    """float64 [C]."""
    if seen.channel_low is None or seen.channel_high is None:
        return torch.zeros(0, dtype=torch.float64)
    return torch.maximum(seen.channel_low.abs(), seen.channel_high.abs()).double()


def _weight(context: Context, op: QuantizedOp) -> torch.Tensor | None:
    """[Co, ...], where it is a parameter with its output channels first."""
    if op.weight is None or op.weight.op != "get_attr" or op.axis != 0:
        return None
    held = attribute(context.analysis.model, str(op.weight.target))
    return held.detach() if isinstance(held, torch.Tensor) else None


def _vanishing(context: Context, value: Node) -> float:
    """Which part of a constant's elements other than 0 rounds to 0 in int8."""
    if value.op != "get_attr":
        return 0.0
    held: Any = attribute(context.analysis.model, str(value.target))
    elements = held.detach()[held.detach() != 0].abs()
    seen = context.analysis.of(value)
    return float((elements < seen.span / 255 / 2).double().mean()) if elements.numel() else 0.0


def _bounds(node: Node) -> tuple[float, float]:
    """Of a clamp; infinite where it has none."""
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    names: Iterable[tuple[int, str, float | None]] = ((1, "min", None), (2, "max", None))
    if node.target is aten.hardtanh.default:
        names = ((1, "min_val", -1.0), (2, "max_val", 1.0))
    elif node.target is aten.clamp_max.default:
        names = ((9, "min", None), (1, "max", None))
    low, high = (argument(node, index, name, default) for index, name, default in names)
    return (
        float(low) if isinstance(low, (int, float)) else -math.inf,
        float(high) if isinstance(high, (int, float)) else math.inf,
    )


GRAPH_RULES = (
    not_finite, concat_ranges, sigmoid_second_consumer, softmax_scale, outlier_channels, outlier_weights,
    dead_channels, bias_overflow, range_outliers, dynamic_range, operand_ranges, clamp_range, *HOST_RULES,
)  # fmt: skip
