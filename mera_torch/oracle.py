"""The DNA operators once more, in NumPy: an independent reference for the interpreter and the simulator.

Written from the formulas of ``csrc/dna_ops.def`` and of the TOSA specification, not from the C sources, and without
calling them: a mistake would have to be made twice to go unseen. ``graph_text.read`` makes graphs from text, ``run``
computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidModelError

Int8 = npt.NDArray[np.int8]
Int64 = npt.NDArray[np.int64]
Array = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Tensor:
    """A tensor of the DNA graph: rank 4, NHWC (weights Co Kh Kw Ci/groups); ``data`` only if it is a constant.

    ``scale`` (float32) and ``zero_point`` (int32) have one element, or one an output channel; none if not quantized.
    """

    name: str
    shape: tuple[int, int, int, int]
    dtype: str = "int8"
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()
    data: Array | None = None

    @property
    def zero(self) -> int:
        return self.zero_point[0]

    @property
    def scales(self) -> npt.NDArray[np.float64]:
        """The scales as dna_ops.def wants them: rounded to float32, then exact in float64."""
        return np.array(self.scale, np.float32).astype(np.float64)


@dataclass(frozen=True)
class Node:
    """One operator; ``inputs`` and ``output`` are indices of tensors, ``attrs`` holds every attribute of the operator.

    ``layer`` and ``source`` say where it stands in the user's model.
    """

    op: str
    name: str
    inputs: tuple[int, ...]
    output: int
    attrs: Mapping[str, int] = field(default_factory=dict)
    layer: str = ""
    source: str = ""


@dataclass
class Graph:
    """A DNA graph: nodes in an order in which they can run, tensors by index."""

    name: str = "graph"
    tensors: list[Tensor] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


# ---- arithmetic ----


def wrap_int32(x: Int64) -> Int64:
    """x modulo 2^32, as a signed 32-bit number."""
    return ((x + 2**31) & 0xFFFFFFFF) - 2**31


def quantize_multiplier(real: npt.ArrayLike) -> tuple[Int64, Int64]:
    """(multiplier, shift) with real ~ multiplier * 2^(shift - 31) and multiplier in [2^30, 2^31); (0, 0) for zero.

    Source: TFLite, ``QuantizeMultiplier``. real: float64, any shape, >= 0.
    """
    fraction, exponent = np.frexp(np.asarray(real, np.float64))
    multiplier = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    shift = exponent.astype(np.int64)
    carry = multiplier == 2**31
    multiplier, shift = np.where(carry, 2**30, multiplier), np.where(carry, shift + 1, shift)
    tiny, huge = (shift < -31) | (multiplier == 0), shift > 30
    multiplier = np.where(tiny, 0, np.where(huge, 2**31 - 1, multiplier))
    return multiplier, np.where(tiny, 0, np.where(huge, 30, shift))


def apply_scale(x: Int64, multiplier: npt.ArrayLike, shift: npt.ArrayLike) -> Int64:
    """x * multiplier * 2^(shift - 31) in TOSA's apply_scale_32 with double_round; x holds int32 values, broadcasting.

    A left shift (shift > 0) wraps in 32 bits first, as TFLite's reference kernels do.
    """
    left = np.maximum(np.asarray(shift, np.int64), 0)
    right = 31 + left - np.asarray(shift, np.int64)  # 31..62
    x = wrap_int32(x << left)
    half = np.int64(1) << (right - 1)
    twice = np.where(right > 31, np.where(x >= 0, 1 << 30, -(1 << 30)), 0)
    return np.asarray((x * np.asarray(multiplier, np.int64) + half + twice) >> right, np.int64)


def rescale(x: Int64, real: npt.ArrayLike) -> Int64:
    """dna_ops.def's M(x, real)."""
    return apply_scale(x, *quantize_multiplier(real))


