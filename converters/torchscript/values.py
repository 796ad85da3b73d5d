"""What TorchScript values are while a program is read: tensors that may be changed in place and viewed, and the rest
as Python's own numbers, strings, lists, tuples and dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..graph import Value, dtype, shape


@dataclass(frozen=True)
class Quantization:
    """Of a quantized tensor: real = scale * (stored - zero_point); dtype: torch.quint8, torch.qint8 or torch.qint32."""

    scale: float
    zero_point: int
    dtype: torch.dtype

    @property
    def stored(self) -> torch.dtype:
        return STORED[self.dtype]

    @property
    def limits(self) -> tuple[int, int]:
        info = torch.iinfo(self.stored)
        return info.min, info.max

    @property
    def arguments(self) -> tuple[float, int, int, int, torch.dtype]:
        """Behind the tensor, the arguments of quantize_per_tensor and dequantize_per_tensor."""
        return (self.scale, self.zero_point, *self.limits, self.stored)


STORED = {torch.quint8: torch.uint8, torch.qint8: torch.int8, torch.qint32: torch.int32}


@dataclass(frozen=True)
class View:
    """How a tensor shows another: `show` takes the other's value to this one's, `put` takes (the other's value, this
    one's new value) to the other's new value; None if a change of this one cannot be carried over."""

    show: Callable[[Value], Value]
    put: Callable[[Value, Value], Value] | None


class Ref:
    """A tensor of the program. Its value (fx.Node or torch.Tensor) changes when the program writes into it, or into
    what it is a view of. q: of a quantized tensor, whose value is the dequantized float. literal: a number of the
    program that it holds as a tensor."""

    def __init__(
        self, value: Value, q: Quantization | None = None, base: Ref | None = None, view: View | None = None,
        literal: bool = False,
    ) -> None:  # fmt: skip
        self._value, self._base, self._view = value, base, view
        self._seen = base.value if base is not None else None
        self.q = q
        self.literal = literal

    @property
    def value(self) -> Value:
        if self._base is not None and self._view is not None and self._base.value is not self._seen:
            self._seen = self._base.value
            self._value = self._view.show(self._seen)
        return self._value

    def write(self, value: Value) -> bool:
        """The tensor's new value, seen through all its views and in what it views. False if that cannot be done."""
        if self._base is not None and self._view is not None:
            if self._view.put is None or not self._base.write(self._view.put(self._base.value, value)):
                return False
            self._seen = self._base.value
        self._value = value
        return True

    def rebind(self, other: Ref) -> None:
        """This tensor becomes `other`, a view of what it was: squeeze_ and the like."""
        self._value, self._base, self._view, self._seen = other._value, other._base, other._view, other._seen

    @property
    def shape(self) -> tuple[int, ...]:
        return shape(self.value)

    @property
    def dtype(self) -> torch.dtype:
        return dtype(self.value)

    @property
    def is_constant(self) -> bool:
        return not isinstance(self.value, fx.Node)


def refs(value: Any) -> Iterator[Ref]:
    """The tensors in a value, in order."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from refs(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from refs(item)
