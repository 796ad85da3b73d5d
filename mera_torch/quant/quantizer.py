"""The PT2E quantizer of the DNA."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
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

from .calibration.observers import ActivationObserver, WeightObserver, bias_qparams
from .calibration.ranges import LEVELS
from .config import QuantConfig
from .graphs import operators as ops
from .graphs.canonicalize import canonicalize
from .graphs.domains import Domains, drop_idle, fixed_domains, sharing_domains
from .graphs.patterns import QuantizedOp, attribute, describe, find_constants, find_quantized_ops, is_float32
from .rules import Dtype, Resolver, Settings

INT32_MAX = 2**31 - 1


class MeraQuantizer(Quantizer):  # type: ignore[misc]  # torchao has no type hints
    """torchao PT2E quantizer for the DNA; use with ``prepare_pt2e``, ``prepare_qat_pt2e`` and ``convert_pt2e``.

    Unless the configuration says otherwise, weights become int8 symmetric [-127, 127], per output channel (axis 0);
    activations int8 affine [-128, 127], per tensor; biases int32 with scale s_x * s_w[c] and zero point 0. Concat,
    pools, pads and every operator that only moves values have one quantization for inputs and output. A relu, relu6,
    hardtanh or clamp after a convolution, linear, add, sub or mul is fused into it. Operators which the DNA does not
    know stay in float.

    Args:
        config: A :class:`QuantConfig`, a dict of its fields, a preset's name, a TOML file, or None for the defaults.
            Of its fields, those that change the network before or after (equalize, correct_bias, ...) are
            ``quantize``'s.
        is_qat: True for ``prepare_qat_pt2e``: fake quantization in place of observers, batch norms kept for training.

    Attributes:
        found: The operators that the last `annotate` quantized, in graph order.
        dtypes: Name -> "bf16" or "float" of the operators that the configuration kept out of int8.
        kinds: The observer of each int8 value.

    Raises:
        ConfigError: `config` has an unknown key or a value outside its range; from ``prepare_pt2e``: a rule that
            matches nothing in the model.
    """

    def __init__(
        self, config: QuantConfig | Mapping[str, Any] | str | Path | None = None, *, is_qat: bool = False
    ) -> None:
        super().__init__()
        self.config = QuantConfig.of(config)
        self.is_qat = is_qat
        self.found: list[QuantizedOp] = []
        self.dtypes: dict[str, Dtype] = {}
        self.kinds: dict[Node, str] = {}

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Rewrites `model` in place to the operators that can be annotated; see
        :mod:`mera_torch.quant.graphs.canonicalize`."""
        return canonicalize(model, is_qat=self.is_qat, apart=self.config.keeps_apart)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Marks in `model` (in place) which edges and nodes are quantized, and how."""
        resolver = Resolver(self.config, self.config.all_rules, model.graph)
        self.dtypes = _other_dtypes(model, resolver)
        self.found = drop_idle(find_quantized_ops(model.graph, lambda node: node.name in self.dtypes))
        groups = sharing_domains(self.found)
        fixed = fixed_domains(self.found, groups)
        members = _members(self.found, groups)
        leaving = _leaving(model, self.found, self.dtypes)
        kept = {groups.find(value) for op in self.found for value in (*op.inputs, op.output) if value not in leaving}
        readers = {op.nodes[0]: op for op in self.found}
        outputs = {op.output for op in self.found}
        roots: dict[Node, EdgeOrNode] = {}

        def activation(value: Node, place: EdgeOrNode) -> QuantizationSpecBase:
            # torchao needs the first place of a group, in graph order, to carry the spec which the others share.
            group = groups.find(value)
            if group in roots:
                return SharedQuantizationSpec(roots[group])
            roots[group] = place
            settings = resolver.settings(*members[group])
            if group not in kept:
                settings = replace(settings, activation_observer=settings.output_observer)
            elif settings.activation_observer == "auto" and any(v.op == "placeholder" for v in members[group]):
                # White and black cover whole regions of images: where they are clipped, errors add up.
                settings = replace(settings, activation_observer="histogram")
            self.kinds.update(dict.fromkeys(members[group], settings.activation_observer))
            return self._activation_spec(settings, fixed.get(group) if settings.fixed_ranges else None)

        for node in model.graph.nodes:
            if node not in readers and node not in outputs:
                continue
            # Sharing is stated in full above; what torchao would infer beyond it can only form cycles.
            annotation = QuantizationAnnotation(allow_implicit_sharing=False, _annotated=True)
            if (op := readers.get(node)) is not None:
                for value in op.inputs:
                    annotation.input_qspec_map[value] = activation(value, (value, node))
                if op.weight is not None:
                    settings = resolver.settings(*op.nodes)
                    annotation.input_qspec_map[op.weight] = self._weight_spec(settings, op.axis)
                    if op.bias is not None and not self._folds_shared(op):
                        places = ((op.inputs[0], node), (op.weight, node))
                        annotation.input_qspec_map[op.bias] = _bias_spec(settings, places)
            if node in outputs:
                annotation.output_qspec = activation(node, node)
            node.meta[Q_ANNOTATION_KEY] = annotation
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing is left to check: `annotate` only marks what the DNA computes."""

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, ObserverOrFakeQuantize]
    ) -> None:
        """Gives each value an observer of its own, tells each observer what it observes, and each weight's observer the
        bias that it must leave room for."""
        _separate_values(edge_or_node_to_obs_or_fq)
        for place, observer in edge_or_node_to_obs_or_fq.items():
            if isinstance(observer, (ActivationObserver, WeightObserver)) and not observer.named:
                observer.name(_place(place if isinstance(place, Node) else place[0]))
        for op in self.found:
            reader = op.nodes[0]
            if op.weight is None or op.bias is None or op.bias.op != "get_attr":
                continue
            weight = edge_or_node_to_obs_or_fq.get((op.weight, reader))
            activation = edge_or_node_to_obs_or_fq.get((op.inputs[0], reader))
            bias = attribute(model, str(op.bias.target))
            if isinstance(weight, WeightObserver) and isinstance(bias, torch.Tensor) and activation is not None:
                weight.bounds = (activation, bias)

    def _folds_shared(self, op: QuantizedOp) -> bool:
        """Whether training folds a batch norm into a weight that others read, too: torchao then loses the places that
        the bias is derived from, and :func:`~mera_torch.quant.convert.convert` makes it int32 after training."""
        folds = any(node.target in ops.BATCH_NORM for node in op.nodes)
        return self.is_qat and folds and op.weight is not None and len(op.weight.users) > 1

    def _activation_spec(self, settings: Settings, fixed: tuple[float, int] | None) -> QuantizationSpecBase:
        symmetric = settings.activation_scheme == "symmetric"
        constructor: Any
        if not self.is_qat:
            constructor = ActivationObserver.with_args(
                kind=settings.activation_observer, bins=settings.histogram_bins, percentile=settings.percentile,
                averaging_constant=settings.averaging_constant, symmetric=symmetric, fixed=fixed,
            )  # fmt: skip
        elif fixed is not None:
            return FixedQParamsQuantizationSpec(torch.int8, *fixed, *LEVELS, torch.per_tensor_affine)
        else:
            observer = MovingAverageMinMaxObserver.with_args(averaging_constant=settings.averaging_constant)
            constructor = FakeQuantize.with_args(observer=observer)
        # An observer of ours gives the zero point 0 by itself; torchao's are told by the scheme.
        scheme = torch.per_tensor_symmetric if symmetric and self.is_qat else torch.per_tensor_affine
        return QuantizationSpec(torch.int8, constructor, *LEVELS, scheme)

    def _weight_spec(self, settings: Settings, axis: int) -> QuantizationSpec:
        per_channel, scheme = settings.per_channel_weights, _weight_scheme(settings)
        constructor: Any = WeightObserver.with_args(axis=axis, kind=settings.weight_observer)
        if self.is_qat and per_channel:
            constructor = FakeQuantize.with_args(observer=PerChannelMinMaxObserver, ch_axis=axis)
        elif self.is_qat:
            constructor = FakeQuantize.with_args(observer=TorchMinMaxObserver)
        lowest = -LEVELS[1] if settings.weight_scheme == "symmetric" else LEVELS[0]
        return QuantizationSpec(torch.int8, constructor, lowest, LEVELS[1], scheme, axis if per_channel else None)


