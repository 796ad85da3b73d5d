"""ModelQuantizer: every kind of model and of calibration data, in constant memory, resumable, with clear errors."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import face
import models
import numpy as np
import pytest
import safetensors.numpy
import torch
from face import nhwc
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import mera_torch
from mera_torch import CalibrationError, ConfigError, CorruptFileError, InvalidModelError, Layout, ModelQuantizer
from mera_torch.errors import StorageError
from mera_torch.quant.calibration import checkpoint as checkpoints
from mera_torch.quant.calibration import data as calibration_data
from mera_torch.quant.quantized_model import QuantizedModel
from mera_torch.quant.transforms.fake import sqnr_db

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's, of TorchScript and of its own pytrees

SHAPE = (1, 3, 16, 16)
QUICK = {"split_heads": False, "correct_bias": False}
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _no_linter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has tests of its own, and costs a pass."""
    monkeypatch.setattr("mera_torch.quant.pipeline.lint", lambda *_: [])


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return models.PlainCnn().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def wanted(net: nn.Module, images: Tensor) -> Tensor:
    """What mera_torch.quantize makes of it."""
    quantized = mera_torch.quantize(net, images[:1], list(images.split(1)), config=QUICK, progress=False)
    return quantized(images[:1])


def quantized_on(net: nn.Module, data: Any, **options: Any) -> QuantizedModel:
    return ModelQuantizer(net, SHAPE, config=QUICK).calibrate(data, progress=False, **options).quantize(progress=False)


# ---- data ----


