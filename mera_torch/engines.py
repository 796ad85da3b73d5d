"""What computes below a MeraModelRunner: a deployment on a target of the DNA, with or without PyTorch, or the
Interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import CorruptFileError, UnsupportedError
from .files import MALFORMED, MANIFEST, read_manifest
from .samples import Spec
from .targets import Target

Array = npt.NDArray[Any]


class Engine(Protocol):
    """target: where it runs; memory: the arrays of the inputs, which run() reads; profiles: whether it can time each
    operator."""

    target: Target
    inputs: list[Spec]
    outputs: list[Spec]
    memory: list[Array]
    profiles: bool

    def run(self, profiling: bool) -> list[Array]:
        """The outputs, which are good until the next run."""

    def metrics(self) -> dict[str, Any]:
        """What one run takes on the platform; {} where that is not known."""

    def power(self) -> Any:
        """The power metrics. Raises UnsupportedError where there are none."""

    def profile(self) -> list[dict[str, Any]]:
        """For each operator of the last run: node, op, module, microseconds."""


def target_of(folder: Path) -> Target:
    """The target that a deployment was built for. Raises CorruptFileError."""
    if not (folder / MANIFEST).is_file():
        return Target.Interpreter
    return Target(read_manifest(folder)["target"])


def open_engine(folder: Path, target: Target, device_ids: list[int | str] | None) -> Engine:
    """The engine of a deployment. Raises UnsupportedError if it needs PyTorch, which is not there."""
    if target is not Target.Interpreter:
        return _DnaEngine(folder, target, device_ids)
    if find_spec("torch") is None:
        raise UnsupportedError("target Interpreter runs the model in PyTorch: install torch (mera_torch[full])")
    return _InterpreterEngine(folder)


class _DnaEngine:
    """A deployment of mera_torch.export: its lite runner or, where an operator needs PyTorch, the torch one."""

    profiles = False

    def __init__(self, folder: Path, target: Target, device_ids: list[int | str] | None) -> None:
        manifest = read_manifest(folder)
        try:
            rows = [row for row in manifest["inputs"] if row["dtype"] is not None]
            self.inputs = [_spec(row) for row in rows]
            self.outputs = _outputs(manifest)
        except MALFORMED as error:
            raise CorruptFileError(f"{str(folder / MANIFEST)!r} is malformed: {error}") from error
        self.target = target
        self._deployment, needs_torch = _without_torch(folder)
        self._run: Callable[[], list[Array]]
        if needs_torch is None:
            self._runner: Any = self._deployment.get_runner(target.value, device_ids)
            self.memory = [self._runner.get_input_handle(index) for index in range(len(rows))]
            results = [self._runner.get_output_handle(index) for index in range(len(self.outputs))]
            self._run = lambda: results if self._runner.run() else []
        elif find_spec("torch") is not None:
            from . import project

            self._deployment = project.load(folder)
            self._runner = self._deployment.get_runner(target.value, device_ids)
            self.memory = _memory(self.inputs)
            self._run = lambda: self._runner.run_flat(*self.memory)
        else:
            raise UnsupportedError(f"{needs_torch}: install torch (mera_torch[full])")

    def run(self, profiling: bool) -> list[Array]:
        return self._run()

    def metrics(self) -> dict[str, Any]:
        if self.target is Target.InterpreterHw:
            return {}
        found: dict[str, Any] = self._runner.metrics()
        clock = self._deployment.platform.clock_mhz
        return {"sim_time_us": found["latency_ms"] * 1e3, "freq_mhz": clock, **found}

    def power(self) -> Any:
        if self.target is Target.InterpreterHw:
            raise UnsupportedError(
                f"get_power_metrics: target {self.target} has no cycles to estimate power from; Simulator and IP have"
            )
        from .energy import power_metrics

        return power_metrics(self._runner.regions, self._deployment.platform)

    def profile(self) -> list[dict[str, Any]]:
        raise UnsupportedError(f"target {self.target} has no clock for its operators")


class _InterpreterEngine:
    """The model itself, in PyTorch."""

    target = Target.Interpreter
    profiles = True

    def __init__(self, folder: Path) -> None:
        from . import interpreter

        self._interpreter = interpreter.load(folder)
        self.inputs = [Spec(*row) for row in self._interpreter.inputs]
        self.outputs = [Spec(*row) for row in self._interpreter.outputs]
        self.memory = _memory(self.inputs)

    def run(self, profiling: bool) -> list[Array]:
        return self._interpreter.run(self.memory, profiling)

    def metrics(self) -> dict[str, Any]:
        return {}

    def power(self) -> Any:
        raise UnsupportedError("get_power_metrics: target Interpreter runs on the host; Simulator and IP have metrics")

    def profile(self) -> list[dict[str, Any]]:
        return self._interpreter.profile


def _memory(specs: Sequence[Spec]) -> list[Array]:
    return [np.zeros(spec.shape, spec.dtype) for spec in specs]


def _without_torch(folder: Path) -> tuple[Any, str | None]:
    """The deployment as the C runtime reads it, and what in it, if anything, needs PyTorch."""
    from . import lite

    deployment = lite.load(folder)
    if deployment.needs_torch is None and len(deployment.outputs) != len(deployment.manifest["host"]["outputs"]):
        return deployment, "the model gives values that are no tensors"
    return deployment, deployment.needs_torch


def _outputs(manifest: Mapping[str, Any]) -> list[Spec]:
    if "outputs" in manifest:
        return [_spec(row) for row in manifest["outputs"]]
    return [Spec(f"output_{index}", (), "") for index in range(len(manifest["host"]["outputs"]))]  # version 1


def _spec(row: Any) -> Spec:
    """Of a row of a manifest; an input has its name in the model's file, where it came from one."""
    dtype = row["dtype"]
    name = dtype["torch"] if isinstance(dtype, dict) else dtype
    shape = tuple(int(size) for size in row["shape"])
    return Spec(str(row.get("source_name") or row["name"]), shape, str(np.dtype(name)) if name else "")
