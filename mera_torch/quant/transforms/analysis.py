"""A float network as the quantizer will see it, with what calibration data shows of its values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.utils import _fuse_conv_bn_

from ..config import QuantConfig
from ..graphs.capture import twin
from ..graphs.domains import Domains, sharing_domains
from ..graphs.patterns import QuantizedOp, find_constants
from ..quantizer import MeraQuantizer
from .activation_statistics import ActivationStatistics, measure

_NOTHING = ActivationStatistics(None)


@dataclass
class Analysis:
    """What rules and transforms judge by.

    Attributes:
        model: A twin of the network: batch norms folded, canonical, annotated. Its nodes have the names of the
            network's own.
        found: The operators that will be computed in int8.
        statistics: Of every float32 value, inputs and constants included.
        config: The options.
        kinds: Which observer each int8 value has.
    """

    model: GraphModule
    found: list[QuantizedOp]
    statistics: dict[Node, ActivationStatistics]
    config: QuantConfig
    kinds: dict[Node, str]

    @cached_property
    def domains(self) -> Domains:
        """What must share one scale."""
        return sharing_domains(self.found)

    @cached_property
    def constants(self) -> set[Node]:
        """Nodes whose value depends on no input."""
        return find_constants(self.model.graph)

    @cached_property
    def op_of(self) -> dict[Node, QuantizedOp]:
        """Each node of an int8 operator -> that operator."""
        return {node: op for op in self.found for node in op.nodes}

    @cached_property
    def int8_values(self) -> set[Node]:
        """The values that will be int8."""
        return {value for op in self.found for value in (*op.inputs, op.output)}

    def of(self, node: Node) -> ActivationStatistics:
        """The statistics of a value; empty ones for what is no float32 tensor."""
        return self.statistics.get(node, _NOTHING)

    def domain_range(self, value: Node) -> tuple[float, float]:
        """The (lowest, highest) value of all that shares `value`'s scale; zero within."""
        members = [self.of(v) for v in self.int8_values if self.domains.find(v) is self.domains.find(value)]
        members = [m for m in members if m.count > m.bad]
        return min([0.0, *(m.low for m in members)]), max([0.0, *(m.high for m in members)])


def analyze(
    model: GraphModule,
    batches: Iterable[tuple[Any, ...]],
    config: QuantConfig,
    wanted: Callable[[list[QuantizedOp]], set[Node]] | None = None,
) -> Analysis:
    """Analyses `model`, exported and recognized, which stays as it is; one pass over `batches`.

    wanted: given the int8 operators, the values whose statistics are needed; None: all. Without any, no batch is read.
    """
    copy, quantizer = as_quantized(model, config)
    values = set(copy.graph.nodes) if wanted is None else wanted(quantizer.found)
    statistics = measure(copy, batches, values.__contains__) if values else {}
    return Analysis(copy, quantizer.found, statistics, config, quantizer.kinds)


def as_quantized(model: GraphModule, config: QuantConfig) -> tuple[GraphModule, MeraQuantizer]:
    """A twin of `model` with batch norms folded, canonical and annotated; and the quantizer that did so."""
    copy = twin(model)
    _fuse_conv_bn_(copy)
    quantizer = MeraQuantizer(config)
    quantizer.transform_for_annotation(copy)
    quantizer.annotate(copy)
    return copy, quantizer
