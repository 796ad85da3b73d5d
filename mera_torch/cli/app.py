"""The command `mera`: the application, its shared options, its entry point. A command is one file beside this one."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from .. import exits
from ..errors import ConfigError, MeraError, ShapeNeededError
from ..native import Progress
from ..progress import progress_bar

if TYPE_CHECKING:
    from ..converters import ImportedModel

EPILOG = "\n".join(["Exit codes:", *(f"{code:3}  {meaning}" for code, meaning in exits.MEANINGS.items())])
QUIET = ("torchao", "torch.utils._pytree")  # warn, at import, of GPU kernels and of deprecations of their own

app = typer.Typer(
    name="mera",
    help="Compile quantized PyTorch networks for EdgeCortix's Dynamic Neural Accelerator, and run them bit-exactly.",
    epilog=EPILOG,
    pretty_exceptions_enable=False,
)


class Terminal(Console):
    """Standard output, as rich writes it; that its reader went away is for main() to handle."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


console = Terminal(highlight=False, markup=False)  # what is shown may come from files


@dataclass(frozen=True)
class Session:
    """What the whole command line asks for, wherever it stands."""

    json: bool = False
    debug: bool = False


# ---- completion ----


def complete_platforms(incomplete: str) -> list[str]:
    from ..platform import aliases, platforms

    return [name for name in (*(row.name for row in platforms()), *aliases()) if name.startswith(incomplete)]


def complete_targets(incomplete: str) -> list[str]:
    from ..backend.region import TARGETS

    return [name for name in TARGETS if name.startswith(incomplete)]


def complete_artifacts(incomplete: str) -> list[str]:
    from ..zoo import ARTIFACTS

    return [name for name in ARTIFACTS if name.startswith(incomplete)]


# ---- shared options ----


def _asked_for_json(context: typer.Context, value: bool) -> bool:
    return value or (isinstance(context.obj, Session) and context.obj.json)


PlatformOption = Annotated[
    str,
    typer.Option(
        help="An identifier (see `mera platforms`), or a TOML file of your own.", autocompletion=complete_platforms
    ),
]
OwnPlatformOption = Annotated[
    str | None,
    typer.Option(help="Default: the deployment's own, else SAKURA_1.", autocompletion=complete_platforms),
]
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
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, and nothing else.", callback=_asked_for_json)
]
TargetOption = Annotated[
    str, typer.Option(help="Simulator, InterpreterHw or IP (a device).", autocompletion=complete_targets)
]
SeedOption = Annotated[int, typer.Option(help="Of the random inputs.", min=0)]


def _print_versions(context: typer.Context, asked: bool) -> None:
    if asked:
        from ..versions import table, versions

        typer.echo(json.dumps(versions(), indent=2) if _asked_for_json(context, False) else table())
        raise typer.Exit


@app.callback()
def mera(
    version: Annotated[
        bool, typer.Option("--version", help="The versions of all parts.", callback=_print_versions, is_eager=True)
    ] = False,
    as_json: JsonOption = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; also after a command.")
    ] = False,
) -> None:
    """Options before the command."""


# ---- what commands are made of ----


def emit(as_json: bool, document: Any, *shown: Any) -> None:
    """The result of a command on standard output: the document as JSON, or what people are shown (of rich, or str)."""
    if as_json:
        typer.echo(json.dumps(_finite(document), indent=2, allow_nan=False))
        return
    for item in shown:
        console.print(item, soft_wrap=isinstance(item, str))


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(held) for key, held in value.items()}
    return [_finite(held) for held in value] if isinstance(value, list | tuple) else value


def working(as_json: bool, title: str) -> AbstractContextManager[Progress | None]:
    """A bar, with the time left, while a command works: none with --json or where nobody looks."""
    return progress_bar(not as_json, title)


@contextmanager
def in_terms_of_options() -> Iterator[None]:
    """Errors that tell a caller of Python's arguments to give tell of --input instead."""
    try:
        yield
    except ShapeNeededError as error:
        raise ShapeNeededError(error.problem, f"--input {error.command_line}", error.command_line) from error
    except MeraError as error:
        said = str(error)
        told = said.replace("shape_mapping", "--input").replace("input_desc", "--input")
        if told == said:
            raise
        raise type(error)(told) from error


def imported(path: Path, given: list[str] | None = None) -> ImportedModel:
    """The model in a file of any format; given: the values of --input."""
    from ..converters import load_model

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
    with in_terms_of_options():
        return load_model(path, input_desc=described or None, shape_mapping=sizes)


# ---- the entry point ----


def main() -> NoReturn:
    """The entry point: an error of ours is one sentence on standard error and its family's exit code."""
    arguments = sys.argv[1:]
    session = Session("--json" in arguments, "--debug" in arguments)
    for noisy in QUIET:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch's pytree, of itself
    try:
        code = _run([argument for argument in arguments if argument != "--debug"], session)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more as it ends, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = exits.BROKEN_PIPE
    except SystemExit as error:  # of the completion; rich and typer give 1 to a broken pipe, and nothing else
        code = exits.BROKEN_PIPE if error.code == 1 else exits.OK
    except BaseException as error:
        code = _tell(error, session)
    sys.exit(code)


def _run(arguments: list[str], session: Session) -> int:
    if not arguments:
        app(["--help"], standalone_mode=False, prog_name="mera")
        return exits.USAGE
    code = app(arguments, standalone_mode=False, prog_name="mera", obj=session)
    if code == exits.INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else exits.OK


def _tell(error: BaseException, session: Session) -> int:
    """The error on standard error, as one sentence or, with --json, one JSON document; gives the exit code."""
    code = exits.USAGE if is_usage(error) else exits.exit_code(error)
    kind = exits.STORAGE.__name__ if code == exits.FAMILIES[exits.STORAGE] else type(error).__name__
    sentence = _sentence(error, code)
    if session.debug and code not in (exits.USAGE, exits.INTERRUPTED):
        traceback.print_exception(error)
    if session.json:
        print(json.dumps({"error": {"type": kind, "message": sentence, "exit_code": code}}), file=sys.stderr)
    elif code == exits.INTERRUPTED:
        print(sentence, file=sys.stderr)
    else:
        shown = Text.assemble(("error: ", "bold red"), sentence)
        Console(stderr=True, soft_wrap=True, highlight=False).print(shown)
    return code


def is_usage(error: BaseException) -> bool:
    """Whether the error is typer's, about the arguments. (Its base class is not in the same place in all versions.)"""
    return any(cls.__name__ == "ClickException" for cls in type(error).__mro__)


def _sentence(error: BaseException, code: int) -> str:
    if code == exits.USAGE:
        return _usage(error)
    if code == exits.INTERRUPTED:
        return "interrupted"
    if isinstance(error, MeraError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename!r}' if error.filename else ''}"
    said = str(error).strip().partition("\n")[0]
    return (
        f"internal error: {type(error).__name__}{f': {said}' if said else ''} (--debug shows where; please report it)"
    )


def _usage(error: Any) -> str:
    message = str(error.format_message()).strip().rstrip(".")
    if near := getattr(error, "possibilities", None):
        message = f"{error.message}; did you mean {' or '.join(sorted(near))}?"
    context = getattr(error, "ctx", None)
    return f"{message} (see {context.command_path if context else 'mera'} --help)"