class Pairs(Dataset):  # type: ignore[type-arg]
    """A data set without __iter__, whose __getitem__ never raises IndexError."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index % len(self.images)], index


DATA: dict[str, Callable[[Tensor], Any]] = {
    "tensors": lambda x: list(x.split(1)),
    "arrays": lambda x: [image.numpy() for image in x.split(1)],
    "lists of arrays": lambda x: [[image.numpy()] for image in x.split(1)],
    "samples": list,
    "float64": lambda x: [image.double().numpy() for image in x],
    "one array": lambda x: x.numpy(),
    "a stack of batches": lambda x: x[:, None],
    "a dict of all": lambda x: {"x": x},
    "dicts": lambda x: [{"x": image, "label": 3} for image in x.split(1)],
    "pairs": lambda x: [(image, torch.tensor([7])) for image in x.split(1)],
    "a generator": lambda x: (image for image in x.split(1)),
    "larger batches": lambda x: list(x.split(5)),
    "a data set": Pairs,
    "a loader": lambda x: DataLoader(Pairs(x), batch_size=5),
    "a loader of tensors": lambda x: DataLoader(TensorDataset(x), batch_size=4),
}  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
def test_all_forms_of_data_give_the_same_network(
    kind: str, net: nn.Module, images: Tensor, wanted: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(ModelQuantizer, "_collect", lambda self, new, *_: seen.extend(x for (x,) in new))
    monkeypatch.setattr("mera_torch.quant.calibration.data.Seen.check", lambda self: None)
    quantizer = ModelQuantizer(net, SHAPE, config=QUICK)
    with pytest.raises(CalibrationError, match="empty"):  # nothing is collected here
        quantizer.calibrate(DATA[kind](images), progress=False)
    assert all(batch.shape == SHAPE for batch in seen)
    assert torch.equal(torch.cat(seen), images)


def test_a_loader_gives_what_quantize_gives(net: nn.Module, images: Tensor, wanted: Tensor) -> None:
    quantized = quantized_on(net, DataLoader(Pairs(images), batch_size=5))
    assert torch.equal(quantized(images[:1]), wanted)
    assert torch.equal(quantized(images[:1].numpy()), wanted)
    assert quantized.calibration["batches"] == 12
    assert quantized.calibration["inputs"]["x"] == [float(images.min()), float(images.max())]


def test_files_and_folders(net: nn.Module, images: Tensor, wanted: Tensor, tmp_path: Path) -> None:
    from PIL import Image

    np.save(tmp_path / "all.npy", images.numpy())
    np.savez(tmp_path / "all.npz", x=images.numpy())
    for name in ("all.npy", "all.npz"):
        assert torch.equal(quantized_on(net, tmp_path / name)(images[:1]), wanted)
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 16, 16, 3), np.uint8)
    for index, each in enumerate(pixels):
        Image.fromarray(each).save(folder / f"{index}.png")
    arrays = [(each.transpose(2, 0, 1)[None] / 255 - 0.5) / 0.5 for each in pixels]
    by_folder = quantized_on(net, folder, preprocess="symmetric")
    assert torch.equal(by_folder(images[:1]), quantized_on(net, arrays)(images[:1]))
    with pytest.raises(ConfigError, match="--preprocess|preprocess"):
        quantized_on(net, folder)
    with pytest.raises(ConfigError, match="folder"):
        quantized_on(net, list(images), preprocess="symmetric")
    with pytest.raises(mera_torch.StorageError):
        quantized_on(net, tmp_path / "absent.npy")


def test_pick(net: nn.Module, images: Tensor, wanted: Tensor) -> None:
    rows = [{"label": 1, "pixels": image} for image in images]
    assert torch.equal(quantized_on(net, rows, pick="pixels")(images[:1]), wanted)
    assert torch.equal(quantized_on(net, [(3, x) for x in images], pick=1)(images[:1]), wanted)
    assert torch.equal(quantized_on(net, rows, pick=lambda row: row["pixels"])(images[:1]), wanted)
    with pytest.raises(CalibrationError, match="item 0 is a dict without input 'x'.*pick="):
        quantized_on(net, rows)
    with pytest.raises(CalibrationError, match="item 0: pick='pixel' finds nothing"):
        quantized_on(net, rows, pick="pixel")


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.side = nn.Conv2d(3, 4, 3), nn.Linear(6, 4)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        return self.conv(image).mean((2, 3)) + self.side(vector)


def test_several_inputs_are_batched_together() -> None:
    torch.manual_seed(0)
    model = TwoInputs().eval()
    image, vector = torch.randn(10, 3, 8, 8), torch.randn(10, 6)
    shapes = [(2, 3, 8, 8), (2, 6)]
    results = []
    for data in (
        list(zip(image.split(2), vector.split(2), strict=True)),
        DataLoader(TensorDataset(image, vector, torch.arange(10)), batch_size=3),
        [{"vector": b, "image": a} for a, b in zip(image, vector, strict=True)],
        {"image": image, "vector": vector},
    ):
        quantizer = ModelQuantizer(model, shapes, config=QUICK).calibrate(data, progress=False)
        results.append(quantizer.quantize(progress=False)(image[:2], vector[:2]))
    assert all(torch.equal(results[0], result) for result in results)
    quantizer = ModelQuantizer(model, {"a": (4, 3, 8, 8), "b": (4, 6)})
    assert [info.name for info in quantizer.info.inputs] == ["a", "b"]
    quantizer.calibrate([(image, vector)], progress=False)
    assert quantizer.calibration["batches"] == 2 and quantizer.calibration["left_over"] == 2
    with pytest.raises(CalibrationError, match="item 1: its inputs are batches of unlike sizes"):
        quantizer.calibrate([(image, vector), (image, vector[:5])], progress=False)


# ---- models ----


def test_every_kind_of_model(net: nn.Module, images: Tensor, wanted: Tensor, tmp_path: Path) -> None:
    data = list(images.split(1))
    traced = torch.jit.trace(net, images[:1])
    traced.save(tmp_path / "net.pt")
    program = torch.export.export(net, (images[:1],))
    torch.export.save(program, tmp_path / "net.pt2")
    desc = {"input0": (SHAPE, "float32")}
    loaded = mera_torch.ModelLoader().from_pytorch(tmp_path / "net.pt", desc, layout="NCHW")
    given: list[tuple[Any, dict[str, Any]]] = [
        (str(tmp_path / "net.pt"), {"input_shape": SHAPE}),
        (traced, {"input_shape": list(SHAPE)}),
        (tmp_path / "net.pt2", {}),
        (program, {"input_shape": SHAPE}),
        (loaded, {}),
        (loaded.module, {}),
    ]
    for model, options in given:
        quantized = ModelQuantizer(model, config=QUICK, **options).calibrate(data, progress=False)
        assert torch.allclose(quantized.quantize(progress=False)(images[:1]), wanted, atol=1e-6), model


def test_onnx(net: nn.Module, images: Tensor, wanted: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper, save

    conv = net.get_submodule("conv1")
    weights = [numpy_helper.from_array(p.detach().numpy(), name) for name, p in conv.named_parameters()]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", c, 16, 16]) for name, c in (("x", 3), ("y", 9))
    )
    nodes = [helper.make_node("Conv", ["x", "weight", "bias"], ["y"], pads=[1, 1, 1, 1])]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights))
    model.opset_import[0].version, model.ir_version = 13, 8
    save(model, tmp_path / "net.onnx")
    quantizer = ModelQuantizer(tmp_path / "net.onnx", input_shape=(2, 3, 16, 16), config=QUICK)
    quantized = quantizer.calibrate(images.numpy(), progress=False).quantize(progress=False)
    assert quantized.info.inputs[0].shape == (2, 3, 16, 16)
    with torch.no_grad():
        assert (quantized(images[:2]) - conv(images[:2])).abs().max() < 0.06
    assert ModelQuantizer(tmp_path / "net.onnx", (2, 16, 16, 3), layout="NHWC").info.inputs[0].shape == (2, 16, 16, 3)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(InvalidModelError, match="'height': give input_shape, such as"):
        ModelQuantizer(model)


def test_sizes_that_a_program_leaves_open(net: nn.Module, images: Tensor, wanted: Tensor, tmp_path: Path) -> None:
    """They are those of input_shape; images are NCHW unless the layout says otherwise."""
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(net, (images[:2],), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "open.pt2")
    for model in (program, tmp_path / "open.pt2"):
        quantizer = ModelQuantizer(model, SHAPE, config=QUICK).calibrate(images, progress=False)
        assert torch.allclose(quantizer.quantize(progress=False)(images[:1]), wanted, atol=1e-6)
    quantizer = ModelQuantizer(program, (4, 16, 16, 3), layout="NHWC", config=QUICK)
    quantized = quantizer.calibrate(nhwc(images), progress=False).quantize(progress=False)
    assert sqnr_db(wanted, quantized(nhwc(images[:4]))[:1]) > 30  # ranges are of batches: 4 images have others
    for shape, message in ((None, "dynamic dimension: give input_shape"), ((9, 3, 16, 16), "cannot take .*<= 8")):
        with pytest.raises(InvalidModelError, match=message):
            ModelQuantizer(program, shape)
    with pytest.raises(InvalidModelError, match="input_shape has 2 shapes, the model the inputs x"):
        ModelQuantizer(program, [SHAPE, SHAPE])


def test_tflite(tmp_path: Path) -> None:
    pytest.importorskip("tflite")
    quantizer = ModelQuantizer(face.TFLITE / "float.tflite", config=QUICK)
    (info,) = quantizer.info.inputs
    data = [np.random.default_rng(i).standard_normal(info.shape).astype(np.float32) for i in range(4)]
    quantized = quantizer.calibrate(data, progress=False).quantize(progress=False)
    assert info.layout == "NHWC" and quantized.name == "float"
    with torch.no_grad():
        expected = mera_torch.load_model(face.TFLITE / "float.tflite")(torch.from_numpy(data[0]))
    assert (quantized(data[0]) - expected).square().mean() < 0.05 * expected.square().mean()
    with pytest.raises(InvalidModelError, match="already quantized"):
        ModelQuantizer(face.TFLITE / "int8.tflite")


def test_images_as_nhwc(net: nn.Module, images: Tensor, wanted: Tensor, tmp_path: Path) -> None:
    data = [nhwc(image) for image in images.split(1)]
    torch.jit.trace(net, images[:1]).save(tmp_path / "net.pt")
    for model, layout in ((net, Layout.NHWC), (net, None), (tmp_path / "net.pt", None), (tmp_path / "net.pt", "NHWC")):
        quantizer = ModelQuantizer(model, (1, 16, 16, 3), layout=layout, config=QUICK)
        assert quantizer.info.inputs[0].layout == "NHWC"
        quantized = quantizer.calibrate(data, progress=False).quantize(progress=False)
        assert torch.allclose(quantized(data[0]), wanted, atol=1e-6)
    deployment = mera_torch.export(quantized, None, tmp_path / "d", target="InterpreterHw")
    assert deployment.transposes == 0 and deployment.host_operators == []
    assert deployment.manifest["inputs"][0]["layout"] == "NHWC"
    with pytest.raises(InvalidModelError):
        ModelQuantizer(net, (1, 16, 16, 3), layout="NCHW")


def test_images_come_back_as_nhwc() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()).eval()
    quantizer = ModelQuantizer(model, (1, 8, 9, 3), layout="NHWC", config=QUICK)
    x = torch.randn(1, 8, 9, 3)
    quantized = quantizer.calibrate([x], progress=False).quantize(progress=False)
    assert quantized.info.outputs[0].shape == (1, 6, 7, 5) == tuple(quantized(x).shape)
    with torch.no_grad():
        assert (quantized(x) - model(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).abs().max() < 0.06


def test_models_that_cannot_be(net: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk" * 100)
    cases: list[tuple[type[Exception], str, Any, Any]] = [
        (InvalidModelError, "give input_shape", net, None),
        (InvalidModelError, "input_shape must be a shape", net, "1,3,16,16"),
        (InvalidModelError, "input_shape must be a shape", net, [[1, -3, 16, 16]]),
        (InvalidModelError, "every size must be a number above 0", net, (None, 3, 16, 16)),
        (InvalidModelError, "every size must be a number above 0", net, (1, 3, -1, 16)),
        (InvalidModelError, "every size must be a number above 0", net, (0, 3, 16, 16)),
        (InvalidModelError, r"cannot capture .* \(nor does it take", net, (1, 4, 16, 16)),
        (InvalidModelError, "is on the meta device", nn.Conv2d(3, 4, 3, device="meta"), SHAPE),
        (InvalidModelError, "does not exist", tmp_path / "absent.onnx", SHAPE),
        (CorruptFileError, "is no", tmp_path / "junk.pt", SHAPE),
        (InvalidModelError, "model must be a path", 3, SHAPE),
    ]
    for error, message, model, shape in cases:
        with pytest.raises(error, match=message):
            ModelQuantizer(model, shape)
    with pytest.raises(InvalidModelError, match="input_shape says .* but the model takes 'x'"):
        ModelQuantizer(torch.export.export(net, (torch.zeros(SHAPE),)), (2, 3, 16, 16))
    with pytest.raises(ConfigError, match="did you mean 'NHWC'"):
        ModelQuantizer(net, SHAPE, layout="NHCW")


def test_a_quantized_model_is_told_so(net: nn.Module, images: Tensor) -> None:
    quantized = quantized_on(net, images)
    for model in (quantized, quantized.module):
        with pytest.raises(InvalidModelError, match=r"already quantized \(it contains [a-z_ ]+\)$"):
            ModelQuantizer(model, SHAPE)


class Unexportable(nn.Module):
    """Cannot be exported, whatever the layout."""

    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("weights")


def test_what_export_says_is_one_sentence() -> None:
    with pytest.raises(InvalidModelError, match="cannot capture Unexportable: KeyError 'weights'$"):
        ModelQuantizer(Unexportable(), SHAPE)


def test_a_configuration_that_leaves_nothing(net: nn.Module, images: Tensor) -> None:
    quantizer = ModelQuantizer(net, SHAPE).calibrate(images, progress=False)
    for config in ({"exclude": ["*"]}, {"dtype": "float"}):
        with pytest.raises(mera_torch.UnsupportedError, match="the configuration keeps every operator out of int8"):
            quantizer.quantize(config, progress=False)


# ---- bad calibration data ----


def bad(x: Tensor) -> dict[str, tuple[Any, str]]:
    nan, infinite = x.clone(), x.clone()
    nan[7, 0, 3, 3], infinite[2] = float("nan"), float("inf")
    return {
        "empty": ([], "calibration is empty"),
        "empty generator": (iter(()), "calibration is empty"),
        "no iterable": (3, "must be a list, generator"),
        "zeros": ([torch.zeros(SHAPE)] * 3, "degenerate: every element of all 3 batches is zero"),
        "nan": (list(nan), "item 7: the input 'x' holds NaN in 1 of 768 elements"),
        "infinity": (list(infinite.split(1)), "item 2: the input 'x' holds infinity in 768 of 768"),
        "shape": (
            [x[:1], x[:1, :, :8]],
            r"item 1, input 'x': shape \[1, 3, 8, 16\], but the model takes \[1, 3, 16, 16\]",
        ),
        "one array": (x[:, :2], r"one array of shape \[12, 2, 16, 16\]"),
        "dtype": ([x[:1].to(torch.uint8)], "item 0, input 'x': dtype uint8, but the model takes float32; scale"),
        "kind": (["a.png"], "item 0, input 'x': must be an array or a tensor, got str"),
        "objects": ([np.array([None])], "item 0, input 'x': dtype object"),
        "two images": ([(x[:1], x[1:2])], "item 0: 2 inputs, but the model takes one, 'x' float32"),
        "no inputs": ([()], "item 0: 0 inputs"),
    }


@pytest.mark.parametrize("kind", bad(torch.zeros(12, 3, 16, 16)))
def test_bad_data_is_told(kind: str, net: nn.Module, images: Tensor) -> None:
    data, message = bad(images)[kind]
    quantizer = ModelQuantizer(net, SHAPE, config=QUICK)
    with pytest.raises(CalibrationError, match=message):
        quantizer.calibrate(data, progress=False)
    with pytest.raises(CalibrationError, match="not calibrated: call calibrate"):
        quantizer.quantize(progress=False)


def test_bad_data_is_told_by_quantize(net: nn.Module, images: Tensor) -> None:
    cases: list[tuple[Any, str]] = [
        ([], "calibration is empty"),
        ([torch.zeros(SHAPE)], "degenerate"),
        ([images[:1], images[:1] * float("nan")], "item 1: the input 'x' holds NaN"),
        ([images[:2]], "item 0: the input 'x' has shape"),
    ]
    for data, message in cases:
        with pytest.raises(CalibrationError, match=message):
            mera_torch.quantize(net, images[:1], data, config=QUICK, progress=False)


def test_samples_that_do_not_fill_a_batch(net: nn.Module, images: Tensor) -> None:
    quantizer = ModelQuantizer(models.PlainCnn().eval(), (8, 3, 16, 16), config=QUICK)
    with pytest.raises(CalibrationError, match="3 samples, which do not fill a batch of the model's size, 8"):
        quantizer.calibrate(images[:3], progress=False)
    quantizer.calibrate(images, progress=False)
    assert quantizer.calibration["samples"] == 8 and quantizer.calibration["left_over"] == 4


def test_a_failing_call_leaves_what_was_there(net: nn.Module, images: Tensor) -> None:
    quantizer = ModelQuantizer(net, SHAPE, config=QUICK).calibrate(images[:6], progress=False)
    before = quantizer.quantize(progress=False)(images[:1])
    with pytest.raises(CalibrationError, match="NaN"):
        quantizer.calibrate([images[6:7], images[:1] * float("nan")], progress=False)
    assert quantizer.calibration["batches"] == 6
    assert torch.equal(quantizer.quantize(progress=False)(images[:1]), before)


# ---- more than one pass ----


def test_calibrating_again_adds(net: nn.Module, images: Tensor, wanted: Tensor) -> None:
    for config in (QUICK, {**QUICK, "equalize": True, "correct_bias": True}):
        twice = ModelQuantizer(net, SHAPE, config=config).calibrate(images[:5], progress=False)
        twice.calibrate((x for x in images[5:]), progress=False)
        once = ModelQuantizer(net, SHAPE, config=config).calibrate(images, progress=False)
        assert twice.calibration == once.calibration
        assert torch.equal(twice.quantize(progress=False)(images[:1]), once.quantize(progress=False)(images[:1]))


def test_another_configuration_needs_no_other_pass(net: nn.Module, images: Tensor) -> None:
    read = []

    class Counted:
        def __iter__(self) -> Iterator[Tensor]:
            read.append(1)
            return iter(images.split(1))

    quantizer = ModelQuantizer(net, SHAPE, config=QUICK).calibrate(Counted(), progress=False)
    for changed in (
        {"activation_observer": "minmax"}, {"activation_observer": "percentile"}, {"activation_observer": "entropy"},
        {"activation_observer": "moving_average"}, {"per_channel_weights": False}, {"correct_bias": True},
    ):  # fmt: skip
        config = {**QUICK, **changed}
        found = quantizer.quantize(config, progress=False)
        alone = mera_torch.quantize(net, images[:1], list(images.split(1)), config=config, progress=False)
        assert torch.equal(found(images[:1]), alone(images[:1])), changed
        assert found.config == mera_torch.QuantConfig.of(config)
    assert len(read) == 1
    config = {**QUICK, "equalize": True}
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    quantizer = ModelQuantizer(net, SHAPE, config=QUICK).calibrate(Counted(), progress=False)
    found = quantizer.quantize(config, progress=False)
    alone = mera_torch.quantize(net, images[:1], list(images.split(1)), config=config, progress=False)
    assert torch.equal(found(images[:1]), alone(images[:1])) and len(read) == 3  # where values change


def test_a_generator_is_read_once_and_can_be_passed_over_again(net: nn.Module, images: Tensor) -> None:
    quantizer = ModelQuantizer(net, SHAPE, config=QUICK).calibrate((x for x in images), progress=False)
    found = quantizer.quantize({**QUICK, "equalize": True}, progress=False)
    alone = ModelQuantizer(net, SHAPE, config={**QUICK, "equalize": True}).calibrate(images, progress=False)
    assert torch.equal(found(images[:1]), alone.quantize(progress=False)(images[:1]))


class Endless(IterableDataset):
    """A data set that does not know how long it is."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.images)


