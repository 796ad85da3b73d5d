"""The data that quality is measured on, as both networks take it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from mera_torch.converters.model import TensorInfo, info_of
from mera_torch.errors import InvalidModelError

from ..calibration.data import as_inputs, items_of
from ..calibration.data import checked as data_as_batches
from ..graphs.run import Inputs
from .attribution import Graph

Reader = Callable[[Any], Any]


def samples_of(inputs: Inputs) -> int:
    """How many samples a batch holds: the first dimension that all inputs have in common, else 1."""
    sizes = {x.shape[0] if x.dim() else 1 for x in inputs if isinstance(x, torch.Tensor)}
    return max(1, sizes.pop()) if len(sizes) == 1 else 1


def rows_of(value: torch.Tensor, samples: int) -> int:
    """How many samples the value's first dimension holds."""
    return samples if value.dim() and value.shape[0] == samples else 1


def checked(data: Iterable[Any], graph: Graph) -> Iterator[Inputs]:
    """Each item as a batch of tensors like the graph's inputs. Raises CalibrationError naming the item and the input
    that is not."""
    if isinstance(data, torch.Tensor | np.ndarray):
        data = [data]
    items = (
        tuple(torch.tensor(x) if isinstance(x, np.ndarray) else x for x in as_inputs(item))
        for item in items_of(data, "evaluation")
    )
    examples = tuple(node.meta.get("val") for node in graph.inputs)
    return data_as_batches(items, examples, [node.name for node in graph.inputs], "evaluation")


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


# ---- the float network's inputs ----


def float_readers(original: torch.nn.Module, quantized: Graph) -> list[Reader]:
    """What makes each input of the float network from the quantized network's: nothing, or, where that takes codes,
    what gives the real numbers that they stand for.

    Raises InvalidModelError if the networks' inputs do not fit each other.
    """
    taken = quantized.inputs
    if not isinstance(original, GraphModule):
        return [_same] * len(taken)
    wanted = [node for node in original.graph.nodes if node.op == "placeholder"]
    if len(wanted) != len(taken):
        raise InvalidModelError(
            f"the float network has {len(wanted)} inputs, the quantized one {len(taken)}: they are not the same network"
        )
    known = info_of(quantized.module)
    infos = known.inputs if known is not None and len(known.inputs) == len(taken) else [None] * len(taken)
    return [_reader(*row) for row in zip(wanted, taken, infos, strict=True)]


def _reader(wanted: Node, taken: Node, info: TensorInfo | None) -> Reader:
    real, given = (node.meta.get("val") for node in (wanted, taken))
    if not isinstance(real, torch.Tensor) or not isinstance(given, torch.Tensor) or real.dtype == given.dtype:
        return _same
    if not real.is_floating_point() or info is None or info.scale is None or info.zero_point is None:
        raise InvalidModelError(
            f"input {taken.name!r} is {_described(real)} in the float network, {_described(given)} in the quantized one"
        )
    scale, zero_point = info.scale, info.zero_point
    return lambda codes: (codes.float() - zero_point) * scale


def _same(value: Any) -> Any:
    return value
