"""export, deployments on disk, runners: both targets, a new process, metrics and traces."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import models
import pytest
import torch
from compiled import quantized
from torch import Tensor, fx, nn

import mera_torch
from mera_torch.native import platforms


@pytest.fixture(scope="module")
def converted() -> fx.GraphModule:
    torch.manual_seed(0)
    data = torch.randn(4, 3, 17, 23)
    return quantized(models.set_batchnorm_statistics(models.Residual(), data), data[:2])


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 17, 23, generator=torch.Generator().manual_seed(5)),)


@pytest.fixture(scope="module")
def deployment(converted: fx.GraphModule, inputs: tuple[Tensor, ...], tmp_path_factory: Any) -> mera_torch.Deployment:
    return mera_torch.export(converted, inputs, tmp_path_factory.mktemp("export") / "residual", platform="DNAF132S0001")


def test_both_targets_give_the_same_bytes(deployment: mera_torch.Deployment, inputs: tuple[Tensor, ...]) -> None:
    simulated = deployment.get_runner("Simulator")(*inputs)
    assert torch.equal(simulated, deployment.get_runner("InterpreterHw")(*inputs))


def test_runner_returns_what_the_model_returns(
    deployment: mera_torch.Deployment, converted: fx.GraphModule, inputs: tuple[Tensor, ...]
) -> None:
    with torch.no_grad():
        wanted = converted(*inputs)
    result = deployment.get_runner()(*inputs)
    assert result.dtype == wanted.dtype and result.shape == wanted.shape
    assert (result - wanted).abs().max() <= 0.05 * wanted.abs().max()
    last = torch.nn.Softmax(-1)(result)  # composes with PyTorch
    assert last.shape == wanted.shape


def test_runner_takes_every_memory_format(deployment: mera_torch.Deployment, inputs: tuple[Tensor, ...]) -> None:
    runner = deployment.get_runner()
    wanted = runner(*inputs)
    assert torch.equal(runner(inputs[0].contiguous(memory_format=torch.channels_last)), wanted)
    assert torch.equal(runner(inputs[0].transpose(2, 3).contiguous().transpose(2, 3)), wanted)
    assert torch.equal(runner(inputs[0].clone().requires_grad_()), wanted)


@pytest.mark.parametrize("platform", [p.name for p in platforms()])
def test_every_platform(
    platform: str,
    converted: fx.GraphModule,
    inputs: tuple[Tensor, ...],
    tmp_path: Path,
    deployment: mera_torch.Deployment,
) -> None:
    other = mera_torch.export(converted, inputs, tmp_path / "d", platform=platform)
    assert torch.equal(other.get_runner()(*inputs), deployment.get_runner()(*inputs))


def test_metrics(deployment: mera_torch.Deployment) -> None:
    metrics = deployment.get_runner().metrics()
    names = ("cycles", "macs", "dram_bytes_read", "dram_bytes_written", "sram_peak_bytes", "lower_bound_cycles")
    assert all(isinstance(metrics[name], int) and metrics[name] > 0 for name in names)
    assert metrics["cycles"] >= metrics["lower_bound_cycles"]
    assert 0 < metrics["utilization"] <= 1
    assert deployment.transposes == 0
    assert metrics["latency_ms"] == pytest.approx(metrics["cycles"] / 300e3)
    layers = metrics["layers"]
    stem = next(row for row in layers if row["module"] == "stem.0")
    assert stem["op"] == "conv2d" and stem["aten"] == "aten.conv2d.default"
    assert "models.py:" in stem["source"]
    assert sum(row["macs"] for row in layers) == metrics["macs"]


def test_lower_bound_counts_what_the_network_has(tmp_path: Path) -> None:
    data = torch.randn(1, 5, 9, 9)
    result = mera_torch.export(quantized(nn.Conv2d(5, 7, 3), data), (data,), tmp_path / "d", platform="DNAF132S0001")
    macs, moved = 7 * 5 * 9 * 49, 5 * 81 + 7 * 49 + 7 * 5 * 9 + 4 * 7
    assert result.regions[0].lower_bound == {"macs": macs, "bytes": moved}
    machine = result.platform
    assert result.lower_bound_cycles == -(-moved // machine.dram_bytes_per_cycle)


def test_clock_of_the_configuration(converted: fx.GraphModule, inputs: tuple[Tensor, ...], tmp_path: Path) -> None:
    result = mera_torch.export(
        converted, inputs, tmp_path / "d", platform="DNAF132S0001", build_config={"sim_freq_mhz": 150}
    )
    metrics = result.get_runner().metrics()
    assert metrics["latency_ms"] == pytest.approx(metrics["cycles"] / 150e3)


def test_trace_is_chrome_json(deployment: mera_torch.Deployment, tmp_path: Path) -> None:
    runner = deployment.get_runner()
    runner.trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert {"layers"} < {event["args"]["name"] for event in events if event["ph"] == "M"}
    end = max(event["ts"] + event["dur"] for event in slices)
    assert end == pytest.approx(runner.metrics()["cycles"] / 300, rel=0.01)


def test_loaded_in_a_new_process(deployment: mera_torch.Deployment, inputs: tuple[Tensor, ...], tmp_path: Path) -> None:
    torch.save(inputs[0], tmp_path / "x.pt")
    code = (
        "import sys, torch, mera_torch\n"
        f"x = torch.load({str(tmp_path / 'x.pt')!r})\n"
        f"runner = mera_torch.load({str(deployment.path)!r}).get_runner()\n"
        f"torch.save((runner(x), runner.metrics()['cycles']), {str(tmp_path / 'y.pt')!r})\n"
        "assert 'torchao' not in sys.modules, 'a runner needs no quantizer'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    y, cycles = torch.load(tmp_path / "y.pt")
    assert torch.equal(y, deployment.get_runner()(*inputs))
    assert cycles == deployment.get_runner().metrics()["cycles"]


def test_deployment_is_deterministic(converted: fx.GraphModule, inputs: tuple[Tensor, ...], tmp_path: Path) -> None:
    first, second = (mera_torch.export(converted, inputs, tmp_path / name, platform="DNAF132S0001") for name in "ab")
    for file in sorted(first.path.iterdir()):
        if file.name == "metrics.json":  # seconds
            continue
        assert file.read_bytes() == (second.path / file.name).read_bytes(), file.name


def test_exported_program_and_pt2_file(
    converted: fx.GraphModule, inputs: tuple[Tensor, ...], tmp_path: Path, deployment: mera_torch.Deployment
) -> None:
    wanted = deployment.get_runner()(*inputs)
    program = torch.export.export(converted, inputs)
    torch.export.save(program, tmp_path / "model.pt2")
    for index, model in enumerate((program, str(tmp_path / "model.pt2"), tmp_path / "model.pt2")):
        other = mera_torch.export(model, None, tmp_path / str(index), platform="DNAF132S0001")
        assert torch.equal(other.get_runner()(*inputs), wanted)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Structured(nn.Module):
    """Takes a dict and a tuple, gives a dict with a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, images: dict[str, Tensor], more: tuple[Tensor, Tensor]) -> dict[str, Any]:
        y = self.a(images["x"])
        return {"sum": y + self.b(more[0]), "parts": [y, torch.softmax(more[1], -1)], "constant": 3}


