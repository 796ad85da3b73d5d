"""Building, checking, printing, parsing, saving and compiling the DNA graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mera_torch import errors
from mera_torch._core import ffi, lib
from mera_torch.native.context import Context, Handle, text_of
from mera_torch.native.program import Program
from mera_torch.native.tables import OPS, platform_to_c
from mera_torch.platform import Platform

Array = npt.NDArray[Any]
# Called with a stage's name, steps done and steps in all.
Progress = Callable[[str, int, int], object]

_DTYPES: dict[int, str] = {lib.MERA_INT8: "int8", lib.MERA_INT32: "int32"}
_DTYPE_CODES = {name: code for code, name in _DTYPES.items()}


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

    def __init__(self, name: str = "", context: Context | None = None, *, _handle: Handle | None = None) -> None:
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
            text_of(lib.mera_graph_tensor_name(self.handle, index)),
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
            op = text_of(lib.mera_op_name(lib.mera_graph_node_op(handle, i)))
            texts = (lib.mera_graph_node_name, lib.mera_graph_node_layer, lib.mera_graph_node_source)
            name, layer, source = (text_of(get(handle, i)) for get in texts)
            output, macs = lib.mera_graph_node_output(handle, i), lib.mera_graph_node_macs(handle, i)
            found.append(NodeInfo(i, op, name, layer, source, output, macs))
        return found

    def compile(
        self, platform: Platform, options: Mapping[str, int] | None = None, progress: Progress | None = None
    ) -> Program:
        """Compiles for a platform. progress may raise, which stops the compilation with that exception."""
        state = _ProgressState(progress)
        on_progress, user = (lib.mera_on_progress, ffi.new_handle(state)) if progress else (ffi.NULL, ffi.NULL)
        args = (self.handle, platform_to_c(platform), _options(options), on_progress, user)
        try:
            handle = self.context.make("program", lib.mera_compile, *args)
        except errors.MeraError:
            if state.error is not None:
                raise state.error from None
            raise
        return Program(self.context, handle)

    def dump(self, stage: str, platform: Platform, options: Mapping[str, int] | None = None) -> str:
        """The text of one stage: graph, fuse, tile, lower, alloc, schedule or isa."""
        args = (self.handle, platform_to_c(platform), _options(options), stage.encode())
        return self.context.text(lib.mera_compile_dump, *args)


def compile_text(text: str, platform: Platform, stage: str = "schedule", context: Context | None = None) -> str:
    """Goes on from the text of stage "lower", dumped or written by hand, to stage lower, alloc or schedule."""
    data = text.encode()
    args = (platform_to_c(platform), data, len(data), stage.encode())
    context = context or Context()
    return context.text(lib.mera_compile_text, context.pointer, *args)


def compiler_options(options: Mapping[str, int] | None) -> dict[str, int]:
    """Every option of the compiler (mera_options in mera.h) by name, those that are not given with their defaults."""
    row = _options(options)
    return {name: int(getattr(row, name)) for name, _ in ffi.typeof("mera_options").fields}


class _ProgressState:
    def __init__(self, function: Progress | None) -> None:
        self.function = function
        self.error: BaseException | None = None


@ffi.def_extern()  # type: ignore[untyped-decorator]
def mera_on_progress(user: Any, stage: Any, done: int, total: int) -> int:
    state: _ProgressState = ffi.from_handle(user)
    try:
        if state.function is not None:
            state.function(text_of(stage), done, total)
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
