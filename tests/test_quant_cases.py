"""Networks and data that quantization once got wrong, each with what it must give."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from mera_torch import ModelQuantizer, QuantizedModel, export, quantize
from mera_torch.errors import CalibrationError, ConfigError, UnsupportedError
from mera_torch.quant import MeraQuantizer, convert
from mera_torch.quant.config import QuantConfig
from mera_torch.quant.graphs.canonicalize import remove_in_place
from mera_torch.quant.graphs.capture import export_float, twin
from mera_torch.quant.mixed.search import search
from mera_torch.quant.mixed.sensitivity import sensitivity
from mera_torch.quant.transforms.smooth import smooth

aten: Any = torch.ops.aten


class Of(nn.Module):
    """`function` of its layers and inputs."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def batches(*shape: int, count: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def decibels(wanted: torch.Tensor, got: torch.Tensor) -> float:
    return 10 * math.log10(float(wanted.square().sum() / (wanted - got).square().sum().clamp_min(1e-30)))


def worst(model: nn.Module, quantized: nn.Module, data: list[torch.Tensor]) -> float:
    with torch.no_grad():
        return min(decibels(model(x), quantized(x)) for x in data)


def ran(quantized: nn.Module, x: torch.Tensor, folder: Path) -> torch.Tensor:
    """What InterpreterHw gives, which the Simulator gives, too."""
    deployment = export(quantized, (x,), folder, overwrite=True)
    result, simulated = (deployment.get_runner(target)(x) for target in ("InterpreterHw", "Simulator"))
    assert torch.equal(result, simulated)
    return result


# ---- lowering ----


@pytest.mark.parametrize("kind", ["batch norm", "per channel", "per tensor", "depthwise", "linear"])
def test_affine_weights_that_are_all_positive(kind: str, tmp_path: Path) -> None:
    """Their zero point is -128, so that the largest is 255 levels above it: 9 bits, and more than two int8 hold."""
    make: dict[str, Callable[[], nn.Module]] = {
        "batch norm": lambda: nn.BatchNorm2d(3),
        "depthwise": lambda: nn.Conv2d(3, 3, 3, groups=3, dilation=2),
        "linear": lambda: nn.Linear(8, 4),
    }
    model = seeded(make.get(kind, lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1)))
    if kind != "batch norm":
        nn.init.uniform_(model.weight, 0.5, 1.0)  # type: ignore[arg-type]
    data = batches(1, 3, 8, 8)
    config = {"weight_scheme": "affine", "per_channel_weights": kind != "per tensor"}
    model = nn.Sequential(model)
    quantized = quantize(model, data[0], data, config=config, progress=False)
    assert worst(model, quantized, data) > 30
    assert decibels(quantized(data[0]), ran(quantized, data[0], tmp_path / "d")) > 40


@pytest.mark.parametrize("make", [
    lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3, padding="same")),
    lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 2, padding="same")),
])  # fmt: skip
def test_convolutions_without_a_batch_run_where_they_were_exported(make: Any, tmp_path: Path) -> None:
    model, data = seeded(make), batches(3, 8, 8)
    quantized = quantize(model, data[0], data, progress=False)
    assert decibels(model(data[0]), ran(quantized, data[0], tmp_path / "d")) > 30


# ---- recognition ----


@pytest.mark.parametrize("view", [
    lambda y: y.chunk(2, 1)[0], lambda y: y.split(4, 1)[1], lambda y: y.unbind(0)[0], lambda y: y.narrow(1, 0, 4),
    lambda y: y.movedim(1, 2), lambda y: y.swapaxes(1, 2), lambda y: y.mT, lambda y: y.expand_as(y),
    lambda y: y.diagonal(0, 2, 3), lambda y: y.unfold(2, 2, 2), lambda y: y.tensor_split(2, 1)[1],
    lambda y: y.split_with_sizes([3, 5], 1)[0], lambda y: y.transpose(1, 2), lambda y: y.view_as(y),
    lambda y: F.dropout(y, 0.5, False), lambda y: torch.atleast_3d(y),
])  # fmt: skip
def test_what_is_written_through_a_view_is_seen(view: Any) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        view(y).relu_()
        return y + 1

    model = seeded(lambda: Of(forward, conv=nn.Conv2d(3, 8, 3)))
    x = batches(1, 3, 8, 8)[0]
    with torch.no_grad():
        torch.testing.assert_close(export_float(model, (x,))(x), model(x))


def test_in_place_after_a_view_that_nothing_else_reads_is_rewritten() -> None:
    model = seeded(lambda: Of(lambda self, x: self.conv(x).flatten(1).relu_() + 1, conv=nn.Conv2d(3, 8, 3)))
    x = batches(1, 3, 8, 8)[0]
    graph = torch.export.export(model, (x,)).module()
    remove_in_place(graph)
    assert aten.relu.default in {node.target for node in graph.graph.nodes}


