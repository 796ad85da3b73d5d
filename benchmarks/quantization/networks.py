"""The networks that are quantized, each with its calibration and evaluation data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import networks
import torch
from torch import Tensor, nn

from mera_torch.digits import trained_digit_net
from mera_torch.zoo_models import MODELS

from . import data, digit_mobilenet, onnx_light
from .data import Samples

DIGITS = data.CALIBRATION_DIGITS, data.EVALUATION_DIGITS
CROPS = data.CALIBRATION_CROPS, data.EVALUATION_CROPS
OUTPUTS = 16, 16  # of networks of which only the outputs' noise is measured
EVALUATION_SEED = 1000  # of what is not photographs; calibration begins at 0


@dataclass(frozen=True)
class Network:
    """A float network and its data.

    kind: digits (top-1 on labels), photos (agreement with float, and labels of 20 photos), outputs (noise).
    """

    name: str
    kind: str
    model: Callable[[], nn.Module]
    calibration: Callable[[int], list[Tensor]]  # of so many inputs
    evaluation: Callable[[int], Samples]
    inputs: tuple[int, int]  # how many of both
    labelled: Callable[[], Samples] | None = None


def _digits(name: str, model: Callable[[], nn.Module]) -> Network:
    return Network(name, "digits", model, data.calibration_digits, data.evaluation_digits, DIGITS)


def _photos(name: str) -> Network:
    entry = MODELS[name]
    crops = partial(data.calibration_crops, entry), partial(data.evaluation_crops, entry)
    return Network(name, "photos", entry.load, *crops, CROPS, partial(data.labelled_photos, entry))


def _onnx(name: str) -> Network:
    entry = MODELS["mobilenet_v2"]
    calibration, evaluation = partial(data.calibration_crops, entry), partial(data.evaluation_crops, entry)

    def model() -> nn.Module:
        return onnx_light.network(name, calibration(OUTPUTS[0]))

    return Network(name, "outputs", model, calibration, evaluation, OUTPUTS)


def _unet(name: str) -> Network:
    entry = networks.NETWORKS[name]

    def evaluation(count: int) -> Samples:
        inputs = [entry.inputs(seed) for seed in range(EVALUATION_SEED, EVALUATION_SEED + count)]
        return Samples(torch.cat(inputs), torch.arange(count))

    def calibration(count: int) -> list[Tensor]:
        return [entry.inputs(seed) for seed in range(count)]

    return Network(name, "outputs", entry.prepared, calibration, evaluation, OUTPUTS)


NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        _digits("digit_cnn", trained_digit_net),
        _digits("digit_mobilenet_v2", digit_mobilenet.trained),
        *map(_photos, ("mobilenet_v2", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")),
        *map(_onnx, onnx_light.NAMES),
        _unet("unet128"),
    )
}
