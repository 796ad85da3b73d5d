"""Quantizing models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import InputOption, JsonOption, ModelFile, app, console, emit, imported, working
from .deployments import PreprocessOption
from .models import toml_value, write_pt2

if TYPE_CHECKING:
    from ..converters import ImportedModel
    from ..quant import QuantConfig
    from ..samples import Spec

_OF_CONFIG = "Field `{}` of the configuration."


def _list_settings(asked: bool) -> None:
    if asked:
        from ..quant import QuantConfig

        console.print(QuantConfig.describe(), markup=False, soft_wrap=True)
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
    from ..quant.findings import table
    from ..samples import Samples
    from ..samples import preprocess as read_spec

    given = {
        "activation_observer": observer, "histogram_bins": histogram_bins, "averaging_constant": averaging_constant,
        "per_channel_weights": per_channel, "fixed_ranges": fixed_ranges, "equalize": equalize,
        "correct_bias": correct_bias, "exclude": tuple(exclude) if exclude else None,
    }  # fmt: skip
    options = _configuration(config, preset, {**_settings(settings or []), **_without_none(given)})
    check_folder(output)
    with working(as_json, f"quantize {model.name}") as tell:
        found = imported(model, input)
        data = Samples(calibration, _specs(found), read_spec(preprocess or []), samples)
        quantizer = ModelQuantizer(found, config=options, model_name=model.stem)
        quantized = quantizer.calibrate(data, tell or False, checkpoint).quantize(progress=tell or False)
        qualities = _quality(found, quantized, _Tensors(data), quality)
        if output.suffix == ".mera":
            quantized.save(output)
        else:
            write_pt2(quantized.module, found.example_inputs(), output)
    wrong = [finding for finding in quantized.findings if finding.open]
    document = {
        "model": str(model), "output": str(output), "samples": quantized.calibration["batches"],
        "left_over": data.left_over, "config": options.to_dict(), "quality": qualities,
        "findings": [finding.to_dict() for finding in quantized.findings],
    }  # fmt: skip
    shown = f"{output}: calibrated on {document['samples']} samples"
    if data.left_over:
        shown += f" ({data.left_over} more do not fill a batch)"
    emit(
        as_json,
        document,
        *([table(wrong)] if wrong else []),
        shown,
        *(f"output {i}: {_said(quality['psnr_db'])}" for i, quality in enumerate(qualities)),
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
