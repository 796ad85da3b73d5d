"""The runner of the MERA face: what it takes, what it gives, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import face
import numpy as np
import pytest
import torch
from test_lite import WITHOUT_TORCH
from torch import Tensor, nn

import mera_torch as mera
from mera_torch import InvalidModelError, MeraModelRunner, StateError

X = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
IDS = np.array([[1, 2, 3]])


class Two(nn.Module):
    """Two inputs of different kinds, two outputs, the second of them computed on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table = nn.Conv2d(3, 4, 3), nn.Embedding(10, 6)

    def forward(self, image: Tensor, ids: Tensor) -> dict[str, Tensor]:
        return {"image": self.conv(image).relu(), "words": self.table(ids)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment of mera_torch.export of a module in memory."""
    torch.manual_seed(0)
    inputs = (torch.from_numpy(X), torch.from_numpy(IDS))
    module = mera.quantize(Two(), inputs, [inputs], progress=False)
    path = tmp_path_factory.mktemp("two") / "d"
    mera.export(module, inputs, path, platform="DNAF132S0001")
    return path


@pytest.fixture
def runner(folder: Path) -> MeraModelRunner:
    return mera.load_mera_deployment(folder).get_runner()


def test_inputs_by_order_and_by_name(folder: Path, runner: MeraModelRunner) -> None:
    assert runner.get_input_names() == ["image", "ids"] and runner.get_num_inputs() == 2
    wanted = mera.load(folder).get_runner()(torch.from_numpy(X), torch.from_numpy(IDS))
    for data in ([X, IDS], (X, IDS), {"ids": IDS, "image": X}, {"image": torch.from_numpy(X), "ids": IDS}):
        outputs = runner.set_input(data).run().get_outputs()
        assert [a.shape for a in outputs] == [(1, 4, 6, 6), (1, 3, 6)] and runner.get_num_outputs() == 2
        assert np.array_equal(outputs[0], wanted["image"].numpy()) and np.array_equal(outputs[1], wanted["words"])
    named = runner.set_named_input("image", X).set_named_input("ids", IDS).run().get_outputs_dict()
    assert list(named) == runner.get_output_names() and np.array_equal(named[runner.get_output_names()[1]], outputs[1])
    assert np.array_equal(runner.get_output(runner.get_output_names()[0]), outputs[0])


def test_floats_of_any_width_and_any_strides(runner: MeraModelRunner) -> None:
    wanted = runner.set_input([X, IDS]).run().get_output(0)
    turned = np.ascontiguousarray(X.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for data in (X.astype(np.float64), turned, X[:, :, ::-1][:, :, ::-1]):
        assert np.array_equal(runner.set_input([data, IDS]).run().get_output(0), wanted)


def test_set_input_copies_and_handles_do_not(runner: MeraModelRunner) -> None:
    mine = X.copy()
    runner.set_input([mine, IDS])
    mine[:] = 0
    wanted = runner.run().get_output(0)
    assert wanted.any()
    handle = runner.get_input_handle("image")
    assert handle.dtype == np.float32 and np.array_equal(handle, X)
    handle *= 2
    runner.run()
    doubled = runner.get_output(0)
    assert not np.array_equal(wanted, doubled)
    out = runner.get_output_handle(runner.get_output_names()[0])
    assert np.array_equal(out, doubled) and not np.shares_memory(out, doubled)
    assert bytes(runner.get_output_handle(runner.get_output_names()[0], as_numpy=False)) == doubled.tobytes()
    assert runner.get_input_handle("ids", dtype=np.uint8).shape == (1, 24)
    assert np.array_equal(runner.set_input([X, IDS]).run().get_output(0), wanted)


def test_rows_of_an_output(folder: Path) -> None:
    runner = mera.load_mera_deployment(folder).get_runner(dynamic_output_list=[1])
    runner.set_input([X, IDS]).run()
    for row in range(3):
        assert np.array_equal(runner.get_output_row(row, 1), runner.get_output(1)[0, row])
    with pytest.raises(InvalidModelError, match="row_idx must be 0 to 2, got 3"):
        runner.get_output_row(3, 1)
    with pytest.raises(InvalidModelError, match="has 2 outputs"):
        mera.load_mera_deployment(folder).get_runner(dynamic_output_list=[2])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([X], "takes 2 inputs .*got 1"),
        (X, "takes 2 inputs .*got 1"),
        ([X, IDS, IDS], "takes 2 inputs .*got 3"),
        ([IDS, X], "'image' .float32.1, 3, 8, 8.. must have shape .*got int64.1, 3.; that is the shape of 'ids'"),
        ([X[0], IDS], "must have shape .1, 3, 8, 8., got float32.3, 8, 8."),
        ([X.astype(np.int8), IDS], "'image' .* must have dtype float32, got int8.*astype"),
        ([X, IDS.astype(np.int32)], "'ids' .* must have dtype int64, got int32"),
        ([X, IDS.astype(np.float64)], "'ids' .* must have dtype int64, got float64"),
        ([X, [[1, 2, 3]]], "'ids' .* must be a numpy array, got list"),
        ({"image": X}, "input 'ids' is missing"),
        ({"image": X, "idx": IDS}, "no input 'idx': did you mean 'ids'"),
        ({"image": X, "ids": IDS, "more": X}, "no input 'more'"),
        ("x", "takes 2 inputs"),
        (None, "takes 2 inputs"),
    ],
)
def test_wrong_inputs(data: Any, match: str, runner: MeraModelRunner) -> None:
    with pytest.raises(InvalidModelError, match=match):
        runner.set_input(data)
    with pytest.raises(StateError, match="no data for input 'image', 'ids'"):
        runner.run()  # nothing was set


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.get_output(0),
        lambda r: r.get_outputs(),
        lambda r: r.get_outputs_dict(),
        lambda r: r.get_runtime_metrics(),
        lambda r: r.get_power_metrics(),
        lambda r: r.get_output_row(0),
        lambda r: r.set_named_input("image", X).run(),
    ],
)
def test_calls_out_of_order(call: Callable[[MeraModelRunner], object], runner: MeraModelRunner) -> None:
    with pytest.raises(StateError, match="call set_input"):
        call(runner)


def test_outputs_that_there_are_not(runner: MeraModelRunner) -> None:
    runner.set_input([X, IDS]).run()
    for bad in (2, -1, "imagine", 1.0, None, True):
        with pytest.raises(InvalidModelError, match="output"):
            runner.get_output(bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidModelError, match="no input 'imag': did you mean 'image'"):
        runner.get_input_handle("imag")


def test_options_of_get_runner(folder: Path) -> None:
    deployment = mera.load_mera_deployment(folder)
    deployment.get_runner(device_target="SAKURA_1")
    deployment.get_runner(mera.DeviceTarget.INTEL_IA420)
    with pytest.raises(mera.ConfigError, match="unknown device 'SAKURA_9'"):
        deployment.get_runner(device_target="SAKURA_9")
    with pytest.raises(mera.ConfigError, match="device_ids is for target IP"):
        deployment.get_runner(device_ids=0)
    with pytest.raises(mera.UnsupportedError, match="profiling_mode: target Simulator has no clock"):
        deployment.get_runner(profiling_mode=True)


def test_metrics_and_power(folder: Path) -> None:
    runner = mera.load_mera_deployment(folder).get_runner().set_input([X, IDS]).run()
    (row,) = runner.get_runtime_metrics()
    assert row["sim_time_us"] > 0 and row["cycles"] > 0 and row["elapsed_latency"] >= 0
    assert row["sim_time_us"] == pytest.approx(row["cycles"] / row["freq_mhz"])
    power = runner.get_power_metrics()
    assert "estimate" in power.report and power.report_raw and str(power) == power.report
    hw = mera.load_mera_deployment(folder, "InterpreterHw").get_runner().set_input([X, IDS]).run()
    assert set(hw.get_runtime_metrics()[0]) == {"elapsed_latency"}
    with pytest.raises(mera.UnsupportedError, match="InterpreterHw has no cycles"):
        hw.get_power_metrics()


def test_profiling_on_the_interpreter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = mera.ModelLoader().from_tflite(face.TFLITE / "int8.tflite")
    deployment = mera.Deployer(tmp_path / "p").deploy(model, target="Interpreter")
    image = np.zeros((1, 8, 8, 3), np.uint8)
    runner = deployment.get_runner(profiling_mode=True).set_input(image).run()
    rows = runner.profile()
    assert any(row["op"].startswith("aten.conv2d") for row in rows) and all(row["microseconds"] > 0 for row in rows)
    runner.display_profiling_table()
    assert "aten.conv2d" in capsys.readouterr().out
    plain = deployment.get_runner().set_input(image).run()
    assert np.array_equal(plain.get_output(), runner.get_output())
    with pytest.raises(StateError, match="profiling_mode=True"):
        plain.profile()
    deployment.get_runner(tvm_debug_mode=True, tvm_debug_dump_path=tmp_path / "dump").set_input(image).run()
    assert "aten.conv2d" in (tmp_path / "dump" / "profile_1.txt").read_text()
    assert np.array_equal(plain.get_output(), runner.get_output())


def test_without_torch(tmp_path: Path) -> None:
    """The runtime install runs projects: numpy alone; what needs PyTorch says so."""
    with mera.Deployer(tmp_path / "p") as deployer:
        path, x = face.torchscript(face.SmallResNet, tmp_path / "net.pt")
        model = mera.ModelLoader(deployer).from_pytorch(path, {"x": ((1, 16, 16, 3), "float32")})
        for target in ("Simulator", "Interpreter"):
            deployed = deployer.deploy(model, "DNAF132S0001", target=target)
        wanted = mera.load_mera_deployment(tmp_path / "p", "Simulator").get_runner()
        wanted.set_input(face.nhwc(x)).run()
    np.save(tmp_path / "x.npy", face.nhwc(x))
    np.save(tmp_path / "y.npy", wanted.get_output())
    code = f"""{WITHOUT_TORCH}
import numpy, mera_torch as mera
from mera_torch import Target, Platform, Layout, DeviceTarget
runner = mera.load_mera_deployment({str(tmp_path / "p")!r}, target=Target.Simulator).get_runner()
runner.set_input({{"x": numpy.load({str(tmp_path / "x.npy")!r})}}).run()
assert numpy.array_equal(runner.get_output(), numpy.load({str(tmp_path / "y.npy")!r}))
assert runner.get_runtime_metrics()[0]["sim_time_us"] > 0 and runner.get_power_metrics().report
try:
    mera.load_mera_deployment({str(deployed.path)!r}).get_runner()
except mera.UnsupportedError as error:
    assert "install torch" in str(error)
else:
    raise SystemExit("Interpreter ran without torch")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("runs", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", ["Simulator", "InterpreterHw", pytest.param("IP", marks=pytest.mark.slow)])
def test_many_runs_leak_nothing(runs: int, target: str, folder: Path) -> None:
    runner = mera.load_mera_deployment(folder, target).get_runner().set_input([X, IDS])

    def outputs() -> list[bytes]:
        return [array.tobytes() for array in runner.set_input([X, IDS]).run().get_outputs()]

    wanted = outputs()
    for _ in range(30):
        outputs()
    before = resident()
    for _ in range(runs):
        assert outputs() == wanted
    assert resident() - before < 2 << 20


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
