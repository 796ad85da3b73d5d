"""Running: the interpreter of graphs, the simulator of programs, and the host's side of the boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mera_torch import errors
from mera_torch._core import ffi, lib
from mera_torch.native.context import Context, Handle
from mera_torch.native.graph import Array, Graph
from mera_torch.native.program import Program
from mera_torch.native.tables import cycle_kinds, thread_context

Int8Array = npt.NDArray[np.int8]
FloatArray = npt.NDArray[np.float32]


def int8_arrays(inputs: Sequence[Array]) -> list[Array]:
    """The inputs, contiguous. Raises InvalidModelError for anything but int8 arrays."""
    arrays = []
    for i, array in enumerate(inputs):
        if not isinstance(array, np.ndarray) or array.dtype != np.int8:
            kind = getattr(array, "dtype", type(array).__name__)
            raise errors.InvalidModelError(f"input {i} must be an int8 numpy array, got {kind}")
        arrays.append(np.ascontiguousarray(array))
    return arrays


def _run(
    context: Context, function: Callable[..., int], handle: Any, inputs: Sequence[Array], sizes: list[int]
) -> list[Int8Array]:
    """Runs with int8 inputs; new flat int8 arrays of the sizes given."""
    arrays = int8_arrays(inputs)
    outputs = [np.empty(size, np.int8) for size in sizes]
    views = [ffi.from_buffer("int8_t[]", array) for array in arrays]
    targets = [ffi.from_buffer("int8_t[]", array, require_writable=True) for array in outputs]
    context.call(
        function,
        handle,
        len(arrays),
        ffi.new("void *[]", views),
        ffi.new("int64_t[]", [array.nbytes for array in arrays]),
        len(outputs),
        ffi.new("void *[]", targets),
        ffi.new("int64_t[]", sizes),
    )
    return outputs


class Interpreter:
    """InterpreterHw: runs a finished graph node by node, with the accelerator's arithmetic."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.context = graph.context
        self._handle = self.context.make("interpreter", lib.mera_interpreter_create, graph.handle)
        self._inputs, self._outputs = graph.inputs, graph.outputs

    def run(self, inputs: Sequence[Array]) -> list[Int8Array]:
        """int8 NHWC arrays with the shapes of graph.inputs -> those of graph.outputs."""
        for info, array in zip(self._inputs, inputs, strict=False):  # the core checks the count
            if tuple(np.shape(array)) != info.shape:
                raise errors.InvalidModelError(
                    f"input {info.name!r} must have shape {list(info.shape)}, got {list(np.shape(array))}"
                )
        sizes = [int(np.prod(info.shape)) for info in self._outputs]
        found = _run(self.context, lib.mera_interpreter_run, self._handle.pointer, inputs, sizes)
        return [array.reshape(info.shape) for info, array in zip(self._outputs, found, strict=True)]

    def run_all(self, inputs: Sequence[Array]) -> dict[int, Array]:
        """Runs and gives every tensor, constants included: index -> int8 (or int32) array of its shape."""
        found: dict[int, Array] = {}
        data, size = ffi.new("const void **"), ffi.new("int64_t *")
        with self.context.lock:
            self.context.call(lib.mera_interpreter_keep_all, self._handle.pointer, 1)
            try:
                self.run(inputs)
                for info in self.graph.tensors:
                    self.context.call(lib.mera_interpreter_tensor, self._handle.pointer, info.index, data, size)
                    flat = np.frombuffer(ffi.buffer(data[0], size[0]), dtype=info.dtype)
                    found[info.index] = flat.reshape(info.shape).copy()
            finally:
                self.context.call(lib.mera_interpreter_keep_all, self._handle.pointer, 0)
        return found


_EVENT = np.dtype(
    [
        ("queue", np.int32),
        ("node", np.int32),
        ("instruction", np.int32),
        ("opcode", np.int32),
        ("start_cycle", np.int64),
        ("end_cycle", np.int64),
        ("stall_cycles", np.int64),
    ]
)


_STALL = np.dtype(
    [
        ("queue", np.int32),
        ("instruction", np.int32),
        ("node", np.int32),
        ("kind", np.int32),
        ("start_cycle", np.int64),
        ("end_cycle", np.int64),
    ]
)


def _fields(row: Any) -> dict[str, int]:
    return {name: int(getattr(row, name)) for name, _ in ffi.typeof(row).item.fields}


