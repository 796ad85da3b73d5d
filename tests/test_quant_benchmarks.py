"""The quantization benchmarks: figures, data, adapters on a tiny network, and results that are what the tables say."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import quantize as script  # noqa: E402
from quantization import data, metrics, onnx_light, rows, tables, verdicts  # noqa: E402
from quantization.methods import METHODS, Method  # noqa: E402
from quantization.networks import NETWORKS, Network  # noqa: E402

from mera_torch.zoo import ZooError  # noqa: E402
from mera_torch.zoo_models import MODELS  # noqa: E402

RESULTS = BENCHMARKS / "results"
SIDE, CLASSES = 16, 5
IN_TEST_EXTRA = ("mera_torch", "torchao X86Inductor", "ONNX Runtime, per channel, MinMax")


def tiny_inputs(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def tiny_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * (SIDE // 2) ** 2, CLASSES),
    ).eval()


def tiny_samples(count: int) -> data.Samples:
    inputs = tiny_inputs(count, 1)
    with torch.no_grad():
        labels = tiny_net()(inputs).argmax(1)
    labels[0] = (labels[0] + 1) % CLASSES  # float is wrong once
    return data.Samples(inputs, torch.arange(count), labels)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A network of the benchmark that needs no download."""
    network = Network(
        "tiny", "digits", tiny_net, lambda count: list(tiny_inputs(count, 2).split(1)), tiny_samples, (8, 40)
    )
    monkeypatch.setitem(NETWORKS, "tiny", network)
    monkeypatch.setenv("MERA_TORCH_CACHE", str(tmp_path))
    return "tiny"


# ---- figures ----


