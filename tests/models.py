"""Networks that several tests share: small ones written here, and torchvision's architectures."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mera_torch.zoo_models.mobilenet_v1 import MobileNetV1


def conv_bn(
    inputs: int, outputs: int, kernel: int = 3, *, activation: nn.Module | None = None, **options: Any
) -> nn.Sequential:
    """Convolution without bias, batch norm and an activation (ReLU unless given); padded to keep the size at stride
    1."""
    options.setdefault("padding", options.get("dilation", 1) * (kernel // 2))
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, bias=False, **options),
        nn.BatchNorm2d(outputs),
        activation or nn.ReLU(inplace=True),
    )


class PlainCnn(nn.Module):
    """Convolutions with bias, max pool, flatten, linear: LeNet-like. Input [N, 3, H, W]."""

    def __init__(self, size: tuple[int, int] = (16, 16), classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 9, 3, padding=1)
        self.conv2 = nn.Conv2d(9, 14, 3, stride=2)
        self.pool = nn.MaxPool2d(2)
        height, width = (((s - 3) // 2 + 1) // 2 for s in size)
        self.head = nn.Linear(14 * height * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv2(F.relu6(self.conv1(x)))))
        return self.head(torch.flatten(x, 1))


class Residual(nn.Module):
    """Stem, two residual blocks (one with a strided projection), global pool, linear."""

    def __init__(self, channels: int = 12, classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_bn(3, channels)
        self.a1 = conv_bn(channels, channels)
        self.a2 = conv_bn(channels, channels, activation=nn.Identity())
        self.b1 = conv_bn(channels, 2 * channels, stride=2)
        self.b2 = conv_bn(2 * channels, 2 * channels, activation=nn.Identity())
        self.project = conv_bn(channels, 2 * channels, 1, stride=2, activation=nn.Identity())
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.a2(self.a1(x))
        y += x
        x = self.relu(y)
        x = self.relu(self.b2(self.b1(x)) + self.project(x))
        return self.head(self.pool(x).flatten(1))


class SqueezeExcite(nn.Module):
    """Inverted residual with a squeeze-and-excitation block and a choice of activation, as in MobileNetV3 and
    EfficientNet."""

    def __init__(
        self, channels: int = 16, activation: type[nn.Module] = nn.Hardswish, gate: type[nn.Module] = nn.Hardsigmoid
    ) -> None:
        super().__init__()
        self.stem = conv_bn(3, channels, stride=2, activation=activation())
        self.expand = conv_bn(channels, 3 * channels, 1, activation=activation())
        self.depthwise = conv_bn(3 * channels, 3 * channels, 5, groups=3 * channels, activation=activation())
        self.squeeze = nn.Sequential(
            nn.Conv2d(3 * channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 3 * channels, 1), gate()
        )
        self.project = conv_bn(3 * channels, channels, 1, activation=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        y = self.squeeze(F.adaptive_avg_pool2d(y, 1)) * y
        return x + self.project(y)


class Inception(nn.Module):
    """Four branches of different kernels joined over channels; the joined value is read twice, and one branch is read
    outside too."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn(3, channels)
        self.one = conv_bn(channels, 6, 1)
        self.three = nn.Sequential(conv_bn(channels, 4, 1), conv_bn(4, 8, 3))
        self.five = nn.Sequential(conv_bn(channels, 3, 1), conv_bn(3, 5, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv_bn(channels, 4, 1))
        self.down = nn.Conv2d(23, 12, 3, stride=2, padding=1)
        self.side = nn.Conv2d(6, 12, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        one = self.one(x)
        joined = torch.cat([one, self.three(x), self.five(x), self.pool(x)], 1)
        pooled = F.avg_pool2d(F.max_pool2d(joined, 3, 2, ceil_mode=True), 2)
        return torch.cat([F.avg_pool2d(torch.cat([self.down(joined), self.side(one)], 1), 2), pooled[:, 3:20]], 1)


class UNet(nn.Module):
    """Two levels down and up by nearest upsampling, joined with the skipped values. Height and width multiples of 4."""

    def __init__(self, channels: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.down1 = conv_bn(3, channels)
        self.down2 = conv_bn(channels, 2 * channels)
        self.bottom = conv_bn(2 * channels, 4 * channels, dilation=2)
        self.up2 = conv_bn(6 * channels, 2 * channels)
        self.up1 = conv_bn(3 * channels, channels)
        self.head = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.up2(torch.cat([F.interpolate(c, scale_factor=2, mode="nearest"), b], 1))
        a = self.up1(torch.cat([F.interpolate(b, scale_factor=2, mode="nearest"), a], 1))
        return torch.sigmoid(self.head(a))


class DenseBlock(nn.Module):
    """Batch norm and relu before each convolution, everything joined again and again, as in DenseNet."""

    def __init__(self, layers: int = 3, growth: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * growth, 3, stride=2, padding=1, bias=False)
        widths = [(2 + i) * growth for i in range(layers + 1)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths)
        self.convs = nn.ModuleList(nn.Conv2d(w, growth, 3, padding=1, bias=False) for w in widths[:-1])
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        features = [F.max_pool2d(self.stem(x), 3, 2, 1)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        y = F.relu(self.norms[-1](torch.cat(features, 1)))
        return self.head(F.adaptive_avg_pool2d(y, (1, 1)).flatten(1))


class Shuffle(nn.Module):
    """Channel split and shuffle, as in ShuffleNetV2."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = conv_bn(3, channels, stride=2)
        half = channels // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1), conv_bn(half, half, groups=half, activation=nn.Identity()), conv_bn(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = self.stem(x).chunk(2, 1)
        x = torch.cat([kept, self.branch(changed)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Activations(nn.Module):
    """Every activation that the DNA has by table, plus add, sub and mul of tensors and numbers, pads and slices."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, channels, 3, padding=1) for _ in range(9))
        self.scale = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f, g, h, i = (conv(x) for conv in self.convs)
        a, b, c = F.hardswish(a), F.hardsigmoid(b), torch.sigmoid(c)
        d, e, f = F.silu(d), torch.tanh(e), F.leaky_relu(f, 0.1)
        g, h, i = F.gelu(g), F.hardtanh(h, -0.5, 0.7), i.clamp(-1, 0.25)
        y = torch.relu(a - b) + c * d
        y = F.pad(y, (1, 2, 0, 1))[:, :, : x.shape[2], 1 : x.shape[3] + 1] + e
        y = (y * self.scale + 0.5) - f * 0.25
        return torch.cat([F.relu6(y + 3) / 6, g + g, h, i], 1)


SMALL_MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": PlainCnn,
    "residual": Residual,
    "squeeze_excite": SqueezeExcite,
    "squeeze_excite_silu": lambda: SqueezeExcite(activation=nn.SiLU, gate=nn.Sigmoid),
    "inception": Inception,
    "unet": UNet,
    "dense": DenseBlock,
    "shuffle": Shuffle,
    "activations": Activations,
    "mobilenet_v1": lambda: MobileNetV1(0.25, 10),
}

TORCHVISION_MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "squeezenet1_1",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "shufflenet_v2_x1_0",
)


@cache
def torchvision_models() -> ModuleType:
    """``torchvision.models``; where torchvision's compiled operators are absent, those it needs to be imported are
    declared."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision_models.library = library  # type: ignore[attr-defined]  # lives as long as the process
        import sys

        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        from torchvision import models
    return models


def build_torchvision(name: str) -> nn.Module:
    """An architecture of torchvision with random weights, in evaluation mode."""
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return getattr(torchvision_models(), name)(weights=None, **options).eval()


def set_batchnorm_statistics(model: nn.Module, data: Tensor) -> nn.Module:
    """Sets each batch norm's running mean and variance to those of `data`, so that random weights give sane
    activations. Returns `model`, in evaluation mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average: exactly the statistics of what is seen
        norm.train()
    with torch.no_grad():
        model(data)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
