"""Quantized ONNX models: what onnxruntime.quantization makes compiles as one region, and each node computes what ONNX
Runtime does, at most one step apart."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

onnx = pytest.importorskip("onnx", reason="package onnx reads ONNX files")
pytest.importorskip("onnxruntime", reason="package onnxruntime is the reference")

from compiled import SETTINGS, built, port_of, run  # noqa: E402
from onnx.helper import make_node  # noqa: E402
from onnx_models import exported, model, quantized_static, random, reference, session  # noqa: E402

from mera_torch import native, passes  # noqa: E402
from mera_torch.backend.capture import capture  # noqa: E402
from mera_torch.backend.partition import partition  # noqa: E402
from mera_torch.backend.runtime import last_uses, on, run_steps  # noqa: E402
from mera_torch.backend.to_dna import Border, Lowering  # noqa: E402
from mera_torch.compile import build  # noqa: E402
from mera_torch.converters import from_onnx  # noqa: E402
from mera_torch.errors import InvalidModelError  # noqa: E402
from mera_torch.ops.common import origins  # noqa: E402

qd: Any = torch.ops.quantized_decomposed

KINDS = [("QUInt8", "QInt8 per channel"), ("QInt8", "QInt8 per channel"), ("QUInt8", "QUInt8"), ("QUInt8", "QInt8")]
FORMS = ["QDQ", "QOperator"]


class Classifier(nn.Module):
    """Strided, depthwise, pointwise and dilated convolutions, relus, concatenation, both pools and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.pointwise, self.dilated = nn.Conv2d(16, 24, 1), nn.Conv2d(16, 24, 3, padding=2, dilation=2)
        self.head = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        a, b = F.relu6(self.pointwise(self.depthwise(x))), F.leaky_relu(self.dilated(x), 0.1)
        x = F.avg_pool2d(F.max_pool2d(torch.cat([a, b], 1), 3, 2, 1), 2)
        return self.head(x.mean((2, 3)))


class Gates(nn.Module):
    """Squeeze-and-excite, a residual, nearest resizing, slices and a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.body, self.out = nn.Conv2d(16, 16, 5, 1, 2), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        y = x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        y = F.interpolate(y + self.body(y), scale_factor=2, mode="nearest")
        return torch.sigmoid(self.out(y[:, :, ::2, 1:-1]))


NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "classifier": (Classifier, (1, 3, 32, 32)),
    "gates": (Gates, (1, 3, 16, 16)),
}


@lru_cache
def quantized(name: str, form: str, activations: str, weights: str) -> bytes:
    network, sizes = NETWORKS[name]
    torch.manual_seed(0)
    data = exported(network().eval(), torch.zeros(sizes))
    return quantized_static(data, [random(*sizes, seed=i) for i in range(4)], form, activations, weights)


# ---- node by node ----


def quantized_tensors(made: onnx.ModelProto) -> dict[str, str]:
    """Node name -> the quantized tensor that it, or the quantize behind it, makes."""
    makers = {output: node for node in made.graph.node for output in node.output}
    kinds = {t.name for t in made.graph.initializer}
    found = {}
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear" or node.op_type.startswith(("QLinear", "QGemm")):
            found[node.name] = node.output[0]
            source = makers.get(node.input[0])
            while node.op_type == "QuantizeLinear" and source is not None and source.op_type != "DequantizeLinear":
                found[source.name] = node.output[0]
                source = makers.get(source.input[0]) if source.input[0] not in kinds else None
    return found


def cut(made: onnx.ModelProto, given: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The model with each of these tensors an input, and what it computes for it an output "... made"."""
    result = onnx.ModelProto()
    result.CopyFrom(made)
    del result.graph.output[:], result.graph.value_info[:]
    for node in result.graph.node:
        for index, name in enumerate(node.output):
            if name in given:
                kind = onnx.helper.np_dtype_to_tensor_dtype(given[name].dtype)
                node.output[index] = f"{name} made"
                result.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, given[name].shape))
                result.graph.output.append(onnx.helper.make_tensor_value_info(f"{name} made", kind, given[name].shape))
    return result


