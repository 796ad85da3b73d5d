"""The quantizers that are compared, each behind one signature: quantize(model, calibration) -> run.

model: a float32 module in evaluation mode with one input; calibration: its inputs, each of batch 1. run(input of batch
1) -> output, computed as the tool's own quantized model is: ours by InterpreterHw, as the DNA computes; torchao's and
NNCF's by their converted PyTorch module; ONNX Runtime's and TFLite's by their own runtime. ImportError: not installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mera_torch
from mera_torch.errors import UnsupportedError

from .plain import plain

Run = Callable[[Tensor], Tensor]
KINDS = ("digits", "photos", "outputs")
PER_CHANNEL_ACTIVATIONS = "activations quantized per channel before depthwise convolutions"
X86_FLOATS = "one input of each addition, products, batch norms after no convolution, pooling by mean, outputs"
NNCF_FLOATS = "outputs, inputs of convolutions after a pad"
NNCF_BEST = {"preset": "MIXED", "overflow_fix": "DISABLE", "fast_bias_correction": False}
TENSORS = ("digits", "mobilenet_v2", "efficientnet_lite0")
BEST = "equalize, bias correction, AdaRound"


@dataclass(frozen=True)
class Method:
    """name: unique; tool: the distribution whose version counts; options: as the tool names them; per_tensor: weights
    have one scale for all channels; floats: what it leaves in float32 that is int8 on the DNA; beyond: what it computes
    that the DNA cannot; then it is shown, not compared; planned: kinds of networks, or their names, that a whole run
    measures it on."""

    name: str
    tool: str
    quantize: Callable[..., Run]
    options: Mapping[str, Any] = field(default_factory=dict)
    per_tensor: bool = False
    floats: str = ""
    beyond: str = ""
    planned: tuple[str, ...] = KINDS

    def run(self, model: nn.Module, calibration: list[Tensor]) -> Run:
        """Quantizes `model`. Raises ImportError if the tool is not installed."""
        return self.quantize(model, calibration, **self.options)

    @property
    def version(self) -> str:
        try:
            return metadata.version(self.tool)
        except metadata.PackageNotFoundError:
            return "not installed"


def ours(model: nn.Module, calibration: list[Tensor], **config: Any) -> Run:
    """mera_torch.quantize; the result runs on InterpreterHw, byte for byte as on the DNA."""
    example = (calibration[0],)
    quantized = mera_torch.quantize(model, example, [(x,) for x in calibration], config=config, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        runner = mera_torch.export(quantized, example, Path(folder), target="InterpreterHw").get_runner()
    return runner


def torchao_x86(model: nn.Module, calibration: list[Tensor]) -> Run:
    """torchao's PT2E flow with X86InductorQuantizer in its default configuration."""
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    return _pt2e(model, calibration, quantizer)


def torchao_xnnpack(model: nn.Module, calibration: list[Tensor], *, per_channel: bool) -> Run:
    """torchao's PT2E flow with ExecuTorch's XNNPACKQuantizer in its symmetric configuration."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=per_channel)
    return _pt2e(model, calibration, xnnpack.XNNPACKQuantizer().set_global(config))


def _pt2e(model: nn.Module, calibration: list[Tensor], quantizer: Any) -> Run:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    with torch.no_grad():
        prepared = prepare_pt2e(_exported(model, calibration[0]), quantizer)
        for inputs in calibration:
            prepared(inputs)
        converted: Run = convert_pt2e(prepared)
    return _mostly_int8(converted)


def _exported(model: nn.Module, example: Tensor) -> nn.Module:
    """The exported graph of `model`, written with the modules of torch.nn that annotators recognize."""
    return torch.export.export(plain(model, example), (example,)).module()


def _mostly_int8(module: Any) -> Run:
    """`module`, if more than half of its convolutions and linears read int8; an annotator that does not recognize a
    network leaves it in float, whose accuracy says nothing."""
    layers = [node for node in module.graph.nodes if str(node.target).startswith(("aten.conv", "aten.linear"))]
    int8 = [node for node in layers if "dequantize" in str(node.args[0].target)]
    if 2 * len(int8) <= len(layers):
        raise UnsupportedError(f"only {len(int8)} of {len(layers)} convolutions and linears are in int8")
    run: Run = module
    return run


def onnxruntime_qdq(
    model: nn.Module, calibration: list[Tensor], *, per_channel: bool, method: str = "MinMax", **options: Any
) -> Run:
    """ONNX Runtime's quantize_static to a QDQ model, after its own quant_pre_process."""
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            return next(({"x": x.numpy()} for x in self.left), None)

    with tempfile.TemporaryDirectory() as name:
        exported, source, target = (Path(name) / f"{stage}.onnx" for stage in ("exported", "float", "int8"))
        onnx_file(model, calibration[0], exported)
        quant_pre_process(exported, source)
        quantization.quantize_static(
            source,
            target,
            Reader(),
            per_channel=per_channel,
            calibrate_method=quantization.CalibrationMethod[method],
            **options,
        )
        return _session(onnxruntime, target)


