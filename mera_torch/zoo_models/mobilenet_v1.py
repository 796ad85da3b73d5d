"""MobileNetV1 (Howard et al., 2017, table 1)."""

from __future__ import annotations

from torch import Tensor, nn

STEM = 32
# output channels and stride of each depthwise separable convolution
LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def conv_bn_relu(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalization, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class MobileNetV1(nn.Module):
    """float32 [N, 3, H, W] -> logits [N, classes]: 4.2 million parameters, 569 million MACs at 224x224 and width 1.

    width: what every number of channels is multiplied by; at least 8 are left.
    """

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        channels = max(8, int(STEM * width))
        layers: list[nn.Module] = [conv_bn_relu(3, channels, 3, stride=2)]
        for full, stride in LAYERS:
            outputs = max(8, int(full * width))
            layers.append(conv_bn_relu(channels, channels, 3, stride=stride, groups=channels))
            layers.append(conv_bn_relu(channels, outputs, 1))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return y
