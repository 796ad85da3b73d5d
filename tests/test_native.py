"""The C core through native: building and checking graphs, the interpreter against torch, lifetimes, failures."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mera_torch import errors, native, oracle
from mera_torch.native import Context, Graph, Interpreter
from mera_torch.platform import find

Shape = tuple[int, int, int, int]


def single(op: str, shapes: list[Shape], out: Shape, attrs: dict[str, int], **quantization: object) -> Graph:
    """A graph of one node with int8 inputs. quantization: scale and zero point of the inputs, in order, and of y."""
    graph = Graph("single")
    inputs = []
    for i, shape in enumerate(shapes):
        inputs.append(graph.tensor(f"x{i}", shape))
        graph.quantize(inputs[-1], *quantization.get(f"x{i}", (0.1, 3)))
        graph.input(inputs[-1])
    y = graph.tensor("y", out)
    graph.quantize(y, *quantization.get("y", (0.1, 3)))
    graph.node(op, inputs, y, attrs, name=op)
    graph.output(y)
    return graph.finish()


def random_int8(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2)


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).contiguous().numpy()


# ---- operators against torch ----

# height, width, channels, outputs, kernel, stride, padding (top, bottom, left, right), dilation, groups
CONVOLUTIONS = [
    (8, 9, 5, 7, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    (9, 8, 3, 16, (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    (7, 7, 16, 33, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    (7, 7, 16, 65, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    (1, 1, 70, 130, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    (11, 10, 4, 6, (3, 2), (2, 3), (0, 2, 1, 3), (2, 3), 2),
    (10, 11, 12, 12, (3, 3), (1, 2), (1, 1, 1, 1), (1, 1), 12),
    (6, 6, 8, 24, (5, 5), (1, 1), (2, 2, 2, 2), (1, 1), 8),
    (6, 6, 6, 9, (3, 3), (1, 1), (4, 4, 4, 4), (2, 2), 3),
    (20, 20, 2, 3, (2, 2), (1, 1), (0, 0, 0, 0), (1, 1), 1),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("kernels, float64", [("generic", 0), ("auto", 0), ("auto", 1)])
def test_conv2d_is_torchs_on_integers(case: tuple, kernels: str, float64: int) -> None:
    h, w, ci, co, kernel, stride, (top, bottom, left, right), dilation, groups = case
    rng = np.random.default_rng(1)
    x, weights = random_int8(2, h, w, ci), random_int8(co, *kernel, ci // groups, seed=2)
    bias = rng.integers(-1000, 1000, (1, 1, 1, co)).astype(np.int32)
    zero = 5
    padded = F.pad(nchw(x) - zero, (left, right, top, bottom))
    w_nchw = torch.from_numpy(weights.astype(np.float64)).permute(0, 3, 1, 2)
    acc = nhwc(F.conv2d(padded, w_nchw, torch.from_numpy(bias.ravel()).double(), stride, 0, dilation, groups))

    graph = Graph("conv", Context(kernels=kernels))
    ix = graph.tensor("x", x.shape)
    graph.quantize(ix, 0.5, zero)
    graph.input(ix)
    iw, ib, iy = graph.constant("w", weights), graph.constant("b", bias), graph.tensor("y", acc.shape)
    scales = (2.0 ** rng.uniform(-12, -6, co)).astype(np.float32)
    graph.quantize(iw, scales, 0)
    graph.quantize(iy, 0.5, -7)
    pads = {"pad_top": top, "pad_bottom": bottom, "pad_left": left, "pad_right": right}
    strides = {"stride_h": stride[0], "stride_w": stride[1], "dilation_h": dilation[0], "dilation_w": dilation[1]}
    attrs = {**pads, **strides, "groups": groups, "clamp_min": -100, "float64_rescale": float64}
    graph.node("conv2d", [ix, iw, ib], iy, attrs, name="conv")
    graph.output(iy)
    found = Interpreter(graph.finish()).run([x])[0]
    if float64:
        levels = np.sign(acc) * np.floor(np.abs(acc * scales.astype(np.float64)) + 0.5)
    else:
        levels = oracle.rescale(acc.astype(np.int64), scales.astype(np.float64))
    wanted = np.clip(levels - 7, -100, 127)
    np.testing.assert_array_equal(found, wanted)
    assert graph.nodes[0].macs == acc.size * weights[0].size


@pytest.mark.parametrize("kernel, stride, pad, dilation", [(3, 2, 1, 1), (2, 2, 0, 1), (5, 1, 2, 1), (3, 1, 1, 2)])
def test_max_pool2d_is_torchs(kernel: int, stride: int, pad: int, dilation: int) -> None:
    x = random_int8(2, 9, 12, 5)
    wanted = nhwc(F.max_pool2d(nchw(x), kernel, stride, pad, dilation))
    pads = dict.fromkeys(("pad_top", "pad_bottom", "pad_left", "pad_right"), pad)
    attrs = {**pads, "kernel_h": kernel, "kernel_w": kernel, "stride_h": stride, "stride_w": stride}
    attrs |= {"dilation_h": dilation, "dilation_w": dilation}
    graph = single("max_pool2d", [x.shape], wanted.shape, attrs)
    np.testing.assert_array_equal(Interpreter(graph).run([x])[0], wanted)


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize(
    "kernel, stride, pad, ceil", [(3, 2, 1, False), (3, 2, 1, True), (2, 2, 0, False), (4, 3, 2, True)]
)
def test_avg_pool2d_is_torchs(kernel: int, stride: int, pad: int, ceil: bool, include: int) -> None:
    x = random_int8(2, 9, 12, 5)
    mean = F.avg_pool2d(nchw(x) - 3, kernel, stride, pad, ceil, bool(include))
    real = np.round(nhwc(mean) + 3, 9)
    pads = dict.fromkeys(("pad_top", "pad_bottom", "pad_left", "pad_right"), pad)
    attrs = {**pads, "kernel_h": kernel, "kernel_w": kernel, "stride_h": stride, "stride_w": stride}
    graph = single("avg_pool2d", [x.shape], real.shape, {**attrs, "count_include_pad": include})
    wanted = np.where(real < 0, np.ceil(real - 0.5), np.floor(real + 0.5))
    np.testing.assert_array_equal(Interpreter(graph).run([x])[0], wanted)


@pytest.mark.parametrize(
    "a, b",
    [
        ((2, 3, 4, 5), (2, 3, 4, 5)),
        ((2, 3, 4, 5), (1, 1, 1, 5)),
        ((2, 1, 1, 5), (2, 3, 4, 5)),
        ((2, 3, 4, 5), (1, 1, 1, 1)),
        ((2, 3, 4, 5), (2, 3, 4, 1)),
        ((2, 3, 4, 5), (1, 3, 1, 5)),
        ((1, 3, 4, 1), (1, 1, 1, 1)),
        ((1, 1, 1, 1), (1, 1, 1, 1)),
        ((2, 1, 4, 1), (2, 3, 4, 5)),
        ((1, 40, 40, 30), (1, 40, 40, 30)),
    ],
)
@pytest.mark.parametrize("op", ["add", "sub", "mul"])
def test_elementwise_is_within_a_step_of_the_real_result(op: str, a: Shape, b: Shape) -> None:
    x, y = random_int8(*a), random_int8(*b, seed=1)
    out = tuple(np.maximum(a, b).tolist())
    quantization = {"x0": (0.11, 4), "x1": (0.23, -9), "y": (0.37 if op != "mul" else 3.0, 6)}
    graph = single(op, [a, b], out, {"clamp_max": 100}, **quantization)
    real_x, real_y = (x.astype(float) - 4) * 0.11, (y.astype(float) + 9) * 0.23
    real = {"add": real_x + real_y, "sub": real_x - real_y, "mul": real_x * real_y}[op]
    wanted = np.clip(real / quantization["y"][0] + 6, -128, 100)
    assert np.abs(Interpreter(graph).run([x, y])[0] - wanted).max() <= 0.51


def test_mean_is_within_a_step_of_the_real_result() -> None:
    x = random_int8(3, 7, 6, 9)
    graph = single("mean", [x.shape], (3, 1, 1, 9), {}, y=(0.02, -5))
    wanted = np.clip((x.astype(float).mean((1, 2), keepdims=True) - 3) * 0.1 / 0.02 - 5, -128, 127)
    assert np.abs(Interpreter(graph).run([x])[0] - wanted).max() <= 0.5 + 2**-3 + 1e-6  # M rounds twice, with s = -2


def test_sum_is_within_a_step_of_the_real_result() -> None:
    x = random_int8(3, 7, 6, 9)
    graph = single("mean", [x.shape], (3, 1, 1, 9), {"sum": 1}, y=(2.0, -5))
    wanted = np.clip((x.astype(float) - 3).sum((1, 2), keepdims=True) * 0.1 / 2.0 - 5, -128, 127)
    assert np.abs(Interpreter(graph).run([x])[0] - wanted).max() <= 0.52


def test_lut_looks_up_every_value() -> None:
    table = random_int8(1, 1, 1, 256, seed=3)
    graph = Graph("lut")
    x, y = graph.tensor("x", (1, 16, 16, 1)), graph.tensor("y", (1, 16, 16, 1))
    graph.quantize(x, 1.0, 0)
    graph.quantize(y, 0.5, 0)
    graph.input(x)
    graph.node("lut", [x, graph.constant("table", table)], y, name="lut")
    graph.output(y)
    values = np.arange(-128, 128).astype(np.int8)
    found = Interpreter(graph.finish()).run([values.reshape(1, 16, 16, 1)])[0]
    np.testing.assert_array_equal(found.ravel(), table.ravel())


X = random_int8(2, 3, 4, 5)
MOVEMENTS = [
    ("reshape", [X], X.reshape(1, 6, 1, 20), {}),
    ("transpose", [X], X.transpose(0, 3, 1, 2), {"perm_1": 3, "perm_2": 1, "perm_3": 2}),
    ("transpose", [X], X.transpose(3, 2, 1, 0), {"perm_0": 3, "perm_1": 2, "perm_2": 1, "perm_3": 0}),
    ("slice", [X], X[:, 1:, ::3, 1:4:2], {"begin_h": 1, "step_w": 3, "begin_c": 1, "step_c": 2}),
    ("slice", [X], X[1:], {"begin_n": 1}),
    ("concat", [X, X[..., :2], X], np.concatenate([X, X[..., :2], X], 3), {}),
    ("concat", [X, X[:, :1]], np.concatenate([X, X[:, :1]], 1), {"axis": 1}),
    ("concat", [X, X], np.concatenate([X, X], 0), {"axis": 0}),
    (
        "pad",
        [X],
        np.pad(X, ((0, 0), (1, 2), (3, 0), (1, 4)), constant_values=-7),
        {"pad_top": 1, "pad_bottom": 2, "pad_left": 3, "pad_channel_before": 1, "pad_channel_after": 4, "value": -7},
    ),
]


@pytest.mark.parametrize("op, inputs, wanted, attrs", MOVEMENTS, ids=[f"{m[0]}{i}" for i, m in enumerate(MOVEMENTS)])
def test_movement_is_numpys(op: str, inputs: list[np.ndarray], wanted: np.ndarray, attrs: dict[str, int]) -> None:
    graph = single(op, [x.shape for x in inputs], wanted.shape, attrs)
    np.testing.assert_array_equal(Interpreter(graph).run(inputs)[0], wanted)


# ---- what graphs are refused ----

GOOD = """
graph "good"
tensor %0 "x" int8[1,4,4,4] scale 0.1 zero 1
tensor %1 "w" int8[2,3,3,4] scale [0.1, 0.2] = random(1)
tensor %2 "b" int32[1,1,1,2] = splat(0)
tensor %3 "y" int8[1,4,4,2] scale 0.1 zero 1
tensor %4 "z" int8[1,4,4,2] scale 0.1 zero 1
input %0
%3 "conv" = conv2d(%0, %1, %2) {pad_top=1, pad_bottom=1, pad_left=1, pad_right=1} layer "stem" source "net.py:7"
%4 "next" = max_pool2d(%3) {kernel_h=3, kernel_w=3, pad_top=1, pad_bottom=1, pad_left=1, pad_right=1}
output %4
"""
POOL = "max_pool2d(%3) {kernel_h=3, kernel_w=3, pad_top=1, pad_bottom=1, pad_left=1, pad_right=1}"

REFUSED = [
    ("pad_top=1", "pad_top=-1", r'conv2d "conv" in layer stem \(net.py:7\): pad_top must be 0 to 65535, got -1'),
    ("pad_top=1", "stride_h=0", r"stride_h must be 1 to 65535, got 0"),
    ("pad_top=1", "pad_top=2", r"output's shape must be \[1, 5, 4, 2\], got \[1, 4, 4, 2\]"),
    ("pad_top=1", "dilation_h=3, pad_top=1", r"kernel must fit the padded input, its height spans 7 of 6"),
    ("pad_top=1", "groups=3, pad_top=1", r"groups must divide .* got 3 for 4 and 2"),
    ("pad_top=1", "groups=2, pad_top=1", r"weights' last dimension must be .* = 2, got 4"),
    ("pad_top=1", "clamp_min=5, clamp_max=4, pad_top=1", r"clamp_min must not exceed clamp_max, got 5 and 4"),
    ("pad_top=1", "clamp_max=128, pad_top=1", r"clamp_max must be -128 to 127, got 128"),
    ("= random(1)", "zero 1 = random(1)", r"weights' zero points must be 0, got 1"),
    ("int8[2,3,3,4] scale [0.1, 0.2]", "int8[2,3,3,4]", r"weights must have 1 scale or 2, got 0"),
    ("int32[1,1,1,2]", "int32[1,1,1,3]", r"bias must be an int32 constant of shape \[1, 1, 1, 2\]"),
    ("int32[1,1,1,2] = splat(0)", "int8[1,1,1,2] scale 1 = splat(0)", r"bias must be an int32 constant"),
    ("int8[1,4,4,4] scale 0.1 zero 1", "int8[1,4,4,4]", r"an activation must be quantized with one scale"),
    ("int8[1,4,4,4] scale 0.1", "int8[1,4,4,5] scale 0.1", r"weights' last dimension must be"),
    (
        POOL,
        POOL.replace("pad_top=1, pad_bottom=1", "stride_h=2, pad_top=3, pad_bottom=2"),
        r"along the height window 0 holds none",
    ),
    (
        POOL,
        "max_pool2d(%3) {kernel_h=2, kernel_w=3, pad_top=1, dilation_h=4, pad_left=1, pad_right=1}",
        r"must be 1, got 4",
    ),
    (POOL, "max_pool2d(%3) {pad_bottom=9, stride_h=4}", r"along the height window 1 holds none"),
    (POOL, POOL.replace("kernel_h=3", "kernel_h=2"), r"output's height must be 5, got 4"),
    (POOL, "avg_pool2d(%3) {kernel_h=65535, kernel_w=65535}", r"must have at most 2\^23 elements"),
    (POOL, "avg_pool2d(%3) {count_include_pad=2}", r"count_include_pad must be 0 to 1, got 2"),
    (POOL, "concat(%3, %3)", r"output's shape must be \[1, 4, 4, 4\], got \[1, 4, 4, 2\]"),
    (POOL, "slice(%3) {begin_h=1}", r"in dimension 1 it is 4 of 4"),
    (POOL, "slice(%3) {step_h=0}", r"step_h must be 1 to"),
    (POOL, "transpose(%3) {perm_0=1}", r"each of the dimensions 0 to 3 once, got 1, 1, 2, 3"),
    (POOL, "transpose(%3) {perm_0=9}", r"perm_0 must be 0 to 3, got 9"),
    (POOL, "concat(%3, %0) {axis=3}", r"output's shape must be \[1, 4, 4, 6\]"),
    (POOL, "concat(%3, %0) {axis=1}", r"in dimension 3 input 1 has 4, input 0 has 2"),
    (POOL, "concat(%3) {axis=4}", r"axis must be 0 to 3, got 4"),
    (POOL, "pad(%3) {value=200}", r"value must be -128 to 127, got 200"),
    (POOL, "pad(%3) {pad_top=99999999}", r"pad_top must be 0 to 16777216"),
    (POOL, "resize_nearest(%3, %0, %2)", r"input 1 must be an int32 constant of shape \[1, 1, 1, 4\]"),
    (POOL, "resize_bilinear(%3, %2, %2)", r"input 1 must be an int32 constant of shape \[1, 1, 1, 4\]"),
    (POOL, "mean(%3)", r"output's shape must be \[1, 1, 1, 2\]"),
    (POOL, "lut(%3, %1)", r"table must be an int8 constant of shape \[1, 1, 1, 256\]"),
    (POOL, "softmax(%3, %2)", r"table must be an int32 constant of shape \[1, 1, 1, 256\]"),
    (POOL, "add(%3, %0)", r"each dimension of one operand must equal the other's or be 1, got \[1, 4, 4, 2\]"),
    (POOL, "add(%3, %1)", r"input 1 must be int8 with one scale and zero point; .* is int8 with 2"),
    (POOL, "mul(%3, %2)", r"input 1 must be int8 .* is int32"),
    (
        "int8[1,4,4,2] scale 0.1 zero 1\ninput",
        "int8[1,4,4,2] scale 0.2 zero 1\ninput",
        r"output's scale and zero point",
    ),
    ("output %4", "output %3", r'tensor 4 "z": it must be used by a node or be a graph output'),
    ("output %4", "output %1", r'graph output "w": the tensor must not be a constant'),
    ("output %4", "output %4\noutput %4", r"must not be an output already"),
    ("input %0", "input %0\ninput %0", r"must not be an input already"),
    ("input %0", "input %0\ninput %1", r"must not be a constant"),
    ('%4 "next"', '%3 "next"', r"must not be written by another node"),
    ('%4 "next"', '%0 "next"', r"must not be a graph input"),
    ("int8[1,4,4,4]", "int8[16777217,1,1,1]", r"every dimension must be 1 to 2\^24, got 16777217"),
    ("int8[1,4,4,4]", "int8[65536,65536,1,1]", r"at most 2\^31-1 elements, got shape \[65536, 65536, 1, 1\]"),
]


def test_the_good_graph_is_good() -> None:
    Graph.parse(GOOD)


@pytest.mark.parametrize("old, new, message", REFUSED, ids=[row[1].splitlines()[-1][:40] for row in REFUSED])
def test_malformed_graphs_are_refused_with_name_constraint_and_value(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(errors.InvalidModelError, match=message):
        Graph.parse(GOOD.replace(old, new, 1))


def test_a_reshape_keeps_the_number_of_elements() -> None:
    with pytest.raises(errors.InvalidModelError, match="as many elements as the input, got 32 and 64"):
        single("reshape", [(1, 4, 4, 4)], (1, 4, 4, 2), {})


def test_an_output_scale_too_small_for_add_is_refused() -> None:
    with pytest.raises(errors.InvalidModelError, match=r"output's scale must exceed 2\^-19 of the larger input scale"):
        single("add", [(1, 1, 1, 4)] * 2, (1, 1, 1, 4), {}, x0=(1.0, 0), y=(1e-7, 0))


def test_arguments_are_checked_before_c_sees_them() -> None:
    graph = Graph("arguments")
    x = graph.tensor("x", (1, 2, 2, 1))
    with pytest.raises(errors.InvalidModelError, match="rank must be 4"):
        graph.tensor("flat", (4,))
    with pytest.raises(errors.UnsupportedError, match="float32"):
        graph.tensor("real", (1, 1, 1, 1), "float32")
    with pytest.raises(errors.UnsupportedError, match="int64"):
        graph.constant("wide", np.zeros((1, 1, 1, 1), np.int64))
    with pytest.raises(errors.UnsupportedError, match="did you mean 'max_pool2d'"):
        graph.node("maxpool2d", [x], x, name="n")
    with pytest.raises(errors.InvalidModelError, match="unknown attribute 'kernel'.*kernel_[hw]"):
        graph.node("max_pool2d", [x], x, {"kernel": 3}, name="n")
    with pytest.raises(errors.InvalidModelError, match="scale must be finite"):
        graph.quantize(x, float("nan"))
    with pytest.raises(errors.InvalidModelError, match="zero point must be -128 to 127, got 128"):
        graph.quantize(x, 1.0, 128)
    with pytest.raises(errors.InvalidModelError, match="must be finished before"):
        Interpreter(graph)
    with pytest.raises(errors.InvalidModelError, match="at least one node"):
        graph.finish()


def test_inputs_of_a_run_are_checked() -> None:
    interpreter = Interpreter(Graph.parse(GOOD))
    good = np.zeros((1, 4, 4, 4), np.int8)
    for bad, message in [
        ([], "it has 1 inputs, got 0"),
        ([good, good], "it has 1 inputs, got 2"),
        ([good.astype(np.float32)], "must be an int8 numpy array, got float32"),
        ([good[:, :3]], r"must have shape \[1, 4, 4, 4\], got \[1, 3, 4, 4\]"),
        ([good.tolist()], "must be an int8 numpy array, got list"),
    ]:
        with pytest.raises(errors.InvalidModelError, match=message):
            interpreter.run(bad)
    strided = random_int8(1, 4, 4, 8)[..., ::2]
    np.testing.assert_array_equal(interpreter.run([strided])[0], interpreter.run([strided.copy()])[0])


# ---- the interpreter ----


def chain() -> Graph:
    """Branches and reuse of memory: y = mean(((x + c) + pool) * x) and an inner tensor as outputs."""
    return Graph.parse("""