def round_product(x: Int64, real: npt.ArrayLike) -> Int64:
    """dna_ops.def's R(x, real)."""
    product = x * np.asarray(real, np.float64)
    whole = np.trunc(product)
    rounded = whole + np.where(np.abs(product - whole) >= 0.5, np.sign(product), 0)
    inside = (rounded >= -(2**31)) & (rounded < 2**31)
    return np.where(inside, rounded, -(2**31)).astype(np.int64)


# ---- operators ----


@dataclass(frozen=True)
class Call:
    """What an operator computes with: its attributes, its input tensors and their values, the output tensor."""

    attrs: Mapping[str, int]
    tensors: Sequence[Tensor]
    values: Sequence[Array]
    out: Tensor

    def centred(self, index: int) -> Int64:
        """An input without its zero point."""
        return self.values[index].astype(np.int64) - self.tensors[index].zero

    def scales(self, index: int) -> npt.NDArray[np.float64]:
        return self.tensors[index].scales

    def clamp(self, x: Int64) -> Int8:
        return np.clip(x, self.attrs["clamp_min"], self.attrs["clamp_max"]).astype(np.int8)

    def requantize(self, x: Int64, real: npt.ArrayLike) -> Int8:
        """clamp(M(x, real) + z_y)."""
        return self.clamp(wrap_int32(rescale(x, real) + self.out.zero))

    def windows(self, x: Int64, kernel: tuple[int, int], top: int, left: int, fill: int) -> list[Int64]:
        """One array [N, Ho, Wo, C] for each tap of the kernel; what lies outside x reads as ``fill``."""
        stride_h, stride_w = self.attrs["stride_h"], self.attrs["stride_w"]
        dilation_h, dilation_w = self.attrs.get("dilation_h", 1), self.attrs.get("dilation_w", 1)
        batch, height, width, channels = x.shape
        span_h, span_w = (self.out.shape[1] - 1) * stride_h + 1, (self.out.shape[2] - 1) * stride_w + 1
        rows = max(top + height, span_h + (kernel[0] - 1) * dilation_h)
        columns = max(left + width, span_w + (kernel[1] - 1) * dilation_w)
        canvas = np.full((batch, rows, columns, channels), fill, np.int64)
        canvas[:, top : top + height, left : left + width] = x
        return [
            canvas[:, i * dilation_h :, j * dilation_w :][:, :span_h:stride_h, :span_w:stride_w]
            for i in range(kernel[0])
            for j in range(kernel[1])
        ]


