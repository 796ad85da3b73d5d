"""The float .tflite twin of a PyTorch network: the same weights, the layout and the operators of TFLite.

    model = twin(module, example)      # bytes of a .tflite file; input NHWC

Needs ai_edge_litert (see tflite_models.py), not TensorFlow. Batch norms are folded into convolutions, padding that
TFLite's SAME does not mean becomes PAD, activations that TFLite lacks become the operators that stand for them in
converted models: silu is x * LOGISTIC(x), hardsigmoid is RELU6(x + 3) / 6.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tflite_models import NO_TENSOR, Builder
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

aten: Any = torch.ops.aten
Convert = Callable[["Twin", fx.Node], int]
CONVERT: dict[Any, Convert] = {}


def twin(module: nn.Module, example: Tensor) -> bytes:
    """The .tflite file of a network with one input (NCHW) and one output."""
    folded = fuse(copy.deepcopy(module).eval())
    with torch.no_grad():
        exported = torch.export.export(folded, (example,), strict=False).module(check_guards=False)
    return Twin(exported).build()


class Twin:
    """The conversion of one graph. index: node -> tensor; images are NHWC, other tensors as in PyTorch."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.builder = module, Builder("twin")
        self.index: dict[fx.Node, int] = {}

    def build(self) -> bytes:
        inputs, outputs = [], []
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.index[node] = self.result(node)
                inputs.append(self.index[node])
            elif node.op == "call_function":
                if node.target not in CONVERT:
                    raise NotImplementedError(f"the twin has no {node.target}")
                self.index[node] = CONVERT[node.target](self, node)
            elif node.op == "output":
                outputs = [self.index[n] for n in node.all_input_nodes]
        return self.builder.build(inputs, outputs)

    def result(self, node: fx.Node, shape: Sequence[int] | None = None, suffix: str = "") -> int:
        """A tensor for the node's value."""
        return self.builder.tensor(node.name + suffix, shape or nhwc(node.meta["val"].shape), "float32")

    def constant(self, node: Any, name: str, change: Callable[[Tensor], Tensor] = lambda t: t) -> int:
        held = operand(self.module, node)
        return self.builder.constant(name, change(held.detach()).contiguous().numpy())

    def op(self, node: fx.Node, code: str, inputs: Sequence[int], options: str | None = None, **fields: Any) -> int:
        y = self.result(node)
        self.builder.op(code, inputs, [y], options, **fields)
        return y

    def between(self, node: fx.Node, suffix: str, code: str, inputs: Sequence[int], shape: Sequence[int],
                options: str | None = None, **fields: Any) -> int:  # fmt: skip
        """An operator whose result is no value of the graph."""
        y = self.result(node, shape, suffix)
        self.builder.op(code, inputs, [y], options, **fields)
        return y