class Simulator:
    """Executes a program's instructions: bits and cycles."""

    def __init__(self, program: Program, _handle: Handle | None = None) -> None:
        self.program = program
        self.context = program.context
        self._handle = _handle or self.context.make("simulator", lib.mera_simulator_create, program.handle)

    def run(self, inputs: Sequence[Array]) -> list[Int8Array]:
        """int8 arrays of program.input_bytes bytes each -> flat int8 arrays of program.output_bytes."""
        return _run(self.context, lib.mera_simulator_run, self._handle.pointer, inputs, self.program.output_bytes)

    def stats(self) -> dict[str, int]:
        """The whole run: cycles, bytes, busy cycles; see mera_stats in mera.h."""
        row = ffi.new("mera_stats *")
        self.context.call(lib.mera_simulator_stats, self._handle.pointer, row)
        return _fields(row)

    def layers(self) -> list[dict[str, int]]:
        """One row a layer; `node` indexes program.nodes."""
        rows, count = ffi.new("const mera_layer_stats **"), ffi.new("int64_t *")
        with self.context.lock:
            self.context.call(lib.mera_simulator_layers, self._handle.pointer, rows, count)
            return [_fields(ffi.addressof(rows[0][i])) for i in range(count[0])]

    def events(self) -> npt.NDArray[np.void]:
        """Every instruction's start and end, as a structured array with the fields of mera_event."""
        rows, count = ffi.new("const mera_event **"), ffi.new("int64_t *")
        with self.context.lock:
            self.context.call(lib.mera_simulator_events, self._handle.pointer, rows, count)
            size = count[0] * ffi.sizeof("mera_event")
            return np.frombuffer(ffi.buffer(rows[0], size), dtype=_EVENT).copy() if size else np.empty(0, _EVENT)

    def cycles(self) -> npt.NDArray[np.int64]:
        """What every queue's unit did in every cycle: [queue, node (the last row: none), kind of cycle_kinds()].

        The cycles of a queue sum to stats()["cycles"].
        """
        rows, count = ffi.new("const int64_t **"), ffi.new("int64_t *")
        with self.context.lock:
            self.context.call(lib.mera_simulator_cycles, self._handle.pointer, rows, count)
            flat = np.frombuffer(ffi.buffer(rows[0], 8 * count[0]), np.int64).copy()
        shape = len(self.program.queue_names), len(self.program.nodes) + 1, len(cycle_kinds())
        found: npt.NDArray[np.int64] = flat.reshape(shape)
        return found

    def stalls(self) -> npt.NDArray[np.void]:
        """The intervals in which a queue's unit had no instruction, as a structured array with mera_stall's fields."""
        rows, count = ffi.new("const mera_stall **"), ffi.new("int64_t *")
        with self.context.lock:
            self.context.call(lib.mera_simulator_stalls, self._handle.pointer, rows, count)
            size = count[0] * ffi.sizeof("mera_stall")
            return np.frombuffer(ffi.buffer(rows[0], size), dtype=_STALL).copy() if size else np.empty(0, _STALL)


# ---- the host's side of the boundary ----


def _nhwc(shape: Sequence[int], channels_last: bool, what: str) -> tuple[int, int, int, int]:
    if len(shape) != 4:
        raise errors.InvalidModelError(f"{what}: the array's rank must be 4, got shape {tuple(shape)}")
    n, c, h, w = shape
    return (n, c, h, w) if channels_last else (n, h, w, c)


def quantize_f32(x: FloatArray, scale: float, zero_point: int, channels_last: bool = False) -> Int8Array:
    """float32 NCHW (or NHWC if channels_last) -> int8 NHWC, as torch's quantize_per_tensor rounds and clamps."""
    if x.dtype != np.float32:
        raise errors.InvalidModelError(f"quantize: the array must be float32, got {x.dtype}")
    shape = _nhwc(x.shape, channels_last, "quantize")
    data, q = np.ascontiguousarray(x), np.empty(shape, np.int8)
    context = thread_context()
    context.call(
        lib.mera_quantize_f32,
        context.pointer,
        ffi.from_buffer("float[]", data),
        ffi.new("int64_t[4]", shape),
        int(channels_last),
        scale,
        zero_point,
        ffi.from_buffer("int8_t[]", q, require_writable=True),
    )
    return q


def dequantize_i8(q: Int8Array, scale: float, zero_point: int, channels_last: bool = False) -> FloatArray:
    """int8 NHWC -> float32 NCHW (or NHWC): (q - zero_point) * scale."""
    if q.dtype != np.int8:
        raise errors.InvalidModelError(f"dequantize: the array must be int8, got {q.dtype}")
    n, h, w, c = shape = _nhwc(q.shape, True, "dequantize")
    data, x = np.ascontiguousarray(q), np.empty(shape if channels_last else (n, c, h, w), np.float32)
    context = thread_context()
    context.call(
        lib.mera_dequantize_i8,
        context.pointer,
        ffi.from_buffer("int8_t[]", data),
        ffi.new("int64_t[4]", shape),
        int(channels_last),
        scale,
        zero_point,
        ffi.from_buffer("float[]", x, require_writable=True),
    )
    return x


def quantize_multiplier(real: float) -> tuple[int, int]:
    """TFLite's QuantizeMultiplier: real = multiplier * 2^(shift - 31)."""
    multiplier, shift = ffi.new("int32_t *"), ffi.new("int32_t *")
    lib.mera_quantize_multiplier(real, multiplier, shift)
    return int(multiplier[0]), int(shift[0])


def requantize(x: int, multiplier: int, shift: int) -> int:
    """x * multiplier * 2^(shift - 31), rounded twice as TFLite's MultiplyByQuantizedMultiplier does."""
    return int(lib.mera_requantize(x, multiplier, shift))
