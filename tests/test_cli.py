"""The command mera: its versions, tables and errors, and a .pt2 file on its way through compile, run and report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mera_torch
from mera_torch import cli, digits, platform


def mera(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Runs the command in this process, as the entry point does; gives its exit code."""
    monkeypatch.setattr(sys, "argv", ["mera", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return int(exited.value.code or 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quantized digit network as a .pt2 file; beside it a digit as digit.npy, and its logits as logits.npy."""
    folder = tmp_path_factory.mktemp("model")
    calibration = [(image,) for image in digits.calibration_digits().images.split(1)]
    quantized = mera_torch.quantize(digits.trained_digit_net(), calibration[0], calibration, progress=False)
    torch.export.save(torch.export.export(quantized, calibration[0]), folder / "digits.pt2")
    image = digits.held_out_digits().images[:1]
    np.save(folder / "digit.npy", image.numpy())
    runner = mera_torch.export(quantized, (image,), folder / "reference", target="InterpreterHw").get_runner()
    np.save(folder / "logits.npy", runner(image).numpy())
    return folder / "digits.pt2"


def test_version_names_every_part(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert mera(monkeypatch, "--version") == 0
    shown = dict(line.split(None, 1) for line in capsys.readouterr().out.replace("C core", "C-core").splitlines())
    assert {"mera_torch", "C-core", "python", "torch", "torchao", "numpy", "cffi"} <= set(shown)
    assert re.match(r"\d+\.\d+\.\d+", shown["C-core"]) and "kernels" in shown["C-core"]
    assert "not installed" not in shown["mera_torch"]


def test_platforms_are_all_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert mera(monkeypatch, "platforms") == 0
    shown = capsys.readouterr().out
    for known in (*(row.name for row in platform.platforms()), *platform.aliases()):
        assert known in shown
    assert "assumptions of this project" in shown


def test_zoo_lists_without_fetching(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MERA_TORCH_CACHE", str(tmp_path))
    assert mera(monkeypatch, "zoo") == 0
    assert "mobilenet_v2" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "--model", "resnet51"], "no demo model 'resnet51'"),
        (["demo", "--platform", "SAKURA-1"], "did you mean 'SAKURA_1'"),
        (["explain", "no.pt2"], "'no.pt2' does not exist"),
        (["compile", __file__, "--output", "out"], "is no TFLite, ONNX"),
        (["run", "nowhere", "digit.npy"], "'nowhere' is no deployment"),
        (["report", "nowhere"], "'nowhere' is no deployment"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mera(monkeypatch, *arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and sentence in shown
    assert "Traceback" not in shown and shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_usage_errors_have_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert mera(monkeypatch, "fly") == 2
    assert "fly" in capsys.readouterr().err


def test_the_installed_command_starts() -> None:
    done = subprocess.run([sys.executable, "-m", "mera_torch", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "demo" in done.stdout


def test_without_typer_the_version_is_still_told() -> None:
    code = "import sys; sys.modules['typer'] = None; from mera_torch.__main__ import main; main()"
    told = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=False)
    assert told.returncode == 0 and told.stdout.startswith("mera_torch ")
    refused = subprocess.run([sys.executable, "-c", code, "demo"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and 'pip install "mera_torch[full]"' in refused.stderr


def test_demo_prints_what_it_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert mera(monkeypatch, "demo") == 0
    shown = capsys.readouterr().out
    for words in (
        "every byte equal",
        "PyTorch, float32",
        "InterpreterHw",
        "Simulator",
        "cycles",
        "latency",
        "utilization",
    ):
        assert words in shown


def test_explain_names_the_operators(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mera(monkeypatch, "explain", model) == 0
    shown = capsys.readouterr().out
    assert "conv2d" in shown and "DNA region 0" in shown and "features.2" in shown


@pytest.mark.parametrize("target", ["InterpreterHw", "Simulator"])
def test_compile_then_run_gives_the_same_bytes(
    target: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "deployment", tmp_path / "out.npz"
    assert mera(monkeypatch, "compile", model, "--output", folder, "--target", target) == 0
    assert "1 region for SAKURA_1, 0 operators on the host" in capsys.readouterr().out
    assert mera(monkeypatch, "run", folder, model.parent / "digit.npy", "--output", output) == 0
    assert f"largest at {int(digits.held_out_digits().labels[0])}" in capsys.readouterr().out
    with np.load(output, allow_pickle=False) as outputs:
        assert np.array_equal(outputs["output_0"], np.load(model.parent / "logits.npy"))
    assert mera(monkeypatch, "compile", model, "--output", folder) == 1  # there is one already
    assert "overwrite" in capsys.readouterr().err
    assert mera(monkeypatch, "run", folder, __file__) == 1
    assert "is no .npy file" in capsys.readouterr().err


def test_report_lists_layers_and_writes_a_trace(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mera(monkeypatch, "compile", model, "--output", tmp_path / "deployment") == 0
    assert mera(monkeypatch, "report", tmp_path / "deployment", "--trace", tmp_path / "trace.json") == 0
    shown = capsys.readouterr().out
    assert "features.2.conv1.0" in shown and "lower bound" in shown
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_convert_shows_what_a_model_contains(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mera(monkeypatch, "convert", model, "--output", tmp_path / "again.pt2") == 0
    shown = capsys.readouterr().out
    assert "pt2, quantized (int32, int8)" in shown and "aten.conv2d.default" in shown and "float32" in shown
    assert mera(monkeypatch, "convert", tmp_path / "again.pt2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["macs"] > 0 and [len(found[side]) for side in ("inputs", "outputs")] == [1, 1]
    assert mera(monkeypatch, "convert", model, "--input", "x") == 1
    assert "--input is NAME=SIZES[:DTYPE]" in capsys.readouterr().err
    assert mera(monkeypatch, "convert", model, "--output", tmp_path / "no" / "folder.pt2") == 1
    assert "cannot be written: No such file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["again.pt2"]
