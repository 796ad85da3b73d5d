"""Arithmetic between float operators, and masks before softmax, stay in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

import mera_torch
from mera_torch.quant import MeraQuantizer, pipeline
from mera_torch.quant.lint.linter import lint_model
from mera_torch.quant.transforms.fake import sqnr_db

pytestmark = pytest.mark.filterwarnings("ignore")


class Function(nn.Module):
    """A function of a convolution and an input."""

    def __init__(self, function: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 3, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv, x)


def run(model: nn.Module, data: list[Tensor]) -> pipeline.Quantization:
    return pipeline.run(model.eval(), data[0], data, progress=False)


def quality(result: pipeline.Quantization, data: list[Tensor]) -> float:
    with torch.no_grad():
        return sqnr_db(*(torch.cat([net(x) for x in data]) for net in (result.original, result.module)))


class Attention(nn.Module):
    """Self-attention written out, with a mask added to its logits."""

    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.packed, self.out, self.mask = nn.Linear(16, 48), nn.Linear(16, 16), mask

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.packed(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        logits = self.mask(q @ k.transpose(-1, -2) / 8**0.5)
        return self.out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Pooling(nn.Module):
    """The mean of a sequence by weights from an int8 linear, some of them hidden."""

    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logits, self.value, self.mask = nn.Linear(16, 1), nn.Linear(16, 16), mask

    def forward(self, x: Tensor) -> Tensor:
        logits = self.mask(self.logits(x).squeeze(-1)) / 2
        return (self.value(x) * logits.softmax(-1).unsqueeze(-1)).sum(1)


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "-1e4": lambda x: x + (1 - torch.ones(6, 6)[: x.shape[-2]].tril(2)) * -1e4,
    "1e9": lambda x: x - (1 - torch.ones(6, 6)[: x.shape[-2]].tril(2)) * 1e9,
    "infinity": lambda x: x + torch.full((6, 6), float("-inf"))[: x.shape[-2]].triu(3),
    "masked_fill": lambda x: x.masked_fill(torch.ones(6, 6)[: x.shape[-2]].tril(2) == 0, float("-inf")),
}


@pytest.mark.parametrize("kind", [Attention, Pooling])
@pytest.mark.parametrize("name", MASKS)
def test_masked_logits_stay_in_float(kind: Callable[..., nn.Module], name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = kind(MASKS[name]).eval(), [torch.randn(1, 6, 16) for _ in range(16)]
    result = run(model, data)
    assert quality(result, data) > 22
    assert not [f for f in result.findings if f.rule in ("softmax-scale", "not-finite", "operand-ranges") and f.open]
    runner = mera_torch.export(result.module, (data[0],), tmp_path / "m", target="InterpreterHw").get_runner()
    with torch.no_grad():
        assert (runner(data[0]) - result.module(data[0])).abs().max() < 0.05


def test_masks_are_told() -> None:
    torch.manual_seed(0)
    data = [torch.randn(1, 6, 16) for _ in range(16)]
    said = [f for f in run(Pooling(MASKS["-1e4"]), data).findings if f.rule == "softmax-scale"]
    assert len(said) == 1 and said[0].fixed and "kept in float" in said[0].evidence
    linted = lint_model(Pooling(MASKS["-1e4"]), data[0], data)
    assert [f.fixed for f in linted if f.rule == "softmax-scale"] == [True]
    assert not any(f.rule == "softmax-scale" for f in run(Pooling(MASKS["none"]), data).findings)


def test_arithmetic_between_float_operators_stays_in_float() -> None:
    """What int8 computes on either side, or what comes in or goes out, keeps it in int8."""

    def in_int8(function: Callable[[Any, Any], Any]) -> set[str]:
        model = torch.export.export(Function(function).eval(), (torch.rand(1, 3, 8, 8),)).module()
        quantizer = MeraQuantizer()
        prepare_pt2e(model, quantizer)
        return {node.name for op in quantizer.found for node in op.nodes}

    assert in_int8(lambda conv, x: torch.exp(conv(torch.log(x) * 2 + 1))) == {"mul", "add", "conv2d"}
    assert in_int8(lambda conv, x: torch.exp(torch.log(conv(x)) * 2 + 1)) == {"conv2d"}
    assert in_int8(lambda conv, x: torch.log(conv(x)) * 2 + 1) == {"conv2d", "mul", "add"}
    assert in_int8(lambda conv, x: torch.exp(x * 2 + conv(x))) == {"conv2d", "mul", "add"}
