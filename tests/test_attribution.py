"""Which operator of a quantized network adds error, and which inherits it."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import models
import pytest
import torch
from test_quality import QD, batches, chain, measured, quantized, shown, small
from torch import Tensor, nn
from torch.nn import functional as F

from mera_torch.errors import (
    ConfigError,
    InvalidModelError,
)
from mera_torch.quant.pipeline import Quantization
from mera_torch.quant.quality.measure import measure
from mera_torch.quant.quality.result import Quality


def rescale(q: Quantization, module: str, factor: float) -> None:
    """The value of a module's operator gets another scale, wherever it is quantized."""
    conv = next(n for n in q.module.graph.nodes if "conv2d" in str(n.target) and n.name == module)
    value = next(iter(conv.users))
    for quantize in list(value.users):
        for node in (quantize, *quantize.users):
            node.update_arg(1, node.args[1] * factor)
    q.module.recompile()


def coarsen(q: Quantization, name: str, steps: int) -> None:
    """The int8 weights of an operator become multiples of `steps`."""
    node = next(n for n in q.module.graph.nodes if n.name == name)
    held = getattr(q.module, str(node.args[1].args[0].target))
    held.copy_((held.float() / steps).round() * steps)


def test_the_operator_with_a_scale_too_small_is_named() -> None:
    q, data = chain()
    rescale(q, "conv2d_2", 1 / 20)
    found = measured(q, data, debug_mode=True)
    (worst,) = found.worst(1)
    assert worst.name == "conv2d_2" and worst.module == "victim" and worst.fused == ("relu_2",)
    assert worst.added is not None and worst.codes is not None and worst.inherited is not None
    assert worst.added.output.sqnr < 5 < 30 < worst.added.weights.sqnr and worst.inherited.sqnr > 25
    assert worst.codes.saturation > 0.3 and found.first_apart == "conv2d_2"
    last = found.node("conv2d_3")
    assert last.added is not None and last.inherited is not None and last.error is not None
    assert last.added.total.sqnr > 30 > 15 > last.inherited.sqnr  # it inherits, and adds next to nothing
    assert last.error.sqnr == pytest.approx(last.inherited.sqnr, abs=0.2)
    for before in ("x", "conv2d", "conv2d_1"):
        assert found.node(before).added.total.sqnr > 30  # type: ignore[union-attr]


def test_the_operator_with_a_scale_too_large_is_named() -> None:
    q, data = chain()
    rescale(q, "conv2d_1", 30.0)
    found = measured(q, data, debug_mode=True)
    assert found.worst(1)[0].name == "conv2d_1" and found.worst(1)[0].codes.used < 12  # type: ignore[union-attr]


def test_the_operator_with_coarse_weights_is_named() -> None:
    q, data = chain()
    coarsen(q, "conv2d_1", 60)
    found = measured(q, data, debug_mode=True)
    (worst,) = found.worst(1)
    assert worst.name == "conv2d_1" and worst.added is not None
    assert worst.added.weights.sqnr < 15 < 30 < worst.added.output.sqnr
    assert worst.added.input.mse == 0.0
    assert all(n.added.total.sqnr > 30 for n in found.nodes if n.name != "conv2d_1")  # type: ignore[union-attr]


