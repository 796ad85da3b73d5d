"""Small real model files of every format that is read, for the fuzzer to damage: (name, bytes, keyword arguments)."""

from __future__ import annotations

import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Files = list[tuple[str, bytes, dict[str, Any]]]


def _rng() -> np.random.Generator:
    """The same at every call: a file does not depend on which were made before."""
    return np.random.default_rng(7)


def corpus(format: str, folder: Path | None = None) -> Files:
    """The files of a format, and those of a folder beside them. Raises ModuleNotFoundError if what makes them is not
    installed."""
    found = MAKERS[format]()
    for path in sorted(folder.iterdir()) if folder else []:
        if path.is_file():
            found.append((path.name, path.read_bytes(), dict(found[0][2])))
    return found


# ---- TFLite ----


def tflite() -> Files:
    return [(make.__name__, make(), {}) for make in (_convolutions, _shape_arithmetic, _float_network, _tables, _moves)]


def _convolutions() -> bytes:
    from tflite_models import Builder

    m = Builder("convolutions")
    x = m.tensor("x", (1, 8, 8, 3), "int8", scale=0.1, zero_point=3)
    scales = _rng().uniform(0.01, 0.02, 4)
    w = m.constant("w", _rng().integers(-127, 128, (4, 3, 3, 3)).astype(np.int8), scale=scales, axis=0)
    b = m.constant("b", _rng().integers(-99, 99, 4).astype(np.int32), scale=0.1 * scales, axis=0)
    y = m.tensor("y", (1, 8, 8, 4), "int8", scale=0.2, zero_point=-5)
    m.op("CONV_2D", [x, w, b], [y], "Conv2DOptions", padding="SAME", strideH=1, strideW=1, dilationHFactor=1,
         dilationWFactor=1, fusedActivationFunction="RELU6")  # fmt: skip
    d = m.constant("d", _rng().integers(-127, 128, (1, 3, 3, 4)).astype(np.int8), scale=scales, axis=3)
    z = m.tensor("z", (1, 4, 4, 4), "int8", scale=0.3, zero_point=1)
    m.op("DEPTHWISE_CONV_2D", [y, d, b], [z], "DepthwiseConv2DOptions", padding="SAME", strideH=2, strideW=2,
         depthMultiplier=1, dilationHFactor=1, dilationWFactor=1)  # fmt: skip
    s = m.tensor("s", (1, 4, 4, 4), "int8", scale=0.4, zero_point=-1)
    m.op("ADD", [z, z], [s], "AddOptions")
    p = m.tensor("p", (1, 2, 2, 4), "int8", scale=0.4, zero_point=-1)
    m.op("MAX_POOL_2D", [s], [p], "Pool2DOptions", padding="VALID", strideH=2, strideW=2, filterHeight=2, filterWidth=2)
    mean = m.tensor("mean", (1, 4), "int8", scale=0.4, zero_point=-1)
    m.op("MEAN", [p, m.constant("axes", np.array([1, 2], np.int32))], [mean], "ReducerOptions")
    f = m.constant("f", _rng().integers(-127, 128, (5, 4)).astype(np.int8), scale=0.01)
    out = m.tensor("out", (1, 5), "int8", scale=0.5, zero_point=0)
    m.op("FULLY_CONNECTED", [mean, f, -1], [out], "FullyConnectedOptions")
    soft = m.tensor("soft", (1, 5), "int8", scale=1 / 256, zero_point=-128)
    m.op("SOFTMAX", [out], [soft], "SoftmaxOptions", beta=1.0)
    return m.build([x], [soft])


def _shape_arithmetic() -> bytes:
    from tflite_models import Builder

    m = Builder("shape arithmetic")
    x = m.tensor("x", (1, 4, 4, 2), "float32")
    sizes = m.tensor("sizes", (4,), "int32")
    m.op("SHAPE", [x], [sizes], "ShapeOptions", outType=2)
    ends = [m.constant(f"end{i}", np.array([i], np.int32)) for i in (0, 1)]
    batch = m.tensor("batch", (), "int32")
    m.op("STRIDED_SLICE", [sizes, *ends, ends[1]], [batch], "StridedSliceOptions", shrinkAxisMask=1)
    rest = m.constant("rest", np.array(32, np.int32))
    shape = m.tensor("shape", (2,), "int32")
    m.op("PACK", [batch, rest], [shape], "PackOptions", valuesCount=2)
    y = m.tensor("y", (1, 32), "float32")
    m.op("RESHAPE", [x, shape], [y], "ReshapeOptions")
    parts = [m.tensor(f"part{i}", (1, 16), "float32") for i in range(2)]
    m.op("SPLIT", [m.constant("axis", np.array(1, np.int32)), y], parts, "SplitOptions", numSplits=2)
    z = m.tensor("z", (1, 32), "float32")
    m.op("CONCATENATION", parts[::-1], [z], "ConcatenationOptions", axis=-1)
    g = m.tensor("g", (1, 3), "float32")
    m.op("GATHER", [z, m.constant("rows", np.array([3, 1, 31], np.int32))], [g], "GatherOptions", axis=1)
    t = m.tensor("t", (2, 3), "float32")
    m.op("TILE", [g, m.constant("times", np.array([2, 1], np.int32))], [t], "TileOptions")
    return m.build([x], [t, z])


