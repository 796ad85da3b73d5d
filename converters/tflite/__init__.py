"""TFLite files as FX graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mera_torch.errors import CorruptFileError, InvalidModelError, UnsupportedError

from ..files import Source, describe
from ..graph import GraphBuilder
from ..model import ImportedModel, TensorInfo
from ..registry import find
from . import conv, elementwise, index, pad, pool, quantize, reduce, refused, resize, shape, unary  # noqa: F401
from .context import TORCH_DTYPES, Conversion, Op, aten
from .reader import Model, Operator, Tensor, load

__all__ = ["from_tflite"]


def from_tflite(source: Source, every_tensor: bool = False) -> ImportedModel:
    """The main subgraph of a TFLite file (its path or bytes) as an FX graph.

    Inputs and outputs are those of the file, in its order, layout (NHWC) and element type. every_tensor: the model
    gives every tensor that an operator computes, in the order of the operators, instead of the file's outputs.

    Raises CorruptFileError and InvalidModelError for a malformed file, UnsupportedError naming the operator.
    """
    return from_model(load(source), source, every_tensor)


def from_model(model: Model, source: Source, every_tensor: bool = False) -> ImportedModel:
    """A file that was read already."""
    builder = GraphBuilder("tflite")
    conversion = Conversion(model, builder)
    try:
        for index_, name in zip(model.inputs, model.input_names, strict=True):
            _input(conversion, model.tensors[index_], name)
        for operator in model.operators:
            _convert(conversion, operator)
        outputs = [model.tensors[i] for i in model.outputs]
        names = model.output_names
        if every_tensor:
            outputs = computed(model)
            names = [f"{tensor.index}:{tensor.name}" for tensor in outputs]
        values = [
            (name, _output(conversion, tensor), _layout(tensor)) for name, tensor in zip(names, outputs, strict=True)
        ]
        found = builder.finish(values)
    except (CorruptFileError, InvalidModelError, UnsupportedError) as error:
        raise type(error)(f"{describe(source)}: {error}") from error
    return _with_scales(found, [model.tensors[i] for i in model.inputs], outputs)


def computed(model: Model) -> list[Tensor]:
    """The tensors that operators compute, in their order."""
    return [model.tensors[i] for operator in model.operators for i in operator.outputs if i != -1]


def _convert(conversion: Conversion, operator: Operator) -> None:
    name = next((conversion.model.tensors[i].name for i in operator.outputs if i != -1), f"operator_{operator.index}")
    with conversion.b.at(name, operator.code):
        convert = find("tflite", operator.code, max(operator.version, 1), conversion.b.where)
        convert(Op(conversion, operator))


def _layout(tensor: Tensor) -> str:
    return "NHWC" if len(tensor.shape) == 4 else ""


def _input(conversion: Conversion, tensor: Tensor, name: str) -> None:
    """uint8 tensors with a scale are held as int8."""
    if tensor.dtype not in TORCH_DTYPES:
        raise UnsupportedError(f"tflite input {name!r} has element type {tensor.dtype}")
    if tensor.data is not None:
        raise InvalidModelError(f"tflite input {name!r} has data: it is a constant")
    value = conversion.b.input(name, tensor.shape, TORCH_DTYPES[tensor.dtype], _layout(tensor))
    if tensor.dtype == "UINT8" and conversion.is_quantized(tensor):
        value = conversion.b.call(aten._to_copy.default, value, dtype=TORCH_DTYPES["INT16"])
        value = conversion.b.call(aten.sub.Tensor, value, 128)
        value = conversion.b.call(aten._to_copy.default, value, dtype=TORCH_DTYPES["INT8"])
    conversion.put(tensor, value, False)


def _output(conversion: Conversion, tensor: Tensor) -> object:
    """The tensor as the file says it: channels last, uint8."""
    value = conversion.raw(tensor, False)
    if tensor.dtype == "UINT8" and conversion.is_quantized(tensor):
        value = conversion.b.call(aten._to_copy.default, value, dtype=TORCH_DTYPES["INT16"])
        value = conversion.b.call(aten.add.Tensor, value, 128)
        value = conversion.b.call(aten._to_copy.default, value, dtype=TORCH_DTYPES["UINT8"])
    return value


def _with_scales(model: ImportedModel, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> ImportedModel:
    info = model.info
    model.meta["mera_model"] = replace(
        info,
        inputs=tuple(_scaled(*pair) for pair in zip(info.inputs, inputs, strict=True)),
        outputs=tuple(_scaled(*pair) for pair in zip(info.outputs, outputs, strict=True)),
    )
    return model


def _scaled(info: TensorInfo, tensor: Tensor) -> TensorInfo:
    q = tensor.quantization
    if q is None or not q.per_tensor:
        return info
    return replace(info, scale=float(q.scale[0]), zero_point=int(q.zero_point[0]))
