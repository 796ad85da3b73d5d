"""Arguments for every operator of csrc/runtime/host_ops.def, drawn by hypothesis, and the comparison with PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # noqa: F401  (registers quantized_decomposed)
from hypothesis import strategies as st
from torch import Tensor

from mera_torch.backend.host import find_target
from mera_torch.native.host import HostStep, TensorSpec

Draw = Callable[[st.SearchStrategy[Any]], Any]
Case = tuple[list[Any], dict[str, Any]]

FLOATS = (torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
NUMBERS = (*FLOATS, *INTEGERS)
ALL = (*NUMBERS, torch.bool, torch.float16, torch.bfloat16)


# ---- running both ----


def to_numpy(tensor: Tensor) -> np.ndarray:
    """bfloat16 as uint16, as HostStep takes it."""
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.int16).numpy().view(np.uint16)) if tensor.dtype is torch.bfloat16 else tensor.numpy()


def from_numpy(array: np.ndarray, dtype: str) -> Tensor:
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def spec_of(tensor: Tensor) -> TensorSpec:
    return TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


class Encoder:
    """Arguments as deployment.json has them; tensors among them become values."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def encode(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"v{len(self.values)}"
            self.values[name] = value
            return {"ref": name}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        if isinstance(value, list | tuple):
            return [self.encode(v) for v in value]
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return {"torch": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        return value


def plan(target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[HostStep, dict[str, np.ndarray]]:
    """The step in C, and the values to run it with."""
    encoder = Encoder()
    encoded, named = encoder.encode(list(args)), {key: encoder.encode(v) for key, v in kwargs.items()}
    specs = {name: spec_of(tensor) for name, tensor in encoder.values.items()}
    return HostStep(target, encoded, named, specs), {name: to_numpy(t) for name, t in encoder.values.items()}


def run_c(target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    step, values = plan(target, args, kwargs)
    arrays = step.run(values)
    return [from_numpy(a, spec.dtype) for a, spec in zip(arrays, step.results, strict=True)]


def run_torch(target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        result = find_target(target)(*args, **kwargs)
    return [r for r in result] if isinstance(result, list | tuple) else [result]


def same(mine: Tensor, theirs: Tensor) -> bool:
    """Equal values, NaN where NaN is; -0 counts as 0."""
    return torch.equal(torch.nan_to_num(mine.double(), nan=1e300), torch.nan_to_num(theirs.double(), nan=1e300)) and (
        torch.equal(mine.isnan(), theirs.isnan())
    )


def close(mine: Tensor, theirs: Tensor, scale: float) -> bool:
    """Within 1e-6 relative (of 16-bit floats: two of their steps), or of what was summed."""
    steps = {torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
    relative = steps.get(theirs.dtype, 1e-6)
    a, b = mine.double(), theirs.double()
    if not torch.equal(a.isnan(), b.isnan()) or not torch.equal(a.isinf(), b.isinf()):
        return False
    a, b = a.nan_to_num(0, 1, -1), b.nan_to_num(0, 1, -1)
    return bool(((a - b).abs() <= relative * (b.abs() + scale) + 1e-37).all())


# ---- tensors ----


def shapes(draw: Draw, least: int = 0, most: int = 4, smallest: int = 0) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(smallest, 5), min_size=least, max_size=most)))


def tensor(
    draw: Draw, shape: Sequence[int], dtype: torch.dtype, *, special: bool = True, low: float = -6, high: float = 6
) -> Tensor:
    """Random values, with some that are special: 0, 1, the extremes, NaN, infinity."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    if dtype is torch.bool:
        return torch.rand(tuple(shape), generator=generator) < 0.5
    if dtype.is_floating_point:
        values = torch.rand(tuple(shape), generator=generator, dtype=torch.float64) * (high - low) + low
        if special and draw(st.booleans()):
            values = _sprinkled(values, generator, (0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, 0.5, 1.5, 2.5, 1e30))
        return values.to(dtype)
    info = torch.iinfo(dtype)
    wide = special and draw(st.booleans())
    least, most = (info.min, info.max) if wide else (max(info.min, int(low)), int(high))
    values = torch.randint(least, most, tuple(shape), generator=generator, dtype=torch.int64)
    if wide:
        values = _sprinkled(values, generator, (info.min, info.max, 0, 1))
    return values.to(dtype)


def _sprinkled(values: Tensor, generator: torch.Generator, specials: Sequence[float]) -> Tensor:
    chosen = torch.randint(0, 4 * len(specials), values.shape, generator=generator)
    for index, special in enumerate(specials):
        values = torch.where(chosen == index, torch.tensor(special, dtype=values.dtype), values)
    return values


def any_of(draw: Draw, dtypes: Sequence[torch.dtype]) -> torch.dtype:
    found: torch.dtype = draw(st.sampled_from(list(dtypes)))
    return found


def pick(draw: Draw, *values: Any) -> Any:
    return draw(st.sampled_from(values))


def dim_of(draw: Draw, rank: int) -> int:
    return int(draw(st.integers(-max(rank, 1), max(rank, 1) - 1)))


def dims_of(draw: Draw, rank: int, least: int = 0) -> list[int]:
    found = draw(st.lists(st.integers(0, max(rank - 1, 0)), unique=True, min_size=min(least, rank), max_size=rank))
    return [d - rank if draw(st.booleans()) else d for d in found]


def broadcasting(draw: Draw, count: int) -> list[tuple[int, ...]]:
    """Shapes that can be broadcast together."""
    whole = shapes(draw)
    found = []
    for _ in range(count):
        start = draw(st.integers(0, len(whole)))
        found.append(tuple(1 if draw(st.integers(0, 3)) == 0 else size for size in whole[start:]))
    found[draw(st.integers(0, count - 1))] = whole
    return found
