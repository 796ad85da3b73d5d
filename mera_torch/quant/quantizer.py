"""The PT2E quantizer of the DNA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    ObserverOrFakeQuantize,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e import MinMaxObserver as TorchMinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from .canonicalize import canonicalize
from .config import QuantConfig
from .observers import (
    ActivationObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    WeightObserver,
    bias_qparams,
)
from .patterns import QuantizedOp, attribute, describe, find_quantized_ops, module_path

_INT32_MAX = 2**31 - 1


class MeraQuantizer(Quantizer):  # type: ignore[misc]  # torchao has no type hints
    """torchao PT2E quantizer for the DNA; use with ``prepare_pt2e``, ``prepare_qat_pt2e`` and ``convert_pt2e``.

    Weights become int8 symmetric [-127, 127], per output channel (axis 0); activations int8 affine [-128, 127], per
    tensor; biases int32 with scale s_x * s_w[c] and zero point 0. Concat, pools, pads and every operator that only
    moves values have one quantization for inputs and output. A relu, relu6, hardtanh or clamp after a convolution,
    linear, add, sub or mul is fused into it. Operators which the DNA does not know stay in float.

    Args:
        config: A :class:`QuantConfig`, a dict of its fields, or None for the defaults.
        is_qat: True for ``prepare_qat_pt2e``: fake quantization in place of observers, batch norms kept for training.

    Attributes:
        found: The operators that the last `annotate` quantized, in graph order.

    Raises:
        ConfigError: `config` has an unknown key or a value outside its range.
    """

    def __init__(self, config: QuantConfig | Mapping[str, Any] | None = None, *, is_qat: bool = False) -> None:
        super().__init__()
        self.config = QuantConfig.of(config)
        self.is_qat = is_qat
        self.found: list[QuantizedOp] = []

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Rewrites `model` in place to the operators that can be annotated; see
        :mod:`mera_torch.quant.canonicalize`."""
        return canonicalize(model, is_qat=self.is_qat)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Marks in `model` (in place) which edges and nodes are quantized, and how."""
        self.found = _drop_idle(find_quantized_ops(model.graph, self._is_excluded))
        groups = _sharing_groups(self.found)
        fixed = _fixed_groups(self.found, groups) if self.config.fixed_ranges else {}
        readers = {op.nodes[0]: op for op in self.found}
        outputs = {op.output for op in self.found}
        roots: dict[Node, EdgeOrNode] = {}

        def activation(value: Node, place: EdgeOrNode) -> QuantizationSpecBase:
            # torchao needs the first place of a group, in graph order, to carry the spec which the others share.
            group = groups.find(value)
            if group in roots:
                return SharedQuantizationSpec(roots[group])
            roots[group] = place
            return (
                FixedQParamsQuantizationSpec(torch.int8, *fixed[group], -128, 127, torch.per_tensor_affine)
                if group in fixed
                else self._activation_spec()
            )

        for node in model.graph.nodes:
            if node not in readers and node not in outputs:
                continue
            # Sharing is stated in full above; what torchao would infer beyond it can only form cycles.
            annotation = QuantizationAnnotation(allow_implicit_sharing=False, _annotated=True)
            if (op := readers.get(node)) is not None:
                for value in op.inputs:
                    annotation.input_qspec_map[value] = activation(value, (value, node))
                if op.weight is not None:
                    annotation.input_qspec_map[op.weight] = self._weight_spec(op.axis)
                if op.weight is not None and op.bias is not None:
                    annotation.input_qspec_map[op.bias] = self._bias_spec((op.inputs[0], node), (op.weight, node))
            if node in outputs:
                annotation.output_qspec = activation(node, node)
            node.meta[Q_ANNOTATION_KEY] = annotation
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing is left to check: `annotate` only marks what the DNA computes."""

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, ObserverOrFakeQuantize]
    ) -> None:
        """Tells each observer what it observes, and each weight's observer the bias that it must leave room for."""
        for place, observer in edge_or_node_to_obs_or_fq.items():
            if isinstance(observer, (ActivationObserver, WeightObserver)) and not observer.named:
                value = place if isinstance(place, Node) else place[0]
                observer.name(f"the {'input' if value.op == 'placeholder' else 'output of'} {describe(value)}")
        for op in self.found:
            reader = op.nodes[0]
            if op.weight is None or op.bias is None or op.bias.op != "get_attr":
                continue
            weight = edge_or_node_to_obs_or_fq.get((op.weight, reader))
            activation = edge_or_node_to_obs_or_fq.get((op.inputs[0], reader))
            bias = attribute(model, str(op.bias.target))
            if isinstance(weight, WeightObserver) and isinstance(bias, torch.Tensor) and activation is not None:
                weight.bounds = (activation, bias)

    def _is_excluded(self, node: Node) -> bool:
        path = module_path(node)
        return any(fnmatchcase(path, pattern) for pattern in self.config.exclude)

    def _activation_spec(self) -> QuantizationSpec:
        config = self.config
        constructor: Any
        if self.is_qat:
            observer = MovingAverageMinMaxObserver.with_args(averaging_constant=config.averaging_constant)
            constructor = FakeQuantize.with_args(observer=observer)
        elif config.activation_observer == "histogram":
            constructor = HistogramObserver.with_args(bins=config.histogram_bins)
        elif config.activation_observer == "moving_average":
            constructor = MovingAverageObserver.with_args(averaging_constant=config.averaging_constant)
        else:
            constructor = MinMaxObserver
        return QuantizationSpec(torch.int8, constructor, -128, 127, torch.per_tensor_affine)

    def _weight_spec(self, axis: int) -> QuantizationSpec:
        per_channel = self.config.per_channel_weights
        scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
        constructor: Any = WeightObserver.with_args(axis=axis)
        if self.is_qat and per_channel:
            constructor = FakeQuantize.with_args(observer=PerChannelMinMaxObserver, ch_axis=axis)
        elif self.is_qat:
            constructor = FakeQuantize.with_args(observer=TorchMinMaxObserver)
        return QuantizationSpec(torch.int8, constructor, -127, 127, scheme, axis if per_channel else None)

    def _bias_spec(self, activation: EdgeOrNode, weight: EdgeOrNode) -> DerivedQuantizationSpec:
        per_channel = self.config.per_channel_weights
        scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
        return DerivedQuantizationSpec(
            [activation, weight], bias_qparams, torch.int32, -_INT32_MAX, _INT32_MAX, scheme, 0 if per_channel else None
        )


