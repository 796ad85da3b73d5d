"""Whether the runtime install, which has no torch, can run a deployment: the C runtime's own planner says."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic import storage_error
from ..files import CONSTANTS, MANIFEST, seal
from ..native.session import LoadedDeployment


def needs_torch(path: str | os.PathLike[str]) -> str | None:
    """None, or the sentence that names step, operator, source line and reason: what the deployment in that folder needs
    torch for. Raises InvalidModelError, CorruptFileError."""
    return LoadedDeployment(path, host_only=True).needs_torch


def planned(manifest: Mapping[str, Any], constants: bytes) -> str | None:
    """needs_torch() of a deployment that is about to be written. constants: host.safetensors, as bytes."""
    try:
        with tempfile.TemporaryDirectory(prefix="mera_torch.") as folder:
            path = Path(folder)
            (path / CONSTANTS).write_bytes(constants)
            digests = {CONSTANTS: hashlib.sha256(constants).hexdigest()}
            (path / MANIFEST).write_bytes(seal({**manifest, "files": digests}))
            return needs_torch(path)
    except OSError as error:
        raise storage_error(tempfile.gettempdir(), error) from error


def explained(explanation: str, sentence: str | None) -> str:
    """The explanation with a line for what planned() said."""
    return explanation if sentence is None else f"{explanation}\nneeds torch: {sentence}"
