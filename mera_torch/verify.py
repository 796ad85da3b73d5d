"""Whether a deployment is what was exported: every file's checksum, the manifest's schema, and the golden pair on every
target that was built. Needs numpy alone; with torch, operators of the host run there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from . import golden
from .backend.region import COMPILED_TARGETS, TARGETS, check_target
from .errors import CorruptFileError, MeraError
from .files import MALFORMED, METRICS, check_files, read_deployment, read_manifest, unseal
from .golden import Array, Row

Run = Callable[[str, Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Difference:
    """An output that is not what it was: at `position`, the first of `count` of `elements` that differ, it was `wanted`
    and is `got`; or, with an empty position, its dtype or shape."""

    target: str
    output: str
    position: tuple[int, ...]
    wanted: Any
    got: Any
    count: int
    elements: int

    def __str__(self) -> str:
        if not self.count:
            return f"{self.target}: output {self.output!r} is {self.got}, it was {self.wanted}"
        return (
            f"{self.target}: output {self.output!r} differs in {self.count} of {self.elements} elements, first at "
            f"{list(self.position)}: {self.got!r} instead of {self.wanted!r}"
        )


@dataclass
class Verification:
    """files: how many had the right checksum; targets: where the golden pair ran; tolerances: by how much an output may
    differ (see mera_torch.golden.tolerances); note: why nothing ran, if so."""

    path: str
    version: int
    files: int
    targets: list[str] = field(default_factory=list)
    tolerances: dict[str, float] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    note: str = ""

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "equal": self.equal}

    def __str__(self) -> str:
        lines = [f"{self.path}: version {self.version}, {self.files} files have the right checksum"]
        for target in self.targets:
            found = [str(d) for d in self.differences if d.target == target]
            loose = [f"{name} within {part:g}" for name, part in self.tolerances.items() if part]
            how = f"every byte equal{' but ' + ', '.join(loose) if loose else ''}"
            lines += found or [f"{target}: golden pair, {how}"]
        return "\n".join([*lines, self.note] if self.note else lines)


def verify(
    path: str | os.PathLike[str], targets: Sequence[str] | None = None, *, with_torch: bool | None = None
) -> Verification:
    """Reads every file of a deployment and runs its golden pair.

    targets: default: all that were built, devices (IP) only if it was exported for them. with_torch: whether operators
    of the host run in PyTorch; default: if it is installed. Raises InvalidModelError if there is no deployment,
    CorruptFileError naming every file that is missing or altered, ConfigError for an unknown target, UnsupportedError
    if a host operator needs torch and it is not there.
    """
    folder = Path(path)
    try:
        check_files(folder, read_manifest(folder))
        manifest, data = read_deployment(folder)
        if manifest["version"] >= 2:
            unseal(folder / METRICS, "metrics")
            _check_schema(manifest)
        result = Verification(str(folder), manifest["version"], len(data) + 1 + (manifest["version"] >= 2))
        pair = manifest["golden"]
        if pair is None or pair["file"] is None:
            why = pair["reason"] if pair else "version 1 of the format has none"
            result.note = f"there is no golden pair to run: {why}"
            return result
        inputs, outputs = golden.unpack(data[pair["file"]], manifest["inputs"], manifest["outputs"])
        names = [str(row["name"]) for row in manifest["outputs"]]
        result.tolerances = dict(zip(names, map(float, pair["tolerances"]), strict=True))
    except MALFORMED as error:
        if isinstance(error, MeraError):
            raise
        raise CorruptFileError(f"deployment {str(folder)!r} is malformed: {error}") from error
    result.targets = [check_target(t) for t in targets] if targets else _built(manifest, data)
    run = _runner(folder, find_spec("torch") is not None if with_torch is None else with_torch)
    for target in result.targets:
        result.differences += _compare(target, result.tolerances, outputs, run(target, inputs))
    return result


def _check_schema(manifest: Row) -> None:
    try:
        from .schema import check
    except ModuleNotFoundError:  # the runtime install: what follows reads by hand
        return
    check(manifest)


def _built(manifest: Row, data: Mapping[str, bytes]) -> list[str]:
    """InterpreterHw needs the graphs, which are always there; the others need the programs."""
    compiled = any(name.endswith(".dna") for name in data)
    wanted = {"InterpreterHw", "Simulator", manifest["target"]}
    return [t for t in TARGETS if t in wanted and (compiled or t not in COMPILED_TARGETS)]


def _runner(folder: Path, with_torch: bool) -> Run:
    if not with_torch:
        from . import lite

        light = lite.load(folder)

        def run_light(target: str, inputs: Sequence[Any]) -> Sequence[Any]:
            found = light.get_runner(target)(*(x for x in inputs if isinstance(x, np.ndarray)))
            return found if isinstance(found, list | tuple) else [found]

        return run_light

    import torch

    from . import project
    from .backend.host import decode

    deployment = project.load(folder)

    def run(target: str, inputs: Sequence[Any]) -> Sequence[Any]:
        flat = [torch.from_numpy(x) if isinstance(x, np.ndarray) else decode(x) for x in inputs]
        found = deployment.run_flat(target, flat)
        return [value.numpy() if isinstance(value, torch.Tensor) else value for value in found]

    return run


def _compare(
    target: str, tolerances: Mapping[str, float], wanted: Sequence[Any], got: Sequence[Any]
) -> list[Difference]:
    found = []
    for (name, tolerance), was, now in zip(tolerances.items(), wanted, got, strict=True):
        if not isinstance(was, np.ndarray):
            continue  # a constant of the manifest
        if _kind(was) != _kind(now):
            found.append(Difference(target, name, (), _kind(was), _kind(now), 0, was.size))
            continue
        different = _different(was, now, tolerance)
        if different.any():
            at = tuple(int(i) for i in np.argwhere(different)[0])
            count = int(different.sum())
            found.append(Difference(target, name, at, was[at].item(), now[at].item(), count, was.size))
    return found


def _kind(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _different(wanted: Array, got: Array, tolerance: float) -> Array:
    """Which elements differ by more than is allowed: not at all, every bit counts; else see mera_torch.golden."""
    if not tolerance:
        bits = np.dtype(f"u{wanted.dtype.itemsize}")
        one, other = (np.ascontiguousarray(x).reshape(x.shape).view(bits) for x in (wanted, got))
        return np.asarray(one != other)
    if wanted.dtype.kind != "f":
        different = np.asarray(wanted != got)
        return different if different.sum() > tolerance * different.size else np.zeros_like(different)
    finite = np.isfinite(wanted)
    largest = float(np.abs(wanted[finite], dtype=np.float64).max(initial=0.0))
    same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))
    with np.errstate(invalid="ignore"):
        return np.asarray(~(same | (np.abs(wanted.astype(np.float64) - got) <= tolerance * largest)))
