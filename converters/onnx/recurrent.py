"""RNN, GRU and LSTM, unrolled: one linear operator for all inputs, and one for the state in each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .values import bounded, cast, cut, permute, reshape

MOST_STEPS = 1024
"""Steps of a sequence that are unrolled."""

Activation = Callable[[Value], Value]
Step = Callable[[Value, Value, tuple[Value, ...]], tuple[Value, ...]]
"""(the inputs' part of the gates [B, gates * H], h [B, H], other state) -> new (h, ...)."""


# ---- activations ----


def _scaled_tanh(g: OnnxBuilder, x: Value, alpha: float, beta: float) -> Value:
    return g.call(aten.mul.Tensor, g.call(aten.tanh.default, g.call(aten.mul.Tensor, x, beta)), alpha)


def _hard_sigmoid(g: OnnxBuilder, x: Value, alpha: float, beta: float) -> Value:
    scaled = g.call(aten.add.Tensor, g.call(aten.mul.Tensor, x, alpha), beta)
    return g.call(aten.clamp.default, scaled, 0.0, 1.0)


def _thresholded_relu(g: OnnxBuilder, x: Value, alpha: float, beta: float) -> Value:
    return g.call(aten.where.ScalarOther, g.call(aten.ge.Scalar, x, alpha), x, 0.0)


def _softsign(g: OnnxBuilder, x: Value, alpha: float, beta: float) -> Value:
    return g.call(aten.div.Tensor, x, g.call(aten.add.Tensor, g.call(aten.abs.default, x), 1.0))


ACTIVATIONS: dict[str, tuple[float | None, float | None, Callable[[OnnxBuilder, Value, Any, Any], Value]]] = {
    "relu": (0.0, 0.0, lambda g, x, a, b: g.call(aten.relu.default, x)),
    "tanh": (0.0, 0.0, lambda g, x, a, b: g.call(aten.tanh.default, x)),
    "sigmoid": (0.0, 0.0, lambda g, x, a, b: g.call(aten.sigmoid.default, x)),
    "affine": (None, None, lambda g, x, a, b: g.call(aten.add.Tensor, g.call(aten.mul.Tensor, x, a), b)),
    "leakyrelu": (0.01, 0.0, lambda g, x, a, b: g.call(aten.leaky_relu.default, x, a)),
    "thresholdedrelu": (1.0, 0.0, _thresholded_relu),
    "scaledtanh": (None, None, _scaled_tanh),
    "hardsigmoid": (0.2, 0.5, _hard_sigmoid),
    "elu": (1.0, 0.0, lambda g, x, a, b: g.call(aten.elu.default, x, a)),
    "softsign": (0.0, 0.0, _softsign),
    "softplus": (0.0, 0.0, lambda g, x, a, b: g.call(aten.softplus.default, x)),
}
"""Default alpha and beta (None: ONNX defines none, the file must give it), and the function."""

_WITH_ALPHA = {"affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu"}
_WITH_BETA = {"affine", "scaledtanh", "hardsigmoid"}


def _activations(g: OnnxBuilder, node: OnnxNode, defaults: Sequence[str], directions: int) -> list[list[Activation]]:
    """For each direction its functions. alphas and betas go in order to the functions that have them. clip bounds what
    gates are computed from; LSTM's third function, of the cell, takes it as it is, as in ONNX Runtime."""
    found = node.attributes.get("activations")
    names = [s.decode("utf-8", "replace").lower() for s in found.strings] if found is not None else []
    names = names or [*defaults] * directions
    if len(names) != len(defaults) * directions:
        raise g.invalid(f"it has {len(names)} activations instead of {len(defaults) * directions}")
    alphas, betas = iter(node.floats("activation_alpha", [])), iter(node.floats("activation_beta", []))
    clip = node.float("clip", 0.0)
    functions = []
    for index, name in enumerate(names):
        of_cell = index % len(defaults) == 2
        functions.append(_activation(g, name, alphas, betas, 0.0 if of_cell else clip))
    return [functions[i : i + len(defaults)] for i in range(0, len(functions), len(defaults))]


def _activation(g: OnnxBuilder, name: str, alphas: Iterator[float], betas: Iterator[float], limit: float) -> Activation:
    if name not in ACTIVATIONS:
        raise g.invalid(f"its activation {name!r} is none of {', '.join(ACTIVATIONS)}")
    default_alpha, default_beta, function = ACTIVATIONS[name]
    alpha = next(alphas, default_alpha) if name in _WITH_ALPHA else default_alpha
    beta = next(betas, default_beta) if name in _WITH_BETA else default_beta
    if alpha is None or beta is None:
        raise g.unsupported(f"activation {name!r} has no alpha or beta, and ONNX defines no default")

    def apply(x: Value) -> Value:
        return function(g, g.call(aten.clamp.default, x, -limit, limit) if limit else x, alpha, beta)

    return apply


# ---- what the three have in common ----


@dataclass(frozen=True)
class Layer:
    """One direction. w: [gates * H, I], r: [gates * H, H], wb, rb: [gates * H] or None."""

    w: Value
    r: Value
    wb: Value | None
    rb: Value | None
    functions: list[Activation]
    size: int


@dataclass(frozen=True)
class Sequences:
    """x: [T, B, I]; lengths: [B] int64 or None; directions: the order of the steps of each."""

    x: Value
    lengths: Value | None
    directions: list[range]
    batch_first: bool


def _sequences(g: OnnxBuilder, node: OnnxNode) -> Sequences:
    x, lengths = node.require(0), node.optional(4)
    if len(shape(x)) != 3:
        raise g.invalid(f"its input must have three axes, got shape {list(shape(x))}")
    layout = node.int("layout", 0)
    if layout not in (0, 1):
        raise g.invalid(f"its layout must be 0 or 1, got {layout}")
    x = permute(g, x, [1, 0, 2]) if layout else x
    steps = shape(x)[0]
    if not 0 < steps <= MOST_STEPS:
        raise g.unsupported(f"it has {steps} steps, and 1 to {MOST_STEPS} are unrolled")
    forward, backward = range(steps), range(steps - 1, -1, -1)
    ways = {"forward": [forward], "reverse": [backward], "bidirectional": [forward, backward]}
    direction = node.string("direction", "forward")
    if direction not in ways:
        raise g.invalid(f"its direction must be one of {', '.join(ways)}, got {direction!r}")
    lengths = None if lengths is None else cast(g, lengths, torch.int64)
    if isinstance(lengths, torch.Tensor) and bool((lengths == steps).all()):
        lengths = None
    return Sequences(x, lengths, ways[direction], bool(layout))


def _layers(g: OnnxBuilder, node: OnnxNode, seq: Sequences, gates: int, defaults: Sequence[str]) -> list[Layer]:
    w, r, bias = node.require(1), node.require(2), node.optional(3)
    ways = len(seq.directions)
    size = shape(r)[-1] if shape(r) else 0
    rows = gates * size
    expected = {"W": (w, (ways, rows, shape(seq.x)[2])), "R": (r, (ways, rows, size)), "B": (bias, (ways, 2 * rows))}
    for name, (value, sizes) in expected.items():
        if value is not None and shape(value) != sizes:
            raise g.invalid(f"its {name} must have shape {list(sizes)}, got {list(shape(value))}")
    if node.int("hidden_size", size) != size:
        raise g.invalid(f"its hidden_size is {node.int('hidden_size')}, and R is for {size}")
    functions = _activations(g, node, defaults, ways)
    layers = []
    for i in range(ways):
        both = None if bias is None else _direction(g, bias, i)
        wb = None if both is None else cut(g, both, 0, 0, rows)
        rb = None if both is None else cut(g, both, 0, rows, 2 * rows)
        layers.append(Layer(_direction(g, w, i), _direction(g, r, i), wb, rb, functions[i], size))
    return layers


def _direction(g: OnnxBuilder, value: Value, index: int) -> Value:
    return g.call(aten.select.int, value, 0, index)


def _initial(g: OnnxBuilder, node: OnnxNode, index: int, seq: Sequences, size: int) -> list[Value]:
    """The initial state of each direction: [B, H]."""
    given = node.optional(index)
    batch = shape(seq.x)[1]
    if given is None:
        bounded(g, [batch, size], dtype(seq.x))
        return [torch.zeros(batch, size, dtype=dtype(seq.x)) for _ in seq.directions]
    given = permute(g, given, [1, 0, 2]) if seq.batch_first and len(shape(given)) == 3 else given
    if shape(given) != (len(seq.directions), batch, size):
        raise g.invalid(f"an initial state has shape {list(shape(given))}, not {[len(seq.directions), batch, size]}")
    return [_direction(g, given, i) for i in range(len(seq.directions))]


def _run(
    g: OnnxBuilder, seq: Sequences, order: range, layer: Layer, state: tuple[Value, ...], step: Step
) -> tuple[list[Value], tuple[Value, ...]]:
    """The output of each step by its place in time, and the last state. Beyond its length a sequence gives 0, and its
    state stays."""
    gates = g.call(aten.linear.default, seq.x, layer.w, layer.wb)
    outputs: dict[int, Value] = {}
    for t in order:
        new = step(g.call(aten.select.int, gates, 0, t), state[0], state[1:])
        if seq.lengths is None:
            state, outputs[t] = new, new[0]
            continue
        going = reshape(g, g.call(aten.gt.Scalar, seq.lengths, t), [-1, 1])
        outputs[t] = g.call(aten.where.ScalarOther, going, new[0], 0.0)
        state = tuple(g.call(aten.where.self, going, a, b) for a, b in zip(new, state, strict=True))
    return [outputs[t] for t in range(len(order))], state


def _results(
    g: OnnxBuilder, seq: Sequences, outputs: list[list[Value]], states: list[tuple[Value, ...]]
) -> tuple[Value, ...]:
    """Y [T, D, B, H] and the last states [D, B, H], or batch first."""
    ways = [g.call(aten.stack.default, values, 0) for values in outputs]
    y = g.call(aten.stack.default, ways, 1)
    last = [g.call(aten.stack.default, list(values), 0) for values in zip(*states, strict=True)]
    if seq.batch_first:
        return (permute(g, y, [2, 0, 1, 3]), *(permute(g, v, [1, 0, 2]) for v in last))
    return (y, *last)


def _whole(
    g: OnnxBuilder,
    node: OnnxNode,
    gates: int,
    defaults: Sequence[str],
    states: Sequence[int],
    make_step: Callable[[Layer, int], Step],
) -> tuple[Value, ...]:
    """states: the inputs that hold the initial states; make_step: the step of a layer, by its direction."""
    seq = _sequences(g, node)
    layers = _layers(g, node, seq, gates, defaults)
    initial = [_initial(g, node, index, seq, layers[0].size) for index in states]
    outputs, lasts = [], []
    for i, (layer, order) in enumerate(zip(layers, seq.directions, strict=True)):
        values, last = _run(g, seq, order, layer, tuple(state[i] for state in initial), make_step(layer, i))
        outputs.append(values)
        lasts.append(last)
    return _results(g, seq, outputs, lasts)


def _gate(g: OnnxBuilder, values: Value, index: int, size: int) -> Value:
    return cut(g, values, len(shape(values)) - 1, index * size, (index + 1) * size)


def _add(g: OnnxBuilder, a: Value, b: Value) -> Value:
    return g.call(aten.add.Tensor, a, b)


def _mul(g: OnnxBuilder, a: Value, b: Value) -> Value:
    return g.call(aten.mul.Tensor, a, b)


# ---- the operators ----


@converts("onnx", "RNN", since=7)
def rnn(g: OnnxBuilder, node: OnnxNode) -> Value:
    def make_step(layer: Layer, direction: int) -> Step:
        (f,) = layer.functions

        def step(x: Value, h: Value, rest: tuple[Value, ...]) -> tuple[Value, ...]:
            return (f(_add(g, x, g.call(aten.linear.default, h, layer.r, layer.rb))),)

        return step

    return _whole(g, node, 1, ("tanh",), (5,), make_step)


@converts("onnx", "GRU", since=7)
def gru(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Gates: update, reset, hidden."""
    reset_after = bool(node.int("linear_before_reset", 0))

    def make_step(layer: Layer, direction: int) -> Step:
        f, hidden = layer.functions
        size = layer.size
        r_zr, r_h = cut(g, layer.r, 0, 0, 2 * size), cut(g, layer.r, 0, 2 * size, 3 * size)
        b_zr = None if layer.rb is None else cut(g, layer.rb, 0, 0, 2 * size)
        b_h = None if layer.rb is None else cut(g, layer.rb, 0, 2 * size, 3 * size)

        def step(x: Value, h: Value, rest: tuple[Value, ...]) -> tuple[Value, ...]:
            zr = f(_add(g, cut(g, x, 1, 0, 2 * size), g.call(aten.linear.default, h, r_zr, b_zr)))
            z, r = _gate(g, zr, 0, size), _gate(g, zr, 1, size)
            if reset_after:
                recurrent = _mul(g, r, g.call(aten.linear.default, h, r_h, b_h))
            else:
                recurrent = g.call(aten.linear.default, _mul(g, r, h), r_h, b_h)
            new = hidden(_add(g, _gate(g, x, 2, size), recurrent))
            return (_add(g, _mul(g, g.call(aten.rsub.Scalar, z, 1.0), new), _mul(g, z, h)),)

        return step

    return _whole(g, node, 3, ("sigmoid", "tanh"), (5,), make_step)


@converts("onnx", "LSTM", since=7)
def lstm(g: OnnxBuilder, node: OnnxNode) -> Value:
    """Gates: input, output, forget, cell. Peepholes add the cell to the first three."""
    holes = node.optional(7)
    coupled = bool(node.int("input_forget", 0))

    def make_step(layer: Layer, direction: int) -> Step:
        f, cell, hidden = layer.functions
        size = layer.size
        peephole: list[Value | None] = [None] * 3
        if holes is not None:
            if len(shape(holes)) != 2 or shape(holes)[1] != 3 * size or shape(holes)[0] <= direction:
                raise g.invalid(f"its peepholes have shape {list(shape(holes))}")
            peephole = [_gate(g, _direction(g, holes, direction), i, size) for i in range(3)]

        def gate(values: Value, index: int, c: Value) -> Value:
            value, hole = _gate(g, values, index, size), peephole[index]
            return f(value if hole is None else _add(g, value, _mul(g, hole, c)))

        def step(x: Value, h: Value, rest: tuple[Value, ...]) -> tuple[Value, ...]:
            (c,) = rest
            values = _add(g, x, g.call(aten.linear.default, h, layer.r, layer.rb))
            i = gate(values, 0, c)
            forget = g.call(aten.rsub.Scalar, i, 1.0) if coupled else gate(values, 2, c)
            new = _add(g, _mul(g, forget, c), _mul(g, i, cell(_gate(g, values, 3, size))))
            return _mul(g, gate(values, 1, new), hidden(new)), new

        return step

    return _whole(g, node, 4, ("sigmoid", "tanh", "tanh"), (5, 6), make_step)
