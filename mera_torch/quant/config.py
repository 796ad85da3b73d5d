"""How a network is quantized: one frozen table of options, each with its range and meaning."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from torch.fx import Node

from mera_torch.errors import ConfigError, StorageError, nearest

from .options import Accepts, check, check_keys, documented, flag, integer, is_number, option, strings
from .rules import Rule, Settings, rule_list

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_WHERE = "quantization config"
_ALPHA = Accepts(
    'None (in TOML false), "auto" or a number 0 to 1',
    lambda value: value is None or value == "auto" or (is_number(value) and 0 <= value <= 1),
)


@dataclass(frozen=True)
class QuantConfig(Settings):
    """Options of :class:`MeraQuantizer`, :func:`mera_torch.quantize` and ``ModelQuantizer``.

    Every field's default, range and meaning: :meth:`describe`, which the documentation shows. The fields of
    :class:`~mera_torch.quant.rules.Settings` hold for every operator that no rule says otherwise of; the other ones for
    the whole network.

    Raises:
        ConfigError: a value is outside its range; the message names the field.
    """

    rules: tuple[Rule, ...] = option((), rule_list(), "settings for some operators alone; later rules win")
    exclude: tuple[str, ...] = option(
        (), strings(), "patterns of module paths that stay in float: short for rules with `dtype` float, before all"
    )
    equalize: bool = option(False, flag(), "bring the channels of a value to like ranges before calibration")
    smoothquant: None | float | Literal["auto"] = option(
        None,
        _ALPHA,
        "move outliers of activations into the weights that read them (SmoothQuant), by this strength; `auto` searches "
        "the one of least error, None does nothing",
    )
    hardswish: bool = option(False, flag(), "compute silu as hardswish")
    split_heads: bool = option(
        True, flag(), "quantize unlike values of a last concat (boxes and scores) each on its own scale, where safe"
    )
    correct_bias: bool = option(True, flag(), "take the mean error of each convolution out of its bias")
    adaround: bool = option(False, flag(), "choose layer by layer whether each weight is rounded up or down (AdaRound)")
    adaround_iterations: int = option(20, integer(1, 1_000_000), "sweeps over each layer's weights, at most")
    seed: int = option(0, integer(0, 2**63 - 1), "of whatever is drawn at random: the same seed, the same network")

    def __post_init__(self) -> None:
        if not isinstance(self.rules, (tuple, list)):
            raise ConfigError(f"{_WHERE}: rules must be a tuple of rules, got {self.rules!r}")
        rules = tuple(rule if isinstance(rule, Rule) else Rule.from_dict(rule) for rule in self.rules)
        object.__setattr__(self, "rules", rules)
        if self.smoothquant is False:
            object.__setattr__(self, "smoothquant", None)
        for each in fields(self):
            check(_WHERE, each, getattr(self, each.name))
        object.__setattr__(self, "exclude", tuple(self.exclude))
        _ = self.all_rules  # what `exclude` holds are patterns

    @property
    def all_rules(self) -> tuple[Rule, ...]:
        """The rules that `exclude` stands for, then `rules`."""
        return (*(Rule(module=pattern, dtype="float") for pattern in self.exclude), *self.rules)

    def keeps_apart(self, node: Node, other: Node) -> bool:
        """Whether operator `node` must not become a part of `other` (or of another class, if that is itself): a rule is
        about its class, or its name, or rules for modules let the two compute in different types."""
        for rule in self.rules:
            if (rule.op or (rule.node and node is not other)) and rule.matches(node):
                return True
        return self._dtype_of_module(node) != self._dtype_of_module(other)

    def _dtype_of_module(self, node: Node) -> str:
        rules = [rule for rule in self.all_rules if rule.dtype and not rule.op and not rule.node]
        return next((rule.dtype for rule in reversed(rules) if rule.dtype and rule.matches(node)), self.dtype)

    @classmethod
    def preset(cls, name: str) -> QuantConfig:
        """A configuration by its name: see :mod:`mera_torch.quant.presets`.

        Raises:
            ConfigError: there is none of that name; the nearest is named.
        """
        from .presets import PRESETS

        known = {preset.lower(): held for preset, held in PRESETS.items()}
        if not isinstance(name, str) or name.lower() not in known:
            raise ConfigError(f"{_WHERE}: unknown preset {name!r}; {nearest(str(name), PRESETS)}")
        return cls(**known[name.lower()].options)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> QuantConfig:
        """The configuration with the given options, defaults elsewhere; ``preset`` names other defaults.

        Raises:
            ConfigError: an unknown key (the nearest known one is named) or a value outside its range.
        """
        given = dict(options)
        names = [each.name for each in fields(cls)]
        check_keys(_WHERE, given, [*names, "preset"])
        start = cls.preset(given.pop("preset")).to_dict() if "preset" in given else {}
        return cls(**{**start, **given})

    @classmethod
    def from_toml(cls, path: str | Path) -> QuantConfig:
        """The configuration that a TOML file states; its keys are the fields, ``[[rules]]`` one table a rule.

        Raises:
            ConfigError: no TOML, an unknown key or a value outside its range; the message names the file.
            StorageError: the file cannot be read.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise StorageError(f"{_WHERE}: {str(path)!r} cannot be read: {why}") from error
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{str(path)!r} is not TOML: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"{str(path)!r}: {error}") from error

    @classmethod
    def of(cls, config: QuantConfig | Mapping[str, Any] | str | Path | None) -> QuantConfig:
        """`config` itself; or made from a mapping, a TOML file's path (.toml), a preset's name, or None (defaults)."""
        if config is None:
            return cls()
        if isinstance(config, QuantConfig):
            return config
        if isinstance(config, Mapping):
            return cls.from_dict(config)
        if isinstance(config, Path) or (isinstance(config, str) and config.endswith(".toml")):
            return cls.from_toml(config)
        if isinstance(config, str):
            return cls.preset(config)
        raise ConfigError(
            f"{_WHERE} must be a QuantConfig, a dict, a preset's name, a TOML file or None, got {type(config).__name__}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON holds it; ``from_dict`` makes the same configuration of it."""
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**held, "rules": [rule.to_dict() for rule in self.rules], "exclude": list(self.exclude)}

    def to_toml(self) -> str:
        """Every field as TOML (None, which TOML lacks, is left out); ``from_toml`` makes the same configuration."""
        held = self.to_dict()
        rules = held.pop("rules")
        lines = _assignments(held)
        for rule in rules:
            lines += ["", "[[rules]]", *_assignments(rule)]
        return "\n".join(lines) + "\n"

    @classmethod
    def describe(cls) -> str:
        """Every field as a row of a Markdown table: name, default, values, meaning."""
        rows = ["| field | default | values | meaning |", "|---|---|---|---|"]
        rows += ["| `{}` | `{}` | {} | {} |".format(*row) for row in documented(fields(cls))]
        return "\n".join(rows) + "\n"


def meaning(name: str) -> str:
    """What the field `name` means and which values it takes: the command line's help."""
    ((_, _, values, text),) = documented(each for each in fields(QuantConfig) if each.name == name)
    return f"{text[0].upper()}{text[1:]}: {values}."


def _assignments(held: Mapping[str, Any]) -> list[str]:
    # JSON's strings, numbers, booleans and lists of strings are TOML's, too.
    return [
        f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
        for key, value in held.items()
        if value is not None
    ]