def _float_network() -> bytes:
    from tflite_models import Builder

    m = Builder("float")
    x = m.tensor("x", (1, 6, 6, 3), "float32")
    half = m.constant("half", _rng().standard_normal((4, 3, 3, 3)).astype(np.float16))
    w = m.tensor("w", (4, 3, 3, 3), "float32")
    m.op("DEQUANTIZE", [half], [w], "DequantizeOptions")
    y = m.tensor("y", (1, 2, 2, 4), "float32")
    b = m.constant("b", np.ones(4, np.float32))
    m.op("CONV_2D", [x, w, b], [y], "Conv2DOptions", padding="VALID", strideH=2, strideW=2, dilationHFactor=1,
         dilationWFactor=1)  # fmt: skip
    big = m.tensor("big", (1, 4, 4, 4), "float32")
    m.op("RESIZE_BILINEAR", [y, m.constant("size", np.array([4, 4], np.int32))], [big], "ResizeBilinearOptions",
         halfPixelCenters=True)  # fmt: skip
    padded = m.tensor("padded", (1, 6, 6, 4), "float32")
    pads = np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)
    m.op("MIRROR_PAD", [big, m.constant("pads", pads)], [padded], "MirrorPadOptions", mode=0)
    q = m.tensor("q", (1, 6, 6, 4), "uint8", scale=0.1, zero_point=128)
    m.op("QUANTIZE", [padded], [q], "QuantizeOptions")
    return m.build([x], [q])


def _tables() -> bytes:
    from tflite_models import Builder

    m = Builder("tables")
    x = now = m.tensor("x", (1, 3, 5), "int8", scale=0.05, zero_point=-3)
    for i, (code, options, fields) in enumerate([
        ("LOGISTIC", None, {}), ("TANH", None, {}), ("LEAKY_RELU", "LeakyReluOptions", {"alpha": 0.1}),
        ("HARD_SWISH", "HardSwishOptions", {}), ("RELU6", None, {}), ("ABS", "AbsOptions", {}),
        ("GELU", "GeluOptions", {"approximate": True}),
    ]):  # fmt: skip
        y = m.tensor(f"y{i}", (1, 3, 5), "int8", scale=1 / 256 if code == "LOGISTIC" else 1 / 128,
                     zero_point=-128 if code == "LOGISTIC" else 0)  # fmt: skip
        m.op(code, [now], [y], options, **fields)
        now = y
    return m.build([x], [now])


def _moves() -> bytes:
    from tflite_models import Builder

    m = Builder("moves")
    x = m.tensor("x", (1, 4, 4, 4), "int8", scale=0.1, zero_point=0)
    turned = m.tensor("turned", (1, 4, 4, 4), "int8", scale=0.1, zero_point=0)
    m.op("TRANSPOSE", [x, m.constant("order", np.array([0, 2, 3, 1], np.int32))], [turned], "TransposeOptions")
    part = m.tensor("part", (1, 2, 4, 4), "int8", scale=0.1, zero_point=0)
    begin = m.constant("begin", np.array([0, 1, 0, 0], np.int32))
    size = m.constant("size", np.array([1, 2, -1, 4], np.int32))
    m.op("SLICE", [turned, begin, size], [part], "SliceOptions")
    deep = m.tensor("deep", (1, 1, 2, 16), "int8", scale=0.1, zero_point=0)
    m.op("SPACE_TO_DEPTH", [part], [deep], "SpaceToDepthOptions", blockSize=2)
    best = m.tensor("best", (1, 1, 2), "int64")
    m.op("ARG_MAX", [deep, m.constant("axis", np.array(3, np.int32))], [best], "ArgMaxOptions", outputType=4)
    return m.build([x], [best, deep])


# ---- ONNX ----


def onnx() -> Files:
    return [(make.__name__, make(), {}) for make in (_onnx_network, _onnx_quantized, _onnx_shapes)]


