"""Checks a TorchScript file before PyTorch's loader, which trusts what it reads, sees it.

The file is a zip archive of one folder: data.pkl (the module and its attributes), constants.pkl, code/ (the program),
data/ and constants/ (tensors' bytes), version. What passes is written anew, so that the loader sees what was checked.
"""

from __future__ import annotations

import ast
import io
import zipfile
from collections.abc import Mapping

from mera_torch.errors import CorruptFileError

from .pickles import check_pickle

RECORDS = 1 << 17
"""Files in an archive at most."""
EXPANDED = 256 << 20
"""Bytes by which an archive may grow when it is unpacked: code is compressed, weights are not."""
DEEPEST = 200
"""Nested expressions and blocks in the program at most: PyTorch's parser is recursive."""

_PARTS = ("data/", "constants/", "code/")
_VERSIONS = ("version", ".data/version")
_FILES = ("data.pkl", "constants.pkl", "byteorder", *_VERSIONS)


def checked(data: bytes, name: str) -> bytes:
    """An archive of the records that PyTorch's loader needs, each of them checked. Raises CorruptFileError naming the
    record and what is wrong with it."""
    try:
        records = _records(data)
        for part in ("data", "constants"):
            folder = f"{part}/"
            sizes = {key.removeprefix(folder): len(held) for key, held in records.items() if key.startswith(folder)}
            check_pickle(records[f"{part}.pkl"], f"{part}.pkl", sizes)
        _check_version(records)
        for key, held in records.items():
            if key.startswith("code/"):
                _check_code(key, held)
    except CorruptFileError as error:
        raise CorruptFileError(f"{name}: {error}") from None
    return _packed(records)


def _records(data: bytes) -> dict[str, bytes]:
    """The records by their path in the archive's folder, checksums verified."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read(archive, len(data))
    except CorruptFileError:
        raise
    except Exception as error:  # zipfile's errors for damaged archives have no common base
        raise CorruptFileError(f"its zip archive is damaged: {error}") from error


def _read(archive: zipfile.ZipFile, length: int) -> dict[str, bytes]:
    entries = archive.infolist()
    roots = {entry.filename.partition("/")[0] for entry in entries}
    total = sum(entry.file_size for entry in entries)
    if len(entries) > RECORDS or total > length + EXPANDED:
        raise CorruptFileError(f"{len(entries)} records of {total} bytes are packed into {length} bytes")
    if len(roots) != 1:
        raise CorruptFileError(f"its records must lie in one folder, got {sorted(roots)[:5]}")
    records: dict[str, bytes] = {}
    for entry in entries:
        key = entry.filename.partition("/")[2]
        if ".." in key.split("/") or "\\" in key or key.startswith("/") or key in records:
            raise CorruptFileError(f"record {key!r} leaves its folder, or stands there twice")
        if (key.startswith(_PARTS) and not key.endswith(".debug_pkl")) or key in _FILES:
            records[key] = archive.read(entry)
    missing = [key for key in ("data.pkl", "constants.pkl") if key not in records]
    if missing or not any(key in records for key in _VERSIONS):
        raise CorruptFileError(f"record {[*missing, 'version'][0]!r} is missing")
    return records


def _check_version(records: Mapping[str, bytes]) -> None:
    for key in _VERSIONS:
        if key in records and (not records[key].strip().isdigit() or len(records[key]) > 8):
            raise CorruptFileError(f"record {key!r} must be a number, got {records[key][:20]!r}")
    if records.get("byteorder", b"little") != b"little":
        raise CorruptFileError("record 'byteorder' must be little: save the module on a little-endian machine")


def _check_code(key: str, held: bytes) -> None:
    """It must be Python's syntax, which TorchScript's is part of, and not nested too deeply."""
    try:
        tree = ast.parse(held.decode())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CorruptFileError(f"record {key!r} is no TorchScript program: {error}") from None
    level: list[ast.AST] = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return
    raise CorruptFileError(f"record {key!r} is nested more than {DEEPEST} levels deep")


def _packed(records: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for key, held in records.items():
            archive.writestr(f"archive/{key}", held)
    return buffer.getvalue()
