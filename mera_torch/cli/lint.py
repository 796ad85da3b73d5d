"""What in a float model, and in its calibration data, is known to fail in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import exits
from .app import InputOption, JsonOption, ModelFile, app, emit, imported, working
from .deployments import PreprocessOption


@app.command()
def lint(
    model: ModelFile,
    calibration: Annotated[
        Path, typer.Option(help="Typical inputs: a .npy or .npz file, or a folder of images, .npy or .npz files.")
    ],
    input: InputOption = None,
    preprocess: PreprocessOption = None,
    samples: Annotated[int, typer.Option(help="Use at most so many of them; 0: all.", min=0)] = 0,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE.toml|PRESET", help="Options of quantization; what they mend is no fault."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what in a float model and its calibration data is known to fail in int8; the exit code is 1 if quantization
    does not mend all of it."""
    from ..quant import QuantConfig
    from ..quant.calibration.feed import Feed
    from ..quant.findings import sorted_findings, summary, table
    from ..quant.lint.linter import lint_model

    with working(as_json, f"lint {model.name}"):
        options = QuantConfig.of(config)
        found = imported(model, input)
        given = Feed(calibration, found.info.inputs, preprocess=preprocess or None, limit=samples)
        findings = lint_model(found, found.example_inputs(), given, options)
    document = {
        "model": str(model),
        "summary": summary(findings),
        "findings": [f.to_dict() for f in sorted_findings(findings)],
    }
    emit(as_json, document, table(findings) if findings else summary(findings))
    if any(finding.open for finding in findings):
        raise typer.Exit(exits.DIFFERENT)