def on_the_dna(data: bytes, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Node name of the file -> what the interpreter computes for it, int8, of the one region."""
    gm = passes.run(capture(from_onnx(data), (x,)).gm)
    (region,) = partition(gm).regions
    low = Lowering("region", gm)
    assert low.run(region.inputs, region.nodes, region.outputs) == []
    stored = [port_of(b).store(b.node.target(x, *b.node.args[1:]).numpy()) for b in low.inputs]
    tensors = native.Interpreter(low.graph).run_all(stored)
    found = {}
    for node in region.nodes:
        held = low.values[node]
        array = port_of(Border(node, held.form, held.q, held.tensor)).fetch(tensors[held.tensor])
        found.update({origin.module: array.copy() for origin in origins(node)})
    return found


def worst_step(data: bytes, x: np.ndarray, unsigned: bool) -> tuple[int, int]:
    """The largest difference between the DNA and ONNX Runtime of a node that both give the same inputs, and the number
    of nodes compared."""
    made = onnx.load_from_string(data)
    computed = on_the_dna(data, torch.from_numpy(x))
    named = quantized_tensors(made)
    given = {}
    for node, array in computed.items():
        if node in named:
            given[named[node]] = (array.astype(np.int16) + 128).astype(np.uint8) if unsigned else array
    runtime = session(cut(made, given))
    results = runtime.run(None, {"input": x, **given})
    names = [output.name.removesuffix(" made") for output in runtime.get_outputs()]
    steps = [
        int(np.abs(result.astype(int) - given[name].astype(int)).max())
        for name, result in zip(names, results, strict=True)
    ]
    return max(steps), len(steps)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("activations", "weights"), KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_one_region_one_step_from_onnx_runtime(name: str, form: str, activations: str, weights: str) -> None:
    data = quantized(name, form, activations, weights)
    x = random(*NETWORKS[name][1], seed=99)
    step, count = worst_step(data, x, activations == "QUInt8")
    assert step <= 1 and count >= 8
    result = built(from_onnx(data), torch.from_numpy(x))
    assert len(result.regions) == 1
    run(result, torch.from_numpy(x))


def test_weights_stay_integers() -> None:
    converted = from_onnx(quantized("classifier", "QDQ", "QUInt8", "QInt8 per channel"))
    held = {
        node.args[0].target: (node.target, getattr(converted, str(node.args[0].target)).dtype)
        for node in converted.graph.nodes
        if node.op == "call_function" and "dequantize" in str(node.target) and node.args[0].op == "get_attr"
    }
    kinds = [kind for _, kind in held.values()]
    assert kinds.count(torch.int8) == 5 and kinds.count(torch.int32) == 5
    assert sum(target is qd.dequantize_per_channel.default for target, _ in held.values()) == 10
    floats = [v for v in converted.state_dict().values() if v.dtype == torch.float32]
    assert all(v.dim() == 1 for v in floats)  # scales alone


# ---- operators of ONNX Runtime ----

SCALES = {
    "s": np.float32(0.05), "z": np.uint8(120), "t": np.float32(0.03), "u": np.uint8(7), "r": np.float32(0.04),
    "v": np.uint8(99),
}  # fmt: skip
UNARY = [
    ("QLinearSigmoid", {}), ("QLinearLeakyRelu", {"alpha": 0.2}), ("QLinearGlobalAveragePool", {"channels_last": 0}),
    ("QLinearAveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("QLinearSoftmax", {"axis": 1, "opset": 13}), ("QLinearSoftmax", {"axis": 1, "opset": 12}),
    ("QLinearGlobalAveragePool", {"channels_last": 1}),
]  # fmt: skip


def quantized_inputs(*sizes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return tuple(generator.integers(0, 256, sizes).astype(np.uint8) for _ in range(2))  # type: ignore[return-value]


def close(made: onnx.ModelProto, *inputs: np.ndarray) -> None:
    """At most one step from ONNX Runtime."""
    with torch.no_grad():
        got = from_onnx(made)(*(torch.from_numpy(x) for x in inputs)).numpy()
    (wanted,) = reference(made, *inputs)
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    assert np.abs(got.astype(np.int64) - wanted.astype(np.int64)).max() <= 1


@pytest.mark.parametrize(("op", "attributes"), UNARY, ids=str)
def test_quantized_functions_of_one_tensor(op: str, attributes: dict[str, Any]) -> None:
    node = make_node(op, ["x", "s", "z", "t", "u"], ["y"], domain="com.microsoft", **attributes)
    kinds = dict.fromkeys("xy", onnx.TensorProto.UINT8)
    made = model([node], {"x": [1, 4, 6, 6]}, constants=SCALES, kinds=kinds, domains=["com.microsoft"])
    close(made, quantized_inputs(1, 4, 6, 6)[0])


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_quantized_functions_of_two_tensors(op: str) -> None:
    node = make_node(op, ["x", "s", "z", "w", "t", "u", "r", "v"], ["y"], domain="com.microsoft")
    kinds = dict.fromkeys("xwy", onnx.TensorProto.UINT8)
    sizes = [1, 4, 6, 6]
    made = model([node], {"x": sizes, "w": sizes}, constants=SCALES, kinds=kinds, domains=["com.microsoft"])
    close(made, *quantized_inputs(*sizes))


def test_quantized_concatenation_and_product() -> None:
    kinds = dict.fromkeys("xwy", onnx.TensorProto.UINT8)
    node = make_node("QLinearConcat", ["r", "v", "x", "s", "z", "w", "t", "u"], ["y"], domain="com.microsoft", axis=1)
    made = model([node], {"x": [2, 3], "w": [2, 3]}, constants=SCALES, kinds=kinds, domains=["com.microsoft"])
    close(made, *quantized_inputs(2, 3))
    weight = np.random.default_rng(1).integers(-127, 128, (6, 5)).astype(np.int8)
    constants = SCALES | {"q": weight, "c": np.array([0.01, 0.02, 0.03, 0.01, 0.05], np.float32),
                          "d": np.zeros(5, np.int8), "bias": np.arange(5).astype(np.int32) * 100}  # fmt: skip
    node = make_node(
        "QGemm", ["x", "s", "z", "q", "c", "d", "bias", "r", "v"], ["y"], domain="com.microsoft", alpha=1.0
    )
    made = model([node], {"x": [4, 6]}, constants=constants, kinds=kinds, domains=["com.microsoft"])
    close(made, quantized_inputs(4, 6)[0])
    node = make_node("QLinearMatMul", ["x", "s", "z", "q", "c", "d", "r", "v"], ["y"])
    close(model([node], {"x": [4, 6]}, constants=constants, kinds=kinds), quantized_inputs(4, 6)[0])


def test_integer_products_are_exact() -> None:
    x, w = quantized_inputs(1, 40, 9, 9)[0], np.random.default_rng(1).integers(0, 256, (8, 40, 3, 3)).astype(np.uint8)
    kinds = {"x": onnx.TensorProto.UINT8, "y": onnx.TensorProto.INT32}
    node = make_node("ConvInteger", ["x", "w", "z", "u"], ["y"], pads=[1, 1, 1, 1])
    made = model([node], {"x": list(x.shape)}, constants=SCALES | {"w": w}, kinds=kinds)
    assert np.array_equal(from_onnx(made)(torch.from_numpy(x)).numpy(), reference(made, x)[0])
    node = make_node("MatMulInteger", ["x", "w", "z", "u"], ["y"])
    x, w = x.reshape(40, 81), w.reshape(-1)[: 81 * 7].reshape(81, 7)
    made = model([node], {"x": [40, 81]}, constants=SCALES | {"w": w}, kinds=kinds)
    assert np.array_equal(from_onnx(made)(torch.from_numpy(x)).numpy(), reference(made, x)[0])


def test_dynamic_quantization_runs() -> None:
    nodes = [
        make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]  # fmt: skip
    made = model(nodes, {"x": [5, 7]})
    x = random(5, 7)
    np.testing.assert_allclose(from_onnx(made)(torch.from_numpy(x)).numpy(), reference(made, x)[0], atol=1e-6)


@pytest.mark.parametrize("to", [np.int8, np.uint8, np.int16, np.uint16])
def test_quantize_and_dequantize(to: type) -> None:
    x = 30 * random(4, 3, 5)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to))
    limits = np.iinfo(to)
    for axis, scale in (
        (None, np.float32(0.3)),
        (1, np.float32([0.1, 0.3, 0.7])),
        (-1, np.float32([1, 2, 3, 4, 5]) / 9),
    ):
        zero = np.linspace(limits.min / 2, limits.max / 2, np.size(scale)).astype(to).reshape(scale.shape)
        axes = {} if axis is None else {"axis": axis}
        nodes = [make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **axes)]
        made = model(nodes, {"x": [4, 3, 5]}, ["q"], {"s": scale, "z": zero}, opset=21, kinds={"q": kind})
        got, wanted = from_onnx(made)(torch.from_numpy(x)).numpy(), reference(made, x)[0]
        assert got.dtype == wanted.dtype and np.abs(got.astype(int) - wanted.astype(int)).max() <= 1
        nodes.append(make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **axes))
        made = model(nodes, {"x": [4, 3, 5]}, ["y"], {"s": scale, "z": zero}, opset=21)
        assert np.abs(from_onnx(made)(torch.from_numpy(x)).numpy() - reference(made, x)[0]).max() <= 1.001 * scale.max()


def test_scales_must_be_positive_and_fit() -> None:
    for scale, sentence in (
        (np.float32(0), "its scale must be a positive number"),
        (np.float32(np.nan), "its scale must be a positive number"),
        (np.float32([1, 2]), "its scales must be one for each of 3 indices"),
    ):  # fmt: skip
        node = make_node("QuantizeLinear", ["x", "s"], ["y"], name="q7")
        kinds = {"y": onnx.TensorProto.UINT8}
        with pytest.raises(InvalidModelError, match=f"'q7': {sentence}"):
            from_onnx(model([node], {"x": [2, 3]}, constants={"s": scale}, kinds=kinds))


# ---- MobileNetV2 ----


def crops(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random crops, some mirrored, of the zoo's photos, normalized, [count, 3, 224, 224]; and the photos' labels."""
    from PIL import Image

    from mera_torch.zoo_models import MODELS, photos

    zoo = MODELS["mobilenet_v2"]
    generator = np.random.default_rng(0)
    found, labels = [], []
    for photo in photos():
        image = Image.open(io.BytesIO(photo.data)).convert("RGB")
        for _ in range(count // 20):
            side = int(generator.uniform(0.6, 1) * min(image.size))
            left, top = (int(generator.integers(0, size - side + 1)) for size in image.size)
            part = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BILINEAR)
            if generator.random() < 0.5:
                part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = np.asarray(part, np.float32)
            found.append(((pixels - np.float32(zoo.mean)) / np.float32(zoo.std)).transpose(2, 0, 1))
            labels.append(photo.label)
    return np.stack(found).astype(np.float32), np.array(labels)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("activations", "weights"), KINDS)
