"""What the tests of the command line share: running it in this process, and a quantized network as a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import mera_torch
from mera_torch import cli, digits


class Done(NamedTuple):
    """What came of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON document and nothing else."""
        return json.loads(self.out)


Mera = Callable[..., Done]


@pytest.fixture
def mera(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mera:
    """mera(*arguments) runs the command as the entry point does."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["mera", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            cli.main()
        shown = capsys.readouterr()
        return Done(int(exited.value.code or 0), shown.out, shown.err)

    return run


def digit_files(folder: Path) -> Path:
    """The quantized digit network as digits.pt2; beside it a digit as digit.npy and its logits as logits.npy, the float
    network as float.pt2, 16 calibration digits as calibration.npy, and the compiled network as deployment/."""
    calibration = [(image,) for image in digits.calibration_digits().images.split(1)]
    net = digits.trained_digit_net()
    quantized = mera_torch.quantize(net, calibration[0], calibration[:16], progress=False)
    torch.export.save(torch.export.export(quantized, calibration[0]), folder / "digits.pt2")
    torch.export.save(torch.export.export(net, calibration[0]), folder / "float.pt2")
    image = digits.held_out_digits().images[:1]
    np.save(folder / "digit.npy", image.numpy())
    np.save(folder / "calibration.npy", torch.cat([x for (x,) in calibration[:16]]).numpy())
    deployment = mera_torch.export(quantized, (image,), folder / "deployment", platform="DNAF132S0001")
    np.save(folder / "logits.npy", deployment.get_runner("InterpreterHw")(image).numpy())
    return folder / "digits.pt2"
