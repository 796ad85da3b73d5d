"""The DNA's arithmetic is TFLite's: oracle, interpreter and simulator against the reference kernels, one operator at a
time, on random shapes, scales, zero points and values; ties, saturation, wrap-around and extreme factors among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("ai_edge_litert")
from dna import machine
from formulas import real_value
from tflite_models import Builder, ReferenceFailed, reference, references

from mera_torch import native, oracle
from mera_torch.bisect import build

CASES = 400  # an operator
SIMULATED = 25  # of these
Array = npt.NDArray[Any]
Shape = tuple[int, ...]
INT32 = -(2**31), 2**31 - 1


@dataclass(frozen=True)
class Q:
    """Quantization of an activation."""

    scale: float
    zero: int


@dataclass
class Node:
    """A DNA operator without its output's quantization: inputs, then constants (data and scales)."""

    op: str
    inputs: Sequence[tuple[Array, Q]]
    out: Shape
    attrs: Mapping[str, int] = field(default_factory=dict)
    constants: Sequence[tuple[Array, Sequence[float]]] = ()

    def graph(self, y: Q, clamp: Mapping[str, int] | None = None) -> oracle.Graph:
        tensors = [
            oracle.Tensor(f"x{i}", rank4(x.shape), "int8", (q.scale,), (q.zero,))
            for i, (x, q) in enumerate(self.inputs)
        ]
        for i, (data, scales) in enumerate(self.constants):
            shape, zeros = rank4(data.shape), (0,) * len(scales)
            tensors.append(oracle.Tensor(f"c{i}", shape, data.dtype.name, tuple(scales), zeros, data.reshape(shape)))
        tensors.append(oracle.Tensor("y", rank4(self.out), "int8", (y.scale,), (y.zero,)))
        last = len(tensors) - 1
        attrs = {**native.OPS[self.op].attrs, **self.attrs, **(clamp or {})}
        node = oracle.Node(self.op, self.op, tuple(range(last)), last, attrs)
        return oracle.Graph("case", tensors, [node], list(range(len(self.inputs))), [last])

    @property
    def values(self) -> list[Array]:
        return [x.reshape(rank4(x.shape)) for x, _ in self.inputs]

    def real(self) -> Array:
        """The exact result in real numbers, float64."""
        graph = self.graph(Q(1.0, 0))
        constants = [t.data for t in graph.tensors if t.data is not None]
        return real_value(graph, graph.nodes[0], [*self.values, *constants]).numpy().flatten()


@dataclass
class Case:
    """One operator twice: a .tflite model whose tensor ``output`` is its result, and a DNA graph."""

    model: bytes
    inputs: list[Array]
    output: int
    graph: oracle.Graph
    values: list[Array]


class Dice:
    """Random numbers with a taste for what goes wrong."""

    def __init__(self, seed: str) -> None:
        self.rng = np.random.default_rng(list(seed.encode()))

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[self.integer(0, len(choices) - 1)]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def scale(self, low: float = -8, high: float = 0) -> float:
        """float32; often a power of two."""
        exponent = self.rng.uniform(low, high)
        return float(np.float32(2.0 ** (np.round(exponent) if self.chance(0.3) else exponent)))

    def zero(self) -> int:
        return int(self.pick([0, -128, 127, 1, -1, self.integer(-128, 127), self.integer(-128, 127)]))

    def q(self) -> Q:
        return Q(self.scale(), self.zero())

    def output(self, real: Array, least: float = 1e-30) -> Q:
        """For these results: in range; or one of them lies between two levels; or far off."""
        present = np.abs(real[real != 0])
        size = float(present.mean()) if present.size else 1.0
        scale = size / 64 * 2.0 ** self.rng.uniform(-2, 2)
        if present.size and self.chance(0.4):
            scale = float(self.rng.choice(present)) / (self.integer(0, 127) + 0.5)
        elif self.chance(0.3):
            scale = size / 64 * 2.0 ** self.rng.uniform(-24, 24)
        elif self.chance(0.3):
            scale = 2.0 ** np.round(np.log2(scale))
        return Q(float(np.clip(np.float32(scale), np.float32(max(least, 1e-30)), np.float32(1e30))), self.zero())

    def int8(self, shape: Shape) -> Array:
        kind = self.integer(0, 5)
        if kind == 0:
            return np.full(shape, self.pick([-128, 127, 0]), np.int8)
        if kind == 1:
            return self.rng.choice(np.array([-128, 127], np.int8), shape)
        return self.rng.integers(-128, 128, shape).astype(np.int8)

    def weights(self, shape: Shape) -> Array:
        if self.chance(0.15):
            return self.rng.choice(np.array([-128, -127, 0, 127], np.int8), shape)
        return self.rng.integers(-127, 128, shape).astype(np.int8)

    def weight_scales(self, channels: int) -> Array:
        """float32; one, or one a channel."""
        count = 1 if self.chance(0.3) else channels
        return np.array([self.scale(-10, -3) for _ in range(count)], np.float32)

    def bias(self, count: int) -> Array:
        most = self.pick([1, 1000, 1000, 100_000, 2**30, 2**31 - 1])
        return self.rng.integers(-most, most + 1, count).astype(np.int32)

    def activation(self, y: Q) -> str:
        if y.scale < 1e-8:
            return "NONE"  # TFLite refuses bounds beyond int32
        return str(self.pick(["NONE", "NONE", "RELU", "RELU6", "RELU_N1_TO_1"]))


