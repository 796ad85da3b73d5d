"""Passes and lowering: every operator at most one step from eager, one region, no transposes; the verifier; layouts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import models
import numpy as np
import pytest
import torch
from compiled import built, quantized, run, steps_apart, steps_apart_by_node
from torch import Tensor, fx, nn
from torch.nn import functional as F

from mera_torch import InternalError, passes
from mera_torch.backend.capture import capture
from mera_torch.backend.layout import Layout, moves
from mera_torch.ops import QUANTIZED
from mera_torch.ops.conv import conv2d
from mera_torch.ops.table import lut
from mera_torch.passes.verify import verify


class Of(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module, **constants: Tensor) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)
        for name, value in constants.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*self.layers, *self.buffers(recurse=False), *inputs)


def x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


OPERATORS: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "conv": (nn.Conv2d(3, 7, 3), (x(2, 3, 11, 13),)),
    "conv stride pad": (nn.Conv2d(5, 6, (3, 5), (2, 3), (1, 2)), (x(1, 5, 17, 19),)),
    "conv dilation": (nn.Conv2d(4, 4, 3, 1, 2, 2), (x(1, 4, 12, 9),)),
    "conv groups": (nn.Conv2d(6, 9, 3, groups=3, bias=False), (x(1, 6, 8, 8),)),
    "conv same, even kernel": (nn.Conv2d(3, 4, 4, padding="same"), (x(1, 3, 9, 10),)),
    "depthwise": (nn.Conv2d(10, 10, 3, 2, 1, groups=10), (x(2, 10, 9, 11),)),
    "depthwise multiplier": (nn.Conv2d(4, 8, 3, groups=4), (x(1, 4, 9, 9),)),
    "conv relu": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (x(1, 3, 9, 9),)),
    "conv relu6": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6()), (x(1, 3, 9, 9) * 9,)),
    "conv hardtanh": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Hardtanh(-0.3, 0.4)), (x(1, 3, 9, 9),)),
    "linear": (nn.Linear(19, 11), (x(3, 19),)),
    "linear rank 3": (nn.Linear(19, 11, bias=False), (x(2, 5, 19),)),
    "linear rank 4": (nn.Linear(7, 3), (x(2, 5, 4, 7),)),
    "linear rank 1": (nn.Linear(7, 3), (x(7),)),
    "batch norm": (nn.BatchNorm2d(6), (x(2, 6, 5, 7),)),
    "add": (Of(torch.add), (x(2, 3, 5, 7), x(2, 3, 5, 7, seed=1) * 3)),
    "add relu": (Of(lambda a, b: F.relu(a + b)), (x(2, 3, 5, 7), x(2, 3, 5, 7, seed=1))),
    "add broadcast": (Of(torch.add), (x(2, 3, 5, 7), x(2, 3, 1, 1, seed=1))),
    "add rank 2": (Of(torch.add), (x(4, 9), x(9, seed=1))),
    "sub": (Of(torch.sub), (x(1, 4, 5, 5), x(1, 4, 5, 5, seed=1))),
    "sub broadcast left": (Of(torch.sub), (x(1, 4, 1, 1), x(1, 4, 5, 5, seed=1))),
    "mul": (Of(torch.mul), (x(1, 4, 5, 5), x(1, 4, 5, 5, seed=1))),
    "mul squeeze-excite": (Of(torch.mul), (x(2, 4, 5, 5), torch.sigmoid(x(2, 4, 1, 1, seed=1)))),
    "mul by channel": (Of(torch.mul, scale=x(1, 4, 1, 1, seed=2)), (x(2, 4, 5, 5),)),
    "sub from channel": (Of(torch.sub, shift=x(1, 4, 1, 1, seed=2)), (x(2, 4, 5, 5),)),
    "mul by tensor": (Of(torch.mul, scale=x(5, 5, seed=2)), (x(2, 4, 5, 5),)),
    "scalars": (Of(lambda a: (a * 2 + 0.5) / 3), (x(2, 4, 5, 5),)),
    "square": (Of(lambda a: a * a), (x(2, 4, 5, 5),)),
    "max pool": (nn.MaxPool2d(3, 2, 1), (x(1, 5, 12, 13),)),
    "max pool ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), (x(1, 5, 12, 13),)),
    "max pool dilation": (nn.MaxPool2d(2, 1, dilation=2), (x(1, 5, 8, 9),)),
    "avg pool": (nn.AvgPool2d(2), (x(1, 5, 8, 9),)),
    "avg pool pad": (nn.AvgPool2d(3, 2, 1), (x(1, 5, 9, 11) + 2,)),
    "avg pool pad not counted": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (x(1, 5, 9, 11) + 2,)),
    "avg pool ceil": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (x(1, 5, 10, 12) + 2,)),
    "adaptive avg pool": (nn.AdaptiveAvgPool2d((2, 3)), (x(1, 5, 8, 9),)),
    "global avg pool": (nn.AdaptiveAvgPool2d(1), (x(2, 5, 8, 9),)),
    "mean": (Of(lambda a: a.mean((2, 3))), (x(2, 5, 8, 9),)),
    "flatten": (Of(lambda c, a: c(a).flatten(1), nn.Conv2d(3, 4, 1)), (x(2, 3, 4, 5),)),
    "resize": (Of(lambda c, a: F.interpolate(c(a), scale_factor=2), nn.Conv2d(3, 4, 1)), (x(2, 3, 4, 5),)),
    "pixel shuffle": (Of(lambda c, a: F.pixel_shuffle(c(a), 2), nn.Conv2d(3, 8, 1)), (x(2, 3, 4, 5),)),
}  # fmt: skip
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "gelu tanh": lambda a: F.gelu(a, approximate="tanh"),
    "hardtanh": lambda a: F.hardtanh(a, -0.5, 0.25),
    "clamp": lambda a: a.clamp(max=0.3),
    "abs": torch.abs,
    "elu": F.elu,
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_is_at_most_one_step_from_eager(name: str) -> None:
    module, inputs = OPERATORS[name]
    apart, result = steps_apart(module, *inputs)
    assert apart <= 1.001
    assert len(result.regions) == 1 and result.explanation.on_host == 0, str(result.explanation)


def requantized(value: Tensor, scale: float, zero_point: int) -> Tensor:
    """value through int8 and back."""
    q = torch.ops.quantized_decomposed
    return q.dequantize_per_tensor(
        q.quantize_per_tensor(value, scale, zero_point, -128, 127, torch.int8), scale, zero_point, -128, 127, torch.int8
    )


SANDWICHES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "mean rank 3": (lambda a: a.mean(1), (x(2, 5, 8),)),
    "mean of channels": (lambda a: a.mean(1, keepdim=True), (x(2, 5, 8, 9),)),
    "mean of the last": (lambda a: a.mean(-1), (x(2, 5, 8),)),
    "mean of all": (lambda a: a.mean(), (x(2, 5, 8, 9),)),
    "sum": (lambda a: a.sum((2, 3)), (x(2, 5, 8, 9),)),
    "sum of channels": (lambda a: a.sum(1, keepdim=True), (x(2, 5, 8, 9),)),
    "sum of all": (lambda a: a.sum(), (x(2, 5, 8, 9),)),
    "avg pool, other scale": (lambda a: F.avg_pool2d(a, 3, 2, 1), (x(1, 3, 9, 9),)),
    "avg pool, divisor": (lambda a: F.avg_pool2d(a, 2, divisor_override=3), (x(1, 3, 8, 8),)),
    "max pool, other scale": (lambda a: F.max_pool2d(a, 2), (x(1, 3, 8, 8),)),
    "concat of rank 2": (lambda a, b: torch.cat([a, b], 1), (x(3, 4), x(3, 5))),
    "concat of batches": (lambda a, b: torch.cat([a, b]), (x(1, 3, 4, 4), x(2, 3, 4, 4))),
    "slice": (lambda a: a[:, 1:3, ::2, 1:], (x(2, 5, 7, 8),)),
    "pad": (lambda a: F.pad(a, (1, 2, 3, 0, 1, 1)), (x(2, 3, 4, 5),)),
    "permute": (lambda a: a.permute(0, 2, 3, 1).relu(), (x(2, 3, 4, 5),)),
    "transposed add": (lambda a, b: a + b.transpose(2, 3), (x(2, 3, 5, 5), x(2, 3, 5, 5, seed=1))),
    "reshaped add": (lambda a, b: a + b.reshape(2, 3, 4, 5), (x(2, 3, 4, 5), x(2, 60, seed=1))),
    "reshape across": (lambda a: a.transpose(1, 2).reshape(5, 6) * 2, (x(2, 3, 5),)),
    "rank 5": (lambda a: a.reshape(2, 2, 3, 4, 5).transpose(1, 2).reshape(2, 6, 4, 5) + a, (x(2, 6, 4, 5),)),
    "batch norm 1d": (lambda a: F.batch_norm(a, torch.zeros(5), torch.ones(5)), (x(3, 5),)),
    "unbind": (lambda a: torch.stack([p.relu() for p in a.unbind(1)][::-1], 1), (x(2, 3, 4),)),
}  # fmt: skip


class Sandwich(nn.Module):
    """function between quantized inputs and a quantized result."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return requantized(self.function(*(requantized(a, 0.02, 5) for a in inputs)), 0.015, -7)


