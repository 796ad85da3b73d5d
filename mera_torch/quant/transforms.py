"""What makes int8 more accurate without training: each a function of a graph, used by ``quantize`` when its config says
so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from . import operators as ops
from .patterns import attribute

Inputs = tuple[Any, ...]
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_channel.default


def correct_bias(prepared: GraphModule, batches: Sequence[Inputs]) -> GraphModule:
    """Converts a calibrated module and takes the mean error of each convolution and linear out of its bias.

    Rounding the weights shifts the mean of each output channel (Nagel et al., arXiv 1906.04721, section 4.2). Here the
    shift is measured: float and int8 network run on `batches`, the latter operator by operator, so that each bias also
    makes up for the operators before.

    Args:
        prepared: From ``prepare_pt2e`` with :class:`MeraQuantizer`, calibrated. It is used up, as by ``convert_pt2e``.
        batches: Tuples of the model's inputs; some 8 to 64 images.

    Returns:
        The module that ``convert_pt2e`` gives, with other int32 biases; an operator without bias keeps none.
    """
    wanted: dict[str, torch.Tensor] = {}

    def remember(node: Node, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        wanted[node.name] = _channel_means(node, outputs)
        return outputs

    _run_by_operator(prepared, batches, remember)
    converted = convert_pt2e(prepared)

    def correct(node: Node, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        bias = node.args[2] if len(node.args) > 2 else None
        if node.name not in wanted or not isinstance(bias, Node) or bias.target is not _DEQUANTIZE:
            return outputs
        stored, scale = (attribute(converted, str(arg.target)) for arg in bias.args[:2] if isinstance(arg, Node))
        if not isinstance(stored, torch.Tensor) or not isinstance(scale, torch.Tensor):
            return outputs
        steps = ((_channel_means(node, outputs) - wanted[node.name]) / scale).round()
        limit = torch.iinfo(torch.int32).max
        with torch.no_grad():
            stored.copy_((stored.double() - steps).clamp(-limit, limit).to(torch.int32))
        shift = (steps * scale).to(outputs[0].dtype)
        return [y - _per_channel(node, shift) for y in outputs]

    _run_by_operator(converted, batches, correct)
    return converted


def _run_by_operator(
    model: GraphModule, batches: Sequence[Inputs], visit: Callable[[Node, list[torch.Tensor]], list[torch.Tensor]]
) -> None:
    """Runs `model` on all batches, one operator after the other; `visit` may replace the outputs of convolutions and
    linears."""
    placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
    values: dict[Node, list[Any]] = {node: [batch[i] for batch in batches] for i, node in enumerate(placeholders)}
    last_use = {source: node for node in model.graph.nodes for source in node.all_input_nodes}
    with torch.no_grad():
        for node in model.graph.nodes:
            if node.op == "output":
                return
            if node.op == "get_attr":
                values[node] = [attribute(model, str(node.target))] * len(batches)
            elif node.op != "placeholder":
                values[node] = [_compute(model, node, values, i) for i in range(len(batches))]
            if node.op == "call_function" and (node.target in ops.CONV or node.target in ops.LINEAR):
                values[node] = visit(node, values[node])
            for source in node.all_input_nodes:
                if last_use[source] is node:
                    del values[source]


def _compute(model: GraphModule, node: Node, values: dict[Node, list[Any]], i: int) -> Any:
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: values[n][i])
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return args[0] if isinstance(module, ObserverBase) else module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _channel_means(node: Node, outputs: list[torch.Tensor]) -> torch.Tensor:
    """float64 [C], the mean of each channel: dimension 1 of a convolution's [N, C, H, W], the last of a linear's [...,
    C]."""
    by_channel = [y.double().movedim(1 if node.target in ops.CONV else -1, 0).flatten(1) for y in outputs]
    return torch.stack([y.sum(1) for y in by_channel]).sum(0) / sum(y.shape[1] for y in by_channel)


def _per_channel(node: Node, vector: torch.Tensor) -> torch.Tensor:
    return vector.view(1, -1, 1, 1) if node.target in ops.CONV else vector
