"""Pooling and reductions."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from ...ops.common import args_of, arguments, aten, call, is_call, shape, value
from .rule import rule, take_first

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
        take_first(node, call(gm, node, aten.max_pool2d.default, *args, val=val))


@rule(aten.sum.default)
def sum_of_all(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    if arguments(node)["dtype"] is not None:
        return None
    return call(gm, node, aten.sum.dim_IntList, args_of(node)[0], list(range(len(shape(args_of(node)[0])))), False)


@rule(aten.mean.default)
def mean_of_all(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    if arguments(node)["dtype"] is not None:
        return None
    return call(gm, node, aten.mean.dim, args_of(node)[0], list(range(len(shape(args_of(node)[0])))), False)


@rule(aten.max.default, aten.min.default)
def extremum_of_all(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    target = aten.amax.default if node.target is aten.max.default else aten.amin.default
    return call(gm, node, target, args_of(node)[0], [], False)


@rule(aten.max.dim, aten.min.dim)
def extremum(gm: fx.GraphModule, node: fx.Node) -> None:
    """Of whose results only the values are used."""
    a, target = arguments(node), aten.amax.default if node.target is aten.max.dim else aten.amin.default
    val = node.meta["val"][0]
    take_first(node, call(gm, node, target, a["self"], [a["dim"]], a["keepdim"], val=val))


@rule(aten.max_pool1d.default, aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default)
def pool_1d(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """[N,C,L] is [N,C,1,L]."""
    a, x = arguments(node), args_of(node)[0]
    sizes, result = [*shape(x)[:-1], 1, shape(x)[-1]], [*shape(node)[:-1], 1, shape(node)[-1]]
    image = call(gm, node, aten.reshape.default, x, sizes, val=value(x).new_empty(sizes))
    val = value(node).new_empty(result)
    if node.target is aten.adaptive_avg_pool1d.default:
        y = call(gm, node, aten.adaptive_avg_pool2d.default, image, [1, result[-1]], val=val)
        return call(gm, node, aten.reshape.default, y, list(shape(node)))
    kernel, stride = list(a["kernel_size"]), list(a["stride"] or a["kernel_size"])
    window = ([1, *kernel], [1, *stride], [0, *_list(a["padding"])])
    if node.target is aten.max_pool1d.default:
        rest: tuple[Any, ...] = ([1, *_list(a["dilation"])], a["ceil_mode"])
        y = call(gm, node, aten.max_pool2d.default, image, *window, *rest, val=val)
    else:
        y = call(gm, node, aten.avg_pool2d.default, image, *window, a["ceil_mode"], a["count_include_pad"], val=val)
    return call(gm, node, aten.reshape.default, y, list(shape(node)))


def _list(x: Any) -> list[int]:
    return [x] if isinstance(x, int) else [int(i) for i in x]


@rule(aten.max_pool3d.default)
def max_pool_3d(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """First over height and width, then over depth."""
    a, x = arguments(node), args_of(node)[0]
    if len(shape(x)) != 5:
        return None
    kernel, stride, padding, dilation = (
        (v * 3)[:3] for v in (_list(a[k] or a["kernel_size"]) for k in ("kernel_size", "stride", "padding", "dilation"))
    )
    if not a["padding"] or a["padding"] == [0]:
        padding = [0, 0, 0]
    n, c, d, h, w = shape(x)
    _, _, out_d, out_h, out_w = shape(node)

    def reshape(y: fx.Node, *sizes: int) -> fx.Node:
        return call(gm, node, aten.reshape.default, y, list(sizes), val=value(x).new_empty(sizes))

    def pool(y: fx.Node, sizes: list[int], dims: list[int]) -> fx.Node:
        window = ([v[i] if i >= 0 else neutral for i in dims] for v, neutral in
                  ((kernel, 1), (stride, 1), (padding, 0), (dilation, 1)))  # fmt: skip
        val = value(x).new_empty(sizes)
        return call(gm, node, aten.max_pool2d.default, y, *window, a["ceil_mode"], val=val)

    flat = pool(reshape(x, n, c * d, h, w), [n, c * d, out_h, out_w], [1, 2])
    deep = pool(reshape(flat, n, c, d, out_h * out_w), [n, c, out_d, out_h * out_w], [0, -1])
    return reshape(deep, *shape(node))
