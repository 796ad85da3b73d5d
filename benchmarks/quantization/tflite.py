"""The TFLite converter's post-training int8 quantization of a PyTorch network, which is rebuilt in TensorFlow first.

The network's exported core aten graph is written down again operator by operator in TensorFlow, NHWC, with the same
weights. Before it is quantized, its float TFLite model must agree with PyTorch on an input.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from torch import Tensor, nn
from torch.fx import Node

from mera_torch.errors import UnsupportedError

aten: Any = torch.ops.aten
AGREEMENT = 1e-3  # of the largest output: what float arithmetic in another order may change


def quantize(model: nn.Module, calibration: list[Tensor], *, per_channel: bool) -> Callable[[Tensor], Tensor]:
    """The int8 TFLite model, run by LiteRT's own kernels. Raises UnsupportedError if an operator has no counterpart
    here, or the float models differ."""
    example = calibration[0]
    function = twin(model, example)
    with torch.no_grad():
        wanted = model(example)
    got = interpreter(_converter(function).convert())(example)
    difference = float((got - wanted).abs().max() / wanted.abs().max())
    if not difference < AGREEMENT:
        raise UnsupportedError(f"the network in TensorFlow differs from PyTorch's by {difference:.1e} of its outputs")
    converter = _converter(function)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.representative_dataset = lambda: ([_channels_last(x)] for x in calibration)
    converter._experimental_disable_per_channel = not per_channel
    return interpreter(converter.convert())


def _converter(function: Any) -> Any:
    return tf.lite.TFLiteConverter.from_concrete_functions([function])


def interpreter(content: bytes) -> Callable[[Tensor], Tensor]:
    """A TFLite model as a function of NCHW inputs, run by LiteRT's own kernels: its XNNPACK delegate refuses some
    networks."""
    found = Interpreter(
        model_content=content,
        num_threads=torch.get_num_threads(),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    found.allocate_tensors()
    (source,), (target,) = found.get_input_details(), found.get_output_details()

    def run(x: Tensor) -> Tensor:
        found.set_tensor(source["index"], _channels_last(x))
        found.invoke()
        y = torch.from_numpy(found.get_tensor(target["index"]))
        return y.permute(0, 3, 1, 2) if y.dim() == 4 else y

    return run


def _channels_last(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1))


def twin(model: nn.Module, example: Tensor) -> Any:
    """`model` as a concrete TensorFlow function of one input, batch 1, NHWC."""
    program = torch.export.export(model, (example,)).run_decompositions()
    state = {**program.state_dict, **program.constants}
    signature = program.graph_signature
    held = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }

    def function(x: Any) -> Any:
        values: dict[Node, Any] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                values[node] = state[held[node.name]].detach().numpy() if node.name in held else x
            elif node.op == "output":
                return values[node.args[0][0]]
            elif node.target is operator.getitem:
                values[node] = values[node.args[0]]
            elif node.target not in OPERATORS:
                raise UnsupportedError(f"no counterpart of {node.target} ({node.name}) in TensorFlow is written here")
            else:
                args = torch.fx.map_arg(node.args, lambda n: values[n])
                values[node] = OPERATORS[node.target](node, *args)
        raise UnsupportedError("the exported graph has no output")

    height, width = example.shape[2:]
    signature_of_x = tf.TensorSpec([1, height, width, example.shape[1]], tf.float32)
    return tf.function(function, autograph=False).get_concrete_function(signature_of_x)


def _first(x: Any) -> Any:
    """NHWC -> NCHW, for operators that count axes."""
    return tf.transpose(x, (0, 3, 1, 2)) if len(x.shape) == 4 else x


def _last(x: Any) -> Any:
    return tf.transpose(x, (0, 2, 3, 1)) if len(x.shape) == 4 else x


def _axis(node: Node, axis: int) -> int:
    """An axis of the node's first tensor, in NHWC."""
    rank = node.meta["val"].dim()
    return (0, 3, 1, 2)[axis % rank] if rank == 4 else axis


