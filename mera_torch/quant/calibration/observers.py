"""What watches tensors during calibration and turns what it saw into scale and zero point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import ObserverBase

from mera_torch.errors import CalibrationError

from ..graphs.patterns import attribute, find_constants
from .ranges import LEVELS, SMALLEST_SCALE, Range, find_range, grid
from .statistics import Statistics, joined

# A bias is kept within 2^30 steps, which leaves as much of the int32 accumulator to the products.
BIAS_LIMIT = 2.0**30
_CLIPPING = np.linspace(1.0, 0.2, 81)  # fractions of a channel's extremes that weights may be clipped to


class _NamedObserver(ObserverBase):  # type: ignore[misc]  # torchao has no type hints
    """An observer that knows what it observes, for its messages."""

    where = "a tensor"
    named = False

    def name(self, where: str) -> None:
        self.where, self.named = where, True

    def _never_seen(self) -> CalibrationError:
        return CalibrationError(
            f"{self.where} was never seen: run the prepared model on calibration data, so that every node runs, before "
            "converting it"
        )


class ActivationObserver(_NamedObserver):
    """Collects the statistics of one value; int8, per tensor, zero always representable.

    Args:
        kind: Which range is taken of them: ``QuantConfig.activation_observer``.
        bins, averaging_constant, percentile: As in ``QuantConfig``.
        symmetric: The zero point is 0.
        fixed: (scale, zero point), whatever is seen.

    Attributes:
        value: Name of the node whose result is observed.
        group: The observers of all values that have this one's quantization, itself among them; the range is that of
            what all of them saw.

    Raises:
        CalibrationError: the tensor holds NaN or infinity; the message says where.
    """

    def __init__(
        self, kind: str = "auto", bins: int = 2048, averaging_constant: float = 0.01, percentile: float = 99.99,
        symmetric: bool = False, fixed: tuple[float, int] | None = None, dtype: torch.dtype = torch.int8, **_: Any,
    ) -> None:  # fmt: skip
        super().__init__(dtype=dtype)
        self.quant_min, self.quant_max = LEVELS
        self.qscheme = torch.per_tensor_affine
        self.kind, self.percentile, self.symmetric, self.fixed = kind, percentile, symmetric, fixed
        self.bins, self.averaging_constant = bins, averaging_constant
        self.statistics = Statistics(bins, averaging_constant)
        self.value = ""
        self.group = [self]
        self._found: tuple[tuple[int, ...], Range] | None = None  # of the group, in its first observer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            self.statistics.update(x)
        except CalibrationError as error:
            raise CalibrationError(
                f"calibration batch {self.statistics.batches + 1}: {self.where} {error}; "
                "check the calibration data and the model's weights"
            ) from None
        return x

    def twin(self) -> ActivationObserver:
        """Another one, of the same group, for another value."""
        made = ActivationObserver(
            self.kind, self.bins, self.averaging_constant, self.percentile, self.symmetric, self.fixed
        )
        made.group = self.group
        self.group.append(made)
        return made

    def range(self) -> Range:
        """The (lowest, highest) real value that int8 shall represent; lowest <= 0 <= highest."""
        for each in self.group:
            if not each.statistics.batches:
                raise each._never_seen()
        leader = self.group[0]
        if leader._found is None or leader._found[0] != self._seen():
            total = joined([each.statistics for each in self.group])
            self.settle(find_range(total, self.kind, percentile=self.percentile, symmetric=self.symmetric))
        return leader._found[1]  # type: ignore[index]  # settled above

    def settle(self, found: Range) -> None:
        """Makes `found` the group's range, until more is seen."""
        self.group[0]._found = self._seen(), found

    def _seen(self) -> tuple[int, ...]:
        return tuple(each.statistics.elements for each in self.group)

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        scale, zero_point = self.fixed or affine(*self.range(), symmetric=self.symmetric)
        return torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int64)