def test_a_pad_before_a_max_pool_that_rounds_up_stays() -> None:
    model = Of(lambda self, x: F.max_pool2d(F.pad(self.conv(x), [1] * 4, value=-1e30), 2, 2, ceil_mode=True),
               conv=nn.Conv2d(3, 4, 1)).eval()  # fmt: skip
    data = batches(1, 3, 5, 5)
    quantized = quantize(model, data[0], data, progress=False)
    assert quantized(data[0]).shape == model(data[0]).shape


def test_what_a_rule_is_about_stays() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = self.scale(self.conv(x), 1.5)
        return self.last(y * self.gate(y))

    model = seeded(
        lambda: Of(
            forward, conv=nn.Conv2d(3, 8, 3), last=nn.Conv2d(8, 4, 1), gate=nn.Sigmoid(),
            scale=Of(lambda self, a, b: a * b),
        )
    )  # fmt: skip
    data = batches(1, 3, 8, 8)
    by_class = {"rules": [{"op": "silu", "dtype": "float"}], "hardswish": True}
    silu = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU())
    for network, config, stays in (
        (model, {}, aten.silu.default),
        (model, {"exclude": ("scale",)}, aten.mul.Tensor),
        (model, {"exclude": ("gate",)}, aten.sigmoid.default),
        (model, {"rules": [{"op": "sigmoid", "fixed_ranges": False}]}, aten.sigmoid.default),
        (silu, by_class, aten.silu.default),
    ):
        quantized = quantize(network, data[0], data, config=config, progress=False)
        assert stays in {node.target for node in quantized.graph.nodes}, config
        assert worst(network, quantized, data) > 25
    with pytest.raises(ConfigError, match="exclude|pattern"):
        QuantConfig(exclude=("",))


