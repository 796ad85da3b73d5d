"""Quality of quantization: metrics against oracles and known cases, added and inherited error, saturation, reports."""

from __future__ import annotations

import io
import json
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from mera_torch.errors import (
    CalibrationError,
    ConfigError,
    CorruptFileError,
    InvalidModelError,
    StorageError,
    UnsupportedError,
)
from mera_torch.quant import pipeline
from mera_torch.quant.pipeline import Quantization
from mera_torch.quant.quality.histograms import CodeGrid, PairHistogram, PowerGrid
from mera_torch.quant.quality.measure import measure
from mera_torch.quant.quality.metrics import Metrics, NoiseSums, PairSums, Percentages
from mera_torch.quant.quality.result import Quality
from mera_torch.quant.quality.table import tables

QD = torch.ops.quantized_decomposed
PLAIN = {"correct_bias": False, "activation_observer": "minmax"}


def batches(count: int = 3, size: int = 2, side: int = 16, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, side, side, generator=generator) for _ in range(count)]


def quantized(model: nn.Module, data: Sequence[Any], **config: Any) -> Quantization:
    return pipeline.run(model.eval(), data[0], list(data), {**PLAIN, **config}, progress=False)


def small(name: str, **config: Any) -> tuple[Quantization, list[Tensor]]:
    torch.manual_seed(0)
    model = models.set_batchnorm_statistics(models.SMALL_MODELS[name](), torch.randn(8, 3, 16, 16))
    data = batches()
    return quantized(model, data, **config), data


class Chain(nn.Module):
    """Four convolutions in a row, each with a relu; the third is named "victim"."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.victim, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.last(F.relu(self.victim(x)))


def chain(**config: Any) -> tuple[Quantization, list[Tensor]]:
    torch.manual_seed(0)
    data = batches()
    return quantized(Chain(), data, **config), data


def measured(q: Quantization, data: Any, **options: Any) -> Quality:
    return measure(q.original, q.reference, q.module, data, progress=False, **options)


def metrics(pairs: Sequence[tuple[Tensor, Tensor]], samples: int = 1) -> Metrics:
    sums = PairSums()
    for f, g in pairs:
        sums.add(f, g, samples)
    return sums.metrics()


# ---- metrics ----


def oracle(f: np.ndarray, g: np.ndarray) -> dict[str, float]:
    """Textbook formulas, over all elements at once."""
    e = g - f
    mse = np.mean(e**2)
    return {
        "psnr": 10 * np.log10(np.max(np.abs(f)) ** 2 / mse),
        "sqnr": 20 * np.log10(np.linalg.norm(f) / np.linalg.norm(e)),
        "cosine": f.ravel() @ g.ravel() / (np.linalg.norm(f) * np.linalg.norm(g)),
        "mean_error": np.mean(e), "mean_abs_error": np.mean(np.abs(e)), "std_error": np.std(e), "mse": mse,
        "max_error": np.max(np.abs(e)), "low": np.min(f), "high": np.max(f),
    }  # fmt: skip


def scores(f: np.ndarray, g: np.ndarray) -> list[float]:
    """MERA's score of each sample."""
    return [100 * (1 - np.max(np.abs(b - a)) / (np.max(a) - np.min(a))) for a, b in zip(f, g, strict=True)]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 3), st.floats(1e-6, 1e6), st.floats(1e-5, 1.0))
