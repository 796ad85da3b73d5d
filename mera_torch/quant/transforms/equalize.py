"""Equalization: channels of one tensor are brought to like ranges, since int8 gives all of them one scale.

A factor f[c] may be taken out of channel c of a value and put into the weights that read it, when everything in between
is linear or clamps at zero only: relu(x / f) = relu(x) / f. This reaches over whole residual streams, whose adds keep
channels apart, and over concats, which have one scale for all that they join. (Nagel et al., arXiv 1906.04721, section
4.1, does so for pairs of layers with the ranges of weights.)

Which factors are best depends on what is rounded: a channel made larger is stored more finely, but the weights that
read it become smaller beside those of other channels. So several families of factors are tried, each a product of
powers of the channels' ranges and of the largest weights that write and read them, and the one is taken whose rounding
errors are predicted to be least (`_predicted_error`); the family with all factors 1 is among them.

A relu6 (or clamp from 0 to a bound b) stays what it is. A channel that calibration saw reach half of b keeps a factor
of at most 1; one that stayed below may grow until it reaches that half, so that new data seldom gets beyond b.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..graphs import operators as ops
from ..graphs.canonicalize import remove_dropout, remove_in_place
from ..graphs.parameters import replace_parameter
from ..graphs.patterns import argument, constant_of
from ..graphs.run import Inputs
from ..graphs.weighted import WEIGHTED, channel_axis, from_blocks, to_blocks
from .streams import Stream, dims_of, find_streams

aten: Any = torch.ops.aten

_LARGEST_FACTOR = 64.0
_HEADROOM = 2.0
_DEVIATIONS = 9.0
_USUAL = 0.9
_ROUNDS = 4  # with one scale for a whole weight, what is best for a stream depends on its neighbours'
_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass
class _Seen:
    """What calibration saw of a value with C channels: of each the usual extremes, the variance, and the highest value
    of all; float64 [C].

    The usual extremes are those that 9 batches of 10 keep within: a single odd image can reach many times further.
    """

    low: torch.Tensor
    high: torch.Tensor
    variance: torch.Tensor
    highest: torch.Tensor

    @property
    def largest(self) -> torch.Tensor:
        return torch.maximum(self.high, -self.low)


def equalize(model: GraphModule, batches: Sequence[Inputs], *, per_channel_weights: bool = True) -> int:
    """Equalizes `model`, exported in evaluation mode, in place; its function stays the same but for float rounding, and
    for channels that calibration saw below a clamp's bound (see the module).

    Args:
        model: From ``torch.export.export(m, args).module()``.
        batches: Tuples of its inputs, to measure the ranges with, one batch at a time. If there are none, the ranges of
            weights alone decide, and streams with a clamp are left alone.
        per_channel_weights: How the weights will be quantized.

    Returns:
        How many streams of values were changed.
    """
    remove_in_place(model)
    remove_dropout(model)
    streams = find_streams(model)
    layers = {node for stream in streams for node in (*stream.producers, *stream.readers)}
    seen = _measure(model, batches, streams, layers) if batches else {}
    if seen and per_channel_weights:
        _widen(model, streams, seen)
    weights = {node: _folded_blocks(model, node) for node in layers}
    factors = [torch.ones(stream.channels, dtype=torch.float64) for stream in streams]
    for _ in range(1 if per_channel_weights else _ROUNDS):
        for stream, total in zip(streams, factors, strict=True):
            choice = _Choice(stream, seen, weights, per_channel_weights)
            step = choice.best()
            total *= step
            _rescale(stream, step, seen, weights)
    for stream, factor in zip(streams, factors, strict=True):
        _apply(model, stream, factor)
    model.recompile()
    return sum(bool((factor != 1).any()) for factor in factors)


# ---- choosing factors ----


class _Choice:
    """The factors of one stream, given what was seen of its values and the weights around it."""

    def __init__(
        self, stream: Stream, seen: dict[Node, _Seen], weights: dict[Node, torch.Tensor], per_channel: bool
    ) -> None:
        self.stream, self.seen, self.weights, self.per_channel = stream, seen, weights, per_channel
        self.stored = [value for value in stream.values if _is_stored(value)]
        ones = torch.ones(stream.channels, dtype=torch.float64)
        self.written = {p: weights[p].abs().amax((2, 3)).flatten() for p in stream.producers}
        self.read = {r: weights[r].abs().amax(3) for r in stream.readers}  # [G, R, C]
        self.write_range = self._largest(self.written.items())
        self.read_range = self._largest((stream.source(r), w.amax(1).flatten()) for r, w in self.read.items())
        stored = ((value, seen[value].largest) for value in self.stored)
        self.value_range = self._largest(stored) if seen else self.write_range
        self.lowest, self.highest = ones / _LARGEST_FACTOR, ones * _LARGEST_FACTOR
        for clamp, bound in stream.clamps.items() if seen else ():
            reached = seen[clamp.args[0]].highest.clamp_min(0) * _HEADROOM  # type: ignore[index]
            of = stream.values[clamp]
            self.lowest[of] = torch.maximum(self.lowest[of], (reached / bound).clamp_max(1))
            self.highest[of] = torch.where(reached > bound, self.highest[of].clamp_max(1), self.highest[of])

    def _largest(self, several: Iterable[tuple[Node, torch.Tensor]]) -> torch.Tensor:
        """float64 [C], the largest of what is given for the channels of values."""
        found = torch.zeros(self.stream.channels, dtype=torch.float64)
        for value, held in several:
            found.scatter_reduce_(0, self.stream.values[value], held, "amax")
        return found

    def best(self) -> torch.Tensor:
        """float64 [C]."""
        none = torch.ones(self.stream.channels, dtype=torch.float64)
        if not self.seen:
            return none if self.stream.clamps else self._bounded(self._family(0.0, 0.5, 0.5), by_mean=True)
        best, least = none, self._predicted_error(none)
        for factor in self._candidates():
            error = self._predicted_error(factor)
            if error < least * (1 - 1e-9):
                best, least = factor, error
        return best

    def _candidates(self) -> Iterator[torch.Tensor]:
        of_writers = (0.0,) if self.per_channel else (0.0, 0.5, 1.0)
        for values, writers, readers in itertools.product(_POWERS, of_writers, _POWERS):
            family = self._family(values, writers, readers)
            yield self._bounded(family, by_mean=True)
            if self.stream.clamps:
                yield self._bounded(family, by_mean=False)

    def _family(self, values: float, writers: float, readers: float) -> torch.Tensor:
        usable = (self.value_range > 0) & (self.read_range > 0) & (self.write_range > 0)
        factor = self.value_range**values * self.write_range**writers / self.read_range**readers
        if not usable.any():
            return torch.ones_like(factor)
        return torch.where(usable, factor, factor[usable].log().mean().exp())

    def _bounded(self, factor: torch.Tensor, *, by_mean: bool) -> torch.Tensor:
        """Within what the stream allows; before that the geometric mean, or the largest that matters, becomes 1."""
        factor = factor / (factor.log().mean().exp() if by_mean else factor.amax())
        return torch.minimum(torch.maximum(factor, self.lowest), self.highest)

    def _predicted_error(self, factor: torch.Tensor) -> float:
        """Twelve times the variance that int8 rounding adds to the outputs of the stream's readers, relative to theirs.

        Rounding to a step s adds s**2 / 12. A stored value's step follows from its largest channel, a weight's from the
        largest of its output channel (or of the whole weight); an error in channel c is multiplied by f[c] and by the
        weights that read it, an error of a weight by the value it reads, of which biases make up for the mean.
        """
        added = torch.zeros_like(factor)  # variance in each channel of the values, in units of the present values
        for value in self.stored:
            seen, of = self.seen[value], self.stream.values[value]
            f = factor[of]
            step = ((seen.high / f).amax().clamp_min(0) - (seen.low / f).amin().clamp_max(0)) / 255
            added[of] += step**2
        if not self.per_channel:
            for producer, largest in self.written.items():
                taps, of = self.weights[producer].shape[3], self.stream.values[producer]
                added[of] += ((largest / factor[of]).amax() / 127) ** 2 * taps * self._input_power(producer)
        error = 0.0
        for reader, largest in self.read.items():
            blocks = self.weights[reader]
            groups, outputs, _, taps = blocks.shape
            of = self.stream.values[self.stream.source(reader)]
            f = factor[of].view(groups, 1, -1)
            from_values = (blocks.square().sum(3) * f**2 * added[of].view(groups, 1, -1)).sum()
            steps = (largest * f).amax(2) / 127  # [G, R]
            if not self.per_channel:
                steps = steps.amax().expand(groups, outputs)
            power = (self._power_read(reader) / factor[of] ** 2).view(groups, 1, -1).sum(2)
            from_weights = (steps**2 * power).sum() * taps
            error += float(from_values + from_weights) / max(self._signal(reader), 1e-30)
        return error

    def _power_read(self, reader: Node) -> torch.Tensor:
        return self.seen[reader.args[0]].variance  # type: ignore[index]

    def _input_power(self, producer: Node) -> torch.Tensor:
        """float64 scalar, or [C] where each output channel reads channels of its own."""
        convolution = _convolution(producer)
        source = self.seen.get(convolution.args[0])  # type: ignore[arg-type]
        if source is None:
            return torch.zeros((), dtype=torch.float64)
        groups, outputs = self.weights[producer].shape[:2]
        return source.variance.view(groups, -1).sum(1).repeat_interleave(outputs)

    def _signal(self, reader: Node) -> float:
        return float(self.seen[_normalized(reader)].variance.sum())


def _rescale(stream: Stream, step: torch.Tensor, seen: dict[Node, _Seen], weights: dict[Node, torch.Tensor]) -> None:
    """Ranges and weights after `step` was taken out of the stream's values."""
    for value in stream.values:
        if value in seen:
            was, f = seen[value], step[stream.values[value]]
            seen[value] = _Seen(was.low / f, was.high / f, was.variance / f**2, was.highest / f)
    for producer in stream.producers:
        groups, outputs = weights[producer].shape[:2]
        weights[producer] = weights[producer] / step[stream.values[producer]].view(groups, outputs, 1, 1)
    for reader in stream.readers:
        f = step[stream.values[stream.source(reader)]]
        weights[reader] = weights[reader] * f.view(weights[reader].shape[0], 1, -1, 1)


