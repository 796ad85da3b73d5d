"""Graph rewrites before annotation: fewer operators, none of them in place, each of which can be quantized as a
whole."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from . import operators as ops
from .affine import fold_affine
from .patterns import argument, attribute, constant_of, find_constants, is_float32, new_call, pair, provenance, value_of
from .recognize import recognize

aten: Any = torch.ops.aten

_TAKES_BATCH_NORM = ops.CONV | ops.CONV_1D | ops.CONV_TRANSPOSED


def canonicalize(
    model: GraphModule, *, is_qat: bool = False, stays: Callable[[Node], bool] = lambda node: False
) -> GraphModule:
    """Rewrites `model` in place and returns it; every rewrite computes the same function.

    In-place operators become functional ones, ``split``, ``chunk`` and ``unbind`` become slices, ``padding="same"``
    becomes numbers, what `recognize` knows becomes one operator, a product with a constant matrix becomes a linear,
    constants a channel become part of what is before them (except the operators that `stays` says so of), dropout
    outside training vanishes, and a batch norm in evaluation that follows no convolution becomes a depthwise 1x1
    convolution. With `is_qat` constants, dropout and batch norm stay as they are, since training changes them.
    """
    remove_in_place(model)
    split_to_slices(model)
    explicit_padding(model)
    recognize(model)
    products_to_linear(model)
    if not is_qat:
        fold_affine(model, stays)
        remove_dropout(model)
        batch_norm_to_depthwise(model)
    model.graph.eliminate_dead_code()
    model.graph.lint()
    model.recompile()
    return model


def remove_in_place(model: GraphModule) -> None:
    """``relu_(x)`` becomes ``relu(x)``, and later readers of x read the result. Left alone where x shares memory with
    another value."""
    nodes = list(model.graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    for node in nodes:
        if node.op != "call_function" or node.target not in ops.FUNCTIONAL or not node.args:
            continue
        target = node.args[0]
        if not isinstance(target, Node) or _shares_memory(target):
            continue
        for user in list(target.users):
            if position.get(user, -1) > position[node]:
                user.replace_input_with(target, node)
        node.target = ops.FUNCTIONAL[node.target]


def _shares_memory(node: Node) -> bool:
    """Whether writing into `node`'s value would be seen elsewhere: an input, a parameter, a view, or something viewed
    by others."""
    if node.op != "call_function":
        return True
    viewed = any(user.op == "call_function" and user.target in ops.VIEWS for user in node.users)
    return viewed or node.target in ops.VIEWS and not _owns_memory(node)


def _owns_memory(view: Node) -> bool:
    """Whether `view` is the only way to reach the memory it shows: each value on the way there has one user."""
    while view.op == "call_function" and view.target in ops.VIEWS:
        source = view.args[0]
        if not isinstance(source, Node) or len(source.users) > 1:
            return False
        view = source
    return view.op == "call_function"


def split_to_slices(model: GraphModule) -> None:
    """Each output of ``split``, ``chunk`` (and ``unbind``) becomes a ``slice`` (or ``select``) of the input."""
    splits = {aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int}
    for node in list(model.graph.nodes):
        if node.op != "call_function" or node.target not in splits:
            continue
        x, parts = node.args[0], node.meta.get("val")
        picks = list(node.users)
        if (
            not isinstance(x, Node)
            or not isinstance(parts, Sequence)
            or any("getitem" not in str(user.target) for user in picks)
        ):
            continue
        unbind = node.target is aten.unbind.int
        dim = argument(node, 1 if unbind else 2, "dim", 0)
        begins = [0]
        for part in parts:
            begins.append(begins[-1] + (1 if unbind else int(part.shape[dim])))
        for pick in picks:
            i = int(pick.args[1]) % len(parts)
            pick.target = aten.select.int if unbind else aten.slice.Tensor
            pick.args = (x, dim, begins[i]) if unbind else (x, dim, begins[i], begins[i + 1])
            pick.meta = {**provenance(node), **pick.meta}
        model.graph.erase_node(node)


def explicit_padding(model: GraphModule) -> None:
    """``conv2d(padding="same" | "valid")`` becomes a conv2d with numbers, after a pad where "same" is asymmetric."""
    for node in list(model.graph.nodes):
        if node.op != "call_function" or node.target is not aten.conv2d.padding:
            continue
        x, weight = node.args[0], node.args[1]
        shape = value_of(weight)
        if not isinstance(x, Node) or shape is None or shape.dim() != 4:
            continue
        dilation = pair(argument(node, 5, "dilation", 1))
        total = [d * (int(k) - 1) for d, k in zip(dilation, shape.shape[2:], strict=True)]
        if argument(node, 4, "padding", "valid") == "valid":
            total = [0, 0]
        before = [t // 2 for t in total]
        if any(t % 2 for t in total):
            with model.graph.inserting_before(node):
                pads = [before[1], total[1] - before[1], before[0], total[0] - before[0]]
                x = new_call(model, node, aten.constant_pad_nd.default, x, pads, 0.0)
            before = [0, 0]
        bias, stride, groups = (
            argument(node, 2, "bias"),
            list(pair(argument(node, 3, "stride", 1))),
            argument(node, 6, "groups", 1),
        )
        node.target, node.args, node.kwargs = (
            aten.conv2d.default,
            (x, weight, bias, stride, before, dilation, groups),
            {},
        )


def products_to_linear(model: GraphModule) -> None:
    """``x @ w`` and ``addmm(b, x, w)`` with a parameter or buffer w [K, N] become ``linear(x, w.T, b)``."""
    for node in list(model.graph.nodes):
        if node.op != "call_function" or node.target not in ops.PRODUCTS:
            continue
        bias, x, w = node.args[:3] if node.target is aten.addmm.default else (None, *node.args[:2])
        shape = value_of(w)
        if not isinstance(x, Node) or x.op == "get_attr" or node.kwargs or shape is None or shape.dim() != 2:
            continue
        b = value_of(bias) if bias is not None else None
        if b is not None and (b.dim() != 1 or b.shape[0] != shape.shape[1]):
            continue
        with model.graph.inserting_before(node):
            weight = _transposed_constant(model, node, w)
        if weight is not None:
            node.target, node.args = aten.linear.default, (x, weight, *([bias] if bias is not None else []))


def _transposed_constant(model: GraphModule, node: Node, w: Node) -> Node | None:
    """The constant whose transpose `w` is."""
    if w.op == "get_attr":
        held: Any = attribute(model, str(w.target))
        turned_over = held.detach().t().contiguous()
        if isinstance(held, torch.nn.Parameter):
            turned_over = torch.nn.Parameter(turned_over, requires_grad=held.requires_grad)
        return _constant(model, f"{node.name}_weight", turned_over)
    args: tuple[Any, ...] = w.args
    turned = (
        w.target in (aten.t.default, aten.numpy_T.default)
        or (w.target is aten.permute.default and list(args[1]) == [1, 0])
        or (w.target is aten.transpose.int and {int(d) % 2 for d in args[1:3]} == {0, 1})
    )
    source = args[0] if turned else None
    return source if isinstance(source, Node) and source.op == "get_attr" else None


def remove_dropout(model: GraphModule) -> None:
    """Dropout outside training is the identity."""
    for node in list(model.graph.nodes):
        if (
            node.op == "call_function"
            and node.target in (aten.dropout.default, aten.feature_dropout.default)
            and node.args[2] is False
        ):
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)


def separate_batch_norms(model: GraphModule) -> None:
    """Turns a batch norm that no convolution can take in, because it follows none or because others read the
    convolution's result as well, into a convolution of its own."""
    alone = {
        node
        for node in model.graph.nodes
        if node.op == "call_function"
        and node.target in ops.BATCH_NORM
        and isinstance(source := node.args[0], Node)
        and (source.target not in _TAKES_BATCH_NORM or len(source.users) > 1)
    }
    batch_norm_to_depthwise(model, alone)
    model.recompile()


