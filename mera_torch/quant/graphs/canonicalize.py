"""Graph rewrites before annotation: fewer operators, none of them in place, each of which can be quantized as a
whole."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from . import operators as ops
from .affine import batch_norm_terms, fold_affine
from .parameters import new_parameter
from .patterns import (
    Apart,
    argument,
    attribute,
    find_constants,
    for_each_dim,
    is_float32,
    never,
    new_call,
    provenance,
    value_of,
)
from .recognize import recognize

aten: Any = torch.ops.aten

_TAKES_BATCH_NORM = ops.CONV | ops.CONV_1D | ops.CONV_TRANSPOSED


def float_form(model: GraphModule, apart: Apart) -> None:
    """Rewrites an exported network in place to what float transforms and the linter work on; arguments as of
    `canonicalize`. Batch norms that convolutions will take in are still there."""
    remove_in_place(model)
    recognize(model, apart)
    fold_affine(model, apart)
    separate_batch_norms(model)


def canonicalize(model: GraphModule, *, is_qat: bool = False, apart: Apart = never) -> GraphModule:
    """Rewrites `model` in place and returns it; every rewrite computes the same function.

    In-place operators become functional ones, ``split``, ``chunk`` and ``unbind`` become slices, ``padding="same"``
    becomes numbers, what `recognize` knows becomes one operator, a product with a constant matrix becomes a linear,
    constants a channel become part of what is before them, dropout outside training vanishes, and a batch norm in
    evaluation that follows no convolution becomes a depthwise 1x1 convolution. With `is_qat` constants, dropout and
    batch norm stay as they are, since training changes them. What `apart` says so of is not recognized or folded.
    """
    remove_in_place(model)
    split_to_slices(model)
    explicit_padding(model)
    recognize(model, apart)
    products_to_linear(model)
    if not is_qat:
        fold_affine(model, apart)
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
    viewed = any(_is_view(user) and user.target not in ops.FUNCTIONAL for user in node.users)
    return viewed or (_is_view(node) and not _owns_memory(node))


def _is_view(node: Node) -> bool:
    """Whether the result of `node` may be the memory of an argument: its schema says so, or `ops.SILENT_VIEWS`."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], Node) and _is_view(node.args[0])
    if node.target in ops.SILENT_VIEWS:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def _owns_memory(view: Node) -> bool:
    """Whether `view` is the only way to reach the memory it shows: each value on the way there has one user, but for
    the parts of one split, which do not overlap."""
    while _is_view(view):
        source = view.args[0]
        if not isinstance(source, Node):
            return False
        others = [user for user in source.users if user is not view]
        parts = view.target is operator.getitem and source.target in ops.SPLITS
        if not all(parts and user.target is operator.getitem and user.args[1] != view.args[1] for user in others):
            return False
        view = source
    return view.op == "call_function"