def _measure(
    model: GraphModule, batches: Sequence[Inputs], streams: list[Stream], layers: set[Node]
) -> dict[Node, _Seen]:
    axes = {value: stream.axis for stream in streams for value in stream.values}
    for node in layers:
        for value in (_normalized(node), _convolution(node).args[0]):
            axes.setdefault(value, channel_axis(_convolution(node), dims_of(value)))  # type: ignore[arg-type]
    extremes: dict[Node, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    sums: dict[Node, torch.Tensor] = {}  # of count, values and squares, float64 [3, C]

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if n in axes and isinstance(result, torch.Tensor) and result.numel():
                by_channel = result.detach().movedim(axes[n], 0).reshape(result.shape[axes[n]], -1)
                low, high = torch.aminmax(by_channel, dim=1)
                extremes.setdefault(n, []).append((low, high))
                by_channel = by_channel.double()
                total = by_channel.sum(1)
                count = torch.full_like(total, by_channel.shape[1])
                new = torch.stack([count, total, by_channel.square().sum(1)])
                sums[n] = sums[n] + new if n in sums else new
            return result

    with torch.no_grad():
        for inputs in batches:
            Watch(model).run(*inputs)
    seen = {}
    for n, (count, total, squares) in sums.items():
        lows, highs = (torch.stack(side).double() for side in zip(*extremes[n], strict=True))
        low, high = lows.quantile(1 - _USUAL, 0), highs.quantile(_USUAL, 0)
        seen[n] = _Seen(low, high, (squares / count - (total / count) ** 2).clamp_min(0), highs.amax(0))
    return seen


def _widen(model: GraphModule, streams: list[Stream], seen: dict[Node, _Seen]) -> None:
    """A batch norm knows mean and deviation of the training data, of which calibration saw but a little: its output
    reaches _DEVIATIONS of them from the mean (as Nagel et al., section 4.2.1, assume it normal), if not further.

    Weights of one scale in all, where channels of small weights have few levels left, need the freedom more than this.
    """
    for stream in streams:
        for producer in stream.producers:
            if producer.target in ops.BATCH_NORM:
                gamma, beta = (constant_of(model, n).double() for n in producer.args[1:3])
                found, reach = seen[producer], _DEVIATIONS * gamma.abs()
                found.highest = torch.maximum(found.highest, beta + reach)


def _is_stored(value: Node) -> bool:
    """Whether the value is rounded to int8 by itself: not where a clamp alone reads it, which is computed with it, or
    concats, which have one scale for all that they join."""
    users = list(value.users)
    joined = bool(users) and all(user.target in ops.CAT for user in users)
    return not joined and not (len(users) == 1 and users[0].target in ops.CLAMP)


# ---- weights ----


def _convolution(producer: Node) -> Node:
    """The convolution that a batch norm will be folded into, or `producer` itself."""
    source = producer.args[0]
    folded = producer.target in ops.BATCH_NORM and isinstance(source, Node) and source.target in WEIGHTED
    return source if folded and len(source.users) == 1 else producer  # type: ignore[union-attr, return-value]


def _normalized(node: Node) -> Node:
    """The batch norm that will be folded into convolution `node`, or `node` itself."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in ops.BATCH_NORM and node.target in WEIGHTED else node


def _folded_blocks(model: GraphModule, node: Node) -> torch.Tensor:
    """float64 [groups, outputs, inputs, taps]: the weight of a convolution, linear or batch norm, with its batch norm
    folded into it."""
    convolution, norm = _convolution(node), _normalized(node)
    norm = node if node.target in ops.BATCH_NORM else norm
    factor = None
    if norm.target in ops.BATCH_NORM:
        _, gamma, _, _, variance, *_ = norm.args
        epsilon: Any = argument(norm, 7, "eps", 1e-5)
        factor = (constant_of(model, variance).double() + float(epsilon)).rsqrt()
        factor = factor * constant_of(model, gamma).double() if isinstance(gamma, Node) else factor
        if convolution.target in ops.BATCH_NORM:
            return factor.view(-1, 1, 1, 1)
    blocks = to_blocks(convolution, constant_of(model, convolution.args[1]).double())
    return blocks if factor is None else blocks * factor.view(blocks.shape[0], -1, 1, 1)


def _apply(model: GraphModule, stream: Stream, factor: torch.Tensor) -> None:
    for producer in stream.producers:
        weight, bias = (*producer.args[1:3], None)[:2]
        f = factor[stream.values[producer]]
        if producer.target in ops.BATCH_NORM:
            _divide(model, weight, f)
        else:
            _scale_blocks(model, producer, 1 / f, outputs=True)
        if isinstance(bias, Node):
            _divide(model, bias, f)
    for reader in stream.readers:
        _scale_blocks(model, reader, factor[stream.values[stream.source(reader)]], outputs=False)


def _scale_blocks(model: GraphModule, node: Node, factor: torch.Tensor, *, outputs: bool) -> None:
    """Multiplies the weight of `node` with a factor for each of its output, or input, channels."""
    weight = constant_of(model, node.args[1])
    blocks = to_blocks(node, weight.double())
    shape = (blocks.shape[0], -1, 1, 1) if outputs else (blocks.shape[0], 1, -1, 1)
    scaled = from_blocks(node, blocks * factor.view(shape), weight.shape)
    replace_parameter(model, node.args[1], scaled.to(weight.dtype))


def _divide(model: GraphModule, parameter: Any, factor: torch.Tensor) -> None:
    held = constant_of(model, parameter)
    replace_parameter(model, parameter, (held.double() / factor).to(held.dtype))
