"""Resizing: the DNA against TFLite's reference kernels, byte for byte, and PyTorch's operators within a step."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiled import built, quantized
from dna import machine
from torch import Tensor, nn

from mera_torch import errors, native, oracle, positions
from mera_torch.bisect import build
from mera_torch.graph_text import read
from mera_torch.platform import find

OPS = {"resize_nearest": 1, "resize_bilinear": 1024}
PLATFORMS = [find("SAKURA_1"), machine(units=2, array=16, sram_kib=16), machine(units=1, array=128, sram_kib=64)]


def resize(op: str, shape: tuple[int, ...], rows: Any, columns: Any) -> native.Graph:
    graph = native.Graph("resize")
    x, y = graph.tensor("x", shape), graph.tensor("y", (shape[0], len(rows), len(columns), shape[3]))
    for tensor in (x, y):
        graph.quantize(tensor, 0.1, 3)
    graph.input(x)
    tables = [
        graph.constant(name, np.asarray(list(t), np.int32).reshape(1, 1, 1, -1))
        for name, t in (("r", rows), ("c", columns))
    ]
    graph.node(op, [x, *tables], y, name="resize")
    graph.output(y)
    return graph.finish()


def random_int8(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def everywhere(graph: native.Graph, x: np.ndarray) -> np.ndarray:
    """The result, on which oracle, interpreter and simulator agree."""
    (wanted,) = oracle.run(read(graph.text(), {name: info.attrs for name, info in native.OPS.items()}), [x])
    assert np.array_equal(native.Interpreter(graph).run([x])[0], wanted)
    for platform in PLATFORMS:
        assert np.array_equal(native.Simulator(graph.compile(platform)).run([x])[0], wanted.ravel()), platform.name
    return wanted


# ---- TFLite ----


def tflite_cases(count: int) -> list[tuple[str, tuple[int, ...], tuple[int, int], bool, bool]]:
    rng, cases = random.Random(7), []
    while len(cases) < count:
        most = rng.choice([12, 40, 100])
        sizes = [rng.randint(1, most), rng.randint(1, 12), rng.randint(1, most), rng.randint(1, 12)]
        if rng.random() < 0.3:
            sizes[2] = sizes[0] * rng.randint(1, 3)
        if rng.random() < 0.5:
            sizes = [sizes[1], sizes[0], sizes[3], sizes[2]]
        align, half = rng.choice([(False, False), (True, False), (False, True), (True, True)])
        op = rng.choice(list(OPS))
        if op == "resize_bilinear" and align:
            half = False
        shape = (rng.choice([1, 1, 2]), sizes[0], sizes[1], rng.choice([1, 3, 17]))
        cases.append((op, shape, (sizes[2], sizes[3]), align, half))
    return cases


def test_tflite_gives_the_same_bytes() -> None:
    pytest.importorskip("ai_edge_litert")
    from tflite_models import Builder, references

    cases, jobs = tflite_cases(60), []
    for op, shape, (height, width), align, half in cases:
        kind = "Nearest_Neighbor" if op == "resize_nearest" else "Bilinear"
        model = Builder()
        x = model.tensor("x", shape, "int8", 0.1, 3)
        size = model.constant("size", np.array([height, width], np.int32))
        y = model.tensor("y", (shape[0], height, width, shape[3]), "int8", 0.1, 3)
        options = f"Resize{kind.replace('_', '')}Options"
        flags = {"alignCorners": align, "halfPixelCenters": half}
        model.op(f"RESIZE_{kind.upper()}", [x, size], [y], options, version=3, **flags)
        jobs.append((model.build([x], [y]), [random_int8(*shape)]))
    for case, (_, (x,)), values in zip(cases, jobs, references(jobs), strict=True):
        op, shape, size, align, half = case
        table = positions.tflite_nearest if op == "resize_nearest" else positions.tflite_bilinear
        rows, columns = (table(shape[1 + d], size[d], align, half) for d in (0, 1))
        assert isinstance(values, dict), values
        assert np.array_equal(everywhere(resize(op, shape, rows, columns), x), values[2]), case


# ---- tables of any kind ----


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "table",
    [
        lambda n, unit: [0] * 5,
        lambda n, unit: range((n - 1) * unit, -1, -unit),
        lambda n, unit: [((i * i) % n) * unit for i in range(3 * n)],
        lambda n, unit: np.random.default_rng(0).integers(0, (n - 1) * unit + 1, 40),
        lambda n, unit: [0, (n - 1) * unit] * 6,
        lambda n, unit: np.repeat(np.arange(n), 3) * unit,
        lambda n, unit: np.repeat(np.arange(n), 2 + 2 * (np.arange(n) % 3 == 1)) * unit,
    ],
    ids=["constant", "backwards", "zigzag", "random", "far apart", "thrice", "two or four times"],
)
def test_any_table(op: str, table: Callable[[int, int], Any]) -> None:
    unit = OPS[op]
    x = random_int8(2, 9, 14, 5)
    everywhere(resize(op, x.shape, list(table(9, unit)), list(table(14, unit))), x)


@pytest.mark.parametrize("op", OPS)
def test_a_large_image_on_a_small_memory(op: str) -> None:
    unit = OPS[op]
    x = random_int8(1, 70, 31, 24)
    for height in (35, 70, 141):
        everywhere(resize(op, x.shape, np.arange(height) * 69 * unit // (height - 1), np.arange(31) * unit), x)
        everywhere(
            resize(op, x.shape, np.arange(height) * 69 * unit // (height - 1), np.arange(45) * 30 * unit // 44), x
        )


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("channels", [3, 16, 24])
@pytest.mark.parametrize("op", OPS)
def test_repeated_rows(op: str, channels: int, factor: int) -> None:
    """Made once, and copied by the vector units, or by the DMA into DRAM; alone and within a concatenation."""
    unit, x = OPS[op], random_int8(2, 20, 13, channels)
    rows, columns = np.arange(20).repeat(factor) * unit, np.arange(13).repeat(factor) * unit
    everywhere(resize(op, x.shape, rows, columns), x)
    large = (2, 20 * factor, 13 * factor, channels)
    graph = native.Graph("join")
    a, y, z = (graph.tensor(n, s) for n, s in (("x", x.shape), ("y", large), ("z", (*large[:3], 2 * channels))))
    for tensor in (a, y, z):
        graph.quantize(tensor, 0.1, 3)
    graph.input(a)
    tables = [graph.constant(n, t.astype(np.int32).reshape(1, 1, 1, -1)) for n, t in (("r", rows), ("c", columns))]
    graph.node(op, [a, *tables], y, name="resize")
    graph.node("concat", [y, y], z, {"axis": 3}, name="concat")
    graph.output(z)
    everywhere(graph.finish(), x)


def test_an_extent_of_one_pixel() -> None:
    for op, unit in OPS.items():
        x = random_int8(1, 1, 7, 3)
        everywhere(resize(op, x.shape, [0, 0, 0], [3 * unit, 0]), x)


def test_a_table_and_a_fused_lut() -> None:
    text = """
