"""Small .tflite models for tests, made without TensorFlow, and what TFLite's reference kernels compute from them.

    m = Builder()
    x = m.tensor("x", (1, 8, 8, 3), "int8", scale=0.1, zero_point=3)
    w = m.constant("w", weights, scale=scales, zero_point=0, axis=0)
    b = m.constant("b", bias, scale=0.1 * scales, zero_point=0, axis=0)
    y = m.tensor("y", (1, 8, 8, 4), "int8", scale=0.2, zero_point=-5)
    m.op("CONV_2D", [x, w, b], [y], "Conv2DOptions", padding="SAME", strideH=1, strideW=1)
    model = m.build([x], [y])
    values = reference(model, [image])  # every tensor: values[y], values[x], ...

Needs ai_edge_litert; a test that uses this module begins with ``pytest.importorskip("ai_edge_litert")``.
"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

Array = npt.NDArray[Any]
Values = dict[int, Array]

NO_TENSOR = -1  # an optional input that is not there

_ENUMS = {"padding": schema.Padding, "fusedActivationFunction": schema.ActivationFunctionType}
_DTYPE_NAMES = {"bool": "BOOL", "bool_": "BOOL"}


class Builder:
    """One subgraph of a .tflite model. Tensors and operators are numbered in the order in which they are made."""

    def __init__(self, description: str = "") -> None:
        self._graph = schema.SubGraphT(tensors=[], operators=[], inputs=[], outputs=[])
        self._model = schema.ModelT(
            version=3,
            description=description,
            operatorCodes=[],
            subgraphs=[self._graph],
            buffers=[schema.BufferT()],
        )
        self._codes: dict[tuple[int, str, int], int] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        scale: npt.ArrayLike | None = None,
        zero_point: npt.ArrayLike = 0,
        axis: int = 0,
        *,
        signature: Sequence[int] | None = None,
        data: Array | None = None,
    ) -> int:
        """A new tensor; its index.

        dtype: NumPy's name, or TFLite's ("int4"). scale: one, or one for each index along ``axis``; None: not
        quantized. signature: the shape with -1 where it is dynamic. data: makes the tensor a constant.
        """
        quantization = None
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            zeros = np.broadcast_to(np.asarray(zero_point, np.int64), scales.shape)
            quantization = schema.QuantizationParametersT(
                scale=scales, zeroPoint=np.ascontiguousarray(zeros), quantizedDimension=axis
            )
        buffer = 0
        if data is not None:
            little = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("<"))
            self._model.buffers.append(schema.BufferT(data=np.frombuffer(little.tobytes(), np.uint8)))
            buffer = len(self._model.buffers) - 1
        self._graph.tensors.append(
            schema.TensorT(
                name=name,
                shape=np.array(shape, np.int32),
                type=getattr(schema.TensorType, _DTYPE_NAMES.get(dtype, dtype.upper())),
                buffer=buffer,
                quantization=quantization,
                shapeSignature=None if signature is None else np.array(signature, np.int32),
                hasRank=True,
            )
        )
        return len(self._graph.tensors) - 1

    def constant(
        self,
        name: str,
        data: npt.ArrayLike,
        scale: npt.ArrayLike | None = None,
        zero_point: npt.ArrayLike = 0,
        axis: int = 0,
    ) -> int:
        """A tensor with data, of the array's shape and dtype; its index."""
        array = np.asarray(data)
        return self.tensor(name, array.shape, array.dtype.name, scale, zero_point, axis, data=array)

    def op(
        self,
        code: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str | None = None,
        *,
        version: int = 1,
        custom: str = "",
        **fields: Any,
    ) -> int:
        """Appends an operator; its index.

        code: a name of BuiltinOperator (``custom`` is the name of a CUSTOM one). options: a name of BuiltinOptions or
        BuiltinOptions2, and its fields, in the schema's spelling; ``padding`` and ``fusedActivationFunction`` take
        their names ("SAME", "RELU6"), other enumerations their numbers.
        """
        operator = schema.OperatorT(
            opcodeIndex=self._code(code, custom, version),
            inputs=np.array(inputs, np.int32),
            outputs=np.array(outputs, np.int32),
        )
        if options is not None:
            values = {
                key: getattr(_ENUMS[key], value) if isinstance(value, str) and key in _ENUMS else value
                for key, value in fields.items()
            }
            table = getattr(schema, f"{options}T")(**values)
            if hasattr(schema.BuiltinOptions, options):
                operator.builtinOptionsType, operator.builtinOptions = getattr(schema.BuiltinOptions, options), table
            else:
                operator.builtinOptions2Type = getattr(schema.BuiltinOptions2, options)
                operator.builtinOptions2 = table
        elif fields:
            raise TypeError(f"{code}: fields {sorted(fields)} without the name of their options")
        self._graph.operators.append(operator)
        return len(self._graph.operators) - 1

    def build(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The file."""
        self._graph.inputs, self._graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        writer = flatbuffers.Builder(1024)
        writer.Finish(self._model.Pack(writer), b"TFL3")
        return bytes(writer.Output())

    def _code(self, name: str, custom: str, version: int) -> int:
        number = getattr(schema.BuiltinOperator, name)
        key = number, custom, version
        if key not in self._codes:
            self._codes[key] = len(self._codes)
            self._model.operatorCodes.append(
                schema.OperatorCodeT(
                    deprecatedBuiltinCode=min(number, 127),
                    builtinCode=number,
                    customCode=custom or None,
                    version=version,
                )
            )
        return self._codes[key]


# ---- TFLite's reference kernels ----


class ReferenceFailed(Exception):
    """TFLite refused the model, or its process died; says how."""


Job = tuple[bytes, Sequence[Array]]


def reference(model: bytes, inputs: Sequence[Array], timeout: float = 300) -> Values:
    """All tensors by index, as TFLite's reference kernels compute them; inputs in the order of the model's inputs.

    Runs in a process of its own, which TFLite may abort. Raises ReferenceFailed. Inputs may have another shape than the
    model says: it is resized to them. Tensors without data are left out.
    """
    result = references([(model, inputs)], timeout)[0]
    if isinstance(result, ReferenceFailed):
        raise result
    return result


def references(jobs: Sequence[Job], timeout: float = 300) -> list[Values | ReferenceFailed]:
    """``reference`` for many jobs in one process (a new one only after a death): a result or a failure for each."""
    results: list[Values | ReferenceFailed] = []
    while len(results) < len(jobs):
        done, died = _run_jobs(jobs[len(results) :], timeout)
        results += done
        if died:
            results.append(died)
    return results


def _run_jobs(jobs: Sequence[Job], timeout: float) -> tuple[list[Values | ReferenceFailed], ReferenceFailed | None]:
    """The results of the first jobs, and what happened to the next one unless all are done."""
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder, "jobs"), Path(folder, "results")
        with given.open("wb") as file:
            for job in jobs:
                pickle.dump(job, file)
        command = [sys.executable, __file__, str(given), str(got)]
        died = None
        try:
            process = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
            if process.returncode:
                died = ReferenceFailed(f"{_how_it_ended(process.returncode)}: {process.stderr.strip()[-2000:]}")
        except subprocess.TimeoutExpired:
            died = ReferenceFailed(f"no result after {timeout} seconds")
        results: list[Values | ReferenceFailed] = []
        if got.exists():
            with got.open("rb") as file:
                results = [r if isinstance(r, dict) else ReferenceFailed(r) for r in _unpickled(file)]
        return results, died if len(results) < len(jobs) else None


def _how_it_ended(code: int) -> str:
    return f"TFLite died of {signal.Signals(-code).name}" if code < 0 else f"TFLite's process exited with {code}"


def _unpickled(file: BinaryIO) -> Iterator[Any]:
    """Whole objects only: the last one may be cut off."""
    while True:
        try:
            yield pickle.load(file)
        except (EOFError, pickle.UnpicklingError):
            return


def _interpret(model: bytes, inputs: Sequence[Array]) -> Values:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=model,
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    details = interpreter.get_input_details()
    if len(details) != len(inputs):
        raise ValueError(f"the model has {len(details)} inputs, got {len(inputs)}")
    for detail, value in zip(details, inputs, strict=True):
        if tuple(detail["shape"]) != value.shape:
            interpreter.resize_tensor_input(detail["index"], value.shape)
    interpreter.allocate_tensors()
    for detail, value in zip(details, inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    own = schema.Model.GetRootAs(model, 0).Subgraphs(0).TensorsLength()  # behind these are the kernels' temporaries
    values = {}
    for index in range(own):
        try:
            values[index] = interpreter.get_tensor(index)
        except ValueError:  # has no data
            continue
    return values


def _serve(given: str, got: str) -> None:
    with Path(given).open("rb") as jobs, Path(got).open("wb") as results:
        for model, inputs in _unpickled(jobs):
            result: Values | str
            try:
                result = _interpret(model, inputs)
            except (ValueError, RuntimeError) as error:
                result = f"TFLite refused: {error}"
            pickle.dump(result, results)
            results.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:3])
