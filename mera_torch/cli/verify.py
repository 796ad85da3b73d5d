"""Whether a deployment is what was exported."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .app import DeploymentFolder, JsonOption, app, console


@app.command()
def verify(
    deployment: DeploymentFolder,
    target: Annotated[
        list[str] | None, typer.Option(help="InterpreterHw, Simulator, IP; may be repeated. Default: all built.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every file of a deployment and run its golden pair again; the exit code is 1 if anything differs."""
    from ..verify import verify as verified

    found = verified(deployment, target)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        console.print(str(found), soft_wrap=True)
    if not found.equal:
        raise typer.Exit(1)
