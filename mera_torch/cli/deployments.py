"""Running deployments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from .app import DeploymentFolder, JsonOption, SeedOption, app, complete_targets, emit, working

PreprocessOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PRESET|KEY=VALUE|FILE.toml",
        help="How images become inputs: imagenet, unit, symmetric or raw; resize=256, crop=224, scale=0.00392, "
        "mean=0.5,0.5,0.5, std=0.5,0.5,0.5, layout=NCHW, channels=RGB; or a file of these. Several are taken together.",
    ),
]


@app.command()
def run(
    deployment: DeploymentFolder,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="A .npy file or an image for each input, in order, or one .npz; none: random.", metavar="[INPUT]..."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the outputs there, as .npz.")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Another target than it was compiled for.", autocompletion=complete_targets),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="Run on this device (target IP), such as emulated:0.")
    ] = None,
    preprocess: PreprocessOption = None,
    repeat: Annotated[int, typer.Option(help="Run so often, and tell the latencies.", min=1)] = 1,
    warmup: Annotated[int, typer.Option(help="Runs before the clock starts.", min=0)] = 0,
    seed: SeedOption = 0,
    top: Annotated[int, typer.Option(help="Show so many of the best classes.", min=0)] = 0,
    labels: Annotated[Path | None, typer.Option(help="Names of classes, one a line; implies --top 5.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a deployment on arrays, images or random inputs."""
    from ..execute import best, describe, executable, latency, read_labels, save, timed
    from ..samples import preprocess as read_spec
    from ..samples import random_inputs, read_inputs

    names = read_labels(labels) if labels else None
    with working(as_json, "run") as tell:
        found = executable(deployment, target, device)
        how = read_spec(preprocess or [])
        arrays = read_inputs(inputs, found.specs, how) if inputs else random_inputs(found.specs, seed)
        results: list[Any] = []

        def once() -> None:
            results[:] = found.run(arrays)

        timed(once, warmup)
        seconds = timed(once, repeat, tell)
    outputs = dict(zip(found.names, results, strict=True))
    if output is not None:
        save(output, outputs)
    count = top or (5 if names else 0)
    scores = best(results[0], count, names) if count else []
    document: dict[str, Any] = {
        "deployment": str(deployment),
        "target": found.target,
        "host": found.by,
        "inputs": [{"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in found.specs],
        "random": not inputs,
        "outputs": [describe(name, array) for name, array in outputs.items()],
        "latency_ms": latency(seconds),
    }
    if count:
        document["top"] = scores
    shown: list[Any] = [_line(row) for row in document["outputs"]]
    shown += [_top(rows) for rows in scores]
    if repeat > 1:
        shown.append(_latency(document["latency_ms"], found.target))
    emit(as_json, document, *shown)


def _line(row: dict[str, Any]) -> str:
    largest = f", largest at {row['largest_at']}" if "largest_at" in row else ""
    return f"{row['name']}: {row['dtype']}{row['shape']}{largest}"


def _top(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for header in ("class", "score", "label"):
        table.add_column(header, justify="left" if header == "label" else "right")
    for row in rows:
        table.add_row(str(row["class"]), f"{row['score']:.6g}", row.get("label", ""))
    return table


def _latency(ms: dict[str, Any], target: str) -> str:
    figures = ", ".join(f"{name} {ms[name]:.3f}" for name in ("mean", "std", "min", "median", "p90", "p99", "max"))
    return f"{ms['runs']} runs on this host (target {target}), ms: {figures}; {ms['per_second']:.1f} runs a second"
