"""The command `mera`: the demo, platforms, and importing, compiling, running and explaining models."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .errors import ConfigError, MeraError

if TYPE_CHECKING:
    from .converters import ImportedModel

app = typer.Typer(
    name="mera",
    help="Compile quantized PyTorch networks for EdgeCortix's Dynamic Neural Accelerator, and run them bit-exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
QUIET = ("torchao", "torch.utils._pytree")  # warn, at import, of GPU kernels and of deprecations of their own

PlatformOption = Annotated[str, typer.Option(help="An identifier (see `mera platforms`), or a TOML file of your own.")]
ModelFile = Annotated[Path, typer.Argument(help="A TFLite, ONNX, TorchScript, Keras or .pt2 file.")]
DeploymentFolder = Annotated[Path, typer.Argument(help="What `mera compile` wrote.")]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=SIZES[:DTYPE]",
        help="An input's shape, such as x=1,3,224,224 or ids=1,128:int64 (TorchScript needs all of them), "
        "or the size of a symbolic dimension, such as batch=4 (ONNX).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TargetOption = Annotated[str, typer.Option(help="Simulator or InterpreterHw.")]


def _print_versions(asked: bool) -> None:
    if asked:
        from .versions import table

        typer.echo(table())
        raise typer.Exit


@app.callback()
def mera(
    version: Annotated[
        bool, typer.Option("--version", help="The versions of all parts.", callback=_print_versions, is_eager=True)
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="digits; or mobilenet_v2, efficientnet_lite0 (fetched).")] = "digits",
    platform: PlatformOption = "SAKURA_1",
) -> None:
    """Quantize, compile and run a trained network, and show what came of it."""
    from . import demo as demonstration

    demonstration.run(model, platform, console)


@app.command()
def platforms() -> None:
    """The platforms that can be compiled for."""
    from .platform import aliases
    from .platform import platforms as known

    table = Table(box=SIMPLE_HEAD)
    for header in ("platform", "units", "MHz", "INT8 TOPS", "BF16", "SRAM", "DRAM"):
        table.add_column(header, justify="left" if header == "platform" else "right")
    for platform in known():
        table.add_row(
            platform.name,
            f"{platform.units} x {platform.array}x{platform.array}",
            f"{platform.clock_mhz:g}",
            f"{2 * platform.macs_per_cycle * platform.clock_mhz / 1e6:.1f}",
            "yes" if platform.bf16 else "no",
            f"{platform.sram_bytes / 2**20:g} MiB",
            f"{platform.dram_gbps:g} GB/s",
        )
    console.print(table)
    console.print("Identifiers, arrays, clocks: EdgeCortix. SRAM and DRAM: assumptions of this project.", style="dim")
    console.print("Also accepted: " + ", ".join(f"{other} = {name}" for other, name in aliases().items()), style="dim")


@app.command()
def convert(
    model: ModelFile,
    output: Annotated[Path | None, typer.Option(help="Write the network there, as a .pt2 file.")] = None,
    input: InputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import a model of any format; show what it contains, and write it as a .pt2 file if asked."""
    from .contents import contents

    found = imported(model, input)
    if as_json:
        typer.echo(json.dumps(contents(found).to_dict(), indent=2))
    else:
        console.print(contents(found))
    if output is not None:
        import torch

        from .files import atomic_file

        with atomic_file(output) as path:
            torch.export.save(torch.export.export(found, found.example_inputs()), path)


@app.command()
def explain(model: ModelFile, input: InputOption = None, as_json: JsonOption = False) -> None:
    """Where each operator of a model runs and, if on the host, which constraint it broke."""
    from . import explain as explained

    found = explained(imported(model, input))
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        console.print(found)


@app.command()
def compile(
    model: ModelFile,
    output: Annotated[Path, typer.Option(help="The folder of the deployment.")],
    platform: PlatformOption = "SAKURA_1",
    target: TargetOption = "Simulator",
    input: InputOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a deployment that is there.")] = False,
) -> None:
    """Compile a quantized model into a deployment on disk."""
    from . import export

    with console.status(f"compiling {model} for {platform}"):
        deployment = export(imported(model, input), None, output, platform=platform, target=target, overwrite=overwrite)
    regions, host = len(deployment.regions), len(deployment.host_operators)
    where = f"{regions} region{'s'[: regions != 1]} for {deployment.platform.name}, {host} operators on the host"
    console.print(f"{output}: {where}", markup=False)


@app.command()
def run(
    deployment: DeploymentFolder,
    inputs: Annotated[list[Path], typer.Argument(help="A .npy file for each input, in order.", metavar="INPUT.npy...")],
    output: Annotated[Path | None, typer.Option(help="Write the outputs there, as .npz.")] = None,
    target: Annotated[str | None, typer.Option(help="Another target than it was compiled for.")] = None,
) -> None:
    """Run a deployment on inputs from .npy files."""
    import torch
    from torch.utils import _pytree as pytree

    from . import load

    runner = load(deployment).get_runner(target)
    outputs = pytree.tree_leaves(runner(*(torch.from_numpy(_array(path)) for path in inputs)))
    arrays = {f"output_{index}": tensor.numpy() for index, tensor in enumerate(outputs)}
    for name, array in arrays.items():
        values = array.reshape(-1)
        console.print(f"{name}: {array.dtype}{list(array.shape)}, largest at {int(values.argmax())}", markup=False)
    if output is not None:
        try:
            np.savez(output, allow_pickle=False, **arrays)
        except OSError as error:
            raise MeraError(f"{str(output)!r} cannot be written: {error.strerror}") from error


