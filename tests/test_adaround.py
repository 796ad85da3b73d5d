"""AdaRound: the quadratic form is each layer's error; never worse than nearest; deterministic; only integers move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import mera_torch
from mera_torch.quant import pipeline
from mera_torch.quant.graphs.int8 import integer_parameter
from mera_torch.quant.graphs.weighted import WEIGHTED, channel_axis, from_blocks, groups_of, to_blocks
from mera_torch.quant.transforms.adaround import RoundedLayer, _columns, adaround
from mera_torch.quant.transforms.correct_bias import correct_bias

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 9)),
    "strided, dilated": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1)), (2, 4, 9, 8)),
    "pointwise, strided": (lambda: nn.Conv2d(4, 6, 1, stride=2), (2, 4, 7, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (2, 4, 7, 7)),
    "multiplied": (lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 7, 7)),
    "same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 7, 7)),
    "1-d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 6)),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 5, 5)),
    "transposed, padded": (lambda: nn.ConvTranspose2d(4, 6, 3, padding=2, dilation=2), (2, 4, 7, 7)),
    "transposed, 1-d": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), (2, 4, 7)),
    "linear": (lambda: nn.Linear(4, 6), (3, 4)),
    "linear of sequences": (lambda: nn.Linear(4, 6, bias=False), (3, 5, 4)),
}


def weighted(graph: GraphModule) -> list[Any]:
    return [node for node in graph.graph.nodes if node.op == "call_function" and node.target in WEIGHTED]


@pytest.mark.parametrize("name", LAYERS)
def test_columns_times_weights_are_the_layer(name: str) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = build(), torch.randn(shape)
    quantized = pipeline.run(layer, x, [x], {"correct_bias": False}, False)
    (node,) = weighted(quantized.reference)
    weight = layer.weight.detach()
    blocks = to_blocks(node, weight)
    assert torch.equal(from_blocks(node, blocks, weight.shape), weight)
    layer.bias = None
    with torch.no_grad():
        expected = layer(x)
        columns = _columns(node, x, list(weight.shape[2:]), expected.shape)
    got = blocks.flatten(2) @ columns
    axis = channel_axis(node, expected.dim())
    torch.testing.assert_close(got, expected.movedim(axis, 0).reshape(groups_of(node), -1, columns.shape[2]))


class Network(nn.Module):
    """A bit of everything, with correlated inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.project = nn.Conv2d(12, 8, 1, bias=False)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        y = self.project(torch.relu(self.depthwise(y)))
        return self.head(torch.relu(self.up(y)).mean((2, 3)))


