"""The fewest operators in BF16 or float for a wanted accuracy, or for what a budget of cycles allows.

The search keeps operators out of int8 one after another: greedily, by what one gains over what it costs, among the most
sensitive ones and with the operators beside them (a value stays rounded while one of its two ends is in int8). Every
gain is measured in the network with all that is kept already, so that interactions count; where nothing gains by
itself, the next of the ranking is kept. Gains are those of variants of one quantized network; each step is then
quantized anew, measured, compiled and simulated. At the end, what turns out to be needless goes back to int8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule

from mera_torch.errors import ConfigError, UnsupportedError

from ..calibration.calibrate import ProgressOption, bar
from ..calibration.data import as_inputs
from ..config import QuantConfig
from .criteria import TaskMetric, criterion
from .cycles import HOST_GOPS, CycleModel, Cycles
from .evaluate import Evaluator
from .requantizer import Requantizer
from .result import Kept, MixedPrecision, Point, first_best
from .sensitivity import Sensitivity, check_dtype, rank, select
from .variants import Choice, Variants, all_int8

WIDTH = 8
"""So many of the most sensitive operators are tried at each step, each alone and with its neighbours."""
WIDER = 24
"""So many where none of those gains, or fits the budget."""
TRIES = 3
"""So many moves that should gain are quantized anew, at most, until one does."""


def search(
    model: torch.nn.Module,
    example_inputs: Any,
    calibration: Iterable[Any],
    data: Iterable[Any],
    *,
    accuracy: float | None = None,
    budget_cycles: int | None = None,
    platform: Any = "SAKURA_II",
    dtype: str = "bf16",
    metric: str | TaskMetric = "sqnr",
    config: QuantConfig | Mapping[str, Any] | str | None = None,
    candidates: Sequence[str] | None = None,
    host_gops: float = HOST_GOPS,
    progress: ProgressOption = True,
) -> MixedPrecision:
    """Keeps the fewest operators out of int8.

    Args:
        model, example_inputs, calibration, config, progress: As of :func:`mera_torch.quantize`.
        data: Inputs that the score is measured on; 4 to 32 suffice.
        accuracy: The score to reach, in the metric's own unit: at least this, or at most, where less is better. The
            search ends as soon as it is reached.
        budget_cycles: No network may cost more; the best score within it is sought, or `accuracy` if both are given.
        platform: A name, a Platform or a TOML file: whose cycles are counted.
        dtype: What the operators kept compute in: "bf16" (on the DNA if the platform has BF16, else on the host) or
            "float" (on the host).
        metric, candidates: As of :func:`mera_torch.quant.mixed.sensitivity.sensitivity`.
        host_gops: The host's rate, in 1e9 operations a second; see :mod:`mera_torch.quant.mixed.cycles`, which says
            what of the cycles is simulated and what estimated.

    Raises:
        ConfigError: neither accuracy nor budget; an accuracy that cannot be reached (says the best there is); a budget
            below what the network in int8 takes (says how much); an unknown metric, dtype, platform or pattern.
        CalibrationError, InvalidModelError, UnsupportedError: as of :func:`mera_torch.quantize`.
    """
    measured, options = criterion(metric), QuantConfig.of(config)
    check_dtype(dtype)
    _check_goals(accuracy, budget_cycles)
    examples = as_inputs(example_inputs)
    cost = CycleModel(examples, platform, host_gops)
    calibrated = Requantizer(model, examples, calibration, all_int8(options), progress)
    quantization = calibrated.quantization
    variants = Variants(quantization, options)
    evaluator = Evaluator(quantization.original, data, examples, measured)
    ranking = rank(variants, evaluator, select(variants.choices, candidates), "only", dtype, progress)

    def quantized(kept: Kept) -> GraphModule:
        return calibrated.quantize(_config(options, kept, dtype))

    found = _Search(variants, evaluator, cost, ranking, dtype, accuracy, budget_cycles, quantized, progress)
    after = found.run()
    chosen, module = _config(options, after.kept, dtype), found.modules[after.kept]
    return MixedPrecision(
        chosen, after.kept, module, found.points, found.points[0], after, ranking, found.unlimited, accuracy,
        budget_cycles, dtype, cost.platform, measured,
    )  # fmt: skip


def _config(options: QuantConfig, kept: Kept, dtype: str) -> QuantConfig:
    return replace(options, rules=(*options.rules, *(rule for choice in kept for rule in choice.rules(dtype))))


def _check_goals(accuracy: float | None, budget_cycles: int | None) -> None:
    if accuracy is None and budget_cycles is None:
        raise ConfigError("search needs a goal: accuracy=, budget_cycles=, or both")
    for name, value in (("accuracy", accuracy), ("budget_cycles", budget_cycles)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not number:
            raise ConfigError(f"{name} must be a finite number, got {value!r}")


class _Search:
    """quantize: what is kept -> the network quantized anew.

    points: what was measured; the first is the network in int8. modules: their networks.
    """

    def __init__(
        self, variants: Variants, evaluator: Evaluator, cost: CycleModel, ranking: Sensitivity, dtype: str,
        accuracy: float | None, budget: int | None, quantize: Callable[[Kept], GraphModule], progress: ProgressOption,
    ) -> None:  # fmt: skip
        self._variants, self._evaluator, self._cost, self._dtype = variants, evaluator, cost, dtype
        self._criterion, self._goal, self._budget = evaluator.criterion, accuracy, budget
        self._quantize, self._progress = quantize, progress
        self._ranked = [row.choice for row in ranking.rows]
        self._near = variants.neighbours(self._ranked)
        self.modules: dict[Kept, GraphModule] = {(): quantize(())}
        cycles = cost.reference(self.modules[()])
        self.points = [Point((), evaluator.scores(self.modules[()], [])[0], cycles)]
        self.unlimited = evaluator.scores(self._build(tuple(self._ranked)), [])[0]
        int8 = variants.build({})
        self._prices = {choice: cost.estimate(int8, choice.nodes, dtype) for choice in self._ranked}
        self._check_reachable()

    def _check_reachable(self) -> None:
        start, one = self.points[0], self._criterion
        if not self._fits(start.cycles):
            raise ConfigError(
                f"budget_cycles {self._budget:,} is below the minimum: the network in int8 alone takes "
                f"{start.cycles.total:,} cycles on {self._cost.platform.name}"
            )
        if self._goal is not None and not self._reached(start) and not one.reaches(self.unlimited, self._goal):
            best = start.score if one.better(start.score, self.unlimited) else self.unlimited
            raise ConfigError(
                f"accuracy {one.name} {one.text(self._goal)} cannot be reached: the best is {one.text(best)}, with all "
                f"{len(self._ranked)} operators in {self._dtype} (in int8: {one.text(start.score)})"
            )

    def _reached(self, point: Point) -> bool:
        return self._goal is not None and self._criterion.reaches(point.score, self._goal)

    def _fits(self, cycles: Cycles) -> bool:
        return self._budget is None or cycles.total <= self._budget

    def run(self) -> Point:
        """The network that fulfils the goals, with the fewest operators out of int8.

        Raises ConfigError if there is none.
        """
        point = self.points[0]
        while not self._reached(point) and (following := self._step(point)) is not None:
            point = following
        if self._goal is not None and not self._reached(point):
            one, best = self._criterion, first_best(self.points, self._criterion)
            within = "" if self._budget is None else f" within {self._budget:,} cycles"
            raise ConfigError(
                f"accuracy {one.name} {one.text(self._goal)} cannot be reached{within} with operators left in int8: "
                f"the best is {one.text(best.score)} at {best.cycles.total:,} cycles, with {len(best.kept)} operators "
                f"in {self._dtype}"
            )
        return self._pruned(point)

    # ---- steps ----

    def _step(self, point: Point) -> Point | None:
        """The next point: the move of the greatest gain per cost that the budget allows; None if there is none."""
        left = [choice for choice in self._ranked if choice not in point.kept]
        for width in dict.fromkeys(min(len(left), width) for width in (WIDTH, WIDER)):
            moves = self._moves(point, left[:width])
            now, scores = self._scores(point.kept, moves)
            gains = {move: self._criterion.gain(score, now) for move, score in zip(moves, scores, strict=True)}
            order = sorted((move for move in moves if gains[move] > 0), key=lambda m: -gains[m] / self._price(m))
            tried = 0
            for move in order:
                found = self._measured((*point.kept, *move))
                if found is not None and self._criterion.better(found.score, point.score):
                    return found
                tried += found is not None
                if tried == TRIES:
                    break
        if self._goal is not None:  # nothing gains by itself: the ranking decides
            for choice in left:
                if (found := self._measured((*point.kept, choice))) is not None:
                    return found
        return None

    def _moves(self, point: Point, first: Sequence[Choice]) -> list[Kept]:
        """Each choice alone, with what reads its result, with what makes its operands, and with both."""
        moves: dict[frozenset[Choice], Kept] = {}
        for choice in first:
            before, behind = self._near[choice]
            for more in ((), behind, before, (*before, *behind)):
                move = tuple(c for c in self._ranked if (c is choice or c in more) and c not in point.kept)
                moves.setdefault(frozenset(move), move)
        return list(moves.values())

    def _price(self, move: Kept) -> int:
        return sum(self._prices[choice] for choice in move)

    def _measured(self, kept: Kept) -> Point | None:
        """The network quantized anew, compiled and simulated; None if it exceeds the budget, or if nothing of it is
        left in int8."""
        kept = tuple(sorted(kept, key=lambda choice: choice.position))
        known = next((point for point in self.points if point.kept == kept), None)
        if known is not None:
            return known
        if not self._fits(self._cost.of(self._build(kept))):
            return None
        try:
            module = self._quantize(kept)
        except UnsupportedError:
            return None
        point = Point(kept, self._evaluator.scores(module, [])[0], self._cost.of(module))
        if not self._fits(point.cycles):
            return None
        self.modules[kept] = module
        self.points.append(point)
        return point

    def _pruned(self, point: Point) -> Point:
        """Without what is not needed."""
        while len(point.kept) > 1 and (found := self._fewer(point)) is not None:
            point = found
        return point

    def _fewer(self, point: Point) -> Point | None:
        """With one operator less, if that is as good as needed: the one whose loss should matter least."""
        moves = [tuple(c for c in point.kept if c is not choice) for choice in point.kept]
        now, scores = self._scores((), moves)
        order = sorted(range(len(moves)), key=lambda i: -self._criterion.gain(scores[i], now))
        for i in order[:TRIES]:
            found = self._measured(moves[i])
            if found is not None and self._dispensable(found, point):
                return found
        return None

    def _dispensable(self, found: Point, point: Point) -> bool:
        """Whether `found`, with fewer operators out of int8, is as good as needed."""
        if self._goal is not None:
            return self._reached(found)
        return not self._criterion.better(point.score, found.score)

    def _scores(self, kept: Kept, moves: Sequence[Kept]) -> tuple[float, list[float]]:
        """Of the variant with `kept`, and of those with each move more."""
        built = [self._build((*kept, *move)) for move in moves]
        with bar("mixed precision", (len(built) + 1) * self._evaluator.batches, self._progress) as advance:
            now, *scores = self._evaluator.scores(self._build(kept), built, advance)
        return now, scores

    def _build(self, kept: Kept) -> GraphModule:
        return self._variants.build(dict.fromkeys(kept, self._dtype))