@app.command()
def report(
    deployment: DeploymentFolder,
    trace: Annotated[Path | None, typer.Option(help="Also write a trace that Perfetto opens.")] = None,
) -> None:
    """Simulated cycles, traffic and utilization of a deployment, layer by layer."""
    from . import load
    from .tables import layers, machine

    runner = load(deployment).get_runner("Simulator")
    found = runner.metrics()
    console.print(layers(found), machine(found), sep="\n")
    if trace is not None:
        runner.trace(trace)
        console.print(f"{trace}: open it at ui.perfetto.dev", markup=False)


@app.command()
def dump(
    file: Annotated[Path, typer.Argument(help="A deployment, a model file, a DNA graph or a program.")],
    stage: Annotated[str, typer.Option(help="graph, fuse, tile, lower, alloc, schedule or isa.")] = "isa",
    platform: Annotated[str | None, typer.Option(help="Default: the deployment's own, else SAKURA_1.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Of the compiler, such as max_tile_height=4.")] = None,
    data: Annotated[bool, typer.Option("--data", help="Stage graph: with the constants' data.")] = False,
) -> None:
    """One stage of the compiler as text: what it decided, for every layer, buffer, job or instruction."""
    from .dump import dump as dumped
    from .dump import parse_options

    for name, text in dumped(file, stage, platform, parse_options(option or []), data):
        typer.echo(f"# {name}\n{text}")


@app.command()
def bisect(
    file: Annotated[Path, typer.Argument(help="A deployment, a model file or a DNA graph.")],
    platform: Annotated[str | None, typer.Option(help="Default: the deployment's own, else SAKURA_1.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
) -> None:
    """The first node on which oracle, interpreter and simulator differ: there should be none."""
    from .bisect import bisect_file

    found = False
    for name, difference in bisect_file(file, platform, seed):
        found = found or difference is not None
        console.print(f"{name}: {difference or 'no difference'}", markup=False)
    if found:
        raise typer.Exit(1)


@app.command()
def compare(
    model: Annotated[Path, typer.Argument(help="A TFLite file.")],
    input: Annotated[
        list[Path] | None, typer.Option(metavar="FILE.npy", help="One for each input, in order; default: random.")
    ] = None,
    platform: PlatformOption = "SAKURA_1",
    every: Annotated[bool, typer.Option("--all", help="One row a tensor, not one a kind of operator.")] = False,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Every tensor of a TFLite model against TFLite's reference kernels; the exit code is 1 if one differs."""
    from .compare import compare_tflite
    from .progress import progress_bar

    inputs = [_array(path) for path in input] if input else None
    with progress_bar(console.is_terminal, "compare") as bar:
        found = compare_tflite(model, inputs, platform=platform, seed=seed, progress=bar)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        console.print(found.table(every))
        console.print(found.summary(), markup=False)
    if not found.equal:
        raise typer.Exit(1)


@app.command()
def zoo() -> None:
    """The real weights and data that can be fetched, and where they are kept."""
    from . import zoo as artifacts

    table = Table(box=SIMPLE_HEAD, caption=f"cache: {artifacts.cache_dir()}")
    for header in ("name", "what", "package", "fetched"):
        table.add_column(header, overflow="fold")
    for name, artifact in artifacts.ARTIFACTS.items():
        fetched = (artifacts.cache_dir() / artifact.cached_name).is_file()
        table.add_row(name, artifact.about, f"{artifact.registry} {artifact.requirement}", "yes" if fetched else "no")
    console.print(table)


def imported(path: Path, given: list[str] | None = None) -> ImportedModel:
    """The model in a file of any format; given: the values of --input."""
    from .converters import load_model

    sizes: dict[str, int | tuple[int, ...]] = {}
    described: dict[str, tuple[tuple[int, ...], str]] = {}
    for text in given or []:
        name, _, rest = text.rpartition("=")
        shape, _, dtype = rest.partition(":")
        try:
            numbers = tuple(int(size) for size in shape.split(",") if size)
        except ValueError:
            numbers = ()
        if not name or not numbers:
            raise ConfigError(f"--input is NAME=SIZES[:DTYPE], such as x=1,3,224,224:float32; got {text!r}")
        sizes[name] = numbers[0] if shape.isdecimal() else numbers
        described[name] = (numbers, dtype or "float32")
    return load_model(path, input_desc=described or None, shape_mapping=sizes)


def _array(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise MeraError(f"{str(path)!r} is no .npy file: {error}") from error
    if not isinstance(loaded, np.ndarray):
        raise MeraError(f"{str(path)!r} holds several arrays; give each input as a .npy file")
    return loaded


def main() -> NoReturn:
    """The entry point: an error of ours is one sentence on standard error and exit code 1, never a traceback."""
    for noisy in QUIET:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch's pytree, of itself
    try:
        app()
    except MeraError as error:
        Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), str(error)))
        sys.exit(1)
    sys.exit(0)
