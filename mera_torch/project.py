"""A deployment on disk: a folder that is written as a whole or not at all, and read defensively.

deployment.json     what it is: see mera_torch.schema
metrics.json        what the run of the compiler took
region_0.graph      the DNA graph, for InterpreterHw
region_0.dna        the program, for the Simulator
host.safetensors    the constants of what runs on the host
golden.npz          inputs and the outputs they must give
explanation.txt     where each operator runs, and why
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from . import golden, pytrees
from .atomic import atomic_folder
from .backend.capture import Captured
from .backend.host import HostGraph, decode, steps_from_json, steps_to_json
from .backend.region import COMPILED_TARGETS, DeviceIds, DnaRegion, check_target
from .backend.runtime import Runner, last_uses, on, run_steps
from .backend.runtime_support import explained, needs_torch, planned
from .config import BuildConfig, build_config
from .errors import CorruptFileError, InvalidModelError, MeraError
from .files import (
    CONSTANTS,
    EXPLANATION,
    FORMAT,
    MALFORMED,
    MANIFEST,
    METRICS,
    VERSION,
    load_regions,
    read_deployment,
    seal,
)
from .fingerprint import graph_hash, weights_hash
from .interface import input_rows, input_spec, output_rows
from .lower_bound import lower_bound_cycles
from .platform import Platform
from .schema import check
from .versions import tool_versions

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
        self._inputs = [input_spec(row) for row in manifest["inputs"]]
        self._in_spec = pytrees.loads(manifest["in_spec"])
        self._out_spec = pytrees.loads(manifest["out_spec"])

    @property
    def lower_bound_cycles(self) -> int:
        """The least cycles that any program could take: see mera_torch.lower_bound. Summed over regions."""
        return sum(lower_bound_cycles(region.lower_bound, self.platform) for region in self.regions)

    @property
    def host_operators(self) -> list[str]:
        """The operators that run on the host, in order."""
        return [str(step.target) for step in self._graph.steps if step.region < 0]

    @cached_property
    def needs_torch(self) -> str | None:
        """None, or the sentence that says why the runtime install, which has no torch, cannot run this deployment."""
        return needs_torch(self.path)

    @property
    def transposes(self) -> int:
        """Transpose nodes in the regions: 0 for an image CNN."""
        return sum(node.op == "transpose" for region in self.regions for node in region.graph.nodes)

    def get_runner(self, target: str | None = None, device_ids: DeviceIds | None = None) -> Runner:
        """A torch.nn.Module that computes what the original module does, on `target` (default: the one exported for).

        device_ids: for "IP", addresses of devices or indices into mera_torch.device.discover(), to spread runs over;
        None for one that is free or, where there is none, an emulated one. Raises ConfigError for an unknown target,
        DeviceError.
        """
        return Runner(
            self._graph, self.regions, self._inputs, self._in_spec, self._out_spec, self.platform,
            check_target(self.target if target is None else target), self.lower_bound_cycles, device_ids,
        )  # fmt: skip

    def run_flat(self, target: str, inputs: Sequence[Any]) -> list[Any]:
        """The flat outputs for the flat inputs, tensors of the right shapes and dtypes, in the manifest's order."""
        with torch.no_grad():
            return run_steps(self._graph, self.regions, on(target), inputs, last_uses(self._graph, self.regions))

    def __repr__(self) -> str:
        return f"Deployment({str(self.path)!r}, {self.platform.name}, {self.target}, {len(self.regions)} regions)"

    @staticmethod
    def create(
        output_dir: str | os.PathLike[str], built: Built, target: str, config: BuildConfig, overwrite: bool
    ) -> Deployment:
        """Writes a built model. Raises MeraError if it cannot be written; nothing is left then."""
        files = _files(built, target, config)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "versions": tool_versions(),
            "platform": asdict(built.platform),
            "target": target,
            "source": _source(built.captured),
            "inputs": input_rows(built),
            "outputs": output_rows(built),
            "in_spec": pytrees.dumps(built.captured.in_spec),
            "out_spec": pytrees.dumps(built.captured.out_spec),
            "host": steps_to_json(built.graph),
            "regions": [region.describe() for region in built.regions],
            "build_config": _plain(config.values),
            "compile": _compile_metrics(built, target),
            "explanation": str(built.explanation),
        }
        manifest["explanation"] = explained(manifest["explanation"], planned(manifest, files[CONSTANTS]))
        files[EXPLANATION] = f"{manifest['explanation']}\n".encode()
        manifest["golden"], pair = _golden(built, manifest)
        files |= pair
        manifest["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        check(manifest)
        files[METRICS] = seal(_run_metrics(built), "metrics")
        files[MANIFEST] = seal(manifest)
        path = Path(output_dir)
        _write(path, files, overwrite)
        for region in built.regions:
            region.forget_bytes()
        return Deployment(path, manifest, built.graph, built.regions)


def load(path: str | os.PathLike[str]) -> Deployment:
    """Reads a deployment that mera_torch.export wrote.

    Raises InvalidModelError if there is none, CorruptFileError if a file of it is missing, truncated, altered or of
    another version. Loading runs no code from the files.
    """
    folder = Path(path)
    try:
        manifest, data = read_deployment(folder)
        constants = safetensors.torch.load(data[CONSTANTS])
        regions = load_regions(manifest, data)
        graph = steps_from_json(manifest["host"], constants, len(regions))
        return Deployment(folder, manifest, graph, regions)
    except InvalidModelError as error:
        if not (folder / MANIFEST).is_file():
            raise  # there is no deployment
        raise CorruptFileError(f"deployment {os.fspath(path)!r}: {error}") from error
    except MeraError as error:
        raise CorruptFileError(f"deployment {os.fspath(path)!r}: {error}") from error
    except (*MALFORMED, safetensors.SafetensorError) as error:
        raise CorruptFileError(f"deployment {os.fspath(path)!r}: {MANIFEST} is malformed: {error}") from error


# ---- files ----


def _files(built: Built, target: str, config: BuildConfig) -> dict[str, bytes]:
    constants = {name: tensor.detach().contiguous().clone() for name, tensor in built.graph.constants.items()}
    files = {CONSTANTS: safetensors.torch.save(constants)}
    for region in built.regions:
        files[f"{region.name}.graph"] = region.graph_bytes
        if target in COMPILED_TARGETS:
            files[f"{region.name}.dna"] = region.program_bytes
        if config["dump_ir"]:
            for stage in DUMP_STAGES:
                text = region.graph.dump(stage, region.platform, dict(region.options))
                files[f"{region.name}.{stage}.txt"] = text.encode()
    return files


def _source(captured: Captured) -> dict[str, Any]:
    """What was compiled."""
    return {
        "format": captured.info.format if captured.info else "pytorch",
        "graph_sha256": graph_hash(captured.gm), "weights_sha256": weights_hash(captured.gm),
    }  # fmt: skip


def _compile_metrics(built: Built, target: str) -> dict[str, Any]:
    """What the compiler made of it; the same for every export of the same model. cycles and what follows: of the
    Simulator, null for a deployment without programs."""
    stats = [region.simulator.stats() for region in built.regions] if target in COMPILED_TARGETS else []
    return {
        "regions": len(built.regions),
        "host_operators": sum(step.region < 0 for step in built.graph.steps),
        "transposes": built.transposes,
        "macs": sum(region.macs for region in built.regions),
        "lower_bound_cycles": sum(lower_bound_cycles(region.lower_bound, built.platform) for region in built.regions),
        **{key: sum(row[key] for row in stats) if stats else None for key in ("cycles", "instructions")},
    }


def _run_metrics(built: Built) -> dict[str, Any]:
    """What this one run of the compiler took, region by region."""
    rows = {region.name: region.compiled for region in built.regions}
    return {
        "version": VERSION,
        "compile_seconds": sum(row.seconds for row in rows.values() if row),
        "regions": {name: {"seconds": row.seconds, "cache": row.cache} if row else None for name, row in rows.items()},
    }


def _golden(built: Built, manifest: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest's entry, and the file. Where the host's operators do not take inputs that were drawn, or draw
    something themselves, there is no file, and the entry says why."""
    try:
        arrays = golden.golden_inputs(manifest["inputs"])
        outputs = _flat_outputs(built, manifest["inputs"], arrays)
        if any(step.region < 0 for step in built.graph.steps):
            again = _flat_outputs(built, manifest["inputs"], arrays)
            if any(not np.array_equal(again[name], held, equal_nan=True) for name, held in outputs.items()):
                return {"file": None, "reason": "the host's operators give another result each time"}, {}
    except MeraError:
        raise
    except Exception as error:
        return {"file": None, "reason": f"the host's operators do not take drawn inputs: {error}"}, {}
    tolerances = golden.tolerances(manifest)
    return {"file": golden.FILE, "tolerances": tolerances}, {golden.FILE: golden.pack({**arrays, **outputs})}


def _flat_outputs(built: Built, rows: list[dict[str, Any]], arrays: Mapping[str, golden.Array]) -> dict[str, Any]:
    """What InterpreterHw and the host give, by name: output_0, ..."""
    flat = [
        torch.from_numpy(arrays[f"input_{i}"]) if f"input_{i}" in arrays else decode(row["constant"])
        for i, row in enumerate(rows)
    ]
    with torch.no_grad():
        found = run_steps(built.graph, built.regions, on("InterpreterHw"), flat, last_uses(built.graph, built.regions))
    return {f"output_{i}": value.numpy() for i, value in enumerate(found) if isinstance(value, torch.Tensor)}


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
    """All files as one step: there is never a half-written deployment at `path`."""
    check_output(path, overwrite)
    with atomic_folder(path, replace=overwrite) as fresh:
        for name, data in files.items():
            (fresh / name).write_bytes(data)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) if isinstance(value, Mapping) else value for key, value in values.items()}
