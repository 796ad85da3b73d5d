"""The rungs of the ladder against each other, and where two of them part."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..exits import DIFFERENT
from .app import JsonOption, OwnPlatformOption, SeedOption, app, emit, imported, in_terms_of_options, working
from .deployments import PreprocessOption


def complete_rungs(incomplete: str) -> list[str]:
    return [rung for rung in ("eager", "oracle", "InterpreterHw", "Simulator", "IP") if rung.startswith(incomplete)]


@app.command()
def compare(
    model: Annotated[Path, typer.Argument(help="A deployment, or a quantized model: TFLite, ONNX, .pt2, ...")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="FILE|NAME=SIZES[:DTYPE]",
            help="A .npy file or image for each input, in order; default: random. Or a shape, as of `mera compile`.",
        ),
    ] = None,
    platform: OwnPlatformOption = None,
    preprocess: PreprocessOption = None,
    rung: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these: eager, oracle, InterpreterHw, Simulator, IP; default: all that can run.",
            autocompletion=complete_rungs,
        ),
    ] = None,
    device: Annotated[list[str] | None, typer.Option(metavar="ADDRESS", help="Of rung IP, such as emulated:0.")] = None,
    every: Annotated[bool, typer.Option("--all", help="TFLite: one row a tensor, not one a kind of operator.")] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Run a model every way there is and compare the bytes; the first node and instruction that differ are named.

    A TFLite file is also compared with TFLite's reference kernels, tensor by tensor. The exit code is 1 if something
    differs.
    """
    from ..compare import compare_tflite
    from ..ladder import climb, specs_of_model
    from ..samples import preprocess as read_spec
    from ..samples import read_inputs

    tflite = _is_tflite(model)
    shape = [text for text in data or () if "=" in text and not Path(text).exists()]
    files = [Path(text) for text in data or () if text not in shape]
    with working(as_json, "compare") as tell:
        specs, subject = specs_of_model(model, lambda: imported(model, shape))
        inputs = read_inputs(files, specs, read_spec(preprocess or [])) if files else None
        document: dict[str, Any] = {}
        shown: list[Any] = []
        equal = True
        if tflite and rung is None:
            reference = compare_tflite(model, inputs, platform=platform or "SAKURA_1", seed=seed, progress=tell)
            document, equal = reference.to_dict(), reference.equal
            shown = [reference.table(every), reference.summary()]
        ladder = climb(
            subject, inputs, platform=platform, rungs=rung, seed=seed, device_ids=device, progress=tell, name=str(model)
        )
    document = {**document, "ladder": ladder.to_dict()} if document else ladder.to_dict()
    document["equal"] = equal = equal and ladder.equal
    emit(as_json, document, *shown, ladder)
    if not equal:
        raise typer.Exit(DIFFERENT)


def _is_tflite(path: Path) -> bool:
    from ..converters.files import format_of

    return path.is_file() and format_of(path) == "tflite"


@app.command()
def bisect(
    file: Annotated[Path, typer.Argument(help="A deployment, a model file or a DNA graph.")],
    platform: OwnPlatformOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Every node for itself, on random int8: the first on which oracle, interpreter and simulator differ."""
    from ..bisect import bisect_file

    found: dict[str, Any] = {}
    with working(as_json, "bisect") as tell, in_terms_of_options():
        for name, difference in bisect_file(file, platform, seed, lambda i, n: tell("nodes", i, n) if tell else None):
            found[name] = difference
    rows = [{"region": name, "difference": None if d is None else _plain(d)} for name, d in found.items()]
    emit(
        as_json,
        {"equal": not any(found.values()), "regions": rows},
        *(f"{name}: {difference or 'no difference'}" for name, difference in found.items()),
    )
    if any(found.values()):
        raise typer.Exit(DIFFERENT)


def _plain(difference: Any) -> dict[str, Any]:
    """A Difference as JSON's types."""
    values = asdict(difference)
    values["node"] = {key: values["node"][key] for key in ("op", "name", "layer", "source")}
    return values
