"""The mixed-precision search: it keeps what int8 ruins, holds its goals, and its networks run on every rung."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled import run
from mixed_models import Joined, Outliers, Power, batches, seeded
from rich.console import Console
from torch import Tensor, nn

from mera_torch.backend.capture import capture
from mera_torch.compile import build, settings_of
from mera_torch.errors import ConfigError, MeraError
from mera_torch.platform import find
from mera_torch.quant import QuantConfig, pipeline, quantize
from mera_torch.quant.mixed.criteria import CRITERIA
from mera_torch.quant.mixed.cycles import CycleModel, Cycles
from mera_torch.quant.mixed.result import MixedPrecision, Point, frontier
from mera_torch.quant.mixed.search import search
from mera_torch.quant.mixed.variants import Choice, Variants

EVALUATION = batches(3, seed=6)
CONFIG = {"correct_bias": False, "activation_observer": "minmax"}
_searched: dict[str, MixedPrecision] = {}


def searched(make: type[nn.Module], **options: Any) -> MixedPrecision:
    """The same arguments give the same result, which is made once."""
    data, key = batches(2), repr((make, sorted(options.items())))
    if key not in _searched:
        given = {"config": CONFIG, "progress": False, **options}
        _searched[key] = search(seeded(make), data[0], data, EVALUATION, **given)
    return _searched[key]


def score(make: type[nn.Module], module: nn.Module) -> float:
    with torch.no_grad():
        wanted, got = (torch.cat([network(x) for x in EVALUATION]).double() for network in (seeded(make), module))
    return float(10 * torch.log10(wanted.square().sum() / (got - wanted).square().sum()))


# ---- what it keeps ----


@pytest.mark.parametrize(
    ("dtype", "platform"),
    [("bf16", "SAKURA_II"), pytest.param("bf16", "SAKURA_1", marks=pytest.mark.slow), ("float", "SAKURA_II")],
)
def test_it_keeps_the_one_operator_that_int8_ruins(dtype: str, platform: str) -> None:
    options = {} if (dtype, platform) == ("bf16", "SAKURA_II") else {"dtype": dtype, "platform": platform}
    found = searched(Outliers, accuracy=35.0, **options)
    assert [choice.module for choice in found.kept] == ["bad"]
    assert found.sensitivity.rows[0].choice == found.kept[0]
    assert found.before.score < 20 and found.after.score >= 35
    assert found.after.score == pytest.approx(score(Outliers, found.module), rel=1e-9)
    on_dna = dtype == "bf16" and find(platform).bf16
    cost = found.after.cycles
    assert (cost.bf16 > 0) is on_dna and (cost.host > 0 and cost.border > 0) is not on_dna


def test_the_configuration_makes_the_same_network_again(tmp_path: Path) -> None:
    found, data = searched(Outliers, accuracy=35.0), batches(2)
    (tmp_path / "mixed.toml").write_text(found.config.to_toml())
    config = QuantConfig.from_toml(tmp_path / "mixed.toml")
    assert config == found.config and [rule.dtype for rule in config.rules] == ["bf16", "bf16"]  # conv2d and its relu
    again = quantize(seeded(Outliers), data[0], data, config=config, progress=False)
    with torch.no_grad():
        assert torch.equal(again(data[1]), found.module(data[1]))


def test_both_ends_of_a_value_are_kept_together() -> None:
    """A sigmoid's and a box's common scale: no end of the concat alone helps."""
    found = searched(Joined, accuracy=40.0, config={**CONFIG, "split_heads": False})
    assert found.after.score >= 40 > found.before.score
    assert 1 < len(found.kept) < len(found.sensitivity.rows)


def test_nothing_is_kept_where_int8_suffices() -> None:
    found = searched(Outliers, accuracy=5.0)
    assert found.kept == () and found.after == found.before and found.curve == [found.before]
    assert found.config == QuantConfig(**CONFIG)


def test_what_the_configuration_says_already_stays() -> None:
    rule = {"module": "bad", "dtype": "float"}
    found = searched(Outliers, accuracy=45.0, config={**CONFIG, "rules": [rule]})
    assert found.config.rules[0].dtype == "float" and "bad" not in {choice.module for choice in found.kept}
    assert found.before.score > 40


def test_fewest_of_less_is_better() -> None:
    before = searched(Outliers, accuracy=1e9, metric="kl").before.score
    found = searched(Outliers, accuracy=before / 50, metric="kl")
    assert [choice.module for choice in found.kept] == ["bad"] and 0 < found.after.score <= before / 50


# ---- goals ----


@pytest.mark.parametrize(
    ("make", "candidates"),
    [
        (Outliers, ["bad", "third"]),
        pytest.param(Outliers, None, marks=pytest.mark.slow),
        pytest.param(Power, None, marks=pytest.mark.slow),
    ],
)
def test_budgets_are_respected_and_the_curve_is_monotone(make: type[nn.Module], candidates: list[str] | None) -> None:
    free = searched(make, budget_cycles=10**9, candidates=candidates)
    assert free.after.score > free.before.score
    least, most = free.before.cycles.total, max(point.cycles.total for point in free.points)
    for budget in (least, (least + most) // 2):
        found = searched(make, budget_cycles=budget, candidates=candidates)
        assert all(point.cycles.total <= budget for point in found.points)
        assert found.after.score >= found.before.score
        cycles, scores = zip(*((point.cycles.total, point.score) for point in found.curve), strict=True)
        assert list(cycles) == sorted(set(cycles)) and list(scores) == sorted(set(scores))


def test_accuracy_within_a_budget() -> None:
    alone = searched(Outliers, accuracy=35.0)
    found = searched(Outliers, accuracy=35.0, budget_cycles=alone.after.cycles.total)
    assert found.after.score >= 35 and found.after.cycles.total <= alone.after.cycles.total
    assert "bad" in {choice.module for choice in found.kept}
    with pytest.raises(ConfigError, match=r"cannot be reached within \d+ cycles .*the best is 16\.\d+ dB at"):
        searched(Outliers, accuracy=35.0, budget_cycles=alone.before.cycles.total)


@pytest.mark.parametrize(
    ("goals", "said"),
    [
        ({}, "needs a goal"),
        ({"accuracy": 400.0}, r"sqnr 400 dB cannot be reached: the best is 5\d\.\d+ dB, with all 5 operators in bf16"),
        ({"accuracy": float("nan")}, "accuracy must be a finite number, got nan"),
        ({"budget_cycles": "many"}, "budget_cycles must be a finite number"),
        ({"budget_cycles": 10}, r"budget_cycles 10 is below the minimum: the network in int8 alone takes \d+ cycles"),
        ({"accuracy": 30.0, "metric": "topp1"}, "unknown metric 'topp1'; did you mean 'top1'"),
        ({"accuracy": 30.0, "dtype": "int8"}, "dtype must be one of float, bf16"),
        ({"accuracy": 30.0, "platform": "SAKURA_3"}, "unknown platform 'SAKURA_3'"),
        ({"accuracy": 30.0, "host_gops": 0}, "host_gops must be a number above 0"),
        ({"accuracy": 30.0, "candidates": ["nothing.*"]}, "no operator of the model matches 'nothing"),
    ],
)
def test_bad_goals(goals: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        searched(Outliers, **goals)


def test_candidates_alone_are_kept() -> None:
    with pytest.raises(ConfigError, match=r"the best is 1\d\.\d+ dB, with all 2 operators in bf16"):
        searched(Outliers, accuracy=35.0, candidates=["linear", "first"])
    assert {c.op for c in searched(Outliers, budget_cycles=10**9, candidates=["linear"]).kept} <= {"linear"}


# ---- what is found runs ----


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(Outliers, "bf16"), (Outliers, "float"), pytest.param(Joined, "bf16", marks=pytest.mark.slow)],
)
def test_interpreter_and_simulator_agree(make: type[nn.Module], dtype: str) -> None:
    found = searched(make, accuracy=35.0, **({} if dtype == "bf16" else {"dtype": dtype, "platform": "SAKURA_II"}))
    assert found.kept
    x = EVALUATION[0]
    result = build(capture(found.module, (x,)), settings_of("DNAF132S0001", "InterpreterHw", None))
    (got,) = run(result, x)
    with torch.no_grad():
        wanted = found.module(x)
    assert (got - wanted).abs().max() <= 0.05 * wanted.abs().max()


def test_the_same_search_twice_and_in_json() -> None:
    once = searched(Outliers, accuracy=35.0).to_dict()
    data = batches(2)
    again = search(seeded(Outliers), data[0], data, EVALUATION, accuracy=35.0, config=CONFIG, progress=False).to_dict()
    assert json.dumps(once, allow_nan=False) == json.dumps(again, allow_nan=False)
    assert once["curve"][0]["cycles"]["dna"] > 0 and once["platform"] == "SAKURA_II"


def test_table_and_plot(tmp_path: Path) -> None:
    found = searched(Outliers, accuracy=35.0)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(found)
    text = console.export_text()
    assert "simulated" in text and "estimated" in text and "conv2d_1 (bad)" in text and "*" in text
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    with pytest.raises(MeraError, match="are written as .png"):
        found.plot(tmp_path / "curve.doc")


# ---- cycles ----


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(16, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def test_the_cost_of_bf16_is_the_documented_formula() -> None:
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    quantization = pipeline.run(Two().eval(), x, [x], QuantConfig(), False)
    variants = Variants(quantization, QuantConfig())
    a, b = variants.choices
    platform = find("SAKURA_II")
    model = CycleModel((x,), platform)
    peak, rate = platform.macs_per_cycle, platform.dram_bytes_per_cycle

    def bound(macs: int, elements: int, biases: int) -> float:
        return max(2 * macs / peak, (2 * elements + 4 * biases) / rate)

    cost = model.of(variants.build({b: "bf16"}))
    assert cost.host == cost.border == 0 and cost.dna > 0
    assert cost.bf16 == -(-bound(64 * 64 * 32, 64 * 32 + 32 * 64 + 64 * 64, 64) // 1)
    both = model.of(variants.build({a: "bf16", b: "bf16"}))  # the value between them stays on the chip
    elements = 32 * 16 * 9 + 64 * 32 + 16 * 64 + 64 * 64
    assert both.dna == 0 and both.bf16 == -(-bound(64 * (32 * 16 * 9 + 64 * 32), elements, 96) // 1)
    int8 = model.reference(quantization.module)
    assert int8.estimated == 0 and model.slowdown > 1
    assert model.of(variants.build({b: "bf16"})).bf16 == -(-cost_bound(bound, model.slowdown) // 1)


def cost_bound(bound: Any, slowdown: float) -> float:
    return float(bound(64 * 64 * 32, 64 * 32 + 32 * 64 + 64 * 64, 64) * slowdown)


def test_the_cost_of_the_host_is_work_and_border() -> None:
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    quantization = pipeline.run(Two().eval(), x, [x], QuantConfig(), False)
    variants = Variants(quantization, QuantConfig())
    b = variants.choices[1]
    slow, fast = (CycleModel((x,), "SAKURA_1", gops).of(variants.build({b: "float"})) for gops in (1.0, 2.0))
    cycles = 64 * 64 * 32 / 1e9 * find("SAKURA_1").clock_mhz * 1e6
    assert slow.host == pytest.approx(cycles, abs=1) and fast.host == pytest.approx(cycles / 2, abs=1)
    assert slow.border == fast.border > 32 * 64 / find("SAKURA_1").dram_bytes_per_cycle and slow.bf16 == 0


def test_the_frontier_drops_what_is_beaten() -> None:
    choice = Choice("a", "conv2d", "", ("a",), 0)
    points = [
        Point((), 10.0, Cycles(100)), Point((choice,), 9.0, Cycles(150)), Point((choice,), 20.0, Cycles(150)),
        Point((choice, choice), 15.0, Cycles(200)), Point((choice,), float("inf"), Cycles(300)),
    ]  # fmt: skip
    assert [p.score for p in frontier(points, CRITERIA["sqnr"])] == [10.0, 20.0, float("inf")]
    assert [p.score for p in frontier(points, CRITERIA["kl"])] == [10.0, 9.0]


# ---- real networks ----


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_real_networks_gain(name: str) -> None:
    from mera_torch import zoo_models

    entry = zoo_models.MODELS[name]
    photos = [entry.preprocess(photo.data) for photo in zoo_models.photos()]
    given = entry.load(), photos[0], [photo.flip(3) for photo in photos[:16]], photos[16:]
    before = search(*given, accuracy=-100.0, progress=False).after
    found = search(*given, accuracy=before.score + 2, progress=False)
    assert before.kept == () and found.before == before
    assert found.after.score >= before.score + 2
    assert 0 < len(found.kept) < len(found.sensitivity.rows) / 3
