"""Several networks as one: across front ends, each one's outputs unchanged to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import face
import models
import numpy as np
import pytest
import torch
from compiled import quantized
from face import SmallMobileNet, SmallResNet, nhwc
from torch import Tensor, nn

import mera_torch as mera
from mera_torch import InvalidModelError, Layout, MeraModel, ModelLoader

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (1, face.SIZE, face.SIZE, 3)


def _scripted(kind: type[nn.Module], layout: str) -> MeraModel:
    model, x = face.eager(kind)
    shape = SHAPE if layout == "NHWC" else tuple(x.shape)
    with torch.no_grad():
        return ModelLoader().from_pytorch(torch.jit.trace(model, x), {"x": (shape, "float32")}, layout=layout)


def _of_module() -> MeraModel:
    torch.manual_seed(1)
    return ModelLoader().from_module(quantized(models.Residual(), face.picture()), {"x": ((1, 3, 16, 16), "float32")})


LOADED: dict[str, Callable[[], MeraModel]] = {
    "torchscript nhwc": lambda: _scripted(SmallResNet, "NHWC"),
    "torchscript nchw": lambda: _scripted(SmallMobileNet, "NCHW"),
    "tflite": lambda: ModelLoader().from_tflite(face.TFLITE / "int8.tflite"),
    "onnx": lambda: ModelLoader().from_onnx(face.int8_onnx()),
    "pytorch": _of_module,
}
FLOATS = [name for name in LOADED if name != "tflite"]


@cache
def loaded(name: str) -> MeraModel:
    return LOADED[name]()


@cache
def alone(name: str, folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Inputs, and the outputs of the model deployed singly."""
    model = loaded(name)
    inputs = [x.numpy() for x in model.example_inputs()]
    runner = mera.Deployer(folder / name.replace(" ", "_")).deploy(model, "DNAF132S0001").get_runner()
    return inputs, runner.set_input(inputs).run().get_outputs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alone")


def deployed(model: MeraModel, path: Path, inputs: Any) -> list[np.ndarray]:
    """InterpreterHw's outputs, which are the Simulator's."""
    found = [
        mera.Deployer(path).deploy(model, "DNAF132S0001", target=target).get_runner().set_input(inputs).run()
        for target in ("InterpreterHw", "Simulator")
    ]
    one, other = (runner.get_outputs() for runner in found)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    return one


PAIRS = list(itertools.combinations_with_replacement(LOADED, 2))
DEFAULT = [("torchscript nhwc", "tflite"), ("torchscript nchw", "onnx"), ("tflite", "pytorch")]


@pytest.mark.parametrize("names", [p if p in DEFAULT else pytest.param(p, marks=pytest.mark.slow) for p in PAIRS])
def test_each_network_gives_what_it_gives_alone(names: tuple[str, str], folder: Path, tmp_path: Path) -> None:
    both = [alone(name, folder) for name in names]
    fused = ModelLoader().fuse_models([loaded(name) for name in names])
    wanted = [f"{name}_{index}" for index, n in enumerate(names) for name in loaded(n).input_desc]
    assert list(fused.input_desc) == wanted and fused.quantized
    inputs = dict(zip(wanted, [x for given, _ in both for x in given], strict=True))
    found = deployed(fused, tmp_path / "d", inputs)
    assert len(mera.load(tmp_path / "d" / "build" / "Simulator").regions) == 1
    assert all(np.array_equal(a, b) for a, b in zip(found, [y for _, ys in both for y in ys], strict=True))


@pytest.mark.parametrize("names", [("torchscript nhwc", "torchscript nchw", "pytorch"), ("onnx", "torchscript nhwc")])
def test_one_input_for_all(names: tuple[str, ...], tmp_path: Path) -> None:
    """Layouts may differ: the first one's is taken."""
    found = [loaded(name) for name in names]
    fused = ModelLoader().fuse_models(found, share_input=True, fused_model_name="all")
    first = next(iter(found[0].input_desc))
    assert list(fused.input_desc) == [f"{first}_0"] and fused.model_name == "all"
    x = face.picture(seed=9)
    given = [nhwc(x) if model.get_input_shape() == SHAPE else x.numpy() for model in found]
    outputs = deployed(fused, tmp_path / "d", given[0])
    for model, data, output in zip(found, given, outputs, strict=True):
        single = mera.Deployer(tmp_path / "s").deploy(model, "DNAF132S0001").get_runner().set_input(data).run()
        assert np.array_equal(single.get_output(), output)


