"""How well a quantized model follows its float model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import InputOption, JsonOption, app, complete_platforms, complete_targets, emit, imported, working
from .deployments import PreprocessOption

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from ..converters import ModelInfo
    from ..quant.quality.measure import Quality
    from ..quant.quantized_model import QuantizedModel


@app.command()
def quality(
    model: Annotated[Path, typer.Argument(help="A .mera file, or another quantized model (.pt2, ONNX, TFLite, ...).")],
    data: Annotated[
        Path,
        typer.Option(
            help="Inputs that calibration has not seen: a .npy or .npz file, or a folder of images, .npy or .npz files."
        ),
    ],
    reference: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="The float model it was made from; a .mera file holds its own."),
    ] = None,
    input: InputOption = None,
    preprocess: PreprocessOption = None,
    samples: Annotated[int, typer.Option(help="Use at most so many batches; 0: all.", min=0)] = 0,
    target: Annotated[
        str | None,
        typer.Option(
            help="Measure the outputs of InterpreterHw, Simulator or IP; default: of the q/dq module in PyTorch.",
            autocompletion=complete_targets,
        ),
    ] = None,
    platform: Annotated[
        str, typer.Option(help="Of the target: an identifier or a TOML file.", autocompletion=complete_platforms)
    ] = "SAKURA_1",
    debug_nodes: Annotated[
        bool, typer.Option("--debug-nodes", help="Every operator, too: the error it adds, and what it inherits.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Show all operators, not those alone that add most.")] = False,
    threshold: Annotated[float, typer.Option(help="SQNR in dB below which an operator counts as parted.")] = 20.0,
    html: Annotated[Path | None, typer.Option(help="Write a page there that opens offline.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write all figures there, as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how well a quantized model follows its float model, per output and, if asked, per operator."""
    from ..atomic import check_folder
    from ..errors import ConfigError
    from ..quant.calibration.feed import Feed
    from ..quant.quality.measure import measure
    from ..quant.quality.table import tables

    if every and not debug_nodes:
        raise ConfigError("--all shows all operators, which --debug-nodes measures: give both")
    for path in filter(None, (html, output)):
        check_folder(path)
    with working(as_json, f"quality of {model.name}") as tell:
        stored = _stored(model, reference)
        original, twin, module, info = (
            (stored.original, stored.reference, stored.module, stored.info)
            if stored
            else _networks(model, reference, input, debug_nodes)
        )
        batches = Feed(data, info.inputs, preprocess=preprocess or None, what="evaluation", limit=samples)
        found = measure(
            original, twin, module, batches, debug_mode=debug_nodes, target=target, platform=platform,
            threshold=threshold, progress=tell or False,
        )  # fmt: skip
        if output is not None:
            found.to_json(output)
        if html is not None:
            _write_page(found, html, f"Quantization quality of {model.name}", stored)
    emit(as_json, {"model": str(model), **found.to_dict()}, tables(found, None) if every else found)


def _stored(path: Path, reference: Path | None) -> QuantizedModel | None:
    """What a .mera file holds; None of other files."""
    from ..errors import ConfigError
    from ..quant.quantized_model import QuantizedModel

    if path.exists() and path.suffix != ".mera" and not _is_mera(path):
        return None
    if reference is not None:
        raise ConfigError(f"{str(path)!r} holds its own float network: leave out --reference")
    return QuantizedModel.load(path)


def _networks(
    path: Path, reference: Path | None, given: list[str] | None, debug: bool
) -> tuple[Any, GraphModule | None, GraphModule, ModelInfo]:
    """(float network, its twin of the quantized one, quantized network, its inputs and outputs)."""
    from ..errors import ConfigError, InvalidModelError
    from ..quant.quality.attribution import is_rounding
    from ..quant.quality.twins import float_twin

    if reference is None:
        raise ConfigError(f"{str(path)!r} does not hold the float network it was made from: give it with --reference")
    module, original = imported(path, given), imported(reference, given)
    if not any(map(is_rounding, module.graph.nodes)):
        raise InvalidModelError(f"{str(path)!r} is not quantized: nothing in it rounds")
    if any(map(is_rounding, original.graph.nodes)):
        raise InvalidModelError(f"{str(reference)!r} is quantized: --reference is the float model")
    return original, float_twin(original, module) if debug else None, module, module.info


def _is_mera(path: Path) -> bool:
    import zipfile

    from ..quant.files.mera_file import MANIFEST

    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _write_page(found: Quality, html: Path, title: str, stored: QuantizedModel | None) -> None:
    from ..quant.quality.report import report

    if stored is not None:
        stored.report(html, quality=found, title=title)
    else:
        report(found, html, title=title)
