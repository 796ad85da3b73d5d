"""The digit network of the demo: its definition, its weights and the digits that come with the package.

`tools/train_digits.py` made weights and digits; it says from which data and how.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

DATA = Path(__file__).parent / "data"
WEIGHTS = DATA / "digits_cnn.safetensors"
DIGITS = DATA / "digits.npz"


def conv_bn_relu(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution without bias, its batch normalization and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Residual(nn.Module):
    """y = relu(x + f(x)), f two 3x3 convolutions of the same width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv_bn_relu(channels, channels)
        self.conv2 = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(x + self.conv2(self.conv1(x)))
        return y


class DigitNet(nn.Module):
    """A small residual network for 28x28 grey digits: 43,000 parameters, 5.5 million MACs.

    forward: float32 [N, 1, 28, 28] in 0..1 (ink is 1) -> logits float32 [N, 10].
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn_relu(1, 16),
            conv_bn_relu(16, 32, stride=2),
            Residual(32),
            conv_bn_relu(32, 64, stride=2),
        )
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return y


@dataclass(frozen=True)
class Digits:
    """Labelled digits: images float32 [N, 1, 28, 28] in 0..1, labels int64 [N]."""

    images: Tensor
    labels: Tensor

    @classmethod
    def from_bytes(cls, images: np.ndarray, labels: np.ndarray) -> Digits:
        """images: uint8 [N, 28, 28]; labels: integers [N]."""
        return cls(
            torch.from_numpy(images.astype(np.float32) / 255.0).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))
        )

    def __len__(self) -> int:
        return len(self.labels)


def trained_digit_net() -> DigitNet:
    """The network with the weights that come with the package, in evaluation mode."""
    from safetensors.torch import load_file

    net = DigitNet()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval()


def held_out_digits() -> Digits:
    """200 digits that training never saw, 20 or so of each class."""
    return _packaged("test")


def calibration_digits() -> Digits:
    """64 of the digits that the network was trained on, to calibrate its quantization with."""
    return _packaged("calibration")


def _packaged(part: str) -> Digits:
    with np.load(DIGITS, allow_pickle=False) as arrays:
        return Digits.from_bytes(arrays[f"{part}_images"], arrays[f"{part}_labels"])
