"""One spelling per operator: what the later passes see is convolution, linear, batch_norm, clamp, mean, avg_pool2d,
max_pool2d, reshape, permute, slice, cat, constant_pad_nd, upsample_nearest2d, and pointwise operators."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from ..ops.common import Unfit, args_of, arguments, aten, call, is_call, normalized_dim, shape, value

Rule = Callable[[fx.GraphModule, fx.Node], fx.Node | None]
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return register


def normalize(gm: fx.GraphModule) -> None:
    """Rewrites every operator that has several spellings into one."""
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node.target not in RULES or not node.users:
            continue
        try:
            with gm.graph.inserting_before(node):
                new = RULES[node.target](gm, node)
        except Unfit:  # left as it is: it runs on the host, and explain() says why
            continue
        if new is not None and new is not node:
            node.replace_all_uses_with(new)
            gm.graph.erase_node(node)


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
        _take_first(node, args_of(node)[0])


@rule(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.expand.default)
def same_type_and_shape(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    source = args_of(node)[0]
    if not isinstance(source, fx.Node):
        return None
    before, after = value(source), value(node)
    same = before.dtype == after.dtype and before.device == after.device and shape(source) == shape(node)
    return source if same else None


def _take_first(node: fx.Node, replacement: Any) -> None:
    """A node with several results of which only the first is used gives way to `replacement`."""
    if any(not is_call(user, operator.getitem) or args_of(user)[1] != 0 for user in node.users):
        return
    for user in list(node.users):
        user.replace_all_uses_with(replacement)
        user.graph.erase_node(user)


# ---- convolution, linear, batch norm ----


@rule(aten.conv2d.default, aten.conv1d.default)
def conv(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    a = arguments(node)
    rank = len(shape(node)) - 2
    stride, padding, dilation = (_spread(a[name], rank) for name in ("stride", "padding", "dilation"))
    args = (a["input"], a["weight"], a["bias"], stride, padding, dilation, False, [0] * rank, a["groups"])
    return call(gm, node, aten.convolution.default, *args)


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input)
def conv_transpose(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    a = arguments(node)
    rank = len(shape(node)) - 2
    stride, padding, dilation, output = (
        _spread(a[name], rank) for name in ("stride", "padding", "dilation", "output_padding")
    )
    args = (a["input"], a["weight"], a["bias"], stride, padding, dilation, True, output, a["groups"])
    return call(gm, node, aten.convolution.default, *args)


@rule(aten.conv2d.padding, aten.conv1d.padding)
def conv_padding(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """padding="same" or "valid": the odd element goes to the end, as in PyTorch."""
    a = arguments(node)
    rank = len(shape(node)) - 2
    stride, dilation = _spread(a["stride"], rank), _spread(a["dilation"], rank)
    x, total = a["input"], [0] * rank
    if a["padding"] == "same":
        total = [d * (k - 1) for d, k in zip(dilation, shape(a["weight"])[2:], strict=True)]
    padding = [t // 2 for t in total]
    if any(t % 2 for t in total):
        extra = [n for t in reversed(total) for n in (0, t % 2)]
        sizes = list(shape(x))
        for i, t in enumerate(total):
            sizes[2 + i] += t % 2
        x = call(gm, node, aten.constant_pad_nd.default, x, extra, 0.0, val=value(x).new_empty(sizes))
    args = (x, a["weight"], a["bias"], stride, padding, dilation, False, [0] * rank, a["groups"])
    return call(gm, node, aten.convolution.default, *args)


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
    if weight is None or a["alpha"] != 1 or a["beta"] != 1 or len(shape(a["self"])) != 1:
        return None
    if shape(a["self"])[0] != shape(node)[1]:
        return None
    return call(gm, node, aten.linear.default, a["mat1"], weight, a["self"])


@rule(aten.mm.default, aten.matmul.default)
def matmul(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    weight = _transposed(args_of(node)[1])
    return None if weight is None else call(gm, node, aten.linear.default, args_of(node)[0], weight)


@rule(aten._native_batch_norm_legit_no_training.default)
def batch_norm_inference(gm: fx.GraphModule, node: fx.Node) -> None:
    a = arguments(node)
    first = [u for u in node.users if is_call(u, operator.getitem) and args_of(u)[1] == 0]
    if len(first) != len(node.users):
        return None
    args = (a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"], False, a["momentum"], a["eps"])
    return _take_first(node, call(gm, node, aten.batch_norm.default, *args, False, val=first[0].meta["val"]))


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


# ---- pooling ----


@rule(aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The mean if the result is 1x1, average pooling if the windows are equal."""
    x = args_of(node)[0]
    (h, w), (out_h, out_w) = shape(x)[-2:], shape(node)[-2:]
    if (out_h, out_w) == (1, 1):
        return call(gm, node, aten.mean.dim, x, [-2, -1], True)
    if h % out_h or w % out_w:
        return None
    kernel = [h // out_h, w // out_w]
    return call(gm, node, aten.avg_pool2d.default, x, kernel, kernel, [0, 0], False, True, None)


@rule(aten.adaptive_max_pool2d.default)
def adaptive_max_pool(gm: fx.GraphModule, node: fx.Node) -> None:
    (h, w), x = shape(args_of(node)[0])[-2:], args_of(node)[0]
    out_h, out_w = (int(s) for s in args_of(node)[1])
    if h % out_h == 0 and w % out_w == 0:
        kernel = [h // out_h, w // out_w]
        _max_pool(gm, node, x, kernel, kernel, [0, 0], [1, 1], False)


@rule(aten.max_pool2d_with_indices.default)
def max_pool_with_indices(gm: fx.GraphModule, node: fx.Node) -> None:
    a = arguments(node)
    _max_pool(gm, node, a["self"], a["kernel_size"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])


def _max_pool(gm: fx.GraphModule, node: fx.Node, *args: Any) -> None:
    if all(is_call(user, operator.getitem) and args_of(user)[1] == 0 for user in node.users):
        val = next(iter(node.users)).meta["val"]
        _take_first(node, call(gm, node, aten.max_pool2d.default, *args, val=val))


@rule(aten.mean.default)
def mean_of_all(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    if arguments(node)["dtype"] is not None:
        return None
    return call(gm, node, aten.mean.dim, args_of(node)[0], list(range(len(shape(args_of(node)[0])))), False)


# ---- shapes ----


@rule(
    aten.view.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int, aten.unsqueeze.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.reshape.default, aten.view_copy.default,
    aten.unsqueeze_copy.default, aten.squeeze_copy.dims,
)  # fmt: skip
def reshape(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    return call(gm, node, aten.reshape.default, args_of(node)[0], list(shape(node)))


@rule(aten.permute.default, aten.permute_copy.default, aten.movedim.intlist)
def permute(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    if "movedim" in str(node.target):
        return None
    dims = [normalized_dim(d, len(shape(node))) for d in args_of(node)[1]]
    return call(gm, node, aten.permute.default, args_of(node)[0], dims)


@rule(aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.mT.default, aten.transpose_copy.int)
def transpose(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    rank = len(shape(node))
    dims = list(range(rank))
    if "transpose" in str(node.target):
        i, j = (normalized_dim(d, rank) for d in args_of(node)[1:3])
    else:
        i, j = (rank - 2, rank - 1) if rank > 1 else (0, 0)
    if "numpy_T" in str(node.target):
        dims.reverse()
    else:
        dims[i], dims[j] = dims[j], dims[i]
    return call(gm, node, aten.permute.default, args_of(node)[0], dims)


def _slice(gm: fx.GraphModule, node: fx.Node, x: fx.Node, dim: int, begin: int, end: int, step: int = 1) -> fx.Node:
    sizes = list(shape(x))
    sizes[dim] = max(0, math.ceil((end - begin) / step))
    args = (x, dim, begin, end, step)
    return call(gm, node, aten.slice.Tensor, *args, val=value(x).new_empty(sizes))


@rule(aten.slice.Tensor, aten.slice_copy.Tensor)
def slice_(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """begin and end are brought into 0..size."""
    a = arguments(node)
    x: fx.Node = a["self"] if "self" in a else a["input"]
    dim = normalized_dim(a["dim"], len(shape(x)))
    begin, end, step = slice(a["start"], a["end"], a["step"]).indices(shape(x)[dim])
    if (begin, end, step) == (0, shape(x)[dim], 1):
        return x
    return call(gm, node, aten.slice.Tensor, x, dim, begin, end, step)


@rule(aten.select.int, aten.select_copy.int)
def select(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    x, dim, index = args_of(node)[:3]
    sizes = shape(x)
    dim = normalized_dim(dim, len(sizes))
    index = normalized_dim(index, sizes[dim])
    part = _slice(gm, node, x, dim, index, index + 1)
    return call(gm, node, aten.reshape.default, part, list(shape(node)))


@rule(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int, aten.split.sizes,
      aten.split_copy.Tensor, aten.split_with_sizes_copy.default)  # fmt: skip
def split(gm: fx.GraphModule, node: fx.Node) -> None:
    """Each part that is used becomes a slice."""
    a = arguments(node)
    x, vals = a["self"], node.meta["val"]
    dim = normalized_dim(a["dim"], len(shape(x)))
    if any(not is_call(user, operator.getitem) for user in node.users):
        return
    unbind = "unbind" in str(node.target)
    extents = [1 if unbind else int(v.shape[dim]) for v in vals]
    for user in list(node.users):
        index = args_of(user)[1] % len(vals)
        begin = sum(extents[:index])
        part = _slice(gm, user, x, dim, begin, begin + extents[index])
        if unbind:
            part = call(gm, user, aten.reshape.default, part, list(shape(user)))
        user.replace_all_uses_with(part)
        gm.graph.erase_node(user)


@rule(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    a = arguments(node)
    return call(gm, node, aten.cat.default, list(a["tensors"]), normalized_dim(a["dim"], len(shape(node))))


@rule(aten.stack.default)
def stack(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    a = arguments(node)
    rank, dim = len(shape(node)), normalized_dim(a["dim"], len(shape(node)))
    sizes = [1 if i == dim else s for i, s in enumerate(shape(node))]
    parts = [call(gm, node, aten.reshape.default, x, sizes, val=value(x).new_empty(sizes)) for x in a["tensors"]]
    return call(gm, node, aten.cat.default, parts, dim % rank)


@rule(aten.pad.default)
def pad(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    a = arguments(node)
    if a["mode"] != "constant":
        return None
    return call(gm, node, aten.constant_pad_nd.default, a["self"], list(a["pad"]), a["value"] or 0.0)


@rule(aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default)
def shuffle(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Rearrangements that are a reshape, a permutation and a reshape."""
    x, r = args_of(node)[0], int(args_of(node)[1])
    *lead, c, h, w = shape(x)
    n = math.prod(lead)
    if node.target is aten.pixel_shuffle.default:
        split_, dims = [n, c // (r * r), r, r, h, w], [0, 1, 4, 2, 5, 3]
    elif node.target is aten.pixel_unshuffle.default:
        split_, dims = [n, c, h // r, r, w // r, r], [0, 1, 3, 5, 2, 4]
    else:
        split_, dims = [n, r, c // r, h, w], [0, 2, 1, 3, 4]
    val = value(x)
    y = call(gm, node, aten.reshape.default, x, split_, val=val.new_empty(split_))
    moved = [split_[d] for d in dims]
    y = call(gm, node, aten.permute.default, y, dims, val=val.new_empty(moved))
    return call(gm, node, aten.reshape.default, y, list(shape(node)))


@rule(aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec)
def upsample(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Only whole factors: each element repeated."""
    (h, w), (out_h, out_w) = shape(args_of(node)[0])[-2:], shape(node)[-2:]
    if out_h % h or out_w % w:
        return None
    return call(gm, node, aten.upsample_nearest2d.default, args_of(node)[0], [out_h, out_w])
