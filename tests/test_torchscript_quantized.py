"""INT8 modules of PyTorch's own eager and FX quantization: every quantized tensor within one step of PyTorch's, and
whole networks as one DNA region."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
import torch.nn.functional as F
from compiled import built, run, steps_apart_by_node
from models import SMALL_MODELS, set_batchnorm_statistics, torchvision_models
from torch import Tensor, fx, nn
from torch.ao.quantization import quantize_fx

from mera_torch.converters import ImportedModel, from_torchscript
from mera_torch.errors import UnsupportedError

qd: Any = torch.ops.quantized_decomposed
ENGINES = [e for e in ("x86", "fbgemm", "onednn", "qnnpack") if e in torch.backends.quantized.supported_engines]
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not ENGINES, reason="this PyTorch has no engine for quantized operators"),
]


@pytest.fixture(autouse=True)
def engine() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINES[0] if ENGINES else before
    yield
    torch.backends.quantized.engine = before


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def imported(module: nn.Module, *inputs: Tensor) -> tuple[ImportedModel, torch.jit.ScriptModule]:
    """The import of a traced module, and what torch.jit.load makes of the same file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.trace(module, inputs, check_trace=False), buffer)
    found = from_torchscript(buffer.getvalue(), {f"x{i}": (tuple(x.shape), x.dtype) for i, x in enumerate(inputs)})
    return found, torch.jit.load(io.BytesIO(buffer.getvalue()))


# ---- PyTorch's quantized tensors, one by one ----

MOVED = frozenset({
    "ListUnpack", "TupleUnpack", "ListConstruct", "view", "reshape", "flatten", "transpose", "contiguous", "chunk",
    "slice", "permute", "dropout", "split", "squeeze", "unsqueeze", "select",
})  # fmt: skip
"""Operators that only move values: the import does not quantize behind them."""


def quantized_tensors(module: torch.jit.ScriptModule, *inputs: Tensor) -> list[tuple[str, Tensor]]:
    """(operator, result) of every operator of a traced program that computes a quantized tensor, in order."""
    graph = module.inlined_graph.copy()
    torch._C._jit_pass_remove_mutation(graph)
    outputs = [
        (node.kind(), output)
        for node in graph.nodes()
        for output in node.outputs()
        if output.type().kind() == "TensorType" and not node.kind().startswith(("prim::GetAttr", "prim::Constant"))
    ]
    for _, output in outputs:
        graph.registerOutput(output)
    graph.makeMultiOutputIntoTuple()
    with torch.no_grad():
        values = torch._C._create_function_from_graph("f", graph)(module._c, *inputs)[-len(outputs) :]
    return [
        (kind, value)
        for (kind, _), value in zip(outputs, values, strict=True)
        if value.is_quantized and kind.partition("::")[2] not in MOVED
    ]


class Forced(fx.Interpreter):
    """Compares each quantized tensor with PyTorch's, and goes on with PyTorch's."""

    def __init__(self, module: fx.GraphModule, wanted: list[tuple[str, Tensor]]) -> None:
        super().__init__(module)
        self.wanted = iter(wanted)
        self.worst: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if n.target is not qd.quantize_per_tensor.default:
            return found
        kind, value = next(self.wanted)
        assert n.args[1:3] == (value.q_scale(), value.q_zero_point()) and found.shape == value.shape, kind
        held = value.int_repr()
        assert found.dtype == held.dtype
        self.worst[kind] = max(self.worst.get(kind, 0), int((found.int() - held.int()).abs().max()))
        return held


def check(module: nn.Module, *inputs: Tensor) -> ImportedModel:
    """The import, each of whose quantized tensors is within one step of PyTorch's from the same inputs."""
    found, loaded = imported(module, *inputs)
    forced = Forced(found, quantized_tensors(loaded, *inputs))
    with torch.no_grad():
        forced.run(*inputs)
    assert next(forced.wanted, None) is None, "PyTorch quantizes more tensors than the import"
    assert forced.worst and max(forced.worst.values()) <= 1, forced.worst
    return found


