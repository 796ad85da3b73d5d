"""What the user says of a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mera_torch.errors import InvalidModelError, ShapeNeededError, UnsupportedError

EXAMPLE = '{"input": ((1, 3, 224, 224), "float32")}'


@dataclass(frozen=True)
class Input:
    """One input: its name, its static shape and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def read_inputs(input_desc: Any) -> list[Input]:
    """The inputs of {name: (shape, dtype)}, or of a list of {name: (shape, dtype)} or (name, (shape, dtype)) pairs.

    dtype: a name, a numpy or a torch dtype. Raises InvalidModelError.
    """
    if input_desc is None:
        raise ShapeNeededError(
            "TorchScript files do not say the shapes of their inputs", f"input_desc={EXAMPLE}", "input=1,3,224,224"
        )
    found = [_input(name, value) for name, value in _pairs(input_desc)]
    names = [i.name for i in found]
    if not found or len(set(names)) != len(names):
        raise InvalidModelError(f"input_desc must name each input once, got the names {names}")
    return found


def _pairs(input_desc: Any) -> list[tuple[Any, Any]]:
    if isinstance(input_desc, Mapping):
        return list(input_desc.items())
    pairs: list[tuple[Any, Any]] = []
    for item in input_desc if isinstance(input_desc, list | tuple) else [None]:
        if isinstance(item, Mapping):
            pairs += item.items()
        elif isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str):
            pairs.append((item[0], item[1]))
        else:
            raise InvalidModelError(f"input_desc must be like {EXAMPLE}, or a list of such pairs, got {item!r:.80}")
    return pairs


def _input(name: Any, value: Any) -> Input:
    if not isinstance(name, str) or not isinstance(value, list | tuple) or len(value) != 2:
        raise InvalidModelError(f"input_desc[{name!r:.40}] must be (shape, dtype), got {value!r:.80}")
    shape, dtype = value
    sizes: list[Any] = (
        list(shape) if isinstance(shape, Sequence | np.ndarray) and not isinstance(shape, str) else [None]
    )
    if not all(isinstance(s, int | np.integer) and not isinstance(s, bool) and 0 <= s < 2**31 for s in sizes):
        raise InvalidModelError(f"input_desc[{name!r}]: the shape must be a list of sizes, got {shape!r:.80}")
    return Input(name, tuple(int(s) for s in sizes), _dtype(name, dtype))


def _dtype(name: str, dtype: Any) -> torch.dtype:
    found: Any = dtype
    if not isinstance(dtype, torch.dtype):
        text = dtype.removeprefix("torch.") if isinstance(dtype, str) else ""
        found = getattr(torch, text, None) if text.isidentifier() else None
        if not isinstance(found, torch.dtype):
            try:
                found = torch.from_numpy(np.empty(0, np.dtype(dtype))).dtype
            except (TypeError, ValueError):
                raise InvalidModelError(f"input_desc[{name!r}]: {dtype!r:.40} is no dtype") from None
    if found in (torch.quint8, torch.qint8, torch.qint32):
        raise UnsupportedError(
            f"input_desc[{name!r}]: {found} has no scale outside of a model; "
            "give the model a float input that it quantizes itself"
        )
    return found  # type: ignore[no-any-return]
