"""A calibration's state on the disk, so that it can go on where it stopped: one safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mera_torch.atomic import atomic_file
from mera_torch.errors import CalibrationError, CorruptFileError
from mera_torch.files import MALFORMED

from .statistics import Statistics, from_arrays, to_arrays

EVERY_SECONDS = 5.0
"""Between two writes of the state."""
_FORMAT = "mera_torch calibration 1"
_KEY = "mera"


@dataclass(frozen=True)
class Position:
    """How far a calibration came. begin, begin_digest: the batches, and the sha256 of them, that earlier calls of
    calibrate() had read; batches, digest: the same after the newest one."""

    begin: int
    begin_digest: str
    batches: int
    digest: str


class Checkpoint:
    """The file that one call of calibrate() keeps.

    Args:
        path: The file; None: nothing is kept.
        subject: sha256 of the network and of what of the configuration decides over the statistics.
    """

    def __init__(self, path: str | os.PathLike[str] | None, subject: str) -> None:
        self.path = None if path is None else Path(path)
        self._subject = subject
        self._written = time.monotonic()

    def load(self, begin: int, begin_digest: str) -> tuple[Position, dict[str, Statistics]] | None:
        """What the file holds, or None if there is none yet.

        Raises:
            CalibrationError: it is of another network, configuration or call.
            CorruptFileError: it is no such file, or was altered.
        """
        if self.path is None or not self.path.exists():
            return None
        found, statistics = self._read(self.path)
        try:
            position = Position(**found["position"])
        except (KeyError, TypeError) as error:
            raise CorruptFileError(f"checkpoint {str(self.path)!r} is malformed: {error}") from error
        if (position.begin, position.begin_digest) != (begin, begin_digest):
            raise CalibrationError(
                f"checkpoint {str(self.path)!r} is of a call of calibrate() after {position.begin} batches, this one "
                f"comes after {begin}, or after others: give each call a file of its own"
            )
        if found.get("subject") != self._subject:
            raise CalibrationError(
                f"checkpoint {str(self.path)!r} is of another network, another configuration or, where transforms look "
                "at the data, other data: delete it, or name another file"
            )
        return position, statistics

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Statistics]]:
        if path.is_dir():
            raise CalibrationError(f"checkpoint {str(path)!r} is a folder: name a file")
        try:
            with safetensors.safe_open(path, "np") as file:
                said = file.metadata() or {}
                arrays = {key: file.get_tensor(key) for key in file.keys()}
        except (safetensors.SafetensorError, OSError, *MALFORMED) as error:
            raise CorruptFileError(
                f"{str(path)!r} is no calibration checkpoint, or a damaged one ({error}): name another file, or delete "
                "it if it was one"
            ) from error
        if _KEY not in said:
            raise CorruptFileError(f"{str(path)!r} is no calibration checkpoint: name another file")
        try:
            found = json.loads(said[_KEY])
            if found["format"] != _FORMAT:
                raise ValueError(f"its format is {found['format']!r:.80}")
            if found.pop("sha256") != _digest(found, arrays):
                raise ValueError("it was altered, its checksum does not match")
            return found, from_arrays(arrays)
        except (CalibrationError, *MALFORMED) as error:
            raise CorruptFileError(f"checkpoint {str(path)!r} cannot be read: {error}; delete it") from error

    def due(self) -> bool:
        """Whether the state should be written now."""
        return self.path is not None and time.monotonic() - self._written >= EVERY_SECONDS

    def write(self, position: Position, statistics: Mapping[str, Statistics]) -> None:
        """Replaces the file, whole or not at all. Raises StorageError."""
        if self.path is None:
            return
        state = {"format": _FORMAT, "subject": self._subject, "position": asdict(position)}
        arrays = to_arrays(statistics)
        with atomic_file(self.path, durable=False) as file:
            state = {**state, "sha256": _digest(state, arrays)}
            file.write_bytes(safetensors.numpy.save(arrays, {_KEY: json.dumps(state)}))
        self._written = time.monotonic()


def _digest(state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 of all that the file says."""
    digest = hashlib.sha256(json.dumps(state).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
