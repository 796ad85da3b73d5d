"""What watches tensors during calibration and turns what it saw into scale and zero point."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torchao.quantization.pt2e import ObserverBase

from mera_torch.errors import CalibrationError

# A bias is kept within 2^30 steps, which leaves as much of the int32 accumulator to the products.
BIAS_LIMIT = 2.0**30
_SMALLEST_SCALE = torch.finfo(torch.float32).eps
_CANDIDATES = 100  # clipping thresholds tried on each side
_SEARCH_ROUNDS = 2
_SAMPLE = 1 << 18  # elements of one tensor that go into a histogram; its extremes are exact whatever its size


class _NamedObserver(ObserverBase):  # type: ignore[misc]  # torchao has no type hints
    """An observer that knows what it observes, for its messages."""

    where = "a tensor"
    named = False

    def name(self, where: str) -> None:
        self.where, self.named = where, True


class ActivationObserver(_NamedObserver):
    """Base: the exact extremes of a tensor over the whole calibration, int8, affine, per tensor, zero always
    representable.

    Raises:
        CalibrationError: the tensor holds NaN or infinity; the message says where.
    """

    def __init__(self, dtype: torch.dtype = torch.int8, quant_min: int = -128, quant_max: int = 127, **_: Any) -> None:
        super().__init__(dtype=dtype)
        self.quant_min, self.quant_max = quant_min, quant_max
        self.qscheme = torch.per_tensor_affine
        self.low = 0.0
        self.high = 0.0
        self.batches = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel():
            low, high = (float(v) for v in torch.aminmax(x.detach()))
            if not (abs(low) < float("inf") and abs(high) < float("inf")):
                kind = "NaN" if torch.isnan(x).any() else "infinity"
                raise CalibrationError(
                    f"calibration batch {self.batches + 1}: {self.where} holds {kind}; "
                    "check the calibration data and the model's weights"
                )
            self.observe(x.detach(), low, high)
            self.batches += 1
        return x

    def observe(self, x: torch.Tensor, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self) -> tuple[float, float]:
        """The (lowest, highest) real value that int8 shall represent; lowest <= 0 <= highest."""
        return self.low, self.high

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.batches:
            raise CalibrationError(
                f"{self.where} was never seen: run the prepared model on calibration data before converting it"
            )
        scale, zero_point = affine(*self.range(), self.quant_min, self.quant_max)
        return torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int64)


class MinMaxObserver(ActivationObserver):
    """The extremes seen."""


class MovingAverageObserver(ActivationObserver):
    """An exponential average of each batch's extremes."""

    def __init__(self, averaging_constant: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.averaging_constant = averaging_constant

    def observe(self, x: torch.Tensor, low: float, high: float) -> None:
        step = self.averaging_constant if self.batches else 1.0
        self.low += step * (min(low, 0.0) - self.low)
        self.high += step * (max(high, 0.0) - self.high)


class HistogramObserver(ActivationObserver):
    """A histogram centred on zero, from which the range of least mean squared error is searched.

    Bins have equal width; when a value falls outside, the width doubles by merging neighbours, so that no count is ever
    guessed.
    """

    def __init__(self, bins: int = 2048, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins = bins  # on each side of zero
        self.width = 0.0
        self.register_buffer("counts", torch.zeros(2 * bins, dtype=torch.float64), persistent=False)

    counts: torch.Tensor

    def observe(self, x: torch.Tensor, low: float, high: float) -> None:
        super().observe(x, low, high)
        largest = max(-low, high)
        if largest == 0.0:
            return
        if self.width == 0.0:
            self.width = largest / self.bins
        while largest > self.width * self.bins:
            merged = self.counts.view(-1, 2).sum(1)
            self.counts.zero_()
            self.counts[self.bins // 2 : self.bins // 2 + self.bins] = merged
            self.width *= 2
        flat = x.reshape(-1)
        # An odd stride does not fall in step with the even row lengths of images.
        flat = flat[:: (flat.numel() // _SAMPLE) | 1] if flat.numel() > _SAMPLE else flat
        reach = self.width * self.bins
        self.counts += torch.histc(flat.float(), 2 * self.bins, -reach, reach).double()

    def range(self) -> tuple[float, float]:
        if self.width == 0.0:
            return self.low, self.high
        # numpy: arrays this small gain nothing from torch's threads.
        counts = self.counts.numpy(force=True)
        used = counts.nonzero()[0]
        centres, counts = (used - self.bins + 0.5) * self.width, counts[used]
        fractions = np.linspace(1.0 / _CANDIDATES, 1.0, _CANDIDATES)
        low, high = self.low, self.high
        for _ in range(_SEARCH_ROUNDS):
            if self.high > 0:
                high = self._best(centres, counts, np.full(_CANDIDATES, low), fractions * self.high)[1]
            if self.low < 0:
                low = self._best(centres, counts, fractions * self.low, np.full(_CANDIDATES, high))[0]
        return low, high

    def _best(self, x: np.ndarray, counts: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
        """Which of the ranges [low, high] gives the values `x`, seen `counts` times, the least squared error."""
        scale = np.maximum((high - low) / (self.quant_max - self.quant_min), _SMALLEST_SCALE)[:, None]
        zero = np.rint(self.quant_min - low[:, None] / scale)
        q = np.clip(np.rint(x / scale + zero), self.quant_min, self.quant_max)
        best = int((((q - zero) * scale - x) ** 2 * counts).sum(1).argmin())
        return float(low[best]), float(high[best])


class WeightObserver(_NamedObserver):
    """int8 symmetric weights: scale = largest magnitude / 127, per channel of dimension `axis` or per tensor.

    `bounds` (an activation's observer, the bias) keeps the derived bias scale so large that the bias fits in int32: a
    channel whose weights are all but zero would otherwise saturate its bias.
    """

    def __init__(
        self, dtype: torch.dtype = torch.int8, quant_min: int = -127, quant_max: int = 127,
        qscheme: torch.qscheme = torch.per_channel_symmetric, axis: int = 0, **_: Any,
    ) -> None:  # fmt: skip
        super().__init__(dtype=dtype)
        self.quant_min, self.quant_max = quant_min, quant_max
        self.qscheme, self.ch_axis = qscheme, axis
        self.per_channel = qscheme == torch.per_channel_symmetric
        self._seen: tuple[int, int] | None = None
        self.bounds: tuple[ObserverBase, torch.Tensor] | None = None
        self.register_buffer("largest", torch.zeros(0), persistent=False)

    largest: torch.Tensor

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        seen = (weight.data_ptr(), weight._version)
        if self._seen == seen:  # a constant weight is measured once, not at each batch
            return weight
        self._seen, w = seen, weight.detach()
        others = tuple(d for d in range(w.dim()) if d != self.ch_axis)
        self.largest = w.abs().amax(dim=others) if self.per_channel else w.abs().amax()[None]
        if not torch.isfinite(self.largest).all():
            raise CalibrationError(f"{self.where} holds NaN or infinity")
        return weight

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.largest.numel():
            raise CalibrationError(
                f"{self.where} was never seen: run the prepared model on calibration data before converting it"
            )
        scale = (self.largest / self.quant_max).clamp_min(_SMALLEST_SCALE)
        if self.bounds is not None:
            activation, bias = self.bounds
            floor = bias.detach().abs() / (float(activation.calculate_qparams()[0]) * BIAS_LIMIT)
            scale = torch.maximum(scale, floor if self.per_channel else floor.max())
        return scale, torch.zeros_like(scale, dtype=torch.int64)


def affine(low: float, high: float, quant_min: int = -128, quant_max: int = 127) -> tuple[float, int]:
    """Scale and zero point of the affine int8 grid over [low, high], which must contain 0; 0.0 is represented
    exactly."""
    scale = max((high - low) / (quant_max - quant_min), _SMALLEST_SCALE)
    zero_point = round(quant_min - low / scale)
    return scale, min(max(zero_point, quant_min), quant_max)


def bias_qparams(observers: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale s_x * s_w[c] and zero point 0 of a bias, from the observers of its convolution's input and weight."""
    activation, weight = observers
    scale = activation.calculate_qparams()[0] * weight.calculate_qparams()[0]
    return scale, torch.zeros_like(scale, dtype=torch.int64)
