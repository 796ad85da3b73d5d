"""A deployment on disk: a folder that is written as a whole or not at all, and read defensively.

deployment.json     version, platform, target, interface, host steps, build_config, checksums of the other files
region_0.graph      the DNA graph, for InterpreterHw
region_0.dna        the program, for the Simulator
host.safetensors    the constants of what runs on the host
explanation.txt     where each operator runs, and why
"""

from __future__ import annotations

import hashlib
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
from .backend.region import DnaRegion, check_target
from .backend.runtime import Runner
from .config import BuildConfig, build_config
from .errors import CorruptFileError, InvalidModelError, MeraError
from .files import FORMAT, MALFORMED, MANIFEST, VERSION, load_regions, read_files, read_manifest, seal
from .lower_bound import lower_bound_cycles
from .platform import Platform

if TYPE_CHECKING:
    from .compile import Built

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

    @property
    def transposes(self) -> int:
        """Transpose nodes in the regions: 0 for an image CNN."""
        return sum(node.op == "transpose" for region in self.regions for node in region.graph.nodes)

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
            "format": FORMAT,
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
        files[MANIFEST] = seal(manifest)
        path = Path(output_dir)
        _write(path, files, overwrite)
        return Deployment(path, manifest, built.graph, built.regions)


def load(path: str | os.PathLike[str]) -> Deployment:
    """Reads a deployment that mera_torch.export wrote.

    Raises InvalidModelError if there is none, CorruptFileError if a file of it is missing, truncated, altered or of
    another version. Loading runs no code from the files.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    try:
        data = read_files(folder, manifest)
        constants = safetensors.torch.load(data["host.safetensors"])
        regions = load_regions(manifest, data)
        graph = steps_from_json(manifest["host"], constants, len(regions))
        return Deployment(folder, manifest, graph, regions)
    except MeraError as error:
        raise CorruptFileError(f"deployment {os.fspath(path)!r}: {error}") from error
    except (*MALFORMED, safetensors.SafetensorError) as error:
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
