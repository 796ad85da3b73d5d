"""What an importer gives: an ordinary module that knows the names, layouts and dtypes of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an imported model.

    name: the file's; layout: "NHWC", "NCHW", or "" where the file does not say; scale, zero_point: of a quantized
    tensor, else None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str = ""
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class ModelInfo:
    """Where a model came from ("tflite", "onnx", "torchscript", "keras") and how it is called."""

    format: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class ImportedModel(fx.GraphModule):
    """A flat graph of functional aten and quantized_decomposed operators; called with its inputs in order, it gives
    one tensor or a tuple. Each node's meta["nn_module_stack"] holds the name and the operator of the file."""

    @staticmethod
    def of(
        root: torch.nn.Module,
        graph: fx.Graph,
        format: str,
        inputs: Sequence[TensorInfo],
        outputs: Sequence[TensorInfo],
    ) -> ImportedModel:
        names = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
        leaves = [None] * len(names)
        in_spec = pytree.tree_structure((tuple(leaves), {}))
        out_spec = pytree.tree_structure(None if len(outputs) == 1 else (None,) * len(outputs))
        graph.set_codegen(fx.graph._PyTreeCodeGen(fx.graph._PyTreeInfo(names, in_spec, out_spec)))
        graph.lint()
        model = ImportedModel(root, graph, class_name="ImportedModel")
        model.meta["mera_model"] = ModelInfo(format, tuple(inputs), tuple(outputs))
        return model.eval()

    @property
    def info(self) -> ModelInfo:
        """Format, inputs and outputs."""
        found: ModelInfo = self.meta["mera_model"]
        return found

    def example_inputs(self, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Random inputs of the right shapes and dtypes: standard normal floats, 8- and 16-bit integers from their whole
        range, wider ones from 0 to 1, as indices are."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(_random(info, generator) for info in self.info.inputs)


def _random(info: TensorInfo, generator: torch.Generator) -> torch.Tensor:
    if info.dtype.is_floating_point:
        return torch.randn(info.shape, generator=generator).to(info.dtype)
    if info.dtype in (torch.int8, torch.uint8, torch.int16):
        limits = torch.iinfo(info.dtype)
        return torch.randint(limits.min, limits.max + 1, info.shape, dtype=info.dtype, generator=generator)
    return torch.randint(0, 2, info.shape, generator=generator).to(info.dtype)


def unwrapped(model: Any) -> Any:
    """The network in a QuantizedModel; any other model itself."""
    inner = getattr(model, "imported", None) if isinstance(model, torch.nn.Module) else None
    return inner() if callable(inner) else model


def info_of(model: Any) -> ModelInfo | None:
    """The description of an imported model, also after it was quantized; None for any other model."""
    return getattr(model, "meta", {}).get("mera_model") if isinstance(model, fx.GraphModule) else None


def example_inputs_of(model: Any) -> tuple[torch.Tensor, ...] | None:
    """Random inputs for an imported model, also after it was quantized; None for any other model."""
    info = info_of(model)
    if info is None:
        return None
    generator = torch.Generator().manual_seed(0)
    return tuple(_random(tensor, generator) for tensor in info.inputs)
