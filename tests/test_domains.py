"""What must share one scale does; what would collapse under it gets a scale of its own: detection heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import DETECTORS, SIZE, Ssd, boxes_of, detector, scores_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import mera_torch
from mera_torch.quant import QuantConfig, pipeline
from mera_torch.quant.graphs.capture import export_float
from mera_torch.quant.graphs.domains import Domains
from mera_torch.quant.graphs.patterns import KEPT_IN_FLOAT
from mera_torch.quant.transforms.analysis import Analysis, analyze
from mera_torch.quant.transforms.fake import sqnr_db
from mera_torch.quant.transforms.heads import decide

qd = torch.ops.quantized_decomposed
Q, DQ = qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default


class Function(nn.Module):
    """A function of two convolutions' results, [N, 4, 8, 8] each."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any], small: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), function
        with torch.no_grad():
            self.b.weight *= small
            self.b.bias *= small  # type: ignore[operator]

    def forward(self, x: Tensor) -> Any:
        return self.function(self.a(x), self.b(x))


def images(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(1, 3, 8, 8, generator=generator) for _ in range(count)]


def analysis_of(model: nn.Module, data: list[Tensor], **config: Any) -> Analysis:
    return analyze(export_float(model.eval(), (data[0],)), [(x,) for x in data], QuantConfig(**config))


def run(model: nn.Module, data: list[Tensor], **config: Any) -> pipeline.Quantization:
    return pipeline.run(model, data[0], data, {"correct_bias": False, **config}, progress=False)


def quality(result: pipeline.Quantization, data: list[Tensor], pick: Callable[[Any], Tensor]) -> float:
    with torch.no_grad():
        wanted, found = (torch.cat([pick(m(x)) for x in data]) for m in (result.original, result.module))
    return sqnr_db(wanted, found)


# ---- domains ----


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
@settings(max_examples=50, deadline=None)
def test_domains_are_what_joins_connect(pairs: list[tuple[int, int]]) -> None:
    graph = torch.fx.Graph()
    nodes = [graph.placeholder(f"v{i}") for i in range(10)]
    domains, wanted = Domains(), [{i} for i in range(10)]
    for a, b in pairs:
        domains.join([nodes[a], nodes[b]])
        joined = wanted[a] | wanted[b]
        for i in joined:
            wanted[i] = joined
    for i, j in ((i, j) for i in range(10) for j in range(10)):
        assert (domains.find(nodes[i]) is domains.find(nodes[j])) == (j in wanted[i])
    members = {frozenset(held) for held in domains.members(nodes).values()}
    assert members == {frozenset(nodes[i] for i in joined) for joined in wanted}


