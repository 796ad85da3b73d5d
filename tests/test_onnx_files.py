"""ONNX files that are damaged, hostile, or spread over several files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx", reason="package onnx reads ONNX files")
pytest.importorskip("onnxruntime", reason="package onnxruntime is the reference of other tests of ONNX files")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.helper import make_graph, make_node, make_tensor_value_info  # noqa: E402
from onnx_models import model, random  # noqa: E402

from mera_torch.converters import from_onnx  # noqa: E402
from mera_torch.errors import CorruptFileError, InvalidModelError, MeraError, UnsupportedError  # noqa: E402

RELU = make_node("Relu", ["x"], ["y"], name="relu")


def relu(**fields: Any) -> onnx.ModelProto:
    return model([RELU], {"x": [2, 3]}, **fields)


# ---- external data ----


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """x @ w + b with w in weights/w.bin, and b in the same file behind it."""
    made = model(
        [make_node("Gemm", ["x", "w", "b"], ["y"])], {"x": [2, 3]}, constants={"w": random(3, 4), "b": random(4)}
    )
    (tmp_path / "weights").mkdir()
    onnx.save_model(
        made, tmp_path / "model.onnx", save_as_external_data=True, location="weights_w.bin", size_threshold=0
    )
    os.rename(tmp_path / "weights_w.bin", tmp_path / "weights" / "w.bin")
    return rewritten(tmp_path / "model.onnx", location="weights/w.bin")


def rewritten(path: Path, **entries: str) -> Path:
    """The file with other entries for the external data of its first tensor (location: of all of them)."""
    made = onnx.load_model(path, load_external_data=False)
    for index, tensor in enumerate(made.graph.initializer):
        for entry in tensor.external_data:
            if entry.key in entries and (index == 0 or entry.key == "location"):
                entry.value = entries[entry.key]
    path.write_bytes(made.SerializeToString())
    return path


def test_external_data_is_read(external: Path) -> None:
    x = random(2, 3)
    expected = x @ random(3, 4) + random(4)
    np.testing.assert_allclose(from_onnx(external)(torch.from_numpy(x)).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert from_onnx(str(external)).info.outputs[0].shape == (2, 4)
    with pytest.raises(InvalidModelError, match="its data is in another file; pass the model's path"):
        from_onnx(external.read_bytes())


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"location": "../secret.bin"}, "must be a relative path within its folder"),
        ({"location": "weights/../../secret.bin"}, "must be a relative path within its folder"),
        ({"location": "/etc/passwd"}, "must be a relative path within its folder"),
        ({"location": ""}, "must be a relative path within its folder"),
        ({"location": "weights\\w.bin"}, "must be a relative path within its folder"),
        ({"location": "weights/none.bin"}, "does not exist"),
        ({"location": "weights"}, "does not exist"),
        ({"offset": "9223372036854775807"}, "are needed, it has 64"),
        ({"offset": "-4"}, "must be a size in bytes, got '-4'"),
        ({"offset": "1e3"}, "must be a size in bytes"),
        ({"length": "4096"}, "bytes 0 to 4096 of external file 'weights/w.bin' are needed, it has 64"),
        ({"length": "16"}, "16 bytes are stored for shape .*, which takes 48"),
    ],
)
def test_external_data_that_is_not_there_or_leads_elsewhere(
    external: Path, entries: dict[str, str], sentence: str
) -> None:
    (external.parent.parent / "secret.bin").write_bytes(bytes(64))
    with pytest.raises((CorruptFileError, InvalidModelError), match=sentence):
        from_onnx(rewritten(external, **entries))


def test_links_must_stay_in_the_folder(external: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "w.bin"
    held = external.parent / "weights" / "w.bin"
    outside.write_bytes(held.read_bytes())
    held.unlink()
    held.symlink_to(outside)
    with pytest.raises(CorruptFileError, match="leads out of the model's folder"):
        from_onnx(external)
    held.unlink()
    (external.parent / "real.bin").write_bytes(outside.read_bytes())
    held.symlink_to(external.parent / "real.bin")
    from_onnx(external)


# ---- malformed models ----


def changed(change: Callable[[onnx.ModelProto], Any]) -> onnx.ModelProto:
    """x @ w + b, after a change."""
    nodes = [make_node("MatMul", ["x", "w"], ["t"], name="mm"), make_node("Add", ["t", "b"], ["y"], name="add")]
    made = model(nodes, {"x": [2, 3]}, constants={"w": random(3, 4), "b": random(4)})
    change(made)
    return made


MALFORMED: list[tuple[Callable[[onnx.ModelProto], Any], str]] = [
    (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "MatMul 'mm': its input 'y' is made only by a node after it"),
    (lambda m: m.graph.node[0].input.__setitem__(0, "t"), "MatMul 'mm': its input 't' is made only by a node after it"),
    (lambda m: m.graph.node.reverse(), "nodes must be in order"),
    (lambda m: m.graph.node[0].input.__setitem__(1, "nothing"), "MatMul 'mm': its input 'nothing' is made by no node"),
    (lambda m: m.graph.output[0].__setattr__("name", "z"), "output 'z' is made by no node"),
    (lambda m: m.graph.node.append(m.graph.node[0]), "single static assignment"),
    (lambda m: m.graph.node[0].__setattr__("op_type", "MatMal"), "No Op registered for MatMal"),
    (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "initializer 'w' is defined twice"),
    (lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**62), r"more than 2 GiB"),
    (lambda m: m.graph.initializer[0].dims.__setitem__(0, -3), "has a negative size"),
    (lambda m: m.graph.initializer[0].dims.__setitem__(0, 4), "48 bytes are stored for shape .4, 4., which takes 64"),
    (lambda m: m.graph.initializer[0].__setattr__("data_type", 77), "element type 77 is not supported"),
    (lambda m: m.opset_import[0].__setattr__("version", 29), "opset 29 is newer than 28"),
    (lambda m: m.opset_import[0].__setattr__("version", 0), "opset 0 of domain '' does not exist"),
    (lambda m: m.opset_import[0].__setattr__("version", 2**62), "does not exist"),
    (lambda m: m.opset_import.pop(), "does not say which opset"),
    (lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", 2**40), "larger than 2 GiB"),
    (lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop(), "mm|MatMul"),
    (lambda m: m.graph.node[1].attribute.append(helper.make_attribute("axis", 2**31)), "'axis' is 2147483648"),
]


@pytest.mark.parametrize(("change", "sentence"), MALFORMED, ids=[sentence[:40] for _, sentence in MALFORMED])
def test_malformed_models_are_refused_in_a_sentence(change: Callable[[Any], Any], sentence: str) -> None:
    with pytest.raises((InvalidModelError, UnsupportedError), match=sentence) as caught:
        from_onnx(changed(change))
    assert "\n" not in str(caught.value)


def test_numbers_that_onnx_itself_does_not_survive() -> None:
    split = make_node("Split", ["x"], ["y", "z"], num_outputs=2**31 - 1, name="split")
    with pytest.raises(
        InvalidModelError, match="Split 'split': its attribute 'num_outputs' is 2147483647, and it lists 2"
    ):
        from_onnx(model([split], {"x": [6]}, ["y", "z"], opset=18))


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([make_node("ConstantOfShape", ["n"], ["t"])], {"n": np.array([2**40])}),
        ([make_node("Expand", ["one", "n"], ["t"])], {"n": np.array([2**20, 2**20]), "one": np.float32([1])}),
        ([make_node("Tile", ["one", "n"], ["t"])], {"n": np.array([2**40]), "one": np.float32([1])}),
        ([make_node("Range", ["a", "n", "d"], ["t"])],
         {"a": np.float32(0), "n": np.float32(2.0**40), "d": np.float32(1)}),
        ([make_node("Pad", ["one", "n"], ["t"])], {"n": np.array([2**40, 0]), "one": np.float32([1])}),
        ([make_node("Resize", ["one", "", "", "n"], ["t"])], {"n": np.array([2**40]), "one": np.float32([1])}),
    ],
    ids=lambda value: value[0].op_type if isinstance(value, list) else "",
)  # fmt: skip
def test_small_files_of_huge_tensors(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> None:
    nodes = [*nodes, make_node("ReduceSum", ["t"], ["u"], keepdims=0), make_node("Add", ["x", "u"], ["y"])]
    with pytest.raises(InvalidModelError, match=nodes[0].op_type):
        from_onnx(model(nodes, {"x": [2]}, constants=constants))


def test_many_large_constants_are_too_large_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mera_torch.converters.onnx.context.MOST_FOLDED", 1 << 20)
    nodes = [make_node("ConstantOfShape", ["n"], ["t0"])]
    nodes += [make_node("Neg", [f"t{i}"], [f"t{i + 1}"]) for i in range(40)]
    nodes += [make_node("ReduceMax", ["t40"], ["u"], keepdims=0), make_node("Add", ["x", "u"], ["y"])]
    with pytest.raises(InvalidModelError, match="computed constants are larger than .* together"):
        from_onnx(model(nodes, {"x": [2]}, constants={"n": np.array([2**14])}))


def test_deep_nesting() -> None:
    """protobuf itself refuses messages more than 100 deep, which is 33 subgraphs; functions may call each other."""

    def deeper(depth: int) -> onnx.GraphProto:
        nodes = [make_node("Relu", ["x"], [f"y{depth}"])]
        if depth:
            nodes = [make_node("If", ["c"], [f"y{depth}"], then_branch=deeper(depth - 1), else_branch=deeper(0))]
        return make_graph(nodes, f"g{depth}", [], [make_tensor_value_info(f"y{depth}", TensorProto.FLOAT, None)])

    node = make_node("If", ["c"], ["y"], then_branch=deeper(20), else_branch=deeper(0))
    from_onnx(model([node], {"x": [2]}, constants={"c": np.array(True)}))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "F0", ["a"], ["b"], [make_node("Relu", ["a"], ["b"])], opsets)]
    for i in range(1, 60):
        call = make_node(f"F{i - 1}", ["a"], ["b"], domain="own")
        functions.append(helper.make_function("own", f"F{i}", ["a"], ["b"], [call], opsets))
    made = model([make_node("F59", ["x"], ["y"], domain="own")], {"x": [2]}, functions=functions, domains=["own"])
    with pytest.raises(InvalidModelError, match="functions are nested more than 40 deep"):
        from_onnx(made)


def test_strings_sequences_and_narrow_integers_are_refused() -> None:
    text = model(
        [make_node("Identity", ["x"], ["y"])], {"x": [2]}, kinds={"x": TensorProto.STRING, "y": TensorProto.STRING}
    )
    with pytest.raises(UnsupportedError, match="STRING"):
        from_onnx(text)
    sequence = model([make_node("SequenceAt", ["x", "i"], ["y"])], {"x": [2]}, constants={"i": np.array(0)})
    sequence.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2])))
    with pytest.raises(UnsupportedError, match="sequence"):
        from_onnx(sequence)
    narrow = model([make_node("QuantizeLinear", ["x", "s", "z"], ["y"])], {"x": [2]}, constants={"s": np.float32(0.5)},
                   kinds={"y": TensorProto.INT4}, opset=21)  # fmt: skip
    narrow.graph.initializer.append(helper.make_tensor("z", TensorProto.INT4, [], [1]))
    with pytest.raises(UnsupportedError, match="4-bit"):
        from_onnx(narrow)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    for data in (b"", b"\xff" * 64, b"hello", relu().SerializeToString()[:-9]):
        with pytest.raises(CorruptFileError, match="is no ONNX model"):
            from_onnx(data)
    with pytest.raises(InvalidModelError, match="does not exist"):
        from_onnx(tmp_path / "none.onnx")


# ---- damage ----


def small_models() -> list[bytes]:
    made = [relu(), changed(lambda m: None)]
    constants = {"w": random(4, 3, 3, 3), "s": np.float32(0.1), "z": np.int8(3), "q": np.ones((4, 4, 1, 1), np.int8)}
    nodes = [
        make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        make_node("QuantizeLinear", ["a", "s", "z"], ["b"]), make_node("DequantizeLinear", ["b", "s", "z"], ["c"]),
        make_node("DequantizeLinear", ["q", "s"], ["v"]), make_node("Conv", ["c", "v"], ["d"]),
        make_node("MaxPool", ["d"], ["y"], kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    ]  # fmt: skip
    made.append(model(nodes, {"x": ["N", 3, 8, 8]}, constants=constants))
    made[-1].graph.node.append(numpy_helper_constant())
    return [m.SerializeToString() for m in made]


def numpy_helper_constant() -> onnx.NodeProto:
    return make_node("Constant", [], ["unused"], value=numpy_helper.from_array(np.arange(3)))


MODELS = small_models()
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(MODELS),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.sampled_from(EXTREMES)), min_size=1, max_size=4),
)
def test_damaged_files_give_one_clear_error(data: bytes, damage: list[tuple[int, int]]) -> None:
    broken = bytearray(data)
    for position, value in damage:
        broken[position % len(broken)] = value
    try:
        from_onnx(bytes(broken))
    except MeraError as error:
        assert len(str(error)) < 2000
