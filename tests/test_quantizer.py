"""MeraQuantizer and quantize: everything that can be int8 is, what must share a scale does, bad input is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

import mera_torch
from mera_torch.errors import CalibrationError, ConfigError, InvalidModelError, UnsupportedError
from mera_torch.quant import MeraQuantizer, QuantConfig, calibrate, convert, quantize
from mera_torch.quant.calibration.observers import ActivationObserver, affine
from mera_torch.quant.graphs import operators as ops
from mera_torch.quant.graphs.patterns import find_constants, module_path
from mera_torch.quant.transforms.equalize import equalize
from mera_torch.quant.transforms.fake import sqnr_db

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed
Q, DQ, DQ_CHANNEL = qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default, qd.dequantize_per_channel.default


def random_batches(size: tuple[int, int] = (16, 16), count: int = 2, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, 3, *size, generator=generator) for _ in range(count)]


def prepared_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = models.SMALL_MODELS[name]()
    size = (64, 64) if name == "mobilenet_v1" else (16, 16)
    return models.set_batchnorm_statistics(model, torch.randn(8, 3, *size))


def calls(graph_module: GraphModule, *targets: Any) -> list[Node]:
    return [n for n in graph_module.graph.nodes if n.op == "call_function" and (not targets or n.target in targets)]


def islands(quantized: GraphModule) -> list[str]:
    """The operators that do not read dequantized values or whose result is not quantized, save where one is fused after
    another."""
    constants = find_constants(quantized.graph)
    fusing = ops.CONV | ops.LINEAR | ops.BINARY
    found = []
    for node in calls(quantized):
        if node.target in (Q, DQ, DQ_CHANNEL) or node in constants:
            continue
        sources = [n for n in node.all_input_nodes if n not in constants]
        fused = node.target in ops.CLAMP and sources[0].target in fusing and len(sources[0].users) == 1
        reads_int8 = fused or all(n.target in (DQ, DQ_CHANNEL) for n in sources)
        writes_int8 = all(u.target is Q or (node.target in fusing and u.target in ops.CLAMP) for u in node.users)
        if not (reads_int8 and writes_int8):
            found.append(f"{node.format_node()}")
    return found


def scales_around(node: Node) -> set[tuple[float, int]]:
    """(scale, zero point) of every dequantize before and quantize after `node`."""
    before = [n.args[1:3] for n in node.all_input_nodes if n.target is DQ]
    return {*before, *(u.args[1:3] for u in node.users if u.target is Q)}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", models.SMALL_MODELS)
def test_small_models_have_no_float_island_and_stay_close(name: str) -> None:
    model = prepared_model(name)
    size = (64, 64) if name == "mobilenet_v1" else (16, 16)
    batches = random_batches(size)
    config = {"activation_observer": "minmax", "split_heads": False}
    quantized = quantize(model, batches[0], batches, config=config, progress=False)
    assert islands(quantized) == []
    assert all(n.target in (Q, DQ, DQ_CHANNEL) or n.target.namespace == "aten" for n in calls(quantized))  # type: ignore[union-attr]
    assert {n.op for n in quantized.graph.nodes} <= {"placeholder", "get_attr", "call_function", "output"}
    with torch.no_grad():
        expected, got = model(batches[0]), quantized(batches[0])
    error = (got - expected).square().mean() / expected.square().mean()
    assert error < (0.1 if name == "mobilenet_v1" else 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.TORCHVISION_MODELS)
def test_torchvision_models_have_no_float_island(name: str) -> None:
    pytest.importorskip("PIL")
    model = models.build_torchvision(name)
    x = torch.randn(2, 3, 65, 97)
    models.set_batchnorm_statistics(model, x)
    quantized = quantize(model, x, [x], config={"activation_observer": "minmax", "correct_bias": False}, progress=False)
    assert islands(quantized) == []
    assert not calls(quantized, aten.batch_norm.default, *ops.FUNCTIONAL)


def test_operators_that_move_values_share_one_quantization() -> None:
    sharing = (*ops.CAT, *ops.MAX_POOL, *ops.PAD, *ops.MOVE, *ops.AVG_POOL)
    for name in ("inception", "unet", "dense", "shuffle", "activations", "plain"):
        batches = random_batches()
        config = {"split_heads": False}
        quantized = quantize(prepared_model(name), batches[0], batches[:1], config=config, progress=False)
        found = calls(quantized, *sharing)
        assert found
        for node in found:
            assert len(scales_around(node)) == 1, f"{name}: {node.format_node()}"


def test_weights_and_biases() -> None:
    batches = random_batches()
    quantized = quantize(prepared_model("residual"), batches[0], batches, progress=False)
    for node in calls(quantized, *ops.CONV, *ops.LINEAR):
        x, weight, bias = node.args[:3]
        w, w_scale, w_zero = (getattr(quantized, str(a.target)) for a in weight.args[:3])
        b, b_scale, b_zero = (getattr(quantized, str(a.target)) for a in bias.args[:3])
        assert w.dtype == torch.int8 and int(w.min()) >= -127 and weight.args[3] == 0
        assert b.dtype == torch.int32 and not w_zero.any() and not b_zero.any()
        torch.testing.assert_close(b_scale, x.args[1] * w_scale, rtol=1e-6, atol=0)


def test_activation_is_fused_only_where_nobody_else_reads() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return F.relu(y) - y

    batches = random_batches()
    quantized = quantize(Model(), batches[0], batches, progress=False)
    (conv,) = calls(quantized, *ops.CONV)
    assert [u.target for u in conv.users] == [Q]
    assert islands(quantized) == []


def test_float_operators_stay_in_float_and_read_true_values() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            side = torch.softmax(x.flatten(2).permute(0, 2, 1), -1).sum(1)
            return self.conv(x).mean([2, 3]) + F.pad(side, (0, 1))

    batches = random_batches()
    quantized = quantize(Model(), batches[0], batches, progress=False)
    (softmax,) = calls(quantized, aten.softmax.int)
    (conv,) = calls(quantized, *ops.CONV)
    flatten = softmax.args[0].args[0]  # type: ignore[union-attr]
    assert flatten.target is aten.flatten.using_ints and flatten.args[0].op == "placeholder"
    assert conv.args[0].target is DQ  # type: ignore[union-attr]


def test_in_place_operators_and_values_read_twice() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            z = y.relu_()  # y is now the relu too
            y = y + y
            y += z
            y.mul_(0.5).clamp_(max=1.5)
            left, right = y.split(8, 3)
            return F.hardtanh(torch.cat([left, right, left], 3), -1.0, 1.0, inplace=True)

    torch.manual_seed(0)
    model = Model()
    batches = random_batches()
    quantized = quantize(model, batches[0], batches, config={"activation_observer": "minmax"}, progress=False)
    assert islands(quantized) == [] and not calls(quantized, *ops.FUNCTIONAL)
    with torch.no_grad():
        torch.testing.assert_close(quantized(batches[0]), model(batches[0]), atol=0.06, rtol=0)


def test_in_place_on_a_view_of_something_read_elsewhere_is_left_alone() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            y[:, :, :4].relu_()
            return y * 1.0

    torch.manual_seed(0)
    model = Model().eval()
    exported = torch.export.export(model, (x := random_batches()[0],)).module(check_guards=False)
    rewritten = MeraQuantizer().transform_for_annotation(exported)
    with torch.no_grad():
        torch.testing.assert_close(rewritten(x), model(x))


def test_in_place_on_a_view_of_something_read_elsewhere_is_quantized_as_what_it_computes() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            y[:, :, :4].relu_()
            z: torch.Tensor = self.last(y * 2)
            return z

    torch.manual_seed(0)
    batches = random_batches()
    model = models.set_batchnorm_statistics(Model(), batches[0]).eval()
    quantized = quantize(model, batches[0], batches, progress=False)
    with torch.no_grad():
        error = (quantized(batches[0]) - model(batches[0])).square().mean() / model(batches[0]).square().mean()
    assert error < 0.001


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_named_padding(padding: str, kernel: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, (kernel, 3), padding=padding, dilation=(1, 2)), nn.BatchNorm2d(4)).eval()
    batches = random_batches()
    quantized = quantize(model, batches[0], batches, progress=False)
    assert not calls(quantized, aten.conv2d.padding) and islands(quantized) == []
    with torch.no_grad():
        assert sqnr_db(model(batches[0]), quantized(batches[0])) > 30


def test_constant_operands_are_int8_constants() -> None:
    batches = random_batches()
    quantized = quantize(prepared_model("activations"), batches[0], batches, progress=False)
    (scaled,) = [
        n for n in calls(quantized, aten.mul.Tensor) if any(a in find_constants(quantized.graph) for a in n.args)
    ]
    constant = scaled.args[1]
    assert constant.target is DQ and getattr(quantized, constant.args[0].target).dtype == torch.int8  # type: ignore[union-attr]


def test_known_ranges_are_fixed_unless_configured() -> None:
    batches = random_batches()
    for fixed in (True, False):
        quantized = quantize(
            prepared_model("unet"), batches[0], batches, config={"fixed_ranges": fixed}, progress=False
        )
        (sigmoid,) = calls(quantized, aten.sigmoid.default)
        (quantizer,) = sigmoid.users
        assert (quantizer.args[1:3] == (float(torch.tensor(1 / 255)), -128)) == fixed


def test_batch_norm_whose_convolution_is_read_twice() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    torch.manual_seed(0)
    batches = random_batches()
    model = models.set_batchnorm_statistics(Model(), batches[0])
    nn.init.constant_(model.norm.weight, 3.0)
    quantized = quantize(model, batches[0], batches, progress=False)
    with torch.no_grad():
        assert sqnr_db(model(batches[0]), quantized(batches[0])) > 30


@pytest.mark.parametrize("module", [nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(3, 8, 2, stride=2, groups=1)], ids=repr)
def test_batch_norms_of_decomposed_graphs_are_folded(module: nn.Module) -> None:
    """As importers and run_decompositions leave them: aten.convolution and the batch norm that inference knows."""
    model = models.set_batchnorm_statistics(
        nn.Sequential(module, nn.BatchNorm2d(8), nn.ReLU()), torch.randn(8, 3, 9, 9)
    )
    batches = random_batches((9, 9))
    decomposed = torch.export.export(model.eval(), (batches[0],)).run_decompositions().module()
    quantized = quantize(decomposed, batches[0], batches, progress=False)
    assert len(calls(quantized, aten.conv2d.default, aten.conv_transpose2d.input)) == 1
    assert not calls(quantized, aten.batch_norm.default, aten.convolution.default)
    with torch.no_grad():
        error = (quantized(batches[0]) - model(batches[0])).square().mean() / model(batches[0]).square().mean()
    assert error < 0.001


@pytest.mark.parametrize("config", [{}, {"equalize": True, "adaround": True}], ids=["defaults", "equalize, adaround"])
def test_networks_without_a_batch_dimension(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1)).eval()
    images = [torch.rand(3, 9, 9) for _ in range(4)]
    quantized = quantize(model, images[0], images, config=config, progress=False)
    with torch.no_grad():
        error = (quantized(images[0]) - model(images[0])).square().mean() / model(images[0]).square().mean()
    assert error < 0.001


def test_dead_channel_keeps_its_bias() -> None:
    model = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        model.weight[1] = 1e-12
        model.bias.copy_(torch.tensor([0.0, 9.0]))  # type: ignore[union-attr]
    batches = [0.01 * x for x in random_batches()]
    quantized = quantize(model, batches[0], batches, progress=False)
    with torch.no_grad():
        assert (quantized(batches[0])[:, 1] - 9.0).abs().max() < 0.05


def test_model_is_not_changed_and_origins_are_kept() -> None:
    model = prepared_model("residual").train()
    state = copy.deepcopy(model.state_dict())
    batches = random_batches()
    generator = torch.get_rng_state()
    quantized = quantize(model, tuple(batches[:1]), (x for x in batches), progress=False)
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training and model.b1.training
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    paths = [module_path(n) for n in calls(quantized, *ops.CONV)]
    assert paths == ["stem.0", "a1.0", "a2.0", "b1.0", "b2.0", "project.0"]
    assert all("models.py" in n.meta["stack_trace"] for n in calls(quantized, aten.add.Tensor))


def test_excluded_modules_stay_in_float() -> None:
    batches = random_batches()
    quantized = quantize(prepared_model("residual"), batches[0], batches, config={"exclude": ("a?.*",)}, progress=False)
    kept = [n for n in calls(quantized, *ops.CONV) if module_path(n) in ("a1.0", "a2.0")]
    assert len(kept) == 2 and all(n.args[1].op == "get_attr" for n in kept)  # type: ignore[union-attr]


def test_equalization_keeps_the_function_and_the_original_model() -> None:
    for name, streams in (("residual", 4), ("mobilenet_v1", 27), ("plain", 1), ("squeeze_excite", 1), ("inception", 3)):
        model = prepared_model(name)
        x = torch.randn(2, 3, 64, 64) if name == "mobilenet_v1" else random_batches()[0]
        state = copy.deepcopy(model.state_dict())
        exported = torch.export.export(model, (x,)).module(check_guards=False)
        assert equalize(exported, [(x,)]) == streams, name
        with torch.no_grad():
            torch.testing.assert_close(exported(x), model(x), rtol=1e-3, atol=1e-3)
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_equalization_helps_unequal_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    factor = torch.logspace(-2, 1, 8).view(-1, 1, 1, 1)
    with torch.no_grad():
        model[0].weight *= factor
        model[0].bias *= factor.flatten()  # type: ignore[operator]
        model[2].weight /= factor.view(1, -1, 1, 1)
    batches = random_batches()

    def error(equalized: bool) -> float:
        quantized = quantize(model, batches[0], batches, config={"equalize": equalized}, progress=False)
        with torch.no_grad():
            return float((quantized(batches[0]) - model(batches[0])).square().mean())

    assert error(True) < 0.1 * error(False)


def test_bias_correction_takes_out_the_mean_error() -> None:
    model, batches = prepared_model("residual"), random_batches(count=4)

    def error(**config: Any) -> float:
        quantized = quantize(model, batches[0], batches, config=config, progress=False)
        with torch.no_grad():
            return sum(float((quantized(x) - model(x)).mean(0).square().mean()) for x in batches)

    assert error(correct_bias=True) < error(correct_bias=False)


def test_histogram_clips_a_lone_outlier_and_minmax_does_not() -> None:
    histogram, minmax = ActivationObserver("histogram", bins=256), ActivationObserver("minmax")
    generator = torch.Generator().manual_seed(0)
    for observer in (histogram, minmax):
        for batch in range(4):
            x = torch.randn(100000, generator=generator)
            x[0] = 30.0 if batch == 3 else 0.0
            observer(x)
    assert minmax.range()[1] == 30.0
    low, high = histogram.range()
    assert -6 < low < -3 and 3 < high < 20


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 6.0), (-3.0, 0.0), (0.0, 0.0), (-1e-9, 5.0)])
def test_affine_represents_zero(low: float, high: float) -> None:
    scale, zero_point = affine(low, high)
    assert scale > 0 and -128 <= zero_point <= 127
    assert (-128 - zero_point) * scale <= low + scale and (127 - zero_point) * scale >= high - scale


def test_bad_input_is_told() -> None:
    model, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    cases: list[tuple[type[Exception], str, Any, Any, Any]] = [
        (CalibrationError, "empty", model, x, []),
        (CalibrationError, "one tensor", model, x, x),
        (CalibrationError, "must be an iterable", model, x, 3),
        (CalibrationError, r"the input 'input_1' has shape \(1, 3, 9, 8\)", model, x, [x, torch.randn(1, 3, 9, 8)]),
        (CalibrationError, "dtype torch.float64", model, x, [x.double()]),
        (CalibrationError, "2 inputs, but the model takes 1", model, x, [(x, x)]),
        (CalibrationError, "must be a torch.Tensor, got list", model, x, [[[1.0]]]),
        (CalibrationError, "item 1: the input 'input(_1)?' holds NaN", model, x, [x, x * float("nan")]),
        (UnsupportedError, "call model.float", copy.deepcopy(model).half(), x.half(), [x.half()]),
        (UnsupportedError, "no operator", nn.Softmax(1), x, [x]),
        (InvalidModelError, "cannot capture", model, torch.randn(1, 5, 8, 8), [x]),
    ]
    for error, message, module, example, data in cases:
        with pytest.raises(error, match=message):
            quantize(module, example, data, progress=False)


def test_empty_calibration_with_equalization() -> None:
    with pytest.raises(CalibrationError, match="empty"):
        quantize(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), [], config={"equalize": True}, progress=False)


def test_infinity_inside_the_model_is_located() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.sqrt(self.first(x) - 1e6))

    x = torch.randn(1, 3, 4, 4)
    with pytest.raises(CalibrationError, match="the output of 'sqrt' holds NaN"):
        quantize(Model(), x, [x], progress=False)


def test_config_errors_name_the_field() -> None:
    with pytest.raises(ConfigError, match="histogram_bins"):
        QuantConfig.from_dict({"histogram_bin": 100})
    for field, value in {
        "activation_observer": "best",
        "histogram_bins": 5,
        "averaging_constant": 0,
        "correct_bias": 1,
        "exclude": "head",
    }.items():
        with pytest.raises(ConfigError, match=field):
            QuantConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_norm", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_quantization_aware_training(batch_norm: bool) -> None:
    """A small net is trained with fake quantization; what comes out computes as in training, all in int8, and has
    learned."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    torch.manual_seed(0)
    first: list[nn.Module] = [nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    if batch_norm:
        first = [models.conv_bn(1, 4, stride=2), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(*first, nn.Dropout(0.1), nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(32, 1, 8, 8)
    labels = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
    exported = torch.export.export(model.train(), (x,)).module(check_guards=False)
    prepared = prepare_qat_pt2e(exported, MeraQuantizer(is_qat=True))
    optimizer = torch.optim.Adam(prepared.parameters(), 0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(prepared(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    move_exported_model_to_eval(prepared)
    with torch.no_grad():
        expected = prepared(x)
        quantized = convert(prepared)
        got = quantized(x)
    assert losses[-1] < 0.7 * losses[0]
    assert islands(quantized) == []
    assert all(n.args[2].target is DQ_CHANNEL for n in calls(quantized, *ops.CONV, *ops.LINEAR))  # type: ignore[union-attr]
    assert float((got - expected).square().mean() / expected.square().mean()) < 0.02


class Recurrent(nn.Module):
    """One convolution and batch norm, three times in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(3):
            x = F.relu(self.norm(self.conv(x)))
        return x


def test_training_with_shared_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    x = torch.randn(4, 3, 8, 8)
    exported = torch.export.export(Recurrent().train(), (x,)).module()
    prepared = prepare_qat_pt2e(exported, MeraQuantizer(is_qat=True))
    prepared(x).square().mean().backward()
    quantized = convert(prepared)
    runner = mera_torch.export(quantized, (x,), tmp_path / "m", target="InterpreterHw").get_runner()
    with torch.no_grad():
        assert sqnr_db(quantized(x), runner(x)) > 25  # a step here and there
    assert mera_torch.explain(quantized, (x,)).on_host == 0


def test_calibrate_runs_prepared_modules() -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    batches = random_batches()
    exported = torch.export.export(prepared_model("plain"), (batches[0],)).module()
    prepared = prepare_pt2e(exported, MeraQuantizer())
    assert calibrate(prepared, [(x,) for x in batches], progress=False) == 2
    assert islands(convert_pt2e(prepared)) == []


@pytest.mark.network
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_real_weights_on_real_photos(name: str, zoo_artifact: Any) -> None:
    from mera_torch.zoo_models import MODELS, photos

    zoo_artifact(name)
    zoo_artifact("photos")
    zoo_model = MODELS[name]
    model = zoo_model.load()
    images = [zoo_model.preprocess(photo.data) for photo in photos()]
    flipped = [image.flip(3) for image in images]  # seen in calibration; judged are the photos as they are
    quantized = quantize(model, images[0], flipped, progress=False)
    with torch.no_grad():
        agreed = sum(int(model(x).argmax() == quantized(x).argmax()) for x in images)
    assert agreed >= 18


def test_digit_cnn_keeps_its_accuracy() -> None:
    from mera_torch.digits import calibration_digits, held_out_digits, trained_digit_net

    model = trained_digit_net()
    calibration, digits = calibration_digits(), held_out_digits()
    example = digits.images[:50]
    quantized = quantize(model, example, [calibration.images[:50]], progress=False)
    lost = 0
    with torch.no_grad():
        for i in range(0, 200, 50):
            x, y = digits.images[i : i + 50], digits.labels[i : i + 50]
            lost += int((model(x).argmax(1) == y).sum()) - int((quantized(x).argmax(1) == y).sum())
    assert lost <= 1


class _Prelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.prelu = nn.Conv2d(3, 6, 3), nn.PReLU(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(self.conv(x))


class _Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b, x @ self.w @ self.w.t(), self.w)


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor], channels: int = 4) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, channels, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.function(self.conv(x)))


WHOLE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "transposed": (nn.ConvTranspose2d(6, 4, 4, 2, 1), (1, 6, 5, 6)),
    "transposed, relu": (nn.Sequential(nn.ConvTranspose2d(6, 4, 3, (3, 2), 1, (2, 1)), nn.ReLU()), (2, 6, 4, 5)),
    "transposed, grouped": (nn.ConvTranspose2d(6, 4, 3, 2, groups=2), (1, 6, 5, 6)),
    "transposed, depthwise": (nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=6), (1, 6, 5, 6)),
    "transposed, 1d": (nn.ConvTranspose1d(6, 4, 4, 2, 1, bias=False), (2, 6, 7)),
    "transposed, batch norm": (nn.Sequential(nn.ConvTranspose2d(6, 4, 2, 2), nn.BatchNorm2d(4)), (1, 6, 5, 6)),
    "conv1d": (nn.Conv1d(6, 4, 3, padding=1), (2, 6, 7)),
    "conv1d, same": (nn.Conv1d(6, 4, 4, padding="same"), (2, 6, 7)),
    "prelu": (_Prelu(), (1, 3, 7, 8)),
    "products": (_Product(), (3, 8)),
    "maximum": (_Function(lambda y: torch.maximum(y[:, :2], y[:, 2:])), (1, 3, 7, 8)),
    "minimum": (_Function(lambda y: torch.minimum(y[:, :2], y[:, 2:])), (1, 3, 7, 8)),
    "amax": (_Function(lambda y: y.amax((2, 3))), (1, 3, 7, 8)),
    "mean of channels": (_Function(lambda y: y.mean(1)), (1, 3, 7, 8)),
    "reflect": (_Function(lambda y: F.pad(y, (1, 1, 2, 0), mode="reflect")), (1, 3, 7, 8)),
    "flip": (_Function(lambda y: y.flip(3)), (1, 3, 7, 8)),
    "roll": (_Function(lambda y: y.roll(2, 2)), (1, 3, 7, 8)),
    "index": (_Function(lambda y: y[:, [2, 0, 3]]), (1, 3, 7, 8)),
    "repeat": (_Function(lambda y: y.repeat(1, 2, 1, 1)), (1, 3, 7, 8)),
    "stack": (_Function(lambda y: torch.stack([y[:, :2], y[:, 2:]], 2).flatten(1, 2)), (1, 3, 7, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_operator_is_quantized_and_runs_whole_on_the_dna(name: str) -> None:
    torch.manual_seed(0)
    module, shape = WHOLE[name]
    data = torch.randn(shape)
    converted = mera_torch.quantize(module.eval(), (data,), [(data,)], progress=False)
    explanation = mera_torch.explain(converted, (data,))
    assert explanation.regions == 1 and explanation.on_host == 0, str(explanation)
    with torch.no_grad():
        wanted, found = module(data), converted(data)
    assert (wanted - found).abs().max() <= 0.06 * wanted.abs().max()


def test_outputs_are_not_clipped_where_inner_values_are() -> None:
    """The largest logits would tie; what only moves on its way out shares the output's range."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x)).reshape(-1, 2, 4)

    torch.manual_seed(0)
    net, data = Net().eval(), [torch.randn(4096, 8) for _ in range(4)]
    data[1][7] *= 4  # rare and large
    with torch.no_grad():
        inner, final = (torch.cat([run(x) for x in data]) for run in (net.first, net))

    def extents(**config: object) -> list[float]:
        quantized = mera_torch.quantize(net, data[0], data, config=config, progress=False)
        scales = {n.name: n.args[1] for n in quantized.graph.nodes if "quantize_per_tensor" in str(n.target)}
        found = [scale for name, scale in scales.items() if not name.startswith("de")]
        return [255 * float(scale) for scale in (found[1], found[-1])]

    clipped, whole = extents()
    assert clipped < 0.9 * float(inner.max() - inner.min())
    assert whole == pytest.approx(1.25 * float(final.max() - final.min()), rel=0.01)
    seen = extents(output_observer="minmax")[1]
    assert seen == pytest.approx(float(final.max() - final.min()), rel=0.01)
    assert extents(output_observer="histogram")[1] < 0.9 * seen