CHAINS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "nested cat": lambda a, b: torch.cat([torch.cat([a, b], 1), a[:, :2]], 1),
    "cat of slices": lambda a, b: torch.cat([a[:, 1:3], b[:, :, 2:6].repeat(1, 1, 2, 1)], 1),
    "pad, pool, cat": lambda a, b: torch.cat([F.max_pool2d(F.pad(a, (1, 1, 1, 1)), 3, 1), b], 1),
    "reshape, permute, cat": lambda a, b: torch.cat([a.flatten(2).permute(0, 2, 1), b.reshape(1, 64, 4)], 1),
    "average pool, upsampling": lambda a, b: torch.cat([F.interpolate(F.avg_pool2d(a, 2), scale_factor=2), b], 1),
    "split, stack": lambda a, b: torch.stack([*a.chunk(2, 1), *b.split(2, 1)], 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_movement_has_one_scale(name: str) -> None:
    result = run(Function(CHAINS[name]), images(), split_heads=False)
    chain = [
        n for n in result.module.graph.nodes if n.op == "call_function" and n.target is Q and n.args[0].name != "x"
    ]
    assert len(chain) >= 3 and len({n.args[1:3] for n in chain}) == 1


def test_values_that_only_computation_connects_have_scales_of_their_own() -> None:
    analysis = analysis_of(Function(lambda a, b: (F.relu(a) + b * 3)[:, :2]), images())
    domains = analysis.domains.members(analysis.int8_values)
    together = {frozenset(node.name for node in members) for members in domains.values() if len(members) > 1}
    assert together == {frozenset({"add", "slice_1"})}


def test_domain_range_is_that_of_all_members() -> None:
    analysis = analysis_of(Function(lambda a, b: torch.cat([a, b * 10 + 5], 1)), images(), split_heads=False)
    values = {node.name: node for node in analysis.int8_values}
    low, high = analysis.domain_range(values["conv2d"])
    assert low == min(0.0, analysis.of(values["cat"]).low) and high == analysis.of(values["cat"]).high


# ---- detection heads ----


@pytest.mark.parametrize("name", DETECTORS)
def test_scores_beside_boxes(name: str, tmp_path: Path) -> None:
    """Under one scale they collapse; with split_heads they survive, on the DNA too."""
    model, data = detector(name)
    joined, split = run(model, data, split_heads=False), run(model, data)
    assert quality(joined, data, lambda y: scores_of(name, y)) < 3
    assert quality(split, data, lambda y: scores_of(name, y)) > 20
    assert quality(split, data, lambda y: boxes_of(name, y)) > 25
    assert split.reports["split_heads"] and all(f.fixed for f in split.reports["split_heads"])

    deployment = mera_torch.export(split.module, (data[0],), tmp_path / "split", target="InterpreterHw")
    runner = deployment.get_runner()
    with torch.no_grad():
        wanted, found = model(data[0]), runner(data[0])
    assert sqnr_db(scores_of(name, wanted), scores_of(name, found)) > 20
    assert sqnr_db(boxes_of(name, wanted), boxes_of(name, found)) > 25


def test_scores_become_zero_without_split_heads() -> None:
    """The classic: every score below half a step of the boxes' scale is 0."""
    model, data = detector("yolov8", prior=-6.0)
    with torch.no_grad():
        zero = scores_of("yolov8", run(model, data, split_heads=False).module(data[0]))
        kept = scores_of("yolov8", run(model, data).module(data[0]))
    assert not zero.any() and float((kept > 0).float().mean()) > 0.1


def test_boxes_share_with_boxes_and_scores_with_scores() -> None:
    """Several levels: the concats over them stay in int8, each with one scale; only the last join is in float."""
    model, data = detector("ssd")
    result = run(model, data)
    cats = [n for n in result.module.graph.nodes if n.target is torch.ops.aten.cat.default]
    in_int8 = [
        cat
        for cat in cats
        if all(source.target is DQ for source in cat.args[0]) and all(u.target is Q for u in cat.users)
    ]
    assert len(cats) == 3 and len(in_int8) == 2
    for cat in in_int8:
        assert len({source.args[1:3] for source in cat.args[0]}) == 1
    assert mera_torch.explain(result.module, (data[0],)).on_host == 1


def test_separate_outputs_need_nothing() -> None:
    torch.manual_seed(0)
    data = [torch.randn(1, 3, SIZE, SIZE) for _ in range(2)]
    result = run(Ssd(joined=False).eval(), data)
    assert result.reports["split_heads"] == []


def test_alike_parts_stay_joined() -> None:
    result = run(Function(lambda a, b: torch.cat([a, b], 1)), images())
    assert result.reports["split_heads"] == []
    assert mera_torch.explain(result.module, (images()[0],)).on_host == 0


def test_split_heads_needs_cheap_readers() -> None:
    """A tail of movement and arithmetic goes to float as a whole; one with a pool or a convolution does not."""
    cheap = Function(lambda a, b: torch.sigmoid(torch.cat([a, b], 1).flatten(2)) * 2, small=0.002)
    (decision,) = decide(analysis_of(cheap, images()), (images()[0],))
    assert decision.join.tail is not None and [n.name for n in decision.join.tail] == [
        "cat",
        "flatten",
        "sigmoid",
        "mul",
    ]
    pooled = Function(lambda a, b: F.adaptive_avg_pool2d(torch.cat([a, b], 1), 1), small=0.002)
    (decision,) = decide(analysis_of(pooled, images()), (images()[0],))
    assert decision.join.tail is None and not decision.mends


# ---- joins in the middle of a network ----


def test_a_part_that_others_read_is_requantized_for_the_join_alone() -> None:
    data = images()
    model = Function(lambda a, b: (F.max_pool2d(torch.cat([a, b], 1), 2), b.mean((2, 3))), small=0.002)
    joined, split = run(model, data, split_heads=False), run(model, data)
    assert quality(joined, data, lambda y: y[1]) < 10
    assert quality(split, data, lambda y: y[1]) > 30
    assert mera_torch.explain(split.module, (data[0],)).on_host == 0


class Reader(nn.Module):
    """A convolution or linear that reads a join of values a thousand times apart, the small ones with large weights."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.parts, self.linear = Function(lambda a, b: torch.cat([a, b], 1), small=0.001), linear
        self.read = nn.Linear(8, 6) if linear else nn.Conv2d(8, 6, 3)
        with torch.no_grad():
            self.read.weight[:, 4:] *= 1000

    def forward(self, x: Tensor) -> Tensor:
        y = self.parts(x)
        return F.relu(self.read(y.permute(0, 2, 3, 1).contiguous() if self.linear else y))


def test_a_join_that_a_convolution_reads_is_rescaled_by_measure(tmp_path: Path) -> None:
    data, model = images(), Reader(linear=False).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    joined, split = run(model, data, split_heads=False), run(model, data)
    assert quality(split, data, lambda y: y) > quality(joined, data, lambda y: y) + 10
    (finding,) = split.reports["split_heads"]
    assert "dB at their output" in finding.evidence
    with torch.no_grad():
        torch.testing.assert_close(split.reference(data[0]), model(data[0]), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    runner = mera_torch.export(split.module, (data[0],), tmp_path / "m", target="InterpreterHw").get_runner()
    assert sqnr_db(model(data[0]).detach(), runner(data[0])) > 25


def test_movement_before_the_reader_is_no_place_to_rescale() -> None:
    (decision,) = decide(analysis_of(Reader(linear=True), images()), (images()[0],))
    assert not decision.mends and not decision.factors


# ---- other front ends ----


def imported_head(kind: str, folder: Path) -> tuple[Any, list[Tensor]]:
    model, data = detector("ssd")
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        path = folder / "head.onnx"
        torch.onnx.export(model, (data[0],), path, dynamo=True, verbose=False)
        return mera_torch.from_onnx(path), data
    path = folder / "head.pt"
    torch.jit.trace(model, data[0]).save(path)
    return mera_torch.from_torchscript(path, {"x": ((1, 3, SIZE, SIZE), "float32")}), data


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
@pytest.mark.filterwarnings("ignore")
def test_heads_of_imported_models(kind: str, tmp_path: Path) -> None:
    model, data = imported_head(kind, tmp_path)
    joined, split = run(model, data, split_heads=False), run(model, data)
    assert quality(joined, data, lambda y: scores_of("ssd", y)) < 3
    assert quality(split, data, lambda y: scores_of("ssd", y)) > 20


def tflite_head() -> bytes:
    """A float .tflite file: convolutions of boxes (times 64) and scores of one map, reshaped to rows, joined."""
    from tflite_models import Builder

    rng = np.random.default_rng(0)
    m = Builder()
    x = m.tensor("x", (1, 16, 16, 3), "float32")
    parts = []
    for name, columns in (("boxes", 4), ("scores", 3)):
        w = m.constant(f"{name}_w", rng.normal(0, 0.2, (2 * columns, 3, 3, 3)).astype(np.float32))
        b = m.constant(f"{name}_b", np.full(2 * columns, -4.0 if name == "scores" else 0.0, np.float32))
        y, rows, out = (
            m.tensor(f"{name}_{i}", shape, "float32")
            for i, shape in enumerate([(1, 8, 8, 2 * columns), (1, 128, columns), (1, 128, columns)])
        )
        m.op("CONV_2D", [x, w, b], [y], "Conv2DOptions", padding="SAME", strideH=2, strideW=2)
        m.op("RESHAPE", [y, m.constant(f"{name}_shape", np.array([1, 128, columns], np.int32))], [rows])
        if name == "boxes":
            m.op("MUL", [rows, m.constant("size", np.array([64.0], np.float32))], [out], "MulOptions")
        else:
            m.op("LOGISTIC", [rows], [out])
        parts.append(out)
    joined = m.tensor("joined", (1, 128, 7), "float32")
    m.op("CONCATENATION", parts, [joined], "ConcatenationOptions", axis=2)
    return m.build([x], [joined])


def test_head_of_a_tflite_file(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(1, 16, 16, 3, generator=generator) for _ in range(8)]
    model = mera_torch.from_tflite(tflite_head())
    joined, split = run(model, data, split_heads=False), run(model, data)
    assert quality(joined, data, lambda y: scores_of("ssd", y)) < 3
    assert quality(split, data, lambda y: scores_of("ssd", y)) > 20
    runner = mera_torch.export(split.module, (data[0],), tmp_path / "m", target="InterpreterHw").get_runner()
    with torch.no_grad():
        assert sqnr_db(scores_of("ssd", model(data[0])), scores_of("ssd", runner(data[0]))) > 20


def test_marks_name_the_join() -> None:
    model, data = detector("yolov5")
    reasons = [n.meta[KEPT_IN_FLOAT] for n in run(model, data).reference.graph.nodes if KEPT_IN_FLOAT in n.meta]
    assert reasons and all("need separate scales" in reason for reason in reasons)
