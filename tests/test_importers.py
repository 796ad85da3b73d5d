"""load_model tells formats by content; every importer gives an ordinary module that the rest of the project takes."""

from __future__ import annotations

import copy
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mera_torch
from mera_torch.contents import contents
from mera_torch.converters import ImportedModel, format_of, info_of, load_model
from mera_torch.converters.files import LARGEST, read
from mera_torch.converters.graph import GraphBuilder, identifier, shape
from mera_torch.converters.registry import REGISTRY, converts, find
from mera_torch.errors import CorruptFileError, InvalidModelError, UnsupportedError

aten: Any = torch.ops.aten
qd: Any = torch.ops.quantized_decomposed


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


X = torch.randn(1, 3, 12, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def pt2(module: nn.Module, *inputs: torch.Tensor) -> bytes:
    stream = io.BytesIO()
    torch.export.save(torch.export.export(module, inputs), stream)
    return stream.getvalue()


# ---- formats ----


def test_formats_are_told_by_content(net: nn.Module, tmp_path: Path) -> None:
    script = io.BytesIO()
    torch.jit.save(torch.jit.trace(net, X), script)
    assert format_of(pt2(net, X)) == "pt2"
    assert format_of(script.getvalue()) == "torchscript"
    assert format_of(b"\x1c\0\0\0TFL3" + bytes(20)) == "tflite"
    assert format_of(b"\x89HDF\r\n\x1a\n" + bytes(20)) == "keras"
    misnamed = tmp_path / "model.onnx"
    misnamed.write_bytes(pt2(net, X))
    assert format_of(misnamed) == "pt2" and load_model(misnamed).info.format == "pt2"
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").touch()
    assert format_of(tmp_path / "saved") == "keras"


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return stream.getvalue()


def saved(value: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "kind", "sentence"),
    [
        (b"", CorruptFileError, "a model of 0 bytes is no TFLite"),
        (b"hello, world, this is text", CorruptFileError, "is no TFLite, ONNX, .* or .mera model"),
        (saved({"w": X}), UnsupportedError, "without the network"),
        (saved({"w": X}, _use_new_zipfile_serialization=False), UnsupportedError, "is a pickle, which could run"),
        (b"PK\3\4 but no zip", CorruptFileError, "damaged zip archive"),
        (zipped("a.txt"), CorruptFileError, "no TorchScript, .pt2, Keras or .mera model"),
        (b"MERAGRPH....", UnsupportedError, "mera dump"),
        (zipped("m/archive_format", "m/models/model.json"), CorruptFileError, "is no .pt2 file of torch.export"),
    ],
)
def test_what_is_no_model_is_told(data: bytes, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        load_model(data)


def test_paths_that_are_no_model(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="no-such.tflite' does not exist"):
        load_model(tmp_path / "no-such.tflite")
    with pytest.raises(InvalidModelError, match="it has no saved_model.pb"):
        load_model(tmp_path)
    huge = tmp_path / "huge.onnx"
    with huge.open("wb") as file:
        file.truncate(LARGEST + 1)  # a sparse file
    with pytest.raises(InvalidModelError, match=f"has {LARGEST + 1} bytes, more than"):
        read(huge)
    os.truncate(huge, 0)
    mera_torch.export(mera_torch.quantize(net, X, [X], progress=False), (X,), tmp_path / "deployment")
    with pytest.raises(UnsupportedError, match="mera_torch.load opens it"):
        load_model(tmp_path / "deployment")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_have_a_format_or_an_error(data: bytes) -> None:
    try:
        assert format_of(data) in ("tflite", "onnx", "torchscript", "pt2", "keras")
    except (CorruptFileError, UnsupportedError):
        pass


# ---- .pt2 ----


def test_pt2_is_an_ordinary_module(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(pt2(net, X))
    model = load_model(path)
    assert isinstance(model, ImportedModel) and [tuple(i.shape) for i in model.info.inputs] == [(1, 3, 12, 10)]
    torch.testing.assert_close(model(X), net(X))
    torch.testing.assert_close(copy.deepcopy(model)(X), net(X))
    quantized = mera_torch.quantize(model, (X,), [(X,)], progress=False)
    assert info_of(quantized) == model.info
    direct = mera_torch.quantize(net, (X,), [(X,)], progress=False)
    torch.testing.assert_close(quantized(X), direct(X))
    runner = mera_torch.export(quantized, None, tmp_path / "deployment").get_runner()
    torch.testing.assert_close(runner(X), direct(X), atol=0.05, rtol=0)
    assert "DNA region 0" in str(mera_torch.explain(quantized))


def test_pt2_with_several_outputs_keeps_its_structure() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": x + y, "product": x * y}

    model = load_model(pt2(Two(), X, X))
    assert set(model(X, X)) == {"sum", "product"}
    assert [i.name for i in model.info.inputs] == ["x", "y"] and len(model.info.outputs) == 2


# ---- the builder ----


def test_constants_are_computed_at_once() -> None:
    g = GraphBuilder("onnx")
    x = g.input("a name: with signs", (2, 3), torch.float32)
    sizes = g.call(aten.mul.Tensor, torch.tensor([3, 1]), torch.tensor([1, 2]))
    assert sizes.tolist() == [3, 2]
    with g.at("reshape_1", "Reshape"):
        y = g.call(aten.reshape.default, x, sizes.tolist())
    model = g.finish([("out", y, "")])
    assert [n.op for n in model.graph.nodes] == ["placeholder", "call_function", "output"]
    assert model(torch.ones(2, 3)).shape == (3, 2) and shape(y) == (3, 2)
    (node,) = [n for n in model.graph.nodes if n.op == "call_function"]
    assert node.meta["nn_module_stack"] == {"reshape_1": ("reshape_1", "onnx.Reshape")}


def test_a_weight_stays_quantized_and_is_held_once() -> None:
    g = GraphBuilder("tflite")
    x = g.input("x", (1, 4), torch.float32)
    w = torch.ones(4, 4, dtype=torch.int8)
    weights = [g.emit(qd.dequantize_per_tensor.default, w, 0.5, 0, -128, 127, torch.int8) for _ in range(2)]
    y = g.call(aten.linear.default, g.call(aten.linear.default, x, weights[0]), weights[1])
    g.node(torch.ones(7), "unused")
    model = g.finish([("y", y, "")])
    assert [b.dtype for b in model.buffers()] == [torch.int8]
    assert model(torch.ones(1, 4)).tolist() == [[4.0] * 4]


def test_errors_name_the_operator_of_the_file() -> None:
    g = GraphBuilder("onnx")
    x = g.input("x", (2, 3), torch.float32)
    with g.at("my_node", "Reshape"):
        with pytest.raises(InvalidModelError, match="operator Reshape 'my_node': aten.reshape.default does not take"):
            g.call(aten.reshape.default, x, [7])
        with pytest.raises(UnsupportedError, match="Reshape 'my_node': the shape of its result depends on data"):
            g.call(aten.nonzero.default, x)
        with pytest.raises(InvalidModelError, match="does not take"):
            g.call(aten.add.Tensor, torch.ones(2), torch.ones(3))
        for big in (lambda: g.call(aten.expand.default, x.meta["val"][:, :1], [2, 2**40]),
                    lambda: g.call(aten.zeros.default, [2**40]),
                    lambda: g.input("big", (2**20, 2**20), torch.float32)):  # fmt: skip
            with pytest.raises(InvalidModelError, match="larger than 2 GiB"):
                big()
    with pytest.raises(InvalidModelError, match="no outputs"):
        g.finish([])


def test_names_become_identifiers() -> None:
    assert identifier("layer1/conv:0") == "layer1_conv_0" and identifier("0") == "_0" and identifier("") == "_"
    assert len(identifier("x" * 1000)) == 80 and identifier("größe").isidentifier()


def test_a_conversion_is_registered_once_a_version() -> None:
    try:
        convert = converts("test", "Op", since=1, until=6)(lambda: 1)
        newer = converts("test", "Op", since=7)(lambda: 2)
        assert find("test", "Op", 6, "") is convert and find("test", "Op", 99, "") is newer
        for since, until in ((3, 4), (6, 7), (8, None), (1, None)):
            with pytest.raises(ValueError, match="registered twice"):
                converts("test", "Op", since=since, until=until)(lambda: 3)
        with pytest.raises(UnsupportedError, match="here: version 0 of Op is not supported"):
            find("test", "Op", 0, "here")
        with pytest.raises(UnsupportedError, match=r"operator Opp \(version 1\) is not supported; did you mean 'Op'"):
            find("test", "Opp", 1, "here")
    finally:
        del REGISTRY["test", "Op"]


# ---- contents ----


def test_contents_count_what_pytorch_counts(net: nn.Module) -> None:
    found = contents(load_model(pt2(net, X)))
    assert found.macs == 8 * 3 * 9 * 120 + 8 * 5 and found.parameters == sum(p.numel() for p in net.parameters())
    assert {row.op: row.count for row in found.operators}["aten.conv2d.default"] == 1
    assert found.quantized == "" and json.loads(json.dumps(found.to_dict()))["macs"] == found.macs
    quantized = load_model(pt2(mera_torch.quantize(net, X, [X], progress=False), X))
    assert contents(quantized).quantized == "int32, int8" and contents(quantized).macs == found.macs
