"""Checked access to a flatbuffer: the accessors that a schema compiler generated, on bytes that may be hostile.

Generated accessors read through an object of `flatbuffers.table.Table`, which trusts every offset. `checked` gives them
a table that trusts none: an offset, a length or an index that leaves the file raises CorruptFileError with its place.
"""

from __future__ import annotations

from typing import Any, TypeVar

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from flatbuffers import number_types as types

from mera_torch.errors import CorruptFileError

T = TypeVar("T")

SHARING = 16
"""Vectors may be shared, but all that is read is at most this many times the file: time and memory stay bounded."""


class Budget:
    """How many bytes of vectors and strings may still be read."""

    def __init__(self, size: int) -> None:
        self.left = SHARING * size

    def spend(self, size: int, at: int) -> None:
        self.left -= size
        if self.left < 0:
            raise CorruptFileError(f"offset {at}: vectors and constants add up to more than {SHARING} times the file")


class Table(flatbuffers.table.Table):  # type: ignore[misc]
    """A table of the file at byte `pos`; every read is checked against the file's end."""

    Bytes: bytes
    Pos: int

    def __init__(self, data: bytes, pos: int, budget: Budget) -> None:
        self.Bytes, self.Pos, self.budget = data, pos, budget
        self.vtable = pos - int(self.Get(types.SOffsetTFlags, pos))
        self.vtable_size = int(self.Get(types.VOffsetTFlags, self.vtable))
        self.size = int(self.Get(types.VOffsetTFlags, self.vtable + 2))
        self._within(self.vtable, max(self.vtable_size, 4), "a vtable")
        self._within(pos, self.size, "a table")

    def _within(self, at: int, size: int, what: str) -> None:
        if at < 0 or at + size > len(self.Bytes):
            raise CorruptFileError(
                f"offset {max(at, 0)}: {what} of {size} bytes reaches beyond the file's {len(self.Bytes)} bytes"
            )

    def Get(self, flags: Any, off: int) -> Any:
        self._within(off, flags.bytewidth, "a value")
        return flags.py_type(flatbuffers.encode.Get(flags.packer_type, self.Bytes, off))

    def Offset(self, vtableOffset: int) -> int:
        if vtableOffset + 2 > self.vtable_size:
            return 0
        found = int(self.Get(types.VOffsetTFlags, self.vtable + vtableOffset))
        if found >= max(self.size, 4):
            raise CorruptFileError(f"offset {self.vtable + vtableOffset}: a field lies outside of its table")
        return found

    def Indirect(self, off: int) -> int:
        target = off + int(self.Get(types.UOffsetTFlags, off))
        self._within(target, 4, "what an offset points to")
        return target

    def _elements(self, off: int, width: int) -> tuple[int, int]:
        """(number of elements, byte at which they begin) of the vector that the offset at byte `off` points to."""
        start = self.Indirect(off)
        count = int(self.Get(types.UOffsetTFlags, start))
        self._within(start + 4, count * width, f"a vector of {count} elements")
        return count, start + 4

    def String(self, off: int) -> bytes:
        count, start = self._elements(off, 1)
        self.budget.spend(count, off)
        return bytes(self.Bytes[start : start + count])

    def VectorLen(self, off: int) -> int:
        return self._elements(self.Pos + off, 1)[0]

    def Vector(self, off: int) -> int:
        return self._elements(self.Pos + off, 1)[1]

    def GetVectorAsNumpy(self, flags: Any, off: int) -> npt.NDArray[Any]:
        """A view of the file's bytes."""
        dtype = types.to_numpy_type(flags)
        count, start = self._elements(self.Pos + off, np.dtype(dtype).itemsize)
        found: npt.NDArray[Any] = flatbuffers.encode.GetVectorAsNumpy(dtype, self.Bytes, count, start)
        return found

    def Union(self, t2: Any, off: int) -> None:
        t2.Bytes, t2.Pos = self.Bytes, self.Indirect(self.Pos + off)


def checked(accessor: T, data: bytes, pos: int, budget: Budget) -> T:
    """The generated accessor, made to read the table at byte `pos`."""
    accessor._tab = Table(data, pos, budget)  # type: ignore[attr-defined]
    return accessor


def child(parent: Any, found: T) -> T:
    """What an accessor of `parent` gave, an accessor of a table in turn, made to read with checks."""
    inner: Any = found
    table = getattr(inner, "_tab", inner)
    return checked(found, table.Bytes, table.Pos, parent._tab.budget)


def children(parent: Any, field: str) -> list[Any]:
    """All tables in a vector of tables; field: "Tensors"."""
    count = getattr(parent, f"{field}Length")()
    parent._tab.budget.spend(4 * count, parent._tab.Pos)
    get = getattr(parent, field)
    return [child(parent, get(index)) for index in range(count)]


def vector(parent: Any, field: str) -> npt.NDArray[Any]:
    """A vector of numbers, empty if it is not there."""
    found = getattr(parent, f"{field}AsNumpy")()
    if not isinstance(found, np.ndarray):
        return np.empty(0, np.int32)
    parent._tab.budget.spend(found.nbytes, parent._tab.Pos)
    return found


def root(accessor: T, data: bytes) -> T:
    """The file's root table."""
    if len(data) < 8:
        raise CorruptFileError(f"offset 0: a file of {len(data)} bytes is too short for a flatbuffer")
    return checked(accessor, data, int.from_bytes(data[:4], "little"), Budget(len(data)))
