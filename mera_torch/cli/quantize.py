"""Quantizing models."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import InputOption, JsonOption, ModelFile, app, console, emit, imported, working
from .deployments import PreprocessOption
from .models import toml_value, write_pt2

if TYPE_CHECKING:
    from ..quant import QuantConfig
    from ..quant.quality.metrics import Metrics

_OF_CONFIG = "Field `{}` of the configuration."


def _list_settings(asked: bool) -> None:
    if asked:
        from rich.markdown import Markdown

        from ..quant import QuantConfig

        text = QuantConfig.describe()
        console.print(Markdown(text) if console.is_terminal else text, soft_wrap=not console.is_terminal)
        raise typer.Exit


def _field(name: str, **options: Any) -> Any:
    return typer.Option(help=_OF_CONFIG.format(name), **options)


@app.command()
def quantize(
    model: ModelFile,
    calibration: Annotated[
        Path, typer.Option(help="Typical inputs: a .npy or .npz file, or a folder of images, .npy or .npz files.")
    ],
    output: Annotated[
        Path, typer.Option(help="Write the quantized network there, as a .mera file if so called, else as .pt2.")
    ],
    input: InputOption = None,
    preprocess: PreprocessOption = None,
    samples: Annotated[int, typer.Option(help="Use at most so many of them; 0: all.", min=0)] = 0,
    config: Annotated[str | None, typer.Option(metavar="FILE.toml", help="The configuration.")] = None,
    preset: Annotated[str | None, typer.Option(help="A configuration by its name, such as DNA_SAKURA_II.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of the configuration, such as seed=1; as in TOML."),
    ] = None,
    list_settings: Annotated[
        bool, typer.Option("--list-settings", callback=_list_settings, is_eager=True, help="Show all fields; then end.")
    ] = False,
    observer: Annotated[str | None, _field("activation_observer")] = None,
    histogram_bins: Annotated[int | None, _field("histogram_bins")] = None,
    averaging_constant: Annotated[float | None, _field("averaging_constant")] = None,
    per_channel: Annotated[
        bool | None, typer.Option("--per-channel/--per-tensor", help=_OF_CONFIG.format("per_channel_weights"))
    ] = None,
    fixed_ranges: Annotated[bool | None, _field("fixed_ranges")] = None,
    equalize: Annotated[bool | None, _field("equalize")] = None,
    correct_bias: Annotated[bool | None, _field("correct_bias")] = None,
    exclude: Annotated[list[str] | None, _field("exclude", metavar="PATTERN")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Keep the calibration's state there; go on from it if it exists.")
    ] = None,
    quality: Annotated[int, typer.Option(help="Compare so many samples with the float model.", min=0)] = 4,
    as_json: JsonOption = False,
) -> None:
    """Quantize a float model to int8, calibrated on typical inputs."""
    from ..atomic import check_folder
    from ..quant import ModelQuantizer
    from ..quant.calibration.feed import Feed
    from ..quant.findings import table

    given = {
        "activation_observer": observer, "histogram_bins": histogram_bins, "averaging_constant": averaging_constant,
        "per_channel_weights": per_channel, "fixed_ranges": fixed_ranges, "equalize": equalize,
        "correct_bias": correct_bias, "exclude": tuple(exclude) if exclude else None,
    }  # fmt: skip
    options = _configuration(config, preset, {**_settings(settings or []), **_without_none(given)})
    check_folder(output)
    with working(as_json, f"quantize {model.name}") as tell:
        found = imported(model, input)
        data = Feed(calibration, found.info.inputs, preprocess=preprocess or None, limit=samples)
        quantizer = ModelQuantizer(found, config=options, model_name=model.stem)
        quantized = quantizer.calibrate(data, tell or False, checkpoint).quantize(progress=tell or False)
        if output.suffix == ".mera":
            quantized.save(output)
        else:
            write_pt2(quantized.module, found.example_inputs(), output)
        measured = quantized.measure_quantization_quality(islice(data, quality), progress=False) if quality else None
        errors = [output.error for output in measured.outputs] if measured else []
    wrong, seen = [finding for finding in quantized.findings if finding.open], quantized.calibration
    document = {
        "model": str(model), "output": str(output), "samples": seen["samples"], "left_over": seen["left_over"],
        "config": options.to_dict(), "quality": [{"psnr_db": error.psnr} for error in errors],
        "findings": [finding.to_dict() for finding in quantized.findings],
    }  # fmt: skip
    shown = f"{output}: calibrated on {seen['samples']} sample{'s' if seen['samples'] != 1 else ''}"
    if seen["left_over"]:
        shown += f" ({seen['left_over']} more do not fill a batch)"
    emit(
        as_json,
        document,
        *([table(wrong)] if wrong else []),
        shown,
        *(_said(index, error) for index, error in enumerate(errors)),
    )


def _configuration(config: str | None, preset: str | None, given: dict[str, Any]) -> QuantConfig:
    """Raises ConfigError if two say what to begin with, or a key or value is wrong."""
    from ..errors import ConfigError
    from ..quant import QuantConfig

    if config is not None and preset is not None:
        raise ConfigError("--config and --preset: give one of them; a .toml file may name a preset itself")
    start = QuantConfig.of(config) if preset is None else QuantConfig.preset(preset)
    return QuantConfig.from_dict({**start.to_dict(), **given})


def _settings(given: list[str]) -> dict[str, Any]:
    """The fields that --set gives, values as TOML has them; words need no quotes. Raises ConfigError for anything
    else."""
    import sys

    from ..errors import ConfigError

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        for spelled in (value, toml_value(value)):
            try:
                read = tomllib.loads(f"{key} = {spelled}") if equals else {}
            except ValueError:
                continue
            found.update(read)
            break
        if not equals or key.strip() not in found:
            raise ConfigError(f"--set is KEY=VALUE, such as seed=1; got {text!r}")
    return found


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}


def _said(index: int, found: Metrics) -> str:
    return f"output {index}: {'equal to' if found.equal else f'PSNR {found.psnr:.1f} dB against'} the float model's"
