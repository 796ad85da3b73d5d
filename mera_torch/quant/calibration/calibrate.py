"""Calibration: running a prepared network on typical inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch.fx import GraphModule

from mera_torch.errors import CalibrationError

from ..graphs.run import Inputs
from .data import EMPTY

ProgressOption = bool | Callable[[str, int, int], object]


def calibrate(
    prepared: GraphModule, batches: Iterable[Inputs], *, progress: ProgressOption = True, total: int | None = None
) -> int:
    """Runs a module from ``prepare_pt2e`` on `batches` (tuples of inputs) for its observers; returns how many there
    were.

    Raises:
        CalibrationError: there was no batch, or a tensor holds NaN or infinity.
    """
    seen = 0
    with torch.no_grad(), bar("calibrating", total, progress) as advance:
        for inputs in batches:
            prepared(*inputs)
            seen += 1
            advance()
    if not seen:
        raise CalibrationError(EMPTY)
    return seen


@contextmanager
def bar(title: str, total: int | None, show: ProgressOption) -> Iterator[Callable[[], object]]:
    if callable(show):
        done = count(1)
        yield lambda: show(title, next(done), total or 0)
        return
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, disable=not show) as drawn:
        task = drawn.add_task(title, total=total)
        yield lambda: drawn.advance(task)