# ---- the same in two languages ----


def clamp_of(activation: str, y: Q) -> dict[str, int]:
    """What TFLite makes of a fused activation: bound / scale in float32, rounded half away from zero."""

    def level(bound: float) -> int:
        quotient = np.float32(bound) / np.float32(y.scale)
        return y.zero + int(np.sign(quotient) * np.floor(np.abs(quotient) + np.float32(0.5)))

    low, high = {"NONE": (None, None), "RELU": (0, None), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}[activation]
    return {
        "clamp_min": -128 if low is None else max(-128, level(low)),
        "clamp_max": 127 if high is None else min(127, level(high)),
    }


def rank4(shape: Shape) -> tuple[int, int, int, int]:
    padded = (1,) * (4 - len(shape)) + tuple(shape)
    return padded[0], padded[1], padded[2], padded[3]


def add_tensor(m: Builder, name: str, shape: Shape, q: Q) -> int:
    return m.tensor(name, shape, "int8", q.scale, q.zero)


@dataclass(frozen=True)
class Window:
    """A kernel over an image; ``fields`` are TFLite's options, ``attrs`` the DNA's attributes."""

    kernel: tuple[int, int]
    out: tuple[int, int]
    fields: dict[str, Any]
    attrs: dict[str, int]


def same_or_valid(size: int, kernel: int, stride: int, dilation: int, padding: str) -> tuple[int, int, int]:
    """(output size, padding before, padding after) of TFLite."""
    span = (kernel - 1) * dilation + 1
    if padding == "VALID":
        return (size - span) // stride + 1, 0, 0
    out = -(-size // stride)
    total = max((out - 1) * stride + span - size, 0)
    return out, total // 2, total - total // 2


def window(dice: Dice, image: Shape, largest: int, dilated: bool = True) -> Window:
    """image: [N, H, W, C]."""
    kernel = dice.integer(1, largest), dice.integer(1, largest)
    stride = dice.integer(1, 3), dice.integer(1, 3)
    dilation = (dice.integer(1, 2), dice.integer(1, 2)) if dilated and dice.chance(0.3) else (1, 1)
    fits = all(s >= (k - 1) * d + 1 for s, k, d in zip(image[1:3], kernel, dilation, strict=True))
    padding = "VALID" if fits and dice.chance(0.5) else "SAME"
    (height, top, bottom), (width, left, right) = (
        same_or_valid(*v, padding) for v in zip(image[1:3], kernel, stride, dilation, strict=True)
    )
    fields = {"padding": padding, "strideH": stride[0], "strideW": stride[1]}
    attrs = {"stride_h": stride[0], "stride_w": stride[1]}
    attrs |= {"pad_top": top, "pad_bottom": bottom, "pad_left": left, "pad_right": right}
    if dilated:
        fields |= {"dilationHFactor": dilation[0], "dilationWFactor": dilation[1]}
        attrs |= {"dilation_h": dilation[0], "dilation_w": dilation[1]}
    return Window(kernel, (height, width), fields, attrs)


# ---- operators ----


def _convolution(dice: Dice, depthwise: bool) -> Case:
    groups = dice.integer(1, 5) if depthwise or dice.chance(0.3) else 1
    depth, multiple = (1, dice.integer(1, 4)) if depthwise else (dice.integer(1, 9), dice.integer(1, 9))
    outputs = groups * multiple
    x, q = dice.int8((dice.integer(1, 2), dice.integer(1, 7), dice.integer(1, 7), groups * depth)), dice.q()
    win, scales = window(dice, x.shape, dice.pick([1, 2, 4])), dice.weight_scales(outputs)
    weights = dice.weights((outputs, *win.kernel, depth))
    no_bias = depthwise and dice.chance(0.2)
    bias = np.zeros(outputs, np.int32) if no_bias else dice.bias(outputs)
    constants = [(weights, scales.tolist()), (bias, ())]
    node = Node("conv2d", [(x, q)], (x.shape[0], *win.out, outputs), {**win.attrs, "groups": groups}, constants)
    y = dice.output(node.real())
    act = dice.activation(y)

    m = Builder()
    tx = add_tensor(m, "x", x.shape, q)
    if depthwise:
        tw = m.constant("w", weights.transpose(3, 1, 2, 0), scales, 0, axis=3)
    else:
        tw = m.constant("w", weights, scales, 0, axis=0)
    terms = [] if no_bias else [m.constant("b", bias, scales * np.float32(q.scale))]
    ty = add_tensor(m, "y", node.out, y)
    fields = {**win.fields, "fusedActivationFunction": act}
    if depthwise:
        fields["depthMultiplier"] = multiple
        m.op("DEPTHWISE_CONV_2D", [tx, tw, *terms], [ty], "DepthwiseConv2DOptions", **fields)
    else:
        m.op("CONV_2D", [tx, tw, *terms], [ty], "Conv2DOptions", **fields)
    return Case(m.build([tx], [ty]), [x], ty, node.graph(y, clamp_of(act, y)), node.values)


def conv(dice: Dice) -> Case:
    return _convolution(dice, depthwise=False)


def depthwise(dice: Dice) -> Case:
    return _convolution(dice, depthwise=True)


def fully_connected(dice: Dice) -> Case:
    rows, depth, outputs = dice.integer(1, 4), dice.pick([1, 7, 40, 300]), dice.integer(1, 20)
    x, q, scales = dice.int8((rows, depth)), dice.q(), dice.weight_scales(outputs)
    weights = dice.weights((outputs, depth))
    no_bias = dice.chance(0.2)
    bias = np.zeros(outputs, np.int32) if no_bias else dice.bias(outputs)
    constants = [(weights.reshape(outputs, 1, 1, depth), scales.tolist()), (bias, ())]
    image = x.reshape(rows, 1, 1, depth)
    node = Node("conv2d", [(image, q)], (rows, 1, 1, outputs), {"float64_rescale": 1}, constants)
    y = dice.output(node.real())
    act = dice.activation(y)

    m = Builder()
    tx = add_tensor(m, "x", x.shape, q)
    tw = m.constant("w", weights, scales, 0, axis=0)
    terms = [] if no_bias else [m.constant("b", bias, scales * np.float32(q.scale))]
    ty = add_tensor(m, "y", (rows, outputs), y)
    m.op("FULLY_CONNECTED", [tx, tw, *terms], [ty], "FullyConnectedOptions", fusedActivationFunction=act)
    return Case(m.build([tx], [ty]), [x], ty, node.graph(y, clamp_of(act, y)), node.values)


def _elementwise(dice: Dice, op: str) -> Case:
    shape = (dice.integer(1, 2), dice.integer(1, 5), dice.integer(1, 5), dice.integer(1, 20))
    mask = dice.pick([(1, 1, 1, 1), (1, 1, 1, 1), (1, 0, 0, 1), (0, 0, 0, 1), (0, 0, 0, 0), (1, 1, 1, 0)])
    small = tuple(size if keep else 1 for size, keep in zip(shape, mask, strict=True))
    x = [dice.int8(s) for s in ((shape, small) if dice.chance(0.5) else (small, shape))]
    q = [dice.q(), dice.q()]
    if dice.chance(0.3):
        q[1] = Q(q[0].scale, q[1].zero)
    node = Node(op, list(zip(x, q, strict=True)), shape)
    # TFLite dies of an ADD or SUB whose output is finer than that
    finest = 0.0 if op == "mul" else max(p.scale for p in q) * 2.0**-18
    y = dice.output(node.real(), finest)
    act = dice.activation(y)

    m = Builder()
    tx = [add_tensor(m, f"x{i}", x[i].shape, q[i]) for i in (0, 1)]
    ty = add_tensor(m, "y", shape, y)
    m.op(op.upper(), tx, [ty], f"{op.capitalize()}Options", fusedActivationFunction=act)
    return Case(m.build(tx, [ty]), x, ty, node.graph(y, clamp_of(act, y)), node.values)


def add(dice: Dice) -> Case:
    return _elementwise(dice, "add")


def sub(dice: Dice) -> Case:
    return _elementwise(dice, "sub")


def mul(dice: Dice) -> Case:
    return _elementwise(dice, "mul")


def _pool(dice: Dice, op: str, code: str) -> Case:
    x = dice.int8((dice.integer(1, 2), dice.integer(1, 9), dice.integer(1, 9), dice.integer(1, 9)))
    win, q = window(dice, x.shape, 5, dilated=False), dice.q()
    act = dice.activation(q)
    attrs = {**win.attrs, "kernel_h": win.kernel[0], "kernel_w": win.kernel[1]}
    node = Node(op, [(x, q)], (x.shape[0], *win.out, x.shape[3]), attrs)

    m = Builder()
    tx, ty = add_tensor(m, "x", x.shape, q), add_tensor(m, "y", node.out, q)
    size = {"filterHeight": win.kernel[0], "filterWidth": win.kernel[1]}
    m.op(code, [tx], [ty], "Pool2DOptions", **win.fields, **size, fusedActivationFunction=act)
    return Case(m.build([tx], [ty]), [x], ty, node.graph(q, clamp_of(act, q)), node.values)


def average_pool(dice: Dice) -> Case:
    return _pool(dice, "avg_pool2d", "AVERAGE_POOL_2D")


def max_pool(dice: Dice) -> Case:
    return _pool(dice, "max_pool2d", "MAX_POOL_2D")


def _reduction(dice: Dice, code: str) -> Case:
    """Over any axes. The DNA's H and W hold the reduced ones."""
    rank = dice.integer(1, 4)
    x, q = dice.int8(tuple(dice.integer(1, dice.pick([3, 8, 17])) for _ in range(rank))), dice.q()
    axes = [a for a in range(rank) if dice.chance(0.5)] or [rank - 1]
    kept = [a for a in range(rank) if a not in axes]
    heights, widths = (prod(x.shape[a] for a in part) for part in (axes[:1], axes[1:]))
    moved = x.transpose(axes + kept).reshape(1, heights, widths, -1)
    node = Node("mean", [(moved, q)], (1, 1, 1, moved.shape[3]), {"sum": int(code == "SUM")})
    y = dice.output(node.real())
    keep = dice.chance(0.5)
    out = tuple(1 if a in axes else s for a, s in enumerate(x.shape) if keep or a not in axes)

    m = Builder()
    # The reference SUM takes int8 for uint8 (see below): it is asked in uint8.
    bytes_, offset = ("uint8", 128) if code == "SUM" else ("int8", 0)
    tx = m.tensor("x", x.shape, bytes_, q.scale, q.zero + offset)
    ta = m.constant("axes", np.array([a - rank if dice.chance(0.5) else a for a in axes], np.int32))
    ty = m.tensor("y", out, bytes_, y.scale, y.zero + offset)
    m.op(code, [tx, ta], [ty], "ReducerOptions", keepDims=keep)
    given = (x.astype(np.int16) + offset).astype(bytes_)
    return Case(m.build([tx], [ty]), [given], ty, node.graph(y), node.values)


def mean(dice: Dice) -> Case:
    return _reduction(dice, "MEAN")


def sum_(dice: Dice) -> Case:
    return _reduction(dice, "SUM")


def concat(dice: Dice) -> Case:
    shape, axis, q = [dice.integer(1, 5) for _ in range(4)], dice.integer(0, 3), dice.q()
    x = []
    for _ in range(dice.integer(1, 4)):
        shape[axis] = dice.integer(1, 5)
        x.append(dice.int8(tuple(shape)))
    shape[axis] = sum(v.shape[axis] for v in x)
    node = Node("concat", [(v, q) for v in x], tuple(shape), {"axis": axis})
    m = Builder()
    tx = [add_tensor(m, f"x{i}", v.shape, q) for i, v in enumerate(x)]
    ty = add_tensor(m, "y", node.out, q)
    m.op("CONCATENATION", tx, [ty], "ConcatenationOptions", axis=dice.pick([axis, axis - 4]))
    return Case(m.build(tx, [ty]), x, ty, node.graph(q), node.values)


def pad(dice: Dice) -> Case:
    """PAD fills with the zero point, PADV2 with a value."""
    x, q = dice.int8(tuple(dice.integer(1, 5) for _ in range(4))), dice.q()
    widths = np.array([[0, 0], *([dice.integer(0, 3), dice.integer(0, 3)] for _ in range(3))], np.int32)
    value = q.zero if dice.chance(0.5) else dice.integer(-128, 127)
    names = ("pad_top", "pad_bottom", "pad_left", "pad_right", "pad_channel_before", "pad_channel_after")
    attrs = {**dict(zip(names, widths[1:].flatten().tolist(), strict=True)), "value": value}
    node = Node("pad", [(x, q)], tuple(x.shape + widths.sum(1)), attrs)
    m = Builder()
    tx, ty = add_tensor(m, "x", x.shape, q), add_tensor(m, "y", node.out, q)
    tw = m.constant("widths", widths)
    if value == q.zero:
        m.op("PAD", [tx, tw], [ty], "PadOptions")
    else:
        m.op("PADV2", [tx, tw, m.constant("v", np.array([value], np.int8), q.scale, q.zero)], [ty], "PadV2Options")
    return Case(m.build([tx], [ty]), [x], ty, node.graph(q), node.values)


def strided_slice(dice: Dice) -> Case:
    x, q = dice.int8(tuple(dice.integer(1, 7) for _ in range(4))), dice.q()
    begin = [dice.integer(0, s - 1) for s in x.shape]
    end = [dice.integer(b + 1, s) for b, s in zip(begin, x.shape, strict=True)]
    step = [dice.integer(1, 3) for _ in range(4)]
    out = x[tuple(slice(*v) for v in zip(begin, end, step, strict=True))].shape
    attrs = {
        f"{what}_{d}": v for what, at in (("begin", begin), ("step", step)) for d, v in zip("nhwc", at, strict=True)
    }
    node = Node("slice", [(x, q)], out, attrs)
    m = Builder()
    tx, ty = add_tensor(m, "x", x.shape, q), add_tensor(m, "y", out, q)
    bounds = [m.constant(name, np.array(v, np.int32)) for name, v in (("b", begin), ("e", end), ("s", step))]
    m.op("STRIDED_SLICE", [tx, *bounds], [ty], "StridedSliceOptions")
    return Case(m.build([tx], [ty]), [x], ty, node.graph(q), node.values)


def transpose(dice: Dice) -> Case:
    x, q = dice.int8(tuple(dice.integer(1, 6) for _ in range(4))), dice.q()
    order = dice.rng.permutation(4).tolist()
    node = Node("transpose", [(x, q)], x.transpose(order).shape, {f"perm_{i}": p for i, p in enumerate(order)})
    m = Builder()
    tx, ty = add_tensor(m, "x", x.shape, q), add_tensor(m, "y", node.out, q)
    m.op("TRANSPOSE", [tx, m.constant("order", np.array(order, np.int32))], [ty], "TransposeOptions")
    return Case(m.build([tx], [ty]), [x], ty, node.graph(q), node.values)


OPERATORS: list[Callable[[Dice], Case]] = [
    conv, depthwise, fully_connected, add, sub, mul, average_pool, max_pool, mean, sum_,
    concat, pad, strided_slice, transpose,
]  # fmt: skip


# ---- the comparison ----


def kernel_sets() -> list[str]:
    """Those that this CPU runs."""
    return ["generic", *(name for name in ("avx2", "avx512vnni") if name in native.core_features())]


def check(cases: Sequence[Case], simulated: int = SIMULATED) -> None:
    """Oracle, interpreter with each set of kernels, and, for the first few, simulator."""
    results = references([(case.model, case.inputs) for case in cases])
    contexts = [(name, native.Context(kernels=name)) for name in kernel_sets()]
    found = []
    for number, (case, result) in enumerate(zip(cases, results, strict=True)):
        if isinstance(result, ReferenceFailed):
            raise AssertionError(f"case {number}: {result}")
        wanted = result[case.output].flatten()
        if wanted.dtype == np.uint8:
            wanted = (wanted.astype(np.int16) - 128).astype(np.int8)
        got = {"oracle": oracle.run(case.graph, case.values)[0]}
        for name, context in contexts:
            got[name] = native.Interpreter(build(case.graph, context)).run(case.values)[0]
        if number < simulated:
            got["simulator"] = native.Simulator(build(case.graph).compile(machine(2, 16))).run(case.values)[0]
        for name, value in got.items():
            if not np.array_equal(wanted, value.flatten()):
                apart = np.abs(wanted.astype(int) - value.flatten())
                found.append(f"case {number}, {name}: {np.count_nonzero(apart)} of {apart.size} by up to {apart.max()}")
    assert not found, f"{len(found)} differences from the reference:\n" + "\n".join(found[:10])


@pytest.mark.parametrize("make", OPERATORS, ids=lambda make: make.__name__.strip("_"))
def test_equals_the_reference_kernels(make: Callable[[Dice], Case]) -> None:
    check([make(Dice(f"{make.__name__} {seed}")) for seed in range(CASES)])


# ---- the rescaling itself: accumulator and factor given directly, as bias and weight scale of an output channel ----


def accumulators_and_factors(dice: Dice, count: int, highest: int) -> tuple[Array, Array]:
    """int32 and float32 [count]: edges of int32, powers of two and their neighbours, products on and beside a tie; the
    factors' exponents go from -33 to ``highest``."""
    powers = np.array([sign * 2**k + d for k in range(31) for sign in (1, -1) for d in (-1, 0, 1)])
    edges = np.array([*INT32, INT32[0] + 1, INT32[1] - 1, 0])
    kinds = [powers, edges, dice.rng.integers(*INT32, 200), dice.rng.integers(-3000, 3000, 200)]
    x = np.array([dice.rng.choice(dice.pick(kinds)) for _ in range(count)], np.int64)
    r = 2.0 ** dice.rng.uniform(-33, highest, count)
    r = np.where(dice.rng.random(count) < 0.2, 2.0 ** np.round(np.log2(r)), r)
    target = dice.rng.integers(0, 130, count) + dice.rng.choice([0, 0.5], count)
    near = (dice.rng.random(count) < 0.6) & (x != 0) & (target > 0)
    r = np.where(near, target / np.maximum(np.abs(x), 1), r)
    r = np.clip(r, 2.0**-33, 2.0**highest * 0.99)
    return np.clip(x, *INT32).astype(np.int32), r.astype(np.float32)


def rescaling(dice: Dice, code: str, highest: int) -> Case:
    """One input that counts for nothing: weights 0."""
    outputs = 2000
    bias, factors = accumulators_and_factors(dice, outputs, highest)
    x, q, y = np.zeros((1, 1, 1, 1), np.int8), Q(1.0, 0), Q(1.0, dice.zero())
    weights = np.zeros((outputs, 1, 1, 1), np.int8)
    attrs = {"float64_rescale": int(code == "FULLY_CONNECTED")}
    node = Node("conv2d", [(x, q)], (1, 1, 1, outputs), attrs, [(weights, factors.tolist()), (bias, ())])
    m = Builder()
    tb = m.constant("b", bias, factors)
    if code == "CONV_2D":
        tx, ty = add_tensor(m, "x", x.shape, q), add_tensor(m, "y", node.out, y)
        m.op(code, [tx, m.constant("w", weights, factors), tb], [ty], "Conv2DOptions", strideH=1, strideW=1)
    else:
        tx, ty = add_tensor(m, "x", (1, 1), q), add_tensor(m, "y", (1, outputs), y)
        m.op(code, [tx, m.constant("w", weights[:, 0, 0], factors), tb], [ty], "FullyConnectedOptions")
    return Case(m.build([tx], [ty]), [x if code == "CONV_2D" else x[0, 0]], ty, node.graph(y), node.values)


@pytest.mark.parametrize(("code", "highest"), [("CONV_2D", 0), ("CONV_2D", 30), ("FULLY_CONNECTED", 60)])
def test_rescaling_at_its_edges(code: str, highest: int) -> None:
    """Left shifts wrap, results saturate, ties go away from zero; FULLY_CONNECTED does it in float64."""
    check([rescaling(Dice(f"{code} {highest} {seed}"), code, highest) for seed in range(8)], simulated=2)


def test_the_reference_sum_takes_int8_for_uint8() -> None:
    """Why SUM is compared in uint8 above: of int8, TFLite's reference kernel (not its other ones) reads the bytes as
    unsigned numbers. Should this fail, that has been mended, and sum_ should ask in int8."""
    x = np.array([[-1, 5]], np.int8)
    m = Builder()
    tx = m.tensor("x", x.shape, "int8", 1.0, 0)
    ty = m.tensor("y", (1,), "int8", 2.0, 0)
    m.op("SUM", [tx, m.constant("axes", np.array([1], np.int32))], [ty], "ReducerOptions")
    assert reference(m.build([tx], [ty]), [x])[ty].astype(np.uint8) == (255 + 5) // 2