def test_data_sets_without_length(net: nn.Module, images: Tensor, wanted: Tensor) -> None:
    for data in (Endless(images), DataLoader(Endless(images), batch_size=5)):
        assert torch.equal(quantized_on(net, data)(images[:1]), wanted)
    loader = DataLoader(Endless(images), batch_size=1)
    assert torch.equal(mera_torch.quantize(net, images[:1], loader, config=QUICK, progress=False)(images[:1]), wanted)


def test_what_is_spooled_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: nn.Module) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    quantizer = ModelQuantizer(net, SHAPE, config=QUICK)
    quantizer.calibrate((torch.randn(SHAPE) for _ in range(3)), progress=False)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 3
    del quantizer
    import gc

    gc.collect()
    assert not list(tmp_path.iterdir())


def test_shuffled_loaders_draw_by_the_seed(net: nn.Module, images: Tensor) -> None:
    def digest(seed: int) -> str:
        torch.rand(3)  # the caller's random numbers do not matter
        loader = DataLoader(Pairs(images), batch_size=1, shuffle=True)
        quantizer = ModelQuantizer(net, SHAPE, config={**QUICK, "seed": seed})
        return str(quantizer.calibrate(loader, progress=False).calibration["sha256"])

    torch.manual_seed(5)
    after = torch.rand(2)
    torch.manual_seed(5)
    first = torch.rand(1)
    assert digest(1) == digest(1) != digest(2)
    torch.manual_seed(5)
    torch.rand(1)
    ModelQuantizer(net, SHAPE, config=QUICK).calibrate(DataLoader(Pairs(images), shuffle=True), progress=False)
    assert torch.equal(torch.cat([first, torch.rand(1)]), after)