graph "lut"
tensor %0 "x" int8[1, 4, 5, 20] scale 0.1 zero 3
tensor %1 "r" int32[1, 1, 1, 3] = list(100, 1500, 3072)
tensor %2 "c" int32[1, 1, 1, 2] = list(4096, 0)
tensor %3 "y" int8[1, 3, 2, 20] scale 0.1 zero 3
tensor %4 "t" int8[1, 1, 1, 256] = random(1)
tensor %5 "z" int8[1, 3, 2, 20] scale 0.2 zero 0
input %0
%3 "resize" = resize_bilinear(%0, %1, %2)
%5 "lut" = lut(%3, %4)
output %5
"""
    graph = native.Graph.parse(text)
    assert "+ lut" in graph.dump("fuse", PLATFORMS[0])
    everywhere(graph, random_int8(1, 4, 5, 20))


def instructions(graph: native.Graph) -> int:
    return graph.compile(find("DNAF100L0003")).text().count(".resize ")


def test_rules_of_rounding_are_straight_lines() -> None:
    """One instruction for a row of any size, the float roundings of TFLite and PyTorch included."""
    rng = random.Random(3)
    for _ in range(40):
        inputs, outputs = rng.randint(1, 2000), rng.randint(1, 2000)
        for align in (False, True):
            for half in (False, True):
                nearest = positions.tflite_nearest(inputs, outputs, align, half)
                bilinear = positions.tflite_bilinear(inputs, outputs, align, half and not align)
                assert instructions(resize("resize_nearest", (1, 1, inputs, 1), [0], nearest)) == 1
                assert instructions(resize("resize_bilinear", (1, 1, inputs, 1), [0], bilinear)) == 1


def test_tables_in_too_many_pieces_are_refused() -> None:
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 300, 2000), rng.integers(0, 300, 2000)
    graph = resize("resize_nearest", (1, 300, 300, 1), rows, columns)
    with pytest.raises(errors.UnsupportedError, match="at most 65536 pieces of straight line, got"):
        graph.compile(find("SAKURA_1"))


@pytest.mark.parametrize("op", OPS)
def test_positions_outside_of_the_image_are_refused(op: str) -> None:
    last = 4 * OPS[op]
    resize(op, (1, 5, 1, 1), [last], [0])
    for wrong in (-1, last + 1):
        with pytest.raises(errors.InvalidModelError, match=f"positions of input 1 must be 0 to {last}, got {wrong}"):
            resize(op, (1, 5, 1, 1), [0, wrong], [0])


# ---- PyTorch ----

INTERPOLATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "nearest": lambda v: F.interpolate(v, scale_factor=1.7),
    "nearest, smaller": lambda v: F.interpolate(v, size=(5, 3)),
    "nearest-exact": lambda v: F.interpolate(v, scale_factor=(1.3, 2.5), mode="nearest-exact"),
    "bilinear": lambda v: F.interpolate(v, scale_factor=2.0, mode="bilinear"),
    "bilinear, smaller": lambda v: F.interpolate(v, size=(5, 4), mode="bilinear"),
    "bilinear, aligned": lambda v: F.interpolate(v, size=(23, 9), mode="bilinear", align_corners=True),
    "bilinear, given scale": lambda v: F.interpolate(v, scale_factor=1.7, mode="bilinear"),
    "bilinear, recomputed scale": lambda v: F.interpolate(
        v, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True
    ),
    "bilinear, module": nn.Upsample(scale_factor=3, mode="bilinear", align_corners=True),
    "1-d nearest": lambda v: F.interpolate(v.flatten(2), scale_factor=1.5).unflatten(2, (-1, 2)),
    "1-d exact": lambda v: F.interpolate(v.flatten(2), size=100, mode="nearest-exact").unflatten(2, (-1, 2)),
    "1-d linear": lambda v: F.interpolate(v.flatten(2), scale_factor=1.5, mode="linear").unflatten(2, (-1, 2)),
}


class Resizing(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(torch.tanh(x))  # a table, exact: so the resizing alone can differ


def real_steps(converted: torch.fx.GraphModule, x: Tensor) -> float:
    """The steps between the DNA's result and the float result of the module's last float operators."""
    from compiled import run

    with torch.no_grad():
        wanted = converted(x)
    result = built(converted, x)
    assert len(result.regions) == 1, str(result.explanation)
    assert not result.explanation.on_host, str(result.explanation)
    return float((run(result, x)[0] - wanted).abs().max()) / result.regions[0].outputs[0].scale


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_interpolate_is_within_a_step_of_pytorchs(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 14)
    assert real_steps(quantized(Resizing(INTERPOLATIONS[name]), x), x) <= (1.01 if "inear" in name else 0.01)


@pytest.mark.parametrize("mode", ["bicubic", "area"])
def test_what_stays_on_the_host_says_why(mode: str) -> None:
    x = torch.randn(1, 3, 12, 14)
    result = built(quantized(Resizing(lambda v: F.interpolate(v, size=(5, 4), mode=mode)), x), x)
    if mode == "bicubic":
        assert any("bicubic" in row.reason for row in result.explanation.rows)
    else:
        assert result.regions


SELECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda v: v.index_select(2, torch.tensor([3, 0, 0, 11])),
    "columns": lambda v: v.index_select(3, torch.tensor([13, 2])),
    "channels": lambda v: v.index_select(1, torch.tensor([2, 1, 0, 1])),
    "batch": lambda v: v.index_select(0, torch.tensor([1, 0, 1])),
    "one": lambda v: v.index_select(2, torch.tensor([5])),
    "rank 2": lambda v: v.flatten(1).index_select(1, torch.arange(400, 10, -7)),
    "after a permutation": lambda v: v.permute(0, 2, 1, 3).index_select(2, torch.tensor([2, 0])).sigmoid(),
    "of a flattened dimension": lambda v: v.flatten(2).index_select(2, torch.arange(167, -1, -1)),
    "of an extent of one": lambda v: v[:, 1:2].index_select(1, torch.tensor([0, 0, 0])),
    "of all but one": lambda v: v.index_select(2, torch.tensor([4, 1])).index_select(3, torch.tensor([7, 7, 1])),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_index_select_by_a_constant_is_a_resize(name: str) -> None:
    """As importers write other rules of nearest resizing, and gathers."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 14)
    assert real_steps(quantized(Resizing(SELECTIONS[name]), x), x) <= 0.01


