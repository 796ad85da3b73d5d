"""mera sensitivity, mera mixed: from a float file to a configuration that mera's quantizer takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_tools import Mera, mera  # noqa: F401
from mixed_models import Outliers, batches, seeded

from mera_torch.quant import QuantConfig, quantize


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float.pt2 and calibration.npy"""
    path = tmp_path_factory.mktemp("mixed")
    torch.export.save(torch.export.export(seeded(Outliers), (batches()[0],)), path / "float.pt2")
    np.save(path / "calibration.npy", torch.cat(batches()).numpy())
    (path / "plain.toml").write_text('correct_bias = false\nactivation_observer = "minmax"\n')
    return path


def test_sensitivity(folder: Path, mera: Mera) -> None:  # noqa: F811
    given = (folder / "float.pt2", "--calibration", folder / "calibration.npy", "--scored", 2)
    found = mera("sensitivity", *given, "--json").json
    assert found["rows"][0]["module"] == "bad" and found["batches"] == 2 and found["unit"] == "dB"
    shown = mera("sensitivity", *given, "--top", 2, "--mode", "leave").out
    assert "bad" in shown and "and 3 more" in shown
    refused = mera("sensitivity", *given, "--metric", "sqrn")
    assert refused.code != 0 and "did you mean 'sqnr'" in refused.err


def test_mixed(folder: Path, tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    given = (folder / "float.pt2", "--calibration", folder / "calibration.npy", "--config", folder / "plain.toml")
    done = mera("mixed", *given, "--accuracy", 35, "--output", tmp_path / "mixed.toml", "--json")
    found = done.json
    assert found["modules"] == ["bad"] and found["after"]["score"] >= 35 and found["output"].endswith("mixed.toml")
    config = QuantConfig.from_toml(tmp_path / "mixed.toml")
    assert {rule.dtype for rule in config.rules} == {"bf16"} and config.correct_bias is False
    quantize(seeded(Outliers), batches()[0], batches(), config=config, progress=False)
    assert "Trade-off" in mera("mixed", *given, "--budget-cycles", 10**6, "--candidate", "bad").out
    refused = mera("mixed", *given)
    assert refused.code != 0 and "needs a goal" in refused.err


def test_mixed_refuses_files_that_it_could_not_write_before_the_search(folder: Path, mera: Mera) -> None:  # noqa: F811
    given = ("mixed", folder / "float.pt2", "--calibration", "nowhere", "--accuracy", 35)
    assert "not 'curve.jpg'" in mera(*given, "--plot", "curve.jpg").err
    assert "its folder must exist" in mera(*given, "--output", folder / "none" / "mixed.toml").err