def test_signal_to_noise() -> None:
    reference = torch.tensor([[3.0, -4.0], [0.0, 5.0]])
    output = reference + torch.tensor([[0.1, 0.1], [0.0, 0.2]])
    assert metrics.psnr_each(reference, output) == pytest.approx([33.979, 30.969], abs=1e-3)  # 25 over 0.01 and 0.02
    assert metrics.noise(reference, output) == pytest.approx({"sqnr_db": 29.208, "psnr_db": 32.218}, abs=1e-3)
    assert set(metrics.noise(reference, reference).values()) == {metrics.HIGHEST_DECIBELS}


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packed_flags_come_back(flags: list[bool]) -> None:
    digits = metrics.packed(torch.tensor(flags))
    assert metrics.unpacked(digits, len(flags)) == [float(flag) for flag in flags]
    assert len(digits) == -(-len(flags) // 4)


def test_difference_of_independent_items_is_mcnemars() -> None:
    only_first, only_second, total = 7, 3, 100
    first = [1.0] * only_first + [0.0] * only_second + [1.0] * (total - 10)
    second = [0.0] * only_first + [1.0] * only_second + [1.0] * (total - 10)
    mean, error = metrics.difference(first, second, range(total))
    discordant, excess = only_first + only_second, only_first - only_second
    variance = (discordant - excess**2 / total) / (total - 1)
    assert mean == pytest.approx(excess / total)
    assert error == pytest.approx(math.sqrt(variance / total))


def test_alike_items_count_once() -> None:
    one_each = metrics.difference([1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0], range(4))
    five_each = metrics.difference([1.0, 0.0, 1.0, 1.0] * 5, [0.0, 0.0, 1.0, 0.0] * 5, [0, 1, 2, 3] * 5)
    assert five_each == pytest.approx(one_each)


def test_verdicts_say_what_the_figures_do() -> None:
    def row(method: str, tool: str, rights: list[bool]) -> dict[str, Any]:
        packed = metrics.packed(torch.tensor(rights))
        common = {"network": "digit_cnn", "kind": "digits", "groups": len(rights), "inputs": len(rights)}
        common |= {"per_tensor": False, "float_right": 95, "right": sum(rights)}
        return {**common, "method": method, "tool": tool, "rights": packed}

    ours = row("mera_torch", "mera_torch", [True] * 90 + [False] * 10)
    same = row("TFLite converter", "tensorflow_cpu", [False] * 10 + [True] * 90)
    ahead = row("TFLite converter", "tensorflow_cpu", [True] * 91 + [False] * 9)
    far = row("TFLite converter", "tensorflow_cpu", [True] * 100)
    assert [verdicts.verdict(ours, peer) for peer in (same, ahead, far)] == ["best", "within noise of best", "behind"]
    (found,) = verdicts.verdicts([ours, far], kind="digits")
    less = found["ours less best peer in int8"]
    assert less.startswith("-10.00 ± ") and less.endswith(": behind") and found["float"] == "95.00"
    assert verdicts.behind([ours, far]) == ["digit_cnn (TFLite converter)"] and not verdicts.behind([ours, same])
    loss = next(row for row in verdicts.aims([ours, far]) if row["network"] == "digit_cnn")
    assert (loss["measured"], loss["met"]) == ("5.00 points", "no")
    assert {row["met"] for row in verdicts.aims([])[:-1]} == {"no"}  # what was not measured is not met


# ---- data ----


@pytest.mark.network
def test_digits_are_disjoint_and_deterministic(zoo_artifact: Callable[[str], None]) -> None:
    zoo_artifact("digits")
    calibration, evaluation = data.calibration_digits(), data.evaluation_digits()
    assert len(calibration) == 100 and len(evaluation) == 2000
    seen = {x.numpy().tobytes() for x in calibration}
    assert not any(x.numpy().tobytes() in seen for x in evaluation.inputs)
    few = data.evaluation_digits(50)
    assert set(torch.bincount(few.labels).tolist()) <= {4, 5, 6}  # classes are of nearly one size
    assert torch.equal(few.inputs, data.evaluation_digits(50).inputs)


@pytest.mark.network
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite1"])
def test_crops_are_disjoint_and_deterministic(name: str, zoo_artifact: Callable[[str], None]) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    zoo_artifact("photos")
    try:
        data.calibration_photographs()
    except ZooError as error:
        pytest.skip(str(error))
    entry = MODELS[name]
    calibration, evaluation = data.calibration_crops(entry, 14), data.evaluation_crops(entry, 40)
    assert all(x.shape == (1, 3, entry.side, entry.side) for x in calibration)
    assert evaluation.inputs.shape == (40, 3, entry.side, entry.side)
    assert evaluation.groups.tolist() == [index % 20 for index in range(40)]
    assert torch.equal(evaluation.inputs, data.evaluation_crops(entry, 40).inputs)
    assert torch.equal(evaluation.inputs, data.evaluation_crops(entry, 41).inputs[:40])
    assert not torch.equal(evaluation.inputs[0], evaluation.inputs[20])
    used, judged = (
        {image.tobytes() for image in images} for images in (data.calibration_photographs(), data.zoo_photographs())
    )
    assert len(used) == 28 and len(judged) == 20 and not used & judged
    assert data.labelled_photos(entry).labels.tolist()[:2] == [243, 559]


def test_boxes_lie_within_the_image() -> None:
    random = np.random.default_rng(0)
    for width, height in ((640, 427), (300, 900), (512, 512)):
        for _ in range(200):
            left, top, right, bottom = data._box(width, height, random)
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert (right - left) * (bottom - top) <= width * height


# ---- networks ----


def test_onnx_networks_have_random_weights_and_normalized_channels() -> None:
    inputs = [torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    network = onnx_light.network("squeezenet", inputs)
    with torch.no_grad():
        first, second = (network(x) for x in inputs)
    assert first.flatten().std() > 0 and not torch.allclose(first, second)
    assert torch.equal(first, onnx_light.network("squeezenet", inputs)(inputs[0]))


def test_digit_mobilenet_is_trained() -> None:
    from quantization.digit_mobilenet import trained

    from mera_torch.digits import held_out_digits

    digits = held_out_digits()
    with torch.no_grad():
        right = (trained()(digits.images).argmax(1) == digits.labels).sum()
    assert right >= 196  # of 200


# ---- rows ----


@pytest.mark.parametrize("method", IN_TEST_EXTRA)
def test_adapters_quantize_a_tiny_network(method: str, tiny: str) -> None:
    row = rows.measure(tiny, method)
    assert "failed" not in row, row["failed"]
    assert not list(tables.check({"rows": [row]}))
    assert row["sqnr_db"] > 25 and row["inputs"] == 40 and row["calibration_inputs"] == 8
    assert row["float_right"] == 39 and row["right"] == sum(metrics.unpacked(row["rights"], 40))
    assert json.loads(json.dumps(row)) == row


def test_rows_are_deterministic_and_use_the_effort_asked_for(tiny: str) -> None:
    effort = rows.Effort(calibration=4, evaluation=10)
    first, second = (rows.measure(tiny, "mera_torch", effort) for _ in range(2))
    clocks = {"seconds": 0, "user_seconds": 0}
    assert first | clocks == second | clocks
    assert (first["calibration_inputs"], first["inputs"]) == (4, 10)


def test_a_tool_that_is_missing_or_fails_is_a_row_that_says_so(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(model: nn.Module, calibration: list[Tensor]) -> Any:
        raise ImportError("No module named 'tool'")

    monkeypatch.setitem(METHODS, "tool", Method("tool", "a-tool-that-is-not-there", missing))
    row = rows.measure(tiny, "tool")
    assert row["failed"] == "ImportError: No module named 'tool'" and row["version"] == "not installed"
    assert not list(tables.check({"rows": [row]}))
    page = tables.markdown({"machine": {}, "rows": [row]})
    assert "## What could not be measured" in page and "No module named 'tool'" in page


def end_process(model: nn.Module, calibration: list[Tensor]) -> Any:
    os._exit(3)


def test_rows_side_by_side_and_a_tool_that_ends_its_process(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "bad", Method("bad", "mera_torch", end_process))
    results = script.Results(tmp_path / "quantization.json", {"cores": 2})
    wanted = [(tiny, method) for method in ("bad", "torchao X86Inductor", "mera_torch")]
    script.measure_all(wanted, rows.Effort(2, 3), results, threads=1, jobs=2)
    found = {row["method"]: row for row in script.load(results.path)["rows"]}
    assert found["bad"]["failed"] == "the tool ended its process, exit code 3"
    assert found["mera_torch"]["inputs"] == found["torchao X86Inductor"]["inputs"] == 3
    assert not list(tables.check(script.load(results.path)))


def test_rows_replace_those_of_the_same_network_and_method() -> None:
    def row(network: str, method: str, seconds: int) -> dict[str, Any]:
        return {"network": network, "method": method, "seconds": seconds}

    results = {"rows": [row("digit_cnn", "NNCF", 1), row("unet128", "mera_torch", 2)]}
    script.merge(results, row("digit_cnn", "NNCF", 3))
    script.merge(results, row("digit_cnn", "mera_torch", 4))
    assert [row["seconds"] for row in results["rows"]] == [4, 3, 2]


# ---- published results ----


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "quantization.json").read_text())
    return found


def test_published_rows_are_whole(published: dict[str, Any]) -> None:
    assert not list(tables.check(published))
    assert {"cpu", "cores", "torch", "date"} <= set(published["machine"])


def test_broken_rows_are_found(published: dict[str, Any]) -> None:
    whole = next(row for row in published["rows"] if "failed" not in row)
    lacking = {key: value for key, value in whole.items() if key != "seconds"}
    assert "seconds" in next(iter(tables.check({"rows": [lacking]})))
    assert "is there twice" in next(iter(tables.check({"rows": [whole, whole]})))


def test_the_published_table_is_that_of_the_json(published: dict[str, Any]) -> None:
    assert (RESULTS / "quantization.md").read_text() == tables.markdown(published)


def test_every_planned_row_is_measured(published: dict[str, Any]) -> None:
    assert not set(verdicts.planned()) - {(row["network"], row["method"]) for row in published["rows"]}


def test_the_aims_are_met(published: dict[str, Any]) -> None:
    """All but one, which the documentation tells: 484 of 500 crops where 485 would be 97 %."""
    unmet = [(row["network"], row["method"]) for row in verdicts.aims(published["rows"]) if row["met"] == "no"]
    assert unmet in ([], [("mobilenet_v2", verdicts.OURS_BEST)])


def test_equalization_rescues_weights_per_tensor(published: dict[str, Any]) -> None:
    rows = {row["method"]: row for row in published["rows"] if row["network"] == "mobilenet_v2"}
    plain, equalized = rows["mera_torch, per tensor"], rows["mera_torch, per tensor, equalize"]
    assert equalized["sqnr_db"] > plain["sqnr_db"] and equalized["agree"] > plain["agree"]
    peers = [row for row in rows.values() if row["per_tensor"] and row["tool"] != "mera_torch"]
    assert peers and all(equalized["agree"] > row["agree"] for row in peers)