# ---- checkpoints ----


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_SECONDS", 0.0)


class Broken(Exception):
    pass


def until(images: Tensor, count: int) -> Iterator[Tensor]:
    for index, image in enumerate(images.split(1)):
        if index == count:
            raise Broken
        yield image


def bytes_of(quantizer: ModelQuantizer, path: Path) -> bytes:
    quantizer.quantize(progress=False).save(path)
    return path.read_bytes()


def test_a_stopped_calibration_goes_on(net: nn.Module, images: Tensor, tmp_path: Path, often: None) -> None:
    config = {**QUICK, "equalize": True, "correct_bias": True}
    path = tmp_path / "state"
    computed: list[int] = []

    def run(data: Any) -> ModelQuantizer:
        quantizer = ModelQuantizer(net, SHAPE, config=config)
        return quantizer.calibrate(data, lambda stage, done, total: computed.append(done), checkpoint=path)

    calibration_data.FIRST_BATCHES, before = 4, calibration_data.FIRST_BATCHES
    try:
        whole = bytes_of(ModelQuantizer(net, SHAPE, config=config).calibrate(images, False), tmp_path / "a.mera")
        for stop in (7, 9):
            with pytest.raises(Broken):
                run(until(images, stop))
        resumed = run(images)
        assert bytes_of(resumed, tmp_path / "b.mera") == whole
        again = run(until(images, 100))  # all is there already
        assert bytes_of(again, tmp_path / "c.mera") == whole
    finally:
        calibration_data.FIRST_BATCHES = before
    with pytest.raises(CalibrationError, match="made of 12 other batches|other data: delete it"):
        run(images.flip(0))
    with pytest.raises(CalibrationError, match="made of 12 other batches|other data: delete it"):
        run(images[:5])
    with pytest.raises(CalibrationError, match="of another network"):
        ModelQuantizer(models.PlainCnn(), SHAPE, config=config).calibrate(images, False, path)
    with pytest.raises(CalibrationError, match="a call of calibrate.. after 0 batches"):
        resumed.calibrate(images, False, path)


