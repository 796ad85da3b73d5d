"""Other runtimes on the same network, where installed: prepare(name, model, example, folder) -> a function to time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

Run = Callable[[Tensor], object]
LITERT_MODELS = "MERA_BENCHMARK_TFLITE"


def pytorch(name: str, model: nn.Module, example: Tensor, folder: Path) -> Run:
    """Eager float32."""
    return model


def onnxruntime_int8(name: str, model: nn.Module, example: Tensor, folder: Path) -> Run:
    """ONNX Runtime on a QDQ model, per-channel int8 weights, as its own quantize_static makes it."""
    import onnxruntime
    import onnxscript  # noqa: F401  torch.onnx needs it, and would say so only in the middle
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"x": example.numpy()}]

        def get_next(self) -> dict[str, object] | None:
            return self.left.pop() if self.left else None

    exported, source, target = (folder / f"{stage}.onnx" for stage in ("exported", "float", "int8"))
    torch.onnx.export(model, (example,), exported, input_names=["x"], dynamo=True, verbose=False, external_data=False)
    quant_pre_process(exported, source)
    quantization.quantize_static(
        source,
        target,
        Calibration(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})


def litert_int8(name: str, model: nn.Module, example: Tensor, folder: Path) -> Run:
    """LiteRT on an INT8 TFLite file of the same architecture: NAME.tflite in the folder $MERA_BENCHMARK_TFLITE."""
    from ai_edge_litert.interpreter import Interpreter

    path = Path(os.environ.get(LITERT_MODELS, "")) / f"{name}.tflite"
    if not path.is_file():
        raise ImportError(f"${LITERT_MODELS} names no folder with {name}.tflite")
    interpreter = Interpreter(model_path=str(path), num_threads=torch.get_num_threads())
    interpreter.allocate_tensors()
    return lambda _: interpreter.invoke()


PEERS: dict[str, Callable[[str, nn.Module, Tensor, Path], Run]] = {
    "PyTorch float32": pytorch,
    "ONNX Runtime INT8": onnxruntime_int8,
    "LiteRT INT8": litert_int8,
}
