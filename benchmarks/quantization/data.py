"""What networks are calibrated and evaluated on: digits, and crops of real photographs. All of it is deterministic.

Calibration never shares an image with evaluation. Digits: calibration takes 100 of the zoo's 8,000 training digits,
evaluation the 2,000 held out. Photographs: calibration takes 100 crops of CALIBRATION_PHOTOGRAPHS, seven colour photos
that scikit-image and scikit-learn bring; evaluation 500 crops of the zoo's 20 labelled photos, and those photos whole.

A crop is a box of a quarter of the photograph's area to all of it, sides 3:4 to 4:3, half of them mirrored; it is
resized to the network's side with the network's own interpolation, then normalized as the network expects
(torchvision's convention for MobileNetV2, (pixel - 127) / 128 for EfficientNet-Lite).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mera_torch.zoo_models import ZooModel, photos, zoo_digits

CALIBRATION_PHOTOGRAPHS = (
    ("skimage.data", "astronaut.png"),
    ("skimage.data", "chelsea.png"),
    ("skimage.data", "coffee.png"),
    ("skimage.data", "motorcycle_left.png"),
    ("skimage.data", "rocket.jpg"),
    ("sklearn.datasets.images", "china.jpg"),
    ("sklearn.datasets.images", "flower.jpg"),
)
EVALUATION_DIGITS, CALIBRATION_DIGITS = 2000, 100
EVALUATION_CROPS, CALIBRATION_CROPS = 500, 100
EVALUATION_SEED, CALIBRATION_SEED = 1, 2
AREA = (0.25, 1.0)
ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Samples:
    """Inputs float32 [N, C, H, W]; groups int64 [N], i modulo how many there are: inputs of one group are alike; labels
    int64 [N], where they are known."""

    inputs: Tensor
    groups: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)


def evaluation_digits(count: int = EVALUATION_DIGITS) -> Samples:
    """The zoo's 2,000 held-out digits, or `count` of them, of all classes alike."""
    _, held_out = zoo_digits()
    chosen = _spread(len(held_out), count)
    return Samples(held_out.images[chosen], torch.arange(len(chosen)), held_out.labels[chosen])


def calibration_digits(count: int = CALIBRATION_DIGITS) -> list[Tensor]:
    """`count` of the zoo's training digits, of all classes alike, each float32 [1, 1, 28, 28]."""
    train, _ = zoo_digits()
    return list(train.images[_spread(len(train), count)].split(1))


def _spread(total: int, count: int) -> Tensor:
    """`count` indices below `total`, at even distances; the digits are sorted by class."""
    return torch.arange(min(count, total)) * total // min(count, total)


def evaluation_crops(network: ZooModel, count: int = EVALUATION_CROPS) -> Samples:
    """Crops of the zoo's 20 photos, as inputs of `network`; a group is a photo. They have no labels: a crop need not
    show what the photo is labelled with."""
    images = zoo_photographs()
    groups = torch.arange(count) % len(images)
    return Samples(torch.cat(_crops(network, images, count, EVALUATION_SEED)), groups)


def calibration_crops(network: ZooModel, count: int = CALIBRATION_CROPS) -> list[Tensor]:
    """Crops of CALIBRATION_PHOTOGRAPHS, each float32 [1, 3, side, side]."""
    return _crops(network, bundled_photographs(), count, CALIBRATION_SEED)


def labelled_photos(network: ZooModel) -> Samples:
    """The zoo's 20 photos, whole, with their labels."""
    found = photos()
    inputs = torch.cat([network.preprocess(photo.data) for photo in found])
    return Samples(inputs, torch.arange(len(found)), torch.tensor([photo.label for photo in found]))


def _crops(network: ZooModel, images: Sequence[Any], count: int, seed: int) -> list[Tensor]:
    """`count` crops of PIL images, taken in turn."""
    from PIL import Image

    random = np.random.default_rng(seed)
    interpolation = Image.Resampling.BICUBIC if network.bicubic else Image.Resampling.BILINEAR
    inputs = []
    for index in range(count):
        image = images[index % len(images)]
        crop = image.resize((network.side, network.side), interpolation, box=_box(*image.size, random))
        pixels = np.array(crop)
        inputs.append(network.normalize(pixels[:, ::-1].copy() if random.random() < 0.5 else pixels))
    return inputs


def _box(width: int, height: int, random: np.random.Generator) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a random box within the image."""
    area = width * height * random.uniform(*AREA)
    aspect = math.exp(random.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
    across, down = min(width, math.sqrt(area * aspect)), min(height, math.sqrt(area / aspect))
    left, top = random.uniform(0, width - across), random.uniform(0, height - down)
    return left, top, left + across, top + down


@cache
def zoo_photographs() -> list[Any]:
    """The zoo's 20 photos as PIL images: for evaluation."""
    return [_opened(photo.data) for photo in photos()]


@cache
def bundled_photographs() -> list[Any]:
    """CALIBRATION_PHOTOGRAPHS as PIL images."""
    return [_opened((resources.files(package) / name).read_bytes()) for package, name in CALIBRATION_PHOTOGRAPHS]


def _opened(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")
