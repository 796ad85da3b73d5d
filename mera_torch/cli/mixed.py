"""Which operators int8 harms, and the fewest of them that must compute in BF16 or float."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import InputOption, JsonOption, ModelFile, app, complete_platforms, emit, imported, working
from .deployments import PreprocessOption

if TYPE_CHECKING:
    from ..converters import ImportedModel

CalibrationOption = Annotated[
    Path, typer.Option(help="Typical inputs: a .npy or .npz file, or a folder of images, .npy or .npz files.")
]
DataOption = Annotated[
    Path | None, typer.Option(help="Inputs that the score is measured on, as --calibration; default: the same.")
]
SamplesOption = Annotated[int, typer.Option(help="Calibrate on at most so many batches; 0: all.", min=0)]
ScoredOption = Annotated[int, typer.Option(help="Measure on at most so many batches; 0: all.", min=0)]
ConfigOption = Annotated[str | None, typer.Option(metavar="FILE.toml|PRESET", help="Options of quantization.")]
MetricOption = Annotated[str, typer.Option(help="sqnr (dB), top1 (agreement with float in %) or kl (nats).")]
CandidatesOption = Annotated[
    list[str] | None,
    typer.Option("--candidate", metavar="PATTERN", help="Only operators, modules or nodes like this; may be repeated."),
]


@app.command()
def sensitivity(
    model: ModelFile,
    calibration: CalibrationOption,
    data: DataOption = None,
    input: InputOption = None,
    preprocess: PreprocessOption = None,
    samples: SamplesOption = 0,
    scored: ScoredOption = 8,
    config: ConfigOption = None,
    metric: MetricOption = "sqnr",
    mode: Annotated[
        str, typer.Option(help="only: one operator in int8, nothing else; leave: all in int8 but one.")
    ] = "only",
    dtype: Annotated[str, typer.Option(help="What the others compute in: float or bf16.")] = "float",
    candidate: CandidatesOption = None,
    top: Annotated[int, typer.Option(help="Show so many; 0: all. (JSON has all.)", min=0)] = 20,
    as_json: JsonOption = False,
) -> None:
    """Rank the operators of a float model by what int8 does to each of them."""
    from ..quant.mixed.sensitivity import sensitivity as ranked

    with working(as_json, f"sensitivity of {model.name}") as tell:
        found = imported(model, input)
        calibrated, shown = _data(found, calibration, data, preprocess, samples, scored)
        result = ranked(
            found, found.example_inputs(), shown, config, calibration=calibrated, metric=metric, mode=mode,
            dtype=dtype, candidates=candidate, progress=tell or False,
        )  # fmt: skip
    document = {"model": str(model), **result.to_dict()}
    left = len(result.rows) - top if top else 0
    if left > 0:
        result.rows = result.rows[:top]
    emit(as_json, document, result, *([f"and {left} more: --top 0 shows all"] if left > 0 else []))


@app.command()
def mixed(
    model: ModelFile,
    calibration: CalibrationOption,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Write the configuration there, for --config."),
    ] = None,
    data: DataOption = None,
    accuracy: Annotated[
        float | None, typer.Option(help="The score to reach, in the metric's unit; the search ends there.")
    ] = None,
    budget_cycles: Annotated[int | None, typer.Option(help="The cycles that an inference may take at most.")] = None,
    platform: Annotated[
        str, typer.Option(help="Whose cycles: an identifier or a TOML file.", autocompletion=complete_platforms)
    ] = "SAKURA_II",
    dtype: Annotated[str, typer.Option(help="What is kept out of int8 computes in: bf16 or float.")] = "bf16",
    input: InputOption = None,
    preprocess: PreprocessOption = None,
    samples: SamplesOption = 0,
    scored: ScoredOption = 8,
    config: ConfigOption = None,
    metric: MetricOption = "sqnr",
    candidate: CandidatesOption = None,
    host_gops: Annotated[float, typer.Option(help="The host's rate, in 1e9 operations a second.")] = 8.0,
    plot: Annotated[Path | None, typer.Option(help="Draw the trade-off there: .png, .svg or .pdf.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the fewest operators that must leave int8 for an accuracy or within a budget of cycles."""
    from ..atomic import atomic_file, check_folder
    from ..quant.mixed.search import search
    from ..quant.quality.plots import picture_kind

    for path in filter(None, (output, plot)):
        check_folder(path)
    if plot is not None:
        picture_kind(plot)
    with working(as_json, f"mixed precision of {model.name}") as tell:
        found = imported(model, input)
        calibrated, shown = _data(found, calibration, data, preprocess, samples, scored)
        result = search(
            found, found.example_inputs(), calibrated, shown, accuracy=accuracy, budget_cycles=budget_cycles,
            platform=platform, dtype=dtype, metric=metric, config=config, candidates=candidate, host_gops=host_gops,
            progress=tell or False,
        )  # fmt: skip
        if output is not None:
            with atomic_file(output) as written:
                written.write_text(result.config.to_toml(), encoding="utf-8")
        if plot is not None:
            result.plot(plot)
    files = {key: None if path is None else str(path) for key, path in (("output", output), ("plot", plot))}
    said = [f"{path}: written" for path in files.values() if path]
    emit(as_json, {"model": str(model), **result.to_dict(), **files}, result, *said)


def _data(
    model: ImportedModel, calibration: Path, data: Path | None, preprocess: list[str] | None, samples: int, scored: int
) -> tuple[Iterable[Any], Iterable[Any]]:
    """What to calibrate on, and what to measure on."""
    from ..quant.calibration.feed import Feed

    def batches(path: Path, most: int, what: str) -> Iterable[Any]:
        return Feed(path, model.info.inputs, preprocess=preprocess or None, what=what, limit=most)

    return batches(calibration, samples, "calibration"), batches(data or calibration, scored, "evaluation")
