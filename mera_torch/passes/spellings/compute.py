"""Convolution, matrix products, batch norm, clamps, and operators that do nothing."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import fx

from ...ops.common import DEQUANTIZE_OPS, args_of, arguments, aten, call, constant, is_call, shape, value
from .rule import rule, take_first

# ---- no-ops ----


@rule(
    aten.dropout.default, aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default,
    aten.lift_fresh_copy.default, aten.dropout_.default, aten.feature_dropout.default, aten.alpha_dropout.default,
)  # fmt: skip
def identity(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    if "dropout" in str(node.target) and arguments(node)["train"]:
        return None
    return args_of(node)[0] if isinstance(args_of(node)[0], fx.Node) else None


@rule(aten.native_dropout.default)
def native_dropout(gm: fx.GraphModule, node: fx.Node) -> None:
    if not arguments(node)["train"]:
        take_first(node, args_of(node)[0])


@rule(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout)
def same_type(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    source = args_of(node)[0]
    if not isinstance(source, fx.Node):
        return None
    before, after = value(source), value(node)
    same = before.dtype == after.dtype and before.device == after.device
    return source if same else None


# ---- convolution, linear, batch norm ----


@rule(aten.conv2d.default, aten.conv1d.default)
def conv(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    a = arguments(node)
    rank = _spatial(a)
    stride, padding, dilation = (_spread(a[name], rank) for name in ("stride", "padding", "dilation"))
    args = (a["weight"], a["bias"], stride, padding, dilation, False, [0] * rank, a["groups"])
    return _convolution(gm, node, a["input"], *args)


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input)
def conv_transpose(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    a = arguments(node)
    rank = _spatial(a)
    stride, padding, dilation, output = (
        _spread(a[name], rank) for name in ("stride", "padding", "dilation", "output_padding")
    )
    args = (a["weight"], a["bias"], stride, padding, dilation, True, output, a["groups"])
    return _convolution(gm, node, a["input"], *args)


@rule(aten.conv2d.padding, aten.conv1d.padding)
def conv_padding(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """padding="same" or "valid": the odd element goes to the end, as in PyTorch."""
    a = arguments(node)
    rank = _spatial(a)
    stride, dilation = _spread(a["stride"], rank), _spread(a["dilation"], rank)
    x, total = a["input"], [0] * rank
    if a["padding"] == "same":
        total = [d * (k - 1) for d, k in zip(dilation, shape(a["weight"])[2:], strict=True)]
    padding = [t // 2 for t in total]
    if any(t % 2 for t in total):
        extra = [n for t in reversed(total) for n in (0, t % 2)]
        sizes = list(shape(x))
        for i, t in enumerate(total):
            sizes[len(sizes) - rank + i] += t % 2
        x = call(gm, node, aten.constant_pad_nd.default, x, extra, 0.0, val=value(x).new_empty(sizes))
    return _convolution(gm, node, x, a["weight"], a["bias"], stride, padding, dilation, False, [0] * rank, a["groups"])


def _spatial(a: dict[str, Any]) -> int:
    """How many dimensions a convolution slides over."""
    return len(shape(a["weight"])) - 2


def _convolution(gm: fx.GraphModule, node: fx.Node, x: fx.Node, weight: fx.Node, *args: Any) -> fx.Node:
    """aten.convolution, which takes no input without a batch, with one."""
    if len(shape(x)) == len(shape(weight)):
        return call(gm, node, aten.convolution.default, x, weight, *args)
    batch = call(gm, node, aten.unsqueeze.default, x, 0, val=value(x).unsqueeze(0))
    y = call(gm, node, aten.convolution.default, batch, weight, *args, val=value(node).unsqueeze(0))
    return call(gm, node, aten.squeeze.dim, y, 0)


def _spread(x: Any, rank: int) -> list[int]:
    items = [x] if isinstance(x, int) else list(x)
    return [int(i) for i in (items * rank if len(items) == 1 else items)]


def _transposed(node: Any) -> Any:
    """w if `node` is w with its two dimensions swapped."""
    if is_call(node, aten.t.default) or (is_call(node, aten.permute.default) and list(args_of(node)[1]) == [1, 0]):
        return args_of(node)[0]
    if is_call(node, aten.transpose.int) and {d % 2 for d in args_of(node)[1:3]} == {0, 1} and len(shape(node)) == 2:
        return args_of(node)[0]
    return None


@rule(aten.addmm.default)
def addmm(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    a = arguments(node)
    weight = _transposed(a["mat2"])
    if weight is None and _is_constant(a["mat2"]):
        weight = _flipped(gm, node, a["mat2"])
    if weight is None or a["alpha"] != 1 or a["beta"] != 1 or len(shape(a["self"])) != 1:
        return None
    if shape(a["self"])[0] != shape(node)[1]:
        return None
    return call(gm, node, aten.linear.default, a["mat1"], weight, a["self"])


def _is_constant(node: fx.Node) -> bool:
    """Whether the node is a weight: a constant, or moved or dequantized from constants."""
    stack = [node]
    while stack:
        found = stack.pop()
        if found.op != "get_attr" and not is_call(found, aten.permute.default, aten.reshape.default, *DEQUANTIZE_OPS):
            return False
        stack.extend(found.all_input_nodes)
    return True


def _flipped(gm: fx.GraphModule, node: fx.Node, x: fx.Node) -> fx.Node:
    """x with its last two dimensions exchanged."""
    *lead, rows, columns = shape(x)
    dims = [*range(len(lead)), len(lead) + 1, len(lead)]
    return call(gm, node, aten.permute.default, x, dims, val=value(x).new_empty([*lead, columns, rows]))


@rule(aten.mm.default, aten.matmul.default, aten.bmm.default)
def matmul(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """By a constant matrix: linear, on the right as it is, on the left of the transposed."""
    left, right = args_of(node)[:2]
    if _is_constant(right) and not _is_constant(left) and len(shape(right)) == 2:
        weight = _transposed(right)
        return call(gm, node, aten.linear.default, left, weight or _flipped(gm, node, right))
    if _is_constant(left) and len(shape(left)) == 2 and len(shape(right)) >= 2:
        *lead, rows, columns = shape(node)
        val = value(node).new_empty([*lead, columns, rows])
        product = call(gm, node, aten.linear.default, _flipped(gm, node, right), left, val=val)
        return _flipped(gm, node, product)
    return None


@rule(aten._native_batch_norm_legit_no_training.default)
def batch_norm_inference(gm: fx.GraphModule, node: fx.Node) -> None:
    a = arguments(node)
    first = [u for u in node.users if is_call(u, operator.getitem) and args_of(u)[1] == 0]
    if len(first) != len(node.users):
        return None
    args = (a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"], False, a["momentum"], a["eps"])
    return take_first(node, call(gm, node, aten.batch_norm.default, *args, False, val=first[0].meta["val"]))


# ---- activations that are clamps ----


def _clamp(gm: fx.GraphModule, node: fx.Node, low: float | None, high: float | None) -> fx.Node:
    return call(gm, node, aten.clamp.default, args_of(node)[0], low, high)


@rule(aten.relu.default)
def relu(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    return _clamp(gm, node, 0.0, None)


@rule(aten.relu6.default)
def relu6(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    return _clamp(gm, node, 0.0, 6.0)


@rule(aten.hardtanh.default)
def hardtanh(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    a = arguments(node)
    return _clamp(gm, node, float(a["min_val"]), float(a["max_val"]))


@rule(aten.clamp_min.default, aten.clamp_max.default)
def one_sided_clamp(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    a = arguments(node)
    return _clamp(gm, node, a.get("min"), a.get("max"))


@rule(aten.prelu.default)
def prelu(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The slopes in the shape in which they broadcast; one that is a float constant makes a leaky_relu."""
    x, alpha = args_of(node)[:2]
    held = constant(gm, alpha)
    if held is not None and held.numel() == 1:
        return call(gm, node, aten.leaky_relu.default, x, float(held))
    rank = len(shape(x))
    sizes = [1] * rank
    if rank > 1:
        sizes[1] = math.prod(shape(alpha))
    slopes = call(gm, node, aten.reshape.default, alpha, sizes, val=value(alpha).new_empty(sizes))
    return call(gm, node, aten._prelu_kernel.default, x, slopes)