def split_to_slices(model: GraphModule) -> None:
    """Each output of ``split``, ``chunk`` (and ``unbind``) becomes a ``slice`` (or ``select``) of the input."""
    for node in list(model.graph.nodes):
        if node.op != "call_function" or node.target not in ops.SPLITS:
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
    """``padding="same" | "valid"`` of a 1-d or 2-d convolution becomes numbers, after a pad where "same" is
    asymmetric."""
    numbers = {aten.conv1d.padding: aten.conv1d.default, aten.conv2d.padding: aten.conv2d.default}
    for node in list(model.graph.nodes):
        if node.op != "call_function" or node.target not in numbers:
            continue
        x, weight = node.args[0], node.args[1]
        shape = value_of(weight)
        if not isinstance(x, Node) or shape is None:
            continue
        dims = shape.dim() - 2
        stride, dilation = (
            for_each_dim(argument(node, index, name, 1), dims) for index, name in ((3, "stride"), (5, "dilation"))
        )
        total = [d * (int(k) - 1) for d, k in zip(dilation, shape.shape[2:], strict=True)]
        if argument(node, 4, "padding", "valid") == "valid":
            total = [0] * dims
        before = [t // 2 for t in total]
        if any(t % 2 for t in total):
            with model.graph.inserting_before(node):
                pads = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
                x = new_call(model, node, aten.constant_pad_nd.default, x, pads, 0.0)
            before = [0] * dims
        bias, groups = argument(node, 2, "bias"), argument(node, 6, "groups", 1)
        node.target, node.kwargs = numbers[node.target], {}
        node.args = (x, weight, bias, stride, before, dilation, groups)


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
        return new_parameter(model, f"{node.name}_weight", turned_over)
    args: tuple[Any, ...] = w.args
    turned = (
        w.target in (aten.t.default, aten.numpy_T.default)
        or (w.target is aten.permute.default and list(args[1]) == [1, 0])
        or (w.target is aten.transpose.int and {int(d) % 2 for d in args[1:3]} == {0, 1})
    )
    source = args[0] if turned else None
    return source if isinstance(source, Node) and source.op == "get_attr" else None


def remove_dropout(model: GraphModule) -> None:
    """Dropout outside training is the identity, and attention has none (its argument 4)."""
    for node in list(model.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in (aten.dropout.default, aten.feature_dropout.default) and node.args[2] is False:
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
        elif node.target is aten.scaled_dot_product_attention.default:
            node.args = (*node.args[:4], *(0.0 for _ in node.args[4:5]), *node.args[5:])
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "dropout_p"}


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


def _as_image(shape: torch.Size) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The operators, and their arguments, that make [N, C, H, W] of a value [N, C, ...], and those that undo it."""
    if len(shape) == 2:
        return [(aten.unsqueeze.default, 2), (aten.unsqueeze.default, 3)], [(aten.flatten.using_ints, 1)]
    if len(shape) == 3:
        return [(aten.unsqueeze.default, 3)], [(aten.squeeze.dim, 3)]
    if len(shape) == 5:
        return [(aten.flatten.using_ints, 2, 3)], [(aten.unflatten.int, 2, list(shape[2:4]))]
    return [], []


def batch_norm_to_depthwise(model: GraphModule, only: set[Node] | None = None) -> set[Node]:
    """A batch norm of [N, C] to [N, C, D, H, W] with fixed statistics becomes a depthwise 1x1 convolution of images;
    these are returned."""
    constants = find_constants(model.graph)
    made = set()
    for node in list(model.graph.nodes):
        if node.target is not aten.batch_norm.default or (only is not None and node not in only):
            continue
        result = value_of(node)
        terms = batch_norm_terms(model, node, constants)
        if terms is None or result is None or not 2 <= result.dim() <= 5 or not is_float32(node):
            continue
        factor, offset = terms
        before, after = _as_image(result.shape)
        with model.graph.inserting_before(node):
            weight = new_parameter(model, f"{node.name}_weight", factor.float().view(-1, 1, 1, 1))
            bias = new_parameter(model, f"{node.name}_bias", offset.float())
            x: Any = node.args[0]
            for target, *rest in before:
                x = new_call(model, node, target, x, *rest)
            convolution = aten.conv2d.default, (x, weight, bias, [1, 1], [0, 0], [1, 1], factor.numel())
            if after:
                ((target, *rest),) = after
                y = new_call(model, node, convolution[0], *convolution[1])
                node.target, node.args = target, (y, *rest)
            else:
                y = node
                node.target, node.args = convolution
        node.kwargs = {}
        made.add(y)
    return made


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


def keep_batch_statistics(model: GraphModule) -> None:
    """Batch norms that normalize by their own batch's statistics, which nothing may fold away, as an operator that
    means this alone, in place."""
    for node in list(model.graph.nodes):
        if node.target is aten.batch_norm.default and node.args[5]:
            x, weight, bias, _, _, _, momentum, epsilon = node.args[:8]
            with model.graph.inserting_before(node):
                target = aten._native_batch_norm_legit.no_stats
                whole = new_call(model, node, target, x, weight, bias, True, momentum, epsilon)
            node.target, node.args = operator.getitem, (whole, 0)
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
