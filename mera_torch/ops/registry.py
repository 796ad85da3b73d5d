"""The two tables that the operator families fill: how a float operator between q and dq becomes a quantized node, and
how a quantized node becomes DNA nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .common import (
    DEQUANTIZE_OPS,
    QUANTIZE_OPS,
    Clamp,
    QParams,
    add_constant,
    args_of,
    call,
    constant,
    kwargs_of,
    origins,
    target_of,
)

if TYPE_CHECKING:
    from ..backend.to_dna import Lowering

FoldRule = Callable[["Fold"], fx.Node]
LowerRule = Callable[["Lowering", fx.Node], None]

FOLDS: dict[Any, FoldRule] = {}
LOWERINGS: dict[Any, LowerRule] = {}
QUANTIZED: dict[Any, str] = {}
"""Quantized operators (the functions of this package, which are also their reference) -> name."""


def folds(*targets: Any) -> Callable[[FoldRule], FoldRule]:
    """Registers how dq -> target -> [clamp] -> q becomes a quantized node; the rule raises Unfit if it cannot."""

    def register(rule: FoldRule) -> FoldRule:
        FOLDS.update(dict.fromkeys(targets, rule))
        return rule

    return register


def quantized_op(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Registers an operator on int8 tensors. What it computes in PyTorch is its reference, in float64."""
    QUANTIZED[function] = function.__name__
    return function


def lowers(target: Any) -> Callable[[LowerRule], LowerRule]:
    """Registers how a quantized node is written as DNA nodes."""

    def register(rule: LowerRule) -> LowerRule:
        LOWERINGS[target] = rule
        return rule

    return register


@dataclass
class Fold:
    """A quantize node and the operator that makes its input: what a rule of FOLDS works on."""

    gm: fx.GraphModule
    quantize: fx.Node
    core: fx.Node
    activations: tuple[fx.Node, ...]  # clamps between core and quantize
    y: QParams
    clamp: Clamp

    def evaluate(self, node: object) -> torch.Tensor | None:
        """The value of a node that depends on constants only, else None."""
        return evaluate(self.gm, node)

    def constant(self, tensor: torch.Tensor, hint: str) -> fx.Node:
        return add_constant(self.gm, tensor, hint)

    def emit(
        self, target: Callable[..., Any], *args: Any, val: Any = None, q: QParams | None = None, **kwargs: Any
    ) -> fx.Node:
        """A node that stands for core, its activations and the quantize; val: its fake value if not the quantize's; q:
        its quantization if not the quantize's."""
        node = call(self.gm, self.quantize, target, *args, val=val, **kwargs)
        node.meta.update({k: v for k, v in self.core.meta.items() if k in ("nn_module_stack", "stack_trace")})
        node.meta["q"] = self.y if q is None else q
        node.meta["origins"] = sum((origins(n) for n in (self.core, *self.activations)), ())
        return node

    def int8(self, sizes: tuple[int, ...] | list[int]) -> torch.Tensor:
        """A fake int8 value of that shape."""
        like: torch.Tensor = self.quantize.meta["val"]
        return like.new_empty(list(sizes), dtype=torch.int8)


def evaluate(gm: fx.GraphModule, node: object) -> torch.Tensor | None:
    """The value of a node that depends on constants only (q and dq included), else None."""
    if not isinstance(node, fx.Node):
        return None
    held = constant(gm, node)
    if held is not None:
        return held
    if node.op != "call_function" or not (node.target in DEQUANTIZE_OPS or node.target in QUANTIZE_OPS):
        return None
    args = [evaluate(gm, a) if isinstance(a, fx.Node) else a for a in args_of(node)]
    if any(a is None and isinstance(b, fx.Node) for a, b in zip(args, args_of(node), strict=True)):
        return None
    found: torch.Tensor = target_of(node)(*args, **kwargs_of(node))
    return found


def saturate(real: torch.Tensor, y: QParams, clamp: Clamp) -> torch.Tensor:
    """round(real / scale) + zero point, clamped: the last step of every reference. real: float64."""
    levels: torch.Tensor = torch.clamp(torch.round(real / y.scale) + y.zero_point, *clamp).to(torch.int8)
    return levels


def real(x: torch.Tensor, q: QParams) -> torch.Tensor:
    """scale * (x - zero point) in float64."""
    return (x.double() - q.zero_point) * q.scale
