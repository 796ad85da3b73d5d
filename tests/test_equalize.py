"""Equalization: the function stays, the ranges meet, the predicted error falls; through clamps only where safe."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mera_torch.quant import quantize
from mera_torch.quant.graphs.canonicalize import separate_batch_norms
from mera_torch.quant.transforms.equalize import equalize
from mera_torch.quant.transforms.streams import find_streams


def exported(model: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    return torch.export.export(model.eval(), (x,)).module(check_guards=False)


def uneven(model: nn.Module, seed: int = 0, spread: float = 1.5) -> nn.Module:
    """`model` with channels of unlike ranges in every weight and batch norm."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and not isinstance(module, nn.PReLU):
                factor = torch.exp(spread * torch.randn(len(weight), generator=generator))
                weight *= factor.view(-1, *[1] * (weight.dim() - 1))
    return model


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand, self.bn = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu6(self.bn(self.expand(x)))
        y = F.relu6(self.depthwise(F.pad(y, (0, 1, 0, 1))))
        return self.head((x + F.pad(self.project(y), (0, -1, 0, -1))).mean((2, 3)))


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda _: nn.ReLU(),
    "leaky": lambda _: nn.LeakyReLU(0.2),
    "prelu": lambda channels: nn.PReLU(channels),
    "relu6": lambda _: nn.ReLU6(),
    "clamp": lambda _: nn.Hardtanh(0.0, 1.0),
    "silu": lambda _: nn.SiLU(),
    "none": lambda _: nn.Identity(),
}


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """A chain of convolutions of every kind, of 2-d images."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    layers: list[nn.Module] = []
    channels = 4
    for _ in range(draw(st.integers(2, 5))):
        wider = draw(st.sampled_from([4, 8]))
        kind = draw(st.sampled_from(["conv", "grouped", "depthwise", "transposed", "grouped transposed"]))
        if kind == "depthwise":
            layers.append(nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
        elif "transposed" in kind:
            groups = 2 if kind == "grouped transposed" else 1
            layers.append(nn.ConvTranspose2d(channels, wider, 2, groups=groups))
            channels = wider
        else:
            groups = 2 if kind == "grouped" else 1
            layers.append(nn.Conv2d(channels, wider, 3, padding=1, groups=groups, bias=draw(st.booleans())))
            channels = wider
        if draw(st.booleans()):
            layers.append(nn.BatchNorm2d(channels) if kind != "transposed" else nn.Identity())
        layers.append(ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))](channels))
        if draw(st.booleans()):
            layers.append(
                draw(st.sampled_from([nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.Upsample(scale_factor=2)]))
            )
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]
    return nn.Sequential(*layers)


@settings(max_examples=25, deadline=None)
@given(networks(), st.booleans(), st.integers(0, 99))
def test_the_function_stays(model: nn.Module, per_channel: bool, seed: int) -> None:
    uneven(model, seed, 0.7)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    graph = exported(model, x)
    state = copy.deepcopy(model.state_dict())
    equalize(graph, [(x,)], per_channel_weights=per_channel)
    with torch.no_grad():
        expected, got = model(x), graph(x)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_streams_go_through_residuals_clamps_and_pads() -> None:
    torch.manual_seed(0)
    model, x = uneven(Residual()), torch.randn(4, 3, 8, 8)
    graph = exported(model, x)
    assert equalize(graph, [(x,)]) == 3  # the residual stream, what the depthwise reads, what the projection reads
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)


class Dense(nn.Module):
    """Concats of concats, of one value twice, added to another value, with batch norms behind and a pool between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norms, self.grow = nn.Conv2d(3, 4, 1), nn.ModuleList(), nn.ModuleList()
        for channels in (4, 8, 12):
            self.norms.append(nn.BatchNorm2d(channels))
            self.grow.append(nn.Conv2d(channels, 4, 3, padding=1))
        self.side, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(20, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for norm, grow in zip(self.norms, self.grow, strict=True):
            found.append(grow(F.relu(norm(torch.cat(found, 1)))))
        joined = torch.cat([found[3], *found[:3]], dim=-3) + self.side(x)
        return self.last(torch.cat([F.max_pool2d(joined, 2), F.max_pool2d(found[0], 2)], 1))


@pytest.mark.parametrize("per_channel", [True, False])
def test_streams_go_through_concats(per_channel: bool) -> None:
    torch.manual_seed(0)
    model, x = uneven(Dense()).eval(), torch.randn(4, 3, 8, 8)
    graph = exported(model, x)
    separate_batch_norms(graph)
    streams = sorted((s.channels, len(s.values), len(s.producers), len(s.readers)) for s in find_streams(graph))
    assert streams[:3] == [(4, 2, 1, 1), (8, 2, 1, 1), (12, 2, 1, 1)]
    (whole,) = streams[3:]
    assert whole[0] == 16 and whole[2:] == (5, 4)  # stem, three that grow, side; three batch norms, the last
    changed = equalize(graph, [(x,)], per_channel_weights=per_channel)
    assert changed >= 1
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(graph(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


class Unlike(nn.Module):
    """A concat with the input, one of rows, one of fresh dimensions: none of them keeps channels apart."""

    def __init__(self, join: str) -> None:
        super().__init__()
        self.first, self.second, self.join = nn.Conv2d(4, 4, 1), nn.Conv2d(8 if join == "input" else 4, 2, 1), join

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.join == "stack":
            return self.second(torch.stack([y, y], 2).amax(2))
        return self.second(torch.cat([y, x if self.join == "input" else y], 1 if self.join == "input" else 2))


@pytest.mark.parametrize("join", ["input", "rows", "stack"])
def test_other_joins_are_left_alone(join: str) -> None:
    model, x = uneven(Unlike(join)).eval(), torch.randn(2, 4, 8, 8)
    graph = exported(model, x)
    equalize(graph, [(x,)])
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_concats_of_unlike_ranges_are_rescued() -> None:
    torch.manual_seed(0)
    model = Dense().eval()
    with torch.no_grad():
        for grow, factor in zip(model.grow, (1e-2, 1e2, 1.0), strict=True):
            grow.weight *= factor
            grow.bias *= factor
    x = torch.randn(8, 3, 8, 8)
    for norm in model.norms:  # each of them normalizes its inputs
        norm.momentum = None
    model.train()(x)
    model.eval()

    def error(equalized: bool) -> float:
        quantized = quantize(model, x, [x], config={"equalize": equalized}, progress=False)
        with torch.no_grad():
            return float((quantized(x) - model(x)).square().mean())

    assert error(True) < 0.3 * error(False)


def test_a_saturated_channel_is_never_shrunk() -> None:
    """Where calibration reached the clamp's bound, inputs beyond calibration saturate at the same place as before."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU6(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[9.0, 0], [0, 9.0], [0.1, 0], [0, 0.2]]).view(4, 2, 1, 1))
        model[0].bias.zero_()  # type: ignore[operator]
    x = torch.rand(2, 2, 6, 6)
    graph = exported(model, x)
    assert equalize(graph, [(x,)]) == 1
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)
        beyond = 1.2 * x
        torch.testing.assert_close(graph(beyond), model(beyond), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_channel", [True, False])
def test_room_above_calibration(per_channel: bool) -> None:
    """Values may double; and get as far as nine deviations of a batch norm, but for weights of one scale in all."""
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
    model = nn.Sequential(convolution, norm, nn.ReLU6(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        convolution.weight.copy_(torch.eye(4).view(4, 4, 1, 1))
        norm.weight.copy_(torch.tensor([0.6, 0.1, 0.3, 0.02]))
        model[3].weight /= norm.weight.view(1, 4, 1, 1)
    x = torch.rand(8, 4, 6, 6)
    graph = exported(model, x)
    assert equalize(graph, [(x,)], per_channel_weights=per_channel) == 1
    with torch.no_grad():
        torch.testing.assert_close(graph(2 * x), model(2 * x), rtol=1e-4, atol=1e-4)
        assert torch.allclose(graph(11 * x), model(11 * x), rtol=1e-4, atol=1e-4) == per_channel


@pytest.mark.parametrize("clamp", [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_error_falls(per_channel: bool, clamp: nn.Module) -> None:
    """A network whose channels were scaled against each other, by up to 100, is put right again."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 1), clamp, nn.Conv2d(16, 16, 3, groups=16), clamp, nn.Conv2d(16, 4, 1)]
    model, factor = nn.Sequential(*layers).eval(), torch.logspace(-2, 0, 16)
    with torch.no_grad():
        for i, by in ((0, factor), (2, factor.flip(0))):
            layers[i].weight *= by.view(-1, 1, 1, 1)  # type: ignore[operator]
            layers[i].bias *= by  # type: ignore[operator]
            layers[i + 2].weight /= by.view((-1, 1, 1, 1) if i == 0 else (1, -1, 1, 1))  # type: ignore[operator]
    x = torch.randn(8, 3, 8, 8)

    def error(equalized: bool) -> float:
        options: dict[str, Any] = {"equalize": equalized, "correct_bias": False, "activation_observer": "minmax"}
        options["per_channel_weights"] = per_channel
        quantized = quantize(model, x, [x], config=options, progress=False)
        with torch.no_grad():
            return float((quantized(x) - model(x)).square().mean())

    assert error(True) < 0.1 * error(False)


def test_weights_alone_decide_without_data() -> None:
    torch.manual_seed(0)
    model = uneven(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 1)))
    x = torch.randn(1, 3, 9, 9)
    graph = exported(model, x)
    assert equalize(graph, []) == 1  # not through the clamp
    parameters = dict(graph.named_parameters())
    first, second = parameters["0.weight"], parameters["2.weight"]
    written, read = first.abs().flatten(1).amax(1), second.abs().amax((0, 2, 3))
    torch.testing.assert_close(written / written.mean(), read / read.mean(), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


class SharedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(F.relu(self.first(x)))))


class OutputToo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        return y, self.second(y)


class AddedInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.first(x))


class ChannelMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).mean(1))


@pytest.mark.parametrize("build", [SharedWeight, OutputToo, AddedInput, ChannelMean])
def test_streams_that_leave_are_left_alone(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = uneven(build()), torch.randn(2, 3, 6, 6)
    graph = exported(model, x)
    assert equalize(graph, [(x,)]) == 0
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))
