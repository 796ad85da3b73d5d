"""What TFLite's reference kernels compute from a model: every tensor, in a process of its own, which TFLite may abort.

Run as a module, this is that process: ``python -m mera_torch.tflite_reference FOLDER``.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import MeraError

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], object]

READING = "reading the model"
MODEL, STAGE = "model.tflite", "stage"  # files in the folder that both processes share; arrays are <number>.npy


class ReferenceFailedError(MeraError, RuntimeError):
    """TFLite's reference interpreter cannot be had, or computes nothing of the model."""


@dataclass(frozen=True)
class Reference:
    """tensors: by index, those that the first `operators` operators of the file read or compute.

    failure: "" if these are all of its operators, else how TFLite ended, and at which operator.
    """

    tensors: dict[int, Array]
    operators: int
    failure: str = ""


class _Failed(Exception):
    """How one run of TFLite ended."""


def reference(
    model: bytes,
    inputs: Sequence[Array],
    operators: Sequence[str],
    *,
    timeout: float = 600,
    progress: Progress | None = None,
) -> Reference:
    """Every tensor of the main subgraph as TFLite's BUILTIN_REF kernels compute it.

    model: a file that mera_torch's reader has read without complaint; operators: a name for each of its operators.
    inputs: in the file's order, shapes and dtypes. timeout: seconds of one run. Where TFLite dies or refuses the model,
    the operator that does it is sought by running shorter and shorter parts of the file, and what the operators before
    it compute is given. Raises ReferenceFailedError if TFLite cannot run at all.
    """
    try:
        return Reference(_run(model, inputs, timeout), len(operators))
    except _Failed as failed:
        how = str(failed)
        if READING in how:
            raise ReferenceFailedError(how) from None
    good, bad, tensors = 0, len(operators), dict[int, Array]()
    while bad - good > 1:
        middle = (good + bad) // 2
        if progress:
            progress(f"TFLite failed; seeking the operator, {good} to {bad}", good, len(operators))
        try:
            good, tensors = middle, _run(first_operators(model, middle), inputs, timeout)
        except _Failed as failed:
            bad, how = middle, str(failed)
    failure = f"{how}, at operator {good} {operators[good]}" if operators else how
    if good == 0:
        raise ReferenceFailedError(f"TFLite's reference kernels compute nothing of the model: {failure}")
    return Reference(tensors, good, failure)


def first_operators(model: bytes, count: int) -> bytes:
    """The file cut down to the first `count` operators (at least one) of its main subgraph; its output is the first of
    the last one. Only lengths of vectors change."""
    import tflite

    cut = bytearray(model)
    graph = tflite.Model.GetRootAs(cut, 0).Subgraphs(0)
    operator = graph.Operators(count - 1)
    _set_length(cut, graph._tab, 10, count)
    _set_length(cut, graph._tab, 8, 1)
    at = graph._tab.Vector(graph._tab.Offset(8))
    cut[at : at + 4] = int(operator.Outputs(0)).to_bytes(4, "little", signed=True)
    return bytes(cut)


def _set_length(model: bytearray, table: Any, field: int, length: int) -> None:
    at = table.Vector(table.Offset(field)) - 4
    model[at : at + 4] = length.to_bytes(4, "little")


def _run(model: bytes, inputs: Sequence[Array], timeout: float) -> dict[int, Array]:
    """Raises _Failed if TFLite fails, ReferenceFailedError if there is no TFLite."""
    with tempfile.TemporaryDirectory(prefix="mera-reference-") as name:
        folder = Path(name)
        (folder / MODEL).write_bytes(model)
        given, got = folder / "inputs", folder / "tensors"
        given.mkdir()
        got.mkdir()
        for index, array in enumerate(inputs):
            np.save(given / f"{index}.npy", array, allow_pickle=False)
        command = [sys.executable, "-m", "mera_torch.tflite_reference", str(folder)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise _Failed(f"TFLite did not end within {timeout:g} seconds") from None
        if done.returncode:
            stage = (folder / STAGE).read_text() if (folder / STAGE).exists() else "starting"
            raise _Failed(_how_it_ended(done.returncode, stage, done.stderr))
        return {int(path.stem): np.load(path, allow_pickle=False) for path in got.iterdir()}


def _how_it_ended(code: int, stage: str, stderr: str) -> str:
    lines = [line for line in map(str.strip, stderr.splitlines()) if line and not line.startswith(("INFO", "WARNING"))]
    if stage == "starting":
        raise ReferenceFailedError(
            f"TFLite's reference interpreter does not start: {lines[-1] if lines else f'exit code {code}'}; it needs "
            "ai_edge_litert, pip install 'mera_torch[reference]'"
        )
    said = f": {lines[-1][:500]}" if lines else ""
    if code < 0:
        return f"TFLite died of {signal.Signals(-code).name} while {stage}{said}"
    return f"TFLite refused while {stage}{said}"


# ---- the other process ----


def _serve(folder: Path) -> None:
    """Runs the folder's model on its inputs and writes every tensor; in `stage`, what it is about to do."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    def stage(text: str) -> None:
        (folder / STAGE).write_text(text)

    stage(READING)
    try:
        interpreter = Interpreter(
            model_path=str(folder / MODEL),
            num_threads=1,
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
            experimental_preserve_all_tensors=True,
        )
        stage("preparing the operators")
        interpreter.allocate_tensors()
        for index, detail in enumerate(interpreter.get_input_details()):
            interpreter.set_tensor(detail["index"], np.load(folder / "inputs" / f"{index}.npy", allow_pickle=False))
        stage("running the operators")
        interpreter.invoke()
        stage("giving the tensors")
        for detail in interpreter.get_tensor_details():
            try:
                value = interpreter.get_tensor(detail["index"])
            except ValueError:  # has no data
                continue
            if value.dtype.kind in "biufc":  # no text
                np.save(folder / "tensors" / f"{detail['index']}.npy", value, allow_pickle=False)
    except (RuntimeError, ValueError) as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
