"""The inputs of a model, as MERA describes them: name -> (shape, dtype). Needs numpy alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .errors import InvalidModelError, nearest

EXAMPLE = '{"input0": ((1, 224, 224, 3), "float32")}'


class InputDescription(tuple[tuple[int, ...], str]):
    """One input: the pair (shape, dtype's name), with its name, and its quantization if it is an integer's."""

    input_name: str
    scale: float | None
    zero_point: int | None

    def __new__(
        cls, input_name: str, input_shape: Any, input_type: Any = "float32", *,
        scale: float | None = None, zero_point: int | None = None,
    ) -> InputDescription:  # fmt: skip
        """Raises InvalidModelError for what is no shape or dtype."""
        if not isinstance(input_name, str) or not input_name:
            raise InvalidModelError(f"an input's name must be a string such as 'input0', got {input_name!r}")
        new = super().__new__(cls, (_shape(input_name, input_shape), _dtype(input_name, input_type)))
        new.input_name, new.scale, new.zero_point = input_name, scale, zero_point
        return new

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self[0]

    @property
    def input_type(self) -> str:
        return self[1]

    def __repr__(self) -> str:
        return f"InputDescription({self.input_name!r}, {self.input_shape}, {self.input_type!r})"


class InputDescriptionContainer(Mapping[str, InputDescription]):
    """The inputs by name, in order.

    Made of {name: (shape, dtype)}, of a list of such dicts, of (name, (shape, dtype)) pairs or InputDescriptions, or of
    one InputDescription. Raises InvalidModelError for anything else, and for a name that comes twice.
    """

    def __init__(self, data: Any) -> None:
        self.all_inputs: dict[str, InputDescription] = {}
        for found in _descriptions(data):
            if found.input_name in self.all_inputs:
                raise InvalidModelError(f"input_desc names the input {found.input_name!r} twice")
            self.all_inputs[found.input_name] = found

    @property
    def input_desc(self) -> dict[str, InputDescription]:
        """The same, as a dict."""
        return self.all_inputs

    @property
    def num_inputs(self) -> int:
        return len(self.all_inputs)

    def to_dict(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Plain values."""
        return {name: (found.input_shape, found.input_type) for name, found in self.all_inputs.items()}

    def __getitem__(self, name: str) -> InputDescription:
        if name not in self.all_inputs:
            raise KeyError(f"there is no input {name!r}: {nearest(str(name), self.all_inputs)}")
        return self.all_inputs[name]

    def __contains__(self, name: object) -> bool:
        return name in self.all_inputs

    def __iter__(self) -> Iterator[str]:
        return iter(self.all_inputs)

    def __len__(self) -> int:
        return len(self.all_inputs)

    def __repr__(self) -> str:
        return f"InputDescriptionContainer({self.to_dict()})"


def _descriptions(data: Any) -> Iterator[InputDescription]:
    if isinstance(data, InputDescription):
        yield data
    elif isinstance(data, Mapping):
        for name, value in data.items():
            yield _description(name, value)
    elif isinstance(data, list | tuple) and len(data) == 2 and isinstance(data[0], str):
        yield _description(*data)
    elif isinstance(data, list | tuple):
        for item in data:
            if not isinstance(item, Mapping | list | tuple):
                raise InvalidModelError(f"input_desc must be like {EXAMPLE}, or a list of such pairs; got {item!r:.80}")
            yield from _descriptions(item)
    else:
        raise InvalidModelError(f"input_desc must be like {EXAMPLE}, or a list of such pairs; got {data!r:.80}")


def _description(name: Any, value: Any) -> InputDescription:
    if isinstance(value, InputDescription):
        return InputDescription(name, *value, scale=value.scale, zero_point=value.zero_point)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InvalidModelError(f"input_desc[{name!r:.40}] must be (shape, dtype), got {value!r:.80}")
    return InputDescription(name, *value)


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    sizes: list[Any] = list(shape) if hasattr(shape, "__iter__") and not isinstance(shape, str) else [None]
    for size in sizes:
        if not isinstance(size, int | np.integer) or isinstance(size, bool) or not 0 <= size < 2**31:
            raise InvalidModelError(f"input {name!r}: a shape is a list of sizes, got {shape!r:.80}")
    return tuple(int(size) for size in sizes)


def _dtype(name: str, dtype: Any) -> str:
    text = str(dtype).removeprefix("torch.")
    try:
        found = np.dtype({"double": "float64", "float": "float32"}.get(text, text) if isinstance(dtype, str) else dtype)
    except TypeError:
        try:
            found = np.dtype(text)
        except TypeError:
            raise InvalidModelError(f"input {name!r}: {dtype!r:.40} is no dtype") from None
    return str(found)
