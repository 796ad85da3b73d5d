"""Deployments for the C runtime's own tests: python tests/runtime_folders.py FOLDER COUNT."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from compiled import quantized
from random_modules import random_module
from test_runtime import TAILS, Tailed
from torch import nn

import mera_torch


def write(folder: Path, count: int) -> None:
    """One for each tail of test_runtime, then random networks; programs for a platform with little SRAM to clear."""
    for index in range(count):
        torch.manual_seed(index)
        if index < len(TAILS):
            body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))
            model, data = Tailed(body, list(TAILS.values())[index]), torch.randn(1, 3, 6, 8)
        else:
            model, data = random_module(index)
        converted = quantized(model, data)
        mera_torch.export(converted, (data,), folder / str(index), platform="DNAF132S0001", overwrite=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
