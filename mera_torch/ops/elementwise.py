"""add, sub and mul of two tensors, with broadcasting; a constant operand is quantized, or scales each channel."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .common import (
    DEQUANTIZE,
    Clamp,
    Operand,
    QParams,
    args_of,
    arguments,
    aten,
    constraint,
    dequantized,
    is_call,
    kwargs_of,
    shape,
    target_of,
)
from .conv import per_channel
from .registry import Fold, folds, lowers, quantized_op, real, saturate


@constraint
def alpha_is_one(*, alpha: float) -> bool:
    """alpha must be 1, got {alpha}"""
    return alpha == 1


@constraint
def one_operand_whole(*, a: list[int], b: list[int], y: list[int]) -> bool:
    """one operand must have the result's shape {y} (broadcasting of both has no DNA operator), got {a} and {b}"""
    return y in (a, b)


# ---- quantized operators and their references ----


def _binary(function: Callable[[Any, Any], Any], name: str) -> Callable[..., torch.Tensor]:
    def compute(
        a: torch.Tensor, b: torch.Tensor, *, a_q: QParams, b_q: QParams, y_q: QParams, clamp: Clamp
    ) -> torch.Tensor:
        return saturate(function(real(a, QParams(*a_q)), real(b, QParams(*b_q))), QParams(*y_q), clamp)

    compute.__name__ = compute.__qualname__ = name
    compute.__doc__ = f"{name} of int8 a and b, broadcast as in PyTorch."
    return quantized_op(compute)


add = _binary(operator.add, "add")
sub = _binary(operator.sub, "sub")
mul = _binary(operator.mul, "mul")


# ---- folding ----


def is_int8_binary(node: fx.Node) -> bool:
    """add, sub or mul of two int8 tensors, constants or not: the DNA's own operator, whose rounding is TFLite's, even
    where a table of the float results would do (x * x, x + scalar)."""
    if not is_call(node, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor):
        return False
    a = arguments(node)
    return a.get("alpha", 1) == 1 and is_call(a["self"], DEQUANTIZE) and is_call(a["other"], DEQUANTIZE)


def quantized_operand(fold: Fold, node: Any, index: int) -> Operand:
    """The int8 tensor behind an operand; a float constant is quantized: symmetric, one scale."""
    held = fold.evaluate(node)
    if held is None or is_call(node, DEQUANTIZE):
        return dequantized(node, index)
    q = QParams(max(float(held.abs().max()), 1e-12) / 127, 0)
    levels = torch.round(held.double() / q.scale).clamp(-127, 127).to(torch.int8)
    return Operand(fold.constant(levels, "operand"), q)


def channel_terms(fold: Fold, node: Any, x: Any) -> torch.Tensor | None:
    """A float constant operand's C values if it varies over dimension 1 of x alone, else None."""
    held = fold.evaluate(node)
    if held is None or is_call(node, DEQUANTIZE) or not isinstance(x, fx.Node):
        return None
    sizes = list(shape(x))
    if len(sizes) < 2 or held.numel() != sizes[1]:
        return None
    wanted = [1] * len(sizes)
    wanted[1] = sizes[1]
    padded = [1] * (len(sizes) - held.dim()) + list(held.shape)
    return held.double().flatten() if padded == wanted else None


def _fold(fold: Fold, target: Callable[..., torch.Tensor]) -> fx.Node:
    a = arguments(fold.core)
    alpha_is_one(alpha=a.get("alpha", 1))
    left, right = a["self"], a["other"]
    for x, other, sign in ((left, right, 1.0), (right, left, -1.0)):
        terms = channel_terms(fold, other, x)
        if terms is not None and fold.evaluate(x) is None and shape(x) == shape(fold.quantize):
            one, zero = torch.ones_like(terms), torch.zeros_like(terms)
            if target is mul:
                return per_channel(fold, dequantized(x), terms, zero)
            if target is add:
                return per_channel(fold, dequantized(x), one, terms)
            return per_channel(fold, dequantized(x), one * sign, terms * -sign)
    p, q = quantized_operand(fold, left, 0), quantized_operand(fold, right, 1)
    sizes = [list(shape(p.node)), list(shape(q.node))]
    one_operand_whole(a=sizes[0], b=sizes[1], y=list(shape(fold.quantize)))
    return fold.emit(target, p.node, q.node, a_q=p.q, b_q=q.q, y_q=fold.y, clamp=fold.clamp)


@folds(aten.add.Tensor)
def fold_add(fold: Fold) -> fx.Node:
    return _fold(fold, add)


@folds(aten.sub.Tensor)
def fold_sub(fold: Fold) -> fx.Node:
    return _fold(fold, sub)


@folds(aten.mul.Tensor)
def fold_mul(fold: Fold) -> fx.Node:
    return _fold(fold, mul)


# ---- lowering ----


def _lower(low: Any, node: fx.Node) -> None:
    k: Any = kwargs_of(node)
    a, b, layout = low.broadcast(args_of(node)[0], k["a_q"], args_of(node)[1], k["b_q"], shape(node))
    low.emit_like(node, target_of(node).__name__, [a, b], low.clamp(node), layout)


for _op in (add, sub, mul):
    lowers(_op)(_lower)
