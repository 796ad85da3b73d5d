""".mera files: what was quantized comes back bit for bit, everywhere; what is damaged or hostile is refused."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
import random
import stat
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import face
import models
import numpy as np
import pytest
import torch
from cli_tools import Mera, mera  # noqa: F401
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import mera_torch
from mera_torch import (
    CorruptFileError,
    InvalidModelError,
    MeraError,
    ModelQuantizer,
    QuantizedModel,
    UnsupportedError,
    pytrees,
)
from mera_torch.errors import StateError
from mera_torch.files import seal
from mera_torch.quant.files import mera_file
from mera_torch.quant.graphs.patterns import module_path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))

from fuzz_readers import damaged  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SHAPE = (1, 3, 16, 16)


@pytest.fixture(scope="module")
def quantized() -> QuantizedModel:
    torch.manual_seed(0)
    model = models.set_batchnorm_statistics(models.SMALL_MODELS["residual"](), torch.randn(8, 3, 16, 16))
    data = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return ModelQuantizer(model, SHAPE, model_name="residual").calibrate(data, progress=False).quantize(progress=False)


@pytest.fixture(scope="module")
def path(quantized: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mera") / "net.mera"
    quantized.save(path)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "metrics.json"}


# ---- there and back ----


def test_everything_comes_back(quantized: QuantizedModel, path: Path, tmp_path: Path) -> None:
    loaded = QuantizedModel.load(path)
    x = torch.randn(SHAPE)
    for name in ("module", "reference", "original"):
        before, after = getattr(quantized, name), getattr(loaded, name)
        assert str(before.graph) == str(after.graph)
        with torch.no_grad():
            assert torch.equal(before(x), after(x))
        places = [[module_path(n), n.meta.get("stack_trace")] for n in before.graph.nodes]
        assert places == [[module_path(n), n.meta.get("stack_trace")] for n in after.graph.nodes]
    assert any("a1.0" in module_path(n) for n in loaded.module.graph.nodes)
    for name in ("config", "findings", "calibration", "info", "name"):
        assert getattr(loaded, name) == getattr(quantized, name), name
    loaded.save(tmp_path / "again.mera")
    assert (tmp_path / "again.mera").read_bytes() == path.read_bytes()
    assert torch.equal(loaded(x.numpy()), quantized(x))
    assert QuantizedModel.load(path.read_bytes()).name == loaded.name


def test_deployments_are_equal_to_the_byte(quantized: QuantizedModel, path: Path, tmp_path: Path) -> None:
    mera_torch.export(quantized, None, tmp_path / "memory", target="InterpreterHw")
    mera_torch.export(QuantizedModel.load(path), None, tmp_path / "loaded", target="InterpreterHw")
    mera_torch.export(path, None, tmp_path / "file", target="InterpreterHw")
    mera_torch.export(quantized.module, (torch.randn(SHAPE),), tmp_path / "module", target="InterpreterHw")
    wanted = files_of(tmp_path / "memory")
    for name in ("loaded", "file", "module"):
        assert files_of(tmp_path / name) == wanted, name
    x = torch.randn(SHAPE)
    step = float((mera_torch.load(tmp_path / "file").get_runner()(x) - quantized(x)).abs().max())
    assert step <= 2 * mera_torch.load(tmp_path / "file").manifest["outputs"][0]["quantization"]["scale"]


def test_wherever_models_are_taken(quantized: QuantizedModel, path: Path, tmp_path: Path) -> None:
    x = torch.randn(SHAPE)
    imported = mera_torch.load_model(path)
    assert torch.equal(imported(x), quantized(x))
    assert imported.info.inputs[0].shape == SHAPE and imported.info.format == "pytorch"
    assert {"stem.0", "a1.0"} <= {row.module for row in mera_torch.explain(path).rows}
    with mera_torch.Deployer(tmp_path / "project") as deployer:
        model = mera_torch.ModelLoader(deployer).from_quantized_mera(path)
        assert model.quantized and model.model_name == "net"
        runner = deployer.deploy(model, target="InterpreterHw").get_runner()
    assert np.abs(runner.set_input(x.numpy()).run().get_output(0) - quantized(x).numpy()).max() < 0.1
    assert torch.equal(mera_torch.ModelLoader().from_module(quantized).module(x), quantized(x))
    again = torch.export.export(quantized, (x,)).module()
    assert torch.equal(again(x), quantized(x))


def test_command_line(path: Path, tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32))
    assert "quantized (int32, int8)" in mera("convert", path).out
    assert mera("convert", path, "--output", tmp_path / "net.pt2").code == 0
    assert "DNA region 0" in mera("explain", path).out
    done = mera("compile", path, "--output", tmp_path / "d", "--target", "InterpreterHw")
    assert done.code == 0 and "0 operators on the host" in done.out
    done = mera("compare", path, "--rung", "eager", "--rung", "InterpreterHw", "--json")
    assert done.code == 0, done.err


def test_quantize_from_the_command_line(tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    net = models.PlainCnn().eval()
    torch.export.save(torch.export.export(net, (torch.zeros(SHAPE),)), tmp_path / "float.pt2")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype(np.float32))
    (tmp_path / "c.toml").write_text('preset = "DNA_SAKURA_II"\nactivation_observer = "minmax"\n')
    base = ["quantize", tmp_path / "float.pt2", "--calibration", tmp_path / "x.npy", "--output", tmp_path / "q.mera"]
    options = ["--config", tmp_path / "c.toml", "--set", "seed=3", "--set", "weight_observer=mse", "--no-correct-bias"]
    found = mera(*base, *options, "--checkpoint", tmp_path / "state", "--json").json
    config = found["config"]
    assert (config["activation_observer"], config["seed"], config["weight_observer"]) == ("minmax", 3, "mse")
    assert config["correct_bias"] is False and found["samples"] == 6 and (tmp_path / "state").is_file()
    loaded = QuantizedModel.load(tmp_path / "q.mera")
    assert loaded.config.to_dict() == config and loaded.name == "float"
    for wrong, said in (
        (["--set", "sed=3"], "did you mean 'seed'"),
        (["--set", "seed"], "--set is KEY=VALUE"),
        (["--preset", "DNA_SAKURA_III"], "DNA_SAKURA_II"),
        (["--preset", "DEFAULT", "--config", tmp_path / "c.toml"], "give one of them"),
    ):
        refused = mera(*base, *wrong)
        assert refused.code == 7 and said in refused.err, refused.err
    listed = mera("quantize", "--list-settings")
    assert listed.code == 0 and "`activation_observer`" in listed.out


def test_without_the_float_networks(quantized: QuantizedModel, path: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.mera"
    quantized.save(small, with_float=False)
    assert small.stat().st_size < path.stat().st_size / 2
    loaded = QuantizedModel.load(small)
    assert torch.equal(loaded(torch.ones(SHAPE)), quantized(torch.ones(SHAPE)))
    with pytest.raises(StateError, match="saved without its float networks"):
        loaded.measure_quantization_quality([torch.ones(SHAPE)])
    loaded.save(tmp_path / "b.mera")
    assert (tmp_path / "b.mera").read_bytes() == small.read_bytes()


def test_quality_and_report_after_loading(path: Path, tmp_path: Path) -> None:
    loaded = QuantizedModel.load(path)
    data = [np.random.default_rng(i).standard_normal(SHAPE) for i in range(3)]
    found = loaded.measure_quantization_quality(data, debug_mode=True, progress=False)
    assert found.to_dict()["outputs"]
    page = loaded.report(tmp_path / "report.html", quality=found)
    assert "residual in int8" in page.read_text(encoding="utf-8")
    with pytest.raises(mera_torch.ConfigError, match="give data"):
        loaded.report(tmp_path / "report.html")


class Structured(nn.Module):
    """Several inputs, one of them no tensor, and results in a dict of a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        z = self.conv(x)
        return {"sum": z + y, "rest": (torch.relu(z), [z.mean((2, 3))])}


