"""Which operators cost a network its accuracy in int8.

The network is calibrated once. Then one operator at a time changes its precision, in the network that came of it, and
only what differs from the network without the change is computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from mera_torch.errors import ConfigError, nearest

from .. import pipeline
from ..calibration.calibrate import ProgressOption, bar
from ..calibration.data import as_inputs
from ..config import QuantConfig
from .criteria import Criterion, TaskMetric, criterion
from .evaluate import Evaluator
from .variants import Choice, Variants, all_int8

MODES = {
    "only": "only this operator in int8: its weights and its result are rounded, nothing else is",
    "leave": "all in int8 but this operator",
}
FLOATS = ("float", "bf16")


@dataclass(frozen=True)
class Row:
    """One operator.

    Attributes:
        choice: The operator, with what moves with it.
        score: Of the network in which its precision was changed.
        effect: By how much that score is worse than `Sensitivity.base` (mode "only"), or better (mode "leave"); the
            greater, the more sensitive. Infinite where the base has no error at all.
    """

    choice: Choice
    score: float
    effect: float

    def to_dict(self) -> dict[str, Any]:
        """In types that JSON has; null is infinite."""
        held = {"node": self.choice.name, "op": self.choice.op, "module": self.choice.module}
        return {**held, "nodes": list(self.choice.nodes), "score": finite(self.score), "effect": finite(self.effect)}


@dataclass
class Sensitivity:
    """Operators, the most sensitive first; among equals the first in the graph.

    Attributes:
        rows: One an operator.
        criterion: What the scores are.
        mode: What was changed, see MODES.
        dtype: What the operators compute in where they are not in int8.
        base: The score of the network without any change: all in `dtype` for mode "only", all in int8 for "leave".
        quantized: The score of the network in int8.
        batches: How many batches of data the scores are of.
    """

    rows: list[Row]
    criterion: Criterion
    mode: str
    dtype: str
    base: float
    quantized: float
    batches: int

    def to_dict(self) -> dict[str, Any]:
        """In types that JSON has; null is infinite."""
        return {
            "metric": self.criterion.name, "unit": self.criterion.unit,
            "higher_is_better": self.criterion.higher_is_better, "mode": self.mode, "dtype": self.dtype,
            "base": finite(self.base), "quantized": finite(self.quantized), "batches": self.batches,
            "rows": [row.to_dict() for row in self.rows],
        }  # fmt: skip

    def summary(self) -> str:
        """One line."""
        one = self.criterion
        return f"{MODES[self.mode]}; all in int8: {one.text(self.quantized)}; {self.batches} batches"

    def __rich__(self) -> Any:
        """The table for rich.print."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, title=f"Sensitivity: {self.summary()}", title_justify="left")
        unit = f"{self.criterion.name}, {self.criterion.unit}".rstrip(", ")
        for name, side in (("", "right"), ("node", "left"), ("operator", "left"), ("module", "left"), (unit, "right")):
            table.add_column(name, justify=side)  # type: ignore[arg-type]
        for place, row in enumerate(self.rows, 1):
            cells = (str(place), row.choice.name, row.choice.op, row.choice.module, self.criterion.figure(row.score))
            table.add_row(*map(Text, cells))
        return table


