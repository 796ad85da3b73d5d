"""Running a deployment without torch: numpy arrays in, numpy arrays out, on the C runtime.

For the runtime install, which has numpy and cffi alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .backend.region import DnaRegion, check_target, metrics, port_from
from .errors import CorruptFileError, InvalidModelError, MeraError, StateError, nearest
from .files import MALFORMED, MANIFEST, read_manifest, steady
from .lower_bound import lower_bound_cycles
from .native.session import Array, Executor, LoadedDeployment, Request, SessionRunner, TensorInfo
from .platform import Platform
from .trace import write_trace


class LiteDeployment:
    """A deployment read without torch.

    inputs, outputs: the tensors of the model, flat. needs_torch: None, or the sentence that names a step that only
    PyTorch can run; then get_runner() fails.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], loaded: LoadedDeployment) -> None:
        self.path, self.manifest, self._loaded = path, manifest, loaded
        self.platform = Platform(**manifest["platform"])
        self.target: str = manifest["target"]
        self.explanation: str = manifest["explanation"]
        self.inputs: list[TensorInfo] = loaded.inputs
        self.needs_torch: str | None = loaded.needs_torch
        self.outputs: list[TensorInfo] = [] if self.needs_torch else loaded.outputs

    @property
    def lower_bound_cycles(self) -> int:
        """See mera_torch.lower_bound."""
        return sum(lower_bound_cycles(row["lower_bound"], self.platform) for row in self.manifest["regions"])

    @cached_property
    def regions(self) -> list[DnaRegion]:
        """The parts that run on the accelerator, for tables and traces. Raises DoesNotFitError if one is to be compiled
        and cannot be."""
        rows = self.manifest["regions"]
        return [LiteRegion.of(self._loaded, index, row, self.platform) for index, row in enumerate(rows)]

    def get_runner(
        self, target: str | None = None, device_ids: Sequence[int | str] | None = None, *, requests: int = 1,
        threads: int = 0, timeout_ms: int = 0,
    ) -> LiteRunner:  # fmt: skip
        """A callable on numpy arrays, on `target` (default: the one exported for).

        requests: how many started runs go on at the same time. threads: of InterpreterHw, for one run. device_ids: for
        "IP", see mera_torch.device.engine. timeout_ms: how long a device may take for a region. Raises ConfigError for
        an unknown target, UnsupportedError if needs_torch, DeviceError.
        """
        chosen = check_target(self.target if target is None else target)
        executor = None
        if chosen == "IP" and self.needs_torch is None:
            engines = [region.engine("IP", device_ids) for region in self.regions]
            executor = _executor(engines, timeout_ms)
        session = SessionRunner(
            self._loaded, chosen, requests=requests, threads=threads, timeout_ms=timeout_ms, executor=executor
        )
        return LiteRunner(self, chosen, session, device_ids)

    def __repr__(self) -> str:
        return f"LiteDeployment({str(self.path)!r}, {self.platform.name}, {self.target})"


def _executor(engines: Sequence[Any], timeout_ms: int) -> Executor:
    """The regions on devices: what a session calls on target IP."""

    def run(region: int, inputs: list[Array]) -> tuple[list[Array], dict[str, int]]:
        engine = engines[region]
        return engine.run(inputs, timeout_ms), engine.stats()

    return run


class LiteRun:
    """A run that was started: wait() gives its outputs."""

    def __init__(self, runner: LiteRunner, request: Request) -> None:
        self._runner, self._request = runner, request
        self._result: Any = None
        self._over = False

    @property
    def done(self) -> bool:
        """Whether wait() would return at once."""
        return self._over or self._request.done

    def wait(self, timeout: float | None = None) -> Any:
        """What the runner called with the same arrays would have returned. Raises StateError if the run is not over
        after `timeout` seconds; it goes on then, and can be waited for again."""
        if not self._over:
            self._request.wait(timeout)
            self._result = self._runner._outputs(self._request)
            self._over = True
            self._runner._give_back(self._request)
        return self._result


