"""The ladder: rungs that agree, and what is said where one does not, over host steps and several regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_tools import Mera, digit_files, mera  # noqa: F401

from mera_torch import ladder, native, oracle
from mera_torch.errors import ConfigError, InvalidModelError

INTEGER = ["oracle", "InterpreterHw", "Simulator"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_files(tmp_path_factory.mktemp("model")).parent


def options(*rungs: str) -> list[str]:
    return [word for rung in rungs or INTEGER for word in ("--rung", rung)]


def test_a_model_climbs_from_eager_on(folder: Path) -> None:
    stages: list[str] = []
    found = ladder.climb(
        str(folder / "digits.pt2"), [np.load(folder / "digit.npy")], platform="DNAF132S0001",
        rungs=["eager", *INTEGER], progress=lambda stage, done, total: stages.append(stage),
    )  # fmt: skip
    assert found.equal and found.rungs == ("eager", *INTEGER) and not found.skipped
    (output,) = found.outputs
    assert output.step is not None and all(output.rungs[rung].equal for rung in INTEGER)
    assert 0 <= output.rungs["eager"].largest_steps < 8
    decibels = output.rungs["Simulator"].psnr_db
    assert decibels is None or decibels > 20
    assert {"reading", "eager", "oracle", "Simulator"} <= set(stages)


def test_a_deployment_and_its_altered_program(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mera_torch import project

    held = project.load(folder / "deployment")
    monkeypatch.setattr(project, "load", lambda path: held)
    assert ladder.climb(folder / "deployment", rungs=INTEGER).equal
    (region,) = held.regions
    text = region.program.text()
    line = next(line for line in text.splitlines() if line.startswith("window0.window"))
    region.adopt(native.Program.parse(text.replace(line, line.replace(" low=-128", " low=5"), 1)))
    found = ladder.climb(folder / "deployment", rungs=INTEGER)
    assert not found.equal and found.outputs[0].rungs["InterpreterHw"].equal
    (culprit,) = found.culprits
    assert culprit.rung == "Simulator" and "low=5" in culprit.instructions[0] and culprit.op == "mean"
    assert "parts from InterpreterHw" in found.summary() and culprit.node in found.summary()


class TwoRegions(torch.nn.Module):
    """A convolution, something that stays on the host, and another convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(torch.cumsum(self.a(x), 1))
        return y


def test_bisection_goes_on_behind_host_steps(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mera: Mera,  # noqa: F811
) -> None:
    import mera_torch

    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    quantized = mera_torch.quantize(TwoRegions().eval(), (x,), [(x,)], progress=False)
    torch.export.save(torch.export.export(quantized, (x,)), tmp_path / "two.pt2")
    found = mera("compare", tmp_path / "two.pt2", "--platform", "DNAF132S0001", *options(), "--json")
    assert found.code == 0 and found.json["regions"] == 2 and found.json["equal"] is True
    right = oracle.OPERATORS["conv2d"]

    def wrong(call: oracle.Call) -> oracle.Int8:
        value = right(call)
        return value if value.shape[3] == 8 else np.bitwise_xor(value, np.int8(2))

    monkeypatch.setitem(oracle.OPERATORS, "conv2d", wrong)
    found = mera("compare", tmp_path / "two.pt2", "--platform", "DNAF132S0001", *options(), "--json")
    assert found.code == 1 and found.json["equal"] is False
    (culprit,) = found.json["culprits"]
    assert (culprit["region"], culprit["op"], culprit["rung"]) == ("region_1", "conv2d", "interpreter")
    shown = mera("compare", tmp_path / "two.pt2", "--platform", "DNAF132S0001", *options())
    assert shown.code == 1 and "region_1: interpreter parts from oracle at conv2d" in shown.out


def test_compare_speaks_of_what_cannot_run(folder: Path, mera: Mera) -> None:  # noqa: F811
    found = mera("compare", folder / "deployment", *options("oracle", "eager"))
    assert found.code == 4 and "does not hold the PyTorch model" in found.err
    found = mera("compare", folder / "deployment", "--rung", "simulator")
    assert found.code == 7 and "did you mean 'Simulator'" in found.err
    found = mera("compare", folder / "deployment", "--input", folder / "logits.npy", *options())
    assert found.code == 3 and "must be float32[1, 1, 28, 28]" in found.err
    found = mera("compare", folder / "deployment", "--platform", "SAKURA_1", *options())
    assert found.code == 7


def test_errors() -> None:
    with pytest.raises(ConfigError, match="at least one of oracle"):
        ladder.climb("x", rungs=["eager"])
    with pytest.raises(InvalidModelError, match="takes 1 inputs .* got 0"):
        module = torch.nn.Identity()
        subject = ladder._Subject("x", None, None, [], [_spec()], module, [])  # type: ignore[arg-type]
        ladder._inputs(subject, [], 0)


def _spec() -> object:
    from mera_torch.backend.capture import InputSpec

    return InputSpec("x", (1,), torch.float32)


def test_psnr() -> None:
    a = [np.array([1.0, -2.0])]
    assert ladder.psnr(a, a) is None
    assert ladder.psnr(a, [np.array([1.0, -1.8])]) == pytest.approx(10 * np.log10(4 / (0.04 / 2)))
    assert ladder.psnr([np.zeros(2)], a) == pytest.approx(10 * np.log10(4 / 2.5))
