"""Deployments run by the C runtime (csrc/dna_runtime.h): numpy arrays in, numpy arrays out, no Python between.

cffi releases the GIL while C runs, so that requests of several Python threads run at the same time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mera_torch import errors
from mera_torch._core import ffi, lib
from mera_torch.native.context import EXCEPTIONS, Context, Handle, text_of
from mera_torch.native.graph import Graph
from mera_torch.native.program import Program
from mera_torch.native.run import Simulator

Array = npt.NDArray[Any]
TARGETS = {
    "InterpreterHw": lib.DNA_TARGET_INTERPRETER_HW,
    "Simulator": lib.DNA_TARGET_SIMULATOR,
    "IP": lib.DNA_TARGET_IP,
}
FOREVER = -1
Executor = Callable[[int, list[Array]], tuple[Sequence[Array], dict[str, int]]]
STATUSES = {exception: status for status, exception in EXCEPTIONS.items()}


def _check(status: int, message: str) -> None:
    if status != lib.DNA_OK:
        raise EXCEPTIONS.get(status, errors.InternalError)(message)


@ffi.def_extern(error=lib.DNA_INTERNAL)  # type: ignore[untyped-decorator]
def mera_on_region(
    user: Any, region: int, input_count: int, inputs: Any, input_bytes: Any, output_count: int, outputs: Any,
    output_bytes: Any, stats: Any, message: Any, message_bytes: int,
) -> int:  # fmt: skip
    """Called by C to run a region: see runner_executor in csrc/runtime/inner.h."""
    try:
        arrays = [np.frombuffer(ffi.buffer(inputs[i], input_bytes[i]), np.int8) for i in range(input_count)]
        found, figures = ffi.from_handle(user)(region, arrays)
        for i in range(output_count):
            ffi.memmove(outputs[i], np.ascontiguousarray(found[i]), output_bytes[i])
        for name, value in figures.items():
            setattr(stats, name, value)
        return int(lib.DNA_OK)
    except errors.MeraError as error:
        text = str(error).encode()[: message_bytes - 1]
        ffi.memmove(message, text + b"\0", len(text) + 1)
        return int(STATUSES.get(type(error), lib.DNA_INTERNAL))


def _made(kind: str, create: Callable[..., int], free: Callable[[Any], None], *args: Any, keep: object = None) -> Any:
    """The object that create(*args, out, error) makes, freed with its last reference; `keep` lives until then."""
    out, error = ffi.new(f"dna_{kind} **"), ffi.new("dna_error *")
    status = create(*args, out, error)
    _check(status, text_of(error.message))

    def destroy(pointer: Any, _keep: object = keep) -> None:
        free(pointer)

    return ffi.gc(out[0], destroy)


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a deployment. dtype: of numpy ("bfloat16" has none, and is held as uint16).

    scale, zero_point: the quantization with which it enters or leaves the accelerator; None if it does not.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    scale: float | None
    zero_point: int | None

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"


def _info(row: Any) -> TensorInfo:
    name = "uint16" if row.dtype == lib.DNA_BFLOAT16 else text_of(lib.dna_dtype_name(row.dtype))
    return TensorInfo(
        text_of(row.name),
        np.dtype(name),
        tuple(row.shape[d] for d in range(row.rank)),
        row.scale if row.quantized else None,
        row.zero_point if row.quantized else None,
    )


class LoadedDeployment:
    """A deployment's folder, read and checked by the C runtime.

    host_only: the regions' files are not read: all that is known is whether the host's steps need torch.
    Raises InvalidModelError if there is no deployment, CorruptFileError, StorageError, OutOfMemoryError.
    """

    def __init__(self, path: str | os.PathLike[str], host_only: bool = False, fail_after: int = -1) -> None:
        folder = os.fsencode(path)
        self.pointer = _made(
            "deployment", lib.deployment_open, lib.dna_deployment_free, folder, fail_after, int(host_only)
        )
        self._context = Context()

    @property
    def needs_torch(self) -> str | None:
        """None, or the sentence that names a step that only PyTorch can run."""
        return text_of(lib.dna_deployment_needs_torch(self.pointer)) or None

    @property
    def inputs(self) -> list[TensorInfo]:
        """The tensors that the model takes, flat."""
        return self._infos(lib.dna_deployment_input_count, lib.dna_deployment_input)

    @property
    def outputs(self) -> list[TensorInfo]:
        """The tensors that the model gives, flat. Raises UnsupportedError for a deployment that needs torch."""
        return self._infos(lib.dna_deployment_output_count, lib.dna_deployment_output)

    def find(self, what: str, name: str) -> int | None:
        """The index of an "input" or "output" by name, if there is one. Inputs of imported models have two: their own,
        and the one of the file that they come from."""
        index = int(getattr(lib, f"dna_deployment_find_{what}")(self.pointer, name.encode()))
        return None if index < 0 else index

    def _infos(self, count: Callable[[Any], int], get: Callable[..., int]) -> list[TensorInfo]:
        found, row = [], ffi.new("dna_tensor_info *")
        for index in range(count(self.pointer)):
            _check(get(self.pointer, index, row), self.needs_torch or "there is no such tensor")
            found.append(_info(row))
        return found

    def graph(self, region: int) -> Graph:
        """The region's DNA graph, to be read only."""
        return Graph(context=self._context, _handle=_Borrowed(self, self._region("graph", region)))

    def program(self, region: int) -> Program:
        """The region's program, to be read only; compiled if the deployment holds none."""
        return Program(self._context, _Borrowed(self, self._region("program", region)))

    def timing(self, region: int) -> Simulator:
        """The region's simulated timing: stats, layers and events; it cannot run."""
        return Simulator(self.program(region), _Borrowed(self, self._region("timing", region)))

    def _region(self, what: str, region: int) -> Any:
        kinds = {"graph": "mera_graph **", "program": "mera_program **", "timing": "mera_simulator **"}
        outs = {key: ffi.new(kind) if key == what or what == "timing" else ffi.NULL for key, kind in kinds.items()}
        error = ffi.new("dna_error *")
        status = lib.deployment_region(self.pointer, region, outs["graph"], outs["program"], outs["timing"], error)
        _check(status, text_of(error.message))
        return outs[what][0]


