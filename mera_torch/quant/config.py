"""How a network is quantized: one frozen table of options, each with its range and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from mera_torch.errors import ConfigError, nearest

ActivationObserver = Literal["histogram", "minmax", "moving_average"]


@dataclass(frozen=True)
class QuantConfig:
    """Options of :class:`MeraQuantizer` and :func:`mera_torch.quantize`.

    Attributes:
        activation_observer: How the range of an activation is found. ``"histogram"`` (default) clips where the mean
            squared error is least, ``"minmax"`` takes the extremes seen, ``"moving_average"`` an average of each
            batch's extremes. QAT always uses the moving average.
        histogram_bins: Bins on each side of zero for ``"histogram"``; 128 to 65536, default 2048.
        averaging_constant: Weight of the newest batch in a moving average; above 0, at most 1, default 0.01.
        per_channel_weights: One weight scale per output channel (default), or one per tensor.
        fixed_ranges: Give sigmoid and hardsigmoid the range [0, 1] and tanh [-1, 1] whatever was seen; default True.
        equalize: Equalize the ranges of consecutive convolutions' channels before calibration (see
            :func:`mera_torch.quant.equalize.equalize`); default False. Used by ``quantize`` only.
        correct_bias: Take the mean error of quantized weights out of each bias, measured on the calibration data (see
            :func:`mera_torch.quant.correct_bias.correct_bias`); default True. Used by ``quantize`` only.
        exclude: Patterns (as in :mod:`fnmatch`) of module paths, such as ``"head.*"``, whose operators stay in float.

    Raises:
        ConfigError: a value is outside its range; the message names the field.
    """

    activation_observer: ActivationObserver = "histogram"
    histogram_bins: int = 2048
    averaging_constant: float = 0.01
    per_channel_weights: bool = True
    fixed_ranges: bool = True
    equalize: bool = False
    correct_bias: bool = True
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        observers = get_args(ActivationObserver)
        _require(self.activation_observer in observers, "activation_observer", f"one of {', '.join(observers)}", self)
        _require(
            _is_int(self.histogram_bins) and 128 <= self.histogram_bins <= 65536,
            "histogram_bins",
            "an integer from 128 to 65536",
            self,
        )
        number = isinstance(self.averaging_constant, (int, float)) and not isinstance(self.averaging_constant, bool)
        _require(
            number and 0 < self.averaging_constant <= 1, "averaging_constant", "a number above 0 and at most 1", self
        )
        for name in ("per_channel_weights", "fixed_ranges", "equalize", "correct_bias"):
            _require(isinstance(getattr(self, name), bool), name, "True or False", self)
        patterns = isinstance(self.exclude, (tuple, list)) and all(isinstance(p, str) for p in self.exclude)
        _require(patterns, "exclude", "a tuple of strings", self)
        object.__setattr__(self, "exclude", tuple(self.exclude))

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> QuantConfig:
        """The configuration with the given options, defaults elsewhere.

        Raises:
            ConfigError: an unknown key (the nearest known one is named) or a value outside its range.
        """
        known = [f.name for f in fields(cls)]
        for key in options:
            if key not in known:
                raise ConfigError(f"quantization config: unknown key {key!r}; {nearest(str(key), known)}")
        return cls(**options)

    @classmethod
    def of(cls, config: QuantConfig | Mapping[str, Any] | None) -> QuantConfig:
        """`config` itself, made from a mapping, or the defaults for None."""
        if config is None:
            return cls()
        if isinstance(config, QuantConfig):
            return config
        if isinstance(config, Mapping):
            return cls.from_dict(config)
        raise ConfigError(f"quantization config must be a QuantConfig, a dict or None, got {type(config).__name__}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, field: str, range_: str, config: QuantConfig) -> None:
    if not condition:
        raise ConfigError(f"quantization config: {field} must be {range_}, got {getattr(config, field)!r}")
