"""A deployment on disk: a folder that is written as a whole or not at all, and read defensively.

deployment.json     version, platform, target, interface, host steps, build_config, checksums of the other files
region_0.graph      the DNA graph, for InterpreterHw
region_0.dna        the program, for the Simulator
host.safetensors    the constants of what runs on the host
explanation.txt     where each operator runs, and why
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch.utils import _pytree as pytree

from . import native
from .backend.capture import InputSpec
from .backend.host import HostGraph, decode, encode, steps_from_json, steps_to_json
from .backend.region import DnaRegion, check_target, port_from
from .backend.runtime import Runner
from .config import BuildConfig, build_config
from .errors import CorruptFileError, InvalidModelError, MeraError
from .lower_bound import lower_bound_cycles
from .platform import Platform

if TYPE_CHECKING:
    from .compile import Built

VERSION = 1
MANIFEST = "deployment.json"
DUMP_STAGES = ("graph", "fuse", "tile", "lower", "alloc", "schedule", "isa")


class Deployment:
    """A compiled model: get_runner() runs it, path is its folder, explanation says where each operator runs."""

    def __init__(self, path: Path, manifest: Mapping[str, Any], graph: HostGraph, regions: list[DnaRegion]) -> None:
        self.path = path
        self.manifest = manifest
        self.platform: Platform = Platform(**manifest["platform"])
        self.target: str = manifest["target"]
        self.build_config: BuildConfig = build_config(manifest["build_config"])
        self.explanation: str = manifest["explanation"]
        self.regions = regions
        self._graph = graph
        self._inputs = [_input_spec(row) for row in manifest["inputs"]]
        self._in_spec = pytree.treespec_loads(manifest["in_spec"])
        self._out_spec = pytree.treespec_loads(manifest["out_spec"])

    @property
    def lower_bound_cycles(self) -> int:
        """The least cycles that any program could take: see mera_torch.lower_bound. Summed over regions."""
        return sum(lower_bound_cycles(region.lower_bound, self.platform) for region in self.regions)

    @property
    def host_operators(self) -> list[str]:
        """The operators that run on the host, in order."""
        return [str(step.target) for step in self._graph.steps if step.region < 0]

    def get_runner(self, target: str | None = None) -> Runner:
        """A torch.nn.Module that computes what the original module does, on `target` (default: the one exported for).

        Raises ConfigError for an unknown target.
        """
        return Runner(
            self._graph, self.regions, self._inputs, self._in_spec, self._out_spec, self.platform,
            check_target(self.target if target is None else target), self.lower_bound_cycles,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Deployment({str(self.path)!r}, {self.platform.name}, {self.target}, {len(self.regions)} regions)"

    @staticmethod
    def create(
        output_dir: str | os.PathLike[str], built: Built, target: str, config: BuildConfig, overwrite: bool
    ) -> Deployment:
        """Writes a built model. Raises MeraError if it cannot be written; nothing is left then."""
        files = _files(built, target, config)
        manifest = {
            "format": "mera_torch deployment",
            "version": VERSION,
            "core": native.core_version(),
            "platform": asdict(built.platform),
            "target": target,
            "inputs": [_input_json(spec) for spec in built.captured.inputs],
            "in_spec": pytree.treespec_dumps(built.captured.in_spec),
            "out_spec": pytree.treespec_dumps(built.captured.out_spec),
            "host": steps_to_json(built.graph),
            "regions": [region.describe() for region in built.regions],
            "build_config": _plain(config.values),
            "explanation": str(built.explanation),
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
        files[MANIFEST] = _seal(manifest)
        path = Path(output_dir)
        _write(path, files, overwrite)
        return Deployment(path, manifest, built.graph, built.regions)


def load(path: str | os.PathLike[str]) -> Deployment:
    """Reads a deployment that mera_torch.export wrote.

    Raises InvalidModelError if there is none, CorruptFileError if a file of it is missing, truncated, altered or of
    another version. Loading runs no code from the files.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise InvalidModelError(f"{os.fspath(path)!r} is no deployment: it has no {MANIFEST}")
    manifest = _unseal(folder / MANIFEST)
    try:
        data = {name: _read(folder / name, digest) for name, digest in _file_names(manifest).items()}
        constants = safetensors.torch.load(data.pop("host.safetensors"))
        machine = Platform(**manifest["platform"])
        regions = [_load_region(row, data, machine) for row in manifest["regions"]]
        graph = steps_from_json(manifest["host"], constants, len(regions))
        return Deployment(folder, manifest, graph, regions)
    except MeraError as error:
        raise CorruptFileError(f"deployment {os.fspath(path)!r}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, safetensors.SafetensorError) as error:
        raise CorruptFileError(f"deployment {os.fspath(path)!r}: {MANIFEST} is malformed: {error}") from error


# ---- files ----


def _files(built: Built, target: str, config: BuildConfig) -> dict[str, bytes]:
    constants = {name: tensor.detach().contiguous().clone() for name, tensor in built.graph.constants.items()}
    files = {
        "host.safetensors": safetensors.torch.save(constants),
        "explanation.txt": f"{built.explanation}\n".encode(),
    }
    for region in built.regions:
        files[f"{region.name}.graph"] = region.graph.save()
        if target == "Simulator":
            files[f"{region.name}.dna"] = region.program.save()
        if config["dump_ir"]:
            for stage in DUMP_STAGES:
                text = region.graph.dump(stage, region.platform, dict(region.options))
                files[f"{region.name}.{stage}.txt"] = text.encode()
    return files


def check_output(output_dir: str | os.PathLike[str], overwrite: bool) -> None:
    """Raises InvalidModelError if a deployment cannot be put there."""
    path = Path(output_dir)
    if not path.exists():
        return
    if not path.is_dir():
        raise InvalidModelError(f"output_dir {str(path)!r} is a file")
    if not any(path.iterdir()):
        return
    if not (path / MANIFEST).is_file():
        raise InvalidModelError(f"output_dir {str(path)!r} holds files that are no deployment; choose another folder")
    if not overwrite:
        raise InvalidModelError(f"output_dir {str(path)!r} holds a deployment already; overwrite=True replaces it")


def _write(path: Path, files: Mapping[str, bytes], overwrite: bool) -> None:
    """All files in a temporary folder beside, then renamed: there is never a half-written deployment at `path`."""
    check_output(path, overwrite)
    scratch: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        fresh = scratch / "new"
        fresh.mkdir()
        for name, data in files.items():
            with open(fresh / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if path.exists():
            path.rename(scratch / "old")
        try:
            fresh.rename(path)
        except OSError:
            if (scratch / "old").exists():
                (scratch / "old").rename(path)
            raise
    except OSError as error:
        raise MeraError(
            f"deployment {str(path)!r} cannot be written: {error.strerror or error}; nothing was kept"
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _seal(manifest: Mapping[str, Any]) -> bytes:
    """The manifest and the checksum of its text."""
    text = json.dumps(manifest, indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"sha256": "{digest}", "deployment": {text}}}\n'.encode()


def _unseal(path: Path) -> dict[str, Any]:
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


def _file_names(manifest: Mapping[str, Any]) -> dict[str, str]:
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


# ---- interface ----


def _input_json(spec: InputSpec) -> dict[str, Any]:
    return {
        "name": spec.name, "shape": list(spec.shape), "dtype": encode(spec.dtype), "constant": encode(spec.constant),
    }  # fmt: skip


def _input_spec(row: Mapping[str, Any]) -> InputSpec:
    dtype = decode(row["dtype"])
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype {row['dtype']!r} is unknown")
    return InputSpec(str(row["name"]), tuple(int(s) for s in row["shape"]), dtype, decode(row["constant"]))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) if isinstance(value, Mapping) else value for key, value in values.items()}
