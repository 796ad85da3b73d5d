"""A MobileNetV2 for digits: depthwise convolutions, linear bottlenecks and ReLU6, which are hard on int8, in small.

`benchmarks/train_digit_mobilenet.py` made the weights that lie beside this file.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from mera_torch.zoo_models.mobilenet_v2 import InvertedResidual, conv_bn_relu6

WEIGHTS = Path(__file__).parent / "digit_mobilenet_v2.safetensors"
STEM, HEAD, EXPANSION = 16, 128, 4
STAGES = ((16, 1, 1), (24, 2, 2), (32, 2, 2), (40, 1, 1))  # output channels, repeats, stride of the first


class DigitMobileNetV2(nn.Module):
    """float32 [N, 1, 28, 28] in 0..1 (ink is 1) -> logits float32 [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn_relu6(1, STEM, 3)]
        channels = STEM
        for outputs, repeats, stride in STAGES:
            for index in range(repeats):
                step = stride if index == 0 else 1
                layers.append(InvertedResidual(channels, outputs, stride=step, expansion=EXPANSION))
                channels = outputs
        self.features = nn.Sequential(*layers, conv_bn_relu6(channels, HEAD, 1))
        self.classifier = nn.Linear(HEAD, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return y


def trained() -> DigitMobileNetV2:
    """The network with its trained weights, in evaluation mode."""
    net = DigitMobileNetV2()
    net.load_state_dict(load_file(WEIGHTS), strict=False)  # num_batches_tracked is not kept
    return net.eval()
