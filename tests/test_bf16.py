"""Operators in BF16 within a quantized network: the rounding, the canonical form, and that every rung runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import models
import numpy as np
import pytest
import torch
from compiled import built, run
from host_cases import run_c
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

import mera_torch
from mera_torch import lite
from mera_torch.ops.bf16 import CAST_ON_HOST, ON_HOST, computes_in_bf16
from mera_torch.quant import quantize
from mera_torch.quant.graphs import operators as ops

aten = torch.ops.aten
EDGES = np.array(
    [0.0, -0.0, 1.0, 1.00390625, 1.01171875, 1e-45, -1e-45, 9.2e-41, 1.1754944e-38, 3.3895314e38, 3.3961776e38,
     3.4028235e38, np.inf, -np.inf, np.nan, -np.nan, 65504.0, 65520.0], np.float32,
)  # fmt: skip


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        z = F.relu6(self.middle(y)) + y
        return self.last(z.mean((2, 3)))


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 3, 9, 10, generator=generator) for _ in range(count)]


def quantized(*rules: dict[str, Any], model: nn.Module | None = None, **options: Any) -> GraphModule:
    torch.manual_seed(0)
    data = batches()
    return quantize(model or Net(), data[0], data, config={"rules": rules, **options}, progress=False)


def node_of(module: GraphModule, name: str) -> Node:
    (found,) = [node for node in module.graph.nodes if node.name == name]
    return found


def rounded(x: Tensor) -> Tensor:
    """The oracle's rounding: ml_dtypes, not torch."""
    return torch.from_numpy(x.detach().numpy().astype(ml_dtypes.bfloat16).astype(np.float32))


# ---- rounding ----


def same_bits(mine: Tensor, wanted: np.ndarray) -> bool:
    bits, other = mine.view(torch.int16).numpy().view(np.uint16), wanted.view(np.uint16)
    nan = np.isnan(wanted.astype(np.float32))  # PyTorch itself has two NaNs, of vector and scalar code
    return bool(np.array_equal(bits[~nan], other[~nan]) and np.array_equal(np.isnan(mine.float().numpy()), nan))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["random bits", "ties", "edges"]))
def test_narrowing_is_ieee_on_both_hosts(seed: int, kind: str) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**32, 257, dtype=np.uint32)
    if kind == "ties":
        bits = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    x = EDGES if kind == "edges" else bits.view(np.float32)
    wanted = x.astype(ml_dtypes.bfloat16)
    tensor = torch.from_numpy(x.copy())
    assert same_bits(tensor.to(torch.bfloat16), wanted)
    (in_c,) = run_c("aten.to.dtype", [tensor, torch.bfloat16], {})
    assert same_bits(in_c, wanted)


def test_widening_is_exact_for_every_bfloat16() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    x = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16)
    (in_c,) = run_c("aten.to.dtype", [x, torch.float32], {})
    wanted = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(in_c.numpy(), wanted, equal_nan=True)
    (back,) = run_c("aten.to.dtype", [in_c, torch.bfloat16], {})
    nan = np.isnan(wanted)
    assert np.array_equal(back.view(torch.int16).numpy().view(np.uint16)[~nan], bits[~nan])


# ---- the canonical form ----


def test_operands_weights_and_result_are_rounded_and_nothing_else() -> None:
    x = batches()[1]
    module = quantized({"node": "conv2d_1", "dtype": "bf16"})
    conv = node_of(module, "conv2d_1")
    source, weight, bias = conv.args[:3]
    assert source.target is weight.target is aten.to.dtype and bias.op == "get_attr"  # type: ignore[union-attr]
    values: dict[str, Tensor] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            values[n.name] = result = super().run_node(n)
            return result

    with torch.no_grad():
        Watch(module).run(x)
    (relu,) = conv.users
    (narrow,) = relu.users
    (wide,) = narrow.users
    read = source.args[0].args[0]  # type: ignore[union-attr]
    operand, weights = rounded(values[read.name]), rounded(module.get_parameter("middle.weight"))
    assert torch.equal(values[source.name], operand) and torch.equal(values[weight.name], weights)  # type: ignore[union-attr]
    result = F.relu6(F.conv2d(operand, weights, module.get_parameter("middle.bias"), padding=1, groups=4))
    assert torch.equal(values[wide.name], rounded(result))
    assert computes_in_bf16(conv) and not computes_in_bf16(node_of(module, "conv2d"))
    assert [n.name for n in module.graph.nodes if computes_in_bf16(n)] == ["conv2d_1", "relu6"]


def test_one_pair_of_casts_between_neighbours() -> None:
    module = quantized({"node": "conv2d_1", "dtype": "bf16"}, {"op": "add", "dtype": "bf16"})
    add = node_of(module, "add")
    relu6 = node_of(module, "relu6")
    (narrow,) = relu6.users
    (wide,) = narrow.users
    assert list(wide.users) == [add] and narrow.args[1] is torch.bfloat16 and wide.args[1] is torch.float32


