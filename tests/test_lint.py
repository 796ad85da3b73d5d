"""The linter: each rule finds what it is for, with figures, and is silent on healthy networks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from cli_tools import Mera, mera  # noqa: F401
from detectors import detector
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mera_torch import exits
from mera_torch.errors import CalibrationError, ConfigError
from mera_torch.quant import QuantConfig, pipeline
from mera_torch.quant.findings import SEVERITIES, Finding, sorted_findings, summary, table
from mera_torch.quant.lint.linter import RULES, lint_model, rule_names
from mera_torch.quant.transforms.activation_statistics import ActivationStatistics

ROOT = Path(__file__).resolve().parents[1]


def images(count: int = 10, channels: int = 3, size: int = 12, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [scale * torch.randn(1, channels, size, size, generator=generator) for _ in range(count)]


class Net(nn.Module):
    """A convolution and a function of its result and of the input, between convolutions."""

    def __init__(self, function: Callable[..., Tensor], change: Callable[[Net], object] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.function, self.last = function, nn.LazyConv2d(4, 1)
        with torch.no_grad():
            if change is not None:
                change(self)
            self(torch.zeros(1, 3, 12, 12))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x), self.second(x)))


def scaled(name: str, factor: float, channels: Any = slice(None)) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        for parameter in getattr(net, name).parameters():
            parameter[channels] *= factor

    return change


def found(model: nn.Module, data: list[Tensor], rule: str, **config: Any) -> list[Finding]:
    return [f for f in lint_model(model, data[0], data, config) if f.rule == rule]


def only(model: nn.Module, data: list[Tensor], rule: str, **config: Any) -> Finding:
    findings = found(model, data, rule, **config)
    assert len(findings) == 1, findings
    return findings[0]


# ---- healthy networks ----


@pytest.mark.parametrize("name", models.SMALL_MODELS)
def test_healthy_networks_have_no_findings(name: str) -> None:
    torch.manual_seed(0)
    size = 64 if name == "mobilenet_v1" else 16
    data = [torch.randn(2, 3, size, size) for _ in range(4)]
    model = models.set_batchnorm_statistics(models.SMALL_MODELS[name](), torch.cat(data))
    assert [f for f in lint_model(model, data[0], data) if f.severity != "note"] == []


@pytest.mark.network
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_real_networks_have_no_false_alarms_and_real_faults_are_found(name: str, zoo_artifact: Any) -> None:
    from mera_torch.zoo_models import MODELS, photos

    zoo_artifact(name)
    zoo_artifact("photos")
    entry = MODELS[name]
    model, data = entry.load(), [entry.preprocess(photo.data) for photo in photos()[:8]]
    assert [f for f in lint_model(model, data[0], data) if f.severity != "note"] == []
    raw = [60 * x + 110 for x in data]
    (finding,) = found(model, raw, "not-normalized")
    assert finding.severity == "error" and "preprocess" in finding.remedy


# ---- the data ----


def test_data_rules() -> None:
    model = nn.Conv2d(3, 4, 3).eval()
    data = images()
    assert found(model, data, "few-samples") == []
    assert "2 calibration samples" in only(model, data[:2], "few-samples").evidence
    assert "5 of 10" in only(model, data[:5] * 2, "repeated-samples").evidence
    flat = [torch.full_like(x, float(i)) for i, x in enumerate(data)]
    assert only(model, flat, "constant-samples").severity == "error"
    assert only(model, [*flat[:1], *data], "constant-samples").severity == "warning"
    alike = [data[0] + 0.001 * x for x in data]
    assert only(model, alike, "alike-samples").severity == "warning"
    assert found(model, data, "alike-samples") == [] == found(model, data, "constant-samples")


def test_inputs_unlike_those_of_training() -> None:
    torch.manual_seed(0)
    data = images()
    model = models.set_batchnorm_statistics(nn.Sequential(models.conv_bn(3, 8), nn.Conv2d(8, 4, 3)), torch.cat(data))
    assert found(model, data, "not-normalized") == []
    pixels = [(x * 60 + 128).round().clamp(0, 255) for x in data]
    finding = only(model, pixels, "not-normalized")
    assert finding.severity == "error" and finding.op == "aten.batch_norm.default" and "[0, 255]" in finding.evidence
    without = nn.Conv2d(3, 4, 3).eval()
    assert only(without, pixels, "not-normalized").severity == "note"
    assert found(Net(lambda a, b: a), data, "not-normalized") == []


def test_a_batch_counts_as_its_samples() -> None:
    data = images()
    batches = [torch.cat(data[:5]), torch.cat(data[5:])]
    assert found(nn.Conv2d(3, 4, 3).eval(), batches, "few-samples") == []
    assert only(nn.Conv2d(3, 4, 3).eval(), [batches[0], batches[0]], "repeated-samples").evidence.startswith("5 of 10")


def test_data_that_does_not_fit_is_an_error() -> None:
    model, data = nn.Conv2d(3, 4, 3).eval(), images()
    with pytest.raises(CalibrationError, match="shape"):
        lint_model(model, data[0], [data[0], data[1][:, :, :5]])
    with pytest.raises(ConfigError, match="did you mean"):
        lint_model(model, data[0], data, {"split_head": True})
    with pytest.raises(CalibrationError, match="empty"):
        lint_model(model, data[0], [])


def test_data_is_read_once_as_a_stream() -> None:
    read = []

    class Stream:
        def __iter__(self) -> Any:
            for i, x in enumerate(images(40)):
                read.append(i)
                yield x

    assert lint_model(nn.Conv2d(3, 4, 3).eval(), images(1)[0], Stream()) == []
    assert read == list(range(40))


# ---- the network ----


def test_concat_of_unlike_ranges_says_what_is_lost_and_what_is_done() -> None:
    model, data = detector("yolov8")
    finding = only(model, data, "concat-ranges")
    assert finding.fixed and finding.severity == "warning" and "dB alone" in finding.evidence
    assert "sigmoid" in finding.evidence and finding.source.partition(":")[0].endswith("detectors.py")
    open_ = only(model, data, "concat-ranges", split_heads=False)
    assert not open_.fixed and open_.severity == "error" and "split_heads=True" in open_.remedy


def test_sigmoid_with_a_second_consumer() -> None:
    model, data = detector("yolov5")
    assert all(f.fixed for f in found(model, data, "sigmoid-second-consumer"))
    left = found(model, data, "sigmoid-second-consumer", split_heads=False)
    assert len(left) == 2 and not any(f.fixed for f in left) and "slice" in left[0].evidence
    silu = Net(lambda a, b: torch.cat([a * torch.sigmoid(a), torch.sigmoid(a)], 1))
    (note,) = found(silu, images(), "sigmoid-second-consumer")
    assert note.severity == "note" and note.fixed


def attention(a: Tensor, b: Tensor) -> Tensor:
    return F.softmax(a, 1) * 1.0


def test_softmax_scale() -> None:
    data = images()
    assert found(Net(attention), data, "softmax-scale") == []
    assert "steps" in only(Net(attention, scaled("first", 1000)), data, "softmax-scale").evidence
    assert only(Net(attention, scaled("first", 1e-7)), data, "softmax-scale").severity == "error"
    flat = Net(lambda a, b: F.softmax(a.flatten(1), 1).view(a.shape) * 1.0)
    finding = only(flat, data, "softmax-scale")
    assert "largest result" in finding.evidence


def test_probabilities_near_zero_are_no_outliers() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Softmax(1), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].bias[3] += 20
    data = [torch.randn(1, 8, generator=torch.Generator().manual_seed(i)) for i in range(10)]
    assert found(model.eval(), data, "outlier-channels") == []


def test_outlier_channels() -> None:
    data = images()
    model = Net(lambda a, b: F.relu(a), scaled("first", 300, [2]))
    finding = only(model, data, "outlier-channels")
    assert "channels 2" in finding.evidence and "equalize=True" in finding.remedy and not finding.fixed
    assert only(model, data, "outlier-channels", equalize=True).fixed
    assert found(Net(lambda a, b: F.relu(a)), data, "outlier-channels") == []


def test_outlier_channels_before_a_linear_name_smoothquant() -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(16)
    with torch.no_grad():
        norm.weight[[1, 5]] *= 200
    model = nn.Sequential(nn.Linear(16, 16), norm, nn.Linear(16, 8)).eval()
    data = [torch.randn(1, 6, 16) for _ in range(10)]
    finding = only(model, data, "outlier-channels")
    assert 'smoothquant="auto"' in finding.remedy and finding.node == "linear_1"
    assert only(model, data, "outlier-channels", smoothquant="auto").fixed


def test_outlier_weights_matter_per_tensor_only() -> None:
    model, data = Net(lambda a, b: F.relu(a), scaled("first", 100, [0])), images()
    assert found(model, data, "outlier-weights") == []
    finding = only(model, data, "outlier-weights", per_channel_weights=False)
    assert finding.op == "aten.conv2d.default" and finding.module == "first"


def test_dead_channels() -> None:
    def kill(net: Net) -> None:
        net.first.weight[:4] = 0
        net.first.bias[:4] = -1  # type: ignore[index]

    finding = only(Net(lambda a, b: F.relu(a), kill), images(), "dead-channels")
    assert finding.severity == "note" and "4 of 8" in finding.evidence and "4 of them for zero" in finding.evidence

    def never(net: Net) -> None:
        net.first.bias -= 100  # type: ignore[operator]

    assert only(Net(lambda a, b: F.relu(a), never), images(), "dead-channels").severity == "error"


def test_bias_overflow() -> None:
    def tiny(net: Net) -> None:
        net.first.weight[1] = 1e-12
        net.first.bias[1] = 9.0  # type: ignore[index]

    finding = only(Net(lambda a, b: a, tiny), images(), "bias-overflow")
    assert finding.severity == "note" and finding.fixed and "1 of 8" in finding.evidence
    assert found(Net(lambda a, b: a), images(), "bias-overflow") == []


def test_range_outliers() -> None:
    data = images(60, size=48)
    data[3][0, 0, 4, 4] = 500.0
    model = Net(lambda a, b: a)
    finding = found(model, data, "range-outliers", activation_observer="minmax")[0]
    assert finding.node == "conv2d" and not finding.fixed and "99.99 %" in finding.evidence
    assert found(model, data, "range-outliers")[0].fixed and not found(model, data[4:], "range-outliers")


def test_dynamic_range() -> None:
    model, data = Net(lambda a, b: F.elu(a * a) * (b * b) * (a * a) * (b * b)), images()
    findings = found(model, data, "dynamic-range")
    assert findings and "rules=(Rule(node=" in findings[-1].remedy
    assert found(Net(lambda a, b: a * b), data, "dynamic-range") == []


def test_operands_that_vanish() -> None:
    data = images()
    finding = only(Net(lambda a, b: a + b, scaled("second", 1e-4)), data, "operand-ranges")
    assert "less than half of the result's step" in finding.evidence
    offsets = torch.cat([torch.full((4,), 1e-3), torch.full((4,), 500.0)]).view(1, 8, 1, 1)
    assert "50%" in only(Net(lambda a, b: F.relu(a) * offsets), data, "operand-ranges").evidence
    assert found(Net(lambda a, b: a + b), data, "operand-ranges") == []


def test_constants_that_vary_about_zero_are_healthy() -> None:
    """Positional embeddings and learned factors always have a few elements near 0."""
    constant = torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    assert float((constant.abs() < constant.abs().max() / 255).float().mean()) > 0
    for function in (lambda a, b: a + constant, lambda a, b: a * constant, lambda a, b: a + constant**5 / 999):
        assert found(Net(function), images(), "operand-ranges") == []


def test_clamps_far_from_the_data() -> None:
    data = images()
    assert "saturate" in only(Net(lambda a, b: F.hardtanh(a * 1e4, -0.01, 0.01)), data, "clamp-range").evidence
    assert "does nothing" in only(Net(lambda a, b: F.relu6(a * 1e-3)), data, "clamp-range").evidence
    assert found(Net(lambda a, b: F.relu6(a)), data, "clamp-range") == []


def test_nan_prone_operators() -> None:
    data = images()
    near = only(Net(lambda a, b: a / F.relu(b * 5).clamp_min(1e-4)), data, "nan-prone")
    assert near.severity == "error" and "so 0" in near.evidence and "clamp" in near.remedy
    assert found(Net(lambda a, b: a / (F.relu(b) + 1)), data, "nan-prone") == []
    assert only(Net(lambda a, b: torch.log(F.relu(b * 5).clamp_min(1e-4))), data, "nan-prone").node == "log"
    hot = only(Net(lambda a, b: torch.exp(a.clamp(max=85) * 0 + 84) * b), data, "nan-prone")
    assert "exp(88.7)" in hot.evidence


def test_not_finite_names_the_first_operator() -> None:
    finding = only(Net(lambda a, b: torch.sqrt(a - 100) + b), images(), "not-finite")
    assert finding.node == "sqrt" and finding.severity == "error"


def test_float_islands_count_regions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 8))
    data = [torch.randn(1, 6, 16) for _ in range(10)]
    finding = only(model.eval(), data, "float-islands")
    assert "2 x aten.layer_norm.default" in finding.evidence and "3 regions, 1 without them" in finding.evidence
    assert finding.severity == "note"


def test_regions_are_those_of_the_compiled_program() -> None:
    import mera_torch

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 8))
    data = [torch.randn(1, 6, 16) for _ in range(10)]
    quantized = mera_torch.quantize(model.eval(), data[0], data, progress=False)
    assert mera_torch.explain(quantized, (data[0],)).regions == 3


# ---- statistics ----


@given(
    st.integers(0, 2**31),
    st.sampled_from([1e-3, 1.0, 300.0]),
    st.integers(1, 4),
    st.sampled_from([(4,), (2, 5), (1, 3, 4, 4)]),
)
@settings(max_examples=40, deadline=None)
def test_statistics_are_those_of_all_batches(seed: int, scale: float, batches: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(seed)
    data = [scale * (i + 1) * torch.randn(shape, generator=generator) for i in range(batches)]
    seen = ActivationStatistics(1 if len(shape) > 1 else None)
    for x in data:
        seen.observe(x)
    whole = torch.stack(data)
    assert seen.low == float(whole.min()) and seen.high == float(whole.max()) and seen.count == whole.numel()
    assert math.isclose(seen.variance, float(whole.double().var(correction=0)), rel_tol=1e-6, abs_tol=1e-12)
    assert seen.share(-math.inf, math.inf) == 1.0
    if len(shape) > 1:
        by_channel = whole.movedim(2, 0).flatten(1)
        assert torch.equal(seen.channel_low, by_channel.amin(1)) and torch.equal(seen.channel_high, by_channel.amax(1))  # type: ignore[arg-type]


def test_expected_noise_is_that_of_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, generator=generator)
    seen = ActivationStatistics(None)
    seen.observe(x)
    for reach in (4.0, 30.0, 600.0):
        scale = 2 * reach / 255
        rounded = torch.fake_quantize_per_tensor_affine(x, scale, round(-128 + reach / scale), -128, 127)
        measured = 10 * math.log10(float(x.var() / (rounded - x).square().mean()))
        assert abs(seen.sqnr(-reach, reach) - measured) < 0.5


# ---- findings, pipeline, command, documentation ----


def test_findings_sort_and_print() -> None:
    made = [
        Finding("a", "note", "n", "m", "e"),
        Finding("b", "error", "", "", "e", "r"),
        Finding("c", "warning", "x", "", "e", "r", True),
    ]
    assert [f.rule for f in sorted_findings(made)] == ["b", "c", "a"]
    assert [f.open for f in made] == [False, True, False]
    assert (
        summary(made) == "1 error, 1 warning, 1 note; 1 mended by quantization itself"
        and summary([]) == "nothing found"
    )
    assert table(made).row_count == 3 and json.loads(json.dumps(made[1].to_dict()))["rule"] == "b"
    assert str(made[2]) == "warning: c: x: e [mended]" and set(SEVERITIES) == {"error", "warning", "note"}


def test_the_pipeline_keeps_findings() -> None:
    model, data = detector("ssd")
    result = pipeline.run(model, data[0], data, QuantConfig(correct_bias=False), progress=False)
    assert {"concat-ranges", "split-heads"} <= {f.rule for f in result.findings}


def test_hardswish_reports_each_output() -> None:
    torch.manual_seed(0)
    model = models.SMALL_MODELS["squeeze_excite_silu"]()
    data = images(8, size=16)
    models.set_batchnorm_statistics(model, torch.cat(data))
    result = pipeline.run(model, data[0], data, {"hardswish": True, "correct_bias": False}, progress=False)
    (finding,) = result.reports["hardswish"]
    assert finding.rule == "hardswish" and "3 silu became hardswish: output 0 changed by" in finding.evidence
    targets = {str(n.target) for n in result.module.graph.nodes}
    assert "aten.hardswish.default" in targets and "aten.silu.default" not in targets
    with torch.no_grad():
        changed = max(float((result.reference(x) - model(x)).abs().max()) for x in data)
    assert f"changed by {changed:.3g}"[:12] in finding.evidence
    plain = pipeline.run(model, data[0], data, {"correct_bias": False}, progress=False)
    assert "aten.silu.default" in {str(n.target) for n in plain.module.graph.nodes}


def test_command(tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    from mera_torch.converters.exported import save_pt2

    model, data = detector("ssd")
    path, calibration = tmp_path / "ssd.pt2", tmp_path / "data.npy"
    save_pt2(model, (data[0],), path)
    np.save(calibration, torch.cat(data).numpy())
    result = mera("lint", path, "--calibration", calibration, "--json")
    document = result.json
    assert result.code == exits.OK and {f["rule"] for f in document["findings"]} >= {"concat-ranges"}
    config = tmp_path / "config.toml"
    config.write_text("split_heads = false\n")
    result = mera("lint", path, "--calibration", calibration, "--config", config)
    assert result.code == exits.DIFFERENT and "concat-ranges" in result.out


def test_every_rule_is_explained_in_the_documentation() -> None:
    page = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")
    names = rule_names()
    assert len(names) == len(RULES) and all(len(text) > 40 for text in names.values())
    assert all(f"| `{name}` | {text} |" in page for name, text in names.items())
