"""Small ONNX models, and ONNX Runtime as their reference."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

FLOAT = TensorProto.FLOAT


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str] = ("y",),
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
    kinds: Mapping[str, int] | None = None,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model of float inputs; kinds: other element types, by name of an input or output."""
    kinds = kinds or {}
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kinds.get(name, FLOAT), sizes) for name, sizes in inputs.items()],
        [helper.make_tensor_value_info(name, kinds.get(name, FLOAT), None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made = helper.make_model(graph, opset_imports=opsets, functions=list(functions))
    made.ir_version = 8
    return made


def session(source: onnx.ModelProto | str | Path, optimize: bool = False) -> onnxruntime.InferenceSession:
    """ONNX Runtime on one thread, each node as the file has it unless `optimize`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    data = source.SerializeToString() if isinstance(source, onnx.ModelProto) else str(source)
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def reference(source: onnx.ModelProto | str | Path, *inputs: np.ndarray) -> list[np.ndarray]:
    """ONNX Runtime's outputs."""
    runtime = session(source)
    found: list[np.ndarray] = runtime.run(None, dict(zip((i.name for i in runtime.get_inputs()), inputs, strict=True)))
    return found


def random(*sizes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(sizes).astype(np.float32)


def exported(network: nn.Module, *inputs: torch.Tensor, opset: int = 17, dynamo: bool = False) -> bytes:
    """torch.onnx.export of a network whose first input is called "input"."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(network, inputs, stream, dynamo=True, input_names=["input"], verbose=False)
        else:
            torch.onnx.export(network, inputs, stream, dynamo=False, opset_version=opset, input_names=["input"])
    return stream.getvalue()


def quantized_static(data: bytes, batches: Iterable[np.ndarray], form: str, activations: str, weights: str) -> bytes:
    """What onnxruntime.quantization.quantize_static makes of a model; form: "QDQ" or "QOperator"; activations:
    "QUInt8" or "QInt8"; weights: the same, followed by " per channel" or not."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch}

    kind, _, per_channel = weights.partition(" ")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            names = [str(Path(folder) / f"{name}.onnx") for name in ("float", "prepared", "quantized")]
            Path(names[0]).write_bytes(data)
            quant_pre_process(names[0], names[1])
            quantize_static(
                names[1], names[2], Reader(), quant_format=QuantFormat[form], activation_type=QuantType[activations],
                weight_type=QuantType[kind], per_channel=bool(per_channel),
            )  # fmt: skip
            return Path(names[2]).read_bytes()
    finally:
        logging.disable(before)