def test_mobilenet_v2(form: str, activations: str, weights: str, zoo_artifact: Any) -> None:
    """One region; each node within a step; top-1 on 200 crops of real photos as often right as ONNX Runtime's, and
    equal to it as often as ONNX Runtime's own two ways of computing the file (integer kernels, or node by node as the
    file has it) agree, which differ in single roundings too."""
    for name in ("mobilenet_v2", "photos"):
        zoo_artifact(name)
    from mera_torch.zoo_models import MODELS

    images, labels = crops(200)
    network = MODELS["mobilenet_v2"].load()
    data = quantized_static(
        exported(network, torch.zeros(1, 3, 224, 224)), images[::10, None], form, activations, weights
    )
    step, count = worst_step(data, images[:1], activations == "QUInt8")
    assert step <= 1 and count >= 60
    result = build(capture(from_onnx(data), (torch.from_numpy(images[:1]),)), SETTINGS)
    assert len(result.regions) == 1
    dead = last_uses(result.graph, result.regions)
    made = onnx.load_from_string(data)
    exact, fast = session(made), session(made, optimize=True)
    chosen = np.empty((3, len(images)), int)
    for i, image in enumerate(images[:, None]):
        (found,) = run_steps(result.graph, result.regions, on("InterpreterHw"), (torch.from_numpy(image),), dead)
        outputs = (found.numpy(), exact.run(None, {"input": image})[0], fast.run(None, {"input": image})[0])
        chosen[:, i] = [output.argmax() for output in outputs]
    dna, stepwise, integers = chosen
    right = (chosen == labels).sum(1)
    assert right[0] >= right[1:].max() - 6
    assert (dna == stepwise).sum() >= 0.88 * len(images) and (dna == integers).sum() >= 0.88 * len(images)
