"""Bias correction: the means of every kind of layer meet those of its float weights, within bounded memory."""

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


def mean_errors(q: pipeline.Quantization, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """By layer: what its rounded weights do to the mean of each channel on its int8 inputs, in steps of its bias."""
    layers, twins = weighted(q.module), {node.name: node for node in q.reference.graph.nodes}
    errors: dict[str, list[torch.Tensor]] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            bias = integer_parameter(q.module, n.args[2] if n in layers and len(n.args) > 2 else None)
            if bias is not None:
                x = self.fetch_args_kwargs_from_env(n)[0][0]
                weight, float_bias = (q.reference.get_parameter(str(a.target)) for a in twins[n.name].args[1:3])
                error = result - n.target(x, weight, float_bias, *n.args[3:], **n.kwargs)
                mean = error.movedim(channel_axis(n, error.dim()), 0).flatten(1).double().mean(1)
                errors.setdefault(n.name, []).append(mean / bias.scale)
            return result

    with torch.no_grad():
        for x in batches:
            Watch(q.module).run(x)
    return {name: torch.stack(found).mean(0) for name, found in errors.items()}


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


@pytest.mark.parametrize("adaround", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_every_layer_of_a_network_is_corrected(per_channel: bool, adaround: bool) -> None:
    torch.manual_seed(0)
    data = images(16)
    config = {"per_channel_weights": per_channel, "adaround": adaround, "correct_bias": not adaround}
    errors = mean_errors(pipeline.run(Network(), data[0], data, config, False), data)
    assert len(errors) == 4  # one of the five layers has no bias
    for error in errors.values():
        assert float(error.abs().max()) <= 0.51


def test_what_inputs_lose_by_clipping_no_bias_makes_up_for() -> None:
    """The range of the input is too small for the batches that biases are corrected with: exact weights need none."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), images(4)
    with torch.no_grad():
        model[0].weight.copy_(torch.randint(-127, 128, (4, 3, 1, 1)) / 127)  # type: ignore[operator]
        model[0].weight[:, 0] = 1.0  # type: ignore[index]
    q = pipeline.run(model, data[0], data, {"correct_bias": False}, False)
    (bias,) = (integer_parameter(q.module, node.args[2]) for node in weighted(q.module))
    assert bias is not None
    before = bias.stored.clone()
    correct_bias(q.module, q.reference, [(100 * x,) for x in data])
    assert int((bias.stored - before).abs().max()) <= 1


def test_more_batches_than_memory_holds_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    data = [(x,) for x in images(16)]
    q = pipeline.run(Network(), data[0], data, {"correct_bias": False}, False)
    one = running.largest_frontier(q.module)
    assert [x is data[4 * i] for i, x in enumerate(running.fitting(q.module, data, 4 * one))] == [True] * 4
    assert running.fitting(q.module, data, 0) == [data[0]] and running.fitting(q.module, data, 1 << 40) is data
    assert one >= 12 * 12 * 12 * 4  # at least the stem's output
