"""The tutorials of the MERA face, in a reduced form and, if asked, whole."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import face
import pytest

import mera_torch as mera

FOLDER = Path(__file__).parents[1] / "tutorials"
SMALL = ["--size", "32"]


def tutorial(name: str, *options: str) -> str:
    command = [sys.executable, str(FOLDER / name / f"{name}.py"), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("target", ["IP", pytest.param("Simulator", marks=pytest.mark.slow)])
def test_efficientnet_lite_reduced(target: str, tmp_path: Path) -> None:
    model = ["--model", str(face.TFLITE / "int8.tflite"), "--output", str(tmp_path / "d")]
    text = tutorial("efficientnet_lite", "--target", target, "--photos", "2", *model)
    assert text.count("equals InterpreterHw: True") == 2 and "latency on DNAF200L0003" in text
    assert mera.load_mera_deployment(tmp_path / "d", target).target == target


@pytest.mark.slow
@pytest.mark.parametrize("target", ["Simulator", "IP"])
def test_resnet50_reduced(target: str) -> None:
    text = tutorial("resnet50", "--target", target, *SMALL)
    assert f"{target} gives the bytes of InterpreterHw: True" in text and "estimate" in text


@pytest.mark.slow
@pytest.mark.parametrize("target", ["Simulator", "IP"])
def test_fused_reduced(target: str) -> None:
    text = tutorial("fused", "--target", target, *SMALL)
    assert text.count("the bytes that it gives alone: True") == 2 and "'image_0'" in text
    alone, together = map(float, re.findall(r"([\d.]+) ms (?:one after the other|fused)", text))
    assert together <= alone


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("target", ["Simulator", "IP"])
def test_efficientnet_lite_on_photos(target: str, zoo_artifact: Callable[[str], None]) -> None:
    for name in ("efficientnet_lite0_int8", "photos", "class_names"):
        zoo_artifact(name)
    text = tutorial("efficientnet_lite", "--target", target)
    assert text.count("equals InterpreterHw: True") == 3


@pytest.mark.slow
@pytest.mark.network
def test_fused_with_trained_weights(zoo_artifact: Callable[[str], None]) -> None:
    zoo_artifact("mobilenet_v2")
    assert tutorial("fused", "--zoo").count("the bytes that it gives alone: True") == 2


@pytest.mark.parametrize("steps", [80, pytest.param(240, marks=pytest.mark.slow)])
def test_training_recovers_what_quantization_lost(steps: int, tmp_path: Path) -> None:
    text = tutorial("qat", "--steps", str(steps), "--output", str(tmp_path))
    _, ptq, lost, qat, recovered = map(float, re.findall(r"(-?[\d.]+) (?:%|points)", text))
    assert lost >= 4 and recovered >= lost / 3 and qat - ptq == pytest.approx(recovered)
    for name in ("ptq", "qat"):
        assert mera.load(tmp_path / name).target == "InterpreterHw"


def test_the_tutorial_of_training_says_what_it_does() -> None:
    text = (FOLDER / "qat" / "README.md").read_text()
    assert "tutorials/qat/qat.py" in text and "InterpreterHw" in text


def test_each_has_a_readme() -> None:
    for name in ("resnet50", "efficientnet_lite", "fused"):
        text = (FOLDER / name / "README.md").read_text()
        assert f"tutorials/{name}/{name}.py" in text and "--target IP" in text
