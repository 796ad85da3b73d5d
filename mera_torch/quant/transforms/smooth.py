"""SmoothQuant: outlier channels of activations are moved into the weights that read them.

What a linear reads is divided, channel by channel, by d[c], and column c of its weight multiplied by it: the product is
the same, but the activation's one int8 scale no longer serves a few large channels alone (Xiao et al., arXiv
2211.10438, equation 4: d[c] = max|x[c]| ** alpha / max|w[c]| ** (1 - alpha)). The division is absorbed by what made the
value: the norm's weight and bias, a linear's rows (see :mod:`mera_torch.quant.transforms.absorb`); or, where
others read that value, too, and it is computed in float, by a product in float.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..config import QuantConfig
from ..findings import Finding
from ..graphs import operators as ops
from ..graphs.canonicalize import products_to_linear, remove_dropout
from ..graphs.parameters import own_parameter, replace_parameter
from ..graphs.patterns import constant_of, value_of
from ..graphs.run import Inputs, run_batch
from . import absorb
from .analysis import as_quantized
from .fake import fake_activation, fake_weight, sqnr_db
from .host_side import free_sums, spread_outputs

ALPHAS = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""What "auto" tries for each value, besides leaving it as it is."""
_ROWS = 512  # of a value, kept to measure the error with
_LEAST_GAIN_DB, _WORTH_AN_OPERATOR_DB = 0.5, 3.0
_SMALLEST = 1e-5