@pytest.mark.parametrize("name", SANDWICHES)
def test_operator_between_given_scales(name: str) -> None:
    function, inputs = SANDWICHES[name]
    result = built(Sandwich(function), *inputs)
    assert len(result.regions) == 1 and result.explanation.on_host == 0, str(result.explanation)
    apart = (run(result, *inputs)[0] - Sandwich(function)(*inputs)).abs().max().item() / 0.015
    assert apart <= 1.001


def test_conv_1d() -> None:
    q = torch.ops.quantized_decomposed

    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randint(-127, 128, (4, 3, 3), dtype=torch.int8))

        def forward(self, a: Tensor) -> Tensor:
            weight = q.dequantize_per_tensor(self.weight, 0.01, 0, -127, 127, torch.int8)
            return requantized(F.conv1d(requantized(a, 0.02, 5), weight, stride=2, padding=1), 0.05, 3)

    module, data = Conv(), x(2, 3, 11)
    result = built(module, data)
    assert [node.op for node in result.regions[0].graph.nodes][-1] in ("conv2d", "reshape")
    assert (run(result, data)[0] - module(data)).abs().max() <= 0.0501


@pytest.mark.parametrize("name", UNARY)
def test_unary_is_a_table_that_equals_eager(name: str) -> None:
    inputs = (x(2, 3, 8, 8) * 4,)
    apart, result = steps_apart(Of(UNARY[name]), *inputs)
    assert apart == 0
    assert [node.op for node in result.regions[0].graph.nodes] == ["lut"]