def calibrated(module: nn.Module, *data: Tensor, engine: str = "") -> nn.Module:
    """FX quantization."""
    engine = engine or ENGINES[0]
    torch.backends.quantized.engine = engine
    prepared = quantize_fx.prepare_fx(copy.deepcopy(module).eval(), tq.get_default_qconfig_mapping(engine), data)
    with torch.no_grad():
        prepared(*data)
    return quantize_fx.convert_fx(prepared)


# ---- single operators ----

Q = torch.ops.quantized


class Between(nn.Module):
    """quantize -> function -> dequantize if the result is quantized."""

    def __init__(self, function: Callable[[Tensor], Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.function, self.dtype = function, dtype

    def forward(self, x: Tensor) -> Any:
        y = self.function(torch.quantize_per_tensor(x, 0.05, 120 if self.dtype is torch.quint8 else -3, self.dtype))
        return y.dequantize() if isinstance(y, Tensor) and y.is_quantized else y


CHANNEL = [torch.linspace(0.5, 2, 6), torch.linspace(-1, 1, 6), torch.linspace(-0.5, 0.5, 6), torch.linspace(0.3, 2, 6)]
SLOPES = torch.quantize_per_tensor(CHANNEL[0], 0.01, 0, torch.quint8) if ENGINES else CHANNEL[0]
OPERATORS: dict[str, Callable[[Tensor], Any]] = {
    "add": lambda x: Q.add(x, x, 0.1, 3),
    "add_relu": lambda x: Q.add_relu(x, x, 0.1, 3),
    "mul": lambda x: Q.mul(x, x, 0.07, 2),
    "mul_relu": lambda x: Q.mul_relu(x, x, 0.07, 2),
    "add_scalar": lambda x: Q.add_scalar(x, 1.23),
    "add_scalar beyond the range": lambda x: Q.add_scalar(Q.add_scalar(x, 9.0), -25.0),
    "add_scalar_relu": lambda x: Q.add_scalar_relu(x, -1.0),
    "mul_scalar": lambda x: Q.mul_scalar(x, 1.7),
    "mul_scalar by a negative number": lambda x: Q.mul_scalar(x, -0.6),
    "mul_scalar_relu": lambda x: Q.mul_scalar_relu(x, 0.3),
    "matmul": lambda x: Q.matmul(x, x.transpose(2, 3).contiguous(), 0.2, 5),
    "cat": lambda x: Q.cat([x, Q.mul_scalar(x, 0.5), F.relu(x)], 1, 0.06, 7),
    "cat like the first": lambda x: torch.cat([x, Q.mul_scalar(x, 0.5)], 1),
    "cat_relu": lambda x: Q.cat_relu([x, x], 2, 0.06, 7),
    "hardswish": lambda x: Q.hardswish(x, 0.03, 12),
    "leaky_relu": lambda x: Q.leaky_relu(x, 0.1, False, 0.05, 30),
    "elu": lambda x: Q.elu(x, 0.04, 30, 1.0, 1.0, 1.0),
    "celu": lambda x: Q.celu(x, 0.04, 30, 1.0),
    "sigmoid with a scale": lambda x: Q.sigmoid(x, 1 / 200, 0),
    "softmax": lambda x: Q.softmax(x, 1, 1 / 256, 0),
    "prelu": lambda x: Q.prelu(x, SLOPES, 0.05, 20),
    "batch_norm2d": lambda x: Q.batch_norm2d(x, *CHANNEL, 1e-5, 0.06, 100),
    "batch_norm2d_relu": lambda x: Q.batch_norm2d_relu(x, *CHANNEL, 1e-5, 0.06, 10),
    "layer_norm": lambda x: Q.layer_norm(x, [12], torch.ones(12), torch.zeros(12), 1e-5, 0.03, 60),
    "group_norm": lambda x: Q.group_norm(x, 3, CHANNEL[0], CHANNEL[1], 1e-5, 0.03, 60),
    "instance_norm": lambda x: Q.instance_norm(x, CHANNEL[0], CHANNEL[1], 1e-5, 0.03, 60),
    "clamp": lambda x: Q.clamp(x, -1.0, 0.7),
    "threshold": lambda x: Q.threshold(x, 0.12, -0.5),
    "relu6": lambda x: Q.relu6(x, False),
    "relu": lambda x: F.relu(x),
    "relu_": lambda x: F.relu(Q.add(x, x, 0.1, 3), inplace=True),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
    "aten leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "sigmoid": lambda x: torch.sigmoid(x),
    "tanh": lambda x: torch.tanh(x),
    "hardsigmoid": lambda x: F.hardsigmoid(x),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "bilinear": lambda x: F.interpolate(x, (11, 17), mode="bilinear", align_corners=False),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(torch.cat([x, x], 1), 2),
    "pads": lambda x: F.pad(x, (1, 1, 1, 1), value=0.3) + 0 if not x.is_quantized else F.pad(x, (1, 1, 1, 1)),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "flip": lambda x: x.flip(1),
    "moves": lambda x: F.relu(x.permute(0, 2, 3, 1).flatten(1).view(2, 8, -1)[:, 1:5].unsqueeze(1)),
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "int_repr": lambda x: x.int_repr(),
    "comparison": lambda x: x > 0.3,
}


@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8])
@pytest.mark.parametrize("name", OPERATORS)
def test_quantized_operators_within_one_step(name: str, dtype: torch.dtype) -> None:
    module, x = Between(OPERATORS[name], dtype), image(2, 6, 8, 12)
    try:
        with torch.no_grad():
            wanted = module(x)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"PyTorch itself cannot: {str(error).splitlines()[0][:100]}")
    if name in ("int_repr", "comparison"):
        found, _ = imported(module, x)
        assert torch.equal(found(x), wanted)
    else:
        check(module, x)