@pytest.mark.slow
def test_killed_and_resumed(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    """kill -9 in the middle; another process goes on."""
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    np.save(tmp_path / "images.npy", images.numpy())
    script = """
        import os, signal, sys, numpy as np, torch
        sys.path[:0] = [ROOT, ROOT + "/tests"]
        import models
        from mera_torch.quant import pipeline
        from mera_torch.quant.calibration import checkpoint
        from mera_torch import ModelQuantizer
        checkpoint.EVERY_SECONDS = 0.0
        pipeline.lint = lambda *_: []
        net = models.PlainCnn().eval()
        net.load_state_dict(torch.load("weights.pth"))
        def data():
            for index, image in enumerate(np.load("images.npy")):
                if index == int(sys.argv[1]):
                    os.kill(os.getpid(), signal.SIGKILL)
                yield image
        quantizer = ModelQuantizer(net, (1, 3, 16, 16), config={"split_heads": False, "correct_bias": False})
        from mera_torch.quant.calibration import data as d
        d.FIRST_BATCHES = 2
        quantizer.calibrate(data(), progress=False, checkpoint="state").quantize(progress=False).save("resumed.mera")
    """
    code = textwrap.dedent(script).replace("ROOT", repr(str(ROOT)))
    for stop, wanted in (("6", -signal.SIGKILL), ("100", 0)):
        done = subprocess.run([sys.executable, "-c", code, stop], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == wanted, done.stderr.decode()[-2000:]
        assert (tmp_path / "state").is_file()
    quantizer = ModelQuantizer(net, SHAPE, config=QUICK).calibrate(images, progress=False)
    assert bytes_of(quantizer, tmp_path / "whole.mera") == (tmp_path / "resumed.mera").read_bytes()


def test_files_that_are_no_checkpoints_are_not_to_be_deleted(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "photos.npy", images.numpy())
    safetensors.numpy.save_file({"w": np.ones(3)}, tmp_path / "weights.safetensors")
    cases = ("photos.npy", CorruptFileError), ("weights.safetensors", CorruptFileError), ("", CalibrationError)
    for name, error in cases:
        with pytest.raises(error, match="name another file|name a file"):
            ModelQuantizer(net, SHAPE, config=QUICK).calibrate(images, False, checkpoint=tmp_path / name)


def test_a_full_disk_leaves_no_half_checkpoint(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError, match="File too large; raise the limit"):
            ModelQuantizer(net, SHAPE, config=QUICK).calibrate(images, False, checkpoint=tmp_path / "state")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_damaged_checkpoints_are_told(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "state"
    ModelQuantizer(net, SHAPE, config=QUICK).calibrate(images[:3], False, path)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for data in (b"", b"junk", good[:100], good[:-9], *(_altered(good, rng) for _ in range(8))):
        path.write_bytes(data)
        with pytest.raises((CorruptFileError, CalibrationError)):
            ModelQuantizer(net, SHAPE, config=QUICK).calibrate(images, False, path)


def _altered(data: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(0, len(data)))
    return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(0, 8))]) + data[at + 1 :]


