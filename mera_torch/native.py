"""The C core, as Python objects: status codes become exceptions, handles have lifetimes, arrays are checked.

numpy and cffi are all that this module and what it imports need. Every object holds its Context; a context is used by
one thread at a time, which its lock sees to.
"""

from __future__ import annotations

import operator
import threading
import weakref
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mera_torch import errors
from mera_torch._core import ffi, lib
from mera_torch.platform import Platform

Array = npt.NDArray[Any]
Int8Array = npt.NDArray[np.int8]
FloatArray = npt.NDArray[np.float32]
# Called with a stage's name, steps done and steps in all.
Progress = Callable[[str, int, int], object]

_EXCEPTIONS: dict[int, type[errors.MeraError]] = {
    lib.MERA_INVALID_ARGUMENT: errors.InvalidModelError,
    lib.MERA_OUT_OF_MEMORY: errors.OutOfMemoryError,
    lib.MERA_UNSUPPORTED: errors.UnsupportedError,
    lib.MERA_DOES_NOT_FIT: errors.DoesNotFitError,
    lib.MERA_CORRUPT: errors.CorruptFileError,
    lib.MERA_DEADLOCK: errors.InternalError,
    lib.MERA_INTERNAL: errors.InternalError,
}
_DTYPES: dict[int, str] = {lib.MERA_INT8: "int8", lib.MERA_INT32: "int32"}
_DTYPE_CODES = {name: code for code, name in _DTYPES.items()}


def _text(pointer: Any) -> str:
    return ffi.string(pointer).decode("utf-8", "replace") if pointer else ""


def core_version() -> str:
    """The version of the C core."""
    return _text(lib.mera_core_version())


def core_features() -> str:
    """How the C core was built and which kernels this CPU gets, e.g. "openmp; kernels: avx2"."""
    return _text(lib.mera_core_features())


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def _destroy_context(address: int, alive: set[int], lock: Any) -> None:
    with lock:
        alive.clear()
        lib.mera_context_destroy(ffi.cast("mera_context *", address))


def _destroy_object(destroy: Callable[[Any], None], kind: str, address: int, alive: set[int], lock: Any) -> None:
    with lock:
        if address in alive:
            alive.remove(address)
            destroy(ffi.cast(kind, address))


class _Handle:
    """A pointer to an object of the C core, which is destroyed with it."""

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer


class _Core:
    """A mera_context and the number of Python objects that need it; destroyed with the last of them.

    Only finalizers of those objects hold it, so that cyclic garbage is torn down in the right order.
    """

    def __init__(self, fail_after: int) -> None:
        self.pointer = lib.mera_context_create(fail_after)
        if self.pointer == ffi.NULL:
            raise errors.OutOfMemoryError("out of memory: no context")
        self.lock = threading.RLock()
        self.users = 0

    def retain(self, owner: object, destroy: Callable[[Any], None] | None = None, pointer: Any = None) -> None:
        """Lives as long as owner; when owner dies, destroy(pointer) is called."""
        with self.lock:
            self.users += 1
        weakref.finalize(owner, self._release, destroy, pointer).atexit = False

    def _release(self, destroy: Callable[[Any], None] | None, pointer: Any) -> None:
        with self.lock:
            if destroy is not None:
                destroy(pointer)
            self.users -= 1
            if self.users == 0:
                lib.mera_context_destroy(self.pointer)


class Context:
    """Owns everything that the C core allocates for the objects made with it.

    fail_after >= 0 lets that allocation and all later ones fail (for tests). kernels names a kernel set ("auto",
    "generic", "avx2", ...). threads = 0 means all.
    """

    def __init__(self, fail_after: int = -1, kernels: str = "auto", threads: int = 0) -> None:
        self._core = _Core(fail_after)
        self._core.retain(self)
        self.pointer = self._core.pointer
        self.lock = self._core.lock
        self.call(lib.mera_context_kernels, self.pointer, kernels.encode())
        self.call(lib.mera_context_threads, self.pointer, threads)

    def call(self, function: Callable[..., int], *args: Any) -> None:
        """Calls a function that returns a mera_status; raises the exception that the status stands for."""
        with self.lock:
            status = function(*args)
            if status != lib.MERA_OK:
                raise _EXCEPTIONS.get(status, errors.InternalError)(_text(lib.mera_last_error(self.pointer)))

    def make(self, kind: str, function: Callable[..., int], *args: Any) -> _Handle:
        """Calls a function whose last parameter receives a new object: a mera_graph, mera_program, ..."""
        out = ffi.new(f"mera_{kind} **")
        with self.lock:
            self.call(function, *args, out)
            handle = _Handle(out[0])
            self._core.retain(handle, getattr(lib, f"mera_{kind}_destroy"), out[0])
        return handle

    def text(self, function: Callable[..., int], *args: Any) -> str:
        """Calls a function whose last parameter receives text."""
        out = ffi.new("char **")
        with self.lock:
            self.call(function, *args, out)
            try:
                return _text(out[0])
            finally:
                lib.mera_free_text(self.pointer, out[0])

    def saved(self, function: Callable[..., int], handle: Any) -> bytes:
        """Calls a function that gives bytes which belong to the object."""
        data, size = ffi.new("const uint8_t **"), ffi.new("size_t *")
        with self.lock:
            self.call(function, handle, data, size)
            return bytes(ffi.buffer(data[0], size[0]))


