"""prelu, with TFLite's integer arithmetic: a positive x is rescaled, a negative one multiplied by its slope."""

from __future__ import annotations

import torch
from torch import fx

from .. import native
from .common import DEQUANTIZE, Operand, QParams, args_of, aten, constraint, dequantized, is_call, shape
from .conv import per_channel
from .elementwise import add, channel_terms, mul, quantized_operand
from .registry import Fold, folds
from .table import INDICES, lut


@constraint
def slopes_constant(*, got: str) -> bool:
    """prelu's slopes must be constants, got {got}"""
    return not got


@folds(aten._prelu_kernel.default)
def fold_prelu(fold: Fold) -> fx.Node:
    """lut(x) + lut(x) * slope: a table for x >= 0, that is zero elsewhere, and a product of min(x, 0); one of the two
    terms is always zero, so that the sum is exact."""
    x, slopes = dequantized(args_of(fold.core)[0]), args_of(fold.core)[1]
    slopes_constant(got="" if fold.evaluate(slopes) is not None else str(slopes))
    sizes = shape(x.node)
    ratio = float(torch.tensor(x.q.scale, dtype=torch.float32) / torch.tensor(fold.y.scale, dtype=torch.float32))
    levels = INDICES.long() - x.q.zero_point
    positive = rescaled(levels.clamp(min=0), ratio, fold.y)
    terms = None if is_call(slopes, DEQUANTIZE) else channel_terms(fold, slopes, args_of(fold.core)[0])
    below = fold.emit(
        lut, x.node, fold.constant(INDICES.clamp(max=x.q.zero_point), "table"), val=fold.int8(sizes), q=x.q
    )
    inner = Fold(fold.gm, fold.quantize, fold.core, fold.activations, fold.y, (-128, 127))
    if terms is not None:
        negative = per_channel(inner, Operand(below, x.q), terms, torch.zeros_like(terms))
    else:
        slope = quantized_operand(fold, slopes, 1)
        negative = inner.emit(mul, below, slope.node, a_q=x.q, b_q=slope.q, y_q=fold.y, clamp=inner.clamp)
    above = fold.emit(lut, x.node, fold.constant(positive, "table"), val=fold.int8(sizes))
    return fold.emit(add, above, negative, a_q=fold.y, b_q=fold.y, y_q=fold.y, clamp=fold.clamp)


def rescaled(levels: torch.Tensor, real: float, y: QParams) -> torch.Tensor:
    """M(levels, real) + zero point, as int8."""
    multiplier, shift = native.quantize_multiplier(real)
    found = [native.requantize(int(level), multiplier, shift) + y.zero_point for level in levels]
    return torch.tensor(found).clamp(-128, 127).to(torch.int8)
