"""Softmax: the DNA against TFLite's reference kernel (byte for byte) and PyTorch's float softmax (at most a step)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from compiled import built, quantized, run, steps_apart_by_node
from dna import machine
from torch import Tensor, fx, nn

from mera_torch import errors, native, oracle
from mera_torch.graph_text import read
from mera_torch.ops.common import QUANTIZE
from mera_torch.ops.softmax import exponentials
from mera_torch.platform import find

PLATFORMS = [find("SAKURA_1"), machine(units=2, array=16, sram_kib=32), machine(units=1, array=128, sram_kib=64)]


def softmax_graph(
    shape: tuple[int, ...], table: Tensor | np.ndarray, scale: float = 0.1, zero: int = 3
) -> native.Graph:
    graph = native.Graph("softmax")
    x, y = graph.tensor("x", shape), graph.tensor("y", shape)
    graph.quantize(x, scale, zero)
    graph.quantize(y, 1 / 256, -128)
    graph.input(x)
    constant = graph.constant("table", np.asarray(table, np.int32).reshape(1, 1, 1, 256))
    graph.node("softmax", [x, constant], y, name="softmax")
    graph.output(y)
    return graph.finish()


def everywhere(graph: native.Graph, x: np.ndarray) -> np.ndarray:
    """The result, on which oracle, interpreter and simulator agree."""
    (wanted,) = oracle.run(read(graph.text(), {name: info.attrs for name, info in native.OPS.items()}), [x])
    assert np.array_equal(native.Interpreter(graph).run([x])[0], wanted)
    for platform in PLATFORMS:
        assert np.array_equal(native.Simulator(graph.compile(platform)).run([x])[0], wanted.ravel()), platform.name
    return wanted


def random_rows(rng: np.random.Generator, shape: tuple[int, ...], spread: float) -> np.ndarray:
    return np.clip(np.round(rng.normal(0, spread, shape)), -128, 127).astype(np.int8)


# ---- TFLite ----


def test_tflite_gives_the_same_bytes() -> None:
    pytest.importorskip("ai_edge_litert")
    from tflite_models import Builder, ReferenceFailed, references

    rng, numbers, cases, jobs = random.Random(5), np.random.default_rng(5), [], []
    for _ in range(60):
        shape = (1, rng.randint(1, 3), rng.randint(1, 4), rng.choice([1, 2, 3, 10, 21, 100, 511, rng.randint(1, 900)]))
        beta = rng.choice([1.0, 1.0, 0.5, 2.5])
        scale = float(np.float32(2.0 ** rng.choice([rng.uniform(-8, 1), rng.uniform(-24, 8)])))
        x = random_rows(numbers, shape, rng.choice([0.3, 3, 20, 100]))
        model = Builder()
        index = model.tensor("x", shape, "int8", scale, rng.randint(-128, 127))
        result = model.tensor("y", shape, "int8", 1 / 256, -128)
        model.op("SOFTMAX", [index], [result], "SoftmaxOptions", beta=beta)
        cases.append((shape, scale, beta))
        jobs.append((model.build([index], [result]), [x]))
    compared = 0
    for (shape, scale, beta), (_, (x,)), values in zip(cases, jobs, references(jobs), strict=True):
        found = everywhere(softmax_graph(shape, exponentials(scale, beta), scale), x)
        if isinstance(values, ReferenceFailed):  # it cannot add 512 exponentials of about 1
            assert shape[3] > 511 and "SIGABRT" in str(values)
            continue
        assert np.array_equal(found, values[1]), (shape, scale, beta)
        compared += 1
    assert compared > 50


@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-60, 2.0**-27, 2.0**-26, 2.0**-25.9, 1e-3, 1.0, 31.0, 1e10, 3e38])
def test_every_scale_has_exponentials(scale: float) -> None:
    table = exponentials(scale).double() / 2**31
    real = torch.exp(-scale * torch.arange(256).double())
    assert table[0] == 1 - 2.0**-31
    assert (table - real).abs().max() < 1e-6  # where TFLite stops adding, they are below e^-15
    assert (table.diff() <= 0).all()


# ---- any number of channels ----


@pytest.mark.parametrize("channels", [512, 1000, 4096, 8191, 8192, 8193, 12000])
@pytest.mark.parametrize("kind", ["equal", "one", "half"])
def test_more_channels_than_tflite_can_add(channels: int, kind: str) -> None:
    """TFLite aborts where the exponentials' sum is 512 or more; here the result is the real one, rounded."""
    x = np.zeros((1, 1, 1, channels), np.int8)
    if kind == "one":
        x[..., 7] = 127
    if kind == "half":
        x[..., : channels // 2] = -128
    found = everywhere(softmax_graph(x.shape, exponentials(0.05)), x)
    real = torch.softmax(torch.from_numpy(x[0, 0, 0].astype(np.float64)) * 0.05, 0).numpy()
    assert np.abs(found[0, 0, 0] + 128.0 - np.minimum(real * 256, 255)).max() <= 0.51


def test_an_image_larger_than_sram_and_a_slice_of_channels() -> None:
    rng = np.random.default_rng(0)
    x = random_rows(rng, (2, 40, 30, 19), 30)
    everywhere(softmax_graph(x.shape, exponentials(0.1)), x)
    text = """
graph "slices"
tensor %0 "x" int8[1, 6, 7, 40] scale 0.1 zero 3
tensor %1 "part" int8[1, 6, 7, 21] scale 0.1 zero 3
tensor %2 "t" int32[1, 1, 1, 256] = splat(2147483647)
tensor %3 "y" int8[1, 6, 7, 21] scale 0.00390625 zero -128
tensor %4 "z" int8[1, 6, 14, 21] scale 0.00390625 zero -128
input %0
%1 "slice" = slice(%0) {begin_c=5}
%3 "softmax" = softmax(%1, %2)
%4 "concat" = concat(%3, %3) {axis=2}
output %4
"""
    everywhere(native.Graph.parse(text), random_rows(rng, (1, 6, 7, 40), 30))


def test_cycles_follow_the_formula() -> None:
    """A class head and a segmentation map: within a fifth of the vector unit's formula."""
    platform = find("DNAF100L0003")
    for shape in ((1, 1, 1, 1000), (1, 32, 32, 21)):
        simulator = native.Simulator(softmax_graph(shape, exponentials(0.1)).compile(platform))
        pixels = math.prod(shape[:3])
        formula = pixels * (math.ceil(shape[3] / 64) + 2 * math.ceil(shape[3] / 16))
        busy = simulator.layers()[0]["vector_cycles"]
        assert formula <= busy <= 1.2 * formula + 100


@pytest.mark.parametrize(
    ("first", "other", "scale", "message"),
    [
        (2**31 - 2, 0, 1 / 256, "must begin with 2147483647.*got 2147483646 at index 0"),
        (2**31 - 1, -1, 1 / 256, "nothing below 0, got -1 at index 9"),
        (2**31 - 1, 0, 1 / 255, r"output must have scale 1/256 and zero point -128, got 0\.0039"),
    ],
)
def test_what_softmax_must_be_given(first: int, other: int, scale: float, message: str) -> None:
    table = np.zeros((1, 1, 1, 256), np.int32)
    table[..., 0], table[..., 9] = first, other
    graph = native.Graph("bad")
    x, y = graph.tensor("x", (1, 1, 1, 4)), graph.tensor("y", (1, 1, 1, 4))
    graph.quantize(x, 1.0, 0)
    graph.quantize(y, scale, -128)
    graph.input(x)
    graph.node("softmax", [x, graph.constant("t", table)], y, name="s")
    graph.output(y)
    with pytest.raises(errors.InvalidModelError, match=message):
        graph.finish()


# ---- PyTorch ----


class After(nn.Module):
    """A function between two tables, so that what comes before and behind it is exact."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.function(torch.nn.functional.silu(x))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "vector": (lambda v: torch.softmax(v, 0), (11,)),
    "classes": (lambda v: torch.softmax(v, 1), (3, 10)),
    "batch": (lambda v: torch.softmax(v, 0), (3, 10)),
    "one class": (lambda v: torch.softmax(v, 1), (3, 1)),
    "last of three": (lambda v: torch.softmax(v, -1), (2, 5, 7)),
    "channels": (nn.Softmax2d(), (2, 6, 5, 4)),
    "rows": (lambda v: torch.softmax(v, 2), (2, 6, 5, 4)),
    "columns": (lambda v: torch.softmax(v, 3), (2, 6, 5, 4)),
    "flattened": (lambda v: torch.softmax(v.flatten(1), 1), (2, 6, 5, 4)),
    "heads": (lambda v: torch.softmax(v.reshape(2, 3, 2, 20).transpose(1, 2), -1).sigmoid(), (2, 6, 5, 4)),
    "five dimensions": (lambda v: torch.softmax(v.reshape(2, 3, 2, 5, 4), 2), (2, 6, 5, 4)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_softmax_is_within_a_step_of_pytorchs(name: str) -> None:
    function, shape = FUNCTIONS[name]
    torch.manual_seed(0)
    x = 3 * torch.randn(shape)
    converted = quantized(After(function), x)
    result = built(converted, x)
    assert len(result.regions) == 1 and not result.explanation.on_host, str(result.explanation)
    assert "= softmax(" in result.regions[0].graph.text()
    assert max(steps_apart_by_node(converted, x).values()) <= 1
    with torch.no_grad():
        apart = (run(result, x)[0] - converted(x)).abs().max()
    assert apart <= 1.01 * max(result.regions[0].outputs[0].scale, 2 / 256)


def requantized(converted: fx.GraphModule, scale: float, zero: int) -> fx.GraphModule:
    """Another quantization of the result, as other quantizers choose it."""
    for node in converted.graph.nodes:
        if node.target is QUANTIZE and "softmax" in str(node.args[0]):
            (back,) = node.users
            node.args = (node.args[0], scale, zero, *node.args[3:])
            back.args = (node, scale, zero, *back.args[3:])
    converted.recompile()
    return converted


def test_another_quantization_of_the_result() -> None:
    x = torch.randn(3, 10)
    coarse = requantized(quantized(After(lambda v: torch.softmax(v, 1)), x), 1 / 128, -100)
    result = built(coarse, x)
    assert not result.explanation.on_host and "= lut(" in result.regions[0].graph.text()
    with torch.no_grad():
        apart = (run(result, x)[0] - coarse(x)).abs().max()
    assert apart <= 2.02 / 128 + result.regions[0].outputs[0].scale
    fine = built(requantized(quantized(After(lambda v: torch.softmax(v, 1)), x), 1 / 1000, -128), x)
    (row,) = [row for row in fine.explanation.rows if "softmax" in row.op]
    assert "softmax's result must have a scale of at least 1/256" in row.reason


def test_a_factor_in_front_of_softmax_goes_into_its_table() -> None:
    """As importers write TFLite's beta, which stands between dequantize and softmax."""
    x = torch.randn(3, 10)
    converted = quantized(After(lambda v: torch.softmax(v, 1)), x)
    for node in converted.graph.nodes:
        if "softmax" in str(node.target):
            with converted.graph.inserting_before(node):
                scaled = converted.graph.call_function(torch.ops.aten.mul.Tensor, (node.args[0], 2.5))
            node.replace_input_with(node.args[0], scaled)
    converted.recompile()
    result = built(converted, x)
    assert not result.explanation.on_host, str(result.explanation)
    with torch.no_grad():
        assert (run(result, x)[0] - converted(x)).abs().max() <= 2.02 / 256


def test_softmax_beside_a_float_operator_stays_in_float() -> None:
    """There int8 would cost accuracy (256 levels make ties) and gain nothing."""
    x = torch.randn(3, 10)
    with pytest.raises(errors.UnsupportedError, match="no operator that the DNA computes"):
        quantized(nn.Softmax(1), x)
    last = built(quantized(nn.Sequential(nn.Linear(10, 4), nn.Softmax(1), nn.Flatten()), x), x).explanation
    assert [row.op for row in last.rows if row.where.startswith("DNA")] == ["aten.linear.default"]
    first = built(quantized(nn.Sequential(nn.Softmax(1), nn.Linear(10, 4)), x), x).explanation
    assert [row.op for row in first.rows if row.where.startswith("DNA")] == ["aten.linear.default"]