def test_structured_results_keep_their_structure(tmp_path: Path) -> None:
    data = [(torch.randn(1, 3, 8, 8), torch.randn(1, 4, 6, 6)) for _ in range(2)]
    quantizer = ModelQuantizer(Structured(), [(1, 3, 8, 8), (1, 4, 6, 6)], model_name="structured")
    quantized = quantizer.calibrate(data, progress=False).quantize(progress=False)
    quantized.save(tmp_path / "s.mera")
    loaded = QuantizedModel.load(tmp_path / "s.mera")
    wanted, got = quantized(*data[0]), loaded(*data[0])
    assert set(got) == {"sum", "rest"} and isinstance(got["rest"], tuple) and isinstance(got["rest"][1], list)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert loaded.name == "structured"


class Point(NamedTuple):
    x: Tensor
    y: tuple[Tensor, ...]


@dataclasses.dataclass
class Scores:
    logits: Tensor
    boxes: Tensor | None = None


torch.export.register_dataclass(Scores)


class InClasses(nn.Module):
    """Results in a dataclass in a namedtuple, and in what PyTorch's operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Any:
        z = self.conv(x)
        return Point(z, (Scores(z.mean((2, 3))), torch.max(z, 1)))


def test_results_in_classes_keep_their_fields(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 8, 8)
    quantizer = ModelQuantizer(InClasses(), (1, 3, 8, 8))
    quantized = quantizer.calibrate([x], progress=False).quantize(progress=False)
    quantized.save(tmp_path / "c.mera")
    loaded = QuantizedModel.load(tmp_path / "c.mera")
    mera_torch.export(loaded, None, tmp_path / "d", target="InterpreterHw")
    for run in (loaded, mera_torch.load(tmp_path / "d").get_runner()):
        got, wanted = run(x), quantized(x)
        assert type(got).__name__ == "Point" and type(wanted) is Point and got._fields == wanted._fields
        scores, largest = got.y
        assert isinstance(scores, Scores) and scores.boxes is None and type(largest) is torch.return_types.max
        assert pytrees.equal(pytree.tree_structure(got), pytree.tree_structure(wanted))
        assert (got.x - wanted.x).abs().max() <= 0.1 and (scores.logits - wanted.y[0].logits).abs().max() <= 0.1
    assert loaded.measure_quantization_quality([x], progress=False).to_dict()["outputs"]


class Named(nn.Module):
    """Parts and tensors of names that are no identifiers."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({name: nn.Conv2d(3, 4, 1) for name in names})
        self.gains = nn.ParameterDict({"g-1": torch.ones(1, 4, 1, 1)})
        self.register_buffer("0_offset", torch.ones(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        total = sum(branch(x) for branch in self.branches.values())
        return total * self.gains["g-1"] + getattr(self, "0_offset")


def test_names_that_are_no_identifiers(tmp_path: Path) -> None:
    """What is saved can be read again, or is refused when it is saved."""
    x = torch.randn(1, 3, 8, 8)
    quantizer = ModelQuantizer(Named("3x3", "1x1 conv", "a/b: c", "größe"), x.shape)
    made = quantizer.calibrate([x], progress=False).quantize(progress=False)
    made.save(tmp_path / "named.mera")
    assert torch.equal(QuantizedModel.load(tmp_path / "named.mera")(x), made(x))
    odd = ModelQuantizer(Named("f(x)"), x.shape).calibrate([x], progress=False).quantize(progress=False)
    with pytest.raises(UnsupportedError, match=r"'branches\.f\(x\)\.weight'.*has a name that no \.mera file may hold"):
        odd.save(tmp_path / "odd.mera")


def test_imported_models_keep_their_names(tmp_path: Path) -> None:
    pytest.importorskip("tflite")
    quantizer = ModelQuantizer(face.TFLITE / "float.tflite")
    (info,) = quantizer.info.inputs
    data = [np.random.default_rng(i).standard_normal(info.shape).astype(np.float32) for i in range(2)]
    quantized = quantizer.calibrate(data, progress=False).quantize(progress=False)
    quantized.save(tmp_path / "t.mera")
    loaded = mera_torch.load_model(tmp_path / "t.mera")
    assert loaded.info == quantized.info and loaded.info.format == "tflite" and loaded.info.inputs[0].layout == "NHWC"
    for index, model in enumerate((quantized, loaded)):
        mera_torch.export(model, None, tmp_path / str(index), target="InterpreterHw")
    assert files_of(tmp_path / "0") == files_of(tmp_path / "1")


def test_what_cannot_be_saved_is_told(quantized: QuantizedModel, tmp_path: Path) -> None:
    with pytest.raises(mera_torch.StorageError):
        quantized.save(tmp_path / "absent" / "x.mera")
    graph = copy.deepcopy(quantized.module)
    next(n for n in graph.graph.nodes if n.op == "call_function").target = len
    with pytest.raises(UnsupportedError, match="operator .*len.* cannot be stored"):
        QuantizedModel(graph, quantized.info, quantized.config).save(tmp_path / "x.mera")
    assert not list(tmp_path.iterdir())


def test_calls_that_fit_no_input_are_told(quantized: QuantizedModel) -> None:
    x = np.random.default_rng(0).standard_normal(SHAPE)
    assert torch.equal(quantized(x), quantized(x.astype(np.float32)))
    for given, message in (
        ((), "takes 1 inputs"), ((x, x), "got 2"), ((x[..., :-1],), "got the shape"), ((x[0],), "got the shape"),
        (([1, 2],), "takes 1 inputs|got int"), ((x.astype(np.int64),), "got int64"), (("x",), "got str"),
    ):  # fmt: skip
        with pytest.raises(InvalidModelError, match=message):
            quantized(*given)


def test_it_is_for_evaluation_only(quantized: QuantizedModel) -> None:
    assert quantized.eval() is quantized
    with pytest.raises(StateError):
        quantized.train()
    with pytest.raises(InvalidModelError, match="already quantized"):
        ModelQuantizer(quantized.module, SHAPE)


# ---- damaged and hostile files ----


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(content: dict[str, bytes], **stored: Any) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, **stored)
    return out.getvalue()


def resealed(content: dict[str, bytes], change: Callable[[dict[str, Any]], object] = lambda model: None) -> bytes:
    """The archive with a manifest whose checksums are right."""
    model = json.loads(content["mera.json"])["model"]
    model["files"] = {n: hashlib.sha256(d).hexdigest() for n, d in content.items() if n != "mera.json"}
    change(model)
    return packed({**content, "mera.json": seal(model, "model")})


def refused(data: bytes, message: str, error: type[MeraError] = CorruptFileError) -> None:
    for read in (QuantizedModel.load, lambda d: mera_torch.ModelLoader().from_quantized_mera(d)):
        with pytest.raises(error, match=message):
            read(data)


def test_archives_that_are_none(path: Path) -> None:
    whole, content = path.read_bytes(), members(path)
    refused(whole[: len(whole) // 2], "no .mera file, or a damaged one")
    refused(b"", "no .mera file")
    refused(b"not a zip", "no .mera file")
    refused(packed({"a.txt": b"x"}), "it has no mera.json")
    refused(b"\x80\x04\x95junk", "is a pickle: .mera files of EdgeCortix's MERA", UnsupportedError)
    refused(packed({"model/data.pkl": b"\x80\x02."}), "pickle.*EdgeCortix", UnsupportedError)
    with pytest.raises(InvalidModelError, match="does not exist"):
        QuantizedModel.load(path.parent / "absent.mera")
    for name in ("weights.safetensors", "module.json", "reference.json"):
        refused(packed({k: v for k, v in content.items() if k != name}), "lacks members")
        fewer = {k: v for k, v in content.items() if k != name}
        refused(resealed(fewer), "lacks")


def test_altered_members(path: Path) -> None:
    content = members(path)
    for name in content:
        altered = bytearray(content[name])
        altered[len(altered) // 2] ^= 1
        refused(packed({**content, name: bytes(altered)}), "altered|cannot be read")


def test_other_versions(path: Path) -> None:
    content = members(path)
    refused(
        resealed(content, lambda m: m.update(version=2)), "is of version 2, and this mera_torch reads up to 1: install"
    )
    refused(resealed(content, lambda m: m.update(version=0)), "version 0")
    refused(resealed(content, lambda m: m.update(version="1")), "version '1'")
    refused(resealed(content, lambda m: m.update(format="other")), "format")
    refused(resealed(content, lambda m: m.update(extra=1)), "extra")
    refused(resealed(content, lambda m: m["config"].update(colour="red")), "unknown key 'colour'")
    refused(resealed(content, lambda m: m.update(findings=[{"what": 1}])), "mera.json")
    refused(resealed(content, lambda m: m["inputs"][0].update(shape=[1, 3, 16, 17])), "other inputs or outputs")
    refused(resealed(content, lambda m: m["inputs"][0].update(dtype="float31")), "unknown dtype")


def test_members_that_do_not_belong(path: Path) -> None:
    content = members(path)
    for name in ("../evil", "/etc/passwd", "C:\\x", "module.json/", "a" * 300, "extra.json", "weights.pkl"):
        refused(packed({**content, name: b"x"}), "is unknown; a .mera file holds")
    out = io.BytesIO(packed(content))
    with pytest.warns(UserWarning), zipfile.ZipFile(out, "a") as archive:
        archive.writestr("module.json", b"{}")
    refused(out.getvalue(), "'module.json' is there twice")
    link = io.BytesIO()
    with zipfile.ZipFile(link, "w") as archive:
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = ((stat.S_IFLNK if name == "module.json" else stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, data)
    refused(link.getvalue(), "'module.json' is no regular file")


def test_zip_bombs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = members(path)
    refused(packed(content, compress_type=zipfile.ZIP_DEFLATED), "is compressed, or larger than the file")
    refused(packed(content, compress_type=zipfile.ZIP_BZIP2), "is compressed")
    monkeypatch.setattr(mera_file, "LARGEST_JSON", 1 << 20)
    bomb = {**content, "module.json": b" " * (2 << 20)}
    refused(resealed(bomb), "more than the 1048576 that are read")
    data = bytearray(resealed({**content, "module.json": b" " * (1 << 19)}))
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        size = archive.getinfo("module.json").file_size
    for at in _all(data, struct.pack("<I", size)):  # it says that it is smaller than it is
        data[at : at + 4] = struct.pack("<I", 100)
    refused(bytes(data), "damaged|not as large|altered|is compressed")


@pytest.mark.parametrize("rows", ["{}", "0", "[]"])
def test_a_million_wrong_nodes_are_one_error(rows: str, path: Path) -> None:
    """Each would cost memory if all were reported."""
    content = members(path)
    graph = b'{"in_spec": "", "out_spec": "", "nodes": [%s]}' % b",".join([rows.encode()] * 1_000_000)
    data = resealed({**content, "module.json": graph})
    tracemalloc.start()
    refused(data, "nodes")
    assert tracemalloc.get_traced_memory()[1] < 400 << 20
    tracemalloc.stop()
    with pytest.raises(CorruptFileError, match="mera.json' has .* bytes, more than"):
        QuantizedModel.load(packed({**content, "mera.json": b" " * (5 << 20)}))
    refused(resealed(content, lambda model: model.update(source="[/bold]")), "source")


def _all(data: bytearray, part: bytes) -> Iterator[int]:
    at = data.find(part)
    while at >= 0:
        yield at
        at = data.find(part, at + 1)


Change = Callable[[list[dict[str, Any]]], object]


def call(nodes: list[dict[str, Any]], target: str = "aten.conv2d") -> dict[str, Any]:
    return next(node for node in nodes if node["target"].startswith(target))


def first(nodes: list[dict[str, Any]], op: str) -> dict[str, Any]:
    return next(node for node in nodes if node["op"] == op)


HOSTILE: dict[str, tuple[Change, str]] = {
    "unknown operator": (lambda n: call(n).update(target="aten.absent.default"), "'aten.absent.default' is unknown"),
    "forbidden operator": (lambda n: call(n).update(target="aten.from_file.default"), "is not allowed"),
    "another library": (lambda n: call(n).update(target="os.system.default"), "is not allowed"),
    "a method": (lambda n: call(n).update(op="call_method"), "op"),
    "a module": (lambda n: call(n).update(op="call_module"), "op"),
    "too few arguments": (lambda n: call(n).update(args=[]), "node 'conv2d'"),
    "too many arguments": (lambda n: call(n)["args"].extend([1] * 9), "node 'conv2d'"),
    "unknown argument": (lambda n: call(n).update(kwargs={"colour": 1}), "node 'conv2d'"),
    "code as an argument's name": (lambda n: call(n).update(kwargs={"x=__import__('os')": 1}), "no identifier"),
    "code as a name": (lambda n: call(n).update(name="a; import os"), "no identifier"),
    "a keyword as a name": (lambda n: call(n).update(name="class"), "no identifier"),
    "code as an input": (lambda n: first(n, "placeholder").update(target="x): import os #"), "no identifier"),
    "code as a constant": (lambda n: first(n, "get_attr").update(target='a"), __import__("os"), ("'), "no path"),
    "a dunder constant": (lambda n: first(n, "get_attr").update(target="__class__"), "no path"),
    "the forward method": (lambda n: first(n, "get_attr").update(target="forward"), "no path"),
    "an absent tensor": (lambda n: first(n, "get_attr").update(tensor="none"), "no tensor 'none'"),
    "a cycle": (lambda n: call(n)["args"].__setitem__(0, {"ref": n[-2]["name"]}), "which no node before it is called"),
    "itself": (lambda n: call(n)["args"].__setitem__(0, {"ref": "conv2d"}), "which no node before it is called"),
    "two of a name": (lambda n: call(n).update(name=first(n, "placeholder")["name"]), "two nodes of that name"),
    "another shape": (lambda n: call(n)["value"].update(shape=[1, 2, 3, 4]), "but computes"),
    "another dtype": (lambda n: call(n)["value"].update(dtype="int8"), "but computes"),
    "a shape that is none": (lambda n: call(n)["value"].update(shape=["a"]), "must be a dtype and a shape"),
    "a huge input": (lambda n: first(n, "placeholder")["value"].update(shape=[1 << 30, 1 << 9]), "larger than 8 GiB"),
    "a negative input": (lambda n: first(n, "placeholder")["value"].update(shape=[-1]), "must be a dtype and a shape"),
    "a huge value": (
        lambda n: call(n, "aten.relu").update(target="aten.repeat.default", args=[{"ref": "x"}, [1 << 20, 1, 1, 1]]),
        "node 'relu_'",
    ),
    "many parts": (
        lambda n: (
            first(n, "placeholder")["value"].update(shape=[1 << 20], dtype="int8"),
            call(n, "quantized_decomposed.quantize").update(target="aten.unbind.int", args=[{"ref": "x"}]),
        ),
        "splits a dimension of more than",
    ),
    "no output": (lambda n: n.pop(), "ends with its output"),
    "nothing": (lambda n: n.clear(), "has no nodes"),
    "an output in between": (lambda n: n.insert(0, n[-1]), "ends with its output"),
    "arguments of an input": (lambda n: first(n, "placeholder").update(args=[1]), "takes no arguments"),
    "an unknown field": (lambda n: call(n).update(code="x"), "code"),
    "an unknown value": (lambda n: call(n)["args"].append({"pickle": "x"}), "node 'conv2d'"),
    "data as a shape": (
        lambda n: call(n, "aten.relu").update(target="aten.nonzero.default", args=[{"ref": "x"}]), "node 'relu_'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_graphs(kind: str, path: Path) -> None:
    change, message = HOSTILE[kind]
    content = members(path)
    graph = json.loads(content["module.json"])
    change(graph["nodes"])
    with pytest.raises(CorruptFileError, match=message):
        QuantizedModel.load(resealed({**content, "module.json": json.dumps(graph).encode()}))


def test_hostile_documents(path: Path) -> None:
    content = members(path)
    graph = json.loads(content["module.json"])
    two = pytrees.dumps(pytree.tree_structure((1, 2)))
    documents: list[tuple[bytes, str]] = [
        (b"[" * 100_000, "malformed|cannot"),
        (b"{}", "in_spec"),
        (b"\xff\xfe", "malformed"),
        (b'{"in_spec": NaN}', "spec"),
        (json.dumps({**graph, "out_spec": "[1, {}]"}).encode(), "a structure's node has the keys"),
        (json.dumps({**graph, "out_spec": two}).encode(), "number of results"),
        (json.dumps({**graph, "in_spec": graph["out_spec"]}).encode(), "other arguments"),
        (json.dumps({**graph, "in_spec": None}).encode(), "in_spec"),
    ]
    for data, message in documents:
        with pytest.raises(CorruptFileError, match=message):
            QuantizedModel.load(resealed({**content, "module.json": data}))
    with pytest.raises(CorruptFileError):
        QuantizedModel.load(resealed({**content, "weights.safetensors": content["weights.safetensors"][:-8]}))
    nested = json.dumps(graph)[:-1].encode() + b', "deep": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}"
    with pytest.raises(CorruptFileError):
        QuantizedModel.load(resealed({**content, "module.json": nested}))


def test_loading_runs_no_code(path: Path, tmp_path: Path) -> None:
    """Names that would be code in the module's generated source leave no trace."""
    content = members(path)
    trace = tmp_path / "trace"
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    for field in ("name", "target"):
        for op in ("placeholder", "get_attr", "call_function"):
            graph = json.loads(content["module.json"])
            first(graph["nodes"], op)[field] = code
            with pytest.raises(CorruptFileError):
                QuantizedModel.load(resealed({**content, "module.json": json.dumps(graph).encode()}))
    graph = json.loads(content["module.json"])
    for node in graph["nodes"]:
        node.update(trace=f'  File "x", line 1, in y\n    z\n{code}\n', modules=[["a", f"b\n{code}", code]])
    loaded = QuantizedModel.load(resealed({**content, "module.json": json.dumps(graph).encode()}))
    loaded(torch.zeros(SHAPE))
    assert not trace.exists()


@pytest.mark.parametrize("seed", range(2))
def test_damaged_files_are_refused_or_whole(seed: int, quantized: QuantizedModel, tmp_path: Path) -> None:
    """Mutated bytes, of the archive or of a member with its checksum made right: a MeraError, or a network."""
    quantized.save(tmp_path / "small.mera", with_float=False)
    rng = random.Random(seed)
    whole, content = (tmp_path / "small.mera").read_bytes(), members(tmp_path / "small.mera")
    outcomes = set()
    for _ in range(40):
        if rng.random() < 0.5:
            data = damaged(whole, rng)
        else:
            name = rng.choice(sorted(set(content) - {"mera.json"}))
            data = resealed({**content, name: damaged(content[name], rng)})
        try:
            QuantizedModel.load(data)
            outcomes.add("loaded")
        except MeraError as error:
            outcomes.add(type(error).__name__)
    assert "CorruptFileError" in outcomes and outcomes <= {"CorruptFileError", "loaded", "UnsupportedError"}