def test_metrics_against_textbook_formulas(seed: int, samples: int, count: int, scale: float, noise: float) -> None:
    rng = np.random.default_rng(seed)
    f = (scale * rng.standard_normal((count, samples, 3, 7))).astype(np.float32)
    g = (f + scale * noise * rng.standard_normal(f.shape)).astype(np.float32)
    got = metrics([(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(f, g, strict=True)], samples)
    wide = f.astype(np.float64), g.astype(np.float64)
    for name, wanted in oracle(*wide).items():
        assert getattr(got, name) == pytest.approx(wanted, rel=1e-9, abs=1e-12 * scale), name
    each = scores(*(x.reshape(count * samples, -1) for x in wide))
    assert got.score == pytest.approx(np.median(each), abs=0.0051)
    assert got.score_min == pytest.approx(min(each), abs=1e-9)
    assert (got.samples, got.elements) == (count * samples, f.size)
    assert got.different == np.count_nonzero(f != g)


@pytest.mark.parametrize("bits", [4, 6, 8, 12])
def test_uniform_quantization_gives_6_db_a_bit(bits: int) -> None:
    """A uniform signal over the whole range: SQNR = 20 log10(2) b dB, exactly 12 / 12 = no constant more."""
    x = torch.linspace(-1, 1, 1_000_001, dtype=torch.float64)
    step = 2.0 / 2**bits
    q = (torch.floor(x / step).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) + 0.5) * step
    found = metrics([(x, q)])
    assert found.sqnr == pytest.approx(20 * math.log10(2) * bits, abs=0.01)
    assert found.mse == pytest.approx(step**2 / 12, rel=1e-3)


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_a_full_scale_sine_gives_6_db_a_bit_and_1_76(bits: int) -> None:
    t = torch.linspace(0, 1, 1_000_003, dtype=torch.float64)
    x = torch.sin(2 * math.pi * 1.618 * 100 * t)
    step = 2.0 / 2**bits
    assert metrics([(x, torch.round(x / step) * step)]).sqnr == pytest.approx(6.0206 * bits + 1.761, abs=0.1)


def test_equal_tensors_and_lone_zeros() -> None:
    x = torch.randn(4, 5)
    same = metrics([(x, x.clone())], 4)
    assert same.equal and same.matching == 1.0
    assert (same.psnr, same.sqnr, same.psnr_min) == (math.inf,) * 3
    assert (same.cosine, same.score, same.score_min, same.mse) == (pytest.approx(1.0), 100.0, 100.0, 0.0)
    zeros = metrics([(torch.zeros(8), torch.zeros(8))])
    assert zeros.equal and zeros.cosine == 1.0 and zeros.score == 100.0
    noise = metrics([(torch.zeros(8), torch.ones(8))])
    assert noise.sqnr == noise.psnr == -300.0 and noise.cosine == 0.0 and noise.score == 0.0
    opposite = metrics([(x, -x)])
    assert opposite.cosine == pytest.approx(-1.0) and opposite.sqnr == pytest.approx(-20 * math.log10(2))


def test_infinite_elements_are_left_out_and_counted() -> None:
    f = torch.tensor([1.0, -math.inf, 3.0, math.nan, 2.0])
    g = torch.tensor([1.5, -math.inf, 3.0, math.nan, math.inf])
    found = metrics([(f, g)])
    assert found.non_finite == 3 and found.different == 2 and found.max_error == 0.5
    assert found.mse == pytest.approx(0.125)
    noise = NoiseSums()
    noise.add(f, f, g)
    assert noise.noise() is not None and noise.noise().mse == pytest.approx(0.125)  # type: ignore[union-attr]


