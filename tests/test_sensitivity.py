"""Sensitivity: the operator that int8 ruins comes first; scores are those of networks that really are so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from mixed_models import Joined, Outliers, Power, batches, seeded
from rich.console import Console
from torch import Tensor, nn

from mera_torch.errors import CalibrationError, ConfigError
from mera_torch.quant import QuantConfig, pipeline, quantize
from mera_torch.quant.mixed.criteria import criterion
from mera_torch.quant.mixed.evaluate import Evaluator
from mera_torch.quant.mixed.sensitivity import Sensitivity, sensitivity
from mera_torch.quant.mixed.variants import Variants, all_int8

EVALUATION = batches(3, seed=6)


def ranked(make: type[nn.Module], **options: Any) -> Sensitivity:
    data = batches()
    return sensitivity(seeded(make), data[0], EVALUATION, calibration=data, progress=False, **options)


def sqnr(wanted: list[Tensor], got: list[Tensor]) -> float:
    signal = sum(float(w.double().square().sum()) for w in wanted)
    noise = sum(float((g.double() - w.double()).square().sum()) for w, g in zip(wanted, got, strict=True))
    return 10 * math.log10(signal / noise)


def outputs(module: Callable[..., Any]) -> list[Tensor]:
    with torch.no_grad():
        return [module(x) for x in EVALUATION]


# ---- variants ----


QUICK = ("residual", "inception")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in models.SMALL_MODELS]
)
def test_variants_without_a_change_are_the_networks_themselves(name: str) -> None:
    torch.manual_seed(0)
    size = (64, 64) if name == "mobilenet_v1" else (16, 16)
    model = models.set_batchnorm_statistics(models.SMALL_MODELS[name](), torch.randn(8, 3, *size))
    x = torch.randn(1, 3, *size)
    quantization = pipeline.run(model, x, [x], QuantConfig(activation_observer="minmax"), False)
    variants = Variants(quantization, quantization.config)
    assert variants.choices
    with torch.no_grad():
        assert torch.equal(variants.build({})(x), quantization.module(x))
        assert torch.equal(variants.build({}, otherwise="float")(x), quantization.reference(x))


@pytest.mark.parametrize("make", [Outliers, pytest.param(Power, marks=pytest.mark.slow)])
def test_a_variant_is_the_network_quantized_with_that_rule(make: type[nn.Module]) -> None:
    data, model = batches(), seeded(make)
    plain = all_int8(QuantConfig())
    variants = Variants(pipeline.run(model, data[0], data, plain, False), plain)
    for choice in variants.choices:
        rules = [rule.to_dict() for rule in choice.rules("bf16")]
        anew = quantize(model, data[0], data, config={"rules": rules, "correct_bias": False}, progress=False)
        with torch.no_grad():
            assert torch.equal(variants.build({choice: "bf16"})(data[1]), anew(data[1])), choice.name


def test_what_shares_a_scale_is_one_choice_and_what_is_fused_is_none() -> None:
    data = batches()
    variants = Variants(pipeline.run(seeded(Outliers), data[0], data, QuantConfig(), False), QuantConfig())
    by_name = {choice.name: choice for choice in variants.choices}
    assert by_name["conv2d"].nodes == ("conv2d", "relu") and by_name["conv2d"].module == "first"
    assert not any("pad" in choice.name for choice in variants.choices)  # it follows its neighbours
    config = QuantConfig(split_heads=False)
    joined = Variants(pipeline.run(seeded(Joined), data[0], data, config, False), config)
    assert "cat" in {choice.name for choice in joined.choices}


# ---- evaluation ----


def test_only_what_differs_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches()
    quantization = pipeline.run(seeded(Outliers), data[0], data, QuantConfig(), False)
    variants = Variants(quantization, QuantConfig())
    evaluator = Evaluator(quantization.original, EVALUATION, (data[0],), criterion("sqnr"))
    from mera_torch.quant.mixed import evaluate

    computed: list[str] = []
    compute = evaluate._compute
    monkeypatch.setattr(evaluate, "_compute", lambda step, held: computed.append(step.name) or compute(step, held))
    last = next(choice for choice in variants.choices if choice.op == "linear")
    base = variants.build({})
    evaluator.scores(base, [base])
    whole = sum(node.op == "call_function" for node in base.graph.nodes)
    assert len(computed) == len(EVALUATION) * whole
    computed.clear()
    found = evaluator.scores(base, [variants.build({last: "float"})])
    assert [computed[(whole + 1) * i + whole :][:1] for i in range(len(EVALUATION))] == [["linear"]] * len(EVALUATION)
    assert len(computed) == len(EVALUATION) * (whole + 1)
    wanted, changed = outputs(quantization.original), outputs(variants.build({last: "float"}))
    assert found == pytest.approx([sqnr(wanted, outputs(base)), sqnr(wanted, changed)], rel=1e-9)


class InPlace(nn.Module):
    """Changes a view of a value that others read, which no rewrite may touch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, :, :4].relu_()
        return self.last(y * 2.0)