def images(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(count, 3, 5, 5, generator=generator)
    return list(nn.functional.interpolate(small, size=(12, 12), mode="bilinear").split(1))


def rounded(config: dict[str, Any], **options: Any) -> tuple[pipeline.Quantization, list[RoundedLayer]]:
    torch.manual_seed(1)
    data = images(24)
    quantized = pipeline.run(Network(), data[0], data, {"correct_bias": False, **config}, False)
    return quantized, adaround(quantized.module, quantized.reference, [(x,) for x in data], **options)


@pytest.mark.parametrize("per_channel", [True, False])
def test_never_worse_than_nearest(per_channel: bool) -> None:
    config = {"per_channel_weights": per_channel}
    quantized, report = rounded(config)
    assert [layer.node for layer in report] == [node.name for node in weighted(quantized.module)] and len(report) == 5
    assert all(layer.rounded <= layer.nearest for layer in report)
    assert any(layer.moved for layer in report) and all(layer.moved < layer.weights for layer in report)
    assert report[0].rounded < 0.98 * report[0].nearest  # part of it, and of later ones more, is that of the inputs


def test_no_worse_on_new_data_where_weights_are_coarse() -> None:
    """Beyond noise: what is least on calibration data need not be on any other."""
    config = {"per_channel_weights": False}
    (quantized, _), nearest = rounded(config), rounded_to_nearest(config)
    with torch.no_grad():
        new = images(24, seed=7)
        errors = [sum(float((q.module(x) - q.reference(x)).square().mean()) for x in new) for q in (quantized, nearest)]
    assert errors[0] < 1.1 * errors[1]


def rounded_to_nearest(config: dict[str, Any]) -> pipeline.Quantization:
    """With the means corrected all the same: what is left is the choice of integers."""
    torch.manual_seed(1)
    data = images(24)
    quantized = pipeline.run(Network(), data[0], data, {"correct_bias": False, **config}, False)
    correct_bias(quantized.module, quantized.reference, [(x,) for x in data])
    return quantized


def test_only_integers_move_and_by_one_at_most() -> None:
    quantized, _ = rounded({})
    nearest = rounded_to_nearest({})
    twins = {node.name: node for node in nearest.module.graph.nodes}
    names = {node.name: node for node in quantized.reference.graph.nodes}
    for node in weighted(quantized.module):
        now = integer_parameter(quantized.module, node.args[1])
        was = integer_parameter(nearest.module, twins[node.name].args[1])
        assert now is not None and was is not None and now.stored.dtype == torch.int8
        assert torch.equal(now.scale, was.scale)
        assert int((now.stored.int() - was.stored.int()).abs().max()) <= 1
        exact = quantized.reference.get_parameter(names[node.name].args[1].target).detach() / now.shaped(now.scale)
        assert float((now.stored - exact).abs().max()) <= 1 + 1e-4


def test_the_same_twice_and_with_progress() -> None:
    steps: list[tuple[str, int, int]] = []
    first, report = rounded({}, progress=lambda *step: steps.append(step))
    second, again = rounded({})
    assert report == again and steps == [("rounding weights", done, 5) for done in range(1, 6)]
    for a, b in zip(first.module.buffers(), second.module.buffers(), strict=True):
        assert torch.equal(a, b)


def test_reported_error_is_the_layers_error() -> None:
    """Of the first layer: between its integers and its float weights, both with its int8 inputs."""
    quantized, report = rounded({}, sweeps=1)
    node, twin = (weighted(graph)[0] for graph in (quantized.module, quantized.reference))
    pairs = []

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if n is node:
                weight, bias = (quantized.reference.get_parameter(each.target) for each in twin.args[1:3])
                pairs.append((result, n.target(self.env[n.args[0]], weight, bias, *n.args[3:])))
            return result

    with torch.no_grad():
        for x in images(24):
            Watch(quantized.module).run(x)
    got, expected = (torch.cat(side).double() for side in zip(*pairs, strict=True))
    error = (got - expected).square().mean((0, 2, 3)).sum() / expected.var((0, 2, 3), correction=0).sum()
    assert abs(float(error) - report[0].rounded) < 0.02 * report[0].rounded


def test_in_one_call_and_on_the_accelerator(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, data = Network(), images(16)
    quantized = mera_torch.quantize(model, data[0], data, config={"adaround": True}, progress=False)
    runner = mera_torch.export(quantized, (data[0],), str(tmp_path / "net"), target="InterpreterHw").get_runner()
    step = next(n.args[1] for n in reversed(quantized.graph.nodes) if "quantize_per_tensor" in str(n.target))
    with torch.no_grad():
        for x in data[:4]:
            assert float((runner(x) - quantized(x)).abs().max()) <= 1.01 * step


@pytest.mark.parametrize("samples", [8, 256])
def test_too_little_data_for_many_weights_changes_little(samples: int) -> None:
    """A linear with more inputs than samples could be fitted to anything, and stays as it is."""
    torch.manual_seed(0)
    model, data = nn.Linear(256, 10), [torch.randn(1, 256) for _ in range(samples)]
    quantized = pipeline.run(model, data[0], data, {"correct_bias": False}, False)
    report = adaround(quantized.module, quantized.reference, [(x,) for x in data])
    assert len(report) == (samples == 256)
    assert all(layer.moved < 0.2 * layer.weights and layer.rounded <= layer.nearest for layer in report)
