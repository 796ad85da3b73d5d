"""Keras models and SavedModels, by way of TensorFlow's own converter to TFLite."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf  # noqa: E402
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2  # noqa: E402

from mera_torch.errors import CorruptFileError, InvalidModelError, UnsupportedError  # noqa: E402

from .files import Source, describe, read  # noqa: E402
from .graph import first_line  # noqa: E402
from .model import ImportedModel  # noqa: E402
from .tflite import from_tflite  # noqa: E402


def from_keras(source: Source | Any, batch_num: int = 1) -> ImportedModel:
    """A keras.Model, a .keras or .h5 file (path or bytes), or a SavedModel folder, in float.

    The model becomes a float TFLite model in memory and goes through from_tflite: images are NHWC. batch_num: the size
    of an unknown first dimension. A .keras file is loaded in Keras's safe mode, which refuses pickled lambdas; a
    SavedModel's first signature is taken.

    Raises InvalidModelError (no such model, other unknown dimensions), CorruptFileError, UnsupportedError (TensorFlow
    operators that TFLite does not have).
    """
    if isinstance(source, tf.keras.Model):
        name, function, holder = source.name, *_of_model(source, batch_num)
    elif isinstance(source, str | os.PathLike | bytes):
        name, function, holder = describe(source), *_of_file(source, batch_num)
    else:
        raise InvalidModelError(f"source must be a keras.Model or the path of one, got {type(source).__name__}")
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            frozen = convert_variables_to_constants_v2(function)
            data = tf.lite.TFLiteConverter.from_concrete_functions([frozen], holder).convert()
    except Exception as error:  # the converter's errors have no common base
        raise UnsupportedError(f"{name}: TensorFlow cannot convert it to TFLite: {first_line(error)}") from error
    model = from_tflite(data)
    model.meta["mera_model"] = replace(model.info, format="keras")
    return model


def _of_file(source: Source, batch_num: int) -> tuple[Any, Any]:
    if not isinstance(source, bytes) and os.path.isdir(source):
        return _of_saved_model(Path(source), batch_num)
    data = read(source)
    suffix = ".h5" if data.startswith(b"\x89HDF") else ".keras"
    with tempfile.TemporaryDirectory() as folder:  # Keras goes by the ending
        path = Path(folder) / f"model{suffix}"
        path.write_bytes(data)
        try:
            model = tf.keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            raise CorruptFileError(f"{describe(source)}: Keras cannot load it: {first_line(error)}") from error
    return _of_model(model, batch_num)


def _of_model(model: Any, batch_num: int) -> tuple[Any, Any]:
    if not model.built or not model.inputs:
        raise InvalidModelError(f"Keras model {model.name!r} is not built: call it once, or give its layers an Input")
    specs = [
        tf.TensorSpec(_static(tuple(x.shape), batch_num, x.name), tf.as_dtype(x.dtype), name=x.name)
        for x in model.inputs
    ]

    def call(*inputs: Any) -> Any:
        return model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)

    return tf.function(call).get_concrete_function(*specs), model


def _of_saved_model(path: Path, batch_num: int) -> tuple[Any, Any]:
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise CorruptFileError(f"{str(path)!r}: TensorFlow cannot load it: {first_line(error)}") from error
    if not loaded.signatures:
        raise UnsupportedError(f"SavedModel {str(path)!r} has no signatures: save it with one (model.export does)")
    signature = loaded.signatures[min(loaded.signatures, key=lambda name: (name != "serving_default", name))]
    inputs = signature.structured_input_signature[1]
    specs = {
        name: tf.TensorSpec(_static(tuple(spec.shape.as_list()), batch_num, name), spec.dtype, name=name)
        for name, spec in inputs.items()
    }
    return tf.function(lambda **given: signature(**given)).get_concrete_function(**specs), loaded


def _static(shape: Sequence[int | None], batch_num: int, name: str) -> list[int]:
    sizes = [batch_num, *shape[1:]] if shape and shape[0] is None else list(shape)
    unknown = [index for index, size in enumerate(sizes) if size is None]
    if unknown:
        raise InvalidModelError(
            f"Keras input {name!r}: dimension {unknown[0]} of {list(shape)} is unknown; the DNA needs fixed shapes: "
            "build the model with an Input of the size you want"
        )
    return [int(size) for size in sizes if size is not None]