# ---- platforms ----


def _platform_from_c(row: Any) -> Platform:
    return Platform(
        name=_text(row.name),
        units=row.units,
        array=row.array,
        clock_mhz=row.clock_mhz,
        sram_bytes=row.sram_bytes,
        dram_gbps=row.dram_gbps,
        bf16=bool(row.bf16),
        sram_banks=row.sram_banks,
        dram_latency_cycles=row.dram_latency_cycles,
    )


def _platform_to_c(platform: Platform) -> Any:
    row = ffi.new("mera_platform *")
    name = platform.name.encode()
    if not 1 <= len(name) <= 63:
        raise errors.ConfigError(f"platform {platform.name!r}: name must have 1 to 63 bytes, got {len(name)}")
    row.name = name
    for field in ("units", "array", "clock_mhz", "sram_bytes", "dram_gbps", "sram_banks", "dram_latency_cycles"):
        setattr(row, field, getattr(platform, field))
    row.bf16 = int(platform.bf16)
    return row


def platforms() -> list[Platform]:
    """The platforms of csrc/dna_arch.def."""
    return [_platform_from_c(lib.mera_platform_at(i)) for i in range(lib.mera_platform_count())]


def platform_aliases() -> dict[str, str]:
    """Other identifiers of the same machines: alias -> name."""
    found: dict[str, str] = {}
    index = ffi.new("int32_t *")
    while alias := lib.mera_platform_alias(len(found), index):
        found[_text(alias)] = _text(lib.mera_platform_at(index[0]).name)
    return found


def check_platform(platform: Platform) -> None:
    """Raises InvalidModelError if a value is out of its range."""
    context = _host()
    context.call(lib.mera_platform_check, context.pointer, _platform_to_c(platform))


# ---- operators ----


@dataclass(frozen=True)
class OpInfo:
    """A row of csrc/dna_ops.def. attrs: name -> default, in the table's order."""

    index: int
    name: str
    min_inputs: int
    max_inputs: int
    attrs: dict[str, int]
    doc: str


def _op(index: int) -> OpInfo:
    attrs = {
        _text(lib.mera_op_attr_name(index, i)): int(lib.mera_op_attr_default(index, i))
        for i in range(lib.mera_op_attr_count(index))
    }
    least, most = lib.mera_op_min_inputs(index), lib.mera_op_max_inputs(index)
    return OpInfo(index, _text(lib.mera_op_name(index)), least, most, attrs, _text(lib.mera_op_doc(index)))


OPS: dict[str, OpInfo] = {info.name: info for info in map(_op, range(lib.mera_op_count()))}


# ---- graph ----


@dataclass(frozen=True)
class TensorInfo:
    """shape: N, H, W, C (weights: Co, Kh, Kw, Ci/groups). scale is 0 if the tensor has no quantization."""

    index: int
    name: str
    shape: tuple[int, int, int, int]
    dtype: str
    scale: float
    zero_point: int
    constant: bool = False


@dataclass(frozen=True)
class NodeInfo:
    """macs: multiply-accumulates of the node as the network has them; 0 for all but conv2d."""

    index: int
    op: str
    name: str
    layer: str
    source: str
    output: int
    macs: int