def sensitivity(
    model: torch.nn.Module,
    example_inputs: Any,
    data: Iterable[Any],
    config: QuantConfig | Mapping[str, Any] | str | None = None,
    *,
    calibration: Iterable[Any] | None = None,
    metric: str | TaskMetric = "sqnr",
    candidates: Sequence[str] | None = None,
    mode: str = "only",
    dtype: str = "float",
    progress: ProgressOption = True,
) -> Sensitivity:
    """Ranks the operators of a float network by what int8 does to them.

    Args:
        model, example_inputs, config: As of :func:`mera_torch.quantize`. Operators to which `config` gives another
            dtype than int8 keep it, and are not ranked.
        data: Inputs like the examples; 4 to 32 suffice.
        calibration: What the network is calibrated on; None: `data`.
        metric: "sqnr", "top1" (agreement with float), "kl", or a function of the list of outputs, one item a batch,
            whose result is the greater the better: see :mod:`mera_torch.quant.mixed.criteria`.
        candidates: Patterns (:mod:`fnmatch`) of node names, module paths or operator classes; None: all operators.
        mode: "only": one operator in int8, all else in `dtype`; "leave": one operator in `dtype`, all else in int8.
        dtype: "float" or "bf16".
        progress: As of :func:`mera_torch.quantize`.

    Raises:
        ConfigError: an unknown metric, mode or dtype, or a pattern that matches no operator (the nearest is named).
        CalibrationError, InvalidModelError, UnsupportedError: as of :func:`mera_torch.quantize`.
    """
    measured = criterion(metric)
    check_dtype(dtype)
    if mode not in MODES:
        raise ConfigError(f"unknown sensitivity mode {mode!r}; {nearest(str(mode), MODES)}")
    options = QuantConfig.of(config)
    examples = as_inputs(example_inputs)
    seen = data if calibration is None else calibration
    quantization = pipeline.run(model, examples, seen, all_int8(options), progress, check=False)
    variants = Variants(quantization, options)
    shown = quantization.data if calibration is None else data
    evaluator = Evaluator(quantization.original, shown, examples, measured)
    return rank(variants, evaluator, select(variants.choices, candidates), mode, dtype, progress)


def rank(
    variants: Variants,
    evaluator: Evaluator,
    choices: Sequence[Choice],
    mode: str,
    dtype: str,
    progress: ProgressOption,
) -> Sensitivity:
    """The sensitivity of each of `choices`."""
    quantized = variants.build({})
    if mode == "only":
        base = variants.build({}, otherwise=dtype)
        changed = [variants.build({choice: "int8"}, otherwise=dtype, isolated=True) for choice in choices]
    else:
        base, changed = quantized, [variants.build({choice: dtype}) for choice in choices]
    others = [*changed, quantized]
    with bar("sensitivity", (len(others) + 1) * evaluator.batches, progress) as advance:
        reference, *scores, whole = evaluator.scores(base, others, advance)
    gain = evaluator.criterion.gain
    sign = -1 if mode == "only" else 1
    rows = [Row(choice, score, sign * gain(score, reference)) for choice, score in zip(choices, scores, strict=True)]
    rows.sort(key=lambda row: _order(evaluator.criterion, row.score, mode))
    return Sensitivity(rows, evaluator.criterion, mode, dtype, reference, whole, evaluator.batches)


def _order(criterion: Criterion, score: float, mode: str) -> float:
    """Sorts the most sensitive first: the worst score of mode "only", the best of mode "leave"."""
    if score != score:
        return float("-inf") if mode == "only" else float("inf")
    return score if criterion.higher_is_better == (mode == "only") else -score


def select(choices: Sequence[Choice], patterns: Sequence[str] | None) -> list[Choice]:
    """The choices that one of the patterns names. Raises ConfigError for a pattern that names none."""
    if patterns is None:
        return list(choices)
    if isinstance(patterns, str):
        patterns = [patterns]
    found: list[Choice] = []
    for pattern in patterns:
        matching = [choice for choice in choices if any(fnmatchcase(name, pattern) for name in _names(choice))]
        if not matching:
            known = {name for choice in choices for name in _names(choice)}
            raise ConfigError(f"no operator of the model matches {pattern!r}; {nearest(pattern, known)}")
        found += matching
    return [choice for choice in choices if choice in found]


def _names(choice: Choice) -> list[str]:
    parts = choice.module.split(".")
    paths = [".".join(parts[:n]) for n in range(1, len(parts) + 1)] if choice.module else []
    return [*choice.nodes, choice.op, *paths]


def check_dtype(dtype: str) -> None:
    if dtype not in FLOATS:
        raise ConfigError(f"dtype must be one of {', '.join(FLOATS)}, got {dtype!r}")


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if abs(value) < float("inf") else None
