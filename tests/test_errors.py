"""Bad input on the Python side: one clear error each, nothing half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from compiled import quantized
from torch import Tensor, fx, nn

import mera_torch
from mera_torch import ConfigError, CorruptFileError, InvalidModelError, MeraError, UnsupportedError
from mera_torch.config import build_config

DATA = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def converted() -> fx.GraphModule:
    torch.manual_seed(0)
    return quantized(models.PlainCnn(), DATA)


@pytest.fixture
def deployment(converted: fx.GraphModule, tmp_path: Path) -> mera_torch.Deployment:
    return mera_torch.export(converted, (DATA,), tmp_path / "good", platform="DNAF132S0001")


def fails(kind: type[MeraError], match: str, model: Any, inputs: Any, path: Path, **options: Any) -> None:
    with pytest.raises(kind, match=match):
        mera_torch.export(model, inputs, path / "bad", **options)
    assert list(path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"platform": "SAKURA1"}, ConfigError, "did you mean 'SAKURA_1'"),
        ({"platform": "nowhere.toml"}, ConfigError, "nowhere.toml"),
        ({"target": "Simulater"}, ConfigError, "did you mean 'Simulator'"),
        ({"target": "Verilator"}, ConfigError, "InterpreterHw, Simulator"),
        ({"build_config": {"max_tile_hight": 3}}, ConfigError, "did you mean 'max_tile_height'"),
        ({"build_config": {"scheduler_config": {"mod": "Fast"}}}, ConfigError, "scheduler_config.*did you mean 'mode'"),
        ({"build_config": {"scheduler_config": {"mode": "Quick"}}}, ConfigError, "Fast, Slow"),
        ({"build_config": {"max_tile_height": -1}}, ConfigError, "0 to 65535, got -1"),
        ({"build_config": {"compiler_workers": "two"}}, ConfigError, "must be int, got 'two'"),
        ({"build_config": {"dump_ir": 1}}, ConfigError, "must be bool"),
        ({"build_config": [1]}, ConfigError, "must be a dict"),
    ],
)
def test_options(
    options: dict[str, Any], kind: type[MeraError], match: str, converted: fx.GraphModule, tmp_path: Path
) -> None:
    fails(kind, match, converted, (DATA,), tmp_path, **options)


def test_partial_scheduler_config_keeps_the_defaults() -> None:
    config = build_config({"scheduler_config": {"pre_scheduling_iterations": 5}})
    assert config.scheduler["pre_scheduling_iterations"] == 5
    assert config.scheduler["main_scheduling_iterations"] == 32000 and config.scheduler["mode"] == "Fast"


def test_models(tmp_path: Path) -> None:
    fails(UnsupportedError, "not quantized.*mera_torch.quantize", models.PlainCnn().eval(), (DATA,), tmp_path)
    fails(InvalidModelError, "must be an nn.Module", 3, (DATA,), tmp_path)
    fails(InvalidModelError, "does not exist", tmp_path.parent / "none.pt2", None, tmp_path)
    fails(InvalidModelError, "example_inputs", models.PlainCnn(), None, tmp_path)
    other = tmp_path.parent / "not.pt2"
    other.write_bytes(b"nonsense")
    fails(CorruptFileError, "is no TFLite, ONNX", other, None, tmp_path)
    other.unlink()


def test_example_inputs_that_do_not_fit(converted: fx.GraphModule, tmp_path: Path) -> None:
    fails(MeraError, "shape", converted, (torch.randn(1, 4, 16, 16),), tmp_path)
    fails(MeraError, "takes 1 inputs, got 2", converted, (DATA, DATA), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_unsupported_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    fails(UnsupportedError, str(dtype), nn.Identity(), (torch.ones(1, 2, dtype=dtype),), tmp_path)


def test_dynamic_shape(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=9)
    data = torch.randn(2, 3, 16, 16)
    program = torch.export.export(models.Residual().eval(), (data,), dynamic_shapes=({0: batch},))
    fails(UnsupportedError, "dynamic dimension 0", program, None, tmp_path)


def test_model_that_changes_a_buffer(tmp_path: Path) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1  # type: ignore[operator]
            return x + self.count

    fails(UnsupportedError, "'count' in place", Counter(), (torch.randn(2),), tmp_path)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ((), "takes 1 inputs .*float32.*got 0"),
        ((DATA, DATA), "takes 1 inputs .*got 2"),
        ((DATA[:, :2],), r"must have shape \[1, 3, 16, 16\], got \[1, 2, 16, 16\]"),
        ((DATA.double(),), "must have dtype torch.float32, got torch.float64"),
        ((DATA.numpy(),), "must be a tensor, got ndarray"),
        ((DATA.to("meta"),), "must be on the CPU"),
    ],
)
def test_run_time_inputs(inputs: tuple[Any, ...], match: str, deployment: mera_torch.Deployment) -> None:
    with pytest.raises(InvalidModelError, match=match):
        deployment.get_runner()(*inputs)


# ---- files ----


def test_no_deployment(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="no deployment"):
        mera_torch.load(tmp_path)
    with pytest.raises(InvalidModelError, match="no deployment"):
        mera_torch.load(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["deployment.json", "region_0.dna", "region_0.graph", "host.safetensors"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "empty"])
def test_damaged_file(name: str, how: str, deployment: mera_torch.Deployment) -> None:
    path = deployment.path / name
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 0x10
        path.write_bytes({"truncated": data[: len(data) // 2], "flipped": bytes(flipped), "empty": b""}[how])
    with pytest.raises((CorruptFileError, InvalidModelError)) as caught:
        mera_torch.load(deployment.path)
    assert name in str(caught.value) or "deployment" in str(caught.value)


def resealed(deployment: mera_torch.Deployment, change: Any) -> None:
    """Edits the manifest and makes its checksum right again, as an attacker would."""
    from mera_torch.files import seal

    path = deployment.path / "deployment.json"
    manifest = json.loads(path.read_text())["deployment"]
    change(manifest)
    path.write_bytes(seal(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["host"]["steps"].append({"name": "x", "target": "os.system.default", "args": [], "kwargs": {}}),
        lambda m: m["host"]["steps"].append(
            {"name": "x", "target": "aten.from_file.default", "args": [], "kwargs": {}}
        ),
        lambda m: m["host"]["steps"].append({"name": "x", "target": "torch.load.default", "args": [], "kwargs": {}}),
        lambda m: m["host"]["steps"].append({"name": "x", "region": 7}),
        lambda m: m["files"].update({"../evil": "0"}),
        lambda m: m["regions"][0]["inputs"][0].update(dims=[[0], [0], [1], [2]]),
        lambda m: m["regions"][0]["inputs"][0].update(dna=[1, 1, 1, 1]),
        lambda m: m["regions"][0].update(output_index=[5]),
        lambda m: m.update(version=99),
        lambda m: m.update(platform={}),
        lambda m: m["inputs"][0].update(dtype={"torch": "load"}),
        lambda m: m.pop("host"),
        lambda m: m.update(in_spec="[]"),
        lambda m: m.update(build_config={"nonsense": 1}),
    ],
)
def test_edited_manifest(change: Any, deployment: mera_torch.Deployment) -> None:
    resealed(deployment, change)
    with pytest.raises(CorruptFileError):
        mera_torch.load(deployment.path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_full_disk(
    overwrite: bool, deployment: mera_torch.Deployment, converted: fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync says that the disk is full: no trace of the new deployment, the old one as it was."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = deployment.path if overwrite else deployment.path.parent / "new"
    with pytest.raises(MeraError, match="No space left on device"):
        mera_torch.export(converted, (DATA,), path, overwrite=overwrite)
    assert [p.name for p in deployment.path.parent.iterdir()] == ["good"]
    assert mera_torch.load(deployment.path).platform.name == "DNAF132S0001"


def test_output_dir_that_is_no_deployment(converted: fx.GraphModule, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for name, match in (("mine", "no deployment"), ("mine/thesis.tex", "is a file")):
        with pytest.raises(InvalidModelError, match=match):
            mera_torch.export(converted, (DATA,), tmp_path / name, overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_trace_that_cannot_be_written(deployment: mera_torch.Deployment, tmp_path: Path) -> None:
    with pytest.raises(MeraError, match="cannot be written"):
        deployment.get_runner().trace(tmp_path / "no folder" / "trace.json")


def test_too_small_platform(converted: fx.GraphModule, tmp_path: Path) -> None:
    tiny = mera_torch.Platform("tiny", 1, 128, 100.0, 4096, 1.0)
    fails(mera_torch.DoesNotFitError, "SRAM|sram", converted, (DATA,), tmp_path, platform=tiny)
