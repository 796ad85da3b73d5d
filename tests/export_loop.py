"""For test_project_files.py: on each line of standard input, MODE PATH, forks a child that writes deployments there for
ever, one small network after another, until it is killed; prints the pid of the child, and how it ended.

MODE: exchange, renames (as where folders cannot be exchanged) or fresh (each in a folder of its own).
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import torch
from compiled import quantized
from torch import nn

from mera_torch import atomic
from mera_torch.backend.capture import capture
from mera_torch.compile import Built, build, settings_of
from mera_torch.project import Deployment

SETTINGS = settings_of("DNAF132S0001", "Simulator", None)


def networks() -> list[Built]:
    """Two that differ in every file."""
    torch.manual_seed(0)
    data = torch.randn(1, 3, 6, 6)
    models = [quantized(nn.Conv2d(3, channels, 3), data) for channels in (4, 7)]
    found = [build(capture(model, (data,)), SETTINGS) for model in models]
    for built in found:
        for region in built.regions:
            region.compile()
    return found


def write(path: Path, built: Built, overwrite: bool = True) -> Deployment:
    return Deployment.create(path, built, SETTINGS.target, SETTINGS.config, overwrite)


def loop(mode: str, path: Path, found: list[Built], begin: int) -> None:
    if mode == "renames":
        atomic._exchange = lambda one, other: False
    for index in itertools.count(begin):
        if mode == "fresh":
            write(path / str(index), found[index % 2], overwrite=False)
        else:
            write(path, found[index % 2])


def main() -> None:
    found = networks()
    for begin, line in enumerate(sys.stdin):
        mode, _, path = line.rstrip("\n").partition(" ")
        pid = os.fork()
        if pid == 0:
            loop(mode, Path(path), found, begin)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
