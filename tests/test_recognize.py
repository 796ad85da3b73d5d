"""What other formats spell as several operators is quantized as the one that it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mera_torch.quant.graphs.canonicalize import remove_in_place
from mera_torch.quant.graphs.recognize import recognize

aten: Any = torch.ops.aten
LOWEST = float(torch.finfo(torch.float32).min)


class Written(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.register_buffer("three", torch.tensor([3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def weight(m: nn.Module) -> Tensor:
    return m.conv.weight


Case = tuple[Callable[[Any, Tensor], Tensor], list[str]]
CASES: dict[str, Case] = {
    "silu": (lambda m, x: x * torch.sigmoid(x), ["silu"]),
    "silu, reversed": (lambda m, x: torch.sigmoid(x) * x, ["silu"]),
    "gate of another": (lambda m, x: (x + 1) * torch.sigmoid(x), ["add", "sigmoid", "mul"]),
    "hardsigmoid": (lambda m, x: F.relu6(x + 3) / 6, ["hardsigmoid"]),
    "hardsigmoid by clamp": (lambda m, x: torch.clamp(3 + x, 0, 6) * (1 / 6), ["hardsigmoid"]),
    "hardsigmoid of a constant": (lambda m, x: F.hardtanh(x + m.three, 0.0, 6.0) / 6, ["hardsigmoid"]),
    "hardswish": (lambda m, x: x * F.hardsigmoid(x), ["hardswish"]),
    "hardswish from its parts": (lambda m, x: x * (F.relu6(x + 3) / 6), ["hardswish"]),
    "hardswish, divided last": (lambda m, x: x * F.relu6(x + 3) / 6, ["hardswish"]),
    "other numbers": (lambda m, x: F.relu6(x + 2) / 6, ["add", "relu6", "div"]),
    "other bounds": (lambda m, x: F.hardtanh(x + 3, 0.0, 5.0) / 6, ["add", "hardtanh", "div"]),
    "padded convolution": (lambda m, x: F.conv2d(F.pad(x, (1, 1, 2, 2)), weight(m), None, 2), ["conv2d"]),
    "padded twice": (lambda m, x: F.conv2d(F.pad(x, (1, 1, 1, 1)), weight(m), None, 1, 1), ["conv2d"]),
    "padded on one side": (lambda m, x: F.conv2d(F.pad(x, (0, 1, 0, 1)), weight(m)), ["pad", "conv2d"]),
    "padded with ones": (lambda m, x: F.conv2d(F.pad(x, (1, 1, 1, 1), value=1.0), weight(m)), ["pad", "conv2d"]),
    "padded max pool": (lambda m, x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=LOWEST), 3, 2), ["max_pool2d"]),
    "max pool padded with -inf": (
        lambda m, x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-float("inf")), 3, 2), ["max_pool2d"],
    ),
    "max pool padded with zeros": (lambda m, x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2), ["pad", "max_pool2d"]),
    "padded, then permuted": (
        lambda m, x: F.conv2d(F.pad(x, (0, 0, 1, 1, 2, 2)).permute(0, 3, 1, 2)[:, :4], weight(m)),
        ["permute", "clone", "pad", "slice", "conv2d"],
    ),
    "global average": (lambda m, x: F.adaptive_avg_pool2d(x, 1), ["mean"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_operator_for_what_is_spelled_as_several(name: str) -> None:
    function, wanted = CASES[name]
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    module = Written(function).eval()
    with torch.no_grad():
        exported = torch.export.export(module, (x,)).module(check_guards=False)
        expected = module(x)
        remove_in_place(exported)
        recognize(exported)
        recognize(exported)  # and nothing changes again
        torch.testing.assert_close(exported(x), expected, rtol=1e-6, atol=1e-6)
    found = [n.target._schema.name.removeprefix("aten::") for n in exported.graph.nodes if n.op == "call_function"]
    assert [{"constant_pad_nd": "pad"}.get(n, n) for n in found] == wanted


def test_constants_and_permuted_values_become_contiguous() -> None:
    module = Written(lambda m, x: F.conv2d(x.permute(0, 3, 1, 2), m.conv.weight)).eval()
    module.conv.weight.data = module.conv.weight.data.contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 8, 4)
    exported = torch.export.export(module, (x,)).module(check_guards=False)
    recognize(exported)
    assert exported.conv.weight.is_contiguous() and not module.conv.weight.is_contiguous()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), module(x))
