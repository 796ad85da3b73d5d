"""A .tflite file as plain data: tensors, operators, constants. Every offset, length and index in it is checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tflite

from mera_torch.errors import CorruptFileError, InvalidModelError, UnsupportedError

from ..files import Source, describe, read
from .flatbuffer import checked, child, children, root, vector

Array = npt.NDArray[Any]


def _names(enumeration: type) -> dict[int, str]:
    return {number: name for name, number in vars(enumeration).items() if isinstance(number, int)}


OPERATORS = _names(tflite.BuiltinOperator)
OPTIONS = _names(tflite.BuiltinOptions)
OPTIONS_2 = _names(tflite.BuiltinOptions2)
TYPES = _names(tflite.TensorType)
ACTIVATIONS = _names(tflite.ActivationFunctionType)

DTYPES: dict[str, type[np.generic]] = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "FLOAT64": np.float64, "INT8": np.int8, "INT16": np.int16,
    "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
"""Those that a tensor in memory can have."""

LARGEST_RANK = 8
EMPTY_TABLE = bytes([8, 0, 0, 0, 4, 0, 4, 0, 4, 0, 0, 0])
"""A flatbuffer whose only table (at byte 8) has no fields: options that are not there have their defaults."""


@dataclass(frozen=True)
class Quantization:
    """real = scale * (q - zero_point), per tensor (one element) or for each index along `axis`.

    scale: float32, finite, > 0; zero_point: int64, as many.
    """

    scale: Array
    zero_point: Array
    axis: int

    @property
    def per_tensor(self) -> bool:
        return self.scale.size == 1


@dataclass(frozen=True)
class Tensor:
    """dtype: TFLite's name ("INT8"); data: of a constant, in its shape (INT4 as int8), else None."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    data: Array | None
    quantization: Quantization | None
    sparse: bool
    variable: bool

    def __str__(self) -> str:
        return f"tensor {self.index} ({self.name!r})"


@dataclass(frozen=True)
class Operator:
    """code: TFLite's name ("CONV_2D"; "CUSTOM" with its name in `custom`); inputs, outputs: tensors, -1 for none."""

    index: int
    code: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    custom: str
    options_type: str
    options: Any = field(compare=False)

    def option(self, kind: str, name: str) -> Any:
        """A field of the operator's options, which must be of `kind` ("Conv2DOptions"); the schema's default if it has
        none."""
        return getattr(self._options(kind), name)()

    def options_vector(self, kind: str, name: str) -> list[int]:
        """A field that is a vector of numbers."""
        return [int(x) for x in vector(self._options(kind), name)]

    def _options(self, kind: str) -> Any:
        if self.options_type == "NONE":
            return root(getattr(tflite, kind)(), EMPTY_TABLE)
        if self.options_type != kind:
            raise InvalidModelError(
                f"tflite operator {self.code} {self.index}: its options are {self.options_type}, they must be {kind}"
            )
        return self.options


@dataclass(frozen=True)
class Model:
    """The main subgraph. Names of inputs and outputs are those of the first signature, where the file has one."""

    description: str
    tensors: list[Tensor]
    operators: list[Operator]
    inputs: list[int]
    outputs: list[int]
    input_names: list[str]
    output_names: list[str]