def _weight_scheme(settings: Settings) -> torch.qscheme:
    if settings.per_channel_weights:
        return torch.per_channel_symmetric if settings.weight_scheme == "symmetric" else torch.per_channel_affine
    return torch.per_tensor_symmetric if settings.weight_scheme == "symmetric" else torch.per_tensor_affine


def _bias_spec(settings: Settings, places: tuple[EdgeOrNode, EdgeOrNode]) -> DerivedQuantizationSpec:
    """Of a bias, by the places of its convolution's input and weight."""
    per_channel = settings.per_channel_weights
    scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
    axis = 0 if per_channel else None
    return DerivedQuantizationSpec(list(places), bias_qparams, torch.int32, -INT32_MAX, INT32_MAX, scheme, axis)


def _other_dtypes(model: GraphModule, resolver: Resolver) -> dict[str, Dtype]:
    """What the operators compute in that shall not be int8, by name."""
    constants = find_constants(model.graph)
    return {
        node.name: dtype
        for node in model.graph.nodes
        if node.op == "call_function" and node not in constants and is_float32(node)
        if (dtype := resolver.dtype(node)) != "int8"
    }


def _leaving(model: GraphModule, found: Iterable[QuantizedOp], others: Collection[str]) -> set[Node]:
    """The nodes of whose values nothing is computed in int8 any more, nor by operators of the names `others`, which
    could have been; they may be moved."""
    computing = {node for op in found if not op.shares for node in op.nodes}
    computing |= {node for node in model.graph.nodes if node.name in others}
    leaving: set[Node] = set()
    for node in reversed(model.graph.nodes):
        if all(user in leaving and user not in computing for user in node.users):
            leaving.add(node)
    return leaving


def _separate_values(observers: dict[EdgeOrNode, ObserverOrFakeQuantize]) -> None:
    """torchao gives values of one quantization one observer; here each value has its own, in one group."""
    own: dict[tuple[int, Node], ActivationObserver] = {}
    taken: set[int] = set()
    for place, observer in observers.items():
        if not isinstance(observer, ActivationObserver):
            continue
        value = place if isinstance(place, Node) else place[0]
        key = (id(observer), value)
        if key not in own:
            own[key] = observer.twin() if id(observer) in taken else observer
            taken.add(id(observer))
            own[key].value = value.name
        observers[place] = own[key]


def _place(value: Node) -> str:
    """What is observed there, as a message names it."""
    if value.op == "get_attr":
        return f"the weight {str(value.target)!r}"
    return f"the {'input' if value.op == 'placeholder' else 'output of'} {describe(value)}"


def _members(found: list[QuantizedOp], groups: Domains) -> dict[Node, list[Node]]:
    """By group: the nodes that make its values, for the rules that match them."""
    made = {op.output: op.nodes for op in found}
    values = dict.fromkeys(value for op in found for value in (*op.inputs, op.output))
    members: dict[Node, list[Node]] = {}
    for value in values:
        members.setdefault(groups.find(value), []).extend(made.get(value, (value,)))
    return members
