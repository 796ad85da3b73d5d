"""From a TorchScript file, or a module in memory, to the graph."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from mera_torch.errors import CorruptFileError, InvalidModelError, MeraError, UnsupportedError

from ..files import Source, describe, format_of, read
from ..graph import GraphBuilder, first_line
from ..model import ImportedModel
from . import operators, quantized, quantized_aten, shapes  # noqa: F401  # fill the registry
from .archive import checked
from .inputs import Input, read_inputs
from .program import Module, Program
from .values import Ref


def from_torchscript(source: Source | torch.jit.ScriptModule, input_desc: Any) -> ImportedModel:
    """A traced or scripted module, float or quantized by PyTorch, as a flat graph for the shapes of input_desc.

    source: a file's path or bytes, or the module. **TorchScript runs code of the file when it is loaded: load only
    files that you trust.**
    input_desc: {name: (shape, dtype)}, or a list of such pairs, in the order of forward's arguments (or with their
    names); dtype: a name, a numpy or a torch dtype.

    Raises CorruptFileError (damaged, or no TorchScript), InvalidModelError (input_desc does not fit; no such file),
    UnsupportedError (an operator without conversion, training mode, control flow that depends on data).
    """
    inputs = read_inputs(input_desc)
    unit, module = _load(_bytes(source), "the module" if isinstance(source, torch.nn.Module) else describe(source))
    builder = GraphBuilder("torchscript")
    try:
        return _convert(builder, unit, module, inputs)
    except RecursionError:
        raise InvalidModelError("torchscript model: its calls or blocks are nested too deeply") from None


def _bytes(source: Any) -> bytes:
    if isinstance(source, torch.jit.ScriptModule):
        buffer = io.BytesIO()
        torch.jit.save(source, buffer)
        return buffer.getvalue()
    if isinstance(source, torch.nn.Module):
        raise InvalidModelError(
            "source is an nn.Module in Python, no TorchScript: give it to mera_torch.quantize or mera_torch.export"
        )
    if not isinstance(source, str | bytes) and not hasattr(source, "__fspath__"):
        raise InvalidModelError(f"source must be a path, bytes or a ScriptModule, got {type(source).__name__}")
    data = read(source)
    kind = format_of(data)
    if kind != "torchscript":
        raise UnsupportedError(f"{describe(source)} is no TorchScript but a {kind} model: use mera_torch.load_model")
    return checked(data, describe(source))


def _load(data: bytes, name: str) -> tuple[Any, Any]:
    """The compilation unit, which holds the program's functions, and the module."""
    core: Any = torch._C
    unit = core.CompilationUnit()
    try:
        module = core.import_ir_module_from_buffer(unit, data, torch.device("cpu"), {}, False)
    except Exception as error:  # the loader's errors have no common base
        raise CorruptFileError(f"{name}: TorchScript cannot load it: {first_line(error)}") from error
    if not module._has_method("forward"):
        raise UnsupportedError(f"{name}: it has no method forward; save a module that has one")
    return unit, module


def _convert(builder: GraphBuilder, unit: Any, module: Any, inputs: Sequence[Input]) -> ImportedModel:
    args = [None if i is None else Ref(_placeholder(builder, i)) for i in _in_order(module, inputs)]
    try:
        result = Program(unit, builder).call_method(Module(module, ""), "forward", args)
    except (MeraError, RecursionError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise builder.invalid(f"its program is malformed: {first_line(error)}") from error
    found = _named(builder, result, "")
    model = builder.finish([(name, quantized.stored(builder, ref), _layout(ref.shape)) for name, ref in found])
    return _with_quantization(model, [ref for _, ref in found])


def _placeholder(builder: GraphBuilder, info: Input) -> Any:
    return builder.input(info.name, info.shape, info.dtype, _layout(info.shape))


def _layout(shape: Sequence[int]) -> str:
    return "NCHW" if len(shape) == 4 else ""


def _in_order(module: Any, inputs: Sequence[Input]) -> list[Input | None]:
    """The inputs as forward takes them; None for arguments that have a default and are not given."""
    arguments = list(module._get_method("forward").schema.arguments)[1:]
    names = [a.name for a in arguments]
    known = {i.name: i for i in inputs}
    required = sum(not a.has_default_value() for a in arguments)
    if not required <= len(inputs) <= len(arguments):
        raise InvalidModelError(
            f"torchscript model: forward takes {required} to {len(arguments)} inputs ({', '.join(names)}), "
            f"input_desc has {len(inputs)} ({', '.join(known)})"
        )
    by_name = set(known) <= set(names)
    ordered = [known.get(name) for name in names] if by_name else [*inputs, *[None] * (len(names) - len(inputs))]
    for argument, given in zip(arguments, ordered, strict=True):
        kind = str(argument.type)
        if given is None and not argument.has_default_value():
            raise InvalidModelError(f"torchscript model: input {argument.name!r} of forward is not in input_desc")
        if given is not None and kind.removeprefix("Optional[").rstrip("]") != "Tensor":
            raise UnsupportedError(f"torchscript model: input {argument.name!r} is a {kind}; it must be a tensor")
        if given is None and argument.default_value is not None:
            default = argument.default_value
            raise UnsupportedError(
                f"torchscript model: input {argument.name!r} has the default {default!r}; give it in input_desc"
            )
    return ordered


def _named(builder: GraphBuilder, value: Any, name: str) -> list[tuple[str, Ref]]:
    """The tensors of a result with names: keys of dicts, numbers of tuples. None is left out."""
    if isinstance(value, Ref):
        return [(name or "output", value)]
    if value is None:
        return []
    if isinstance(value, list | tuple):
        items = [(f"{name or 'output'}_{i}", item) for i, item in enumerate(value)]
    elif isinstance(value, dict):
        items = [(f"{name}_{key}" if name else str(key), item) for key, item in value.items()]
    else:
        raise builder.unsupported(f"its output {name!r} must be a tensor, got {type(value).__name__}")
    return [pair for label, item in items for pair in _named(builder, item, label)]


def _with_quantization(model: ImportedModel, found: Sequence[Ref]) -> ImportedModel:
    outputs = [
        replace(info, scale=ref.q.scale, zero_point=ref.q.zero_point) if ref.q else info
        for info, ref in zip(model.info.outputs, found, strict=True)
    ]
    model.meta["mera_model"] = replace(model.info, outputs=tuple(outputs))
    return model