def test_exact_positions_of_other_formats_pass_through_pytorch() -> None:
    """torch.ops.mera_torch.resize_bilinear: exported, quantized, compiled, and still TFLite's bytes."""
    rows, columns = positions.tflite_bilinear(12, 31, False, False), positions.tflite_bilinear(14, 9, True, False)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rows", rows)
            self.register_buffer("columns", columns)

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.mera_torch.resize_bilinear(torch.relu(x), self.rows, self.columns)

    x = torch.randn(1, 3, 12, 14)
    result = built(quantized(Model(), x), x)
    (region,) = result.regions
    assert "resize_bilinear" in region.graph.text()
    tables = [t for t in region.graph.tensors if t.dtype == "int32"]
    assert [t.shape[3] for t in tables] == [31, 9]


def test_random_resizes_within_networks() -> None:
    from random_graphs import random_graph, random_inputs

    for seed in range(10):
        graph = random_graph(random.Random(seed), 5, ["resize", "join", "pad", "table", "pointwise", "cut"])
        native_graph, x = build(graph), random_inputs(graph, seed)
        wanted = oracle.run(graph, x)
        for platform in PLATFORMS:
            for w, g in zip(wanted, native.Simulator(native_graph.compile(platform)).run(x), strict=True):
                assert np.array_equal(w.ravel(), g), (seed, platform.name)
