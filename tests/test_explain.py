"""explain(): where each operator runs, and which constraint keeps it on the host."""

from __future__ import annotations

import json

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
    data = torch.randn(1, 3, 16, 16)
    result = mera_torch.explain(models.Residual().eval(), (data,))
    assert result.regions == 1 and result.on_host == 0
    (note,) = result.notes
    assert "the model is float" in note and note in str(result)
    assert result.rows == mera_torch.explain(quantized(models.Residual(), data), (data,)).rows


def test_float_model_without_anything_to_quantize() -> None:
    class Cumsum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(1)

    result = mera_torch.explain(Cumsum(), (torch.randn(1, 3),))
    ((reason, count),) = result.counts_by_reason().items()
    assert "not quantized" in reason and "mera_torch.quantize" in reason and count == result.on_host == 1


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(self.conv(x), 1)


def test_host_operator_is_named_with_module_and_line() -> None:
    data = torch.randn(1, 3, 8, 8)
    result = mera_torch.explain(quantized(Mixed(), data), (data,))
    row = next(row for row in result.rows if "cumsum" in row.op)
    assert row.where == "host" and "no DNA operator" in row.reason and "test_explain.py:" in row.source
    assert result.on_dna == 1
    text = str(result)
    assert "aten.cumsum" in text and "1 x aten.cumsum" in text and "conv" in text


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


def two_activations(x: Tensor) -> Tensor:
    return through_int8(F.linear(through_int8(x)[0], through_int8(x * 2)[0, 0]))


def alpha(x: Tensor) -> Tensor:
    return through_int8(torch.add(through_int8(x), through_int8(x * 2), alpha=2))


BROKEN = [
    (transposed, "weight must be a constant quantized to int8, got a constant in float"),
    (two_activations, "weight must be a constant quantized to int8, got"),
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


class Island(nn.Module):
    """A host operator between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.cumsum(self.first(x), 2))


def test_share_of_macs_and_cost_of_the_round_trip() -> None:
    data = torch.randn(1, 3, 10, 10)
    result = mera_torch.explain(quantized(Island(), data), (data,))
    rows = {row.op: row for row in result.rows}
    first, second = (row for row in result.rows if "conv" in row.op)
    assert (first.macs, second.macs) == (8 * 8 * 4 * 27, 8 * 8 * 8 * 4)
    assert result.macs == first.macs + second.macs and result.macs_on_dna == 1
    assert result.share(first) == pytest.approx(first.macs / result.macs)
    host = rows["aten.cumsum.default"]
    assert host.where == "host" and host.border_bytes == 2 * 4 * 8 * 8  # int8, there and back
    machine = result.platform
    transfer = host.border_bytes / machine.dram_bytes_per_cycle
    assert host.cycles == pytest.approx(transfer + 2 * machine.dram_latency_cycles, abs=1)
    assert all(row.border_bytes == 0 for row in result.rows if row is not host)
    assert "512 B" in str(result) and "100.0% of" in result.summary()


def test_host_operators_count_among_the_macs() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return float_weight(x)

    result = mera_torch.explain(Model(), (torch.randn(1, 3, 10, 10),))
    assert result.macs == 9 * 9 * 4 * 12 and result.macs_on_dna == 0


def test_json_form() -> None:
    data = torch.randn(1, 3, 8, 8)
    found = json.loads(json.dumps(mera_torch.explain(quantized(Mixed(), data), (data,)).to_dict()))
    assert found["operators_on_dna"] == 1 and found["regions"] == 1 and found["platform"] == "SAKURA_1"
    row = next(row for row in found["rows"] if row["where"] == "host")
    assert row["reason"] == "aten.cumsum.default has no DNA operator" and row["macs_share"] == 0
    assert sum(row["macs_share"] for row in found["rows"]) == pytest.approx(1)


HINTED = [
    (float_weight, "quantize the weights"),
    (two_activations, "frozen"),
    (two_dtypes, "8 bits"),
    (alpha, "multiply the second operand"),
    (both_broadcast, "expand"),
    (two_scales, "scale and zero point of its input"),
    (lambda x: torch.sigmoid(through_int8(x)), "quantize its result"),
    (lambda x: through_int8(through_int8(x) @ through_int8(x)), "two activations"),
]


@pytest.mark.parametrize(("function", "hint"), HINTED)
def test_hint(function: object, hint: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)  # type: ignore[operator, no-any-return]

    result = mera_torch.explain(Model(), (torch.randn(1, 3, 6, 6),))
    assert any(hint in found for found in result.hints()), str(result)


def test_hint_for_a_result_with_two_consumers() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            y = through_int8(x) + through_int8(w)
            return through_int8(torch.relu(y)) + through_int8(y)

    result = mera_torch.explain(Model(), (torch.randn(1, 3, 6, 6), torch.randn(1, 3, 6, 6)))
    assert any("two consumers" in hint for hint in result.hints()), str(result)