def batch_norm_to_depthwise(model: GraphModule, only: set[Node] | None = None) -> set[Node]:
    """A batch norm of [N, C, H, W] with fixed statistics becomes a depthwise 1x1 convolution: y = x * g / sqrt(v + eps)
    + b - m * g / sqrt(v + eps)."""
    constants = find_constants(model.graph)
    made = set()
    for node in list(model.graph.nodes):
        if (
            node.op != "call_function"
            or node.target is not aten.batch_norm.default
            or (only is not None and node not in only)
        ):
            continue
        x, gamma, beta, mean, variance, training, _, epsilon = node.args[:8]
        statistics = [n for n in (gamma, beta, mean, variance) if n is not None]
        result = value_of(node)
        known = all(isinstance(n, Node) and n.op == "get_attr" and n in constants for n in statistics)
        if training or result is None or result.dim() != 4 or not is_float32(node) or mean is None or not known:
            continue
        m, v = constant_of(model, mean).double(), constant_of(model, variance).double()
        factor = (torch.ones_like(m) if gamma is None else constant_of(model, gamma).double()) / (
            v + float(epsilon)
        ).sqrt()
        offset = (torch.zeros_like(m) if beta is None else constant_of(model, beta).double()) - m * factor
        with model.graph.inserting_before(node):
            weight = _constant(model, f"{node.name}_weight", factor.float().view(-1, 1, 1, 1))
            bias = _constant(model, f"{node.name}_bias", offset.float())
        node.target, node.kwargs = aten.conv2d.default, {}
        node.args = (x, weight, bias, [1, 1], [0, 0], [1, 1], m.numel())
        made.add(node)
    return made


