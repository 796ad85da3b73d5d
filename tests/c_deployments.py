"""Deployments for the tests of the C runtime: python tests/c_deployments.py FOLDER writes one folder a case with

deploy/                     the deployment
input_0.npy, output_0.npy   inputs, and what Python's runner computes from them on both targets
tolerance                   how far C's floats may be away, relative to the greatest of an output; 0 is to the byte
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import torch
from compiled import quantized
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import mera_torch

ROOT = Path(__file__).resolve().parents[1]
LIBM = 1e-6
"""Exponentials come from another libm in C than in PyTorch; see docs/c_runtime.md."""


class Scores(nn.Module):
    """A classifier whose softmax runs on the host, and a second output that is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.body = models.PlainCnn()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        return torch.softmax(y, 1), y


class HostBetween(nn.Module):
    """Regions with float operators on the host between them, all exact: sums, products, permutations, joins."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a = F.relu(self.first(x))
        b = a / (a.abs().amax(dim=(1, 2, 3), keepdim=True) + 1.0)
        c = self.second(b)
        return torch.cat([c.permute(0, 2, 3, 1).flatten(1), y * 0.5 + 1.0], 1)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = models.conv_bn(3, 6, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)


class TableSoftmax(nn.Module):
    """A softmax that runs on the accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(torch.softmax(self.conv(x), 1), 2)


class HostExact(nn.Module):
    """Operators on the host that IEEE 754 and integers define, on and after a network's result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x).flatten(2)
        best, index = torch.topk(y, 4, dim=2)
        kept = torch.gather(y.transpose(1, 2).contiguous().transpose(1, 2), 2, index)
        scaled = torch.where(best > 0.25, 1 / best, -kept / 3)
        return scaled, torch.stack([best, kept], 1).permute(0, 2, 3, 1), (y > 0).sum(2)


class HostFloats(nn.Module):
    """Operators on the host that call the C library, or sum in another order than PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x).permute(0, 2, 3, 1)
        normed = self.norm(y)
        attention = torch.softmax(normed.flatten(1, 2) @ normed.flatten(1, 2).transpose(1, 2), -1)
        return attention, torch.log1p(y.exp()), y.abs().sqrt()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def module(make: Callable[[], nn.Module], *inputs: Tensor) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
    def build() -> tuple[nn.Module, tuple[Tensor, ...]]:
        torch.manual_seed(0)
        made = make()
        if any(isinstance(part, nn.BatchNorm2d) for part in made.modules()):
            models.set_batchnorm_statistics(made, inputs[0])
        return quantized(made, *inputs), inputs

    return build


def int8_file() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network with int8 inputs and outputs."""
    model = mera_torch.load_model(ROOT / "tests" / "tflite_files" / "int8.tflite")
    return model, tuple(torch.as_tensor(x) for x in model.example_inputs())


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, tuple[Tensor, ...]]], float]] = {
    "plain": (module(models.PlainCnn, random(1, 3, 16, 16)), 0),
    "residual": (module(models.Residual, random(2, 3, 17, 23)), 0),
    "squeeze_excite": (module(models.SqueezeExcite, random(1, 3, 24, 24)), 0),
    "inception": (module(models.Inception, random(1, 3, 20, 20)), 0),
    "unet": (module(models.UNet, random(1, 3, 16, 24)), 0),
    "bilinear": (module(Bilinear, random(1, 3, 14, 18)), 0),
    "table_softmax": (module(TableSoftmax, random(1, 3, 10, 10)), 0),
    "host_between": (module(HostBetween, random(1, 3, 9, 11), random(1, 5)), 0),
    "host_softmax": (module(Scores, random(2, 3, 16, 16)), LIBM),
    "host_exact": (module(HostExact, random(1, 3, 15, 15)), 0),
    "host_floats": (module(HostFloats, random(1, 3, 13, 13)), LIBM),
    "int8_file": (int8_file, 0),
}


def write(folder: Path, name: str) -> None:
    """Raises RuntimeError if the targets differ."""
    build, tolerance = CASES[name]
    network, inputs = build()
    case = folder / name
    case.mkdir(parents=True, exist_ok=True)
    deployment = mera_torch.export(network, inputs, case / "deploy", platform="DNAF132S0001", overwrite=True)
    simulated, outputs = (
        pytree.tree_leaves(deployment.get_runner(target)(*inputs)) for target in ("Simulator", "InterpreterHw")
    )
    if not all(map(torch.equal, simulated, outputs)):
        raise RuntimeError(f"{name}: the targets differ")
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for index, tensor in enumerate(tensors):
            np.save(case / f"{kind}_{index}.npy", tensor.detach().contiguous().numpy())
    (case / "tolerance").write_text(f"{tolerance}\n", encoding="utf-8")


def main() -> None:
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or CASES:
        write(folder, name)


if __name__ == "__main__":
    main()
