"""Importing, explaining, quantizing and compiling models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import InputOption, JsonOption, ModelFile, PlatformOption, TargetOption, app, emit, imported, working
from .deployments import PreprocessOption

if TYPE_CHECKING:
    import torch

    from ..converters import ImportedModel
    from ..samples import Spec


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


@app.command()
def quantize(
    model: ModelFile,
    calibration: Annotated[
        Path, typer.Option(help="Typical inputs: a .npy or .npz file, or a folder of images, .npy or .npz files.")
    ],
    output: Annotated[Path, typer.Option(help="Write the quantized network there, as a .pt2 file.")],
    input: InputOption = None,
    preprocess: PreprocessOption = None,
    samples: Annotated[int, typer.Option(help="Use at most so many of them; 0: all.", min=0)] = 0,
    observer: Annotated[
        str, typer.Option(help="How ranges are found: histogram, minmax or moving_average.")
    ] = "histogram",
    histogram_bins: Annotated[int, typer.Option(help="Bins on each side of zero, 128 to 65536.")] = 2048,
    averaging_constant: Annotated[float, typer.Option(help="Weight of the newest batch in a moving average.")] = 0.01,
    per_channel: Annotated[
        bool, typer.Option("--per-channel/--per-tensor", help="One weight scale a channel, or one a tensor.")
    ] = True,
    fixed_ranges: Annotated[
        bool, typer.Option(help="[0, 1] for sigmoids and [-1, 1] for tanh, whatever was seen.")
    ] = True,
    equalize: Annotated[bool, typer.Option(help="Equalize the channels' ranges before calibration.")] = False,
    correct_bias: Annotated[bool, typer.Option(help="Take the weights' mean error out of the biases.")] = True,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Modules that stay in float, such as 'head.*'.")
    ] = None,
    quality: Annotated[int, typer.Option(help="Compare so many samples with the float model.", min=0)] = 4,
    as_json: JsonOption = False,
) -> None:
    """Quantize a float model to int8, calibrated on typical inputs."""
    from .. import quantize as quantized
    from ..samples import Samples
    from ..samples import preprocess as read_spec

    config = {
        "activation_observer": observer, "histogram_bins": histogram_bins, "averaging_constant": averaging_constant,
        "per_channel_weights": per_channel, "fixed_ranges": fixed_ranges, "equalize": equalize,
        "correct_bias": correct_bias, "exclude": tuple(exclude or ()),
    }  # fmt: skip
    with working(as_json, f"quantize {model.name}") as tell:
        found = imported(model, input)
        given = Samples(calibration, _specs(found), read_spec(preprocess or []), samples)
        inputs = _Tensors(given)
        result = quantized(found, found.example_inputs(), inputs, config=config, progress=tell or False)
        qualities = _quality(found, result, inputs, quality)
        write_pt2(result, found.example_inputs(), output)
    document = {
        "model": str(model), "output": str(output), "samples": len(given), "left_over": given.left_over,
        "config": config, "quality": qualities,
    }  # fmt: skip
    shown = [f"{output}: calibrated on {len(given)} samples"]
    if given.left_over:
        shown[0] += f" ({given.left_over} more do not fill a batch)"
    emit(
        as_json,
        document,
        *shown,
        *(f"output {i}: {_said(quality['psnr_db'])}" for i, quality in enumerate(qualities)),
    )


def _specs(model: ImportedModel) -> list[Spec]:
    from ..samples import Spec

    return [Spec(t.name, t.shape, str(t.dtype).removeprefix("torch.")) for t in model.info.inputs]


class _Tensors:
    """Samples as torch's tensors."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Any:
        import torch

        return (tuple(torch.from_numpy(array) for array in arrays) for arrays in self.samples)


def _said(decibels: float | None) -> str:
    return "equal to the float model's" if decibels is None else f"PSNR {decibels:.1f} dB against the float model's"


def _quality(model: Any, quantized: Any, inputs: Any, count: int) -> list[dict[str, float | None]]:
    """Each output's PSNR over the first samples."""
    from itertools import islice

    import torch
    from torch.utils import _pytree as pytree

    from ..ladder import psnr

    pairs: list[list[tuple[Any, Any]]] = []
    with torch.no_grad():
        for arrays in islice(inputs, count):
            wanted, got = (pytree.tree_leaves(run(*arrays)) for run in (model, quantized))
            pairs.append([(a.numpy(), b.numpy()) for a, b in zip(wanted, got, strict=True)])
    return [{"psnr_db": psnr([w for w, _ in rows], [g for _, g in rows])} for rows in zip(*pairs, strict=True)]


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
                values = tomllib.loads(f"{key} = {_toml_value(value)}")
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


def _toml_value(value: str) -> str:
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