def test_chain_of_unary_operators_is_one_table() -> None:
    converted = quantized(Of(lambda a: torch.tanh(F.silu(F.hardswish(a)) + 0.5)), x(1, 3, 6, 6))
    result = built(converted, x(1, 3, 6, 6))
    assert [node.op for node in result.regions[0].graph.nodes] == ["lut"]
    with torch.no_grad():
        assert torch.equal(run(result, x(1, 3, 6, 6))[0], converted(x(1, 3, 6, 6)))


NETWORKS = ["PlainCnn", "Residual", "SqueezeExcite", "Inception", "UNet", "DenseBlock", "Shuffle", "Activations"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (4, 3, 16, 16)], ids=["batch 1", "batch 4"])
def test_network_is_one_region_without_transposes(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    data = x(*shape)
    model = models.set_batchnorm_statistics(getattr(models, name)(), x(8, *shape[1:]))
    converted = quantized(model, data)
    result = built(converted, data)
    assert len(result.regions) == 1 and result.explanation.on_host == 0, str(result.explanation)
    assert result.transposes == 0
    assert max(steps_apart_by_node(converted, data).values()) <= 1
    with torch.no_grad():
        wanted = converted(data)
    assert (run(result, data)[0] - wanted).abs().mean() <= 0.02 * (wanted.max() - wanted.min())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "densenet121"])