@dataclass
class _Group:
    """Linears that read one value."""

    value: Node
    linears: list[Node]
    changes: list[absorb.Change]
    seen: tuple[torch.Tensor, torch.Tensor] | None = None  # lowest and highest of each channel over all data, [C]
    rows: list[torch.Tensor] = field(default_factory=list)  # samples of the value, [n, C] each

    def observe(self, value: torch.Tensor, batches: int) -> None:
        rows = value.reshape(-1, value.shape[-1])
        low, high = self.seen or (rows[0], rows[0])
        self.seen = torch.minimum(low, rows.amin(0)), torch.maximum(high, rows.amax(0))
        share = max(1, _ROWS // batches)
        self.rows.append(rows[:: max(1, len(rows) // share)][:share].clone())

    @property
    def magnitudes(self) -> torch.Tensor:
        """float32 [C], the largest magnitude seen in each channel."""
        low, high = self.extremes
        return torch.maximum(low.abs(), high.abs())

    @property
    def extremes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [C] each: the lowest and the highest value seen in each channel; zeros if nothing was seen."""
        value = value_of(self.value)
        nothing = torch.zeros(1 if value is None else value.shape[-1])
        return self.seen or (nothing, nothing)


def smooth(model: GraphModule, batches: Sequence[Inputs], config: QuantConfig, progress: Any) -> list[Finding]:
    """Smooths what int8 linears read, in place; the function stays the same but for float rounding.

    Args:
        model: Exported in evaluation mode and recognized.
        batches: Inputs, to measure ranges and errors with.
        config: `smoothquant` is the strength alpha, 0 to 1, for all; or "auto": for each value that of ALPHAS with the
            least squared error of the linears' outputs, value and weights quantized, or none. Where it takes a product
            in float, only if that is worth 3 dB.

    Returns:
        A finding for each value that was smoothed, with the outputs' signal to noise ratio before and after.
    """
    remove_dropout(model)
    products_to_linear(model)
    freed = free_sums(model, config)
    groups = _groups(model, config)
    by_value = {group.value: group for group in groups}

    def observe(node: Node, value: Any) -> None:
        if node in by_value:
            by_value[node].observe(value, len(batches))

    for inputs in batches if groups else ():
        run_batch(model, inputs, observe)
    findings = freed + [finding for group in groups if (finding := _smooth(model, group, config)) is not None]
    findings += spread_outputs(model, batches, config)
    model.graph.lint()
    model.recompile()
    return findings


def _groups(model: GraphModule, config: QuantConfig) -> list[_Group]:
    """The values that int8 linears read and that can be divided."""
    found = as_quantized(model, config)[1].found
    in_int8 = {node.name for op in found for node in op.nodes}
    absorber = absorb.Absorber(model, lambda node: node.name not in in_int8)
    readers: dict[Node, list[Node]] = {}
    for node in model.graph.nodes:
        if node.op == "call_function" and node.target in ops.LINEAR and node.name in in_int8:
            x, weight = node.args[:2]
            if isinstance(x, Node) and isinstance(weight, Node) and weight.op == "get_attr":
                readers.setdefault(x, []).append(node)
    groups = []
    for value, linears in readers.items():
        changes = absorber.absorb(value, frozenset(linears))
        if changes is not None:
            groups.append(_Group(value, linears, changes))
    return groups


def _smooth(model: GraphModule, group: _Group, config: QuantConfig) -> Finding | None:
    if not group.rows or not float(group.magnitudes.max()):
        return None
    weights = [constant_of(model, linear.args[1]) for linear in group.linears]
    x, per_channel = torch.cat(group.rows), config.per_channel_weights
    before = _quality(group, x, weights, torch.ones(x.shape[1]), per_channel)
    alphas = ALPHAS if config.smoothquant == "auto" else (float(config.smoothquant or 0.0),)
    tried = {a: _quality(group, x, weights, factors(group.magnitudes, weights, a), per_channel) for a in alphas}
    best = max(tried, key=lambda alpha: tried[alpha])
    inserts = any(isinstance(change, absorb.Inserted) for change in group.changes)
    wanted = _WORTH_AN_OPERATOR_DB if inserts else _LEAST_GAIN_DB if config.smoothquant == "auto" else -math.inf
    if tried[best] - before < wanted:
        return None
    divisor = factors(group.magnitudes, weights, best)
    absorb.apply(model, group.changes, divisor)
    for linear, weight in zip(group.linears, weights, strict=True):
        replace_parameter(model, own_parameter(model, linear, 1), weight * divisor)
    ratio = float(group.magnitudes.max() / group.magnitudes.median().clamp_min(1e-30))
    said = (
        f"alpha {best:g}: outliers of {ratio:.0f} times the median channel moved into {len(weights)} "
        f"weight{'s'[: len(weights) != 1]}, {before:.1f} -> {tried[best]:.1f} dB at their outputs"
    )
    return Finding.at(group.linears[0], "smoothquant", "note", said, fixed=True)


def factors(magnitudes: torch.Tensor, weights: Sequence[torch.Tensor], alpha: float) -> torch.Tensor:
    """float32 [C]: what to divide the channels by. Channels that nothing is seen in, or that no weight reads, keep 1.

    magnitudes: [C], the largest of each channel; weights: [Co, C] each.
    """
    largest = torch.stack([w.abs().amax(0) for w in weights]).amax(0).double()
    seen = magnitudes.double()
    found = seen**alpha / largest.clamp_min(_SMALLEST) ** (1 - alpha)
    usable = (seen > _SMALLEST) & (largest > _SMALLEST)
    return torch.where(usable, found.clamp_min(_SMALLEST), 1.0).float()


def _quality(
    group: _Group, x: torch.Tensor, weights: Sequence[torch.Tensor], divisor: torch.Tensor, per_channel: bool
) -> float:  # fmt: skip
    """Signal to noise ratio, in dB, of all the linears' outputs with x / divisor and weights * divisor in int8."""
    low, high = group.extremes
    bounds = min(0.0, float((low / divisor).min())), max(0.0, float((high / divisor).max()))
    scaled = fake_activation(x / divisor, bounds)
    wanted = torch.cat([x @ w.t() for w in weights], 1)
    found = torch.cat([scaled @ fake_weight(w * divisor, per_channel).t() for w in weights], 1)
    return sqnr_db(wanted, found)
