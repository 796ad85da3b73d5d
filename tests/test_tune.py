"""Ranges that are chosen by what they do to the network's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import mera_torch
from mera_torch.quant import MeraQuantizer, ModelQuantizer, calibrate, pipeline, tune_ranges
from mera_torch.quant.calibration import tune
from mera_torch.quant.calibration.observers import ActivationObserver
from mera_torch.quant.calibration.ranges import find_range
from mera_torch.quant.calibration.statistics import Statistics
from mera_torch.quant.transforms.fake import sqnr_db

pytestmark = pytest.mark.filterwarnings("ignore")


class Unread(nn.Module):
    """Two convolutions; one channel between them has rare large values, which nothing reads."""

    def __init__(self, factor: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.first.weight[0] *= 60
            self.last.weight[:, 0] *= factor

    def forward(self, x: Tensor) -> Any:
        return self.last(self.first(x).relu())


def batches(count: int = 6, size: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 3, size, size, generator=generator) for _ in range(count)]


def prepared(model: nn.Module, data: list[Any], config: Any = None) -> torch.fx.GraphModule:
    exported = torch.export.export(model.eval(), (data[0],)).module()
    observed = prepare_pt2e(exported, MeraQuantizer(config))
    calibrate(observed, [(x,) for x in data], progress=False)
    return observed


def observers(module: torch.fx.GraphModule) -> dict[str, ActivationObserver]:
    return {each.value: each for each in module.modules() if isinstance(each, ActivationObserver)}


def quality(model: nn.Module, quantized: Any, data: list[Tensor]) -> float:
    with torch.no_grad():
        return sqnr_db(*(torch.cat([net(x) for x in data]) for net in (model, quantized)))


def test_ranges_leave_out_what_nothing_reads() -> None:
    model, data = Unread(), batches()
    plain, tuned = (prepared(model, data) for _ in range(2))
    assert tune_ranges(tuned, [(x,) for x in data]) == []
    (value,) = (name for name in observers(plain) if "relu" in name)
    assert observers(tuned)[value].range()[1] < 0.4 * observers(plain)[value].range()[1]
    assert quality(model, convert_pt2e(tuned), data) > quality(model, convert_pt2e(plain), data) + 5


def test_ranges_keep_what_matters_most() -> None:
    model, data = Unread(factor=60.0), batches()
    tuned = prepared(model, data)
    tune_ranges(tuned, [(x,) for x in data])
    (value,) = (name for name in observers(tuned) if "relu" in name)
    highest = max(float(model.first(x).max()) for x in data)
    assert observers(tuned)[value].range()[1] > 0.6 * highest


def test_no_worse_than_least_squared_error_on_new_data() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 16, 3, groups=16), nn.Hardswish(),
        nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    ).eval()  # fmt: skip
    data = batches(12, 14)
    tuned, least = (
        mera_torch.quantize(model, data[0], data[:8], config={"activation_observer": kind}, progress=False)
        for kind in ("auto", "histogram")
    )
    assert quality(model, tuned, data[8:]) > quality(model, least, data[8:]) - 1


def test_the_estimate_is_the_outputs_error() -> None:
    """Of a linear network first order is all there is: the mean of (r' J e)^2 is |J e|^2."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 5)), torch.randn(1, 12)
    module = prepared(model, [x])
    found = tune._derivatives(module, tune._tunable(module), (x,), 4000, torch.Generator().manual_seed(0))
    ((_, value, gradients),) = found  # the input's range and the output's are not tuned
    x = model[0](x).detach()
    assert torch.equal(value, x)
    ranges = [(-0.5, 0.5), (-1.0, 2.0), (-4.0, 3.0)]
    got = tune._errors(value, gradients, ranges, False) / 4000
    for (low, high), estimate in zip(ranges, got, strict=True):
        scale = (high - low) / 255
        zero = round(-128 - low / scale)
        e = torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127) - x
        assert estimate == pytest.approx(float((model[1].weight.detach() @ e[0]).square().sum()), rel=0.15)


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_values_that_share_a_quantization_have_one_range(scheme: str) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x), 3 * self.b(x)], 1).relu())

    torch.manual_seed(0)
    data = batches()
    module = prepared(Joined(), data, {"activation_scheme": scheme})
    assert tune_ranges(module, [(x,) for x in data]) == []
    held = observers(module)
    groups = {id(each.group[0]): each.group for each in held.values()}
    assert any(len(group) > 1 for group in groups.values())
    for group in groups.values():
        assert len({each.range() for each in group}) == 1
        low, high = group[0].range()
        assert low <= 0 <= high and (scheme == "affine" or group[0].fixed or low == -high)


