"""Importers: TFLite, ONNX, TorchScript, Keras and .pt2 models as FX graphs of aten calls, ready to be run, quantized,
exported or compiled. Each format has a package of its own, with one file for each family of operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .files import Source, format_of
from .model import ImportedModel, ModelInfo, TensorInfo, example_inputs_of, info_of, unwrapped
from .optional import needs

__all__ = [
    "ImportedModel",
    "ModelInfo",
    "TensorInfo",
    "example_inputs_of",
    "format_of",
    "from_keras",
    "from_onnx",
    "from_pt2",
    "from_tflite",
    "from_torchscript",
    "info_of",
    "load_model",
    "unwrapped",
]


def load_model(
    source: Source,
    *,
    input_desc: Any = None,
    shape_mapping: Mapping[str, Any] | None = None,
    batch_num: int = 1,
) -> ImportedModel:
    """A model of any format, told by its content.

    source: the path of a .tflite, .onnx, TorchScript, .pt2, .keras or .mera file or of a SavedModel folder, or a file's
    bytes.
    input_desc: for TorchScript, see from_torchscript. shape_mapping, batch_num: for ONNX, see from_onnx; batch_num also
    for Keras.

    Raises CorruptFileError, InvalidModelError, UnsupportedError.
    """
    kind = format_of(source)
    if kind == "tflite":
        return from_tflite(source)
    if kind == "onnx":
        return from_onnx(source, shape_mapping=shape_mapping, batch_num=batch_num)
    if kind == "torchscript":
        return from_torchscript(source, input_desc)
    if kind == "keras":
        return from_keras(source, batch_num=batch_num)
    if kind == "mera":
        from mera_torch.quant.quantized_model import QuantizedModel

        held: Any = QuantizedModel.load(source)
        model: ImportedModel = held.imported()
        return model
    return from_pt2(source)


def from_tflite(source: Source) -> ImportedModel:
    """A TFLite file (its path or bytes); see docs/tflite.md."""
    with needs("tflite", "TFLite files"):
        from .tflite import from_tflite
    return from_tflite(source)


def from_onnx(
    source: Any,
    shape_mapping: Mapping[str, Any] | None = None,
    batch_num: int = 1,
    constants: Mapping[str, Any] | None = None,
) -> ImportedModel:
    """An ONNX file (its path or bytes) or an onnx.ModelProto, of opset 7 to 28; see docs/onnx.md.

    shape_mapping: sizes of symbolic dimensions by name ({"height": 224}) or whole shapes by input. batch_num: the size
    of an unknown first dimension. constants: inputs whose values are known.
    """
    with needs("onnx", "ONNX files"):
        from .onnx import from_onnx
    return from_onnx(source, shape_mapping, batch_num, constants)


def from_torchscript(source: Any, input_desc: Any) -> ImportedModel:
    """A TorchScript file (its path or bytes) or a ScriptModule, float or quantized by PyTorch; see docs/torchscript.md.

    A TorchScript file executes code of its author when it is loaded: load only files that you trust.
    input_desc: {name: (shape, dtype)}, or a list of such pairs.
    """
    from .torchscript import from_torchscript

    return from_torchscript(source, input_desc)


def from_keras(source: Any, batch_num: int = 1) -> ImportedModel:
    """A Keras model, a .keras or .h5 file, or a SavedModel folder; needs TensorFlow. See docs/keras.md."""
    with needs("tensorflow", "Keras and SavedModel"):
        from .keras import from_keras
    return from_keras(source, batch_num)


def from_pt2(source: Any) -> ImportedModel:
    """A .pt2 file (its path or bytes) of torch.export.save, or an ExportedProgram."""
    from .exported import from_pt2

    return from_pt2(source)