class SessionRunner:
    """A deployment on a target ("InterpreterHw", "Simulator", "IP"); may be used by any number of threads at once.

    requests: how many started requests run at the same time. threads: of InterpreterHw, for one request (0: the
    machine's, divided among requests). executor: runs the regions on IP: (region, int8 arrays of the DNA's inputs) ->
    (its outputs, stats); without it the first free device does. Raises UnsupportedError if a step needs torch,
    DeviceError.
    """

    def __init__(
        self, deployment: LoadedDeployment, target: str, *, requests: int = 1, threads: int = 0, timeout_ms: int = 0,
        executor: Executor | None = None, fail_after: int = -1,
    ) -> None:  # fmt: skip
        self.deployment = deployment
        options = ffi.new("dna_runner_options *")
        options.target, options.requests, options.threads = TARGETS[target], requests, threads
        options.timeout_ms = timeout_ms
        self._user = ffi.new_handle(executor)
        function = lib.mera_on_region if executor else ffi.NULL
        self.pointer = _made(
            "runner",
            lib.runner_open,
            lib.dna_runner_free,
            deployment.pointer,
            options,
            function,
            self._user,
            fail_after,
        )

    @property
    def request_bytes(self) -> int:
        """Host memory for the values of one request."""
        return int(lib.dna_runner_request_bytes(self.pointer))


class _Borrowed(Handle):
    """A pointer to an object that belongs to a deployment, which it keeps alive."""

    def __init__(self, owner: LoadedDeployment, pointer: Any) -> None:
        super().__init__(pointer)
        self._owner = owner


class _Memory:
    """numpy's view of a request's memory; keeps the request alive."""

    def __init__(self, owner: Any, pointer: Any, info: TensorInfo, writable: bool) -> None:
        self._owner = owner
        address = int(ffi.cast("uintptr_t", pointer))
        self.__array_interface__ = {
            "data": (address, not writable), "shape": info.shape, "typestr": info.dtype.str, "version": 3,
        }  # fmt: skip


class Request:
    """One inference: the memory of its inputs and outputs. One thread at a time; different requests run at once.

    inputs, outputs: numpy views of that memory, the latter read-only, at the same place as long as the request lives.
    Write inputs before a run, read outputs after it, neither while it goes on.
    """

    def __init__(self, runner: SessionRunner, fail_after: int = -1) -> None:
        given = (runner.pointer, fail_after)
        self.pointer = _made("request", lib.request_open, lib.dna_request_free, *given, keep=runner)
        self.inputs = [
            self._view(lib.dna_request_input_handle(self.pointer, i, ffi.NULL), info, True)
            for i, info in enumerate(runner.deployment.inputs)
        ]
        self.outputs = [
            self._view(lib.dna_request_output_handle(self.pointer, i, ffi.NULL), info, False)
            for i, info in enumerate(runner.deployment.outputs)
        ]

    def _view(self, pointer: Any, info: TensorInfo, writable: bool) -> Array:
        return np.asarray(_Memory(self.pointer, pointer, info, writable))

    def _call(self, function: Callable[..., int], *args: Any) -> None:
        status = function(self.pointer, *args)
        if status != lib.DNA_OK:
            _check(status, text_of(lib.dna_request_error(self.pointer)))

    def run(self) -> None:
        """Runs in this thread. Raises StateError if a run goes on, and what the run raises."""
        self._call(lib.dna_request_run)

    def start(self) -> None:
        """Queues the request for the runner's threads. Raises StateError if a run goes on."""
        self._call(lib.dna_request_start, ffi.NULL, ffi.NULL)

    @property
    def done(self) -> bool:
        """Whether no run goes on."""
        return bool(lib.dna_request_done(self.pointer))

    def wait(self, timeout: float | None = None) -> None:
        """Until no run goes on, at most `timeout` seconds (None: without end). Raises StateError if the time is over or
        nothing was run, and what the run raises."""
        self._call(lib.dna_request_wait, FOREVER if timeout is None else max(0, int(timeout * 1000)))

    def metrics(self, region: int | None = None) -> dict[str, Any]:
        """What the last run took on this machine and on the platform; see dna_metrics in dna_runtime.h. StateError
        before the first run."""
        row = ffi.new("dna_metrics *")
        if region is None:
            self._call(lib.dna_request_metrics, row)
        else:
            self._call(lib.dna_request_region_metrics, region, row)
        return {name: getattr(row, name) for name, _ in ffi.typeof(row).item.fields}
