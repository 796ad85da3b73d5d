"""An operation of the program with its arguments, and what converting it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..graph import GraphBuilder
from .values import Ref

DTYPES: tuple[torch.dtype, ...] = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64,
    torch.complex32, torch.complex64, torch.complex128, torch.bool, torch.qint8, torch.quint8, torch.qint32,
    torch.bfloat16,
)  # fmt: skip
"""By the numbers that TorchScript writes for them (c10/core/ScalarType.h)."""

MEMORY_FORMATS = (
    torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d,
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """kind: "aten::conv2d"; overload: "default", "Tensor", ...; args: all of the schema's, in its order; path: of the
    module that it is part of."""

    builder: GraphBuilder
    kind: str
    overload: str
    args: list[Any]
    path: str = ""

    @property
    def name(self) -> str:
        """Without the namespace."""
        return self.kind.partition("::")[2]

    def get(self, index: int, default: Any = None) -> Any:
        """An argument, or `default` if there are fewer."""
        return self.args[index] if len(self.args) > index else default

    def tensor(self, index: int) -> Ref:
        """The argument, which must be a tensor. Raises InvalidModelError."""
        value = self.get(index)
        if not isinstance(value, Ref):
            raise self.builder.invalid(f"argument {index} must be a tensor, got {type(value).__name__}")
        return value

    def number(self, index: int) -> Any:
        """The argument as a number. Raises UnsupportedError if it depends on data."""
        return self.read(self.get(index))

    def read(self, value: Any) -> Any:
        """A value as a number. Raises UnsupportedError if it depends on data."""
        if not isinstance(value, Ref):
            return value
        if not value.is_constant:
            raise self.builder.unsupported("a number depends on data; the DNA runs fixed programs")
        if value.value.numel() != 1:
            raise self.builder.invalid(f"a tensor of shape {list(value.shape)} is read as a number")
        return value.value.item()

    def dtype(self, number: Any) -> torch.dtype:
        """The dtype of TorchScript's number. Raises UnsupportedError."""
        if isinstance(number, torch.dtype):
            return number
        if not isinstance(number, int) or not 0 <= number < len(DTYPES):
            raise self.builder.unsupported(f"dtype number {number} is not supported")
        return DTYPES[number]
