"""The compiler's stages as text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..dump import STAGES
from .app import JsonOption, OwnPlatformOption, app, emit, working


def complete_stages(incomplete: str) -> list[str]:
    return [stage for stage in STAGES if stage.startswith(incomplete)]


@app.command()
def dump(
    file: Annotated[Path, typer.Argument(help="A deployment, a model file, a DNA graph or a program.")],
    stage: Annotated[
        str, typer.Option(help=f"{', '.join(STAGES[:-1])} or {STAGES[-1]}.", autocompletion=complete_stages)
    ] = "isa",
    platform: OwnPlatformOption = None,
    option: Annotated[list[str] | None, typer.Option(help="Of the compiler, such as max_tile_height=4.")] = None,
    data: Annotated[bool, typer.Option("--data", help="Stage graph: with the constants' data.")] = False,
    as_json: JsonOption = False,
) -> None:
    """One stage of the compiler as text: what it decided, for every layer, buffer, job or instruction."""
    from ..dump import dump as dumped
    from ..dump import parse_options

    with working(as_json, f"dump {stage}"):
        found = list(dumped(file, stage, platform, parse_options(option or []), data))
    document = {"stage": stage, "regions": [{"name": name, "text": text} for name, text in found]}
    if as_json:
        emit(as_json, document)
    for name, text in [] if as_json else found:
        typer.echo(f"# {name}\n{text}")