class Graph:
    """A DNA graph: build it, finish() it (which checks all of it), then compile or interpret it."""

    def __init__(self, name: str = "", context: Context | None = None, *, _handle: _Handle | None = None) -> None:
        self.context = context or Context()
        if _handle is None:
            _handle = self.context.make("graph", lib.mera_graph_create, self.context.pointer, name.encode())
        self._handle = _handle

    @property
    def handle(self) -> Any:
        """The mera_graph pointer; valid as long as this object lives."""
        return self._handle.pointer

    @classmethod
    def parse(cls, text: str, context: Context | None = None) -> Graph:
        """The finished graph whose text(with_data=True) is given. Errors name line and column."""
        context = context or Context()
        data = text.encode()
        handle = context.make("graph", lib.mera_graph_parse, context.pointer, data, len(data))
        return cls(context=context, _handle=handle)

    @classmethod
    def load(cls, data: bytes, context: Context | None = None) -> Graph:
        """The finished graph that save() gave. Raises CorruptFileError for anything else."""
        context = context or Context()
        handle = context.make("graph", lib.mera_graph_load, context.pointer, data, len(data))
        return cls(context=context, _handle=handle)

    def tensor(self, name: str, shape: Sequence[int], dtype: str = "int8") -> int:
        """A new tensor of rank 4; its index."""
        if dtype not in _DTYPE_CODES:
            raise errors.UnsupportedError(f"tensor {name!r}: dtype must be int8 or int32, got {dtype!r}")
        out = ffi.new("int32_t *")
        code = _DTYPE_CODES[dtype]
        self.context.call(lib.mera_graph_tensor, self.handle, name.encode(), code, _shape(name, shape), out)
        return int(out[0])

    def constant(self, name: str, value: Array) -> int:
        """A new constant tensor with the data of an int8 or int32 array of rank 4, which is copied; its index."""
        if value.dtype.name not in _DTYPE_CODES:
            raise errors.UnsupportedError(f"constant {name!r}: dtype must be int8 or int32, got {value.dtype}")
        data = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        out = ffi.new("int32_t *")
        code, shape = _DTYPE_CODES[value.dtype.name], _shape(name, value.shape)
        self.context.call(
            lib.mera_graph_constant, self.handle, name.encode(), code, shape, ffi.from_buffer(data), data.nbytes, out
        )
        return int(out[0])

    def quantize(self, tensor: int, scale: float | Array, zero_point: int | Array = 0) -> None:
        """Gives a tensor its quantization: real = scale * (q - zero_point); arrays are per output channel."""
        scales = np.ascontiguousarray(np.atleast_1d(scale), dtype=np.float32)
        zeros = np.ascontiguousarray(np.broadcast_to(np.asarray(zero_point), scales.shape), dtype=np.int32)
        self.context.call(
            lib.mera_graph_quantize,
            self.handle,
            tensor,
            scales.size,
            ffi.from_buffer("float[]", scales),
            ffi.from_buffer("int32_t[]", zeros),
        )

    def node(
        self,
        op: str,
        inputs: Sequence[int],
        output: int,
        attrs: Mapping[str, int] | None = None,
        *,
        name: str,
        layer: str = "",
        source: str = "",
    ) -> int:
        """A new node; its index. Attributes that are not given have their defaults; unknown ones are errors."""
        if op not in OPS:
            raise errors.UnsupportedError(f"node {name!r}: unknown operator {op!r}; {errors.nearest(op, OPS)}")
        info, given = OPS[op], dict(attrs or {})
        values = [operator.index(given.pop(key, default)) for key, default in info.attrs.items()]
        for key in given:
            raise errors.InvalidModelError(
                f"{op} {name!r}: unknown attribute {key!r}; {errors.nearest(key, info.attrs)}"
            )
        out = ffi.new("int32_t *")
        self.context.call(
            lib.mera_graph_node,
            self.handle,
            info.index,
            name.encode(),
            layer.encode(),
            source.encode(),
            len(inputs),
            ffi.new("int32_t[]", list(inputs)),
            output,
            len(values),
            ffi.new("int64_t[]", values),
            out,
        )
        return int(out[0])

    def input(self, tensor: int) -> None:
        """Makes a tensor the graph's next input."""
        self.context.call(lib.mera_graph_input, self.handle, tensor)

    def output(self, tensor: int) -> None:
        """Makes a tensor the graph's next output."""
        self.context.call(lib.mera_graph_output, self.handle, tensor)

    def finish(self) -> Graph:
        """Checks the whole graph; it cannot be changed afterwards. Returns the graph."""
        self.context.call(lib.mera_graph_finish, self.handle)
        return self

    def text(self, with_data: bool = True) -> str:
        """The graph as text; without data it is shorter but does not parse."""
        return self.context.text(lib.mera_graph_print, self.handle, int(with_data))

    def save(self) -> bytes:
        """The graph as bytes, checksummed."""
        return self.context.saved(lib.mera_graph_save, self.handle)

    def tensor_info(self, index: int) -> TensorInfo:
        """What is known of a tensor."""
        shape = ffi.new("int64_t[4]")
        lib.mera_graph_tensor_shape(self.handle, index, shape)
        return TensorInfo(
            index,
            _text(lib.mera_graph_tensor_name(self.handle, index)),
            (shape[0], shape[1], shape[2], shape[3]),
            _DTYPES[lib.mera_graph_tensor_dtype(self.handle, index)],
            lib.mera_graph_tensor_scale(self.handle, index),
            lib.mera_graph_tensor_zero_point(self.handle, index),
            bool(lib.mera_graph_tensor_is_constant(self.handle, index)),
        )

    @property
    def tensors(self) -> list[TensorInfo]:
        """All tensors."""
        return [self.tensor_info(i) for i in range(lib.mera_graph_tensor_count(self.handle))]

    @property
    def inputs(self) -> list[TensorInfo]:
        """The graph's inputs, in order."""
        count = lib.mera_graph_input_count(self.handle)
        return [self.tensor_info(lib.mera_graph_input_tensor(self.handle, i)) for i in range(count)]

    @property
    def outputs(self) -> list[TensorInfo]:
        """The graph's outputs, in order."""
        count = lib.mera_graph_output_count(self.handle)
        return [self.tensor_info(lib.mera_graph_output_tensor(self.handle, i)) for i in range(count)]

    @property
    def nodes(self) -> list[NodeInfo]:
        """All nodes, in the order in which they run."""
        handle, found = self.handle, []
        for i in range(lib.mera_graph_node_count(handle)):
            op = _text(lib.mera_op_name(lib.mera_graph_node_op(handle, i)))
            texts = (lib.mera_graph_node_name, lib.mera_graph_node_layer, lib.mera_graph_node_source)
            name, layer, source = (_text(get(handle, i)) for get in texts)
            output, macs = lib.mera_graph_node_output(handle, i), lib.mera_graph_node_macs(handle, i)
            found.append(NodeInfo(i, op, name, layer, source, output, macs))
        return found

    def compile(
        self, platform: Platform, options: Mapping[str, int] | None = None, progress: Progress | None = None
    ) -> Program:
        """Compiles for a platform. progress may raise, which stops the compilation with that exception."""
        state = _ProgressState(progress)
        on_progress, user = (lib.mera_on_progress, ffi.new_handle(state)) if progress else (ffi.NULL, ffi.NULL)
        args = (self.handle, _platform_to_c(platform), _options(options), on_progress, user)
        try:
            handle = self.context.make("program", lib.mera_compile, *args)
        except errors.MeraError:
            if state.error is not None:
                raise state.error from None
            raise
        return Program(self.context, handle)

    def dump(self, stage: str, platform: Platform, options: Mapping[str, int] | None = None) -> str:
        """The text of one stage: graph, fuse, tile, lower, alloc, schedule or isa."""
        args = (self.handle, _platform_to_c(platform), _options(options), stage.encode())
        return self.context.text(lib.mera_compile_dump, *args)


