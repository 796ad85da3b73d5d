"""Arrays in .npy and .npz files. Large ones are mapped, not read, those of .npz files by way of a scratch file."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .atomic import storage_error
from .errors import CorruptFileError, InvalidModelError, MeraError, StorageError

Array = npt.NDArray[Any]
_LARGE = 16 << 20
"""Bytes from which on an array of a .npz file is unpacked to the disk."""
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Spec:
    """An input or output of a network: dtype is numpy's name of it; shape includes the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name!r} ({self.dtype}{list(self.shape)})"


def listed(specs: Sequence[Spec]) -> str:
    return ", ".join(map(str, specs))


def load_array(path: Path) -> Array:
    """The array of a .npy file, mapped rather than read. Raises StorageError, CorruptFileError."""
    found = _load(path)
    if not isinstance(found, np.ndarray):
        found.close()
        raise InvalidModelError(f"{str(path)!r} holds several arrays; give each input as a .npy file")
    return found


def read_npz(path: Path, specs: Sequence[Spec]) -> list[Array]:
    """The arrays of a .npz file in the inputs' order: by name, or the only one.

    Raises StorageError, CorruptFileError, and InvalidModelError for an input that is not there.
    """
    found = _load(path)
    if isinstance(found, np.ndarray):
        raise CorruptFileError(f"{str(path)!r} holds one array, as a .npy file does: rename it")
    try:
        with found as archive:
            names = list(archive.files)
            wanted = [spec.name for spec in specs]
            if len(names) == len(specs) == 1:
                wanted = names
            missing = [name for name in wanted if name not in names]
            if missing:
                raise InvalidModelError(
                    f"{str(path)!r} has no array {missing[0]!r}; it has {', '.join(names) or 'none'}, the model takes "
                    f"{listed(specs)}"
                )
            return [_member(archive, name) for name in wanted]
    except _UNREADABLE as error:
        if isinstance(error, MeraError):
            raise
        raise CorruptFileError(f"{str(path)!r} cannot be read: {error}") from error


def _member(archive: Any, name: str) -> Array:
    """An array of a .npz file."""
    inside = f"{name}.npy"
    if inside not in archive.zip.namelist():
        raise ValueError(f"its member {name!r} is no array")
    if archive.zip.getinfo(inside).file_size < _LARGE:
        array: Array = archive[name]
        return array
    size, scratch = archive.zip.getinfo(inside).file_size, tempfile.gettempdir()
    if size > (free := shutil.disk_usage(scratch).free):
        raise StorageError(
            f"its array {name!r} takes {size >> 20} MiB, of which {scratch!r} has {free >> 20}: set TMPDIR to a folder "
            "with more, or give .npy files, which are not unpacked"
        )
    with archive.zip.open(inside) as packed, tempfile.NamedTemporaryFile(suffix=".npy") as file:
        try:
            shutil.copyfileobj(packed, file)
            file.flush()
        except OSError as error:
            raise storage_error(file.name, error) from error
        return np.load(file.name, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]  # stays mapped


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix.lower() == ".npy" else None)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise StorageError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except _UNREADABLE as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        if "pickle" in said:  # numpy takes what it does not know for a pickle, and advises to load it as one
            said = "it begins like neither, or holds objects"
        raise CorruptFileError(f"{str(path)!r} is no .npy or .npz file of numbers: {said}") from error
