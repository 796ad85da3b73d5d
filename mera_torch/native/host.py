"""Operators on the host in the C core: the table, and single steps as deployment.json has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mera_torch import errors
from mera_torch._core import ffi, lib
from mera_torch.native.context import Context, text_of

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
"""Names of mera_host_dtype, by value. numpy has no bfloat16: it is carried as uint16."""


@dataclass(frozen=True)
class HostOp:
    """A row of csrc/runtime/host_ops.def. exact: PyTorch's result to the bit; note: what of it is not supported."""

    name: str
    schema: str
    exact: bool
    note: str


def _host_op(index: int) -> HostOp:
    exact = bool(lib.mera_host_op_exact(index))
    name, schema = text_of(lib.mera_host_op_name(index)), text_of(lib.mera_host_op_schema(index))
    return HostOp(name, schema, exact, text_of(lib.mera_host_op_note(index)))


HOST_OPS: dict[str, HostOp] = {op.name: op for op in map(_host_op, range(lib.mera_host_op_count()))}


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor before it is computed. dtype: one of DTYPES."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)


class HostStep:
    """target(*args, **kwargs), planned for tensors of given dtypes and shapes; run() may be called often.

    args, kwargs: in the form of deployment.json. values: a TensorSpec, or a list of them, for each name that a
    {"ref": name} among them names. results: TensorSpecs; many: they are a list for PyTorch, even if there is one.
    Raises UnsupportedError for what the C core does not have, InvalidModelError for arguments that break the
    operator's rules.
    """

    def __init__(
        self, target: str, args: Sequence[Any], kwargs: Mapping[str, Any],
        values: Mapping[str, TensorSpec | Sequence[TensorSpec]], context: Context | None = None,
    ) -> None:  # fmt: skip
        self._context = context or Context()
        self._specs: list[TensorSpec] = []
        self._numbers: dict[str, int | list[int]] = {name: self._number(value) for name, value in values.items()}
        self._kept: list[Any] = []
        tensors = ffi.new("mera_host_tensor[]", [_tensor(spec) for spec in self._specs])
        names = [ffi.new("char[]", name.encode()) for name in kwargs]
        self._handle = self._context.make(
            "host_step", lib.mera_host_step_create, self._context.pointer, target.encode(), len(args), self._args(args),
            len(kwargs), ffi.new("char *[]", names), self._args(list(kwargs.values())), len(self._specs), tensors,
        )  # fmt: skip
        step = self._handle.pointer
        self.many = bool(lib.mera_host_step_many(step))
        count = int(lib.mera_host_step_result_count(step))
        self.results = [_spec(lib.mera_host_step_result(step, k)) for k in range(count)]
        self.aliases = [int(lib.mera_host_step_alias(step, k)) >= 0 for k in range(count)]

    def _number(self, value: TensorSpec | Sequence[TensorSpec]) -> int | list[int]:
        if isinstance(value, TensorSpec):
            self._specs.append(value)
            return len(self._specs) - 1
        return [self._number(item) for item in value]  # type: ignore[misc]

    def run(self, values: Mapping[str, Any]) -> list[npt.NDArray[Any]]:
        """The results for arrays (or lists of arrays) by name.

        Raises InvalidModelError for arrays of another dtype or shape, and for values that the operator does not allow.
        """
        arrays = list(self._arrays(values))
        for array, spec in zip(arrays, self._specs, strict=True):
            if array.dtype != spec.numpy_dtype or array.shape != spec.shape:
                raise errors.InvalidModelError(
                    f"a tensor must be {spec.dtype}{list(spec.shape)}, got {array.dtype}{list(array.shape)}"
                )
        results = [np.empty(spec.shape, spec.numpy_dtype) for spec in self.results]
        pointers = [[ffi.from_buffer(a, require_writable=False) for a in group] for group in (arrays, results)]
        given, made = (ffi.new("void *[]", [ffi.cast("void *", p) for p in group]) for group in pointers)
        self._context.call(lib.mera_host_step_run, self._handle.pointer, given, made)
        return results

    def _arrays(self, values: Mapping[str, Any]) -> Iterator[npt.NDArray[Any]]:
        for name in self._numbers:
            value = values[name]
            for array in value if isinstance(value, list | tuple) else [value]:
                yield np.asarray(array, order="C")

    # ---- arguments ----

    def _args(self, values: Sequence[Any]) -> Any:
        array = ffi.new("mera_host_arg[]", max(len(values), 1))
        self._kept.append(array)
        for slot, value in zip(array, values, strict=False):
            self._fill(slot, value)
        return array

    def _fill(self, slot: Any, value: Any) -> None:
        if value is None:
            slot.kind = lib.MERA_HOST_NONE
        elif isinstance(value, bool | int):
            slot.kind = lib.MERA_HOST_FLAG if isinstance(value, bool) else lib.MERA_HOST_INT
            slot.integer = int(value)
        elif isinstance(value, float):
            slot.kind, slot.real = lib.MERA_HOST_REAL, value
        elif isinstance(value, str):
            self._fill_text(slot, lib.MERA_HOST_STRING, value)
        elif isinstance(value, list | tuple):
            slot.kind, slot.integer, slot.items = lib.MERA_HOST_LIST, len(value), self._args(value)
        elif isinstance(value, Mapping) and len(value) == 1:
            ((kind, content),) = value.items()
            self._fill_tagged(slot, str(kind), content)
        else:
            raise errors.InvalidModelError(f"{value!r} is no argument of a deployment")

    def _fill_tagged(self, slot: Any, kind: str, content: Any) -> None:
        if kind == "ref" and content in self._numbers:
            self._fill_numbers(slot, self._numbers[content])
        elif kind == "float":
            slot.kind, slot.real = lib.MERA_HOST_REAL, float(content)
        elif kind == "torch":
            self._fill_text(slot, lib.MERA_HOST_NAME, str(content))
        elif kind == "device":
            self._fill_text(slot, lib.MERA_HOST_DEVICE, str(content))
        else:
            raise errors.InvalidModelError(f"{ {kind: content}!r} is no argument of a deployment")

    def _fill_numbers(self, slot: Any, number: int | list[int]) -> None:
        if isinstance(number, int):
            slot.kind, slot.integer = lib.MERA_HOST_TENSOR, number
            return
        items = ffi.new("mera_host_arg[]", max(len(number), 1))
        self._kept.append(items)
        slot.kind, slot.integer, slot.items = lib.MERA_HOST_LIST, len(number), items
        for item, one in zip(items, number, strict=False):
            self._fill_numbers(item, one)

    def _fill_text(self, slot: Any, kind: int, text: str) -> None:
        held = ffi.new("char[]", text.encode())
        self._kept.append(held)
        slot.kind, slot.text = kind, held


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    if spec.dtype not in DTYPES or len(spec.shape) > lib.MERA_HOST_MAX_RANK:
        raise errors.UnsupportedError(
            f"a tensor on the host must be one of {', '.join(DTYPES)} and have at most {lib.MERA_HOST_MAX_RANK} "
            f"dimensions, got {spec.dtype}{list(spec.shape)}"
        )
    return {"dtype": DTYPES.index(spec.dtype), "rank": len(spec.shape), "shape": list(spec.shape)}


def _spec(row: Any) -> TensorSpec:
    return TensorSpec(DTYPES[row.dtype], tuple(row.shape[d] for d in range(row.rank)))
