"""ONNX's tensors as torch tensors: element types, bounds, and what is stored inline, sparsely or in another file."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from mera_torch.errors import CorruptFileError, InvalidModelError, UnsupportedError

from ..graph import LARGEST

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
"""Element types and their dtypes. Narrower integers are held as int8 or uint8 where they are constants."""

NARROW: dict[int, torch.dtype] = {TensorProto.INT4: torch.int8, TensorProto.UINT4: torch.uint8}

_NARROW_MARK = "_onnx_narrow"
_VIEWS = {2: np.uint16, 1: np.uint8}
_NO_NUMPY = {torch.bfloat16, *(d for d in DTYPES.values() if "float8" in str(d))}


def torch_dtype(kind: int, where: str) -> torch.dtype:
    """The dtype of an element type. Raises UnsupportedError if there is none (strings, 4-bit floats)."""
    if kind not in DTYPES:
        raise UnsupportedError(f"{where}: element type {type_name(kind)} is not supported")
    return DTYPES[kind]


def type_name(kind: int) -> str:
    """ONNX's name of an element type."""
    return TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else str(kind)


def element_type(dtype: torch.dtype) -> int:
    """ONNX's element type of a dtype."""
    return next(kind for kind, known in DTYPES.items() if known == dtype)


def to_tensor(proto: TensorProto, where: str, folder: Path | None = None) -> torch.Tensor:
    """A stored tensor; `folder` holds its external data. Raises InvalidModelError if sizes do not fit each other,
    UnsupportedError for strings and the like, CorruptFileError for external data that is not there."""
    where = f"{where}, tensor {proto.name!r}" if proto.name else where
    dtype = NARROW.get(int(proto.data_type)) or torch_dtype(proto.data_type, where)
    sizes = list(proto.dims)
    count = _count(sizes, dtype, where)
    if proto.data_location == TensorProto.EXTERNAL:
        inline = TensorProto(data_type=proto.data_type, dims=sizes)
        inline.raw_data = external_data(proto, where, folder)
        proto = inline
    _check_length(proto, count, where)
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise InvalidModelError(f"{where}: its data cannot be read: {error}") from error
    if proto.data_type in NARROW:
        array = array.astype(np.int8 if dtype == torch.int8 else np.uint8)
    found = from_array(np.ascontiguousarray(array), dtype).reshape(sizes)
    if proto.data_type in NARROW:
        setattr(found, _NARROW_MARK, True)
    return found


def is_narrow(tensor: torch.Tensor) -> bool:
    """Whether the file has this constant as 4-bit integers."""
    return hasattr(tensor, _NARROW_MARK)


def from_array(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """A copy of the array as a tensor; numpy's extension types are taken by their bits."""
    if dtype in _NO_NUMPY:
        return torch.from_numpy(array.view(_VIEWS[dtype.itemsize]).copy()).view(dtype)
    return torch.from_numpy(np.array(array, order="C")).to(dtype)


def sparse_to_tensor(proto: onnx.SparseTensorProto, where: str) -> torch.Tensor:
    """A sparse tensor as a dense one: `indices` is [NNZ] (into the flattened tensor) or [NNZ, rank]."""
    where = f"{where}, sparse tensor {proto.values.name!r}"
    sizes = list(proto.dims)
    values = to_tensor(proto.values, where)
    indices = to_tensor(proto.indices, where)
    count = _count(sizes, values.dtype, where)
    if indices.dtype != torch.int64 or values.dim() != 1 or indices.dim() not in (1, 2):
        raise InvalidModelError(f"{where}: its values must be [NNZ], its indices int64 [NNZ] or [NNZ, rank]")
    if indices.dim() == 2:
        if indices.shape[1] != len(sizes):
            raise InvalidModelError(f"{where}: its indices have {indices.shape[1]} columns for rank {len(sizes)}")
        limits = torch.tensor(sizes, dtype=torch.int64)
        _check_within(indices, limits, where)
        strides = torch.tensor([math.prod(sizes[i + 1 :]) for i in range(len(sizes))], dtype=torch.int64)
        indices = (indices * strides).sum(1)
    _check_within(indices, torch.tensor(count), where)
    if len(indices) != len(values):
        raise InvalidModelError(f"{where}: it has {len(values)} values and {len(indices)} indices")
    dense = torch.zeros(count, dtype=values.dtype)
    dense[indices] = values
    return dense.reshape(sizes)


def _check_within(indices: torch.Tensor, limits: torch.Tensor, where: str) -> None:
    if bool(((indices < 0) | (indices >= limits)).any()):
        raise InvalidModelError(f"{where}: an index lies outside its shape")


def _count(sizes: list[int], dtype: torch.dtype, where: str) -> int:
    if any(size < 0 for size in sizes):
        raise InvalidModelError(f"{where}: its shape {sizes} has a negative size")
    count = math.prod(sizes)
    if count * dtype.itemsize > LARGEST:
        raise InvalidModelError(f"{where}: its shape {sizes} and {dtype} take more than {LARGEST >> 30} GiB")
    return count


def _check_length(proto: TensorProto, count: int, where: str) -> None:
    if proto.HasField("raw_data"):
        bits = 4 if proto.data_type in NARROW else DTYPES[proto.data_type].itemsize * 8
        expected = (count * bits + 7) // 8
        if len(proto.raw_data) != expected:
            raise InvalidModelError(
                f"{where}: {len(proto.raw_data)} bytes are stored for shape {list(proto.dims)}, which takes {expected}"
            )


def external_data(proto: TensorProto, where: str, folder: Path | None) -> bytes:
    """The bytes of a tensor that is stored in another file, below the model's folder."""
    if folder is None:
        raise InvalidModelError(f"{where}: its data is in another file; pass the model's path instead of its bytes")
    entries = {entry.key: entry.value for entry in proto.external_data}
    location = entries.get("location", "")
    offset, length = (_size(entries.get(key), key, where) for key in ("offset", "length"))
    path = _contained(location, where, folder)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            begin = offset or 0
            end = size if length is None else begin + length
            if begin > size or end > size:
                raise CorruptFileError(
                    f"{where}: bytes {begin} to {end} of external file {location!r} are needed, it has {size}"
                )
            if end - begin > LARGEST:
                raise InvalidModelError(f"{where}: its external data takes more than {LARGEST >> 30} GiB")
            file.seek(begin)
            return file.read(end - begin)
    except OSError as error:
        raise CorruptFileError(f"{where}: external file {location!r} cannot be read: {error.strerror}") from error


def _size(text: str | None, key: str, where: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise CorruptFileError(f"{where}: the {key} of its external data must be a size in bytes, got {text[:40]!r}")
    return int(text)


def _contained(location: str, where: str, folder: Path) -> Path:
    """The file, which must lie below the folder, also once symbolic links are followed."""
    relative = Path(location)
    if not location or "\0" in location or relative.is_absolute() or ".." in relative.parts or "\\" in location:
        raise CorruptFileError(f"{where}: external file {location[:80]!r} must be a relative path within its folder")
    path = folder / relative
    resolved = path.resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise CorruptFileError(f"{where}: external file {location[:80]!r} leads out of the model's folder")
    if not resolved.is_file():
        raise CorruptFileError(f"{where}: external file {location[:80]!r} does not exist")
    return resolved