# ---- memory ----


def test_no_more_batches_are_held_of_more_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors as large as an input that are there while the data is read: a few, however many were read."""
    size, held = 1 << 16, []
    monkeypatch.setattr(calibration_data, "FIRST_BYTES", 4 * 8 * size)  # 4 batches

    def data() -> Iterator[Tensor]:
        for index in range(12):
            if index % 11 == 0:
                held.append(sum(type(x) is Tensor and x.numel() == 2 * size for x in gc.get_objects()))
            yield torch.full((1, 2, 256, 256), float(index + 1))

    net = nn.Sequential(nn.Conv2d(2, 2, 1, stride=16), nn.ReLU()).eval()
    quantizer = ModelQuantizer(net, (1, 2, 256, 256), config=QUICK).calibrate(data(), progress=False)
    assert quantizer.calibration["batches"] == 12
    assert max(held) - held[0] <= 4 + 3, held  # the first batches, and those on their way


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """40 more batches of 8 MiB through a small network: the peak is that of 6."""
    script = """
        import resource, sys, torch
        sys.path[:0] = [ROOT, ROOT + "/tests"]
        from mera_torch.quant import pipeline
        from mera_torch.quant.calibration import data as d
        from mera_torch import ModelQuantizer
        pipeline.lint, d.FIRST_BYTES = lambda *_: [], 1 << 24
        torch.set_num_threads(1)
        net = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1, stride=16), torch.nn.ReLU()).eval()
        def data(count):
            for index in range(count):
                yield torch.full((1, 2, 1024, 1024), float(index + 1))
        quantizer = ModelQuantizer(net, (1, 2, 1024, 1024), config={"split_heads": False, "correct_bias": False})
        def peak(count):
            quantizer.calibrate(data(count), progress=False)
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(peak(6), peak(40), quantizer.calibration["batches"])
    """
    code = textwrap.dedent(script).replace("ROOT", repr(str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    few, many, batches = map(int, done.stdout.split())
    assert batches == 46
    assert many - few < 64, (few, many)  # MiB; all of them would take 320
