"""`mera demo`: a trained network quantized, compiled, and run on InterpreterHw and Simulator, with what came of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console, Group
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

import mera_torch

from .errors import ConfigError, InternalError
from .pictures import picture, shrunk
from .platform import find
from .tables import machine

MODELS = ("digits", "mobilenet_v2", "efficientnet_lite0")
SHOWN = 6
MARGIN = 4  # of a digit, left out of its picture
PHOTO_SIDE = 28
FLOAT, INT8 = "PyTorch, float32", "PyTorch, INT8 (q/dq)"
INTERPRETER, SIMULATOR = "InterpreterHw", "Simulator"


@dataclass(frozen=True)
class Task:
    """A classifier with the data to show it on."""

    title: str
    model: nn.Module
    inputs: Sequence[Tensor]  # each of batch 1
    labels: Sequence[int]
    calibration: Sequence[tuple[Tensor, ...]]
    calibrated_on: str
    config: Mapping[str, Any]  # of mera_torch.quantize
    names: Sequence[str]
    pictures: Mapping[int, np.ndarray]  # of some of the inputs, by index


@dataclass
class Outcome:
    """What the demo measured. Accuracies are parts of the images, 0..1."""

    images: int
    accuracy: dict[str, float] = field(default_factory=dict)
    answers: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    byte_equal: bool = False
    metrics: dict[str, Any] = field(default_factory=dict)


def digits_task() -> Task:
    """The project's own digit network on its 200 held-out digits; nothing is downloaded."""
    from .digits import calibration_digits, held_out_digits, trained_digit_net

    digits, calibration = held_out_digits(), calibration_digits()
    ink = (digits.images[:, 0] * 255).round().to(torch.uint8).numpy()
    return Task(
        title="a digit CNN (43 k parameters), 200 held-out digits",
        model=trained_digit_net(),
        inputs=torch.split(digits.images, 1),
        labels=digits.labels.tolist(),
        calibration=[(image,) for image in torch.split(calibration.images, 1)],
        calibrated_on=f"{len(calibration)} training digits",
        config={},
        names=[str(digit) for digit in range(10)],
        pictures={index: ink[index, MARGIN:-MARGIN, MARGIN:-MARGIN] for index in spread(len(digits))},
    )


def photos_task(name: str) -> Task:
    """A network of the zoo with its real ImageNet weights, on the zoo's 20 labelled photos; fetched at first use."""
    from . import zoo_models

    entry, shown = zoo_models.MODELS[name], zoo_models.photos()
    inputs = [entry.preprocess(photo.data) for photo in shown]
    return Task(
        title=f"{name} (ImageNet weights), {len(shown)} labelled photos",
        model=entry.load(),
        inputs=inputs,
        labels=[photo.label for photo in shown],
        calibration=[(image.flip(3),) for image in inputs],
        calibrated_on="the photos' mirror images, channels equalized",
        config={"equalize": True},
        names=zoo_models.class_names(),
        pictures={index: shrunk(zoo_models.crop(shown[index].data), PHOTO_SIDE) for index in spread(len(shown))},
    )


def spread(count: int) -> list[int]:
    """SHOWN indices, evenly spread over count."""
    return [(2 * index + 1) * count // (2 * SHOWN) for index in range(SHOWN)]


def task(name: str) -> Task:
    """The task of one of MODELS."""
    if name not in MODELS:
        raise ConfigError(f"no demo model '{name}'; there are {', '.join(MODELS)}")
    return digits_task() if name == "digits" else photos_task(name)


def measure(task: Task, platform: str | Path, folder: Path, console: Console) -> Outcome:
    """Quantizes, compiles and runs the task's network; everything that the demo prints is in the outcome."""
    example = (task.inputs[0],)
    outcome = Outcome(images=len(task.labels))
    quantized = mera_torch.quantize(
        task.model, example, list(task.calibration), config=task.config, progress=not console.quiet
    )
    with console.status(f"compiling for {platform}"):
        deployment = mera_torch.export(quantized, example, folder / "deployment", platform=platform)
    interpreter, simulator = (deployment.get_runner(target) for target in (INTERPRETER, SIMULATOR))
    runners = {FLOAT: task.model, INT8: quantized, INTERPRETER: interpreter, SIMULATOR: simulator}

    outputs: dict[str, list[Tensor]] = {}
    with Progress(console=console, transient=True) as progress, torch.no_grad():
        for where, run in runners.items():
            start = time.perf_counter()
            outputs[where] = [run(image) for image in progress.track(task.inputs, description=where)]
            outcome.seconds[where] = (time.perf_counter() - start) / outcome.images
            outcome.answers[where] = [int(output.argmax()) for output in outputs[where]]
            outcome.accuracy[where] = float(np.mean(np.equal(outcome.answers[where], task.labels)))
    outcome.byte_equal = all(map(torch.equal, outputs[INTERPRETER], outputs[SIMULATOR]))
    outcome.metrics = simulator.metrics()
    return outcome


def run(name: str = "digits", platform: str | Path = "SAKURA_1", console: Console | None = None) -> Outcome:
    """The whole demo: measures and prints.

    Raises ZooError if real weights cannot be fetched, InternalError if InterpreterHw and Simulator differ.
    """
    console = console or Console()
    find(platform)
    shown = task(name)
    console.print(Text.assemble(("mera demo", "bold"), f": {shown.title}; calibrated on {shown.calibrated_on}"))
    with tempfile.TemporaryDirectory(prefix="mera-demo-") as folder:
        outcome = measure(shown, platform, Path(folder), console)
    console.print(gallery(shown, outcome, console), answers(outcome), machine(outcome.metrics), sep="\n")
    if not outcome.byte_equal:
        raise InternalError(f"InterpreterHw and Simulator differ for {name} on {platform}: please report it")
    return outcome


def gallery(task: Task, outcome: Outcome, console: Console) -> Columns:
    """The first few images, each with what the simulated accelerator takes it for."""
    cards = []
    for index, pixels in task.pictures.items():
        answer, label = outcome.answers[SIMULATOR][index], task.labels[index]
        style = "green" if answer == label else "red"
        name = Text(task.names[answer], style, justify="center", no_wrap=True, overflow="ellipsis")
        cards.append(Group(picture(pixels, colour=console.color_system is not None), name))
    return Columns(cards, width=max(pixels.shape[1] for pixels in task.pictures.values()))


def answers(outcome: Outcome) -> Table:
    """Accuracy of every rung, and how it compares with float."""
    table = Table(box=SIMPLE_HEAD, title=f"{outcome.images} images", caption=_equality(outcome), title_justify="left")
    table.add_column("run by")
    for header in ("top-1", "same answer as float", "ms an image"):
        table.add_column(header, justify="right")
    for where, right in outcome.accuracy.items():
        same = sum(map(int.__eq__, outcome.answers[where], outcome.answers[FLOAT]))
        milliseconds = f"{outcome.seconds[where] * 1e3:.1f}"
        table.add_row(where, f"{right:.1%}", f"{same} of {outcome.images}", milliseconds)
    return table


def _equality(outcome: Outcome) -> Text:
    if outcome.byte_equal:
        return Text(f"InterpreterHw and Simulator: every byte equal, on all {outcome.images} images", "green")
    return Text("InterpreterHw and Simulator differ", "red")