def _constant(model: GraphModule, name: str, value: torch.Tensor) -> Node:
    while hasattr(model, name):
        name += "_"
    if isinstance(value, torch.nn.Parameter):
        model.register_parameter(name, value)
    else:
        model.register_buffer(name, value)
    node = model.graph.get_attr(name)
    node.meta["val"] = value
    return node


def restore_convolutions(model: GraphModule) -> None:
    """Convolutions of imported graphs, which are ``aten.convolution``, as the operators of their rank, in place: those
    are what torchao folds batch norms into."""
    plain = {3: aten.conv1d.default, 4: aten.conv2d.default}
    transposed = {3: aten.conv_transpose1d.default, 4: aten.conv_transpose2d.input}
    for node in model.graph.nodes:
        if node.target is not aten.convolution.default or node.kwargs:
            continue
        x, weight, bias, stride, padding, dilation, turned, output_padding, groups = node.args
        rank = 0 if (value := value_of(weight)) is None else value.dim()
        target = (transposed if turned else plain).get(rank)
        if target is not None:
            sizes = (output_padding, groups, dilation) if turned else (dilation, groups)
            node.target, node.args = target, (x, weight, bias, stride, padding, *sizes)
    model.recompile()


def restore_batch_norms(model: GraphModule) -> None:
    """Batch norms of imported graphs, which torch.export has decomposed, as one operator each again, in place."""
    for node in list(model.graph.nodes):
        if node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        results = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        if len(results) != len(node.users) or any(user.users for index, user in results.items() if index != 0):
            continue
        x, weight, bias, mean, var, momentum, eps = node.args
        with model.graph.inserting_before(node):
            arguments = (x, weight, bias, mean, var, False, momentum, eps, False)
            whole = model.graph.call_function(aten.batch_norm.default, arguments)
        if 0 in results:
            whole.meta = dict(results[0].meta)
            results[0].replace_all_uses_with(whole)
        for user in results.values():
            model.graph.erase_node(user)
        model.graph.erase_node(node)
    model.recompile()