def test_torchvision_network_is_one_region(name: str) -> None:
    torch.manual_seed(0)
    data = x(1, 3, 97, 161)
    model = models.set_batchnorm_statistics(models.build_torchvision(name), x(2, 3, 97, 161, seed=1))
    converted = quantized(model, data)
    result = built(converted, data)
    assert len(result.regions) == 1 and result.explanation.on_host == 0, str(result.explanation)
    assert result.transposes == 0
    assert max(steps_apart_by_node(converted, data).values()) <= 1


def test_channels_last_model_needs_no_transpose() -> None:
    class Block(nn.Module):
        """As in ConvNeXt: linear layers on [N,H,W,C] between convolutions on [N,C,H,W]."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Linear(8, 16), nn.Conv2d(16, 4, 3)

        def forward(self, image: Tensor) -> Tensor:
            y = F.gelu(self.b(self.a(image).permute(0, 2, 3, 1)))
            return self.c(y.permute(0, 3, 1, 2))

    apart, result = steps_apart(Block(), x(2, 3, 9, 10))
    assert result.transposes == 0 and len(result.regions) == 1
    assert apart <= 2  # three operators in a row


def test_flatten_before_linear_permutes_the_weight() -> None:
    apart, result = steps_apart(nn.Sequential(nn.Conv2d(3, 5, 2), nn.Flatten(), nn.Linear(5 * 3 * 4, 7)), x(2, 3, 4, 5))
    assert {node.op for node in result.regions[0].graph.nodes} <= {"conv2d", "reshape"}
    assert apart <= 2


def test_padding_before_a_convolution_is_the_convolutions_own() -> None:
    module = Of(lambda c, a: c(F.pad(a, (0, 1, 0, 1))), nn.Conv2d(3, 4, 3, 2))
    _, result = steps_apart(module, x(1, 3, 8, 8))
    assert [node.op for node in result.regions[0].graph.nodes] == ["conv2d"]


def test_concat_of_other_scales_is_brought_to_one() -> None:
    q = torch.ops.quantized_decomposed

    class Concat(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            parts = []
            for value, scale in ((a, 0.02), (b, 0.05)):
                quantized_value = q.quantize_per_tensor(value, scale, 3, -128, 127, torch.int8)
                parts.append(q.dequantize_per_tensor(quantized_value, scale, 3, -128, 127, torch.int8))
            y = q.quantize_per_tensor(torch.cat(parts, 1), 0.04, -5, -128, 127, torch.int8)
            return q.dequantize_per_tensor(y, 0.04, -5, -128, 127, torch.int8)

    inputs = (x(1, 3, 4, 4), x(1, 2, 4, 4, seed=1))
    result = built(Concat(), *inputs)
    assert [node.op for node in result.regions[0].graph.nodes] == ["lut", "lut", "concat"]
    assert torch.equal(run(result, *inputs)[0], Concat()(*inputs))


def test_batch_norm_behind_a_convolution_is_the_convolutions_own() -> None:
    q = torch.ops.quantized_decomposed

    class ConvBn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(1)
            weight = torch.randint(-127, 128, (4, 3, 3, 3), dtype=torch.int8, generator=generator)
            self.register_buffer("weight", weight)
            self.bn = nn.BatchNorm2d(4)
            with torch.no_grad():
                self.bn.weight.copy_(torch.tensor([1.0, -0.5, 0.0, 2.0]))
                self.bn.bias.copy_(torch.tensor([0.1, 0.2, 0.3, -0.4]))

        def forward(self, a: Tensor) -> Tensor:
            weight = q.dequantize_per_tensor(self.weight, 0.01, 0, -127, 127, torch.int8)
            return requantized(F.relu(self.bn(F.conv2d(requantized(a, 0.02, 5), weight))), 0.05, -100)

    module, data = ConvBn().eval(), x(2, 3, 7, 8)
    result = built(module, data)
    assert [node.op for node in result.regions[0].graph.nodes] == ["conv2d"]
    with torch.no_grad():
        assert (run(result, data)[0] - module(data)).abs().max() <= 0.0501


def test_uint8_activations_become_int8() -> None:
    q = torch.ops.quantized_decomposed

    class Unsigned(nn.Module):
        def forward(self, a: Tensor) -> Tensor:
            for scale, zero in ((0.02, 100), (0.03, 0)):
                y = torch.relu(a) if zero == 0 else a
                y = q.quantize_per_tensor(y, scale, zero, 0, 255, torch.uint8)
                a = q.dequantize_per_tensor(y, scale, zero, 0, 255, torch.uint8)
            return a

    result = built(Unsigned(), x(1, 3, 5, 5))
    assert [node.op for node in result.regions[0].graph.nodes] == ["lut"]
    assert torch.equal(run(result, x(1, 3, 5, 5))[0], Unsigned()(x(1, 3, 5, 5)))


def test_graph_of_another_quantizer() -> None:
    """uint8 activations, float biases, weights from -128: torchao's quantizer for x86."""
    x86 = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(0)
    data = x(2, 3, 16, 16)
    model = models.PlainCnn().eval()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model, (data,)).module(check_guards=False), quantizer)
    prepared(data)
    converted = convert_pt2e(prepared)
    result = built(converted, data)
    on_host = [row.op for row in result.explanation.rows if row.where == "host" and "quantize" not in row.op]
    assert on_host == ["aten.linear.default"]  # whose result stays float
    with torch.no_grad():
        wanted = converted(data)
    assert (run(result, data)[0] - wanted).abs().max() <= 0.1 * wanted.abs().max()