def conv2d(call: Call) -> Int8:
    weight, bias = call.values[1], call.values[2].astype(np.int64)
    outputs, kernel_h, kernel_w, depth = weight.shape
    groups = call.attrs["groups"]
    taps = (
        weight.reshape(groups, outputs // groups, kernel_h * kernel_w, depth).transpose(2, 0, 3, 1).astype(np.float64)
    )
    windows = call.windows(call.centred(0), (kernel_h, kernel_w), call.attrs["pad_top"], call.attrs["pad_left"], 0)
    # float64 is exact here: a sum of products of int8 that fits in memory stays below 2^53
    total = sum(
        w.reshape(-1, groups, depth).swapaxes(0, 1).astype(np.float64) @ t for w, t in zip(windows, taps, strict=True)
    )
    sums = np.asarray(total).swapaxes(0, 1).reshape(*windows[0].shape[:3], outputs).astype(np.int64)
    total, real = wrap_int32(sums + bias), call.scales(0) * call.scales(1) / call.out.scales
    if call.attrs["float64_rescale"]:
        return call.clamp(wrap_int32(round_product(total, real) + call.out.zero))
    return call.requantize(total, real)


def _add(call: Call, sign: int) -> Int8:
    twice = 2.0 * np.maximum(call.scales(0), call.scales(1))
    a, b = (rescale(wrap_int32(call.centred(i) << 20), call.scales(i) / twice) for i in (0, 1))
    return call.requantize(wrap_int32(a + sign * b), twice / (2.0**20 * call.out.scales))


def add(call: Call) -> Int8:
    return _add(call, 1)


def sub(call: Call) -> Int8:
    return _add(call, -1)


def mul(call: Call) -> Int8:
    a, b, y = (np.array(t.scale, np.float32) for t in (*call.tensors, call.out))
    with np.errstate(over="ignore", under="ignore"):
        ratio = a * b / y  # float32
    return call.requantize(call.centred(0) * call.centred(1), ratio.astype(np.float64))


def lut(call: Call) -> Int8:
    table = call.values[1].reshape(256).astype(np.int8)
    return table[call.values[0].astype(np.int64) + 128]


def max_pool2d(call: Call) -> Int8:
    kernel = call.attrs["kernel_h"], call.attrs["kernel_w"]
    lowest = np.iinfo(np.int64).min
    windows = call.windows(
        call.values[0].astype(np.int64), kernel, call.attrs["pad_top"], call.attrs["pad_left"], lowest
    )
    return call.clamp(np.maximum.reduce(windows))


def avg_pool2d(call: Call) -> Int8:
    x, top, left = call.values[0].astype(np.int64), call.attrs["pad_top"], call.attrs["pad_left"]
    if call.attrs["count_include_pad"]:
        sides = ((0, 0), (top, call.attrs["pad_bottom"]), (left, call.attrs["pad_right"]), (0, 0))
        x, top, left = np.pad(x, sides, constant_values=call.tensors[0].zero), 0, 0
    kernel = call.attrs["kernel_h"], call.attrs["kernel_w"]
    total = np.add.reduce(call.windows(x, kernel, top, left, 0))
    count = np.add.reduce(call.windows(np.ones_like(x), kernel, top, left, 0))
    return call.clamp(np.sign(total) * ((np.abs(total) + count // 2) // count))


def mean(call: Call) -> Int8:
    height, width = call.values[0].shape[1:3]
    total = wrap_int32(call.centred(0).sum((1, 2), keepdims=True))
    multiplier, shift = (int(v) for v in quantize_multiplier(call.scales(0)[0] / call.out.scales[0]))
    if not call.attrs["sum"]:
        bits = min((height * width).bit_length() - 1, 32, 31 + shift)
        multiplier, shift = (multiplier << bits) // (height * width), shift - bits
    return call.clamp(wrap_int32(apply_scale(total, multiplier, shift) + call.out.zero))


def concat(call: Call) -> Int8:
    return np.concatenate(call.values, call.attrs["axis"]).astype(np.int8)


def pad(call: Call) -> Int8:
    sides = (("pad_top", "pad_bottom"), ("pad_left", "pad_right"), ("pad_channel_before", "pad_channel_after"))
    widths = [(0, 0), *((call.attrs[before], call.attrs[after]) for before, after in sides)]
    return np.pad(call.values[0], widths, constant_values=call.attrs["value"]).astype(np.int8)


def slice_(call: Call) -> Int8:
    begins, steps = ([call.attrs[f"{what}_{d}"] for d in "nhwc"] for what in ("begin", "step"))
    ends = [begin + (extent - 1) * step + 1 for begin, extent, step in zip(begins, call.out.shape, steps, strict=True)]
    return call.values[0][tuple(map(slice, begins, ends, steps))].astype(np.int8)


def reshape(call: Call) -> Int8:
    return call.values[0].reshape(call.out.shape).astype(np.int8)


def transpose(call: Call) -> Int8:
    return np.asarray(call.values[0].transpose([call.attrs[f"perm_{i}"] for i in range(4)]), np.int8)


def resize_nearest(call: Call) -> Int8:
    rows, columns = (table.flatten() for table in call.values[1:])
    taken: Int8 = call.values[0].take(rows, 1).take(columns, 2).astype(np.int8)
    return taken


def resize_bilinear(call: Call) -> Int8:
    sums = call.values[0].astype(np.int64)
    for axis, table in ((1, call.values[1]), (2, call.values[2])):  # exact: nothing is rounded between the two
        index, weight = np.divmod(table.flatten().astype(np.int64), 1024)
        after = np.minimum(index + 1, sums.shape[axis] - 1)
        weight = weight.reshape((1, -1, 1, 1) if axis == 1 else (1, 1, -1, 1))
        sums = sums.take(index, axis) * (1024 - weight) + sums.take(after, axis) * weight
    rounded: Int8 = (np.sign(sums) * ((np.abs(sums) + 2**19) >> 20)).astype(np.int8)
    return rounded


def softmax(call: Call) -> Int8:
    x, table = call.values[0].astype(np.int64), call.values[1].flatten().astype(np.int64)
    exponential = table[x.max(3, keepdims=True) - x]
    total = np.minimum(((exponential + 2**11) >> 12).sum(3, keepdims=True), 2**32 - 1)
    bits = np.frexp(total.astype(np.float64))[1].astype(np.int64)  # of each total
    share = _high_mul(_reciprocal((total << (32 - bits)) - 2**31), exponential)
    levels = (share + (np.int64(1) << (bits + 2))) >> (bits + 3)
    clamped: Int8 = np.clip(levels - 128, -128, 127).astype(np.int8)
    return clamped


def _high_mul(a: Int64, b: Int64) -> Int64:
    """2ab / 2^32 to the nearest, ties upwards."""
    return (a * b + 2**30) >> 31


def _reciprocal(a: Int64) -> Int64:
    """1 / (1 + a) for 0 <= a < 1, both in 2^-31; the result is below 1."""
    half = (a + 2**31) >> 1
    x = 1515870810 + _high_mul(half, np.int64(-1010580540))  # 48/17 - 32/17 half, in 2^-29
    for _ in range(3):
        x = x + 4 * _high_mul(x, 2**29 - _high_mul(half, x))
    return np.minimum(2 * x, 2**31 - 1)


OPERATORS: dict[str, Callable[[Call], Int8]] = {
    "conv2d": conv2d,
    "add": add,
    "sub": sub,
    "mul": mul,
    "lut": lut,
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "mean": mean,
    "concat": concat,
    "pad": pad,
    "slice": slice_,
    "reshape": reshape,
    "transpose": transpose,
    "resize_nearest": resize_nearest,
    "resize_bilinear": resize_bilinear,
    "softmax": softmax,
}


# ---- graphs ----


def run_node(graph: Graph, node: Node, inputs: Sequence[Array]) -> Int8:
    """The output of one node, int8 NHWC. Raises InvalidModelError if it has not the declared shape."""
    if node.op not in OPERATORS:
        raise InvalidModelError(f"node {node.name}: the oracle knows no operator {node.op!r}")
    out = graph.tensors[node.output]
    value = OPERATORS[node.op](Call(node.attrs, [graph.tensors[i] for i in node.inputs], inputs, out))
    if value.shape != out.shape:
        raise InvalidModelError(
            f"node {node.name} ({node.op}): its output is declared {out.shape}, but is {value.shape}"
        )
    return np.ascontiguousarray(value)


def run_all(graph: Graph, inputs: Sequence[Int8]) -> dict[int, Array]:
    """Every tensor by index, constants included, for the given inputs (int8 NHWC, in order of graph.inputs)."""
    if len(inputs) != len(graph.inputs):
        raise InvalidModelError(f"graph {graph.name} has {len(graph.inputs)} inputs, got {len(inputs)}")
    values: dict[int, Array] = {i: t.data for i, t in enumerate(graph.tensors) if t.data is not None}
    for index, value in zip(graph.inputs, inputs, strict=True):
        tensor = graph.tensors[index]
        if value.dtype != np.int8 or value.shape != tensor.shape:
            raise InvalidModelError(f"input {tensor.name} is int8 {tensor.shape}, got {value.dtype} {value.shape}")
        values[index] = value
    for node in graph.nodes:
        values[node.output] = run_node(graph, node, [values[i] for i in node.inputs])
    return values


def run(graph: Graph, inputs: Sequence[Int8]) -> list[Int8]:
    """The outputs of the graph (int8 NHWC, in order of graph.outputs)."""
    values = run_all(graph, inputs)
    return [values[i].astype(np.int8) for i in graph.outputs]