def load(source: Source) -> Model:
    """Reads a file (its path or bytes).

    Raises CorruptFileError (with the offset) for what is no TFLite file, or truncated, or inconsistent;
    UnsupportedError for what TFLite may hold but no network of tensors does.
    """
    data = read(source)
    try:
        return _Reader(data).model()
    except (CorruptFileError, InvalidModelError, UnsupportedError) as error:
        raise type(error)(f"{describe(source)}: {error}") from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        if data[4:8] != b"TFL3":
            raise CorruptFileError(f"offset 4: no TFLite file, its identifier is {data[4:8]!r} instead of b'TFL3'")
        self.file = root(tflite.Model(), data)

    def model(self) -> Model:
        if self.file.Version() != 3:
            raise UnsupportedError(f"schema version {self.file.Version()} is not supported (3 is)")
        subgraphs = children(self.file, "Subgraphs")
        if not subgraphs:
            raise CorruptFileError(f"offset {self.file._tab.Pos}: the model has no subgraph")
        codes = [self._code(code) for code in children(self.file, "OperatorCodes")]
        self.buffers = children(self.file, "Buffers")
        main = subgraphs[0]
        tensors = [self._tensor(i, tensor) for i, tensor in enumerate(children(main, "Tensors"))]
        operators = [self._operator(i, op, codes, len(tensors)) for i, op in enumerate(children(main, "Operators"))]
        inputs = self._indices(main, "Inputs", len(tensors), "the model's inputs")
        outputs = self._indices(main, "Outputs", len(tensors), "the model's outputs")
        if -1 in inputs or -1 in outputs:
            raise CorruptFileError(f"offset {main._tab.Pos}: an input or output of the model is no tensor")
        names = self._signature(tensors, inputs, outputs)
        return Model(_text(self.file.Description()), tensors, operators, inputs, outputs, *names)

    def _code(self, code: Any) -> tuple[str, str, int]:
        """(name, custom name, version). Old files have the number in a byte, new ones in an int."""
        number = max(int(code.DeprecatedBuiltinCode()), int(code.BuiltinCode()))
        if number not in OPERATORS:
            raise UnsupportedError(f"offset {code._tab.Pos}: operator code {number} is not known")
        return OPERATORS[number], _text(code.CustomCode()), int(code.Version())

    def _indices(self, table: Any, name: str, count: int, what: str) -> list[int]:
        found = vector(table, name)
        if found.size and (found.min() < -1 or found.max() >= count):
            raise CorruptFileError(
                f"offset {table._tab.Pos}: {what} name a tensor that is not there; there are {count} tensors"
            )
        return [int(i) for i in found]

    # ---- tensors ----

    def _tensor(self, index: int, tensor: Any) -> Tensor:
        where = f"offset {tensor._tab.Pos}: tensor {index}"
        dtype = TYPES.get(tensor.Type())
        if dtype is None:
            raise UnsupportedError(f"{where}: element type {tensor.Type()} is not known")
        shape = tuple(int(size) for size in vector(tensor, "Shape"))
        if len(shape) > LARGEST_RANK or any(size < 0 for size in shape):
            raise CorruptFileError(
                f"{where}: shape {list(shape[:16])} must be up to {LARGEST_RANK} sizes, none below 0"
            )
        quantization = self._quantization(where, tensor, dtype, shape)
        sparsity = tensor.Sparsity() is not None
        data = None if sparsity else self._data(where, tensor, dtype, shape)
        name = _text(tensor.Name()) or f"tensor_{index}"
        return Tensor(index, name, shape, dtype, data, quantization, sparsity, bool(tensor.IsVariable()))

    def _data(self, where: str, tensor: Any, dtype: str, shape: tuple[int, ...]) -> Array | None:
        number = tensor.Buffer()
        if number >= len(self.buffers) and number != 0:
            raise CorruptFileError(f"{where}: its buffer {number} is not there; there are {len(self.buffers)} buffers")
        raw = self._buffer(number) if number else None
        if raw is None or (raw.size == 0 and math.prod(shape) != 0):
            return None
        if dtype not in DTYPES and dtype != "INT4":
            return None  # whoever reads it says that it is not supported
        elements = math.prod(shape)
        size = (elements + 1) // 2 if dtype == "INT4" else elements * np.dtype(DTYPES[dtype]).itemsize
        if raw.size != size:
            raise CorruptFileError(
                f"{where}: its buffer {number} has {raw.size} bytes, shape {list(shape)} of {dtype} takes {size}"
            )
        self.file._tab.budget.spend(size, tensor._tab.Pos)
        if dtype == "INT4":
            return _unpack_int4(raw, elements).reshape(shape)
        if dtype == "BOOL":
            return np.asarray(raw != 0).reshape(shape)
        found: Array = np.frombuffer(raw, np.dtype(DTYPES[dtype]).newbyteorder("<"))
        return found.reshape(shape)

    def _buffer(self, number: int) -> Array | None:
        buffer = self.buffers[number]
        offset, size = buffer.Offset(), buffer.Size()
        if offset > 1:  # lies behind the flatbuffer: files of more than 2 GB
            if offset + size > len(self.data):
                raise CorruptFileError(
                    f"offset {buffer._tab.Pos}: buffer {number} lies at {offset}..{offset + size}, beyond the file's "
                    f"{len(self.data)} bytes"
                )
            return np.frombuffer(self.data, np.uint8, size, offset)
        found: Any = buffer.DataAsNumpy()
        return found if isinstance(found, np.ndarray) else None

    def _quantization(self, where: str, tensor: Any, dtype: str, shape: tuple[int, ...]) -> Quantization | None:
        held = tensor.Quantization()
        if held is None:
            return None
        held = child(tensor, held)
        scale, zero = vector(held, "Scale"), vector(held, "ZeroPoint")
        if scale.size == 0 or dtype not in ("INT4", "INT8", "UINT8", "INT16", "INT32", "INT64"):
            return None
        if held.DetailsType() != 0:
            raise UnsupportedError(f"{where}: custom quantization is not supported")
        axis = int(held.QuantizedDimension())
        if not (np.isfinite(scale).all() and (scale >= 0).all()):
            raise CorruptFileError(f"{where}: its scales must be finite and not below 0")
        if scale.size > 1 and (not 0 <= axis < len(shape) or scale.size != shape[axis]):
            raise CorruptFileError(
                f"{where}: {scale.size} scales along dimension {axis} do not fit shape {list(shape)}"
            )
        if zero.size not in (0, 1, scale.size):
            raise CorruptFileError(f"{where}: {zero.size} zero points do not fit {scale.size} scales")
        zeros = np.broadcast_to(zero if zero.size else np.zeros(1, np.int64), scale.shape).astype(np.int64)
        limits = np.iinfo(np.int8 if dtype == "INT4" else DTYPES[dtype])
        if zeros.min() < limits.min or zeros.max() > limits.max:
            raise CorruptFileError(f"{where}: its zero points must be values of {dtype}")
        if not scale.any():
            return None
        scale = np.where(scale > 0, scale, np.float32(1))  # channels of scale 0 hold zeros only: any scale does
        return Quantization(scale.astype(np.float32), zeros, axis)

    # ---- operators ----

    def _operator(self, index: int, op: Any, codes: Sequence[tuple[str, str, int]], tensors: int) -> Operator:
        where = f"operator {index}"
        number = int(op.OpcodeIndex())
        if number >= len(codes):
            raise CorruptFileError(
                f"offset {op._tab.Pos}: {where} has operator code {number}; there are {len(codes)} codes"
            )
        code, custom, version = codes[number]
        inputs = self._indices(op, "Inputs", tensors, f"{where}: its inputs")
        outputs = self._indices(op, "Outputs", tensors, f"{where}: its outputs")
        kind, options = self._options(op)
        return Operator(index, code, version, tuple(inputs), tuple(outputs), custom, kind, options)

    def _options(self, op: Any) -> tuple[str, Any]:
        for suffix, names in (("", OPTIONS), ("2", OPTIONS_2)):
            number = getattr(op, f"BuiltinOptions{suffix}Type")()
            table = getattr(op, f"BuiltinOptions{suffix}")()
            if number == 0 or table is None:
                continue
            if number not in names:
                raise UnsupportedError(f"offset {op._tab.Pos}: options of type {number} are not known")
            accessor = getattr(tflite, names[number])()
            return names[number], checked(accessor, self.data, table.Pos, self.file._tab.budget)
        return "NONE", None

    # ---- names ----

    def _signature(self, tensors: list[Tensor], inputs: list[int], outputs: list[int]) -> tuple[list[str], list[str]]:
        given: list[dict[int, str]] = [{}, {}]
        for signature in children(self.file, "SignatureDefs"):
            if signature.SubgraphIndex() == 0 and not given[0]:
                given = [
                    {int(entry.TensorIndex()): _text(entry.Name()) for entry in children(signature, side)}
                    for side in ("Inputs", "Outputs")
                ]
        return tuple(  # type: ignore[return-value]
            _unique([names.get(i) or tensors[i].name for i in side])
            for names, side in zip(given, (inputs, outputs), strict=True)
        )


def _unpack_int4(raw: Array, elements: int) -> Array:
    """Two to a byte, the first in the lower half."""
    pairs = np.stack([raw << 4, raw], axis=-1).astype(np.int8) >> 4
    return pairs.reshape(-1)[:elements]


def _text(raw: bytes | None) -> str:
    return "" if raw is None else raw.decode("utf-8", "replace")


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        found.append(name if seen[name] == 0 else f"{name}:{seen[name]}")
    return found