def test_large_bias_beside_tiny_weights_stays_in_int32() -> None:
    conv = nn.Conv2d(2, 3, 1)
    with torch.no_grad():
        conv.weight[1] *= 1e-12
        conv.bias.copy_(torch.tensor([0.1, 5.0, -0.2]))  # type: ignore[union-attr]
    apart, _ = steps_apart(conv, x(1, 2, 4, 4) * 1e-3)
    assert apart <= 1.001


@pytest.mark.parametrize("count", range(1, len(passes.PIPELINE) + 1))
def test_graph_computes_the_same_after_every_pass(count: int) -> None:
    """The passes leave a graph that PyTorch can run: quantized operators are their own reference."""
    torch.manual_seed(0)
    data = x(2, 3, 12, 12)
    converted = quantized(models.Residual(), data)
    gm = passes.run(capture(converted, (data,)).gm, passes.PIPELINE[:count])
    with torch.no_grad():
        (y,), wanted = gm(data), converted(data)
    assert (y - wanted).abs().max() <= 0.05 * wanted.abs().max()


def test_passes_leave_nothing_float_in_a_converted_cnn() -> None:
    data = x(1, 3, 12, 12)
    gm = passes.run(capture(quantized(models.Residual(), data), (data,)).gm)
    calls = [node.target for node in gm.graph.nodes if node.op == "call_function"]
    others = [
        t for t in calls if t not in QUANTIZED and "quantize_per_tensor" not in str(t) and "reshape" not in str(t)
    ]
    assert others == []
    assert not any(t is lut for t in calls)  # the activations are the convolutions' clamps