def _is_same(size: int, kernel: int, stride: int, padding: int) -> bool:
    """Whether this symmetric padding is what TensorFlow calls SAME."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total == 2 * padding


def _padded(x: Any, padding: list[int], value: float = 0.0) -> Any:
    down, across = padding
    return tf.pad(x, ((0, 0), (down, down), (across, across), (0, 0)), constant_values=value) if any(padding) else x


def _convolution(
    node: Node,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: Any,
    _: Any,
    groups: Any,
) -> Any:
    if len(x.shape) == 5 and not any(padding) and groups == 1 and not transposed:
        y = tf.nn.conv3d(tf.transpose(x, (0, 2, 3, 4, 1)), weight.transpose(2, 3, 4, 1, 0), [1, *stride, 1], "VALID")
        return tf.transpose(y + (0.0 if bias is None else bias), (0, 4, 1, 2, 3))
    if transposed or list(dilation) != [1, 1]:
        raise UnsupportedError(f"{node.name}: transposed and dilated convolutions have no counterpart here")
    sizes = zip(x.shape[1:3], weight.shape[2:], stride, padding, strict=True)
    same = all(_is_same(*size) for size in sizes)
    x, mode = (x, "SAME") if same else (_padded(x, padding), "VALID")
    if groups == x.shape[3] and groups > 1:
        kernel = weight.reshape(groups, -1, *weight.shape[2:]).transpose(2, 3, 0, 1)
        y = tf.nn.depthwise_conv2d(x, kernel, [1, *stride, 1], mode)
    else:
        y = tf.nn.conv2d(x, weight.transpose(2, 3, 1, 0), stride, mode)
    return y if bias is None else tf.nn.bias_add(y, bias)


def _batch_norm(node: Node, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, _: float, epsilon: float) -> Any:
    scale = weight / np.sqrt(variance + epsilon)
    return x * scale + (bias - mean * scale)


def _linear(node: Node, bias: Any, x: Any, weight: Any) -> Any:
    return tf.matmul(x, weight) + bias


def _max_pool(node: Node, x: Any, kernel: Any, stride: Any = (), padding: Any = (0, 0), *rest: Any) -> Any:
    if rest and list(rest[0]) != [1, 1]:
        raise UnsupportedError(f"{node.name}: dilated pooling has no counterpart here")
    stride = stride or kernel
    pads = [(0, 0)]
    for size, outputs, k, s, p in zip(
        x.shape[1:3], node.meta["val"][0].shape[2:], kernel, stride, padding, strict=True
    ):
        pads.append((p, max((outputs - 1) * s + k - size - p, 0)))  # the end, where the count is rounded up
    if any(map(any, pads)):  # with values of the same window: the least float would be taken for the range of int8
        x = tf.pad(x, (*pads, (0, 0)), "SYMMETRIC")
    return tf.nn.max_pool2d(x, kernel, stride, "VALID")


def _avg_pool(
    node: Node,
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = (0, 0),
    ceil: bool = False,
    count_padding: bool = True,
) -> Any:
    sizes = list(zip(x.shape[1:3], kernel, stride or kernel, padding, strict=True))
    if not any(padding) and not ceil:
        return tf.nn.avg_pool2d(x, kernel, stride or kernel, "VALID")
    if not ceil and not count_padding and all(_is_same(*size) for size in sizes):
        return tf.nn.avg_pool2d(x, kernel, stride or kernel, "SAME")
    if not ceil:
        y = tf.nn.avg_pool2d(_padded(x, padding), kernel, stride or kernel, "VALID")
        return y if count_padding else y * _uncounted(node, kernel, stride or kernel, padding)
    raise UnsupportedError(f"{node.name}: this padding of an average pool has no counterpart here")


def _uncounted(node: Node, *window: Any) -> np.ndarray:
    """float32 [1, H, W, 1]: what an average that counts its padding is multiplied by to be one that does not."""
    height, width = node.args[0].meta["val"].shape[2:]  # type: ignore[union-attr]
    inside = torch.nn.functional.avg_pool2d(torch.ones(1, 1, height, width), *window)
    return (1 / inside).permute(0, 2, 3, 1).numpy()


def _mean(node: Node, x: Any, axes: Any, keep: bool = False) -> Any:
    if len(x.shape) != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
        raise UnsupportedError(f"{node.name}: only a mean over height and width has a counterpart here")
    return tf.reduce_mean(x, (1, 2), keepdims=keep)


def _view(node: Node, x: Any, shape: Any) -> Any:
    if len(x.shape) == 4 and x.shape[1:3] == (1, 1) and len(shape) == 2:
        return tf.reshape(x, node.meta["val"].shape)
    return _last(tf.reshape(_first(x), node.meta["val"].shape))


def _permute(node: Node, x: Any, axes: Any) -> Any:
    if isinstance(x, np.ndarray):
        return x.transpose(axes)
    return _last(tf.transpose(_first(x), axes))


def _pad(node: Node, x: Any, pads: Any, value: float = 0.0) -> Any:
    pairs = list(zip(pads[::2], pads[1::2], strict=True))[::-1]
    every = [(0, 0)] * (len(x.shape) - len(pairs)) + pairs
    return tf.pad(x, [every[axis] for axis in (0, 2, 3, 1)] if len(every) == 4 else every, constant_values=value)


def _clamp(node: Node, x: Any, low: float | None = None, high: float | None = None) -> Any:
    if (low, high) == (0, 6):
        return tf.nn.relu6(x)
    y = x if high is None else tf.minimum(x, high)
    return y if low is None else tf.nn.relu(y) if low == 0 else tf.maximum(y, low)


def _upsample(node: Node, x: Any, size: Any, *_: Any) -> Any:
    return tf.image.resize(x, node.meta["val"].shape[2:], "nearest")


def _broadcast(x: Any) -> Any:
    """A constant that is broadcast to NCHW, for NHWC."""
    return np.moveaxis(x, -3, -1) if isinstance(x, np.ndarray) and x.ndim >= 3 else x


OPERATORS: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.addmm.default: _linear,
    aten.permute.default: _permute,
    aten.relu.default: lambda node, x: tf.nn.relu(x),
    aten.hardtanh.default: _clamp,
    aten.clamp.default: _clamp,
    aten.add.Tensor: lambda node, x, y: _broadcast(x) + _broadcast(y),
    aten.mul.Tensor: lambda node, x, y: _broadcast(x) * _broadcast(y),
    aten.div.Tensor: lambda node, x, y: _broadcast(x) / _broadcast(y),
    aten.pow.Tensor_Scalar: lambda node, x, exponent: tf.pow(x, float(exponent)),
    aten.cat.default: lambda node, tensors, axis=0: tf.concat(tensors, _axis(node, axis)),
    aten.mean.dim: _mean,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.view.default: _view,
    aten.constant_pad_nd.default: _pad,
    aten.clone.default: lambda node, x, **_: x,
    aten._softmax.default: lambda node, x, axis, _: tf.nn.softmax(x, axis),
    aten.upsample_nearest2d.vec: _upsample,
}
