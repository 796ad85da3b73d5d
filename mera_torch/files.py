"""Files: a deployment's folder (checksums, the manifest, the regions), and writes that happen whole or not at all.
Needs numpy alone."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import native
from .backend.region import DnaRegion, port_from
from .errors import CorruptFileError, InvalidModelError, MeraError
from .platform import Platform

FORMAT = "mera_torch deployment"
VERSION = 1
MANIFEST = "deployment.json"
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What reading a manifest of another structure raises."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest. Raises InvalidModelError if there is none, CorruptFileError if it was altered."""
    if not (folder / MANIFEST).is_file():
        raise InvalidModelError(f"{str(folder)!r} is no deployment: it has no {MANIFEST}")
    return unseal(folder / MANIFEST)


def read_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The other files by name, their checksums verified."""
    return {name: _read(folder / name, digest) for name, digest in _digests(manifest).items()}


def load_regions(manifest: Mapping[str, Any], data: Mapping[str, bytes]) -> list[DnaRegion]:
    """The regions; errors are CorruptFileError, or one of MALFORMED."""
    machine = Platform(**manifest["platform"])
    return [_load_region(row, data, machine) for row in manifest["regions"]]


def seal(manifest: Mapping[str, Any]) -> bytes:
    """The manifest and the checksum of its text."""
    text = json.dumps(manifest, indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"sha256": "{digest}", "deployment": {text}}}\n'.encode()


def unseal(path: Path) -> dict[str, Any]:
    try:
        sealed = json.loads(path.read_text(encoding="utf-8"))
        manifest: dict[str, Any] = sealed["deployment"]
        digest = hashlib.sha256(json.dumps(manifest, indent=1).encode()).hexdigest()
        good = digest == sealed["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{str(path)!r} cannot be read: {error}") from error
    if not good:
        raise CorruptFileError(f"{str(path)!r} was altered: its checksum does not match")
    if manifest.get("version") != VERSION:
        raise CorruptFileError(f"{str(path)!r} is of version {manifest.get('version')}, this is version {VERSION}")
    return manifest


def _digests(manifest: Mapping[str, Any]) -> dict[str, str]:
    found = {str(name): str(digest) for name, digest in manifest["files"].items()}
    for name in found:
        if os.path.basename(name) != name or name in (".", ".."):
            raise ValueError(f"file name {name!r} leaves the folder")
    return found


def _read(path: Path, digest: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptFileError(f"{path.name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise CorruptFileError(f"{path.name} was truncated or altered: its checksum does not match")
    return data


def _load_region(row: Mapping[str, Any], data: Mapping[str, bytes], machine: Platform) -> DnaRegion:
    name = str(row["name"])
    graph = native.Graph.load(data[f"{name}.graph"])
    inputs, outputs = ([port_from(p) for p in row[side]] for side in ("inputs", "outputs"))
    index = [int(i) for i in row["output_index"]]
    if [p.dna for p in inputs] != [t.shape for t in graph.inputs]:
        raise ValueError(f"{name}: its inputs are not those of its graph")
    shapes = [t.shape for t in graph.outputs]
    if len(index) != len(outputs) or any(
        not 0 <= i < len(shapes) or math.prod(p.dna) != math.prod(shapes[i])
        for i, p in zip(index, outputs, strict=True)
    ):
        raise ValueError(f"{name}: its outputs are not those of its graph")
    rows = {str(key): (str(a), str(b), str(c)) for key, (a, b, c) in row["rows"].items()}
    bound = {str(key): int(n) for key, n in row["lower_bound"].items()}
    options = {str(key): int(n) for key, n in row["options"].items()}
    region = DnaRegion(name, graph, inputs, outputs, index, machine, options, rows, bound)
    if f"{name}.dna" in data:
        region.adopt(native.Program.load(data[f"{name}.dna"]))
    return region


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, which becomes `path` if nothing fails. Raises MeraError if it cannot be written."""
    final = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=final.suffix, dir=final.parent)
        os.close(handle)
    except OSError as error:
        raise MeraError(f"{str(final)!r} cannot be written: {error.strerror}") from error
    written = Path(name)
    try:
        yield written
        os.chmod(written, 0o666 & ~_umask())
        os.replace(written, final)
    except OSError as error:
        raise MeraError(f"{str(final)!r} cannot be written: {error.strerror}") from error
    finally:
        written.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