class _Groups:
    """Disjoint sets of values that have one quantization."""

    def __init__(self) -> None:
        self._parent: dict[Node, Node] = {}

    def find(self, value: Node) -> Node:
        root = value
        while (parent := self._parent.get(root, root)) is not root:
            root = parent
        while (parent := self._parent.get(value, value)) is not root:
            self._parent[value], value = root, parent
        return root

    def join(self, values: Iterable[Node]) -> None:
        first, *others = values
        for other in others:
            self._parent[self.find(other)] = self.find(first)


def _sharing_groups(found: Iterable[QuantizedOp]) -> _Groups:
    groups = _Groups()
    for op in found:
        if op.shares:
            groups.join((*op.inputs, op.output))
    return groups


def _drop_idle(found: list[QuantizedOp]) -> list[QuantizedOp]:
    """Without the operators that only move values among float operators, and inner ones beside a float operator: int8
    would cost accuracy and gain nothing there."""

    def idles(op: QuantizedOp) -> bool:
        return op.moves or op.inner

    made = {op.output for op in found if not idles(op)}
    for op in found:
        if idles(op) and not made.isdisjoint(op.inputs):
            made.add(op.output)
    used = {value for op in found if not idles(op) for value in op.inputs}
    for op in reversed(found):
        if idles(op) and op.output in used:
            used.update(op.inputs)

    def works(op: QuantizedOp) -> bool:
        sides = op.output in made, op.output in used
        return all(sides) if op.inner else any(sides) or not op.moves

    kept = [op for op in found if works(op)]
    return kept if len(kept) == len(found) else _drop_idle(kept)


def _fixed_groups(found: list[QuantizedOp], groups: _Groups) -> dict[Node, tuple[float, int]]:
    """Scale and zero point of the groups all of whose values come from operators of the same known range."""
    produced = {op.output for op in found}
    wanted: dict[Node, set[tuple[float, int] | None]] = {}
    for op in found:
        if not op.shares:
            wanted.setdefault(groups.find(op.output), set()).add(op.fixed)
        for value in op.inputs:
            if value not in produced:
                wanted.setdefault(groups.find(value), set()).add(None)
    return {
        group: only for group, ranges in wanted.items() if len(ranges) == 1 and (only := next(iter(ranges))) is not None
    }