graph "chain"
tensor %0 "x" int8[2,6,6,8] scale 0.1 zero 1
tensor %1 "c" int8[1,1,1,8] scale 0.1 zero 0 = random(3)
tensor %2 "a" int8[2,6,6,8] scale 0.1 zero 1
tensor %3 "p" int8[2,6,6,8] scale 0.1 zero 1
tensor %4 "s" int8[2,6,6,8] scale 0.2 zero 0
tensor %5 "m" int8[2,6,6,8] scale 0.3 zero 0
tensor %6 "y" int8[2,1,1,8] scale 0.1 zero 0
input %0
%2 "add" = add(%0, %1)
%3 "pool" = max_pool2d(%2) {kernel_h=3, kernel_w=3, pad_top=1, pad_bottom=1, pad_left=1, pad_right=1}
%4 "sum" = add(%2, %3)
%5 "square" = mul(%4, %4)
%6 "mean" = mean(%5)
output %6
output %3
""")


def test_shared_memory_gives_what_separate_memory_gives() -> None:
    graph, x = chain(), random_int8(2, 6, 6, 8)
    interpreter = Interpreter(graph)
    first = interpreter.run([x])
    every = interpreter.run_all([x])
    assert sorted(every) == list(range(7))
    for output, info in zip(first, graph.outputs, strict=True):
        np.testing.assert_array_equal(output, every[info.index])
    np.testing.assert_array_equal(every[0], x)
    for again, output in zip(interpreter.run([x]), first, strict=True):
        np.testing.assert_array_equal(again, output)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads: int) -> None:
    x = random_int8(2, 6, 6, 8)
    text = chain().text()
    found = Interpreter(Graph.parse(text, Context(threads=threads))).run([x])
    for output, wanted in zip(found, Interpreter(chain()).run([x]), strict=True):
        np.testing.assert_array_equal(output, wanted)


def test_two_python_threads_may_share_an_interpreter() -> None:
    interpreter, x = Interpreter(chain()), random_int8(2, 6, 6, 8)
    wanted, wrong = interpreter.run([x])[0], []

    def work() -> None:
        for _ in range(20):
            if not np.array_equal(interpreter.run([x])[0], wanted):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- compiling ----


def test_an_exception_in_progress_stops_the_compilation_and_comes_out() -> None:
    class Stop(Exception):
        pass

    stages: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        assert 0 <= done <= total
        raise Stop

    graph, platform = Graph.parse(GOOD), find("SAKURA_1")
    with pytest.raises(Stop):
        graph.compile(platform, progress=progress)
    assert len(stages) == 1
    assert graph.compile(platform, progress=lambda *_: None).instruction_count > 0


def test_unknown_options_are_refused() -> None:
    with pytest.raises(errors.ConfigError, match="unknown compiler option 'worker'; did you mean 'workers'"):
        Graph.parse(GOOD).compile(find("SAKURA_1"), {"worker": 2})


def test_stages_can_be_dumped_and_unknown_ones_are_refused() -> None:
    graph = Graph.parse(GOOD)
    assert graph.dump("graph", find("SAKURA_1")).startswith('graph "good"')
    with pytest.raises(errors.MeraError, match="stage"):
        graph.dump("nothing", find("SAKURA_1"))


# ---- failures and lifetimes ----


def everything(context: Context) -> None:
    """Makes, checks, prints, parses, saves, loads and runs a graph."""
    graph = Graph.parse(GOOD, context)
    assert Graph.parse(graph.text(), context).text(with_data=False)
    again = Graph.load(graph.save(), context)
    Interpreter(again).run_all([np.zeros((1, 4, 4, 4), np.int8)])


def test_every_failing_allocation_is_an_out_of_memory_error() -> None:
    for fail_after in range(2000):
        try:
            everything(Context(fail_after=fail_after))
        except errors.OutOfMemoryError as error:
            assert "out of memory" in str(error)
            continue
        break
    else:
        pytest.fail("it never succeeds")
    assert fail_after > 30


def test_objects_outlive_their_makers_and_cycles_are_collected() -> None:
    interpreter, x = Interpreter(chain()), random_int8(2, 6, 6, 8)
    gc.collect()
    interpreter.run([x])
    for _ in range(20):  # each a cycle of context, graph and interpreter
        context = Context()
        graph = Graph.parse(GOOD, context)
        graph.cycle = [context, Interpreter(graph), graph]  # type: ignore[attr-defined]
        context.cycle = graph  # type: ignore[attr-defined]
    del context, graph
    gc.collect()


def test_the_core_needs_no_torch() -> None:
    code = "import sys, mera_torch.native, mera_torch.platform; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_kernel_sets_have_names() -> None:
    with pytest.raises(errors.InvalidModelError, match="there is no kernel set 'mmx'; this build has auto, .*generic"):
        Context(kernels="mmx")
    with pytest.raises(errors.InvalidModelError, match="threads must be 0 to 256, got -1"):
        Context(threads=-1)
    assert "kernels: " in native.core_features()


# ---- the host's side ----


@pytest.mark.parametrize("scale, zero", [(0.1, 3), (0.0078125, -128), (3.7, 127), (1e-30, 0), (1e30, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_quantize_is_torchs(scale: float, zero: int, channels_last: bool) -> None:
    x = np.random.default_rng(0).normal(0, 100 * scale, (2, 3, 4, 5)).astype(np.float32)
    x[0, 0, 0, :4] = [np.inf, -np.inf, 2.5 * scale, 3e38]
    scale32 = float(np.float32(scale))
    inverse = torch.tensor(1.0 / scale32, dtype=torch.float32)
    wanted = torch.clamp(torch.round(torch.from_numpy(x) * inverse) + zero, -128, 127).to(torch.int8).numpy()
    found = native.quantize_f32(x, scale, zero, channels_last)
    np.testing.assert_array_equal(found, wanted if channels_last else wanted.transpose(0, 2, 3, 1))
    back = native.dequantize_i8(found, scale, zero, channels_last)
    np.testing.assert_array_equal(back, (wanted.astype(np.float32) - zero) * np.float32(scale32))


def test_nan_becomes_the_zero_point() -> None:
    assert native.quantize_f32(np.full((1, 1, 1, 1), np.nan, np.float32), 0.5, 7).item() == 7


def test_the_boundary_is_checked() -> None:
    x = np.zeros((1, 1, 1, 1), np.float32)
    with pytest.raises(errors.InvalidModelError, match="scale must be finite and above 0, got 0"):
        native.quantize_f32(x, 0.0, 0)
    with pytest.raises(errors.InvalidModelError, match="zero point must be -128 to 127, got 300"):
        native.quantize_f32(x, 1.0, 300)
    with pytest.raises(errors.InvalidModelError, match="must be float32, got float64"):
        native.quantize_f32(x.astype(np.float64), 1.0, 0)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidModelError, match="rank must be 4"):
        native.quantize_f32(x[0], 1.0, 0)


def test_tables_are_reflected() -> None:
    conv = native.OPS["conv2d"]
    assert (conv.min_inputs, conv.max_inputs, conv.attrs["stride_h"], conv.attrs["clamp_min"]) == (3, 3, 1, -128)
    assert list(native.OPS)[conv.index] == "conv2d"
    assert all(info.doc for info in native.OPS.values())