def nhwc(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else tuple(shape)


def operand(module: fx.GraphModule, node: fx.Node) -> Tensor:
    value: Any = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def converts(*targets: Any) -> Callable[[Convert], Convert]:
    def register(function: Convert) -> Convert:
        CONVERT.update(dict.fromkeys(targets, function))
        return function

    return register


def arg(node: fx.Node, index: int, default: Any = None) -> Any:
    return node.args[index] if len(node.args) > index else default


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def padded(t: Twin, node: fx.Node, x: int, padding: Any, kernel: Sequence[int], stride: Any, value: float | None = None
           ) -> tuple[int, str]:  # fmt: skip
    """(the input, the padding's name): SAME where it means the same, else a PAD before VALID."""
    (ph, pw), (sh, sw) = pair(padding), pair(stride)
    if (ph, pw) == (0, 0):
        return x, "VALID"
    if (sh, sw) == (1, 1) and (2 * ph + 1, 2 * pw + 1) == tuple(kernel):
        return x, "SAME"
    n, h, w, c = nhwc(node.args[0].meta["val"].shape)
    pads = t.builder.constant(f"{node.name}_pads", np.array([[0, 0], [ph, ph], [pw, pw], [0, 0]], np.int32))
    shape = (n, h + 2 * ph, w + 2 * pw, c)
    if value is None:
        return t.between(node, "_pad", "PAD", [x, pads], shape, "PadOptions"), "VALID"
    low = t.builder.constant(f"{node.name}_low", np.array(value, np.float32))
    return t.between(node, "_pad", "PADV2", [x, pads, low], shape, "PadV2Options"), "VALID"


@converts(aten.conv2d.default)
def conv2d(t: Twin, node: fx.Node) -> int:
    x, weight = t.index[node.args[0]], node.args[1]
    co, ci, kh, kw = weight.meta["val"].shape
    stride, dilation, groups = pair(arg(node, 3, 1)), pair(arg(node, 5, 1)), arg(node, 6, 1)
    span = [(k - 1) * d + 1 for k, d in zip((kh, kw), dilation, strict=True)]
    x, padding = padded(t, node, x, arg(node, 4, 0), span, stride)
    b = t.constant(arg(node, 2), f"{node.name}_bias") if arg(node, 2) is not None else NO_TENSOR
    fields = {"padding": padding, "strideH": stride[0], "strideW": stride[1], "dilationHFactor": dilation[0],
              "dilationWFactor": dilation[1]}  # fmt: skip
    if groups == co and ci == 1:
        w = t.constant(weight, f"{node.name}_weight", lambda v: v.permute(1, 2, 3, 0))
        return t.op(node, "DEPTHWISE_CONV_2D", [x, w, b], "DepthwiseConv2DOptions", depthMultiplier=1, **fields)
    w = t.constant(weight, f"{node.name}_weight", lambda v: v.permute(0, 2, 3, 1))
    return t.op(node, "CONV_2D", [x, w, b], "Conv2DOptions", **fields)


@converts(aten.linear.default)
def linear(t: Twin, node: fx.Node) -> int:
    w = t.constant(node.args[1], f"{node.name}_weight")
    b = t.constant(arg(node, 2), f"{node.name}_bias") if arg(node, 2) is not None else NO_TENSOR
    return t.op(node, "FULLY_CONNECTED", [t.index[node.args[0]], w, b], "FullyConnectedOptions")


@converts(aten.relu.default, aten.relu_.default)
def relu(t: Twin, node: fx.Node) -> int:
    return t.op(node, "RELU", [t.index[node.args[0]]])


@converts(aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default, aten.relu6_.default)
def relu6(t: Twin, node: fx.Node) -> int:
    if node.args[1:] not in ((0.0, 6.0), ()):
        raise NotImplementedError(f"the twin has no hardtanh{node.args[1:]}")
    return t.op(node, "RELU6", [t.index[node.args[0]]])


@converts(aten.hardswish.default, aten.hardswish_.default)
def hardswish(t: Twin, node: fx.Node) -> int:
    return t.op(node, "HARD_SWISH", [t.index[node.args[0]]], "HardSwishOptions")


@converts(aten.sigmoid.default)
def sigmoid(t: Twin, node: fx.Node) -> int:
    return t.op(node, "LOGISTIC", [t.index[node.args[0]]])


@converts(aten.silu.default, aten.silu_.default)
def silu(t: Twin, node: fx.Node) -> int:
    x = t.index[node.args[0]]
    gate = t.between(node, "_gate", "LOGISTIC", [x], nhwc(node.meta["val"].shape))
    return t.op(node, "MUL", [x, gate], "MulOptions")


@converts(aten.hardsigmoid.default, aten.hardsigmoid_.default)
def hardsigmoid(t: Twin, node: fx.Node) -> int:
    three = t.builder.constant(f"{node.name}_three", np.array(3, np.float32))
    sixth = t.builder.constant(f"{node.name}_sixth", np.array(1 / 6, np.float32))
    shape, x = nhwc(node.meta["val"].shape), t.index[node.args[0]]
    y = t.between(node, "_add", "ADD", [x, three], shape, "AddOptions", fusedActivationFunction="RELU6")
    return t.op(node, "MUL", [y, sixth], "MulOptions")


@converts(aten.add.Tensor, aten.add_.Tensor)
def add(t: Twin, node: fx.Node) -> int:
    return t.op(node, "ADD", [t.index[a] for a in node.args[:2]], "AddOptions")


@converts(aten.mul.Tensor)
def mul(t: Twin, node: fx.Node) -> int:
    return t.op(node, "MUL", [t.index[a] for a in node.args[:2]], "MulOptions")


@converts(aten.adaptive_avg_pool2d.default, aten.mean.dim)
def mean(t: Twin, node: fx.Node) -> int:
    shape = node.meta["val"].shape
    if node.target is aten.adaptive_avg_pool2d.default and tuple(shape[2:]) != (1, 1):
        raise NotImplementedError("the twin has adaptive pooling to 1x1 only")
    if node.target is aten.mean.dim and {d % 4 for d in node.args[1]} != {2, 3}:
        raise NotImplementedError("the twin has the mean of height and width only")
    axes = t.builder.constant(f"{node.name}_axes", np.array([1, 2], np.int32))
    return t.op(node, "MEAN", [t.index[node.args[0]], axes], "ReducerOptions", keepDims=len(shape) == 4)


@converts(aten.max_pool2d.default)
def max_pool2d(t: Twin, node: fx.Node) -> int:
    kernel = pair(node.args[1])
    stride = pair(arg(node, 2) or kernel)
    lowest = float(np.finfo(np.float32).min)
    x, padding = padded(t, node, t.index[node.args[0]], arg(node, 3, 0), kernel, stride, lowest)
    return t.op(node, "MAX_POOL_2D", [x], "Pool2DOptions", padding=padding, strideH=stride[0], strideW=stride[1],
                filterHeight=kernel[0], filterWidth=kernel[1])  # fmt: skip


@converts(aten.cat.default)
def cat(t: Twin, node: fx.Node) -> int:
    rank = len(node.meta["val"].shape)
    dim = arg(node, 1, 0) % rank
    axis = {0: 0, 1: 3, 2: 1, 3: 2}[dim] if rank == 4 else dim
    return t.op(node, "CONCATENATION", [t.index[a] for a in node.args[0]], "ConcatenationOptions", axis=axis)


@converts(aten.flatten.using_ints, aten.view.default, aten.reshape.default)
def reshape(t: Twin, node: fx.Node) -> int:
    x, before, after = t.index[node.args[0]], node.args[0].meta["val"].shape, node.meta["val"].shape
    if len(after) == 4:
        raise NotImplementedError("the twin has reshapes to matrices only")
    if len(before) == 4 and math.prod(before[2:]) > 1:
        order = t.builder.constant(f"{node.name}_order", np.array([0, 3, 1, 2], np.int32))
        x = t.between(node, "_nchw", "TRANSPOSE", [x, order], tuple(before), "TransposeOptions")
    sizes = t.builder.constant(f"{node.name}_sizes", np.array(after, np.int32))
    return t.op(node, "RESHAPE", [x, sizes], "ReshapeOptions", newShape=np.array(after, np.int32))


@converts(aten.dropout.default, aten.dropout_.default, aten.clone.default, aten.contiguous.default)
def same(t: Twin, node: fx.Node) -> int:
    return t.index[node.args[0]]
