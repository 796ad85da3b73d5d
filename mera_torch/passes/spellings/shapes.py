"""Operators that give the same elements another shape, or a part of them."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import fx

from ...ops.common import args_of, arguments, aten, call, is_call, normalized_dim, shape, target_of, value
from .rule import rule

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


def sliced(gm: fx.GraphModule, node: fx.Node, x: fx.Node, dim: int, begin: int, end: int, step: int = 1) -> fx.Node:
    """x[begin:end:step] along dim; x itself if that is all of it."""
    sizes = list(shape(x))
    if (begin, end, step) == (0, sizes[dim], 1):
        return x
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
    part = sliced(gm, node, x, dim, index, index + 1)
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
        part = sliced(gm, user, x, dim, begin, begin + extents[index])
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


# PyTorch's operators on [N,C,L], by that on [N,C,H,W]
_UPSAMPLE_2D = {
    aten.upsample_nearest1d.default: aten.upsample_nearest2d.default,
    aten.upsample_nearest1d.vec: aten.upsample_nearest2d.default,
    aten._upsample_nearest_exact1d.default: aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact1d.vec: aten._upsample_nearest_exact2d.default,
    aten.upsample_linear1d.default: aten.upsample_bilinear2d.default,
    aten.upsample_linear1d.vec: aten.upsample_bilinear2d.default,
}


@rule(*_UPSAMPLE_2D)
def upsample_1d(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Along the width of an image of one row."""
    a, (batch, channels, length) = arguments(node), shape(node)
    x: Any = a["input"] if "input" in a else a["self"]
    scales = a.get("scale_factors") or [a.get("scales")]
    flags = [bool(a["align_corners"])] if "align_corners" in a else []
    before, after = [*shape(x)[:2], 1, shape(x)[2]], [batch, channels, 1, length]
    image = call(gm, node, aten.reshape.default, x, before, val=value(x).new_empty(before))
    args = (image, [1, length], *flags, None, scales[0])
    resized = call(gm, node, _UPSAMPLE_2D[target_of(node)], *args, val=value(node).new_empty(after))
    return call(gm, node, aten.reshape.default, resized, list(shape(node)))
