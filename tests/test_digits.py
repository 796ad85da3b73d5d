"""The digit network and its data: what the package holds, and what quantization costs in accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import mera_torch
from mera_torch import digits

ALLOWED_LOSS = 0.002  # 0.2 points


def right(runner: nn.Module, some: digits.Digits) -> int:
    """How many digits a runner, compiled for batch 1, names right."""
    return sum(
        int(runner(image).argmax()) == int(label)
        for image, label in zip(some.images.split(1), some.labels, strict=True)
    )


def right_in_float(some: digits.Digits) -> int:
    """How many digits the float network names right."""
    with torch.no_grad():
        return int((digits.trained_digit_net()(some.images).argmax(1) == some.labels).sum())


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    calibration = [(image,) for image in digits.calibration_digits().images.split(1)]
    quantized = mera_torch.quantize(digits.trained_digit_net(), calibration[0], calibration)
    folder = tmp_path_factory.mktemp("digits")
    return mera_torch.export(quantized, calibration[0], folder, target="InterpreterHw").get_runner()


def test_package_data() -> None:
    assert digits.WEIGHTS.stat().st_size < 300_000
    held_out = digits.held_out_digits()
    assert held_out.images.shape == (200, 1, 28, 28)
    assert held_out.images.dtype == torch.float32
    assert 0 <= held_out.images.min() and held_out.images.max() == 1
    assert held_out.labels.bincount(minlength=10).min() >= 15
    training = {image.numpy().tobytes() for image in digits.calibration_digits().images}
    assert not any(image.numpy().tobytes() in training for image in held_out.images)


def test_int8_loses_at_most_one_of_200_digits(runner: nn.Module) -> None:
    held_out = digits.held_out_digits()
    assert right_in_float(held_out) >= 198
    assert right(runner, held_out) >= right_in_float(held_out) - 1


@pytest.mark.network
def test_int8_loses_at_most_a_fifth_of_a_point_over_2000_digits(
    runner: nn.Module, zoo_artifact: Callable[[str], None]
) -> None:
    from mera_torch.zoo_models import zoo_digits

    zoo_artifact("digits")
    _, held_out = zoo_digits()
    floats = right_in_float(held_out)
    assert floats >= 0.99 * len(held_out)
    assert right(runner, held_out) >= floats - ALLOWED_LOSS * len(held_out)


@pytest.mark.network
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_int8_names_the_photos_as_float_does(name: str, tmp_path: Path, zoo_artifact: Callable[[str], None]) -> None:
    from mera_torch import demo

    for artifact in (name, "photos", "class_names"):
        zoo_artifact(artifact)
    task = demo.task(name)
    quantized = mera_torch.quantize(task.model, (task.inputs[0],), list(task.calibration), config=task.config)
    deployment = mera_torch.export(quantized, (task.inputs[0],), tmp_path, target="InterpreterHw")
    run = deployment.get_runner()
    with torch.no_grad():
        same = sum(int(run(image).argmax()) == int(task.model(image).argmax()) for image in task.inputs)
    assert same >= 18  # of 20
