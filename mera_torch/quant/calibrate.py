"""Post-training quantization in one call: export, prepare, calibrate, convert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count, islice
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from mera_torch.errors import CalibrationError, InvalidModelError, UnsupportedError

from .canonicalize import remove_in_place, restore_batch_norms, separate_shared_convolutions
from .config import QuantConfig
from .convert import convert
from .correct_bias import correct_bias
from .equalize import equalize
from .patterns import value_of
from .quantizer import MeraQuantizer
from .recognize import recognize

Inputs = tuple[Any, ...]
ProgressOption = bool | Callable[[str, int, int], object]
_TRANSFORM_BATCHES = 32  # as many inputs' activations are held at once by equalization and bias correction


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
    options = QuantConfig.of(config)
    examples = as_inputs(example_inputs)
    exported = _export(model, examples)
    remove_in_place(exported)
    recognize(exported)
    separate_shared_convolutions(exported)
    batches = _checked(calibration, examples)
    first = list(islice(batches, _TRANSFORM_BATCHES)) if options.equalize or options.correct_bias else []
    if options.equalize and first:
        equalize(exported, first)
    quantizer = MeraQuantizer(options)
    prepared = prepare_pt2e(exported, quantizer)
    if not quantizer.found:
        raise UnsupportedError(
            "the model has no operator that the DNA computes in int8 (docs/quantization.md lists them)"
        )
    calibrate(prepared, chain(first, batches), progress=progress, total=_length(calibration))
    return correct_bias(prepared, first) if options.correct_bias else convert(prepared)


def calibrate(
    prepared: GraphModule, batches: Iterable[Inputs], *, progress: ProgressOption = True, total: int | None = None
) -> int:
    """Runs a module from ``prepare_pt2e`` on `batches` (tuples of inputs) for its observers; returns how many there
    were.

    Raises:
        CalibrationError: there was no batch, or a tensor holds NaN or infinity.
    """
    seen = 0
    with torch.no_grad(), _bar("calibrating", total, progress) as advance:
        for inputs in batches:
            prepared(*inputs)
            seen += 1
            advance()
    if not seen:
        raise CalibrationError("calibration is empty: give at least one input (8 to 64 typical ones usually suffice)")
    return seen


def as_inputs(inputs: Any) -> Inputs:
    """`inputs` as the tuple of positional arguments that a model takes."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _export(model: torch.nn.Module, examples: Inputs) -> GraphModule:
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidModelError("quantize: a ScriptModule cannot be exported; give the nn.Module it was made from")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise UnsupportedError(
                f"quantize: parameter {name!r} is {parameter.dtype}, only torch.float32 can be quantized; "
                "call model.float() first"
            )
    with _in_evaluation(model), torch.no_grad():
        try:
            exported = torch.export.export(model, examples).module(check_guards=False)
        except Exception as error:  # torch.export has no common base of its errors
            raise InvalidModelError(f"quantize: torch.export cannot capture {type(model).__name__}: {error}") from error
    restore_batch_norms(exported)
    _weights_as_parameters(exported)
    if any("quantized_decomposed" in str(node.target) for node in exported.graph.nodes):
        raise InvalidModelError("quantize: the model is already quantized (it contains quantized_decomposed operators)")
    for node in exported.graph.nodes:
        if node.op == "placeholder" and (value := value_of(node)) is not None:
            if any(not isinstance(size, int) for size in value.shape):
                raise UnsupportedError(
                    f"quantize: input {node.name!r} has a dynamic shape {tuple(value.shape)}; the DNA needs fixed ones"
                )
    return exported


def _weights_as_parameters(exported: GraphModule) -> None:
    """Imported models hold weights as buffers; torchao folds batch norms into parameters alone."""
    read = {source for node in exported.graph.nodes if "conv" in str(node.target) for source in node.args[1:3]}
    for name in {str(source.target) for source in read if isinstance(source, Node) and source.op == "get_attr"}:
        path, _, field = name.rpartition(".")
        owner = exported.get_submodule(path)
        held = owner._buffers.pop(field, None)
        if held is not None:
            owner.register_parameter(field, torch.nn.Parameter(held, requires_grad=False))


@contextmanager
def _in_evaluation(model: torch.nn.Module) -> Iterator[None]:
    """`model` in evaluation mode; afterwards every module is as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _checked(calibration: Iterable[Any], examples: Inputs) -> Iterator[Inputs]:
    if isinstance(calibration, torch.Tensor):
        raise CalibrationError(
            f"calibration must be an iterable of inputs, got one tensor of shape {tuple(calibration.shape)}; "
            "wrap it in a list"
        )
    try:
        iterator = iter(calibration)
    except TypeError:
        raise CalibrationError(f"calibration must be an iterable of inputs, got {type(calibration).__name__}") from None
    for i, item in enumerate(iterator):
        inputs = as_inputs(item)
        if len(inputs) != len(examples):
            raise CalibrationError(f"calibration item {i}: {len(inputs)} inputs, but the model takes {len(examples)}")
        for j, (got, wanted) in enumerate(zip(inputs, examples, strict=True)):
            _check_input(f"calibration item {i}, input {j}", got, wanted)
        yield inputs


def _check_input(where: str, got: Any, wanted: Any) -> None:
    if not isinstance(wanted, torch.Tensor):
        return
    if not isinstance(got, torch.Tensor):
        raise CalibrationError(f"{where}: must be a torch.Tensor, got {type(got).__name__}")
    if got.dtype != wanted.dtype:
        raise CalibrationError(f"{where}: dtype {got.dtype}, but the example input has {wanted.dtype}")
    if got.shape != wanted.shape:
        raise CalibrationError(f"{where}: shape {tuple(got.shape)}, but the example input has {tuple(wanted.shape)}")


def _length(calibration: Any) -> int | None:
    return len(calibration) if hasattr(calibration, "__len__") else None


@contextmanager
def _bar(title: str, total: int | None, show: ProgressOption) -> Iterator[Callable[[], object]]:
    if callable(show):
        done = count(1)
        yield lambda: show(title, next(done), total or 0)
        return
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, disable=not show) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