def test_the_operator_with_an_outlier_channel_is_named() -> None:
    """Beside the outlier its noise looks small; in what its reader makes of it, through a max pool, it does not."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()
    ).eval()
    data = batches(4)
    assert measured(quantized(model, data), data, debug_mode=True).misread is None
    with torch.no_grad():
        model[2].weight[5] *= 500
        model[2].bias[5] *= 500
        model[5].weight[:, 5] /= 500
    found = measured(quantized(model, data), data, debug_mode=True)
    maker, reader = found.node("conv2d_1"), found.misread
    assert reader is not None and reader.name == "conv2d_2" and reader.inputs == ("max_pool2d",)
    assert found.makers(reader) == (maker,) and shown(found).count("by conv2d_1 (2)") == 1
    assert maker.added is not None and reader.received is not None
    assert maker.added.total.sqnr > 35 > 15 > reader.received.sqnr
    assert Quality.from_dict(found.to_dict()) == found


def test_error_is_what_is_added_and_what_is_inherited() -> None:
    """Against the definitions, computed by hand for one operator: conv2d_1 of the chain."""
    q, data = chain()
    node = measured(q, data[:1], debug_mode=True).node("conv2d_1")
    values: dict[str, Any] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            values[self.tag + n.name] = super().run_node(n)  # type: ignore[attr-defined]
            return values[self.tag + n.name]  # type: ignore[attr-defined]

    with torch.no_grad():
        for tag, module in (("f.", q.reference), ("q.", q.module)):
            watch = Watch(module)
            watch.tag = tag  # type: ignore[attr-defined]
            watch.run(data[0])
        conv = next(n for n in q.module.graph.nodes if n.name == "conv2d_1")
        relu = next(iter(conv.users))
        (quantize,) = relu.users
        made = conv.args[0].args  # dequantize(codes, scale, zero, ...)
        codes = QD.quantize_per_tensor.default(values["f.relu"], *made[1:6])
        rounded = QD.dequantize_per_tensor.default(codes, *made[1:6])
        weight, bias = (getattr(q.reference, f"second.{k}", None) for k in ("weight", "bias"))
        weight, bias = q.reference.get_parameter("second.weight"), q.reference.get_parameter("second.bias")
        given_ = F.relu(F.conv2d(rounded, weight, bias, padding=1))
        unrounded = F.relu(F.conv2d(rounded, *(values[f"q.{a.name}"] for a in conv.args[1:3]), padding=1))
        whole = QD.quantize_per_tensor.default(unrounded, *quantize.args[1:6])
        own = QD.dequantize_per_tensor.default(whole, *quantize.args[1:6])
    f, g = values["f.relu_1"], values[f"q.{next(iter(quantize.users)).name}"]
    assert node.added is not None and node.alone is not None and node.inherited is not None and node.error is not None

    def mse(e: Tensor) -> float:
        return float(e.double().square().mean())

    assert node.added.total.mse == pytest.approx(mse(own - given_), rel=1e-4)
    assert node.added.weights.mse == pytest.approx(mse(unrounded - given_), rel=1e-4)
    assert node.added.output.mse == pytest.approx(mse(own - unrounded), rel=1e-4)
    assert node.alone.mse == pytest.approx(mse(own - f), rel=1e-4)
    assert node.error.mse == pytest.approx(mse(g - f), rel=1e-4)
    assert node.inherited.mse == pytest.approx(mse((g - f) - (own - given_)), rel=1e-4)
    assert node.added.total.sqnr == pytest.approx(10 * math.log10(mse(f) / mse(own - given_)), abs=1e-3)


def test_a_network_without_rounding_equals_itself() -> None:
    q, data = small("residual")
    found = measure(q.original, q.reference, q.reference, data, debug_mode=True, progress=False)
    assert all(node.twin and node.error is not None and node.error.equal for node in found.nodes)
    assert all(node.added is not None and node.added.total.mse == 0.0 for node in found.nodes)
    assert found.worst() == () and found.first_apart is None
    same = measure(q.module, None, q.module, data, progress=False)
    assert same.psnr == (math.inf,) and same.score == (100.0,) and same.outputs[0].error.equal
    document = same.to_dict()
    assert document["outputs"][0]["error"]["psnr"] is None and document["outputs"][0]["top1"] == 1.0
    assert "equal" in shown(same)


@pytest.mark.parametrize("name", ["residual", "inception", "unet", "dense", "shuffle", "activations", "squeeze_excite"])
def test_every_operator_of_small_networks_has_a_twin(name: str) -> None:
    q, data = small(name)
    found = measured(q, data, debug_mode=True)
    assert all(node.twin and node.added is not None for node in found.nodes), found.notes
    assert {node.dtype for node in found.nodes} == {"int8"}
    names = [node.name for node in found.nodes]
    assert len(set(names)) == len(names)
    for i, node in enumerate(found.nodes):
        assert set(node.inputs) <= set(names[:i]) and bool(node.inputs) == (node.op != "input")
    assert found.outputs[0].node in names
    out = found.node(found.outputs[0].node)
    assert out.error is not None and out.error.sqnr == pytest.approx(found.outputs[0].error.sqnr, abs=1e-4)
    assert Quality.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_the_exported_network_serves_as_reference_of_a_pt2e_flow() -> None:
    """Batch norms not folded, in-place operators not rewritten: what users of prepare_pt2e have at hand."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from mera_torch.quant import MeraQuantizer

    torch.manual_seed(0)
    model = models.set_batchnorm_statistics(models.SMALL_MODELS["residual"](), torch.randn(8, 3, 16, 16)).eval()
    data = batches()
    original = torch.export.export(model, (data[0],)).module()
    prepared = prepare_pt2e(torch.export.export(model, (data[0],)).module(), MeraQuantizer())
    for x in data:
        prepared(x)
    module = convert_pt2e(prepared)
    before = copy.deepcopy(original.graph)
    found = measure(original, original, module, data, debug_mode=True, progress=False)
    assert str(before) == str(original.graph)
    assert all(node.error is not None and node.error.sqnr > 25 for node in found.nodes), shown(found)
    assert all(node.added is not None for node in found.nodes)


