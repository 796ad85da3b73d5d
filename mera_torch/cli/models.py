"""Importing, explaining and compiling models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import InputOption, JsonOption, ModelFile, PlatformOption, TargetOption, app, emit, imported, working

if TYPE_CHECKING:
    import torch


def write_pt2(model: torch.nn.Module, inputs: tuple[Any, ...], output: Path) -> None:
    """Exports the model and writes it, whole or not at all."""
    from ..atomic import atomic_file
    from ..converters.exported import save_pt2

    with atomic_file(output) as path:
        save_pt2(model, inputs, path)


@app.command()
def convert(
    model: ModelFile,
    output: Annotated[Path | None, typer.Option(help="Write the network there, as a .pt2 file.")] = None,
    input: InputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import a model of any format; show what it contains, and write it as a .pt2 file if asked."""
    from ..contents import contents

    with working(as_json, f"import {model.name}"):
        found = imported(model, input)
        held = contents(found)
        if output is not None:
            write_pt2(found, found.example_inputs(), output)
    emit(as_json, {**held.to_dict(), "output": None if output is None else str(output)}, held)


@app.command()
def explain(model: ModelFile, input: InputOption = None, as_json: JsonOption = False) -> None:
    """Where each operator of a model runs and, if on the host, which constraint it broke."""
    from .. import explain as explained

    with working(as_json, f"explain {model.name}"):
        found = explained(imported(model, input))
    emit(as_json, found.to_dict(), found)


def build_options(given: list[str]) -> dict[str, Any]:
    """build_config of what --build-config says: TOML files and KEY=VALUE, later ones winning.

    Raises ConfigError for neither; what a key may be is checked by build_config itself.
    """
    import sys

    from ..errors import ConfigError, StorageError

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        try:
            if equals and not text.endswith(".toml"):
                values = tomllib.loads(f"{key} = {toml_value(value)}")
            else:
                values = tomllib.loads(Path(text).read_text(encoding="utf-8"))
        except OSError as error:
            raise StorageError(f"--build-config: {text!r} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"--build-config is KEY=VALUE or a TOML file; {text!r} is neither: {error}") from error
        scheduler = {**found.get("scheduler_config", {}), **values.pop("scheduler_config", {})}
        found.update(values)
        if scheduler:
            found["scheduler_config"] = scheduler
    return found


def toml_value(value: str) -> str:
    """A value as TOML has it: words need quotes there, and Python's booleans are welcome."""
    if value.lower() in ("true", "false"):
        return value.lower()
    try:
        float(value)
    except ValueError:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return value


@app.command()
def compile(
    model: ModelFile,
    output: Annotated[Path, typer.Option(help="The folder of the deployment.")],
    platform: PlatformOption = "SAKURA_1",
    target: TargetOption = "Simulator",
    input: InputOption = None,
    build_config: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE|FILE.toml",
            help="Options of the compiler, such as max_tile_height=8 or scheduler_config.mode=Slow.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a deployment that is there.")] = False,
    progress: Annotated[bool, typer.Option(help="A progress bar, on a terminal.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Compile a quantized model into a deployment on disk."""
    from .. import export

    options = build_options(build_config or [])
    with working(as_json or not progress, f"compile {model.name}") as tell:
        deployment = export(
            imported(model, input), None, output, platform=platform, target=target, build_config=options,
            overwrite=overwrite, progress=tell,
        )  # fmt: skip
    regions, host = len(deployment.regions), deployment.host_operators
    document = {
        "output": str(output), "platform": deployment.platform.name, "target": target, "regions": regions,
        "host_operators": host, "transposes": deployment.transposes,
        "lower_bound_cycles": deployment.lower_bound_cycles, "needs_torch": deployment.needs_torch,
        "files": sorted(path.name for path in Path(output).iterdir()),
    }  # fmt: skip
    where = f"{regions} region{'s'[: regions != 1]} for {deployment.platform.name}, {len(host)} operators on the host"
    shown = [f"{output}: {where}"] + ([f"needs torch: {deployment.needs_torch}"] if deployment.needs_torch else [])
    emit(as_json, document, *shown)
