"""Products and sums with a constant a channel, as a part of the convolution, linear or batch norm before them: Caffe's
Scale layers, ONNX's MatMul and Add, learned scales of residual branches, batch norms after a linear. In int8 each would
round once more."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from . import operators as ops
from .parameters import new_parameter, own_parameter, replace_parameter
from .patterns import KEPT_IN_FLOAT, Apart, argument, constant_of, evaluate, find_constants, is_float32, never, value_of
from .weighted import WEIGHTED, channel_axis, from_blocks, to_blocks

aten: Any = torch.ops.aten

_MUL = frozenset({aten.mul.Tensor, aten.mul.Scalar})
_DIV = frozenset({aten.div.Tensor, aten.div.Scalar})
_ADD = frozenset({aten.add.Tensor, aten.add.Scalar})
_SUB = frozenset({aten.sub.Tensor, aten.sub.Scalar})
_RSUB = frozenset({aten.rsub.Tensor, aten.rsub.Scalar})
_AFFINE = _MUL | _DIV | _ADD | _SUB | _RSUB


def fold_affine(model: GraphModule, apart: Apart = never) -> int:
    """Rewrites `model` in place; the function stays, up to float rounding.

    What has several readers stays, and so do batch norms in training, constants that differ within a channel, what is
    kept in float, and the operators of which `apart` says so.

    Returns:
        How many operators were folded.
    """
    constants, folded = find_constants(model.graph), 0
    for node in list(model.graph.nodes):
        if node.op != "call_function" or node in constants or not is_float32(node):
            continue
        source = _source(node, constants)
        if source is None or apart(node, source):
            continue
        found = _factor_and_offset(model, node, source, constants)
        if found is None:
            continue
        into = _into_batch_norm if source.target in ops.BATCH_NORM else _into_weighted
        if into(model, source, *found):
            node.replace_all_uses_with(source)
            model.graph.erase_node(node)
            folded += 1
    if folded:
        model.graph.eliminate_dead_code()
        model.recompile()
    return folded


def _source(node: Node, constants: set[Node]) -> Node | None:
    """The operator that `node` alone reads, beside a constant."""
    norm = node.target is aten.batch_norm.default
    if node.kwargs or KEPT_IN_FLOAT in node.meta or not norm and (node.target not in _AFFINE or len(node.args) != 2):
        return None
    values = [x for x in node.args if isinstance(x, Node) and x not in constants]
    source = values[0] if len(values) == 1 else None
    takes = ops.LINEAR if norm else WEIGHTED | ops.BATCH_NORM  # batch norms after convolutions are folded by torchao
    if source is None or source.target not in takes or len(source.users) != 1 or source.kwargs:
        return None
    return source


def batch_norm_terms(model: GraphModule, node: Node, constants: set[Node]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(f, o), float64 [C]: in channel c a batch norm with fixed statistics gives f[c] * x + o[c], f being gamma / sqrt(
    variance + epsilon), o being beta - mean * f. None if they are not known."""
    _, gamma, beta, mean, variance, training, _, epsilon = node.args[:8]
    held = [n for n in (gamma, beta, mean, variance) if n is not None]
    if training or mean is None or not all(isinstance(n, Node) and n.op == "get_attr" and n in constants for n in held):
        return None
    m, v = constant_of(model, mean).double(), constant_of(model, variance).double()
    factor = (v + float(epsilon)).rsqrt()  # type: ignore[arg-type]
    factor = factor if gamma is None else factor * constant_of(model, gamma).double()
    offset = -m * factor
    return factor, offset if beta is None else offset + constant_of(model, beta).double()


def _factor_and_offset(
    model: GraphModule, node: Node, source: Node, constants: set[Node]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(f, o), float64 [C]: in channel c `node` is f[c] * source + o[c]."""
    if node.target is aten.batch_norm.default:
        rows = (value := value_of(node)) is not None and value.dim() == 2
        return batch_norm_terms(model, node, constants) if rows else None
    after = node.args[0] is source
    held = node.args[1 if after else 0]
    constant = evaluate(model, held) if isinstance(held, Node) else torch.tensor(held)
    value, result = value_of(source), value_of(node)
    if value is None or result is None or value.shape != result.shape or node.target in _DIV and not after:
        return None
    vector = _per_channel(constant.double(), value.shape, channel_axis(source, value.dim()))
    if vector is None:
        return None
    ones, zeros = torch.ones_like(vector), torch.zeros_like(vector)
    if node.target in _MUL | _DIV:
        factor, offset = (vector if node.target in _MUL else 1 / vector), zeros
    elif node.target in _ADD:
        factor, offset = ones, vector
    else:
        factor, offset = (ones, -vector) if after == (node.target in _SUB) else (-ones, vector)
    return (factor, offset) if bool((factor.isfinite() & offset.isfinite()).all()) else None


def _per_channel(constant: torch.Tensor, shape: torch.Size, axis: int) -> torch.Tensor | None:
    """[C] of a constant that broadcasts to `shape` and differs along dimension `axis` alone."""
    sizes = [1] * (len(shape) - constant.dim()) + list(constant.shape)
    alike = len(sizes) == len(shape) and all(size == 1 for d, size in enumerate(sizes) if d != axis)
    return constant.reshape(-1).expand(shape[axis]) if alike and sizes[axis] in (1, shape[axis]) else None


def _into_batch_norm(model: GraphModule, norm: Node, factor: torch.Tensor, offset: torch.Tensor) -> bool:
    gamma, beta = norm.args[1:3]
    if norm.target is not aten.batch_norm.default or norm.args[5] or not (_is_parameter(gamma) and _is_parameter(beta)):
        return False
    _change(model, norm, 1, factor, 0)
    _change(model, norm, 2, factor, offset)
    return True


def _into_weighted(model: GraphModule, node: Node, factor: torch.Tensor, offset: torch.Tensor) -> bool:
    weight, bias = node.args[1], argument(node, 2, "bias")
    if weight is None or not (_is_parameter(weight) and _is_parameter(bias)):
        return False
    parameter = own_parameter(model, node, 1)
    held = constant_of(model, parameter)
    blocks = to_blocks(node, held.double())
    rows = factor.view(*blocks.shape[:2], 1, 1)
    replace_parameter(model, parameter, from_blocks(node, blocks * rows, held.shape).to(held.dtype))
    if bias is not None or bool((offset != 0).any()):
        _change(model, node, 2, factor, offset)
    return True


def _is_parameter(held: Any) -> bool:
    """Whether it can be changed: the name of a tensor, or nothing yet."""
    return held is None or isinstance(held, Node) and held.op == "get_attr"


def _change(model: GraphModule, node: Node, index: int, factor: torch.Tensor, offset: torch.Tensor | int) -> None:
    """Argument `index` of `node`, a vector, becomes factor * it + offset. Where there is none, it is 1 (a batch norm's
    weight) or 0 before."""
    held = argument(node, index, "")
    if held is None:
        fresh = (factor if index == 1 else torch.zeros_like(factor)) + offset
        with model.graph.inserting_before(node):
            made = new_parameter(model, f"{node.name}_{index}", torch.nn.Parameter(fresh.float(), False))
        node.args = (*node.args[:index], made, *node.args[index + 1 :])
        return
    parameter = own_parameter(model, node, index)
    before = constant_of(model, parameter)
    replace_parameter(model, parameter, (before.double() * factor + offset).to(before.dtype))