class _ProgressState:
    def __init__(self, function: Progress | None) -> None:
        self.function = function
        self.error: BaseException | None = None


@ffi.def_extern()  # type: ignore[untyped-decorator]
def mera_on_progress(user: Any, stage: Any, done: int, total: int) -> int:
    state: _ProgressState = ffi.from_handle(user)
    try:
        if state.function is not None:
            state.function(_text(stage), done, total)
    except BaseException as error:  # it is raised again when C has returned
        state.error = error
        return 1
    return 0


def _shape(name: str, shape: Sequence[int]) -> Any:
    if len(shape) != 4:
        raise errors.InvalidModelError(f"tensor {name!r}: its rank must be 4, got shape {tuple(shape)}")
    return ffi.new("int64_t[4]", [operator.index(size) for size in shape])


def _options(options: Mapping[str, int] | None) -> Any:
    row = ffi.new("mera_options *")
    row.workers = 1
    known = [name for name, _ in ffi.typeof("mera_options").fields]
    for key, value in (options or {}).items():
        if key not in known:
            raise errors.ConfigError(f"unknown compiler option {key!r}; {errors.nearest(key, known)}")
        setattr(row, key, operator.index(value))
    return row


# ---- program ----


class Program:
    """A compiled graph: code, constants, platform, interface, layer table."""

    def __init__(self, context: Context, handle: _Handle) -> None:
        self.context = context
        self._handle = handle

    @property
    def handle(self) -> Any:
        """The mera_program pointer; valid as long as this object lives."""
        return self._handle.pointer

    @classmethod
    def load(cls, data: bytes, context: Context | None = None) -> Program:
        """The program that save() gave. Raises CorruptFileError for anything else."""
        context = context or Context()
        return cls(context, context.make("program", lib.mera_program_load, context.pointer, data, len(data)))

    @classmethod
    def parse(cls, text: str, context: Context | None = None) -> Program:
        """Assembles what text() gave."""
        context, data = context or Context(), text.encode()
        return cls(context, context.make("program", lib.mera_program_parse, context.pointer, data, len(data)))

    def save(self) -> bytes:
        """The program as bytes: the container that a deployment holds."""
        return self.context.saved(lib.mera_program_save, self.handle)

    def text(self) -> str:
        """The program as assembly."""
        return self.context.text(lib.mera_program_print, self.handle)

    @property
    def platform(self) -> Platform:
        """What it was compiled for."""
        row = ffi.new("mera_platform *")
        lib.mera_program_platform(self.handle, row)
        return _platform_from_c(row)

    @property
    def instruction_count(self) -> int:
        """Instructions of all queues."""
        return int(lib.mera_program_instruction_count(self.handle))

    @property
    def constant_bytes(self) -> int:
        """Bytes of constants in DRAM."""
        return int(lib.mera_program_constant_bytes(self.handle))

    @property
    def sram_peak_bytes(self) -> int:
        """The highest SRAM address used, plus one."""
        return int(lib.mera_program_sram_peak_bytes(self.handle))

    @property
    def input_bytes(self) -> list[int]:
        """Bytes of each input."""
        count = lib.mera_program_input_count(self.handle)
        return [int(lib.mera_program_input_bytes(self.handle, i)) for i in range(count)]

    @property
    def output_bytes(self) -> list[int]:
        """Bytes of each output."""
        count = lib.mera_program_output_count(self.handle)
        return [int(lib.mera_program_output_bytes(self.handle, i)) for i in range(count)]

    @property
    def nodes(self) -> list[tuple[str, str, str, str]]:
        """The layer table: (name, op, layer, source) of each node."""
        texts = (
            lib.mera_program_node_name,
            lib.mera_program_node_op,
            lib.mera_program_node_layer,
            lib.mera_program_node_source,
        )
        found = []
        for i in range(lib.mera_program_node_count(self.handle)):
            name, op, layer, source = (_text(get(self.handle, i)) for get in texts)
            found.append((name, op, layer, source))
        return found

    @property
    def queue_names(self) -> list[str]:
        """The names of the machine's queues, as events number them."""
        count = lib.mera_program_queue_count(self.handle)
        return [_text(lib.mera_program_queue_name(self.handle, i)) for i in range(count)]