class Layers(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: Layers(nn.Conv1d(6, 8, 3, 2, 1), nn.ReLU()), (2, 6, 16)),
    "conv2d": (lambda: Layers(nn.Conv2d(6, 9, (3, 2), (1, 2), 1, groups=3, bias=False)), (2, 6, 8, 12)),
    "dilated": (lambda: Layers(nn.Conv2d(6, 6, 3, padding=2, dilation=2), nn.ReLU()), (2, 6, 8, 12)),
    "conv3d": (lambda: Layers(nn.Conv3d(3, 4, 3, padding=1), nn.ReLU()), (1, 3, 4, 6, 6)),
    "linear": (lambda: Layers(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5, bias=False)), (2, 12)),
    "linear leaky": (lambda: Layers(nn.Linear(12, 7), nn.LeakyReLU(0.1)), (2, 12)),
    "batch norm": (lambda: Layers(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)), (2, 6, 8, 12)),
    "activations": (lambda: Layers(nn.Conv2d(6, 4, 1), nn.Hardswish(), nn.ELU(), nn.Sigmoid()), (2, 6, 8, 12)),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_within_one_step_with_every_engine(name: str, engine: str) -> None:
    make, shape = LAYERS[name]
    if (name, engine) == ("conv3d", "qnnpack"):
        pytest.skip("qnnpack has no conv3d that runs in TorchScript")
    torch.manual_seed(0)
    x = image(*shape)
    try:
        module = calibrated(make(), x, engine=engine)
        with torch.no_grad():
            module(x)
    except RuntimeError as error:
        pytest.skip(f"PyTorch itself cannot: {str(error).splitlines()[0][:100]}")
    check(module, x)


def test_transposed_convolution() -> None:
    if "qnnpack" not in ENGINES:
        pytest.skip("needs the engine qnnpack")
    torch.backends.quantized.engine = "qnnpack"
    torch.manual_seed(0)
    layer = nnq.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1)
    weight = torch.quantize_per_tensor(torch.randn(6, 4, 3, 3), 0.03, 0, torch.qint8)
    layer.set_weight_bias(weight, torch.randn(4))
    layer.scale, layer.zero_point = 0.2, 128
    check(Between(layer, torch.quint8), image(2, 6, 8, 12))