def _onnx_model(nodes: list[Any], inputs: dict[str, Any], outputs: list[str], constants: dict[str, Any]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _onnx_network() -> bytes:
    from onnx.helper import make_node

    nodes = [
        make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        make_node("BatchNormalization", ["c", "one", "b", "b", "one"], ["n"]),
        make_node("Relu", ["n"], ["r"]),
        make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        make_node("GlobalAveragePool", ["p"], ["g"]),
        make_node("Flatten", ["g"], ["f"]),
        make_node("Gemm", ["f", "m"], ["y"], transB=1, alpha=0.5),
        make_node("Softmax", ["y"], ["s"], axis=-1),
    ]
    w, m = _rng().standard_normal((4, 3, 3, 3)).astype(np.float32), _rng().standard_normal((5, 4)).astype(np.float32)
    constants = {"w": w, "b": np.zeros(4, np.float32), "one": np.ones(4, np.float32), "m": m}
    return _onnx_model(nodes, {"x": [1, 3, 8, 8]}, ["s"], constants)


def _onnx_quantized() -> bytes:
    from onnx.helper import make_node

    nodes = [
        make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=0),
        make_node("Conv", ["d", "dw"], ["c"], pads=[1, 1, 1, 1]),
        make_node("QuantizeLinear", ["c", "s", "z"], ["qc"]),
        make_node("DequantizeLinear", ["qc", "s", "z"], ["y"]),
    ]
    constants = {
        "s": np.float32(0.1), "z": np.uint8(128), "w": _rng().integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "ws": _rng().uniform(0.01, 0.02, 4).astype(np.float32), "wz": np.zeros(4, np.int8),
    }  # fmt: skip
    return _onnx_model(nodes, {"x": [1, 3, 8, 8]}, ["y"], constants)


def _onnx_shapes() -> bytes:
    from onnx.helper import make_graph, make_node, make_tensor_value_info

    branch = make_graph([make_node("Neg", ["t"], ["no"])], "no", [], [make_tensor_value_info("no", 1, None)])
    other = make_graph([make_node("Abs", ["t"], ["yes"])], "yes", [], [make_tensor_value_info("yes", 1, None)])
    nodes = [
        make_node("Shape", ["x"], ["sizes"]),
        make_node("Gather", ["sizes", "zero"], ["batch"], axis=0),
        make_node("Unsqueeze", ["batch", "axes"], ["row"]),
        make_node("Concat", ["row", "rest"], ["shape"], axis=0),
        make_node("Reshape", ["x", "shape"], ["flat"]),
        make_node("Slice", ["flat", "begin", "end", "one", "step"], ["part"]),
        make_node("Transpose", ["part"], ["t"], perm=[1, 0]),
        make_node("If", ["true"], ["y"], then_branch=other, else_branch=branch),
        make_node("Expand", ["y", "wide"], ["z"]),
    ]
    vectors = {"axes": [0], "rest": [-1], "begin": [0], "end": [16], "one": [1], "step": [2], "wide": [3, 8, 1]}
    constants: dict[str, Any] = {name: np.array(value, np.int64) for name, value in vectors.items()}
    return _onnx_model(
        nodes, {"x": [1, 2, 4, 4]}, ["z"], {**constants, "zero": np.int64(0), "true": np.bool_(True)}
    )  # fmt: skip


# ---- PyTorch ----


class _Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x))
        return torch.softmax(self.linear(x.mean((2, 3))), 1)


def _small() -> torch.nn.Module:
    torch.manual_seed(0)
    return _Small().eval()


def torchscript() -> Files:
    from torch.ao import quantization as eager

    example = torch.ones(1, 3, 6, 6)
    described = {"input_desc": {"x": ((1, 3, 6, 6), "float32")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = torch.nn.Sequential(eager.QuantStub(), torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), eager.DeQuantStub())
        wrapped.eval()
        wrapped.qconfig = eager.get_default_qconfig("qnnpack")  # type: ignore[assignment]
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "qnnpack"
        try:
            prepared = eager.prepare(eager.fuse_modules(wrapped, [["1", "2"]]))
            prepared(example)
            converted = torch.jit.trace(eager.convert(prepared), example)
        finally:
            torch.backends.quantized.engine = before
        traced, scripted = torch.jit.trace(_small(), example), torch.jit.script(_small())
        files: Files = []
        for name, module in (("traced", traced), ("scripted", scripted), ("quantized", converted)):
            buffer = io.BytesIO()
            torch.jit.save(module, buffer)
            files.append((name, buffer.getvalue(), described))
    return files


def pt2() -> Files:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt2")
        torch.export.save(torch.export.export(_small(), (torch.ones(1, 3, 6, 6),)), path)
        return [("exported", path.read_bytes(), {})]


def keras() -> Files:
    if importlib.util.find_spec("tensorflow") is None:
        raise ModuleNotFoundError("tensorflow is not installed")
    import keras as library

    network = library.Sequential([
        library.Input((6, 6, 3)), library.layers.Conv2D(4, 3, activation="relu"),
        library.layers.GlobalAveragePooling2D(), library.layers.Dense(2),
    ])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        network.save(path)
        return [("keras", path.read_bytes(), {})]


def mera() -> Files:
    from mera_torch import ModelQuantizer

    quantizer = ModelQuantizer(_small(), (1, 3, 6, 6)).calibrate([torch.ones(1, 3, 6, 6)], progress=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.mera")
        quantizer.quantize(progress=False).save(path)
        return [("quantized", path.read_bytes(), {})]


MAKERS: dict[str, Callable[[], Files]] = {
    "tflite": tflite, "onnx": onnx, "torchscript": torchscript, "pt2": pt2, "keras": keras, "mera": mera,
}  # fmt: skip
