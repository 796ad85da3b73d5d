"""Bias correction: the means of every kind of layer meet those in float, within bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_adaround import LAYERS, Network, images, weighted
from torch import nn

from mera_torch.quant import pipeline
from mera_torch.quant.graphs import run as running
from mera_torch.quant.graphs.int8 import integer_parameter
from mera_torch.quant.graphs.weighted import channel_axis
from mera_torch.quant.transforms.correct_bias import correct_bias

NO_INT32_BIAS = ("depthwise", "linear of sequences", "transposed, grouped")


def outputs_of(graph: torch.fx.GraphModule, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What each convolution and linear computes, of all batches."""
    found: dict[str, list[torch.Tensor]] = {}
    layers = weighted(graph)

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if n in layers:
                found.setdefault(n.name, []).append(result)
            return result

    with torch.no_grad():
        for x in batches:
            Watch(graph).run(x)
    return {name: torch.cat(values) for name, values in found.items()}


def mean_errors(q: pipeline.Quantization, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """By layer: of each channel, in steps of its bias."""
    expected, got = (outputs_of(graph, batches) for graph in (q.reference, q.module))
    errors = {}
    for node in weighted(q.module):
        bias = integer_parameter(q.module, node.args[2] if len(node.args) > 2 else None)
        if bias is not None:
            axis = channel_axis(node, got[node.name].dim())
            difference = (got[node.name] - expected[node.name]).movedim(axis, 0).flatten(1).double().mean(1)
            errors[node.name] = difference / bias.scale
    return errors


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in NO_INT32_BIAS])
def test_means_meet_for_every_kind_of_layer(name: str, per_channel: bool) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    data = [torch.rand(shape) for _ in range(3)]
    model = nn.Sequential(build())
    with torch.no_grad():
        model[0].weight.add_(0.3 * torch.rand(()))  # type: ignore[operator]
    config = {"correct_bias": False, "per_channel_weights": per_channel}
    q = pipeline.run(model, data[0], data, config, False)
    assert correct_bias(q.module, q.reference, [(x,) for x in data])
    assert all(float(error.abs().max()) <= 0.51 for error in mean_errors(q, data).values())


@pytest.mark.parametrize("per_channel", [True, False])
def test_every_layer_makes_up_for_those_before(per_channel: bool) -> None:
    torch.manual_seed(0)
    data = images(9)  # of ten and more, the odd ones would be left out
    q = pipeline.run(Network(), data[0], data, {"per_channel_weights": per_channel}, False)
    errors = mean_errors(q, data)
    assert len(errors) == 4  # one of the five layers has no bias
    for error in errors.values():
        assert float(error.abs().max()) <= 1


def test_one_odd_image_does_not_decide() -> None:
    """Far outside the range that all others set, it saturates; biases do not make up for that."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval(), images(20)
    q = pipeline.run(model, data[0], data, {"correct_bias": False, "activation_observer": "minmax"}, False)
    correct_bias(q.module, q.reference, [(x,) for x in (*data[:19], 100 * data[19])])
    assert all(float(error.abs().max()) < 10 for error in mean_errors(q, data[:19]).values())


def test_more_batches_than_memory_holds_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    data = [(x,) for x in images(16)]
    q = pipeline.run(Network(), data[0], data, {"correct_bias": False}, False)
    one = running.largest_frontier(q.module)
    assert [x is data[4 * i] for i, x in enumerate(running.fitting(q.module, data, 4 * one))] == [True] * 4
    assert running.fitting(q.module, data, 0) == [data[0]] and running.fitting(q.module, data, 1 << 40) is data
    assert one >= 12 * 12 * 12 * 4  # at least the stem's output