# ---- the verifier ----


def _graph() -> fx.GraphModule:
    data = x(1, 3, 8, 8)
    return passes.run(capture(quantized(nn.Conv2d(3, 4, 3), data), (data,)).gm)


def _only(gm: fx.GraphModule, target: object) -> fx.Node:
    return next(node for node in gm.graph.nodes if node.target is target)


def _break_scale(node: fx.Node) -> None:
    node.kwargs = {**node.kwargs, "x_q": (0.123, 0)}


def _break_clamp(node: fx.Node) -> None:
    node.kwargs = {**node.kwargs, "clamp": (3, 2)}


def _break_quantization(node: fx.Node) -> None:
    del node.meta["q"]


def _break_dtype(node: fx.Node) -> None:
    node.meta["val"] = node.meta["val"].float()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_break_scale, "it reads"),
        (_break_clamp, "clamp"),
        (_break_quantization, "unknown"),
        (_break_dtype, "gives int8"),
    ],
)
def test_verifier_names_pass_and_node(damage: Callable[[fx.Node], None], message: str) -> None:
    gm = _graph()
    node = _only(gm, conv2d)
    damage(node)
    with pytest.raises(InternalError, match=f"pass broken: node {node.name}.*{message}"):
        verify(gm, "broken")


# ---- layouts ----


def stored(array: np.ndarray, layout: Layout) -> np.ndarray:
    order = [axis for axes in layout.dims for axis in axes]
    return array.reshape([layout.sizes[a] for a in order]).transpose(np.argsort(order))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 6, 4, 1), (6, 4), (2, 12, 2, 2)])
def test_layout_reshape_moves_nothing(shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape)).reshape(shape)
    for permutation in itertools.permutations(range(len(shape))):
        layout = Layout.image(shape).permuted(permutation)
        moved = array.transpose(permutation)
        assert layout.shape == moved.shape
        for target in [(math.prod(shape),), (2, -1), (-1, 2), (2, 2, -1), (-1, 2, 2), (1, -1, 1, 2)]:
            new = moved.reshape(target)
            after = layout.reshaped(new.shape)
            if after is not None:
                assert after.shape == new.shape
                assert np.array_equal(stored(new, after).ravel(), stored(array, Layout.image(shape)).ravel())


def test_layout_of_flattened_image_is_free() -> None:
    layout = Layout.image((2, 3, 4, 5)).reshaped((2, 60))
    assert layout is not None and layout.dims == ((0,), (3, 1, 2))


@pytest.mark.parametrize("count", range(1, 6))
def test_moves_bring_axes_into_order(count: int) -> None:
    for order in itertools.permutations(range(count)):
        current = list(range(count))
        for begin, middle, end in moves(order):
            current[begin:end] = current[middle:end] + current[begin:middle]
        assert tuple(current) == order


@pytest.mark.parametrize("sizes", [(1, 3, 1, 1), (1, 1, 1, 7), (5, 7), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("op", ["add", "sub", "mul"])
def test_a_quantized_constant_operand_stays_what_it_is(op: str, sizes: tuple[int, ...]) -> None:
    """Its int8 values and one scale go to the DNA's elementwise operator; a float one may become a convolution."""
    q = torch.ops.quantized_decomposed

    class Binary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("held", torch.randint(-128, 128, sizes, dtype=torch.int8))

        def forward(self, a: Tensor) -> Tensor:
            b = q.dequantize_per_tensor(self.held, 0.013, -9, -128, 127, torch.int8)
            return requantized(getattr(torch, op)(requantized(a, 0.02, 5), b), 0.03, 4)

    module, data = Binary(), x(2, 3, 5, 7)
    result = built(module, data)
    graph = result.regions[0].graph
    assert op in [node.op for node in graph.nodes] and "conv2d" not in [node.op for node in graph.nodes]
    assert (run(result, data)[0] - module(data)).abs().max() <= 0.0301
