"""mera_torch.dump: every stage of whatever holds a DNA graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiled import quantized
from dna import RESIDUAL_NET, graph, machine

import mera_torch
from mera_torch import errors, native
from mera_torch.dump import STAGES, dump, parse_options


@pytest.fixture(scope="module")
def module() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8)
    return quantized(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()), x), x


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_of_a_graph(stage: str, tmp_path: Path) -> None:
    built = graph(RESIDUAL_NET)
    (tmp_path / "net.dna.txt").write_text(built.text(), encoding="utf-8")
    (tmp_path / "net.graph").write_bytes(built.save())
    ((_, text),) = dump(tmp_path / "net.dna.txt", stage, machine())
    assert text.strip()
    assert [text] == [again for _, again in dump(tmp_path / "net.graph", stage, machine())]
    if stage != "graph":
        assert text == built.dump(stage, machine())


def test_data_makes_the_graph_readable(tmp_path: Path) -> None:
    (tmp_path / "net.graph").write_bytes(graph(RESIDUAL_NET).save())
    ((_, text),) = dump(tmp_path / "net.graph", "graph", with_data=True)
    assert native.Graph.parse(text).text() == text


def test_a_program_is_its_instructions(tmp_path: Path) -> None:
    program = graph(RESIDUAL_NET).compile(machine())
    (tmp_path / "net.dna").write_bytes(program.save())
    assert [program.text()] == [text for _, text in dump(tmp_path / "net.dna")]
    with pytest.raises(errors.InvalidModelError, match="of its stages, isa alone is left"):
        list(dump(tmp_path / "net.dna", "fuse"))


def test_a_deployment_has_its_own_platform(module: tuple[torch.nn.Module, torch.Tensor], tmp_path: Path) -> None:
    model, x = module
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    deployment = mera_torch.export(model, (x,), tmp_path / "deployment", platform="DNAF132S0001")
    (region,) = deployment.regions
    assert dict(dump(deployment.path, "isa")) == {"region_0": region.graph.dump("isa", region.platform)}
    assert dict(dump(tmp_path / "model.pt2", "isa", "DNAF132S0001")) == dict(dump(deployment.path, "isa"))
    assert dict(dump(tmp_path / "model.pt2")) == dict(dump(deployment.path, platform="SAKURA_1"))


def test_wrong_arguments_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path, stage, kind, message in (
        (tmp_path / "binary", "isa", errors.CorruptFileError, "is no TFLite, ONNX"),
        (tmp_path / "none", "isa", errors.MeraError, "cannot be read: No such file"),
        (tmp_path, "isa", errors.InvalidModelError, "is no deployment"),
        (tmp_path, "ias", errors.ConfigError, "did you mean 'isa'"),
    ):
        with pytest.raises(kind, match=message):
            list(dump(path, stage))
    assert parse_options(["mode=0", "workers=2"]) == {"mode": 0, "workers": 2}
    with pytest.raises(errors.ConfigError, match="NAME=NUMBER"):
        parse_options(["mode"])
