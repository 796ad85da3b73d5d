"""One TFLite model on its way into an FX graph: what its tensors are worth, and in which layout.

TFLite holds images as NHWC, aten's convolutions and pools want NCHW. Each image is held in the layout in which it was
computed; a permutation is made only where a reader wants the other one. So a chain of convolutions, activations and
additions has none, as if it came from PyTorch.

A quantized tensor is held as integers; who computes with it reads it through a dequantize, and its own result goes
through a quantize: the language of PT2E. uint8 tensors are held as int8, with a zero point 128 lower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from mera_torch.errors import InvalidModelError, MeraError, UnsupportedError

from ..graph import GraphBuilder, Value, dtype, is_constant, shape
from .reader import DTYPES, Model, Operator, Tensor

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed

TO_FIRST = [0, 3, 1, 2]
TO_LAST = [0, 2, 3, 1]
AXES_FIRST = [0, 2, 3, 1]
"""Where the axes N, H, W, C of a channels-last image stand in the channels-first one."""

CONSTANT_BYTES = 1 << 31
"""What shape arithmetic and the like may compute in all."""

SMALLEST_SCALE = 2.0**-60
"""Of a whole tensor: quotients and products of scales stay within float32."""

LARGEST_TABLE = 1 << 24
"""Entries of a table of indices."""

TORCH_DTYPES = {name: torch.from_numpy(np.zeros(1, dtype)).dtype for name, dtype in DTYPES.items()}


class QParams(NamedTuple):
    """Of a tensor as it is held: real = scale * (q - zero_point), low <= q <= high."""

    scale: float
    zero_point: int
    low: int
    high: int
    dtype: torch.dtype


@dataclass
class Held:
    """Values of one tensor, by layout (True: channels first); `first` is the layout in which it was computed."""

    first: bool = False
    raw: dict[bool, Value] = field(default_factory=dict)
    real: dict[bool, Value] = field(default_factory=dict)


class Conversion:
    """The model and the values of its tensors so far."""

    def __init__(self, model: Model, builder: GraphBuilder) -> None:
        self.model, self.b = model, builder
        self.held: dict[int, Held] = {}
        self.weights: dict[Any, Value] = {}
        self._constant_bytes = 0

    # ---- tensors ----

    def is_quantized(self, tensor: Tensor) -> bool:
        return tensor.quantization is not None and tensor.dtype in ("INT4", "INT8", "UINT8", "INT16")

    def qparams(self, tensor: Tensor) -> QParams:
        """Raises UnsupportedError if the tensor has more than one scale."""
        q = tensor.quantization
        if q is None or not self.is_quantized(tensor):
            raise self.b.invalid(f"{tensor} must be quantized")
        if not q.per_tensor:
            raise self.b.unsupported(f"{tensor} has {q.scale.size} scales; only weights may")
        scale, zero = float(q.scale[0]), int(q.zero_point[0])
        if not SMALLEST_SCALE <= scale <= 1 / SMALLEST_SCALE:
            raise self.b.invalid(f"{tensor} has scale {scale:g}; it must be from 2^-60 to 2^60")
        if tensor.dtype == "UINT8":
            return QParams(scale, zero - 128, -128, 127, torch.int8)
        if tensor.dtype == "INT16":
            return QParams(scale, zero, -32768, 32767, torch.int16)
        return QParams(scale, zero, -128, 127, torch.int8)

    def put(self, tensor: Tensor, value: Value, first: bool) -> None:
        """Sets the tensor's value: the integers if it is quantized."""
        if tensor.index in self.held:
            raise InvalidModelError(f"{self.b.where}: {tensor} is computed twice")
        if is_constant(value):
            self._constant_bytes += value.nbytes
            if self._constant_bytes > CONSTANT_BYTES:
                raise self.b.invalid(f"constants computed on the way are larger than {CONSTANT_BYTES >> 30} GiB")
        held = self.held[tensor.index] = Held(first)
        held.raw[first] = value
        if not self.is_quantized(tensor):
            held.real = held.raw

    def _held(self, tensor: Tensor) -> Held:
        if tensor.index not in self.held:
            self.put(tensor, self.constant(tensor), False)
        return self.held[tensor.index]

    def constant(self, tensor: Tensor) -> torch.Tensor:
        """The data of a constant as it is held. Raises InvalidModelError if it has none: it is read before written."""
        if tensor.sparse:
            raise self.b.unsupported(f"{tensor} is sparse; convert the model without sparsity")
        if tensor.dtype not in TORCH_DTYPES and tensor.dtype != "INT4":
            raise self.b.unsupported(f"{tensor} has element type {tensor.dtype}")
        if tensor.variable:
            raise self.b.unsupported(f"{tensor} is a variable, which lives from one call to the next")
        if tensor.data is None:
            raise self.b.invalid(f"{tensor} is read, but no operator before this one computes it and it has no data")
        data = torch.from_numpy(np.array(tensor.data))  # a copy: the file's bytes cannot be written
        if tensor.dtype == "UINT8" and self.is_quantized(tensor):
            return (data.to(torch.int16) - 128).to(torch.int8)
        return data

    def is_first(self, tensor: Tensor) -> bool:
        """Whether the tensor was computed channels first."""
        return self._held(tensor).first

    def is_constant(self, tensor: Tensor) -> bool:
        held = self._held(tensor)
        return is_constant(held.raw[held.first])

    def raw(self, tensor: Tensor, first: bool) -> Value:
        """The tensor's integers if it is quantized, else its values."""
        held = self._held(tensor)
        if first not in held.raw:
            if len(shape(held.raw[held.first])) != 4:
                raise self.b.invalid(f"{tensor} must be images (rank 4), got {list(shape(held.raw[held.first]))}")
            if is_constant(held.raw[held.first]):
                order = TO_FIRST if first else TO_LAST
                held.raw[first] = self.b.call(aten.permute.default, held.raw[not first], order).contiguous()
            elif self.is_quantized(tensor):
                held.raw[first] = self.quantize(self.real(tensor, first), self.qparams(tensor))
            else:
                held.raw[first] = self.b.call(aten.permute.default, held.raw[not first], TO_FIRST if first else TO_LAST)
        return held.raw[first]

    def real(self, tensor: Tensor, first: bool) -> Value:
        """The tensor's values: of a quantized one, what a dequantize gives."""
        if not self.is_quantized(tensor):
            return self.raw(tensor, first)
        held = self._held(tensor)
        if first not in held.real:
            if first in held.raw or is_constant(held.raw[held.first]):
                held.real[first] = self.dequantize(tensor, self.raw(tensor, first), first)
            else:
                order = TO_FIRST if first else TO_LAST
                held.real[first] = self.b.call(aten.permute.default, self.real(tensor, not first), order)
        return held.real[first]

    def dequantize(self, tensor: Tensor, value: Value, first: bool) -> Value:
        q = tensor.quantization
        if q is not None and not q.per_tensor:
            axis = AXES_FIRST[q.axis] if first else q.axis
            return self.dequantize_channels(value, q.scale, self.zero_points(tensor), axis)
        p = self.qparams(tensor)
        return self.b.emit(quantized.dequantize_per_tensor.default, value, *p)

    def dequantize_channels(self, value: Value, scale: Any, zero_point: Any, axis: int) -> Value:
        """value: int8 or int32, with a scale for each index along `axis`."""
        limits = torch.iinfo(dtype(value))
        return self.b.emit(
            quantized.dequantize_per_channel.default, value, torch.tensor(scale), torch.tensor(zero_point), axis,
            limits.min, limits.max, dtype(value),
        )  # fmt: skip

    def zero_points(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """int64, one for each scale, of the tensor as it is held."""
        if tensor.quantization is None:
            raise self.b.invalid(f"{tensor} must be quantized")
        return tensor.quantization.zero_point - (128 if tensor.dtype == "UINT8" else 0)

    def quantize(self, value: Value, q: QParams) -> Value:
        return self.b.call(quantized.quantize_per_tensor.default, value, *q)


@dataclass
class Op:
    """One operator while it is converted: its operands by position, and where its results go."""

    c: Conversion
    op: Operator

    @property
    def b(self) -> GraphBuilder:
        return self.c.b

    @property
    def code(self) -> str:
        return self.op.code

    def option(self, kind: str, name: str) -> Any:
        return self.op.option(kind, name)

    # ---- operands ----

    def has(self, i: int) -> bool:
        """Whether the optional input i is there."""
        return i < len(self.op.inputs) and self.op.inputs[i] != -1

    def tensor(self, i: int) -> Tensor:
        if not self.has(i):
            raise self.b.invalid(f"input {i} is missing; it has {len(self.op.inputs)} inputs")
        return self.c.model.tensors[self.op.inputs[i]]

    @property
    def count(self) -> int:
        return len(self.op.inputs)

    def raw(self, i: int, first: bool = False) -> Value:
        return self.c.raw(self.tensor(i), first)

    def real(self, i: int, first: bool = False) -> Value:
        return self.c.real(self.tensor(i), first)

    def shape(self, i: int) -> tuple[int, ...]:
        """Of input i as TFLite has it (channels last)."""
        tensor = self.tensor(i)
        first = self.c.is_first(tensor)
        sizes = shape(self.c.raw(tensor, first))
        return tuple(sizes[a] for a in TO_LAST) if first else sizes

    def rank(self, i: int) -> int:
        return len(self.shape(i))

    def is_first(self, i: int) -> bool:
        return self.c.is_first(self.tensor(i))

    def any_first(self, inputs: Sequence[int] | None = None) -> bool:
        """The layout for an operator that works in either: channels first if an image among its inputs is."""
        return any(self.is_first(i) for i in (range(self.count) if inputs is None else inputs) if self.has(i))

    def operand(self, i: int, first: bool, rank: int, real: bool = True) -> Value:
        """Input i of an operator that broadcasts to `rank`, laid out like the others."""
        value = (self.real if real else self.raw)(i, first and self.rank(i) == 4)
        missing = rank - self.rank(i)
        if not first or missing == 0 or self.rank(i) == 0:
            return value
        value = self.b.call(aten.reshape.default, value, [1] * missing + list(self.shape(i)))
        return self.b.call(aten.permute.default, value, TO_FIRST)

    def constant(self, i: int, what: str) -> torch.Tensor:
        """The value of an input that must be constant. Raises UnsupportedError if it is computed from the inputs."""
        value = self.raw(i)
        if not is_constant(value):
            raise self.b.unsupported(f"{what} must be constant (it depends on the model's inputs)")
        found: torch.Tensor = value
        return found

    def ints(self, i: int, what: str) -> list[int]:
        """The same as a list of integers."""
        held = self.constant(i, what)
        if held.is_floating_point() or held.dim() > 2:
            raise self.b.invalid(f"{what} must be a vector of integers, got {held.dtype} of shape {list(held.shape)}")
        return [int(x) for x in held.flatten()]

    def dim(self, axis: int, first: bool) -> int:
        """Where axis `axis` of an image stands in its layout."""
        return AXES_FIRST[axis] if first else axis

    def listable(self, *sizes: int) -> None:
        """Raises UnsupportedError if a table with an entry for each index of these sizes would be too large."""
        if max(sizes, default=0) > LARGEST_TABLE:
            raise self.b.unsupported(f"sizes {list(sizes)} are larger than {LARGEST_TABLE}")

    def axis(self, axis: int, rank: int) -> int:
        """A dimension counted from the front. Raises InvalidModelError if there is no such dimension."""
        if not -rank <= axis < rank:
            raise self.b.invalid(f"axis {axis} is not there; its input has rank {rank}")
        return axis % rank

    # ---- results ----

    def out(self, i: int = 0) -> Tensor:
        if i >= len(self.op.outputs) or self.op.outputs[i] == -1:
            raise self.b.invalid(f"output {i} is missing; it has {len(self.op.outputs)} outputs")
        return self.c.model.tensors[self.op.outputs[i]]

    def give(self, value: Value, first: bool = False, i: int = 0) -> None:
        """The result in real numbers: it is quantized if the tensor is."""
        tensor = self.out(i)
        if self.c.is_quantized(tensor):
            value = self.c.quantize(value, self.c.qparams(tensor))
        self.give_raw(value, first, i)

    def give_raw(self, value: Value, first: bool = False, i: int = 0) -> None:
        """The result as it is held. first: it is an image, channels first."""
        tensor = self.out(i)
        if tensor.dtype not in TORCH_DTYPES:
            raise self.b.unsupported(f"{tensor} has element type {tensor.dtype}")
        wanted = self.c.qparams(tensor).dtype if self.c.is_quantized(tensor) else TORCH_DTYPES[tensor.dtype]
        if dtype(value) != wanted:
            raise self.b.invalid(f"its result is {dtype(value)}, but {tensor} has element type {tensor.dtype}")
        self.c.put(tensor, value, first and len(shape(value)) == 4)

    def lookup(self, value: Value, table: np.ndarray[Any, Any]) -> Value:
        """table[value + 128]; value: int8, table: int8 [256]."""
        index = self.b.call(aten._to_copy.default, value, dtype=torch.int64)
        index = self.b.call(aten.add.Tensor, index, 128)
        return self.b.call(aten.index.Tensor, torch.from_numpy(np.asarray(table, np.int8)), [index])

    def give_table(self, table: np.ndarray[Any, Any]) -> None:
        """The result of a function of the one input, an int8 tensor, in whatever layout that has."""
        first = self.is_first(0)
        x = self.raw(0, first)
        same = self.same_quantization() and np.array_equal(table, np.arange(-128, 128))
        self.give_raw(x if same else self.lookup(x, table), first)

    def give_moved(self, value: Value, first: bool = False, i: int = 0, o: int = 0) -> None:
        """The result of an operator that moves the integers of input i and computes nothing: output o holds the same
        ones, whatever scale the file gives it. value: in real numbers."""
        tensor = self.tensor(i)
        if not self.c.is_quantized(tensor):
            self.give_raw(value, first, o)
            return
        value = self.c.quantize(value, self.c.qparams(tensor))
        if not self.same_quantization(i, o) and dtype(value) is torch.int8:
            value = self.lookup(value, np.arange(-128, 128))
        self.give_raw(value, first, o)

    def same_quantization(self, i: int = 0, o: int = 0) -> bool:
        """Whether input i and output o hold the same integers for the same numbers."""
        a, b = self.tensor(i), self.out(o)
        if not self.c.is_quantized(a):
            return not self.c.is_quantized(b)
        return self.c.is_quantized(b) and self.c.qparams(a) == self.c.qparams(b)


def located(error: MeraError, where: str) -> MeraError:
    """The error, saying which operator it is about."""
    if where in str(error) or not isinstance(error, InvalidModelError | UnsupportedError):
        return error
    return type(error)(f"{where}: {error}")