def test_dynamic_quantization_runs_on_the_host() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5)).eval()
    dynamic = tq.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    found, loaded = imported(dynamic, x := image(3, 12))
    with torch.no_grad():
        torch.testing.assert_close(found(x), loaded(x), atol=0.02, rtol=0)


def test_quantized_outputs_leave_as_integers_with_their_scale() -> None:
    class Open(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.quantize_per_tensor(x, 0.25, 7, torch.quint8)

    found, loaded = imported(Open(), x := image(2, 3))
    (output,) = found.info.outputs
    assert (output.dtype, output.scale, output.zero_point) == (torch.uint8, 0.25, 7)
    assert torch.equal(found(x), loaded(x).int_repr())


def test_weights_stay_int8() -> None:
    module = calibrated(SMALL_MODELS["residual"](), image(2, 3, 16, 16))
    found, _ = imported(module, image(2, 3, 16, 16))
    weights = [n.args[1] for n in found.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    assert len(weights) == 6
    for node in weights:
        assert node.target is qd.dequantize_per_channel.default
        assert getattr(found, node.args[0].target).dtype is torch.int8


def test_operators_without_conversion_are_named() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x)[0]

    with pytest.raises(UnsupportedError, match="aten::quantized_lstm 'cell'.*packed parameters"):
        imported(tq.quantize_dynamic(Recurrent(), {nn.LSTM}, dtype=torch.qint8), image(2, 1, 4))


# ---- whole networks ----


# PyTorch itself fails on mobilenet_v1 (quantized mean of a channels-last tensor) and activations (quantized sub).
@pytest.mark.parametrize("name", [n for n in SMALL_MODELS if n not in ("activations", "mobilenet_v1")])
def test_small_models_are_one_region(name: str) -> None:
    torch.manual_seed(0)
    x = image(2, 3, 16, 16)
    found = check(calibrated(set_batchnorm_statistics(SMALL_MODELS[name](), x), x), x)
    result = built(found, x)
    assert len(result.regions) == 1 and result.explanation.on_host == 0, str(result.explanation)
    run(result, x)
    assert max(steps_apart_by_node(found, x).values()) <= 1


EAGER = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "googlenet",
    "inception_v3",
    "shufflenet_v2_x0_5",
)
FX = ("resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "squeezenet1_1", "shufflenet_v2_x1_0")
FAST = ("resnet18", "shufflenet_v2_x0_5")


def eager(name: str, data: Tensor) -> nn.Module:
    """A network of torchvision.models.quantization, with statistics from data, calibrated on them."""
    if find_spec("torchvision") is None:
        pytest.skip("torchvision, which defines the network, is not installed")
    networks = torchvision_models().quantization
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    module = getattr(networks, name)(weights=None, quantize=False, **options)
    set_batchnorm_statistics(module, data)
    module.fuse_model(is_qat=False)
    module.qconfig = tq.get_default_qconfig(ENGINES[0])
    tq.prepare(module, inplace=True)
    with torch.no_grad():
        module(data)
    return tq.convert(module, inplace=True)


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in EAGER])
def test_torchvision_eager_networks(name: str) -> None:
    data = image(4, 3, 96, 96) if name == "inception_v3" else image(4, 3, 64, 64)
    _check_network(eager(name, data), data[:1])


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in FX])
def test_torchvision_fx_networks(name: str) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision, which defines the network, is not installed")
    data = image(4, 3, 64, 64)
    torch.manual_seed(0)
    module = set_batchnorm_statistics(getattr(torchvision_models(), name)(weights=None), data)
    _check_network(calibrated(module, data), data[:1])


def _check_network(module: nn.Module, x: Tensor) -> None:
    found = check(module, x)
    result = built(found, x)
    assert len(result.regions) == 1 and result.explanation.on_host == 0, str(result.explanation)
    run(result, x)
