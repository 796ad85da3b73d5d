"""The sizes of a model's inputs: what the file leaves open, the caller says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import GraphProto, ValueInfoProto

from mera_torch.errors import InvalidModelError, ShapeNeededError, UnsupportedError, nearest

from ..graph import first_line
from .tensors import NARROW, torch_dtype

_BATCH = ("batch", "batch_size", "batchsize", "bs", "n", "none", "unk")
"""Names of a batch, wherever it stands."""


class InputSizes:
    """What the caller says about the inputs: sizes by symbol, shapes by input, the batch, and constant inputs."""

    def __init__(
        self, shape_mapping: Mapping[str, Any] | None, batch_num: int, constants: Mapping[str, Any] | None
    ) -> None:
        if isinstance(batch_num, bool) or not isinstance(batch_num, int) or batch_num < 1:
            raise InvalidModelError(f"batch_num must be a whole number from 1 on, got {batch_num!r}")
        self.batch = batch_num
        self.symbols: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.constants = dict(constants or {})
        self._batch_used = False
        for name, given in (shape_mapping or {}).items():
            if isinstance(given, int) and not isinstance(given, bool):
                self.symbols[name] = _checked_size(given, name)
            elif isinstance(given, Sequence) and not isinstance(given, str):
                self.shapes[name] = tuple(_checked_size(size, name) for size in given)
            else:
                raise InvalidModelError(f"shape_mapping[{name!r}] must be a size or a list of sizes, got {given!r}")

    def apply(self, graph: GraphProto, weights: dict[str, torch.Tensor]) -> None:
        """Makes the shape of every input static, and drops what the file says of the shapes of other tensors."""
        inputs = [i for i in graph.input if i.name not in weights]
        self._check_names(inputs)
        leading = {d.dim_param for i in inputs for d in _dims(i)[:1] if _size(d) is None and d.dim_param}
        for info in inputs:
            if info.name in self.constants:
                weights[info.name] = _constant(info.name, self.constants[info.name])
            if is_tensor(info) and info.type.tensor_type.elem_type:
                self._apply(info, leading)
        if self.batch != 1 and not self._batch_used:
            raise InvalidModelError(f"batch_num is {self.batch}, but the file fixes the sizes of all inputs")
        del graph.value_info[:]
        for info in graph.output:
            for dim in _dims(info):
                dim.Clear()

    def _check_names(self, inputs: Sequence[ValueInfoProto]) -> None:
        names = [i.name for i in inputs]
        symbols = sorted({d.dim_param for i in inputs for d in _dims(i) if d.dim_param})
        for name in self.shapes:
            if name not in names:
                raise InvalidModelError(f"shape_mapping: the model has no input {name!r}; {nearest(name, names)}")
        for name in self.symbols:
            if name not in symbols:
                hint = nearest(name, symbols) if symbols else "it has no symbolic dimensions"
                raise InvalidModelError(f"shape_mapping: the model has no symbolic dimension {name!r}; {hint}")
        for name in self.constants:
            if name not in names:
                raise InvalidModelError(f"constants: the model has no input {name!r}; {nearest(name, names)}")

    def _apply(self, info: ValueInfoProto, leading: set[str]) -> None:
        given = self.shapes.get(info.name)
        if info.name in self.constants:
            given = tuple(_constant(info.name, self.constants[info.name]).shape)
        tensor = info.type.tensor_type
        if given is None:
            if not tensor.HasField("shape"):
                raise ShapeNeededError(
                    f"onnx input {info.name!r} has no shape",
                    f"shape_mapping={{{info.name!r}: [...]}}",
                    f"{info.name}=1,3,224,224",
                )
            given = tuple(self._dim(info, index, leading) for index in range(len(tensor.shape.dim)))
        elif tensor.HasField("shape"):
            known = [_size(d) for d in tensor.shape.dim]
            if len(known) != len(given) or any(k not in (None, size) for k, size in zip(known, given, strict=True)):
                shown = [d.dim_param or "?" if _size(d) is None else _size(d) for d in tensor.shape.dim]
                raise InvalidModelError(f"onnx input {info.name!r} has shape {shown}, got {list(given)} for it")
            self._batch_used |= bool(known) and known[0] is None
        tensor.shape.CopyFrom(onnx.TensorShapeProto())
        for size in given:
            tensor.shape.dim.add().dim_value = size

    def _dim(self, info: ValueInfoProto, index: int, leading: set[str]) -> int:
        dim = _dims(info)[index]
        size = _size(dim)
        if size is not None:
            return size
        name = dim.dim_param
        if name in self.symbols:
            return self.symbols[name]
        if index == 0 or name in leading or name.lower() in _BATCH:
            self._batch_used = True
            return self.batch
        shown = f"symbolic dimension {name!r}" if name else "no size"
        key = name or info.name
        hint = f"{{{key!r}: size}}" if name else f"{{{key!r}: [all its sizes]}}"
        example = "224" if name else ",".join("224" if (size := _size(d)) is None else str(size) for d in _dims(info))
        raise ShapeNeededError(
            f"onnx input {info.name!r}: dimension {index} has {shown}", f"shape_mapping={hint}", f"{key}={example}"
        )


def _checked_size(size: Any, name: str) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 2**31:
        raise InvalidModelError(f"shape_mapping[{name!r}] must hold sizes from 0 to 2^31 - 1, got {size!r}")
    return size


def is_tensor(info: ValueInfoProto) -> bool:
    return bool(info.type.WhichOneof("value") == "tensor_type")


def _dims(info: ValueInfoProto) -> list[Any]:
    return list(info.type.tensor_type.shape.dim) if is_tensor(info) else []


def _size(dim: Any) -> int | None:
    """The dimension's size, or None if it is not known; some writers spell that -1."""
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else None


def _constant(name: str, value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidModelError(f"constants[{name!r}] is no tensor: {first_line(error)}") from error


def input_dtype(info: ValueInfoProto) -> torch.dtype:
    """The dtype of an input. Raises UnsupportedError for what is no tensor of numbers."""
    where = f"onnx input {info.name!r}"
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        found = (kind or "unknown").replace("_type", "")
        raise UnsupportedError(f"{where} is of {found} type; only tensors are supported")
    if info.type.tensor_type.elem_type in NARROW:
        raise UnsupportedError(f"{where}: 4-bit integers are supported as constants only")
    return torch_dtype(info.type.tensor_type.elem_type, where)
