"""from_torchscript: traced and scripted float modules give what PyTorch gives, whatever the program around them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiled import built, quantized, run
from models import SMALL_MODELS, build_torchvision, set_batchnorm_statistics, torchvision_models
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mera_torch.converters import ImportedModel, from_torchscript
from mera_torch.errors import InvalidModelError, MeraError, UnsupportedError

SHAPE = (2, 6, 8, 12)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def saved(module: torch.jit.ScriptModule) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


def traced(module: nn.Module, *inputs: Tensor) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module.eval(), inputs, strict=False, check_trace=False)


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(module.eval())


def described(*inputs: Tensor) -> dict[str, Any]:
    return {f"input_{i}": (tuple(x.shape), x.dtype) for i, x in enumerate(inputs)}


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed))


def check(module: torch.jit.ScriptModule, *inputs: Tensor, tolerance: float = 0.0) -> ImportedModel:
    """The imported module, which gives what PyTorch gives for the same file."""
    data = saved(module)
    found = from_torchscript(data, described(*inputs))
    loaded = torch.jit.load(io.BytesIO(data))
    with torch.no_grad():
        wanted = [v for v in pytree.tree_leaves(loaded(*(x.clone() for x in inputs))) if v is not None]
        got = pytree.tree_leaves(found(*inputs))
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    return found


class Function(nn.Module):
    """A module that is one function of a tensor."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


# ---- operators, traced ----

ONES = torch.ones(6, 8, 12)

