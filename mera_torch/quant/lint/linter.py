"""The linter: patterns of network and calibration data that are known to fail in int8, before quantization does."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch.fx import GraphModule, Node

from mera_torch.errors import CalibrationError

from ..calibration.data import EMPTY, Batches, as_inputs, take_first
from ..config import QuantConfig
from ..findings import Finding
from ..graphs import operators as ops
from ..graphs.canonicalize import float_form
from ..graphs.capture import export_float
from ..graphs.patterns import QuantizedOp, constant_of
from ..graphs.run import Inputs
from ..transforms.analysis import Analysis, analyze
from ..transforms.heads import Decision, decide
from ..transforms.masks import keep_masks
from .data_rules import DATA_RULES, DataStatistics
from .network_rules import GRAPH_RULES

Rule = Callable[["Context"], Iterator[Finding]]


@dataclass
class Context:
    """What a rule looks at.

    Attributes:
        model: The network as exported and recognized; batch norms are there.
        analysis: Its twin as the quantizer sees it, with statistics of every value.
        data: What the calibration data are like.
    """

    model: GraphModule
    analysis: Analysis
    data: DataStatistics

    @property
    def config(self) -> QuantConfig:
        return self.analysis.config

    @cached_property
    def decisions(self) -> list[Decision]:
        """What becomes of joins of unlike values."""
        return decide(self.analysis, self.data.first)

    @cached_property
    def remaining(self) -> list[QuantizedOp]:
        """The int8 operators that are left when joins of unlike values are mended, these joins not among them."""
        if not self.config.split_heads:
            return self.analysis.found
        mended = [decision.join for decision in self.decisions if decision.mends]
        gone = {node for join in mended for node in (join.node, *(join.tail or ()))}
        return [op for op in self.analysis.found if gone.isdisjoint(op.nodes)]

    def first_norm(self) -> tuple[Node | None, float]:
        """The first batch norm with statistics from training, and how many times as much its result varies as then."""
        twins = {node.name: node for node in self.analysis.model.graph.nodes}
        for node in self.model.graph.nodes:
            if node.op != "call_function" or node.target not in ops.BATCH_NORM or not isinstance(node.args[1], Node):
                continue
            twin = twins.get(node.name) or twins.get(node.args[0].name)
            gamma = constant_of(self.model, node.args[1]).double()
            beta = constant_of(self.model, node.args[2]).double() if isinstance(node.args[2], Node) else gamma * 0
            expected = float(gamma.square().mean() + beta.var(correction=0))
            if twin is not None and expected > 0 and self.analysis.of(twin).count:
                return node, math.sqrt(self.analysis.of(twin).variance / expected)
        return None, 1.0

    def scales_inputs(self) -> bool:
        """Whether arithmetic with constants is the first that happens to some input: the network normalizes itself."""
        first = [user for node in self.model.graph.nodes if node.op == "placeholder" for user in node.users]
        return any(user.target in ops.SCALAR_BINARY | ops.UNARY for user in first)


RULES: tuple[Rule, ...] = (*DATA_RULES, *GRAPH_RULES)


def lint(model: GraphModule, batches: Iterable[Inputs], config: QuantConfig) -> list[Finding]:
    """What in `model` and its calibration data is known to fail in int8; one pass over `batches`.

    Args:
        model: The float network, exported in evaluation mode and recognized; it stays as it is.
        batches: Calibration inputs, tuples of the model's positional inputs.
        config: The options of quantization: what they mend counts as fixed.

    Returns:
        Findings, those about the data first, then rule by rule in the order of the graph.

    Raises:
        ConfigError: a rule of `config` matches nothing in the network.
    """
    data = DataStatistics()
    with torch.no_grad():
        analysis = analyze(model, data.watch(batches), config)
        context = Context(model, analysis, data)
        return [finding for rule in RULES for finding in rule(context)] if data.samples else []


def lint_model(
    model: torch.nn.Module,
    example_inputs: Any,
    calibration: Iterable[Any],
    config: QuantConfig | Mapping[str, Any] | None = None,
) -> list[Finding]:
    """As :func:`lint`, for a module and calibration data as :func:`mera_torch.quantize` takes them; `calibration` is
    read once.

    Raises:
        CalibrationError: no data.
        CalibrationError, ConfigError, InvalidModelError, UnsupportedError: as quantization would.
    """
    options, examples = QuantConfig.of(config), as_inputs(example_inputs)
    exported = export_float(model, examples)
    float_form(exported, options.keeps_apart)
    names = [node.name for node in exported.graph.nodes if node.op == "placeholder"]
    reading = iter(Batches(calibration, examples, names, seed=options.seed, once=False))
    first = take_first(reading)
    if not first:
        raise CalibrationError(EMPTY)
    return [*keep_masks(exported, first), *lint(exported, chain(first, reading), options)]


def rule_names() -> dict[str, str]:
    """Each rule's name -> what it looks for: the docstring of its function. docs/lint.md is made of this."""
    return {rule.__name__.replace("_", "-"): re.sub(r"\s+", " ", rule.__doc__ or "").strip() for rule in RULES}