def test_integers_and_booleans_are_compared_as_numbers() -> None:
    found = metrics([(torch.tensor([1, 2, 300]), torch.tensor([1, 4, 300]))])
    assert (found.different, found.max_error, found.mean_error) == (1, 2.0, pytest.approx(2 / 3))
    flags = torch.tensor([True, False]), torch.tensor([True, True])
    assert metrics([flags]).different == 1
    counted = PairHistogram(PowerGrid())
    counted.add(*flags)
    counted.add(torch.tensor([5]), torch.tensor([-5]))
    assert sum(counted.histogram().reference) == sum(counted.histogram().measured) == 3


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(7)), st.integers(0, 1000))
def test_the_order_of_batches_is_not_seen(order: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = [1e-6, 1.0, 1e5, 3.0, 0.1, 1e3, 7.0]
    pairs = [
        (s * torch.randn(2, 4, 3, generator=generator), s * torch.randn(2, 4, 3, generator=generator)) for s in scale
    ]

    def counted(chosen: Sequence[int]) -> tuple[Any, ...]:
        sums, histogram = PairSums(), PairHistogram(PowerGrid(), 1)
        for i in chosen:
            sums.add(*pairs[i], samples=2)
            histogram.add(*pairs[i])
        return sums.metrics(histogram.kl), histogram.histogram(), histogram.channels(4), histogram.channel_sqnr()

    assert counted(order) == counted(range(7))


@settings(deadline=None)
@given(st.lists(st.floats(-2000, 100), min_size=1, max_size=30))
def test_the_median_is_counted_to_the_hundredth(values: list[float]) -> None:
    counted = Percentages()
    for value in values:
        counted.add(value)
    assert counted.median == pytest.approx(np.median(np.maximum(values, -1000)), abs=0.0101)
    assert counted.lowest == min(values)


# ---- histograms ----


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.floats(1e-4, 10.0), st.integers(-128, 127))
def test_codes_saturation_and_entropy_against_numpy(seed: int, scale: float, zero: int) -> None:
    x = 100 * scale * torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(seed))
    q = QD.quantize_per_tensor.default(x, scale, zero, -128, 127, torch.int8)
    g = QD.dequantize_per_tensor.default(q, scale, zero, -128, 127, torch.int8)
    counted = PairHistogram(CodeGrid(scale, zero, -128), 1)
    counted.add(x[:1], g[:1])
    counted.add(x[1:], g[1:])
    codes = q.numpy().astype(int)
    unclamped = np.round(x.numpy() * np.float32(1.0 / scale)) + zero
    assert counted.saturated == [int((unclamped < -128).sum()), int((unclamped > 127).sum())]
    counts = np.bincount(codes.ravel() + 128, minlength=256)
    assert counted.codes_used == np.count_nonzero(counts)
    p = counts[counts > 0] / counts.sum()
    assert counted.entropy == pytest.approx(-(p * np.log2(p)).sum())
    whole = counted.histogram()
    assert whole.measured == tuple(counts.reshape(64, 4).sum(1))
    assert sum(whole.reference) == x.numel()
    for channel in counted.channels(3):
        own = np.bincount(codes[:, channel.index].ravel() + 128, minlength=256)
        assert channel.histogram.measured == tuple(own.reshape(32, 8).sum(1))
        assert channel.reference_high == float(x[:, channel.index].max())
    ratio = metrics([(x[:, 1], g[:, 1])]).sqnr
    assert counted.channel_sqnr()[1] == pytest.approx(ratio)


def test_kl_of_the_same_values_is_zero_and_of_shifted_ones_as_computed() -> None:
    x = torch.arange(-128, 128).float()
    same = PairHistogram(CodeGrid(1.0, 0, -128))
    same.add(x, x)
    assert same.kl == 0.0
    moved = PairHistogram(CodeGrid(1.0, 0, -128))
    moved.add(torch.zeros(100), torch.full((100,), 5.0))
    p, q = np.full(256, 0.5), np.full(256, 0.5)
    p[128] += 100
    q[133] += 100
    assert moved.kl == pytest.approx(float((p / p.sum() * np.log2(p / q)).sum()))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.integers(1, 7))
def test_bins_of_floats_hold_what_they_say(values: list[float], parts: int) -> None:
    counted = PairHistogram(PowerGrid())
    x = torch.tensor(values)
    for part in x.chunk(parts):
        counted.add(part, part)
    found = counted.histogram()
    index = np.clip(np.floor(x.double().numpy() / found.width) + 32, 0, 63).astype(int)
    assert found.reference == found.measured == tuple(np.bincount(index, minlength=64))
    assert found.low <= x.min() and x.max() < found.low + 64 * found.width


# ---- what really runs ----


@pytest.mark.parametrize("target", ["InterpreterHw", "Simulator"])
def test_outputs_are_the_targets_own(target: str, tmp_path: Path) -> None:
    import mera_torch

    q, data = small("residual")
    found = measured(q, data, target=target)
    assert (found.measured, found.platform) == (target, "SAKURA_1")
    runner = mera_torch.export(q.module, (data[0],), tmp_path / "d", target=target).get_runner()
    with torch.no_grad():
        wanted = metrics([(q.original(x), runner(x)) for x in data], 2)
    error = found.outputs[0].error
    assert (error.mse, error.max_error, error.sqnr) == (wanted.mse, wanted.max_error, wanted.sqnr)


def test_where_the_accelerators_integers_differ() -> None:
    q, data = small("residual")
    found = measured(q, data, debug_mode=True, target="InterpreterHw")
    assert all(node.apart is not None for node in found.nodes)
    differing = [node.name for node in found.nodes if node.apart is not None and node.apart.different]
    assert found.first_different == (differing[0] if differing else None)
    assert found.node("x").apart.different == 0  # type: ignore[union-attr]
    assert all(node.apart.largest <= 4 for node in found.nodes if node.apart is not None)
    assert all(node.apart is None for node in measured(q, data, debug_mode=True).nodes)