class WeightObserver(_NamedObserver):
    """int8 weights, per channel of dimension `axis` or per tensor.

    Args:
        qscheme: Symmetric, -127 to 127 with zero point 0; or affine, -128 to 127 with any.
        kind: ``QuantConfig.weight_observer``: ``"minmax"`` or ``"mse"``.

    `bounds` (an activation's observer, the bias) keeps the derived bias scale so large that the bias fits in int32: a
    channel whose weights are all but zero would otherwise saturate its bias.
    """

    def __init__(
        self, dtype: torch.dtype = torch.int8, quant_min: int = -127, quant_max: int = 127,
        qscheme: torch.qscheme = torch.per_channel_symmetric, axis: int = 0, kind: str = "minmax", **_: Any,
    ) -> None:  # fmt: skip
        super().__init__(dtype=dtype)
        self.quant_min, self.quant_max = quant_min, quant_max
        self.qscheme, self.ch_axis, self.kind = qscheme, axis, kind
        self.per_channel = qscheme in (torch.per_channel_symmetric, torch.per_channel_affine)
        self.symmetric = qscheme in (torch.per_channel_symmetric, torch.per_tensor_symmetric)
        self._seen: tuple[int, int] | None = None
        self.bounds: tuple[ObserverBase, torch.Tensor] | None = None
        self.low, self.high = torch.zeros(0), torch.zeros(0)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        seen = (weight.data_ptr(), weight._version)
        if self._seen == seen:  # a constant weight is measured once, not at each batch
            return weight
        w = weight.detach()
        rows = w.movedim(self.ch_axis, 0).flatten(1) if self.per_channel else w.reshape(1, -1)
        low, high = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)
        if not torch.isfinite(high - low).all():
            raise CalibrationError(f"{self.where} holds NaN or infinity")
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        clip = least_error_clip(rows, low, high, self.symmetric) if self.kind == "mse" else 1.0
        self._seen, self.low, self.high = seen, low * clip, high * clip
        return weight

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.low.numel():
            raise self._never_seen()
        steps = self.quant_max if self.symmetric else self.quant_max - self.quant_min
        scale = ((self.high if self.symmetric else self.high - self.low) / steps).clamp_min(SMALLEST_SCALE)
        if self.bounds is not None:
            activation, bias = self.bounds
            floor = bias.detach().abs() / (float(activation.calculate_qparams()[0]) * BIAS_LIMIT)
            scale = torch.maximum(scale, floor if self.per_channel else floor.max())
        if self.symmetric:
            return scale, torch.zeros_like(scale, dtype=torch.int64)
        zero_point = (self.quant_min - self.low / scale).round().clamp(self.quant_min, self.quant_max)
        return scale, zero_point.to(torch.int64)


def least_error_clip(rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor, symmetric: bool = True) -> torch.Tensor:
    """float32 [C]: to which fraction of its range [low, high] each row of float32 [C, K] is clipped for the least
    squared error of int8."""
    first, last = (-LEVELS[1], LEVELS[1]) if symmetric else LEVELS
    best, clip = torch.full_like(high, torch.inf), torch.ones_like(high)
    for fraction in _CLIPPING.tolist():
        span = (high if symmetric else high - low) * fraction
        scale = (span / (last if symmetric else last - first)).clamp_min(SMALLEST_SCALE)[:, None]
        zero = 0.0 if symmetric else (first - low[:, None] * fraction / scale).round_()
        q = (rows / scale).add_(zero).round_().clamp_(first, last).sub_(zero).mul_(scale)
        error = q.sub_(rows).square_().sum(1)
        better = error < best
        best, clip = torch.where(better, error, best), torch.where(better, fraction, clip)
    return clip


def affine(low: float, high: float, symmetric: bool = False) -> tuple[float, int]:
    """Scale and zero point of the int8 grid over [low, high], which must contain 0; 0.0 is represented exactly."""
    scale, zero_point = grid(np.array([low]), np.array([high]), symmetric)
    return float(scale[0]), int(zero_point[0])


def bias_qparams(observers: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale s_x * s_w[c] and zero point 0 of a bias, from the observers of its convolution's input and weight."""
    activation, weight = observers
    scale = activation.calculate_qparams()[0] * weight.calculate_qparams()[0]
    return scale, torch.zeros_like(scale, dtype=torch.int64)


def collected(prepared: GraphModule) -> dict[str, Statistics]:
    """The collectors of a module from ``prepare_pt2e`` with ``MeraQuantizer``, by the name of the observed node."""
    return {observer.value: observer.statistics for observer in _observers(prepared)}


def restore(prepared: GraphModule, held: Mapping[str, Statistics]) -> list[str]:
    """Gives the observers of `prepared` (copies of) the statistics collected earlier, by the name of the observed node,
    and shows the weights to theirs: what was calibrated can be converted, or calibrated further.

    They must come from the same float network, with the same histogram_bins and averaging_constant; how ranges are
    taken of them, and which operators are quantized, may differ.

    Returns:
        The names of observed nodes without statistics in `held`; those must be calibrated.

    Raises:
        CalibrationError: the statistics are of other histogram_bins or another averaging_constant.
    """
    missing = []
    for observer in _observers(prepared):
        fresh = Statistics(observer.bins, observer.averaging_constant)
        if observer.value in held:
            fresh.merge(held[observer.value])
        else:
            missing.append(observer.value)
        observer.statistics, observer.group[0]._found = fresh, None
    _show_weights(prepared)
    return missing


def _observers(prepared: GraphModule) -> list[ActivationObserver]:
    found = {}
    for node in prepared.graph.nodes:
        if node.op == "call_module":
            module = prepared.get_submodule(str(node.target))
            if isinstance(module, ActivationObserver):
                found[id(module)] = module
    return list(found.values())


def _show_weights(prepared: GraphModule) -> None:
    constants = find_constants(prepared.graph)
    values: dict[Node, Any] = {}

    def value(node: Node) -> Any:
        if node not in values:
            if node.op == "get_attr":
                values[node] = attribute(prepared, str(node.target))
            else:
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), value)
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return values[node]

    with torch.no_grad():
        for node in prepared.graph.nodes:
            if node.op != "call_module" or node.args[0] not in constants:
                continue
            module = prepared.get_submodule(str(node.target))
            if isinstance(module, WeightObserver):
                module(value(node.args[0]))
