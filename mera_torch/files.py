"""A deployment's files: checksums, the manifest, the regions. Needs numpy alone.

Version 2 added versions, source, outputs, golden and compile to the manifest, and source_name, layout and quantization
to its inputs; version 1 is read as far as it goes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from . import native
from .atomic import settle
from .backend.region import DnaRegion, port_from
from .errors import CorruptFileError, InvalidModelError, MeraError
from .platform import Platform

FORMAT = "mera_torch deployment"
VERSION = 2
MANIFEST = "deployment.json"
METRICS = "metrics.json"
EXPLANATION = "explanation.txt"
CONSTANTS = "host.safetensors"
T = TypeVar("T")
log = logging.getLogger(__name__)
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What reading a manifest of another structure raises."""


def read_deployment(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the other files by name. Raises InvalidModelError, CorruptFileError, or one of MALFORMED."""

    def read() -> tuple[dict[str, Any], dict[str, bytes]]:
        manifest = read_manifest(folder)
        return manifest, read_files(folder, manifest)

    return steady(folder, read)


PATIENCE = 3
"""So often must a folder that does not change be unreadable."""


def steady(folder: Path, read: Callable[[], T]) -> T:
    """What read() gives, or raises, of a folder that no other process replaced meanwhile: else it is read again."""
    settle(folder)
    tries = PATIENCE
    while True:
        state = _state(folder)
        try:
            found = read()
        except (MeraError, *MALFORMED):
            if _state(folder) == state:  # which a folder that came and went in between could have, too
                tries -= 1
                if not tries:
                    raise
                time.sleep(0.005)
            continue
        if _state(folder) == state:
            return found


def _state(folder: Path) -> tuple[int, ...]:
    """What tells a folder from the one that takes its place."""
    try:
        status = (folder / MANIFEST).stat()
        return status.st_dev, status.st_ino, status.st_mtime_ns
    except OSError:
        return ()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest. Raises InvalidModelError if there is none, CorruptFileError if it was altered."""
    settle(folder)
    if not (folder / MANIFEST).is_file():
        raise InvalidModelError(f"{str(folder)!r} is no deployment: it has no {MANIFEST}")
    return _upgraded(unseal(folder / MANIFEST))


def read_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The other files by name, their checksums verified."""
    return {name: _read(folder / name, digest) for name, digest in _digests(manifest).items()}


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raises CorruptFileError naming every file that is missing, truncated or altered."""
    wrong = []
    for name, digest in _digests(manifest).items():
        try:
            _read(folder / name, digest)
        except CorruptFileError as error:
            wrong.append(str(error))
    if wrong:
        raise CorruptFileError(f"deployment {str(folder)!r}: {'; '.join(wrong)}")


def load_regions(manifest: Mapping[str, Any], data: Mapping[str, bytes]) -> list[DnaRegion]:
    """The regions; errors are CorruptFileError, or one of MALFORMED."""
    machine = Platform(**manifest["platform"])
    cached = bool(manifest["build_config"].get("cache", True))
    core = str(manifest["versions"].get("core_build", manifest["versions"].get("core", "")))
    return [_load_region(row, data, machine, cached, core) for row in manifest["regions"]]


def seal(content: Mapping[str, Any], key: str = "deployment") -> bytes:
    """JSON and the checksum of its text."""
    text = json.dumps(content, indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"sha256": "{digest}", "{key}": {text}}}\n'.encode()


def unseal(path: Path, key: str = "deployment", newest: int = VERSION) -> dict[str, Any]:
    """What seal() wrote, with a "version" from 1 to newest. Raises CorruptFileError if it was altered or is newer."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptFileError(f"{str(path)!r} cannot be read: {error}") from error
    return unsealed(data, repr(str(path)), key, newest)


def unsealed(data: bytes, where: str, key: str, newest: int) -> dict[str, Any]:
    """unseal() of a file's bytes; where: what messages call it."""
    try:
        sealed = json.loads(data.decode())
        content: dict[str, Any] = sealed[key]
        version = content["version"]
        digest = hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
        good = digest == sealed["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{where} cannot be read: {error}") from error
    if type(version) is int and version > newest:
        raise CorruptFileError(
            f"{where} is of version {str(version)[:20]}, and this mera_torch reads up to {newest}: install a newer one"
        )
    if not good:
        raise CorruptFileError(f"{where} was altered: its checksum does not match")
    if type(version) is not int or version < 1:
        raise CorruptFileError(f"{where} is of version {version!r}: there are 1 to {newest}")
    return content


def _upgraded(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest of version 1 with what version 2 added, as far as it is known."""
    if manifest["version"] > 1:
        return manifest
    try:
        ports = {port["value"]: port for region in manifest["regions"] for port in region["outputs"]}
        outputs = [_output_row(index, given, ports) for index, given in enumerate(manifest["host"]["outputs"])]
        inputs = [{**row, "source_name": None, "layout": "", "quantization": None} for row in manifest["inputs"]]
    except MALFORMED as error:
        raise CorruptFileError(f"{MANIFEST} is malformed: {error}") from error
    added = {"versions": {"core": manifest.get("core", "")}, "source": None, "golden": None, "compile": None}
    return {**manifest, **added, "inputs": inputs, "outputs": outputs}


def _output_row(index: int, given: Any, ports: Mapping[str, Any]) -> dict[str, Any]:
    """shape is null where only running tells it."""
    row: dict[str, Any] = {"name": f"output_{index}", "shape": [], "dtype": None, "constant": None, "layout": ""}
    if not isinstance(given, dict) or "ref" not in given:
        return {**row, "constant": given, "quantization": None}
    port = ports.get(given["ref"])
    if port is None:
        return {**row, "shape": None, "quantization": None}
    quantization = {"scale": port["scale"], "zero_point": port["zero_point"], "dtype": {"torch": "int8"}}
    dtype = {"torch": "float32" if port["real"] else "int8"}
    return {**row, "shape": port["shape"], "dtype": dtype, "quantization": quantization}


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


def _load_region(
    row: Mapping[str, Any], data: Mapping[str, bytes], machine: Platform, cached: bool, core: str
) -> DnaRegion:
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
    region = DnaRegion(name, graph, inputs, outputs, index, machine, options, rows, bound, cached)
    if f"{name}.dna" in data:
        _adopt(region, data[f"{name}.dna"], core)
    return region


def _adopt(region: DnaRegion, data: bytes, core: str) -> None:
    """Gives the region its program; one that another version of the core wrote and this one cannot read is compiled
    anew, from the region's graph, when it is needed."""
    try:
        region.adopt(native.Program.load(data))
    except CorruptFileError as error:
        if core in ("", native.core_build()):
            raise
        log.warning("%s.dna is of another version of mera_torch (%s): it is compiled anew", region.name, error)