def test_modules_and_imported_models_in_pytorch() -> None:
    a, b = loaded("onnx").module, loaded("tflite").module
    (x,), (y,) = a.example_inputs(), b.example_inputs()
    fused = mera.fuse_models([a, b])
    with torch.no_grad():
        one, two = fused(x, y)
        assert torch.equal(one, a(x)) and torch.equal(two, b(y))
    assert mera.explain(fused).regions == 1
    torch.manual_seed(0)
    plain = [models.PlainCnn().eval(), models.Residual().eval()]
    x = torch.randn(1, 3, 16, 16)
    shared = mera.fuse_models(plain, share_input=True)
    assert all(torch.equal(found, model(x)) for found, model in zip(shared(x), plain, strict=True))
    mixed = mera.fuse_models([plain[0], a])
    assert len(mixed(x, x)) == 2


def test_a_fused_module_is_quantized_exported_and_compiled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = [models.PlainCnn().eval(), models.Residual().eval()]
    inputs = (torch.randn(1, 3, 16, 16), torch.randn(1, 3, 16, 16))
    together = mera.quantize(mera.fuse_models(plain), inputs, [inputs], progress=False)
    deployment = mera.export(together, inputs, tmp_path / "together", platform="DNAF132S0001")
    assert len(deployment.regions) == 1 and len(deployment.get_runner()(*inputs)) == 2
    singles = [quantized(model, x) for model, x in zip(plain, inputs, strict=True)]
    fused = mera.fuse_models(singles)
    deployment = mera.export(fused, inputs, tmp_path / "fused", platform="DNAF132S0001")
    found = deployment.get_runner()(*inputs)
    names = [row["name"] for row in deployment.manifest["inputs"]]
    assert names == ["x_0", "x_1"] and len(deployment.regions) == 1
    compiled = torch.compile(fused, backend="mera")(*inputs)
    for index, (single, x) in enumerate(zip(singles, inputs, strict=True)):
        wanted = mera.export(single, (x,), tmp_path / f"single_{index}", platform="DNAF132S0001").get_runner()(x)
        assert torch.equal(found[index], wanted) and torch.equal(compiled[index], wanted)


class Pair(nn.Module):
    def forward(self, a: Tensor, b: Tensor, scale: float = 2.0) -> tuple[Tensor, dict[str, Tensor]]:
        return a + b, {"product": a * b * scale}


def test_outputs_are_flat_and_inputs_named() -> None:
    fused = mera.fuse_models([Pair(), nn.ReLU()])
    a = torch.randn(2)
    found = fused(a, a, a)
    assert [node.name for node in fused.graph.nodes if node.op == "placeholder"] == ["a_0", "b_0", "input_1"]
    wanted = (a + a, a * a * 2.0, a.relu())
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("torchscript nhwc", "tflite"), "one shape and dtype, 'model' takes uint8.1, 8, 8, 3. NHWC.*takes float32"),
        (("tflite", "onnx"), "one shape and dtype"),
    ],
)
def test_inputs_that_cannot_be_shared(names: tuple[str, ...], match: str) -> None:
    with pytest.raises(InvalidModelError, match=match.replace("'model'", "'int8'")):
        ModelLoader().fuse_models([loaded(name) for name in names], share_input=True)


def test_other_mistakes() -> None:
    loader, one = ModelLoader(), loaded("onnx")
    for bad in ([], [one], one, None, [one, "net.onnx"]):
        with pytest.raises(InvalidModelError, match="two or more models"):
            loader.fuse_models(bad)  # type: ignore[arg-type]
    for bad, match in (([one.module], "two or more"), ([one.module, "x"], "model 1 is a str"), ("ab", "takes a list")):
        with pytest.raises(InvalidModelError, match=match):
            mera.fuse_models(bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidModelError, match="exactly one input, model 0 .Pair. has 2 .a, b."):
        mera.fuse_models([Pair(), nn.ReLU()], share_input=True)
    pair = loader.fuse_models([one, one])
    with pytest.raises(InvalidModelError, match="exactly one input, 'fused_model_model' has 2"):
        loader.fuse_models([pair, one], share_input=True)
    with pytest.raises(InvalidModelError, match="has 2 inputs: say which"):
        pair.get_input_shape()
    with pytest.raises(InvalidModelError, match="no input 'inpt_0': did you mean 'input_"):
        pair.get_input_shape("inpt_0")


class Any2(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0]


def test_inputs_without_names() -> None:
    with pytest.raises(InvalidModelError, match=r"takes \*inputs; wrap it"):
        mera.fuse_models([Any2(), nn.ReLU()])


def test_layouts_of_a_fused_model() -> None:
    same = ModelLoader().fuse_models([loaded("torchscript nhwc"), loaded("tflite")])
    assert same.layout is Layout.NHWC and same.get_input_shape("a_1") == (1, 8, 8, 3)
    assert ModelLoader().fuse_models([loaded("torchscript nhwc"), loaded("onnx")]).layout is None
