"""Reading model files, and telling their format by content."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

from mera_torch.errors import CorruptFileError, InvalidModelError, UnsupportedError

LARGEST = 8 << 30
"""Bytes of the largest file that is read whole."""

MERA_MANIFEST = "mera.json"
"""The member of a .mera file that says what it is."""

Source = str | os.PathLike[str] | bytes


def read(source: Source) -> bytes:
    """The file's bytes (bytes as they are). Raises InvalidModelError if there is no such file, or it is too large."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    path = Path(source)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InvalidModelError(f"model {str(path)!r} is no file")
        if size > LARGEST:
            raise InvalidModelError(f"model file {str(path)!r} has {size} bytes, more than the {LARGEST} that are read")
        return path.read_bytes()
    except FileNotFoundError:
        raise InvalidModelError(f"model file {str(path)!r} does not exist") from None
    except (OSError, ValueError) as error:
        raise InvalidModelError(f"model file {str(path)!r} cannot be read: {error}") from error


def describe(source: Source) -> str:
    """The source as a message names it."""
    if isinstance(source, bytes | bytearray | memoryview):
        return f"a model of {len(source)} bytes"
    return repr(os.fspath(source))


def format_of(source: Source) -> str:
    """ "tflite", "onnx", "torchscript", "pt2", "keras" or "mera", by content; a name's ending never decides.

    Raises UnsupportedError for what is known to be something else, CorruptFileError for what is nothing known.
    """
    if not isinstance(source, bytes | bytearray | memoryview) and os.path.isdir(source):
        return _format_of_folder(Path(source))
    data = read(source)
    if data[4:8] == b"TFL3":
        return "tflite"
    if data.startswith(b"PK"):
        return _format_of_zip(source, data)
    if data.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras"
    if data.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise UnsupportedError(
            f"{describe(source)} is a pickle, which could run any code: save the network with torch.export.save"
        )
    if data.startswith((b"MERAGRPH", b"MERA.DNA")):
        raise UnsupportedError(f"{describe(source)} is what mera_torch compiled, no model: mera dump shows it")
    if _looks_like_onnx(data):
        return "onnx"
    raise CorruptFileError(
        f"{describe(source)} is no TFLite, ONNX, TorchScript, .pt2, Keras or .mera model "
        f"(it begins with {data[:8].hex(' ')})"
    )


def _format_of_folder(path: Path) -> str:
    if (path / "saved_model.pb").is_file():
        return "keras"
    if (path / "project.json").is_file() or (path / "deployment.json").is_file():
        raise UnsupportedError(f"{str(path)!r} is a deployment, no model: mera_torch.load opens it")
    raise InvalidModelError(f"folder {str(path)!r} is no SavedModel: it has no saved_model.pb")


def _format_of_zip(source: Source, data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error, OSError) as error:
        raise CorruptFileError(f"{describe(source)} is a damaged zip archive: {error}") from error
    if MERA_MANIFEST in names:
        return "mera"
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or any(name.startswith("models/") and name.endswith(".json") for name in inner):
        return "pt2"
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    if {"config.json", "metadata.json"} <= set(names):
        return "keras"
    if "data.pkl" in inner:
        raise UnsupportedError(
            f"{describe(source)} holds weights or a pickled module (torch.save) without the network: "
            "build the network in Python and load them, then use mera_torch.export or torch.export.save"
        )
    raise CorruptFileError(f"{describe(source)} is a zip archive but no TorchScript, .pt2, Keras or .mera model")


_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
"""Field numbers of onnx.ModelProto and their wire types (onnx.proto)."""


def _looks_like_onnx(data: bytes) -> bool:
    """Whether the first field is one of ModelProto's and the last byte is reached by whole fields."""
    position = 0
    seen: set[int] = set()
    while position < len(data):
        tag, position = _varint(data, position)
        field, wire = tag >> 3, tag & 7
        if _MODEL_FIELDS.get(field) != wire:
            return False
        length, position = _varint(data, position)
        if wire == 2:
            position += length
        if position > len(data) or length < 0:
            return bool(seen)  # truncated: onnx's own reader says so
        seen.add(field)
    return bool(seen)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
    return -1, position