# ---- reports ----


def shown(quality: Quality, most: int | None = None) -> str:
    text = io.StringIO()
    Console(width=180, file=text).print(tables(quality, most))
    return text.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_of_nodes_fits_the_terminal(width: int) -> None:
    q, data = small("residual")
    found = measured(q, data, debug_mode=True)
    text = io.StringIO()
    Console(width=width, file=text).print(tables(found, None))
    shown = text.getvalue()
    assert all(f" {node.name} " in shown for node in found.nodes if node.op == "conv2d") and "project.0" in shown
    assert (" scale " in shown) is (width == 160) and max(map(len, shown.splitlines())) <= width


def test_tables_and_questions() -> None:
    q, data = chain()
    found = measured(q, data, debug_mode=True)
    text = shown(found)
    for word in ("conv2d + relu", "victim", "int8", "adds most error", "PSNR", f"{found.outputs[0].error.sqnr:.1f}"):
        assert word in text
    assert "and 4 nodes more" in shown(found, 1)
    assert found.node("relu_2") is found.node("conv2d_2") and set(found.node_metrics) == {n.name for n in found.nodes}
    with pytest.raises(ConfigError, match="did you mean 'conv2d_2'"):
        found.node("conv2d_22")
    with pytest.raises(ConfigError, match="debug_mode=True"):
        measured(q, data).node("conv2d")
    assert found.worst(0) == () and len(found.worst(100)) == 5
    assert found.nodes[1].source.startswith(str(Path(__file__).parent)) or "test_quality.py" in found.nodes[1].source
    Console(quiet=True).print(found)