class LiteRunner:
    """runner(*arrays) gives the flat outputs: one array if there is one, else a list. Any thread may call it.

    Arrays have the shapes and dtypes of the tensors that the original module takes and gives. Without copies: write
    into get_input_handle(), run(), read from get_output_handle().
    """

    def __init__(
        self, deployment: LiteDeployment, target: str, session: SessionRunner, device_ids: Sequence[int | str] | None
    ) -> None:
        self.deployment, self.target, self._device_ids = deployment, target, device_ids
        self.inputs, self.outputs = deployment.inputs, deployment.outputs
        self._session = session
        self._lock = threading.Lock()
        self._idle: list[Request] = []
        self._own: Request | None = None
        self._flat: list[Any] = deployment.manifest["host"]["outputs"]
        constants = deployment.manifest["inputs"]
        named = zip(deployment.manifest["host"]["inputs"], constants, strict=True)
        self._constants = {name: row["constant"] for name, row in named if row["dtype"] is None}

    # ---- arrays ----

    def __call__(self, *inputs: Array) -> Any:
        """Raises InvalidModelError for inputs of another count, shape or dtype."""
        request = self._filled(inputs)
        request.run()
        found = self._outputs(request)
        self._give_back(request)
        return found

    def start(self, *inputs: Array) -> LiteRun:
        """Begins a run and returns. Inputs are copied; get_runner(requests=n) lets n runs go on at the same time, more
        wait for their turn. Raises InvalidModelError as a call does."""
        request = self._filled(inputs)
        request.start()
        return LiteRun(self, request)

    def _filled(self, inputs: Sequence[Any]) -> Request:
        if len(inputs) != len(self.inputs):
            raise InvalidModelError(f"the model takes {len(self.inputs)} inputs, got {len(inputs)}")
        for index, (info, array) in enumerate(zip(self.inputs, inputs, strict=True)):
            if not isinstance(array, np.ndarray) or array.shape != info.shape or array.dtype != info.dtype:
                got = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
                raise InvalidModelError(f"input {index} ({info.name}) must be {info}, got {got}")
        with self._lock:
            request = self._idle.pop() if self._idle else None
        request = request or self.request()
        for view, array in zip(request.inputs, inputs, strict=True):
            np.copyto(view, array)
        return request

    def _give_back(self, request: Request) -> None:
        with self._lock:
            self._idle.append(request)

    def _outputs(self, request: Request) -> Any:
        arrays = iter([view.copy() for view in request.outputs])
        found = [self._output(value, arrays) for value in self._flat]
        return found[0] if len(found) == 1 else found

    def _output(self, value: Any, arrays: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "ref" not in value:
            ((kind, content),) = value.items()
            return float(content) if kind == "float" else content
        return self._constants[value["ref"]] if value["ref"] in self._constants else next(arrays)

    # ---- zero copy ----

    def request(self) -> Request:
        """A request of its own: inputs and outputs without copies, run(), start(), wait(). As many as you like."""
        return Request(self._session)

    def get_input_handle(self, key: int | str) -> Array:
        """The memory of the input of that index or name, which run() reads: write into it."""
        return self._mine().inputs[self._find("input", self.inputs, key)]

    def get_output_handle(self, key: int | str) -> Array:
        """The memory of the output of that index or name, which run() writes: read-only."""
        return self._mine().outputs[self._find("output", self.outputs, key)]

    def run(self) -> LiteRunner:
        """Runs on the handles' memory. Not to be called by two threads at once: use request()."""
        self._mine().run()
        return self

    def _mine(self) -> Request:
        with self._lock:
            self._own = self._own or self.request()
            return self._own

    def _find(self, what: str, infos: Sequence[TensorInfo], key: int | str) -> int:
        if isinstance(key, str):
            index = self.deployment._loaded.find(what, key)
            if index is None:
                raise InvalidModelError(f"there is no {what} {key!r}: {nearest(key, [info.name for info in infos])}")
            return index
        if not 0 <= key < len(infos):
            raise InvalidModelError(f"there is no {what} {key}: the model has {len(infos)}")
        return key

    # ---- what it costs ----

    def metrics(self) -> dict[str, Any]:
        """What one inference costs; see mera_torch.Runner.metrics."""
        d = self.deployment
        return metrics(d.regions, d.platform, self.target, d.lower_bound_cycles, self._device_ids)

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Writes a trace; see mera_torch.Runner.trace."""
        write_trace(path, self.deployment.regions, self.deployment.platform)

    @property
    def regions(self) -> list[DnaRegion]:
        """The regions, for tables and traces."""
        return self.deployment.regions

    def __repr__(self) -> str:
        return f"LiteRunner(target={self.target}, platform={self.deployment.platform.name})"


class LiteRegion(DnaRegion):
    """A region for tables, traces and devices: its graph, program and timing are those of the C runtime."""

    loaded: LoadedDeployment
    index: int

    @staticmethod
    def of(loaded: LoadedDeployment, index: int, row: Mapping[str, Any], machine: Platform) -> LiteRegion:
        """From the manifest's row."""
        inputs, outputs = ([port_from(p) for p in row[side]] for side in ("inputs", "outputs"))
        rows = {str(key): (str(op), str(module), str(source)) for key, (op, module, source) in row["rows"].items()}
        graph, bound, order = loaded.graph(index), row["lower_bound"], row["output_index"]
        region = LiteRegion(row["name"], graph, inputs, outputs, order, machine, row["options"], rows, bound)
        region.loaded, region.index = loaded, index
        region.adopt(loaded.program(index))
        return region

    def _make_engine(self, target: str, device_ids: Sequence[int | str] | None) -> Any:
        if target == "Simulator":
            return self.loaded.timing(self.index)
        if target == "IP":
            return super()._make_engine(target, device_ids)
        raise StateError(f"{self.name} of a deployment read without torch runs in a runner: use get_runner()")


def load(path: str | os.PathLike[str]) -> LiteDeployment:
    """As mera_torch.project.load, without torch. Raises InvalidModelError (there is none), CorruptFileError."""
    folder = Path(path)
    manifest, loaded = steady(folder, lambda: (read_manifest(folder), LoadedDeployment(folder)))
    try:
        return LiteDeployment(folder, manifest, loaded)
    except MeraError as error:
        raise CorruptFileError(f"deployment {os.fspath(path)!r}: {error}") from error
    except MALFORMED as error:
        raise CorruptFileError(f"deployment {os.fspath(path)!r}: {MANIFEST} is malformed: {error}") from error
