"""Running a deployment on arrays, for the command line: in numpy, or in PyTorch where its host operators need that.

Needs numpy alone for the deployments that need no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import lite
from .errors import CorruptFileError, InvalidModelError, StorageError, UnsupportedError
from .samples import Array, Spec

SHOWN = 1000
"""Outputs of at most so many elements are part of a description."""


@dataclass(frozen=True)
class Executable:
    """A deployment to run: run(arrays) -> flat outputs.

    specs: of the tensors that it takes; names: of its outputs; by: "numpy" or "torch".
    """

    specs: list[Spec]
    names: list[str]
    run: Callable[[Sequence[Array]], list[Array]]
    target: str
    by: str
    metrics: Callable[[], dict[str, Any]]


def executable(
    path: str | os.PathLike[str], target: str | None = None, device_ids: Sequence[str] | None = None
) -> Executable:
    """A deployment made ready. target: default: "IP" if devices are named, else what it was compiled for.

    Raises InvalidModelError, CorruptFileError, ConfigError; UnsupportedError if it needs torch, which is not installed.
    """
    deployment = lite.load(path)
    target = target or ("IP" if device_ids else deployment.target)
    options: dict[str, Any] = {"device_ids": list(device_ids)} if device_ids else {}
    rows = deployment.manifest["inputs"]
    if all(isinstance(row["dtype"], Mapping) for row in rows):
        try:
            runner = deployment.get_runner(target, **options)
        except UnsupportedError as error:
            missing = error
        else:
            return Executable(
                _specs(rows),
                _names(deployment.manifest),
                lambda x: _listed(runner(*x)),
                target,
                "numpy",
                runner.metrics,
            )
    else:
        missing = UnsupportedError("a deployment with inputs that are no tensors needs torch")
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise missing from None
    return _in_torch(path, target, options)


def _in_torch(path: str | os.PathLike[str], target: str, options: Mapping[str, Any]) -> Executable:
    import torch
    from torch.utils import _pytree as pytree

    from . import pytrees
    from .backend.host import decode
    from .project import load

    deployment = load(path)
    runner = deployment.get_runner(target, **options)
    rows = deployment.manifest["inputs"]
    structure = pytrees.loads(deployment.manifest["in_spec"])

    def run(arrays: Sequence[Array]) -> list[Array]:
        left = iter(arrays)
        flat = [
            torch.from_numpy(next(left)) if isinstance(row["dtype"], Mapping) else decode(row["constant"])
            for row in rows
        ]
        args, kwargs = pytree.tree_unflatten(flat, structure)
        found = pytree.tree_leaves(runner(*args, **kwargs))
        return [value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value) for value in found]

    return Executable(_specs(rows), _names(deployment.manifest), run, target, "torch", runner.metrics)


def _specs(rows: Sequence[Mapping[str, Any]]) -> list[Spec]:
    tensors = [row for row in rows if isinstance(row["dtype"], Mapping)]
    return [Spec(str(row["name"]), tuple(row["shape"]), str(row["dtype"]["torch"])) for row in tensors]


def _names(manifest: Mapping[str, Any]) -> list[str]:
    return output_names([str(row["name"]) for row in manifest.get("outputs", ())], len(manifest["host"]["outputs"]))


def output_names(names: Sequence[str], count: int) -> list[str]:
    """The names of outputs, or output_0, output_1, ... where they have none of their own."""
    distinct = len(names) == count == len(set(names)) and all(names)
    return list(names) if distinct else [f"output_{index}" for index in range(count)]


def _listed(found: Any) -> list[Array]:
    return [np.asarray(value) for value in (found if isinstance(found, list | tuple) else [found])]


# ---- what came of it ----


def timed(run: Callable[[], Any], repeat: int, tell: Callable[[str, int, int], object] | None = None) -> list[float]:
    """Seconds of each of `repeat` runs."""
    seconds = []
    for index in range(repeat):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
        if tell:
            tell("run", index + 1, repeat)
    return seconds


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Statistics of runs on this host, in milliseconds; with per_second, the runs a second."""
    ms = 1e3 * np.array(seconds)
    found = {name: float(value) for name, value in (("mean", ms.mean()), ("std", ms.std()), ("min", ms.min()))}
    for name, percent in (("median", 50), ("p90", 90), ("p99", 99)):
        found[name] = float(np.percentile(ms, percent))
    return {"runs": len(seconds), **found, "max": float(ms.max()), "per_second": float(1e3 / ms.mean())}


def describe(name: str, array: Array) -> dict[str, Any]:
    """An output as JSON's types: name, shape, dtype, sha256 of its bytes, largest element and its values if few."""
    found: dict[str, Any] = {
        "name": name,
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "sha256": hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest(),
    }
    if array.size:
        found["largest_at"] = int(array.argmax())
    if array.size <= SHOWN:
        found["values"] = array.tolist()
    return found


def read_labels(path: Path) -> list[str]:
    """One label a line, or a JSON list. Raises StorageError, CorruptFileError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"labels {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"labels {str(path)!r} are no text: {error}") from error
    if not text.lstrip().startswith("["):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return [str(label) for label in json.loads(text)]
    except ValueError as error:
        raise CorruptFileError(f"labels {str(path)!r} are no JSON: {error}") from error


def best(scores: Array, count: int, labels: Sequence[str] | None = None) -> list[list[dict[str, Any]]]:
    """The highest `count` scores of each sample of [samples, classes] (dimensions of 1 behind are dropped), best first.

    Raises InvalidModelError if the output is no such scores, or there is not one label a class.
    """
    classes = scores.reshape(scores.shape[0], -1) if scores.ndim else scores.reshape(1, 1)
    if scores.ndim > 2 and classes.shape[1] != max(scores.shape[1:]):
        raise InvalidModelError(f"an output of shape {list(scores.shape)} holds no scores of classes")
    if labels is not None and len(labels) != classes.shape[1]:
        raise InvalidModelError(f"there are {len(labels)} labels for {classes.shape[1]} classes")
    rows = []
    for sample in classes:
        order = np.argsort(-sample.astype(np.float64), kind="stable")[:count]
        rows.append([
            {"class": int(i), "score": float(sample[i])} | ({"label": labels[i]} if labels is not None else {})
            for i in order
        ])  # fmt: skip
    return rows


def save(path: Path, arrays: Mapping[str, Array]) -> None:
    """Writes a .npz file. Raises StorageError."""
    try:
        with open(path, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be written: {error.strerror}") from error