@pytest.mark.parametrize("dtype", ["int8", "bf16", "float"])
def test_rules_for_what_is_recognized_do_not_take_it_apart(dtype: str) -> None:
    """Its name is that of the last operator that it was spelled with, which the search for mixed precision uses."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        z = self.b(y * torch.sigmoid(y))
        return self.c(z * F.relu6(z + 3) / 6) * 2.0

    model = seeded(lambda: Of(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 1), c=nn.Conv2d(8, 4, 1)))
    whole, data = nn.Sequential(model), batches(1, 3, 8, 8)
    plain = quantize(whole, data[0], data, progress=False)
    wanted = [node.target for node in plain.graph.nodes if node.op == "call_function" and "quantize" not in node.name]
    assert aten.silu.default in wanted and aten.hardswish.default in wanted and aten.mul.Tensor not in wanted
    for rules in (
        [{"node": "mul", "dtype": dtype}, {"node": "div", "dtype": dtype}],
        [{"module": "0", "dtype": "int8"}],
    ):
        quantized = quantize(whole, data[0], data, config={"rules": rules}, progress=False)
        found = {node.target for node in quantized.graph.nodes}
        assert {aten.silu.default, aten.hardswish.default} <= found and aten.mul.Tensor not in found
        assert worst(whole, quantized, data) > worst(whole, plain, data) - 0.5


def test_parts_of_a_split_may_be_written_into() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        a, b = self.conv(x).split(4, 1)
        return self.last(F.relu(a, inplace=True)) + F.hardswish(b, inplace=True)

    model = seeded(lambda: Of(forward, conv=nn.Conv2d(3, 8, 3), last=nn.Conv2d(4, 4, 1)))
    data = batches(1, 3, 8, 8)
    quantized = quantize(model, data[0], data, progress=False)
    assert not any("scatter" in str(node.target) for node in quantized.graph.nodes)
    assert worst(model, quantized, data) > 30


# ---- transforms ----


@pytest.mark.parametrize("product", [
    lambda y: y * y, lambda y: F.scaled_dot_product_attention(y, y, y), lambda y: y @ y,
])  # fmt: skip
def test_smoothquant_keeps_the_function_of_products_of_a_value_with_itself(product: Any) -> None:
    model = seeded(
        lambda: Of(
            lambda self, x: self.last(product(self.norm(x))), norm=nn.LayerNorm(8), last=nn.Linear(8, 4)
        )
    )  # fmt: skip
    data = [(x * torch.linspace(0.1, 8, 8),) for x in batches(1, 8, 8)]
    graph = export_float(model, data[0])
    smoothed = twin(graph)
    smooth(smoothed, data, QuantConfig(smoothquant=0.5), False)
    with torch.no_grad():
        for inputs in data:
            torch.testing.assert_close(smoothed(*inputs), model(*inputs), rtol=1e-4, atol=1e-4)


def test_adaround_of_affine_weights_and_of_named_padding() -> None:
    data = batches(2, 3, 16)
    model = seeded(
        lambda: nn.Sequential(nn.Conv1d(3, 16, 3, padding="same"), nn.ReLU(), nn.Conv1d(16, 4, 2, padding="same"))
    )
    nn.init.uniform_(model[2].weight, 0.2, 1.0)  # type: ignore[arg-type]
    for scheme in ("symmetric", "affine"):
        config = {"weight_scheme": scheme, "correct_bias": False}
        nearest, rounded = (
            worst(model, quantize(model, data[0], data, config={**config, "adaround": on}, progress=False), data)
            for on in (False, True)
        )
        assert rounded > nearest - 0.5 and nearest > 25


def test_smoothing_by_nothing_is_not_leaving_it_out() -> None:
    model, data = seeded(lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))), batches(4, 8)
    a, b = (quantize(model, data[0], data, config={"smoothquant": s}, progress=False) for s in (None, 0.0))
    assert not torch.equal(a(data[0]), b(data[0]))


# ---- data ----


class Sized(Dataset[torch.Tensor]):
    """A data set with a length, whose __getitem__ knows no end."""

    def __init__(self, items: list[torch.Tensor]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.items[index % len(self.items)]


def test_a_data_set_ends_where_its_length_says() -> None:
    model, data = seeded(lambda: nn.Conv2d(3, 4, 3)), batches(1, 3, 8, 8)
    a, b = (quantize(model, data[0], given, progress=False) for given in (data, Sized(data)))
    assert torch.equal(a(data[0]), b(data[0]))


def test_a_source_may_fill_one_buffer_again_and_again() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    data = [x * (1 + i) for i, x in enumerate(batches(1, 3, 8, 8))]

    def refilled() -> Iterator[torch.Tensor]:
        buffer = torch.empty_like(data[0])
        for x in reversed(data):
            yield buffer.copy_(x)

    wanted = quantize(model, data[0], reversed(data), progress=False)
    assert torch.equal(quantize(model, data[0], refilled(), progress=False)(data[0]), wanted(data[0]))
    by_two = [
        ModelQuantizer(model, (2, 3, 8, 8)).calibrate(given, False) for given in (refilled(), list(reversed(data)))
    ]
    a, b = (each.quantize(progress=False) for each in by_two)
    assert torch.equal(a(torch.cat(data[:2])), b(torch.cat(data[:2])))


def test_sensitivity_compares_the_same_batches_of_a_loader_that_shuffles() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    data = batches(3, 8, 8, count=16)
    calibration = [x[None] for x in data]
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    plain, shuffled, own = (
        sensitivity(
            model, calibration[0], DataLoader(data, batch_size=1, **how), calibration=calibration, progress=False
        )
        for how in ({"shuffle": False}, {"shuffle": True}, {"shuffle": True, "generator": generator})
    )  # fmt: skip
    assert own.quantized == pytest.approx(plain.quantized, abs=1e-6) and torch.equal(generator.get_state(), before)
    with pytest.raises(CalibrationError, match="not the same in each pass"):
        sensitivity(model, calibration[0], Noisy(data), calibration=calibration, progress=False)
    assert shuffled.quantized == pytest.approx(plain.quantized, abs=1e-6) and shuffled.quantized > 25


class Noisy(list[torch.Tensor]):
    """Gives other inputs in each pass."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (x[None] + random.random() for x in super().__iter__())


def test_inputs_that_are_lists() -> None:
    model = seeded(lambda: Of(lambda self, xs: [self.conv(x) for x in xs], conv=nn.Conv2d(3, 4, 1)))
    data = [([a, b],) for a, b in zip(batches(1, 3, 4, 4), batches(1, 3, 5, 5), strict=True)]
    quantized = quantize(model, data[0], data, config={"adaround": True}, progress=False)
    for wanted, got in zip(model(data[0][0]), quantized(data[0][0]), strict=True):
        assert decibels(wanted, got) > 30


