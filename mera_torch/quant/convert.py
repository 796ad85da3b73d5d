"""From observers or fake quantization to q/dq: torchao's conversion, and what it leaves in float after QAT."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torchao.quantization.pt2e import FakeQuantizeBase, move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from .calibration.observers import BIAS_LIMIT
from .graphs import operators as ops
from .graphs.canonicalize import batch_norm_to_depthwise, remove_dropout
from .graphs.patterns import constant_of, value_of
from .quantizer import INT32_MAX

_qd: Any = torch.ops.quantized_decomposed


def convert(prepared: GraphModule) -> GraphModule:
    """Converts a calibrated (``prepare_pt2e``) or trained (``prepare_qat_pt2e``) module to int8.

    As ``convert_pt2e``, and after it: dropout and batch norms of images still there after QAT become nothing and
    depthwise convolutions, and every convolution or linear of int8 operands gets the int32 bias that its batch norm
    brought as float. `prepared` is used up.

    Returns:
        A module, to be called in evaluation only, of aten and ``quantized_decomposed`` operators.
    """
    is_qat = any(isinstance(module, FakeQuantizeBase) for module in prepared.modules())
    if is_qat:
        move_exported_model_to_eval(prepared)
        _stop_counting(prepared)
    with torch.random.fork_rng([]):  # torchao makes examples of patterns with the caller's random numbers
        converted: GraphModule = convert_pt2e(prepared)
    if is_qat:
        _set_values(converted)
        remove_dropout(converted)
        images = {node for node in converted.graph.nodes if (value := value_of(node)) is not None and value.dim() == 4}
        _quantize_weights(converted, batch_norm_to_depthwise(converted, images))
        _quantize_biases(converted)
        converted.graph.eliminate_dead_code()
        converted.graph.lint()
        converted.recompile()
    return converted


def _stop_counting(model: GraphModule) -> None:
    """Batch norms no longer count batches (torchao would stumble over one that is called twice)."""
    for node in reversed(list(model.graph.nodes)):
        counts = node.op == "call_function" and node.target is torch.ops.aten.add_.Tensor
        if counts and not node.users and "num_batches_tracked" in str(_root(node).target):
            model.graph.erase_node(node)


def _root(node: Node) -> Node:
    """What a chain of in-place operators writes to."""
    while node.op == "call_function" and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _set_values(model: GraphModule) -> None:
    """Every node's fake value anew: torchao leaves those of the patterns that it put in, whatever their shapes."""
    inputs = [node.meta["val"] for node in model.graph.nodes if node.op == "placeholder"]
    fake = next((value.fake_mode for value in inputs if isinstance(value, FakeTensor)), None)
    FakeTensorProp(model, fake or FakeTensorMode(allow_non_fake_inputs=True)).propagate_dont_convert_inputs(*inputs)


def _quantize_weights(model: GraphModule, convolutions: set[Node]) -> None:
    """Float weights of convolutions with an int8 input, which batch norms became: int8 symmetric per output channel."""
    for node in _with_int8_input(model):
        if node in convolutions and isinstance(weight := node.args[1], Node):
            values = constant_of(model, weight)
            scale = (values.abs().flatten(1).amax(1) / 127).clamp_min(torch.finfo(torch.float32).eps)
            if isinstance(bias := node.args[2], Node):
                scale = torch.maximum(scale, constant_of(model, bias).abs() / (_input_scale(node) * BIAS_LIMIT))
            _replace(model, node, 1, values, scale, 127, torch.int8)


def _quantize_biases(model: GraphModule) -> None:
    for node in _with_int8_input(model):
        bias = node.args[2] if len(node.args) > 2 else None
        weight = node.args[1]
        if (
            isinstance(bias, Node)
            and bias.op == "get_attr"
            and isinstance(weight, Node)
            and weight.op == "call_function"
        ):
            values, weight_scale = constant_of(model, bias), cast(Any, weight.args[1])
            per_channel = isinstance(weight_scale, Node)
            scale = constant_of(model, weight_scale) if per_channel else torch.full_like(values, weight_scale)
            _replace(model, node, 2, values, _input_scale(node) * scale, INT32_MAX, torch.int32)


def _with_int8_input(model: GraphModule) -> list[Node]:
    return [
        node
        for node in model.graph.nodes
        if node.op == "call_function"
        and (node.target in ops.CONV or node.target in ops.LINEAR)
        and isinstance(node.args[0], Node)
        and node.args[0].target is _qd.dequantize_per_tensor.default
    ]


def _input_scale(node: Node) -> float:
    return float(node.args[0].args[1])  # type: ignore[union-attr, arg-type]


def _replace(
    model: GraphModule,
    node: Node,
    index: int,
    values: torch.Tensor,
    scale: torch.Tensor,
    limit: int,
    dtype: torch.dtype,
) -> None:
    """Argument `index` of `node` becomes dequantize_per_channel of `values` rounded to `scale`, zero point 0."""
    kind = "weight" if index == 1 else "bias"
    shaped = scale.double().view(-1, *[1] * (values.dim() - 1))
    stored = (values.double() / shaped).round().clamp(-limit, limit).to(dtype)
    with model.graph.inserting_before(node):
        parts = []
        tensors = {"": stored, "_scale": scale.float(), "_zero_point": torch.zeros(scale.shape, dtype=torch.int64)}
        for suffix, tensor in tensors.items():
            name = f"_{node.name}_{kind}{suffix}"
            model.register_buffer(name, tensor)
            parts.append(model.graph.get_attr(name))
            parts[-1].meta["val"] = tensor
        dequantize = model.graph.call_function(_qd.dequantize_per_channel.default, (*parts, 0, -limit, limit, dtype))
    dequantize.meta = {**node.args[index].meta, "val": values}  # type: ignore[union-attr]
    node.update_arg(index, dequantize)
