"""Random small image networks in PyTorch: a seed gives a module and its inputs."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.SiLU, nn.Tanh, nn.LeakyReLU, nn.GELU, nn.Identity,
)  # fmt: skip


class Residual(nn.Module):
    def __init__(self, body: nn.Module, minus: bool) -> None:
        super().__init__()
        self.body, self.minus = body, minus

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x - self.body(x) if self.minus else self.body(x) + x)


class Branches(nn.Module):
    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 3)
        self.body = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.body(x)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def convolution(
    rng: random.Random, inputs: int, outputs: int, height: int, width: int, same: bool = False
) -> nn.Module:
    kernel = (rng.randint(1, min(5, height)), rng.randint(1, min(5, width)))
    groups = rng.choice([1, 1, 1, *(g for g in range(2, inputs + 1) if inputs % g == 0 and outputs % g == 0)])
    if same:
        size = rng.choice([1, 3])
        return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups)
    dilation = rng.choice([1, 1, 2]) if min(height, width) > 8 else 1
    padding = (rng.randint(0, kernel[0] // 2), rng.randint(0, kernel[1] // 2))
    return nn.Conv2d(
        inputs, outputs, kernel, rng.choice([1, 1, 2, 3]), padding, dilation, groups, bias=rng.random() < 0.7
    )


def layer(rng: random.Random, x: Tensor) -> nn.Module:
    """A random layer that takes x."""
    channels, height, width = x.shape[1:]
    outputs = rng.choice([1, 3, 8, 12, 17, 24, 33])
    activation = rng.choice(ACTIVATIONS)
    small = min(height, width) < 3
    kind = rng.choice(
        ["conv", "conv", "bn", "depthwise", "residual", "branches", "gate", "pool", "shape", "activation"]
    )
    if kind == "bn":
        conv = convolution(rng, channels, outputs, height, width)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation())
    if kind == "depthwise" and channels > 1 and not small:
        times = rng.choice([1, 1, 2])
        conv = nn.Conv2d(channels, channels * times, 3, rng.choice([1, 2]), 1, groups=channels)
        return nn.Sequential(conv, activation(), nn.Conv2d(channels * times, outputs, 1))
    if kind == "residual":
        body = nn.Sequential(convolution(rng, channels, channels, height, width, same=True), activation())
        return Residual(body, rng.random() < 0.2)
    if kind == "branches":
        kinds = [
            convolution(rng, channels, rng.randint(1, 20), height, width, same=True) for _ in range(rng.randint(1, 3))
        ]
        return Branches([*kinds, *([nn.Identity()] if rng.random() < 0.5 else [])])
    if kind == "gate":
        return Gate(channels)
    if kind == "pool" and not small:
        return rng.choice([
            nn.MaxPool2d(2, ceil_mode=rng.random() < 0.5), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2),
            nn.AvgPool2d(3, 2, 1, count_include_pad=rng.random() < 0.5), nn.AdaptiveAvgPool2d((1, 1)),
        ])  # fmt: skip
    if kind == "shape":
        functions: list[Callable[[Tensor], Tensor]] = [
            lambda v: F.pad(v, (1, 2, 0, 1)),
            lambda v: v[:, : max(1, channels // 2)],
            lambda v: v[:, :, ::2],
            lambda v: F.interpolate(v, scale_factor=2.0) if height * width < 200 else v,
            lambda v: F.interpolate(v, (height * 2 // 3 + 1, width * 4 // 3), mode="nearest-exact"),
            lambda v: F.interpolate(v, (height * 5 // 3, width // 2 + 1), mode="bilinear", align_corners=outputs > 8),
            lambda v: torch.softmax(v, 1 + outputs % 3),
            lambda v: v * 0.5 if channels > 3 else v + v,
        ]
        return Function(rng.choice(functions))
    return (
        activation()
        if kind == "activation"
        else nn.Sequential(convolution(rng, channels, outputs, height, width), activation())
    )


def random_module(seed: int) -> tuple[nn.Module, Tensor]:
    """A network of 2 to 6 layers and a head or none, in evaluation mode, and its input [N, C, H, W]."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    data = torch.randn(rng.choice([1, 1, 2]), rng.choice([1, 3, 4, 7]), rng.randint(5, 24), rng.randint(5, 24))
    x, layers = data, []
    with torch.no_grad():
        for _ in range(rng.randint(2, 6)):
            module = layer(rng, x).eval()
            y = module(x)
            if y.numel() > 40_000:
                continue
            layers.append(module)
            x = y
        if rng.random() < 0.5:
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(x.shape[1], 10)]
    return nn.Sequential(*layers).eval(), data