def test_it_repeats_and_leaves_the_model_alone() -> None:
    data = batches()
    model = Unread()
    before = [p.requires_grad for p in model.parameters()]
    steps: list[tuple[str, int, int]] = []
    first, second = (prepared(model, data) for _ in range(2))
    tune_ranges(first, [(x,) for x in data], progress=lambda *step: steps.append(step))
    tune_ranges(second, [(x,) for x in data])
    ranges = [{name: each.range() for name, each in observers(module).items()} for module in (first, second)]
    assert ranges[0] == ranges[1] and steps == [("tuning ranges", done, 6) for done in range(1, 7)]
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())


def test_a_settled_range_is_dropped_when_more_is_seen() -> None:
    data = batches()
    module = prepared(Unread(), data)
    tune_ranges(module, [(x,) for x in data])
    (value,) = (name for name in observers(module) if "relu" in name)
    observer = observers(module)[value]
    settled = observer.range()
    calibrate(module, [(x,) for x in data], progress=False)
    assert observer.range() != settled


def test_data_made_in_inference_mode() -> None:
    model = Unread()
    with torch.inference_mode():
        data = batches()
    assert mera_torch.quantize(model, data[0], data, progress=False)(data[0]).shape == (1, 4, 6, 6)


class Rounded(nn.Module):
    """Ends with integers, which have no derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return Unread.forward(self, x).argmax(1)  # type: ignore[arg-type]


def test_what_cannot_be_tuned_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = batches()
    model = Unread()
    model.forward = Rounded.forward.__get__(model)  # type: ignore[method-assign]
    quantizer = ModelQuantizer(model, data[0].shape).calibrate(data, progress=False)
    for _ in range(2):  # once each time
        said = [each for each in quantizer.quantize(progress=False).findings if each.rule == "ranges"]
        assert len(said) == 1 and "no output has a derivative" in said[0].evidence and said[0].severity == "note"
    monkeypatch.setattr(tune, "MEMORY_LIMIT", 1000)
    result = pipeline.run(Unread(), data[0], data, progress=False)
    assert ["more than 0" in each.evidence for each in result.findings if each.rule == "ranges"] == [True]


@torch.library.custom_op("mera_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return 2 * x


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_operator_without_derivative() -> None:
    class Custom(Unread):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.ops.mera_tests.doubled(self.first(x)))

    data = batches()
    result = pipeline.run(Custom(), data[0], data, progress=False)
    (said,) = (each for each in result.findings if each.rule == "ranges")
    assert "cannot be differentiated" in said.evidence and "doubled" in said.evidence


def test_maps_of_few_positions_have_ranges_of_least_error_until_they_are_tuned() -> None:
    generator = np.random.default_rng(0)
    for side, capped in ((3, False), (4, True)):
        seen = Statistics(2048, 0.01)
        for i in range(8):
            seen.update(torch.from_numpy(generator.standard_normal((1, 4, side, side)).astype(np.float32)) * (i + 1))
        least, usual = find_range(seen, "histogram"), find_range(seen, "mean")
        assert usual[1] < least[1]
        assert find_range(seen, "auto")[1] == (usual if capped else least)[1]