def test_everything_in_bf16_is_the_network_rounded_step_by_step() -> None:
    torch.manual_seed(0)
    model, x = Net(), batches()[2]
    module = quantized(
        {"op": "conv2d", "dtype": "bf16"}, {"op": "mean", "dtype": "bf16"}, {"op": "add", "dtype": "bf16"}, model=model
    )
    first, middle = model.first, model.middle
    with torch.no_grad():
        y = rounded(F.relu(F.conv2d(rounded(x), rounded(first.weight), first.bias, padding=1)))
        z = rounded(F.relu6(F.conv2d(y, rounded(middle.weight), middle.bias, padding=1, groups=4)))
        mean = rounded(rounded(z + y).mean((2, 3)))
        linear = node_of(module, "linear")
        q = linear.args[0].args[0]  # type: ignore[union-attr]
        levels = q.target(mean, *q.args[1:])
        want = F.linear(linear.args[0].target(levels, *linear.args[0].args[1:]), *_dequantized(module, linear))  # type: ignore[union-attr]
        (output,) = linear.users
        (final,) = output.users
        want = final.target(output.target(want, *output.args[1:]), *final.args[1:])  # type: ignore[operator]
        assert torch.equal(module(x), want)


def _dequantized(module: GraphModule, node: Node) -> list[Tensor]:
    found = []
    for arg in node.args[1:3]:
        held = [getattr(module, str(a.target)) if isinstance(a, Node) else a for a in arg.args]  # type: ignore[union-attr]
        found.append(arg.target(*held))  # type: ignore[union-attr, operator]
    return found


def test_no_rule_no_cast() -> None:
    assert not [n for n in quantized().graph.nodes if n.target is aten.to.dtype]


# ---- it runs everywhere ----


@pytest.mark.parametrize(
    "rules",
    [
        [{"node": "conv2d_1", "dtype": "bf16"}],
        [{"op": "add", "dtype": "bf16"}, {"op": "linear", "dtype": "bf16"}],
        [{"module": "first", "dtype": "bf16"}, {"op": "mean", "dtype": "float"}],
    ],
)
def test_interpreter_and_simulator_agree_and_the_report_says_why(rules: list[dict[str, str]]) -> None:
    module, x = quantized(*rules), batches()[1]
    result = built(module, x)
    (got,) = run(result, x)  # InterpreterHw against Simulator, to the byte
    with torch.no_grad():
        torch.testing.assert_close(got, module(x), atol=0.02 * float(module(x).abs().max()), rtol=0)
    reasons = {row.node: row.reason for row in result.explanation.rows}
    in_bf16 = [n.name for n in module.graph.nodes if computes_in_bf16(n)]
    assert in_bf16 and {reasons[name] for name in in_bf16} == {ON_HOST}
    casts = [n.name for n in module.graph.nodes if n.target is aten.to.dtype and n.args[0].op != "get_attr"]
    assert {reasons[name] for name in casts if name in reasons and "weight" not in name} == {CAST_ON_HOST}


class Attention(nn.Module):
    """What the DNA has no int8 for: layer norm, products of activations, a softmax at the border of float."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        scores = torch.softmax(y @ y.transpose(1, 2) / 8**0.5, -1)
        return self.head(F.gelu(scores @ y).mean(1))


def test_bf16_as_the_default_of_all_operators() -> None:
    torch.manual_seed(0)
    model, x = Attention().eval(), batches()[1]
    module = quantized({"op": "conv2d", "dtype": "int8"}, {"op": "linear", "dtype": "int8"}, model=model, dtype="bf16")
    result = built(module, x)
    (got,) = run(result, x)
    with torch.no_grad():
        assert (got - model(x)).norm() < 0.05 * model(x).norm()
    inner = {"layer_norm", "matmul", "matmul_1", "softmax", "gelu", "mean"}
    assert inner <= {node.name for node in module.graph.nodes if computes_in_bf16(node)}
    where = {row.node: (row.where, row.reason) for row in result.explanation.rows}
    assert where["matmul"] == ("host", ON_HOST) and where["conv2d"][0].startswith("DNA")


@pytest.mark.parametrize(("node", "tolerance"), [("add", 0.0), ("conv2d_1", 0.01)])
def test_the_c_runtime_runs_it(node: str, tolerance: float, tmp_path: Path) -> None:
    """A sum of a convolution is rounded in another order in C than in PyTorch, which may cost one step."""
    module, x = quantized({"node": node, "dtype": "bf16"}), batches()[1]
    deployment = mera_torch.export(module, (x,), tmp_path / "d", platform="DNAF132S0001")
    loaded = lite.load(tmp_path / "d")
    steps = loaded.manifest["host"]["steps"]
    assert "aten.to.dtype" in {step.get("op") or step.get("target") for step in steps}
    assert loaded.needs_torch is None
    wanted = deployment.get_runner("Simulator")(x).numpy()
    for target in ("InterpreterHw", "Simulator"):
        got = loaded.get_runner(target)(x.numpy())
        assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", models.SMALL_MODELS)
@pytest.mark.parametrize("dtype", ["bf16", "float"])
def test_small_models_with_every_third_operator_out_of_int8(name: str, dtype: str) -> None:
    torch.manual_seed(0)
    size = (64, 64) if name == "mobilenet_v1" else (16, 16)
    model = models.set_batchnorm_statistics(models.SMALL_MODELS[name](), torch.randn(8, 3, *size))
    data, others = ([torch.randn(1, 3, *size) for _ in range(count)] for count in (4, 24))
    plain = quantize(model, data[0], data, progress=False)
    every = [n.name for n in plain.graph.nodes if n.target in ops.CONV | ops.BINARY | ops.UNARY][::3]
    rules = [{"node": node, "dtype": dtype} for node in every]
    mixed = quantize(model, data[0], data, config={"rules": rules}, progress=False)
    run(built(mixed, data[0]), data[0])
    with torch.no_grad():
        wanted, *found = (torch.cat([network(x) for x in others]) for network in (model, mixed, plain))
        error, plain_error = ((got - wanted).norm() / wanted.norm() for got in found)
    assert error <= 1.2 * plain_error + 0.01
