"""EfficientNet-Lite 0, 1 and 2: EfficientNet without squeeze-and-excite, with ReLU6; parameter names of the zoo's
weights.

TensorFlow trained them: a stride-2 convolution pads as TensorFlow's "SAME" does (the odd element after, not before),
and batch normalization has epsilon 1e-3.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

# expansion, kernel, output channels, repeats, stride of the first
STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
STEM, HEAD = 32, 1280
BN_EPSILON = 1e-3


class SameConv2d(nn.Conv2d):
    """A square convolution without bias, padded so that the output is the input's size over the stride, rounded up."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        padding: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        if padding[0] == padding[1] and padding[2] == padding[3]:
            return F.conv2d(x, self.weight, None, self.stride, (padding[2], padding[0]), 1, self.groups)
        return F.conv2d(F.pad(x, padding), self.weight, None, self.stride, 0, 1, self.groups)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BN_EPSILON)


class Block(nn.Module):
    """Expand, depthwise, project; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = SameConv2d(inputs, width, 1)
            self._bn0 = batch_norm(width)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride=stride, groups=width)
        self._bn1 = batch_norm(width)
        self._project_conv = SameConv2d(width, outputs, 1)
        self._bn2 = batch_norm(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        out: Tensor = x + y if self.residual else y
        return out


def _rounded(channels: int, width: float) -> int:
    """`channels` times `width`, to the nearest multiple of 8, not below 90 % of it (Tan and Le, arXiv 1905.11946)."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


class EfficientNetLite(nn.Module):
    """float32 [N, 3, H, W] -> logits [N, classes].

    width and depth multiply the channels and the repeats of each stage; not those of stem and head, and not the
    repeats of the first and last stage.
    """

    def __init__(self, width: float, depth: float, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM, 3, stride=2)
        self._bn0 = batch_norm(STEM)
        self._blocks = nn.ModuleList()
        channels = STEM
        for stage, (expansion, kernel, base, repeats, stride) in enumerate(STAGES):
            outputs = _rounded(base, width)
            fixed = stage in (0, len(STAGES) - 1)
            for index in range(repeats if fixed else math.ceil(repeats * depth)):
                step = stride if index == 0 else 1
                self._blocks.append(Block(channels, outputs, kernel, stride=step, expansion=expansion))
                channels = outputs
        self._conv_head = SameConv2d(channels, HEAD, 1)
        self._bn1 = batch_norm(HEAD)
        self._fc = nn.Linear(HEAD, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        y: Tensor = self._fc(x.mean((2, 3)))
        return y


class EfficientNetLite0(EfficientNetLite):
    """For images of 224x224."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__(1.0, 1.0, classes)


class EfficientNetLite1(EfficientNetLite):
    """For images of 240x240."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__(1.0, 1.1, classes)


class EfficientNetLite2(EfficientNetLite):
    """For images of 260x260."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__(1.1, 1.2, classes)
