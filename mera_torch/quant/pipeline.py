"""The whole flow of quantization after training: read `run` from top to bottom.

export -> recognize -> float transforms -> prepare -> calibrate -> tune ranges -> convert -> corrections
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e import ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from mera_torch.errors import UnsupportedError

from .calibration.calibrate import ProgressOption, calibrate
from .calibration.data import Batches, Seen, as_inputs, take_first
from .calibration.tune import tune_ranges
from .config import QuantConfig
from .convert import convert
from .findings import Finding
from .graphs.canonicalize import float_form
from .graphs.capture import export_float, twin
from .graphs.parameters import freeze
from .graphs.run import Inputs
from .lint.linter import lint
from .quantizer import MeraQuantizer
from .transforms.adaround import RoundedLayer, adaround
from .transforms.bf16 import round_to_bf16
from .transforms.correct_bias import correct_bias
from .transforms.equalize import equalize
from .transforms.hardswish import map_silu
from .transforms.heads import split_heads
from .transforms.masks import keep_masks
from .transforms.smooth import smooth

Transform = Callable[[GraphModule, Sequence[Inputs], QuantConfig, ProgressOption], Any]
"""Rewrites the float network in place, given the first calibration batches; gives a report.

Tensors are shared with the user's model: replace a parameter (setattr), never write into it.
"""
Correction = Callable[[GraphModule, GraphModule, Sequence[Inputs], QuantConfig, ProgressOption], Any]
"""Alters the quantized network (first argument) in place, given its float twin and the first calibration batches; gives
a report. Its int8 and int32 tensors may be written into."""


def _equalize(model: GraphModule, batches: Sequence[Inputs], config: QuantConfig, progress: ProgressOption) -> int:
    return equalize(model, batches, per_channel_weights=config.per_channel_weights)


def _adaround(
    module: GraphModule,
    reference: GraphModule,
    batches: Sequence[Inputs],
    config: QuantConfig,
    progress: ProgressOption,
) -> list[RoundedLayer]:
    return adaround(module, reference, batches, sweeps=config.adaround_iterations, progress=progress, seed=config.seed)


def _correct_bias(
    module: GraphModule,
    reference: GraphModule,
    batches: Sequence[Inputs],
    config: QuantConfig,
    progress: ProgressOption,
) -> list[str]:
    return correct_bias(module, reference, batches, progress=progress)


TRANSFORMS: tuple[tuple[str, Transform], ...] = (
    ("hardswish", map_silu),
    ("equalize", _equalize),
    ("smoothquant", smooth),
    ("split_heads", split_heads),
)  # fmt: skip
"""(field of QuantConfig that asks for it unless None or False, function), in the order in which they are applied."""

CORRECTIONS: tuple[tuple[str, Correction], ...] = (
    ("adaround", _adaround),
    ("correct_bias", _correct_bias),
)  # fmt: skip
"""As TRANSFORMS, after conversion."""


@dataclass
class Quantization:
    """What `run` gives.

    Attributes:
        original: The exported float network as the user gave it.
        reference: The float twin of `module`: after all float transforms and batch norm folding; equal values have
            nodes of equal names in both.
        module: The quantized network: aten and ``quantized_decomposed`` operators.
        config: The options.
        example_inputs: Inputs of the shapes and dtypes of all three networks.
        findings: What the linter and the float transforms said.
        seen: The number of calibration batches.
        data: The calibration batches, to be iterated again.
        reports: What each transform and correction reported, by its name.
    """

    original: GraphModule
    reference: GraphModule
    module: GraphModule
    config: QuantConfig
    example_inputs: Inputs
    findings: list[Finding]
    seen: int
    data: Iterable[Inputs]
    reports: dict[str, Any] = field(default_factory=dict)


@dataclass
class Prepared:
    """The transformed network with observers, and what making it reported."""

    model: GraphModule
    findings: list[Finding]
    reports: dict[str, Any]


@dataclass
class Calibrated:
    """A network between calibration and conversion; `first`: the first batches of the data."""

    original: GraphModule
    prepared: Prepared
    config: QuantConfig
    examples: Inputs
    first: list[Inputs]
    data: Batches
    seen: int
    progress: ProgressOption

    def finish(self) -> Quantization:
        """The second half of `run`, which uses this up."""
        made = self.prepared
        reference, module = finish(made, self.first, self.config, self.progress)
        return Quantization(
            self.original, reference, module, self.config, self.examples, made.findings, self.seen, self.data,
            made.reports,
        )  # fmt: skip


def run(
    model: torch.nn.Module,
    example_inputs: Any,
    data: Iterable[Any],
    config: QuantConfig | Mapping[str, Any] | None = None,
    progress: ProgressOption = True,
    *,
    check: bool = True,
) -> Quantization:
    """Quantizes a float network; arguments and errors as of :func:`quantize`. check: whether the linter looks at it."""
    return calibrated(model, as_inputs(example_inputs), data, QuantConfig.of(config), progress, check=check).finish()


def calibrated(
    model: torch.nn.Module,
    examples: Inputs,
    data: Iterable[Any],
    config: QuantConfig,
    progress: ProgressOption,
    *,
    check: bool = True,
) -> Calibrated:
    """The first half of `run`; arguments as there."""
    original = export_float(model, examples)
    names = [node.name for node in original.graph.nodes if node.op == "placeholder"]
    batches = Batches(data, examples, names, seed=config.seed)
    seen = Seen()
    reading = seen.watch(batches)
    first = take_first(reading)
    prepared = prepare(original, first, config, progress, check=check)
    calibrate(prepared.model, chain(first, reading), progress=progress, total=batches.total)
    seen.check()
    return Calibrated(original, prepared, config, examples, first, batches, seen.batches, progress)


def prepare(
    original: GraphModule, first: Sequence[Inputs], config: QuantConfig, progress: ProgressOption, *, check: bool = True
) -> Prepared:
    """A twin of the exported network, transformed and with observers.

    first: the first calibration batches. check: whether the linter looks at the network and at these.

    Raises UnsupportedError if it has no operator to quantize.
    """
    model = twin(original)
    float_form(model, config.keeps_apart)
    findings = keep_masks(model, first)
    findings += lint(model, first, config) if check and first else []
    reports: dict[str, Any] = {}
    for name, transform in TRANSFORMS:
        asked = getattr(config, name)
        if asked is not None and asked is not False and first:
            reports[name] = transform(model, first, config, progress)
            findings += [said for said in _as_list(reports[name]) if isinstance(said, Finding)]
    quantizer = MeraQuantizer(config)
    prepared = prepare_pt2e(model, quantizer)
    if not quantizer.found:
        why = "the model has no operator that the DNA computes in int8 (docs/quantization.md lists them)"
        if quantizer.dtypes:
            why = "the configuration keeps every operator out of int8 (dtype, exclude or rules); nothing is left for it"
        raise UnsupportedError(why)
    return Prepared(prepared, findings, reports)


def _as_list(report: Any) -> list[Any]:
    return report if isinstance(report, list) else [report]


def finish(
    prepared: Prepared, first: Sequence[Inputs], config: QuantConfig, progress: ProgressOption
) -> tuple[GraphModule, GraphModule]:
    """(float twin, quantized network) of a calibrated network, which is used up."""
    untuned = tune_ranges(prepared.model, first, seed=config.seed, progress=progress)
    prepared.findings = [*prepared.findings, *untuned]
    reference = without_observers(prepared.model)
    module = convert(prepared.model)
    for name, correction in CORRECTIONS:
        if getattr(config, name):
            prepared.reports[name] = correction(module, reference, first, config, progress)
    round_to_bf16(module, config)
    freeze(module)
    return reference, module


def without_observers(prepared: GraphModule) -> GraphModule:
    """The float network in a prepared one, which stays as it is; they share their tensors."""
    model = twin(prepared)
    for node in list(model.graph.nodes):
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), ObserverBase):
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
    model.delete_all_unused_submodules()
    model.recompile()
    return model


def quantize(
    model: torch.nn.Module,
    example_inputs: Any,
    calibration: Iterable[Any],
    *,
    config: QuantConfig | Mapping[str, Any] | None = None,
    progress: ProgressOption = True,
) -> GraphModule:
    """Quantizes a float network to int8 after training (PT2E with :class:`MeraQuantizer`).

    The model is exported in evaluation mode and is not changed. The result computes in float with the rounding of int8
    (``quantized_decomposed`` operators around each aten operator); its nodes keep ``nn_module_stack`` and
    ``stack_trace``.

    Args:
        model: Network in float32, on any device; images are NCHW.
        example_inputs: A tensor, or a tuple or list of the model's positional inputs. Their shapes become those of the
            result.
        calibration: Typical inputs, each a tensor or a tuple or list of tensors as `example_inputs`, with the same
            dtypes and shapes. 8 to 64 images usually suffice. A generator will do.
        config: A :class:`QuantConfig`, a dict of its fields, or None for the defaults.
        progress: Show a progress bar on a terminal; or a function that is called with (stage, done, total) instead,
            total being 0 where `calibration` has no length.

    Raises:
        CalibrationError: no calibration data, a wrong count, shape or dtype of inputs, NaN or infinity (the message
            says where).
        ConfigError: `config` has an unknown key or a value outside its range.
        InvalidModelError: the model cannot be exported, or is already quantized.
        UnsupportedError: the model is not in float32, or contains nothing that can be quantized.
    """
    return run(model, example_inputs, calibration, config, progress, check=False).module
