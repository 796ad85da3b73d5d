"""The compiler's stages as text, for what holds a DNA graph: a file of it, a program, a model, a deployment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import native
from .errors import ConfigError, InvalidModelError, MeraError, nearest
from .platform import Platform, find

STAGES = ("graph", "fuse", "tile", "lower", "alloc", "schedule", "isa")
DEFAULT_PLATFORM = "SAKURA_1"


def dump(
    path: str | os.PathLike[str],
    stage: str = "isa",
    platform: str | os.PathLike[str] | Platform | None = None,
    options: Mapping[str, int] | None = None,
    with_data: bool = False,
) -> Iterator[tuple[str, str]]:
    """(name, text) of each region that the file holds.

    path: a deployment's folder, a quantized model (.pt2, TFLite, ONNX, ...), a DNA graph (text or binary) or a program
    (of which only "isa" is left).
    platform: default: the deployment's own, else SAKURA_1. options: of the compiler, by name (mera_options in mera.h).
    with_data: stage "graph" with its constants, so that the text can be read again.

    Raises ConfigError for an unknown stage, platform or option; InvalidModelError or CorruptFileError for other files.
    """
    if stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r}: {nearest(stage, STAGES)}; there are {', '.join(STAGES)}")
    for name, held, own, given in graphs_of(Path(path)):
        machine = own if platform is None else find(platform)
        if isinstance(held, native.Program):
            if stage != "isa" or platform is not None or options:
                raise InvalidModelError(
                    f"{os.fspath(path)!r} holds a compiled program: of its stages, isa alone is left"
                )
            yield name, held.text()
        elif stage == "graph":
            yield name, held.text(with_data)
        else:
            yield name, held.dump(stage, machine, {**given, **(options or {})})


Held = tuple[str, "native.Graph | native.Program", Platform, Mapping[str, int]]


def graphs_of(path: Path) -> Iterator[Held]:
    """Name, graph or program, platform and options of all that the path holds."""
    if path.is_dir():
        from .project import load

        for region in load(path).regions:
            yield region.name, region.graph, region.platform, region.options
        return
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MeraError(f"{os.fspath(path)!r} cannot be read: {error.strerror}") from error
    machine = find(DEFAULT_PLATFORM)
    if data.startswith(b"MERAGRPH"):
        yield path.stem, native.Graph.load(data), machine, {}
    elif data.startswith(b"MERA.DNA"):
        program = native.Program.load(data)
        yield path.stem, program, program.platform, {}
    elif _is_text(data):
        yield path.stem, _parse(path, data), machine, {}
    else:
        from .backend.capture import capture
        from .compile import build, opened, settings_of

        for region in build(capture(*opened(path, None)), settings_of(DEFAULT_PLATFORM, "Simulator", None)).regions:
            yield region.name, region.graph, region.platform, region.options


def _is_text(data: bytes) -> bool:
    """No byte of the beginning is a control character: binary models have some within their first fields."""
    return all(byte >= 32 or byte in b"\t\n\r" for byte in data[:256])


def _parse(path: Path, data: bytes) -> native.Graph:
    try:
        return native.Graph.parse(data.decode())
    except UnicodeDecodeError:
        raise InvalidModelError(f"{os.fspath(path)!r} holds no DNA graph, program, model or deployment") from None
    except InvalidModelError as error:
        raise InvalidModelError(f"{os.fspath(path)!r}: {error}") from None


def parse_options(given: Sequence[str]) -> dict[str, int]:
    """{"max_tile_height": 4} of ["max_tile_height=4"]. Raises ConfigError for anything else."""
    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value.removeprefix("-").isdecimal():
            raise ConfigError(f"an option is NAME=NUMBER, such as max_tile_height=4; got {text!r}")
        options[name] = int(value)
    return options
