"""Fused activations."""

from __future__ import annotations

import numpy as np

from ..graph import Value
from .context import Op, aten
from .reader import ACTIVATIONS

BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "RELU": (0.0, None),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}


def fused(op: Op, value: Value, kind: str, first: bool = False) -> None:
    """Gives `value` after the operator's fused activation; kind: of its options."""
    name = ACTIVATIONS.get(op.option(kind, "FusedActivationFunction"), "unknown")
    if name != "NONE":
        if name not in BOUNDS:
            raise op.b.unsupported(f"the fused activation {name} has no kernel in TFLite")
        value = clamped(op, value, *BOUNDS[name])
    op.give(value, first)


def clamped(op: Op, value: Value, low: float | None, high: float | None) -> Value:
    """min(max(value, low), high). A quantized output saturates at round(bound / scale) + zero point, halves away from
    zero, as TFLite does it; where a quantize of the bound would round the other way the bound is that level's."""
    if op.c.is_quantized(op.out()):
        low, high = (None if bound is None else _level(op, bound) for bound in (low, high))
    if low == 0.0 and high is None:
        return op.b.call(aten.relu.default, value)
    if low is not None and high is not None:
        return op.b.call(aten.hardtanh.default, value, low, high)
    return op.b.call(aten.clamp.default, value, low, high)


def _level(op: Op, bound: float) -> float:
    q = op.c.qparams(op.out())
    quotient = float(np.float32(bound) / np.float32(q.scale))
    ours = round(float(np.float32(bound) * np.float32(1 / np.float32(q.scale))))
    level = int(np.copysign(np.floor(abs(quotient) + 0.5), quotient))
    return bound if level == ours else level * q.scale
