"""One network by four roads, PyTorch, ONNX, TorchScript and TFLite, calibrated with the same data: the same operators
on the DNA, the same cycles, and each operator's result within one step.

Ranges are the extremes seen. The histogram's search chooses among ranges of all but equal error: there the last bit of
a float, which batch norms folded in another order change, can move a zero point by two. So can it change the mean error
that bias correction measures on these few images.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from compiled import run
from models import SMALL_MODELS, build_torchvision, set_batchnorm_statistics, torchvision_models
from torch import Tensor, fx, nn

import mera_torch
from mera_torch import passes
from mera_torch.backend.capture import capture
from mera_torch.backend.partition import MOVEMENT, partition
from mera_torch.backend.region import metrics
from mera_torch.compile import Built, build, settings_of
from mera_torch.converters import from_onnx, from_tflite, from_torchscript

pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
pytest.importorskip("ai_edge_litert", reason="its schema writes the TFLite twin")

from tflite_twin import twin  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
SETTINGS = settings_of("SAKURA_1", "Simulator", None)
ROADS = ("onnx", "torchscript", "tflite")


@dataclass(frozen=True)
class Road:
    """A network as one front end gives it, quantized and compiled. x: the input in the road's layout."""

    quantized: fx.GraphModule
    built: Built
    x: Tensor
    float_output: Tensor

    @property
    def operators(self) -> list[str]:
        return [node.op for region in self.built.regions for node in region.graph.nodes]

    @property
    def cycles(self) -> int:
        for region in self.built.regions:
            region.compile(None)
        return int(metrics(self.built.regions, SETTINGS.platform, "Simulator", 1)["cycles"])


def imported(road: str, module: nn.Module, x: Tensor) -> nn.Module:
    """The module by way of a file."""
    if road == "onnx":
        return from_onnx(torch.onnx.export(module, (x,), dynamo=True, verbose=False).model_proto)
    if road == "torchscript":
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.trace(module, x), buffer)
        return from_torchscript(buffer.getvalue(), {"x": (tuple(x.shape), "float32")})
    if road == "tflite":
        return from_tflite(twin(module, x))
    return module


@lru_cache(maxsize=4)
def travel(name: str, size: int, road: str) -> Road:
    module, data = network(name, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = imported(road, module, data[:1])
        batches = [row[None] if road != "tflite" else nhwc(row[None]) for row in data]
        with torch.no_grad():
            output = found(batches[0])
        config = {"activation_observer": "minmax", "correct_bias": False}
        quantized = mera_torch.quantize(found, (batches[0],), [(b,) for b in batches], config=config, progress=False)
        return Road(quantized, build(capture(quantized, (batches[0],)), SETTINGS), batches[0], output)


def nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous() if x.dim() == 4 else x


# ---- networks ----


def _mobilenet_v2() -> nn.Module:
    blocks = [[1, 8, 1, 1], [4, 12, 2, 2], [4, 16, 1, 2]]
    return torchvision_models().MobileNetV2(num_classes=10, inverted_residual_setting=blocks, width_mult=1.0)


def _resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "short mobilenet_v2": _mobilenet_v2,
    "short resnet": _resnet,
    "squeeze_excite": SMALL_MODELS["squeeze_excite"],
    "squeeze_excite_silu": SMALL_MODELS["squeeze_excite_silu"],
}
SHORT = [(name, 32) for name in NETWORKS]
WHOLE = [(name, 224) for name in ("mobilenet_v2", "resnet18", "mobilenet_v3_small", "efficientnet_b0")]
CASES = [*SHORT, *(pytest.param(*case, marks=pytest.mark.slow) for case in WHOLE)]


@lru_cache(maxsize=1)
def network(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """A network with random weights and its calibration data, [N, 3, size, size].

    Its batch norms shift most activations above zero, as trained ones do: else a difference in the last bit of a
    weight, which the roads fold from batch norms in different orders, grows from layer to layer.
    """
    if find_spec("torchvision") is None and "squeeze" not in name:
        pytest.skip("torchvision, which defines the network, is not installed")
    torch.manual_seed(0)
    torchvision_models()
    module = NETWORKS[name]() if name in NETWORKS else build_torchvision(name)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.constant_(layer.bias, 2.0)
    data = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    return set_batchnorm_statistics(module, data).eval(), data


# ---- what must agree ----


@pytest.mark.parametrize(("name", "size"), CASES)
def test_roads_agree(name: str, size: int) -> None:
    direct = travel(name, size, "pytorch")
    operators, cycles = direct.operators, direct.cycles
    (wanted,) = run(direct.built, direct.x)
    scale = _output_scale(direct.built)
    for name_of_road in ROADS:
        road = travel(name, size, name_of_road)
        other = wanted if name_of_road != "tflite" else nhwc(wanted)
        expected = direct.float_output if name_of_road != "tflite" else nhwc(direct.float_output)
        torch.testing.assert_close(road.float_output, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert road.operators == operators, name_of_road
        assert abs(road.cycles - cycles) <= 0.02 * cycles, name_of_road
        worst = forced(direct, road)
        assert max(worst.values()) <= 1, (name_of_road, worst)
        (found,) = run(road.built, road.x)
        apart = float((found - other).abs().max()) / scale
        assert apart <= (1.01 if (name, size) in SHORT else 4.01), (name_of_road, apart)


def _output_scale(result: Built) -> float:
    return max(port.scale for region in result.regions for port in region.outputs)


def forced(direct: Road, other: Road) -> dict[str, int]:
    """For each DNA operator of `other`, how many steps its result from the direct road's operands is from the direct
    road's result, at most."""
    wanted = list(_results(direct))
    values: dict[fx.Node, Tensor] = {}
    worst: dict[str, int] = {}
    position = 0
    for node, held in _walk(other, values):
        if node.target not in MOVEMENT:
            target, result = wanted[position]
            position += 1
            assert node.target is target, f"{node.name} stands for {target}"
            worst[node.name] = int((held.int() - result.int()).abs().max())
            held = result
        values[node] = held
    assert position == len(wanted)
    return worst


def _results(road: Road) -> Iterator[tuple[Any, Tensor]]:
    values: dict[fx.Node, Tensor] = {}
    for node, held in _walk(road, values):
        values[node] = held
        if node.target not in MOVEMENT:
            yield node.target, held


def _walk(road: Road, values: dict[fx.Node, Tensor]) -> Iterator[tuple[fx.Node, Tensor]]:
    """The nodes of the one region with their reference results from `values`, which the caller fills."""
    gm = passes.run(capture(road.quantized, (road.x,)).gm)
    (region,) = partition(gm).regions
    (placeholder,) = [n for n in gm.graph.nodes if n.op == "placeholder"]
    for node in region.inputs:
        values[node] = node.target(road.x, *node.args[1:])  # type: ignore[operator]
        assert node.args[0] is placeholder

    def value(node: fx.Node) -> Tensor:
        return getattr(gm, str(node.target)) if node.op == "get_attr" else values[node]

    with torch.no_grad():
        for node in region.nodes:
            yield node, node.target(*fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value))  # type: ignore[operator]