def test_operators_in_place_are_computed_anew() -> None:
    data, kept = batches(), [x.clone() for x in EVALUATION]
    quantization = pipeline.run(seeded(InPlace), data[0], data, QuantConfig(), False)
    variants = Variants(quantization, QuantConfig())
    evaluator = Evaluator(quantization.original, EVALUATION, (data[0],), criterion("sqnr"))
    changed = [variants.build({choice: "float"}) for choice in variants.choices]
    wanted = outputs(seeded(InPlace))
    expected = [sqnr(wanted, outputs(module)) for module in changed]
    assert evaluator.scores(variants.build({}), changed)[1:] == pytest.approx(expected, rel=1e-9)
    assert all(map(torch.equal, kept, EVALUATION))


# ---- ranking ----


@pytest.mark.parametrize("mode", ["only", "leave"])
@pytest.mark.parametrize("dtype", ["float", "bf16"])
def test_the_operator_with_outlying_weights_comes_first(mode: str, dtype: str) -> None:
    found = ranked(Outliers, mode=mode, dtype=dtype)
    first, second = found.rows[:2]
    assert first.choice.module == "bad" and first.choice.op == "conv2d"
    assert (second.score - first.score if mode == "only" else first.score - second.score) > 15
    assert found.quantized < 25 and len(found.rows) == 5 and found.batches == len(EVALUATION)


def test_a_power_of_large_range_comes_first() -> None:
    found = ranked(Power)
    assert "mul_2" in [row.choice.name for row in found.rows[:2]]  # x ** 8


@pytest.mark.parametrize("metric", ["kl", "top1", "sqnr"])
def test_scores_are_those_of_the_networks(metric: str) -> None:
    data, model = batches(), seeded(Outliers)
    found = ranked(Outliers, metric=metric, mode="leave")
    wanted = outputs(model)
    row = next(row for row in found.rows if row.choice.op == "linear")
    config = {"rules": [rule.to_dict() for rule in row.choice.rules("float")], "correct_bias": False}
    got = outputs(quantize(model, data[0], data, config=config, progress=False))
    p, q = (torch.cat(x).double().log_softmax(1) for x in (wanted, got))
    expected = {
        "kl": float((p.exp() * (p - q)).sum(1).mean()),
        "top1": 100 * float((p.argmax(1) == q.argmax(1)).double().mean()),
        "sqnr": sqnr(wanted, got),
    }
    assert row.score == pytest.approx(expected[metric], rel=1e-6, abs=1e-9)
    assert found.criterion.higher_is_better is (metric != "kl")


def test_a_task_metric_gets_every_batch_as_the_model_gives_it() -> None:
    seen: list[int] = []

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.conv(x)
            return {"a": y, "b": y.mean((2, 3))}

    def negative_error(found: list[dict[str, Tensor]]) -> float:
        seen.append(len(found))
        assert set(found[0]) == {"a", "b"}
        return -float(sum(out["b"].abs().sum() for out in found))

    result = ranked(Two, metric=negative_error)
    assert set(seen) == {len(EVALUATION)} and result.criterion.name == "negative_error"
    with pytest.raises(ConfigError, match="must give a number"):
        ranked(Two, metric=lambda found: "good")  # type: ignore[arg-type, return-value]


def test_candidates_and_what_the_configuration_fixes() -> None:
    assert {row.choice.name for row in ranked(Outliers, candidates=["conv2d"]).rows} == {
        "conv2d", "conv2d_1", "conv2d_2",
    }  # fmt: skip
    assert {row.choice.name for row in ranked(Outliers, candidates=["bad", "linear"]).rows} == {"conv2d_1", "linear"}
    fixed = ranked(Outliers, config={"rules": [{"module": "bad", "dtype": "float"}]})
    assert "conv2d_1" not in {row.choice.name for row in fixed.rows} and fixed.quantized > 40


def test_it_is_deterministic_and_prints() -> None:
    once, again = (ranked(Outliers, candidates=["conv2d"]).to_dict() for _ in range(2))
    assert json.dumps(once, allow_nan=False) == json.dumps(again, allow_nan=False)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(ranked(Outliers, candidates=["conv2d"]))
    assert "bad" in console.export_text()


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    data = batches()
    sensitivity(seeded(Outliers), data[0], data, progress=lambda *said: told.append(said))
    stages = [said for said in told if said[0] == "sensitivity"]
    assert stages[-1][1] == stages[-1][2] == len(data) * 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "sqrn"}, "unknown metric 'sqrn'; did you mean 'sqnr'"),
        ({"mode": "leaf"}, "did you mean 'leave'"),
        ({"dtype": "fp16"}, "dtype must be one of float, bf16, got 'fp16'"),
        ({"candidates": ["conv2e_1"]}, "no operator of the model matches 'conv2e_1'; did you mean 'conv2d_1'"),
        ({"config": {"rules": [{"node": "conv2d_9", "dtype": "float"}]}}, "did you mean 'conv2d"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        ranked(Outliers, **options)


@pytest.mark.parametrize("data", [[], [torch.randn(1, 3, 4, 4)], torch.randn(1, 3, 10, 12), 7])
def test_bad_data(data: Any) -> None:
    calibration = batches()
    with pytest.raises(CalibrationError, match="evaluation (data|item)"):
        sensitivity(seeded(Outliers), calibration[0], data, calibration=calibration, progress=False)
