"""The runtime install: a deployment runs where there is no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from compiled import quantized

import mera_torch
from mera_torch import lite

WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchao", "safetensors", "rich", "pydantic"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
from importlib import util
found = util.find_spec
util.find_spec = lambda name, package=None: None if name == "torch" else found(name, package)
"""


@pytest.fixture(scope="module")
def data() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def deployment(data: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> mera_torch.Deployment:
    torch.manual_seed(0)
    model = quantized(models.PlainCnn(), data)
    return mera_torch.export(model, (data,), tmp_path_factory.mktemp("lite") / "d", platform="DNAF132S0001")


def test_runs_without_torch(deployment: mera_torch.Deployment, data: torch.Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", data.numpy())
    code = (
        f"{WITHOUT_TORCH}\nimport numpy, mera_torch\n"
        f"runner = mera_torch.load({str(deployment.path)!r}).get_runner()\n"
        f"y = runner(numpy.load({str(tmp_path / 'x.npy')!r}))\n"
        f"numpy.save({str(tmp_path / 'y.npy')!r}, y)\n"
        f"assert runner.metrics()['cycles'] > 0; runner.trace({str(tmp_path / 'trace.json')!r})\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    wanted = deployment.get_runner()(data).numpy()
    assert np.array_equal(np.load(tmp_path / "y.npy"), wanted)


def test_same_metrics_as_with_torch(deployment: mera_torch.Deployment) -> None:
    assert lite.load(deployment.path).get_runner().metrics() == deployment.get_runner().metrics()


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ((), "takes 1 inputs, got 0"),
        ((np.zeros((2, 3, 16, 16)),), "must be float32.*got float64"),
        ((np.zeros((1, 3, 16, 16), np.float32),), "got float32.1, 3, 16, 16."),
        (([1.0],), "got list"),
    ],
)
def test_wrong_inputs(arrays: tuple[object, ...], match: str, deployment: mera_torch.Deployment) -> None:
    with pytest.raises(mera_torch.InvalidModelError, match=match):
        lite.load(deployment.path).get_runner()(*arrays)  # type: ignore[arg-type]


def test_damaged_file(deployment: mera_torch.Deployment, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for file in deployment.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "region_0.dna").write_bytes(b"")
    with pytest.raises(mera_torch.CorruptFileError, match="region_0.dna"):
        lite.load(folder)
    with pytest.raises(mera_torch.InvalidModelError, match="no deployment"):
        lite.load(tmp_path)
