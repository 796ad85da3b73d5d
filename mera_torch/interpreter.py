"""The target Interpreter: the imported model itself, float or quantized, run by PyTorch.

A folder of two files: model.pt2 (torch.export) and interpreter.json (names, shapes, dtypes, checksum).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx
from torch.utils import _pytree as pytree

from .atomic import atomic_folder
from .converters import ImportedModel, TensorInfo, from_pt2
from .converters.exported import save_pt2
from .errors import CorruptFileError
from .ops.common import op_name, origin

FORMAT, VERSION = "mera_torch interpreter", 1
MANIFEST, MODEL = "interpreter.json", "model.pt2"
Array = npt.NDArray[Any]


def save(model: ImportedModel, folder: str | os.PathLike[str], name: str) -> None:
    """Writes the model, replacing what is there, as one step. Raises StorageError."""
    with atomic_folder(folder) as new:
        save_pt2(model, model.example_inputs(), new / MODEL)
        manifest = {
            "format": FORMAT, "version": VERSION, "target": "Interpreter", "model": name,
            "inputs": [_row(info) for info in model.info.inputs],
            "outputs": [_row(info) for info in model.info.outputs],
            "files": {MODEL: hashlib.sha256((new / MODEL).read_bytes()).hexdigest()},
        }  # fmt: skip
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def load(folder: str | os.PathLike[str]) -> Interpreter:
    """What save() wrote. Raises CorruptFileError for anything else."""
    path = Path(folder)
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or not isinstance(manifest["version"], int):
            raise CorruptFileError(f"{str(path / MANIFEST)!r} is another program's")
        if manifest["version"] > VERSION:
            raise CorruptFileError(
                f"{str(path / MANIFEST)!r} was written by a newer mera_torch (version {manifest['version']}, this one "
                f"reads up to {VERSION}): update mera_torch"
            )
        data = (path / MODEL).read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest["files"][MODEL]:
            raise CorruptFileError(f"{str(path / MODEL)!r} was truncated or altered: its checksum does not match")
        specs = [[_spec(row) for row in manifest[side]] for side in ("inputs", "outputs")]
    except OSError as error:
        raise CorruptFileError(f"deployment {str(path)!r} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CorruptFileError):
            raise
        raise CorruptFileError(f"{str(path / MANIFEST)!r} is damaged: {error!r}") from error
    return Interpreter(from_pt2(data), specs[0], specs[1])


Spec = tuple[str, tuple[int, ...], str]


class Interpreter:
    """inputs, outputs: (name, shape, dtype); run() computes; profile: rows of the last run, if it was asked for."""

    def __init__(self, model: ImportedModel, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> None:
        if len(model.info.inputs) != len(inputs):
            raise CorruptFileError(f"{MANIFEST} names {len(inputs)} inputs, {MODEL} has {len(model.info.inputs)}")
        self.inputs, self.outputs = list(inputs), list(outputs)
        self._model = model
        self._timed = _Timed(model)

    def run(self, arrays: Sequence[Array], profiling: bool = False) -> list[Array]:
        """The outputs for inputs of the right shapes and dtypes."""
        tensors = [torch.from_numpy(array) for array in arrays]
        with torch.no_grad():
            found = self._timed.timed_run(tensors) if profiling else self._model(*tensors)
        return [_array(leaf) for leaf in pytree.tree_leaves(found)]

    @property
    def profile(self) -> list[dict[str, Any]]:
        """For each operator of the last run with profiling: node, op, module, microseconds."""
        return self._timed.rows


class _Timed(fx.Interpreter):
    """Runs operator by operator with a clock."""

    def __init__(self, model: ImportedModel) -> None:
        super().__init__(model)
        self.rows: list[dict[str, Any]] = []

    def timed_run(self, tensors: Sequence[torch.Tensor]) -> Any:
        self.rows = []
        return self.run(*tensors, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        begin = time.perf_counter_ns()
        found = super().run_node(n)
        if n.op == "call_function":
            microseconds = (time.perf_counter_ns() - begin) / 1e3
            row = {"node": n.name, "op": op_name(n.target), "module": origin(n).module, "microseconds": microseconds}
            self.rows.append(row)
        return found


def _array(value: Any) -> Array:
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _row(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "shape": list(info.shape), "dtype": str(info.dtype).removeprefix("torch.")}


def _spec(row: Any) -> Spec:
    return str(row["name"]), tuple(int(size) for size in row["shape"]), str(np.dtype(row["dtype"]))
