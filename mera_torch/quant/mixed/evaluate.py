"""Scores of many variants of one network, computing each only from where it differs from the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from mera_torch.errors import CalibrationError

from ..calibration.data import Batches, Seen
from ..graphs.patterns import attribute
from ..graphs.run import Inputs
from .criteria import Criterion, Score, float_outputs
from .variants import DEQUANTIZE, QUANTIZE

Advance = Callable[[], object]


class Evaluator:
    """Evaluation data and what the float network makes of it.

    Args:
        original: The float network.
        data: Inputs as of calibration; read once for every call of `scores`.
        examples: Example inputs, which `data` must be like.
        criterion: What a score is.

    Raises:
        CalibrationError: `data` is empty or unlike the examples; of `scores`: it is not what it was before.
    """

    def __init__(self, original: GraphModule, data: Iterable[Any], examples: Inputs, criterion: Criterion) -> None:
        names = [str(node.target) for node in original.graph.nodes if node.op == "placeholder"]
        self.criterion = criterion
        self._batches = Batches(data, examples, names, what="evaluation")
        seen = Seen()
        reading = seen.watch(self._batches)
        self._expected = [float_outputs(values(_Steps(original), batch).outputs) for batch in reading]
        self._digest = seen.digest
        if not self._expected:
            raise CalibrationError("evaluation data is empty: give at least one input (4 to 32 typical ones suffice)")
        if not self._expected[0] and criterion.task is None:
            raise CalibrationError(f"metric {criterion.name!r}: the model has no floating-point output to compare")

    @property
    def batches(self) -> int:
        return len(self._expected)

    def scores(
        self, base: GraphModule, variants: Sequence[GraphModule], advance: Advance = lambda: None
    ) -> list[float]:
        """The scores of `base` and of each variant; `advance` is called once for each of them and batch.

        Memory holds every value of `base` for one batch, and of one variant what differs.
        """
        steps = [_Steps(base), *map(_Steps, variants)]
        found = [Score(self.criterion) for _ in steps]
        seen = Seen()
        for batch, expected in zip(seen.watch(self._batches), self._expected, strict=True):
            first: _Run | None = None
            for one, score in zip(steps, found, strict=True):
                run = values(one, batch, first)
                first = first or run
                whole = pytree.tree_unflatten(run.outputs, one.out_spec)
                score.add(expected, float_outputs(run.outputs), whole)
                advance()
        if seen.digest != self._digest:
            raise CalibrationError(
                "evaluation data is not the same in each pass (is it augmented by random numbers that are not "
                "PyTorch's?): give a list of inputs"
            )
        return [score.value() for score in found]


@dataclass
class _Step:
    name: str
    target: Any
    args: Any
    kwargs: Any
    inputs: tuple[str, ...]
    shape: str  # the call without the names of its inputs


class _Steps:
    """A network as a list of calls. pure: none of them changes what it reads."""

    def __init__(self, module: GraphModule) -> None:
        self.pure = not any(
            node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False)
            for node in module.graph.nodes
        )
        self.placeholders: list[str] = []
        self.constants: dict[str, Any] = {}
        self.calls: list[_Step] = []
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self.placeholders.append(node.name)
            elif node.op == "get_attr":
                self.constants[node.name] = attribute(module, str(node.target))
            elif node.op == "call_function":
                inputs: list[str] = []
                torch.fx.map_arg((node.args, node.kwargs), lambda n, into=inputs: into.append(n.name))  # type: ignore[misc]
                shape = repr((str(node.target), torch.fx.map_arg((node.args, node.kwargs), lambda n: "value")))
                self.calls.append(_Step(node.name, node.target, node.args, node.kwargs, tuple(inputs), shape))
        self.output = module.graph.output_node().args[0]
        codegen: Any = module.graph._codegen
        self.out_spec = codegen.pytree_info.out_spec
        self.by_name = {step.name: step for step in self.calls}


@dataclass
class _Run:
    steps: _Steps
    values: dict[str, Any]
    outputs: list[Any]


def values(steps: _Steps, batch: Inputs, base: _Run | None = None) -> _Run:
    """Computes a network; of what `base` computed from the same values nothing again, unless operators change values
    in place."""
    flat = pytree.tree_leaves(batch)
    if not steps.pure:
        flat, base = [x.clone() if isinstance(x, Tensor) else x for x in flat], None
    held: dict[str, Any] = {**dict(zip(steps.placeholders, flat, strict=True)), **steps.constants}
    if base is not None:
        held.update((name, base.values[name]) for name in steps.placeholders)
    with torch.no_grad():
        for step in steps.calls:
            before = base.steps.by_name.get(step.name) if base is not None else None
            alike = before is not None and before.shape == step.shape and len(before.inputs) == len(step.inputs)
            if alike and all(held[a] is base.values[b] for a, b in zip(step.inputs, before.inputs, strict=True)):  # type: ignore[union-attr]
                held[step.name] = base.values[step.name]  # type: ignore[union-attr]
                continue
            held[step.name] = result = _compute(step, held)
            if alike and _equal(result, base.values[step.name]):  # type: ignore[union-attr]
                held[step.name] = base.values[step.name]  # type: ignore[union-attr]
    outputs = torch.fx.map_arg(steps.output, lambda n: held[n.name])
    return _Run(steps, held, list(outputs) if isinstance(outputs, (tuple, list)) else [outputs])


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)


def _compute(step: _Step, held: dict[str, Any]) -> Any:
    args, kwargs = torch.fx.map_arg((step.args, step.kwargs), lambda n: held[n.name])
    if step.target is QUANTIZE:
        return _levels(*args)
    if step.target is DEQUANTIZE and isinstance(args[0], Tensor) and args[0].dtype is torch.float32:
        return (args[0] - args[2]).mul_(args[1])
    return step.target(*args, **kwargs)


def _levels(x: Tensor, scale: float, zero_point: int, least: int, greatest: int, dtype: torch.dtype) -> Tensor:
    """quantize_per_tensor's result in float32, which saves two conversions."""
    return x.mul(1.0 / scale).round_().add_(zero_point).clamp_(least, greatest)