def test_structures_survive(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = ({"x": torch.randn(1, 3, 6, 6)}, (torch.randn(1, 3, 6, 6), torch.randn(5)))
    program = torch.export.export(Structured().eval(), inputs)
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(program.module(check_guards=False), mera_torch.MeraQuantizer())
    prepared(*inputs)
    model = convert_pt2e(prepared)
    result = mera_torch.export(model, inputs, tmp_path / "d")
    with torch.no_grad():
        wanted = model(*inputs)
    for runner in (result.get_runner(), mera_torch.load(tmp_path / "d").get_runner()):
        got = runner(*inputs)
        assert list(got) == list(wanted) and got["constant"] == 3
        assert isinstance(got["parts"], list) and torch.allclose(got["parts"][1], wanted["parts"][1])
        assert (got["sum"] - wanted["sum"]).abs().max() < 0.1


class HostInTheMiddle(nn.Module):
    """Two regions around operators that the DNA has not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.a(x))
        z = torch.softmax(y, 1).cumsum(2)
        return self.b(z), y.argmax(1)


def test_host_operators_run_in_place(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = torch.randn(2, 3, 9, 10)
    model = quantized(HostInTheMiddle(), data)
    result = mera_torch.export(model, (data,), tmp_path / "d")
    assert len(result.regions) == 2
    assert any("cumsum" in name for name in result.host_operators)
    with torch.no_grad():
        wanted = model(data)
    for runner in (result.get_runner(), mera_torch.load(tmp_path / "d").get_runner("InterpreterHw")):
        got = runner(data)
        assert (got[0] - wanted[0]).abs().max() < 0.05 and got[1].dtype == torch.int64
        assert (got[1] == wanted[1]).float().mean() > 0.98


def test_int8_inputs_and_outputs_stay_int8(tmp_path: Path) -> None:
    q = torch.ops.quantized_decomposed

    class Int8(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.sigmoid(q.dequantize_per_tensor(x, 0.05, 3, -128, 127, torch.int8))
            return q.quantize_per_tensor(y, 1 / 256, -128, -128, 127, torch.int8)

    data = torch.randint(-128, 128, (2, 3, 5, 4), dtype=torch.int8)
    result = mera_torch.export(Int8(), (data,), tmp_path / "d")
    assert result.host_operators == []
    assert torch.equal(result.get_runner()(data), Int8()(data))


def test_overwrite(converted: fx.GraphModule, inputs: tuple[Tensor, ...], tmp_path: Path) -> None:
    path = tmp_path / "d"
    mera_torch.export(converted, inputs, path, platform="DNAF132S0001")
    before = (path / "deployment.json").read_bytes()
    with pytest.raises(mera_torch.InvalidModelError, match="overwrite=True"):
        mera_torch.export(converted, inputs, path)
    assert (path / "deployment.json").read_bytes() == before
    mera_torch.export(converted, inputs, path, overwrite=True)
    assert mera_torch.load(path).platform.name == "SAKURA_1"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_progress_bar_on_the_error_stream(
    converted: fx.GraphModule, inputs: tuple[Tensor, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mera_torch.export(
        converted, inputs, tmp_path / "d", build_config={"scheduler_config": {"progress_bars": True}}, overwrite=True
    )
    stages: list[str] = []
    mera_torch.export(converted, inputs, tmp_path / "e", progress=lambda stage, done, total: stages.append(stage))
    assert capsys.readouterr().out == "" and stages


def test_dump_ir(converted: fx.GraphModule, inputs: tuple[Tensor, ...], tmp_path: Path) -> None:
    result = mera_torch.export(converted, inputs, tmp_path / "d", build_config={"dump_ir": True})
    assert "conv2d" in (result.path / "region_0.graph.txt").read_text()
    mera_torch.load(result.path)


@pytest.mark.slow
def test_tutorial(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "tutorials" / "pytorch" / "resnet50_simulator.py"
    command = [sys.executable, str(script), "--size", "64", "--calibration", "1", "--output", str(tmp_path / "d")]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert text.count("equals InterpreterHw: True") == 2 and "0 on the host" in text
    assert (tmp_path / "d" / "trace.json").exists()


PROGRESS = """
import time
from mera_torch.progress import progress_bar
with progress_bar(True, "brief") as tell:
    tell("at once", 0, 0)
with progress_bar(True, "long") as tell, progress_bar(True, "within") as other:
    for done in range(13):
        tell("slowly", done, 13)
        other("slowly", done, 13)
        time.sleep(0.1)
with progress_bar(False) as tell:
    assert tell is None
"""


def test_a_bar_appears_after_a_second() -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen([sys.executable, "-c", PROGRESS], stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while data := os.read(ours, 4096):
            shown += data
    os.close(ours)
    assert process.wait() == 0
    assert b"long: slowly" in shown and b"brief" not in shown and b"Traceback" not in shown, shown