OPERATORS: dict[str, Callable[[Tensor], Any]] = {
    "relu_": lambda x: F.relu(x + 1, inplace=True),
    "scalars": lambda x: (2 * x + 1) / 3 - 0.5 + x * torch.tensor(0.25),
    "reversed scalars": lambda x: 1 - x + 2 / (x.abs() + 1),
    "number first": lambda x: torch.tensor(2.0) * x + torch.tensor(1.0),
    "integers": lambda x: (x * 10).to(torch.int32) // 3 + 1,
    "integers and floats": lambda x: (x * 10).long() * 0.5,
    "compare": lambda x: (x > 0) & (x < 1) | (x == 2),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "sum": lambda x: x.sum((2, 3), keepdim=True) + x.mean() + x.amax(1, keepdim=True),
    "max": lambda x: x.max(1)[0] + x.max(dim=1).indices,
    "topk": lambda x: x.topk(3, dim=1),
    "sort": lambda x: x.sort(-1, descending=True)[0],
    "norm": lambda x: F.normalize(x, dim=1) + x.norm(dim=1, keepdim=True),
    "std": lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5),
    "softmax": lambda x: F.softmax(x, 1) + F.log_softmax(x, -1),
    "layer_norm": lambda x: F.layer_norm(x, [12]),
    "group_norm": lambda x: F.group_norm(x, 3),
    "instance_norm": lambda x: F.instance_norm(x),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5) + F.pad(x, (1, 2, 0, 1), "reflect"),
    "pools": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True).mean() + F.avg_pool2d(x, 2, 1, 1).mean(),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (2, 3)) + F.adaptive_max_pool2d(x, (2, 3)),
    "resize nearest": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "resize bilinear": lambda x: F.interpolate(x, (11, 17), mode="bilinear", align_corners=True),
    "pixel shuffle": lambda x: F.pixel_shuffle(x.repeat(1, 2, 1, 1), 2) * F.pixel_unshuffle(x, 2).mean(),
    "channel shuffle": lambda x: x.view(2, 3, 2, 8, 12).transpose(1, 2).contiguous().view(2, 6, 8, 12),
    "shapes": lambda x: x.reshape(x.shape[0], -1, x.size(3)).permute(2, 0, 1).flatten(1).unsqueeze(1).squeeze(1),
    "movedim": lambda x: x.movedim(1, 3).swapaxes(0, 1).mT,
    "unflatten": lambda x: x.unflatten(1, (2, -1)).flatten(2, 3),
    "split": lambda x: torch.cat([p * i for i, p in enumerate(x.split(4, 1))], 1) + torch.cat(x.chunk(4, 1)[::-1], 1),
    "split sizes": lambda x: torch.cat(x.split([1, 2, 3], 1)[::-1], 1),
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "slices": lambda x: x[:, 1:-1, ::2, -3:][..., 0, :] + x.narrow(1, 1, 4)[:, :, 0, 9:],
    "indices": lambda x: x[:, [0, 2, 1]] + x[:, torch.tensor([True, False, True, False, True, False])],
    "gather": lambda x: torch.gather(x, 1, torch.zeros(2, 1, 8, 12, dtype=torch.long)),
    "flip and roll": lambda x: x.flip(1) + x.roll((1, 2), (2, 3)),
    "expand": lambda x: x[:, :1].expand(-1, 6, -1, -1) + x.mean(1, keepdim=True).expand_as(x),
    "factories": lambda x: x + torch.zeros_like(x) + torch.arange(12.0) + x.new_full((8, 1), 2.0) + torch.full((1,), 3),
    "like": lambda x: x + torch.ones_like(x) * torch.full_like(x, 0.5) + torch.empty_like(x).fill_(2.0),
    "matmul": lambda x: x @ x.transpose(2, 3) + torch.einsum("bchw,bcgw->bchg", x, x),
    "constant matmul": lambda x: x @ torch.linspace(-1, 1, 60).view(12, 5),
    "addmm": lambda x: torch.addmm(torch.ones(5), x.flatten(1), torch.linspace(-1, 1, 576 * 5).view(576, 5)),
    "addmm scaled": lambda x: torch.addmm(torch.ones(2, 2), x.flatten(1), x.flatten(1).t(), beta=0.5, alpha=2.0),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "activations": lambda x: F.hardswish(x) + F.hardsigmoid(x) + F.silu(x) + F.gelu(x) + F.mish(x) + F.softplus(x),
    "more activations": lambda x: F.leaky_relu(x, 0.2) + F.elu(x) + F.hardtanh(x, -0.5, 0.7) + F.relu6(x) + F.selu(x),
    "prelu": lambda x: F.prelu(x, torch.linspace(0.1, 0.6, 6)),
    "rrelu in evaluation": lambda x: F.rrelu(x, 0.1, 0.3, training=False),
    "dropout in evaluation": lambda x: F.dropout(x, 0.5, False) + F.dropout2d(x, 0.5, False),
    "clamp": lambda x: x.clamp(-1, 1) + x.clamp(min=0) + x.clamp(max=0.5) + torch.clip(x, 0, 1),
    "pow": lambda x: x**2 + x.abs().sqrt() + x.abs().rsqrt() + torch.exp(-x) + x.square(),
    "cumsum": lambda x: x.cumsum(1),
    "several outputs": lambda x: (x, (x + 1, (x * 2,))),
    "dict": lambda x: {"a": x, "b": x + 1},
    "convolution 1d": lambda x: F.conv1d(x[:, :, 0], ONES[:4, :6, :3], stride=2),
    "convolution 3d": lambda x: F.conv3d(x[:, None], ONES[None, None, :2, :3, :3]),
    "transposed": lambda x: F.conv_transpose2d(x, ONES[:, :4, :3].unsqueeze(2), stride=2, output_padding=1, groups=2),
    "same padding": lambda x: F.conv2d(x, ONES[:4, :3, :3].unsqueeze(1).expand(4, 6, 3, 3), padding="same"),
    "copy_": lambda x: torch.zeros_like(x).copy_(x[:, :1]),
    "write into a slice": lambda x: _written(x),
    "write into a view of a view": lambda x: _written_twice(x),
    "write before a view is read": lambda x: _view_of_changed(x),
    "index_put_": lambda x: _put(x),
    "squeeze_": lambda x: (x + 0).unsqueeze_(1).squeeze_(1).transpose_(1, 2).add_(1),
}


def _written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = y[:, 1] * 2
    y[:, 2:4, ::2] += 1
    return y