def test_inputs_changed_in_place_stay_the_users_and_buffers_may_not_change() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        x.sub_(0.5).mul_(2)
        return self.conv(x)

    model, data = seeded(lambda: Of(forward, conv=nn.Conv2d(3, 4, 1))), batches(1, 3, 8, 8)
    before = [x.clone() for x in data]
    quantized = quantize(model, data[0], data, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, data, strict=True))
    assert decibels(model(before[0].clone()), quantized(data[0].clone())) > 30

    def counting(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return self.conv(x) * self.count

    counter = seeded(lambda: Of(counting, conv=nn.Conv2d(3, 4, 1)))
    counter.register_buffer("count", torch.zeros(()))
    with pytest.raises(UnsupportedError, match="changes its buffer 'count'"):
        quantize(counter, data[0], data, progress=False)
    assert float(counter.count) == 0  # type: ignore[arg-type]

    def scratching(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.scratch.copy_(x)
        return self.conv(self.scratch + 1)

    scratch = seeded(lambda: Of(scratching, conv=nn.Conv2d(3, 4, 1)))
    scratch.register_buffer("scratch", torch.zeros(1, 3, 8, 8))
    quantized = quantize(scratch, data[0], data, progress=False)
    assert not scratch.scratch.any()  # type: ignore[operator]
    assert worst(scratch, quantized, data) > 30


def test_autocast_is_named() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.conv(x)  # type: ignore[no-any-return]

    model, data = seeded(lambda: Of(forward, conv=nn.Conv2d(3, 4, 1))), batches(1, 3, 8, 8)
    with pytest.raises(UnsupportedError, match=r"torch\.autocast"):
        quantize(model, data[0], data, progress=False)


def test_dict_shapes_are_of_the_arguments_of_these_names() -> None:
    model = seeded(lambda: _Two())
    quantizer = ModelQuantizer(model, {"b": (1, 3), "a": (1, 5)})
    assert [(i.name, i.shape) for i in quantizer.info.inputs] == [("a", (1, 5)), ("b", (1, 3))]
    named = ModelQuantizer(model, {"left": (1, 5), "right": (1, 3)})
    assert [i.name for i in named.info.inputs] == ["left", "right"]


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.r = nn.Linear(5, 4), nn.Linear(3, 4)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.l(a) + self.r(b)  # type: ignore[no-any-return]


# ---- batch norms ----


@pytest.mark.parametrize(("make", "shape", "on_host"), [
    (lambda: [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)], (4, 8), False),
    (lambda: [nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2)], (4, 8), False),
    (lambda: [nn.Conv1d(3, 8, 3), nn.ReLU(), nn.BatchNorm1d(8), nn.Conv1d(8, 2, 3)], (4, 3, 16), False),
    (lambda: [nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.BatchNorm3d(4)], (1, 3, 6, 6, 6), False),
    (lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.Conv2d(8, 4, 1)],
     (2, 3, 8, 8), True),
])  # fmt: skip
def test_batch_norms_of_every_rank(make: Any, shape: tuple[int, ...], on_host: bool, tmp_path: Path) -> None:
    model = seeded(lambda: _settled(nn.Sequential(*make())))
    data = batches(*shape)
    quantized = quantize(model, data[0], data, progress=False)
    assert worst(model, quantized, data) > 28
    assert decibels(quantized(data[0]), ran(quantized, data[0], tmp_path / "d")) > 28
    left = [node for node in quantized.graph.nodes if "batch_norm" in str(node.target)]
    assert len(left) == on_host


def _settled(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 2.0)
    return model


@pytest.mark.parametrize(("make", "shape"), [
    (lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)), (4, 8)),
    (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 2, 3)), (4, 3, 16)),
    (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.BatchNorm1d(8), nn.Conv1d(8, 2, 3)), (4, 3, 16)),
    (lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3, batch_first=True), (2, 5, 16)),
])  # fmt: skip
def test_training_of_every_rank_of_batch_norm_and_of_attention(make: Any, shape: tuple[int, ...]) -> None:
    data = batches(*shape)
    torch.manual_seed(0)
    prepared = prepare_qat_pt2e(torch.export.export(make().train(), (data[0],)).module(), MeraQuantizer(is_qat=True))
    for x in data:
        prepared(x).square().mean().backward()
    converted = convert(prepared)
    x = data[0]
    assert converted(x).isfinite().all() and torch.equal(converted(x), converted(x))


# ---- results ----


def test_one_exact_output_does_not_hide_another() -> None:
    def forward(self: Any, x: torch.Tensor) -> Any:
        return self.a(x), self.c(F.relu(self.b(x)))

    model = seeded(lambda: Of(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 8, 3), c=nn.Conv2d(8, 4, 1)))
    data = [(x,) for x in batches(1, 3, 12, 12, count=4)]
    scores = [row.score for row in sensitivity(model, data[0], data, calibration=data, progress=False).rows]
    assert all(map(math.isfinite, scores))
    found = search(model, data[0], data, data, accuracy=42, dtype="float", progress=False)
    assert 42 <= found.after.score < math.inf


def test_a_parameter_left_in_float_gives_equal_bits_after_loading(tmp_path: Path) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.l = nn.Parameter(torch.randn(5, 6)), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w @ F.relu(self.l(x))

    model, data = seeded(Product), batches(2, 6, 16)
    quantized = ModelQuantizer(model, (2, 6, 16)).calibrate(data, False).quantize(progress=False)
    quantized.save(tmp_path / "x.mera")
    assert torch.equal(quantized(data[0]), QuantizedModel.load(tmp_path / "x.mera")(data[0]))
    assert not quantized(data[0]).requires_grad and model.w.requires_grad  # type: ignore[union-attr]