def _session(onnxruntime: Any, path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def onnx_file(model: nn.Module, example: Tensor, path: Path) -> None:
    """Writes `model` as ONNX, its input named x."""
    import onnxscript  # noqa: F401  torch.onnx needs it, and would say so only in the middle

    torch.onnx.export(model, (example,), path, input_names=["x"], dynamo=True, verbose=False, external_data=False)


def nncf(model: nn.Module, calibration: list[Tensor], **options: Any) -> Run:
    """NNCF's nncf.quantize on the exported FX graph; preset and advanced parameters by their names."""
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
        QuantizationParameters,
    )

    if preset := options.pop("preset", None):
        options["preset"] = nncf.QuantizationPreset[preset]
    advanced: dict[str, Any] = {}
    if fix := options.pop("overflow_fix", None):
        advanced["overflow_fix"] = OverflowFix[fix]
    if (per_channel := options.pop("per_channel", None)) is not None:
        advanced["activations_quantization_params"] = QuantizationParameters(per_channel=per_channel)
    options["advanced_parameters"] = AdvancedQuantizationParameters(**advanced)
    with torch.no_grad():
        exported = _exported(model, calibration[0])
        quantized = nncf.quantize(exported, nncf.Dataset(calibration), subset_size=len(calibration), **options)
    return _mostly_int8(quantized)


def tflite(model: nn.Module, calibration: list[Tensor], *, per_channel: bool = True) -> Run:
    """TensorFlow Lite's converter to full int8, on the same network rebuilt in TensorFlow (tf_twin.py)."""
    from . import tflite as adapter

    return adapter.quantize(model, calibration, per_channel=per_channel)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("mera_torch", "mera_torch", ours),
        Method(f"mera_torch, {BEST}", "mera_torch", ours, {"equalize": True, "correct_bias": True, "adaround": True}),
        Method("torchao X86Inductor", "torchao", torchao_x86, floats=X86_FLOATS),
        Method("torchao XNNPACK, per channel", "executorch", torchao_xnnpack, {"per_channel": True}),
        Method("ONNX Runtime, per channel, MinMax", "onnxruntime", onnxruntime_qdq, {"per_channel": True}),
        Method(
            "ONNX Runtime, per channel, Percentile",
            "onnxruntime",
            onnxruntime_qdq,
            {"per_channel": True, "method": "Percentile"},
            planned=("digits", "photos"),
        ),
        Method("TFLite converter", "tensorflow_cpu", tflite),
        Method("NNCF", "nncf", nncf, floats=NNCF_FLOATS, beyond=PER_CHANNEL_ACTIVATIONS, planned=("mobilenet_v2",)),
        Method(
            "NNCF, mixed preset, full range, bias correction",
            "nncf",
            nncf,
            NNCF_BEST,
            floats=NNCF_FLOATS,
            beyond=PER_CHANNEL_ACTIVATIONS,
            planned=("mobilenet_v2",),
        ),
        Method(
            "NNCF, the same, activations per tensor",
            "nncf",
            nncf,
            {**NNCF_BEST, "per_channel": False},
            floats=NNCF_FLOATS,
        ),
        Method(
            "mera_torch, per tensor",
            "mera_torch",
            ours,
            {"per_channel_weights": False},
            per_tensor=True,
            planned=TENSORS,
        ),
        Method(
            "mera_torch, per tensor, equalize",
            "mera_torch",
            ours,
            {"per_channel_weights": False, "equalize": True},
            per_tensor=True,
            planned=TENSORS,
        ),
        Method(
            "torchao XNNPACK, per tensor",
            "executorch",
            torchao_xnnpack,
            {"per_channel": False},
            per_tensor=True,
            planned=TENSORS,
        ),
        Method(
            "ONNX Runtime, per tensor",
            "onnxruntime",
            onnxruntime_qdq,
            {"per_channel": False},
            per_tensor=True,
            planned=TENSORS,
        ),
        Method(
            "TFLite converter, per tensor",
            "tensorflow_cpu",
            tflite,
            {"per_channel": False},
            per_tensor=True,
            planned=TENSORS,
        ),
    )
}