# ---- running ----


def _run(
    context: Context, function: Callable[..., int], handle: Any, inputs: Sequence[Array], sizes: list[int]
) -> list[Int8Array]:
    """Runs with int8 inputs; new flat int8 arrays of the sizes given."""
    arrays = []
    for i, array in enumerate(inputs):
        if not isinstance(array, np.ndarray) or array.dtype != np.int8:
            kind = getattr(array, "dtype", type(array).__name__)
            raise errors.InvalidModelError(f"input {i} must be an int8 numpy array, got {kind}")
        arrays.append(np.ascontiguousarray(array))
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


def _fields(row: Any) -> dict[str, int]:
    return {name: int(getattr(row, name)) for name, _ in ffi.typeof(row).item.fields}


class Simulator:
    """Executes a program's instructions: bits and cycles."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.context = program.context
        self._handle = self.context.make("simulator", lib.mera_simulator_create, program.handle)

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


# ---- the host's side of the boundary ----


_local = threading.local()


def _host() -> Context:
    """This thread's context for calls that make no object."""
    if not hasattr(_local, "context"):
        _local.context = Context()
    context: Context = _local.context
    return context


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
    context = _host()
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
    context = _host()
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


def instruction_names() -> list[str]:
    """The instructions of csrc/dna_isa.def, by opcode."""
    return [_text(lib.mera_isa_name(i)) for i in range(lib.mera_isa_count())]
