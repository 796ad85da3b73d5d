"""The law on random networks of what needs several DNA operators, or moves values: transposed convolutions, prelu,
picked and repeated elements, extrema. Else as in test_random_modules.py."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from random_modules import Branches, Function, convolution
from test_random_modules import check
from torch import Tensor, nn
from torch.nn import functional as F

SEEDS = [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 100))]


def transposed(rng: random.Random, channels: int) -> nn.Module:
    groups = rng.choice([1, 1, 1, channels])
    outputs = groups * rng.randint(1, 3) if groups > 1 else rng.randint(1, 12)
    kernel, stride = ((rng.randint(1, 4), rng.randint(1, 4)) for _ in range(2))
    padding = (rng.randint(0, kernel[0] // 2), rng.randint(0, kernel[1] // 2))
    stride = (min(stride[0], 3), min(stride[1], 3))
    extra = (rng.randrange(stride[0]), rng.randrange(stride[1]))
    return nn.ConvTranspose2d(channels, outputs, kernel, stride, padding, extra, groups, bias=rng.random() < 0.7)


def movement(rng: random.Random, channels: int, height: int, width: int) -> Callable[[Tensor], Tensor]:
    order = [rng.randrange(channels) for _ in range(rng.randint(1, 2 * channels))]
    pads = [rng.randint(0, 2) for _ in range(4)]
    turned = rng.choice([1, 2])
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda v: v.flip(turned),
        lambda v: v.roll(2, 3),
        lambda v: v[:, order],
        lambda v: v.repeat(1, 2, 1, 1),
        lambda v: v.repeat_interleave(2, 2),
        lambda v: torch.stack([v, v], 2).flatten(1, 2),
        lambda v: v * v.amax((2, 3), keepdim=True),
        lambda v: v + v.amin(1, keepdim=True),
        lambda v: torch.maximum(v, v.flip(3)),
        lambda v: torch.minimum(v, v.roll(1, 2)),
        lambda v: v.transpose(2, 3),
        lambda v: v.reshape(v.shape[0], channels, width, height),
        lambda v: v.permute(0, 2, 3, 1).flip(2).permute(0, 3, 1, 2),
        lambda v: torch.cat(v.chunk(2, 2)[::-1], 2),
    ]
    if min(height, width) > 2:
        functions += [lambda v: F.pad(v, pads, mode="reflect"), lambda v: F.pad(v, pads, mode="circular")]
    functions += [lambda v: F.pad(v, pads, mode="replicate")]
    return rng.choice(functions)


def random_network(seed: int) -> tuple[nn.Module, Tensor]:
    """3 to 6 layers after a convolution, in evaluation mode, and their input [N, C, H, W]."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    data = torch.randn(rng.choice([1, 1, 2]), rng.choice([1, 3, 4]), rng.randint(3, 9), rng.randint(3, 9))
    layers: list[nn.Module] = [nn.Conv2d(data.shape[1], rng.choice([2, 4, 6, 8]), 1)]
    with torch.no_grad():
        x = layers[0](data)
        for _ in range(rng.randint(3, 6)):
            channels, height, width = x.shape[1:]
            module: nn.Module
            kind = rng.choice(["transposed", "prelu", "movement", "movement", "conv", "branches"])
            if kind == "transposed":
                module = transposed(rng, channels)
            elif kind == "prelu":
                module = nn.PReLU(rng.choice([1, channels]), init=rng.uniform(-0.2, 1.2))
            elif kind == "conv":
                module = convolution(rng, channels, rng.randint(1, 9), height, width)
            elif kind == "branches":
                module = Branches([nn.Identity(), Function(lambda v: torch.tanh(v)), nn.PReLU(channels)])
            else:
                module = Function(movement(rng, channels, height, width))
            y = module(x)
            if 0 < y.numel() <= 20_000:
                layers.append(module)
                x = y
    return nn.Sequential(*layers, nn.Conv2d(x.shape[1], 5, 1)).eval(), data


@pytest.mark.parametrize("seed", SEEDS)
def test_random_network(seed: int) -> None:
    check(*random_network(seed), seed)
