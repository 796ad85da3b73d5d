"""explain(): where each operator runs, and which constraint keeps it on the host."""

from __future__ import annotations

import models
import pytest
import torch
from compiled import quantized
from torch import Tensor, nn
from torch.nn import functional as F

import mera_torch
from mera_torch.ops.common import CONSTRAINTS

q = torch.ops.quantized_decomposed


def through_int8(x: Tensor, scale: float = 0.05, dtype: torch.dtype = torch.int8) -> Tensor:
    low, high = (-128, 127) if dtype is torch.int8 else (-(2**15), 2**15 - 1)
    zero = 0
    return q.dequantize_per_tensor(
        q.quantize_per_tensor(x, scale, zero, low, high, dtype), scale, zero, low, high, dtype
    )


def test_converted_model_is_all_on_the_dna() -> None:
    data = torch.randn(1, 3, 16, 16)
    result = mera_torch.explain(quantized(models.Residual(), data), (data,))
    assert result.on_host == 0 and result.regions == 1
    assert result.counts_by_reason() == {}
    row = next(row for row in result.rows if row.op == "aten.conv2d.default")
    assert row.where == "DNA region 0" and row.module == "stem.0" and "models.py:" in row.source
    assert {row.op for row in result.rows if row.where == "border"} <= {
        "quantized_decomposed.quantize_per_tensor.default", "quantized_decomposed.dequantize_per_tensor.default",
    }  # fmt: skip


def test_float_model() -> None:
    result = mera_torch.explain(models.Residual().eval(), (torch.randn(1, 3, 16, 16),))
    assert result.on_dna == 0 and result.regions == 0
    ((reason, count),) = result.counts_by_reason().items()
    assert "not quantized" in reason and "mera_torch.quantize" in reason and count == result.on_host


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.conv(x), 1)


def test_host_operator_is_named_with_module_and_line() -> None:
    data = torch.randn(1, 3, 8, 8)
    result = mera_torch.explain(quantized(Mixed(), data), (data,))
    row = next(row for row in result.rows if "softmax" in row.op)
    assert row.where == "host" and "no DNA operator" in row.reason and "test_explain.py:" in row.source
    assert result.on_dna == 1
    text = str(result)
    assert "aten.softmax" in text and "1 x aten.softmax" in text and "conv" in text


def two_scales(x: Tensor) -> Tensor:
    return through_int8(F.avg_pool2d(through_int8(x), 3, 1, 1, count_include_pad=False), 0.01)


def two_dtypes(x: Tensor) -> Tensor:
    return through_int8(through_int8(x, dtype=torch.int16) + through_int8(x))


def both_broadcast(x: Tensor) -> Tensor:
    return through_int8(through_int8(x[:, :1]) + through_int8(x[:, :, :1]))


def float_weight(x: Tensor) -> Tensor:
    return through_int8(F.conv2d(through_int8(x), torch.ones(4, 3, 2, 2)))


def transposed(x: Tensor) -> Tensor:
    return through_int8(F.conv_transpose2d(through_int8(x), torch.ones(3, 4, 2, 2)))


def alpha(x: Tensor) -> Tensor:
    return through_int8(torch.add(through_int8(x), through_int8(x * 2), alpha=2))


BROKEN = [
    (transposed, "transposed convolution has no DNA operator"),
    (float_weight, "weight must be a constant quantized"),
    (alpha, "alpha must be 1, got 2"),
    (two_dtypes, "quantized to int8"),
    (both_broadcast, "one operand must have the result's shape"),
    (two_scales, "one quantization"),
    (lambda x: through_int8(F.pad(through_int8(x), (0, -1)), 0.01), "negative"),
    (lambda x: through_int8(F.max_pool2d(through_int8(x), 3, 70000, 1)), "stride_h must be 1 to 65535, got 70000"),
    (lambda x: through_int8(through_int8(x).cumsum(1)), "cumsum.default has no DNA operator"),
    (lambda x: through_int8(through_int8(x) + x), "must be quantized"),
    (lambda x: torch.sigmoid(through_int8(x)), "no quantize follows"),
]


@pytest.mark.parametrize(("function", "reason"), BROKEN)
def test_broken_constraint_is_named(function: object, reason: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)  # type: ignore[operator, no-any-return]

    result = mera_torch.explain(Model(), (torch.randn(1, 3, 6, 6),))
    assert any(reason in found for found in result.counts_by_reason()), str(result)


def test_rich_table() -> None:
    from rich.console import Console

    data = torch.randn(1, 3, 8, 8)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(mera_torch.explain(quantized(Mixed(), data), (data,)))
    assert "DNA region 0" in console.export_text()


def test_every_constraint_is_a_sentence_with_its_value() -> None:
    assert len(CONSTRAINTS) > 10
    for name, sentence in CONSTRAINTS.items():
        assert len(sentence) > 20 and "{" in sentence, name