def _written_twice(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 1
    z = y.view(2, 3, 2, 8, 12).transpose(1, 2)
    z[:, 0, :, 1].relu_()
    z.mul_(2)
    return y, z


def _view_of_changed(x: Tensor) -> Tensor:
    y = x + 1
    z = y.flatten(1)
    y.mul_(3)
    w = F.relu(y, inplace=True)
    return z + 1 + w.flatten(1)


def _put(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, torch.tensor([0, 3])] = 7.0
    y[x > 1] = 0.0
    return y


@pytest.mark.parametrize("name", OPERATORS)
def test_traced_operators_equal_pytorch(name: str) -> None:
    check(traced(Function(OPERATORS[name]), image()), image(), tolerance=1e-6)


# ---- programs, scripted ----


class Loops(nn.Module):
    """Loops, lists, dicts, early returns and optional arguments, as scripted programs have them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()])
        self.skip: int | None = 1
        self.sizes = [1, 2, 3]

    def scale(self, x: Tensor, factor: float = 2.0) -> Tensor:
        if factor == 1.0:
            return x
        return x * factor

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i != self.skip:
                found.append(x)
        total = 0
        for size in self.sizes:
            total += size
        while total > 4:
            x = self.scale(x)
            total -= 1
        if x.dim() == 4 and x.size(1) % 2 == 0 and "a" in {"a": 1}:
            a, b = x.chunk(2, dim=1)
            x = torch.cat([b, a], 1)
        else:
            raise RuntimeError(f"odd channels: {x.shape}")
        assert x.shape[0] == 2, "the batch is 2"
        scale = float(x.shape[2]) / 2 + len(found) + min(3, x.shape[3]) ** 2
        return {"first": found[0], "x": x * scale + self.scale(found[-1], 1.0), "size": torch.tensor([x.shape[3]])}


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return x + 1
        return x - 1


class Options(nn.Module):
    def forward(self, a: Tensor, b: Tensor | None = None, c: int = 3) -> Tensor:
        return a * c if b is None else a - b


def test_scripted_program_is_followed() -> None:
    found = check(scripted(Loops()), image())
    assert [o.name for o in found.info.outputs] == ["first", "x", "size"]


def test_in_place_changes_of_scripted_programs() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.clone()
            for i in range(3):
                y[:, i] = y[:, i] * i
            parts = [y[:, :2], y[:, 2:]]
            parts[0].add_(1.0)
            y.clamp_(min=0)
            return y, parts[0]

    check(scripted(Writes()), image())


def test_optional_inputs() -> None:
    module = scripted(Options())
    with pytest.raises(UnsupportedError, match="'c' has the default 3"):
        from_torchscript(saved(module), described(image()))


def test_inputs_are_found_by_name_or_by_position() -> None:
    class Difference(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a - b

    data = saved(scripted(Difference()))
    x, y = image(1, 3), image(1, 3, seed=1)
    by_name = from_torchscript(data, {"b": ((1, 3), "float32"), "a": ((1, 3), np.float32)})
    by_place = from_torchscript(data, [("left", ([1, 3], torch.float32)), {"right": ((1, 3), "torch.float32")}])
    assert torch.equal(by_name(x, y), x - y) and torch.equal(by_place(x, y), x - y)
    assert [i.name for i in by_place.info.inputs] == ["left", "right"]


def test_control_flow_that_depends_on_data_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="aten::Bool.*depends on data"):
        from_torchscript(saved(scripted(Branch())), described(image()))


@pytest.mark.parametrize("training", [nn.Dropout(0.5), nn.BatchNorm2d(6)])
def test_training_mode_is_refused(training: nn.Module) -> None:
    with pytest.raises(UnsupportedError, match=r"training mode: call \.eval\(\)"):
        from_torchscript(saved(torch.jit.script(training.train())), described(image()))


def test_random_numbers_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="aten::rand_like.*random"):
        from_torchscript(saved(traced(Function(lambda x: x + torch.rand_like(x)), image())), described(image()))


def test_files_on_disk_are_not_touched() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.from_file("secret", False, 4)

    with pytest.raises(UnsupportedError, match="aten::from_file"):
        from_torchscript(saved(scripted(Reads())), described(image()))


def test_loops_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n = 1
            while n > 0:
                n += 1
            return x

    monkeypatch.setattr("mera_torch.converters.torchscript.program.STEPS", 1000)
    with pytest.raises(UnsupportedError, match="a loop that does not end"):
        from_torchscript(saved(scripted(Endless())), described(image()))


def test_the_models_own_errors_are_told() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[0] == 1, "one image at a time"
            return x

    with pytest.raises(InvalidModelError, match="one image at a time"):
        from_torchscript(saved(scripted(Picky())), described(image()))


@pytest.mark.parametrize(
    ("input_desc", "why"),
    [
        (None, "pass input_desc"),
        ({}, "name each input once"),
        ({"x": ((1, -1), "float32")}, "list of sizes"),
        ({"x": ((1, 3), "float33")}, "is no dtype"),
        ({"x": (1, 3)}, "list of sizes"),
        ([("x", ((1, 3), "float32")), ("x", ((1, 3), "float32"))], "name each input once"),
        ({"x": ((1, 3), "float32"), "y": ((1, 3), "float32")}, "takes 1 to 1 inputs"),
        ({"x": ((1, 3), torch.quint8)}, "has no scale"),
        (7, "must be like"),
        ([("x",)], "must be like"),
        ({"x": ((1, 7), "float32")}, "aten::linear"),
    ],
)
def test_input_descriptions_that_do_not_fit(input_desc: Any, why: str) -> None:
    with pytest.raises(MeraError, match=why):
        from_torchscript(saved(scripted(nn.Linear(3, 2))), input_desc)


def test_provenance_names_the_module() -> None:
    module = build_torchvision("resnet18")
    x = image(1, 3, 32, 32)
    for script in (traced(module, x), scripted(module)):
        found = from_torchscript(saved(script), described(x))
        (node,) = [
            n for n in found.graph.nodes
            if "nn_module_stack" in n.meta and "layer1.0.conv1" in n.meta["nn_module_stack"]
            and n.op == "call_function"
        ]  # fmt: skip
        assert node.meta["nn_module_stack"]["layer1.0.conv1"][1].startswith("torchscript.aten::")
        assert node.args[1].target == "layer1_0_conv1_weight"


def test_a_path_and_a_module_are_taken_too(tmp_path: Path) -> None:
    module = scripted(nn.Linear(3, 2))
    x = image(1, 3)
    module.save(str(tmp_path / "model.pt"))
    for source in (tmp_path / "model.pt", str(tmp_path / "model.pt"), module):
        assert torch.equal(from_torchscript(source, {"x": ((1, 3), "float32")})(x), module(x))


def test_the_imported_module_is_an_ordinary_one() -> None:
    x = image(1, 3, 16, 16)
    found = check(traced(SMALL_MODELS["residual"](), x), x)
    with torch.no_grad():
        wanted = found(x)
        assert torch.equal(torch.export.export(found, (x,)).module()(x), wanted)
        assert torch.equal(torch.compile(found, backend="eager")(x), wanted)
    result = built(quantized(found, x), x)
    assert len(result.regions) == 1 and result.explanation.on_host == 0
    run(result, x)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_small_models_equal_pytorch_and_quantize_like_them(name: str) -> None:
    """The imported module has as many DNA operators as the module itself."""
    module, x = SMALL_MODELS[name](), image(2, 3, 16, 16)
    set_batchnorm_statistics(module, x)
    found = check(traced(module, x), x)
    if name != "unet":  # which cannot be scripted
        check(scripted(module), x)
    direct, imported = (built(quantized(m, x), x) for m in (module, found))
    assert len(imported.regions) == 1 and imported.explanation.on_host == 0
    assert [n.op for n in imported.regions[0].graph.nodes] == [n.op for n in direct.regions[0].graph.nodes]


CLASSIFIERS = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf",
    "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t",
    "swin_v2_t", "vgg11_bn", "vit_b_32", "wide_resnet50_2",
)  # fmt: skip
SEGMENTERS = ("lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_mobilenet_v3_large")
FAST = ("mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5")


def _network(name: str) -> nn.Module:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision, which defines the network, is not installed")
    models = torchvision_models()
    if name in SEGMENTERS:
        return getattr(models.segmentation, name)(weights_backbone=None).eval()
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return getattr(models, name)(**options).eval()


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in (*CLASSIFIERS, *SEGMENTERS) if n not in FAST)]
)
def test_torchvision_networks_equal_pytorch(name: str) -> None:
    torch.manual_seed(0)
    size = {"inception_v3": 96, "vit_b_32": 224, "swin_t": 64, "swin_v2_t": 64, "maxvit_t": 224}.get(name, 64)
    module, x = _network(name), image(1, 3, size, size)
    for script in (traced(module, x), scripted(module)):
        check(script, x, tolerance=1e-5)