def test_json_is_written_whole_and_read_back(tmp_path: Path) -> None:
    q, data = chain()
    found = measured(q, data, debug_mode=True)
    found.to_json(tmp_path / "quality.json")
    held = json.loads((tmp_path / "quality.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert Quality.from_dict(held) == found and list(tmp_path.iterdir()) == [tmp_path / "quality.json"]
    with pytest.raises(StorageError):
        found.to_json(tmp_path / "no" / "folder.json")
    for wrong, message in (
        ({}, "schema is None"),
        ({**held, "schema": 99}, "schema is 99"),
        ({**held, "outputs": [{"index": 0}]}, "outputs.0.name"),
        ({**held, "batches": "many"}, "batches"),
        ({**held, "surprise": 1}, "surprise"),
    ):
        with pytest.raises(CorruptFileError, match=message):
            Quality.from_dict(wrong)


def test_histograms_are_optional_and_limited() -> None:
    q, data = small("residual")
    without = measured(q, data, debug_mode=True, histograms=False)
    assert all(n.histogram is None and n.channels == () and n.codes is None for n in without.nodes)
    assert without.outputs[0].error.kl is None
    found = measured(q, data, debug_mode=True, channels=2)
    node = found.node("conv2d_4")
    assert len(node.channels) == 2 and len(node.channel_sqnr) == 24 and node.channel_axis == 1
    assert max(c.sqnr for c in node.channels) <= sorted(node.channel_sqnr)[1]
    assert found.outputs[0].error.kl is not None


def test_channels_compare_float_with_quantized_values() -> None:
    """Not the reference with itself: a channel that is dead in int8 shows."""
    q, data = chain()
    held = getattr(q.module, str(next(n for n in q.module.graph.nodes if n.name == "conv2d_3").args[1].args[0].target))
    held[2] = 0
    found = measured(q, data, debug_mode=True, channels=1)
    (channel,) = found.outputs[0].channels
    assert channel.index == 2 and channel.reference_low < channel.reference_high
    assert channel.measured_low == channel.measured_high
    assert sum(map(bool, channel.histogram.measured)) == 1 < sum(map(bool, channel.histogram.reference))


def test_progress_and_single_arrays() -> None:
    q, data = chain()
    told: list[tuple[str, int, int]] = []
    measure(q.original, None, q.module, data, progress=lambda *a: told.append(a))
    assert told == [("measuring", i, 3) for i in (1, 2, 3)]
    whole = measured(q, data)
    arrays = measured(q, [x.numpy() for x in data])
    lists = measured(q, ([x.numpy()] for x in data))
    assert whole.outputs == arrays.outputs == lists.outputs
    assert measured(q, data[0]).batches == 1


@pytest.mark.parametrize("debug_mode", [False, True])
def test_a_batch_is_forgotten_when_the_next_one_is_read(debug_mode: bool) -> None:
    q, data = chain()
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def stream() -> Iterator[Tensor]:
        nonlocal most
        for _ in range(6):
            x = data[0].clone()
            alive.append(weakref.ref(x))
            yield x
            del x
            most = max(most, sum(held() is not None for held in alive))

    found = measured(q, stream(), debug_mode=debug_mode)
    assert found.batches == 6 and most <= 1
    once = measured(q, data[:1], debug_mode=debug_mode)
    for a, b in ((found.outputs[0].error, once.outputs[0].error), *(
        (a.error, b.error) for a, b in zip(found.nodes, once.nodes, strict=True)
    )):  # fmt: skip
        assert a is not None and b is not None and a.mse == pytest.approx(b.mse) and a.elements == 6 * b.elements


# ---- bad input ----


def test_bad_input_is_told() -> None:
    q, data = chain()
    x = data[0]
    cases: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (CalibrationError, "no data", [], {}),
        (CalibrationError, "must be an iterable of inputs, got int", 3, {}),
        (
            CalibrationError,
            r"item 1: the input 'x' has shape \(2, 3, 9, 16\), but the model takes \(2, 3, 16, 16\)",
            [x, x[:, :, :9]],
            {},
        ),
        (CalibrationError, "has dtype torch.float64", [x.double()], {}),
        (CalibrationError, "got str", ["photo.jpg"], {}),
        (CalibrationError, "2 inputs, but the model takes 1", [(x, x)], {}),
        (CalibrationError, "item 1: the input 'x' holds NaN", [x, x * math.nan], {}),
        (CalibrationError, "holds infinity", [x / 0], {}),
        (ConfigError, "did you mean 'InterpreterHw'", data, {"target": "InterpreterHW"}),
        (ConfigError, "SAKURA", data, {"target": "InterpreterHw", "platform": "SAKURA_9"}),
        (ConfigError, "threshold", data, {"threshold": math.nan}),
        (ConfigError, "channels", data, {"channels": -1}),
    ]
    for error, message, items, options in cases:
        with pytest.raises(error, match=message):
            measured(q, items, **options)
    with pytest.raises(ConfigError, match="float reference"):
        measure(q.original, None, q.module, data, debug_mode=True, progress=False)
    with pytest.raises(UnsupportedError, match="nothing in the model can run"):
        measure(q.original, None, q.reference, data, target="InterpreterHw", progress=False)
    other = quantized(nn.Sequential(nn.Conv2d(3, 5, 1)), data)
    with pytest.raises(InvalidModelError, match="not the same network"):
        measure(other.original, None, q.module, data, progress=False)


def test_nan_of_the_network_itself_is_told() -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + torch.sqrt(x.mean() - 1)

    original = torch.export.export(Bad().eval(), (batches()[0],)).module()
    with pytest.raises(CalibrationError, match="item 0: output 'output_0' of the float network holds NaN"):
        measure(original, None, original, batches(), progress=False)


# ---- the command ----


def run(*arguments: str) -> Any:
    from mera_torch.cli import app

    return CliRunner().invoke(app, ["quality", *arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mera_torch.cli.models import write_pt2

    folder = tmp_path_factory.mktemp("quality")
    q, data = small("residual")
    write_pt2(q.module, (data[0],), folder / "quantized.pt2")
    write_pt2(q.original, (data[0],), folder / "float.pt2")
    np.save(folder / "data.npy", torch.cat(data).numpy())
    return folder


@pytest.mark.slow
def test_command(files: Path) -> None:
    pair = [str(files / "quantized.pt2"), "--reference", str(files / "float.pt2"), "--data", str(files / "data.npy")]
    result = run(*pair, "--debug-nodes", "--json", "--output", str(files / "q.json"))
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document.pop("model") == pair[0]
    found = Quality.from_dict(document)
    assert found.batches == 3 and len(found.nodes) == 12 and not found.notes
    assert all(node.error is not None and node.error.sqnr > 25 and node.added is not None for node in found.nodes)
    assert Quality.from_dict(json.loads((files / "q.json").read_text())) == found
    result = run(*pair, "--target", "InterpreterHw", "--samples", "2")
    assert result.exit_code == 0 and "InterpreterHw (SAKURA_1) against float, 4 samples" in result.stdout


def test_command_on_a_mera_file(files: Path) -> None:
    from mera_torch.converters import ModelInfo, TensorInfo
    from mera_torch.quant.quantized_model import QuantizedModel

    q, data = chain()
    info = ModelInfo(
        "pytorch", (TensorInfo("x", (2, 3, 16, 16), torch.float32, "NCHW"),),
        (TensorInfo("map", (2, 4, 16, 16), torch.float32, "NCHW"),),
    )  # fmt: skip
    held = QuantizedModel(q.module, info, q.config, reference=q.reference, original=q.original)
    direct = held.measure_quantization_quality(iter(data), True, "InterpreterHw", progress=False)
    assert direct.outputs[0].name == "map" and direct.measured == "InterpreterHw" and direct.nodes
    held.save(files / "chain.mera")
    path = [str(files / "chain.mera"), "--data", str(files / "data.npy")]
    result = run(*path, "--debug-nodes", "--target", "InterpreterHw", "--json", "--html", str(files / "page.html"))
    assert result.exit_code == 0, result.output
    found = Quality.from_dict({key: value for key, value in json.loads(result.stdout).items() if key != "model"})
    assert (found.outputs, found.nodes) == (direct.outputs, direct.nodes)
    assert "victim" in (files / "page.html").read_text()
    result = run(*path, "--reference", "float.pt2")
    assert isinstance(result.exception, ConfigError) and "leave out --reference" in str(result.exception)


@pytest.mark.slow
def test_command_tells_what_is_wrong(files: Path) -> None:
    whole, wanted, data = (str(files / name) for name in ("quantized.pt2", "float.pt2", "data.npy"))
    cases: list[tuple[type[Exception], str, list[str]]] = [
        (ConfigError, "give it with --reference", [whole, "--data", data]),
        (InvalidModelError, "is not quantized", [wanted, "--reference", wanted, "--data", data]),
        (InvalidModelError, "--reference is the float model", [whole, "--reference", whole, "--data", data]),
        (StorageError, "does not exist", [whole, "--reference", wanted, "--data", str(files / "none")]),
        (InvalidModelError, "does not exist", [str(files / "none.mera"), "--data", data]),
        (InvalidModelError, "does not exist", [str(files / "none.pt2"), "--data", data]),
        (CorruptFileError, "no .mera file", [str(files / "junk.mera"), "--data", data]),
        (ConfigError, "--all shows", [whole, "--reference", wanted, "--data", data, "--all"]),
    ]
    (files / "junk.mera").write_bytes(b"junk")
    for error, message, arguments in cases:
        result = run(*arguments)
        assert isinstance(result.exception, error) and message in str(result.exception), result.exception


@pytest.mark.network
def test_mobilenet_v2_node_by_node(zoo_artifact: Callable[[str], None]) -> None:
    from mera_torch.zoo_models import MODELS, photos

    zoo_artifact("mobilenet_v2")
    zoo_artifact("photos")
    entry = MODELS["mobilenet_v2"]
    images = [entry.preprocess(photo.data) for photo in photos()]
    q = quantized(entry.load(), images[:4])
    found = measured(q, images[4:8], debug_mode=True, target="InterpreterHw")
    assert len(found.nodes) > 60 and all(node.twin and node.added is not None for node in found.nodes)
    assert found.outputs[0].top1 is not None and found.outputs[0].top1 >= 0.75


def test_elements_that_are_not_finite_count_nowhere() -> None:
    reference = torch.tensor([[5.0, 6.0, math.nan, math.inf], [7.0, 8.0, 9.0, 10.0]])
    measured = torch.tensor([[5.5, 6.0, 1.0, 2.0], [7.0, 8.0, 9.0, math.nan]])
    sums, histogram = PairSums(), PairHistogram(PowerGrid(), 1)
    sums.add(reference, measured, 2)
    histogram.add(reference, measured)
    found = sums.metrics()
    assert (found.low, found.high, found.elements, found.non_finite) == (5.0, 9.0, 8, 3)
    assert found.score_min == pytest.approx(50.0) and found.max_error == 0.5
    held = histogram.histogram()
    assert sum(held.reference) == sum(held.measured) == 5
    first = histogram.channels(4)[0]
    assert (first.reference_low, first.reference_high) == (5.0, 7.0)