@pytest.mark.parametrize("batch_norm", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_quantization_aware_training(batch_norm: bool) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    from mera_torch.quant import MeraQuantizer, convert

    def network() -> nn.Module:
        first: list[nn.Module] = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        if batch_norm:
            first = [models.conv_bn(3, 6), nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.ReLU()]
        return nn.Sequential(*first, nn.Flatten(), nn.Linear(384, 3))

    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    exported = torch.export.export(network().train(), (x,)).module(check_guards=False)
    prepared = prepare_qat_pt2e(exported, MeraQuantizer(is_qat=True))
    for _ in range(3):
        prepared(x)
    trained = network()
    state = prepared.state_dict()
    trained.load_state_dict({key: state[key] for key in trained.state_dict()})
    original = torch.export.export(trained.eval(), (x,)).module(check_guards=False)
    found = measure(original, original, convert(prepared), [x], debug_mode=True, progress=False)
    assert found.outputs[0].error.sqnr > 15
    assert all(node.twin and node.error is not None and node.error.sqnr > 15 for node in found.nodes), shown(found)
    assert all(node.added is not None for node in found.nodes)


class Host(nn.Module):
    """Several outputs: int8, float from the host, class numbers, values with their indices."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor, bias: Tensor) -> dict[str, Any]:
        y = F.relu(self.conv(x))
        logits = self.head(y.mean((2, 3))) + bias
        values, indices = torch.topk(logits, 2)
        return {"map": y, "scores": logits.softmax(1), "class": logits.argmax(1), "top": (values, indices)}


def test_several_outputs_integers_tuples_and_operators_of_the_host() -> None:
    torch.manual_seed(0)
    data = [(x, torch.randn(2, 4, generator=torch.Generator().manual_seed(i))) for i, x in enumerate(batches())]
    q = quantized(Host(), data)
    for target in (None, "InterpreterHw"):
        found = measured(q, data, debug_mode=True, target=target)
        assert [o.shape for o in found.outputs] == [(2, 6, 16, 16), (2, 4), (2,), (2, 2), (2, 2)]
        assert found.outputs[2].dtype == found.outputs[4].dtype == "int64"
        assert found.outputs[0].scale is not None and found.outputs[2].scale is None
        assert found.outputs[0].top1 is None and found.outputs[1].top1 is not None
        assert len(found.psnr) == len(found.score) == len(found.mean_error) == len(found.max_abs_error) == 5
        assert found.samples == 6
        assert {"int8", "float"} <= {node.dtype for node in found.nodes}
        several = next(node for node in found.nodes if node.op == "topk")
        assert not several.twin and "no tensor" in several.note and several.name in found.notes[-1]
        assert Quality.from_dict(found.to_dict()) == found
        assert "topk" in shown(found)
    with pytest.raises(ConfigError, match="5 outputs: give output_id"):
        found.plot_histogram("x.png")


def test_inputs_that_are_codes() -> None:
    """As quantized TFLite models take them: the float network gets the real numbers."""
    from mera_torch.converters import ModelInfo, TensorInfo

    q, data = chain()
    place = next(n for n in q.module.graph.nodes if n.op == "placeholder")
    (quantize,) = place.users
    form = quantize.args[1:6]
    codes = [QD.quantize_per_tensor.default(x, *form) for x in data]
    real = [QD.dequantize_per_tensor.default(x, *form) for x in codes]
    wanted = measured(q, real, debug_mode=True)
    quantize.replace_all_uses_with(place)
    q.module.graph.erase_node(quantize)
    place.meta["val"] = codes[0]
    q.module.recompile()
    with pytest.raises(InvalidModelError, match=r"'x' is float32\[2, 3, 16, 16\] in the float network, int8"):
        measured(q, codes)
    info = TensorInfo("x", (2, 3, 16, 16), torch.int8, scale=float(form[0]), zero_point=int(form[1]))
    q.module.meta["mera_model"] = ModelInfo("tflite", (info,), ())
    found = measured(q, codes, debug_mode=True, target="InterpreterHw")
    same = measured(q, codes, debug_mode=True)
    assert same.outputs[0].error == wanted.outputs[0].error and found.first_different is not None
    for node in ("conv2d", "conv2d_2", "conv2d_3"):
        assert same.node(node).error == wanted.node(node).error
    assert same.node("x").error.equal and same.node("x").dtype == "int8"  # type: ignore[union-attr]
    assert same.node("conv2d").added is None and same.node("conv2d_1").added == wanted.node("conv2d_1").added


class Attention(nn.Module):
    """Indices and a mask as inputs, minus infinity inside, operators of the host between those in int8."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.qkv = nn.Embedding(30, 16), nn.LayerNorm(16), nn.Linear(16, 48)
        self.head = nn.Linear(16, 30)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(ids)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        weights = (q @ k.transpose(1, 2) / 4).masked_fill(mask, -math.inf).softmax(-1)
        return self.head(x + weights @ v), weights


def test_a_transformer_with_indices_and_masks() -> None:
    torch.manual_seed(0)
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    data = [(torch.randint(0, 30, (2, 6)), mask) for _ in range(3)]
    q = quantized(Attention(), data)
    found = measured(q, data, debug_mode=True)
    assert found.samples == 3  # the inputs have no common first dimension: a batch is a sample
    assert all(node.twin and node.added is not None for node in found.nodes)
    masked = found.node("masked_fill")
    assert masked.error is not None and masked.error.non_finite == 3 * 2 * 15 and masked.error.sqnr > 20
    assert (found.node("ids").dtype, found.node("mask").dtype) == ("int64", "bool")
    assert found.node("layer_norm").dtype == "float" and found.node("linear").dtype == "int8"
    assert found.node("ids").error.equal and found.node("mask").error.equal  # type: ignore[union-attr]
    assert Quality.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_outputs_that_stay_codes_are_compared_as_numbers() -> None:
    q, data = chain()
    wanted = measured(q, data, debug_mode=True)
    output = next(n for n in q.module.graph.nodes if n.op == "output")
    output.args = ((output.args[0][0].args[0],),)  # the quantize itself
    q.module.graph.eliminate_dead_code()
    q.module.recompile()
    for target in (None, "InterpreterHw"):
        found = measured(q, data, debug_mode=True, target=target)
        assert found.outputs[0].scale == wanted.outputs[0].scale
        assert found.outputs[0].error.sqnr == pytest.approx(wanted.outputs[0].error.sqnr, abs=0.5)
        assert found.node("conv2d_3").error == wanted.node("conv2d_3").error


def test_nodes_in_bf16() -> None:
    q, data = chain(rules=[{"node": "conv2d_1", "dtype": "bf16"}])
    found = measured(q, data, debug_mode=True)
    node = found.node("conv2d_1")
    assert node.dtype == "bf16" and node.scale is None and node.codes is None and node.histogram is not None
    assert node.added is not None and 40 < node.added.total.sqnr < 65
    assert found.node("conv2d_2").dtype == "int8"


def test_nodes_without_a_twin_are_listed() -> None:
    q, data = chain()
    other = copy.deepcopy(q.reference)
    for node in list(other.graph.nodes):
        if node.name == "relu_1":
            with other.graph.inserting_before(node):
                new = other.graph.call_function(torch.ops.aten.relu.default, node.args, name="renamed")
                new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            other.graph.erase_node(node)
    other.recompile()
    found = measure(q.original, other, q.module, data, debug_mode=True, progress=False)
    lone = found.node("conv2d_1")
    assert not lone.twin and lone.error is None and "no node of this name" in lone.note
    after = found.node("conv2d_2")
    assert after.twin and after.error is not None and after.added is None and after.inherited is None
    assert "conv2d_1" in found.notes[0] and "no twin" in shown(found)
