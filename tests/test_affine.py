"""Constants a channel become part of the convolution, linear or batch norm before them; the function stays."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from mera_torch.quant import MeraQuantizer, quantize
from mera_torch.quant.graphs.affine import fold_affine
from mera_torch.quant.graphs.canonicalize import canonicalize

SOURCES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 8, 8)),
    "unbatched": (lambda: nn.Conv2d(4, 6, 3), (4, 8, 8)),
    "no bias": (lambda: nn.Conv2d(4, 6, 3, bias=False), (2, 4, 8, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (2, 6, 8, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "linear": (lambda: nn.Linear(5, 6, bias=False), (2, 3, 5)),
    "batch norm": (lambda: nn.BatchNorm2d(6), (2, 6, 4, 4)),
    "plain batch norm": (lambda: nn.BatchNorm1d(6, affine=False), (3, 6, 4)),
}
STEPS: dict[str, Callable[[Tensor, Tensor | float], Tensor]] = {
    "mul": lambda x, c: x * c,
    "mul from the left": lambda x, c: c * x,
    "div": lambda x, c: x / c,
    "add": lambda x, c: x + c,
    "sub": lambda x, c: x - c,
    "sub from": lambda x, c: c - x,
}


class Chain(nn.Module):
    def __init__(self, source: nn.Module, steps: list[tuple[str, Tensor | float]]) -> None:
        super().__init__()
        self.source, self.steps = source, [name for name, _ in steps]
        for i, (_, constant) in enumerate(steps):
            if isinstance(constant, Tensor):
                self.register_buffer(f"c{i}", constant)
            else:
                setattr(self, f"c{i}", constant)

    def forward(self, x: Tensor) -> Tensor:
        x = self.source(x)
        for i, name in enumerate(self.steps):
            x = STEPS[name](x, getattr(self, f"c{i}"))
        return x


def exported(model: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    return torch.export.export(model.eval(), (x,)).module(check_guards=False)


def operators(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SOURCES)),
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.sampled_from(["number", "scalar", "channels"])), max_size=4),
    st.integers(0, 99),
)
def test_the_function_stays(source: str, kinds: list[tuple[str, str]], seed: int) -> None:
    torch.manual_seed(seed)
    build, shape = SOURCES[source]
    module = build().eval()
    if isinstance(module, nn.BatchNorm2d):
        module.running_mean.normal_()  # type: ignore[union-attr]
        module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    trailing = 0 if source == "linear" else 1 if source in ("conv1d", "plain batch norm") else 2
    constants: dict[str, Callable[[], Tensor | float]] = {
        "number": lambda: float(torch.rand(()) + 0.5),
        "scalar": lambda: torch.rand(()) - 1.5,
        "channels": lambda: (torch.rand(6) + 0.5).mul(torch.tensor([1, -1, 1, 1, -1, 1])).view(-1, *[1] * trailing),
    }  # fmt: skip
    model = Chain(module, [(name, constants[kind]()) for name, kind in kinds])
    x = torch.randn(shape)
    with torch.no_grad():
        expected = model(x)
    state = copy.deepcopy(model.state_dict())
    graph = exported(model, x)
    fold_affine(graph)
    assert len(operators(graph)) == 1
    torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.cat([y * 2, y], 1)


class Pixels(nn.Module):
    """Constants that are no channels': of each pixel, of a shape that broadcasts further, over zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.register_buffer("pixel", torch.rand(4, 4))
        self.register_buffer("more", torch.rand(3, 1, 1, 1))
        self.register_buffer("zero", torch.tensor([1.0, 0]).view(2, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b, c = self.conv(x), self.conv(x), self.conv(x)
        return a + self.pixel, b * self.more, c / self.zero, 2 / self.conv(x), torch.add(self.conv(x), 1, alpha=2)


class Clamped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.conv(x)) * 2


@pytest.mark.parametrize("build", [TwoReaders, Pixels, Clamped])
def test_what_cannot_be_folded_stays(build: Callable[[], nn.Module]) -> None:
    x = torch.randn(1, 2, 4, 4)
    graph = exported(build(), x)
    before = operators(graph)
    assert fold_affine(graph) == 0
    assert operators(graph) == before


class Shared(nn.Module):
    """One weight, scaled after one of its uses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.linear(x)) * 1.0) * 3.0


def test_a_shared_weight_becomes_two() -> None:
    model, x = Shared(), torch.randn(2, 4)
    graph = exported(model, x)
    assert fold_affine(graph) == 1  # the other product follows a relu
    torch.testing.assert_close(graph(x), model(x))


class Scale(nn.Module):
    """As Caffe spells a batch norm: without and with a convolution before it; then a MatMul with Add."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 8, 3, bias=False)
        self.second = nn.BatchNorm2d(8, affine=False)
        self.factor, self.offset = nn.Parameter(torch.rand(8, 1, 1) + 0.5), nn.Parameter(torch.randn(8, 1, 1))
        self.weight, self.bias = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.first(x) * self.factor[:3] + self.offset[:3]))
        x = F.relu(self.second(x) * self.factor + self.offset)
        return x.mean((2, 3)) @ self.weight + self.bias


def test_scale_layers_leave_no_operator_in_int8() -> None:
    torch.manual_seed(0)
    model, x = Scale().eval(), torch.randn(8, 3, 9, 9)
    quantized = quantize(model, x, [x], progress=False)
    found = operators(quantized)
    assert not any(".mul." in name or ".add." in name for name in found)
    with torch.no_grad():
        expected, error = model(x), quantized(x) - model(x)
    assert error.square().sum() < 1e-3 * expected.square().sum()


def test_what_a_rule_is_about_stays() -> None:
    model, x = Scale().eval(), torch.randn(8, 3, 9, 9)
    quantized = quantize(model, x, [x], config={"rules": [{"op": "mul", "dtype": "float"}]}, progress=False)
    found = operators(quantized)
    assert sum(".mul." in name for name in found) == 2


def test_training_keeps_its_parameters() -> None:
    model, x = Scale().train(), torch.randn(8, 3, 9, 9)
    graph = torch.export.export(model, (x,)).module()
    assert "aten.mul.Tensor" in operators(canonicalize(graph, is_qat=True))
    prepared = prepare_qat_pt2e(torch.export.export(model, (x,)).module(), MeraQuantizer(is_qat=True))
    trained = {name for name, p in prepared.named_parameters() if p.requires_grad}
    assert {"factor", "offset", "matmul_weight", "bias"} <= trained  # the matrix, turned over for a linear
