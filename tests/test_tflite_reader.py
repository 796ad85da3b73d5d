"""Reading .tflite files: what a file may say, and every way in which it may be wrong."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tflite")
from ai_edge_litert import schema_py_generated as schema
from tflite_cases import CASES, T, random_array
from tflite_models import Builder

from mera_torch import CorruptFileError, InvalidModelError, MeraError, UnsupportedError
from mera_torch.converters import from_tflite
from mera_torch.converters.tflite.reader import load

FILES = sorted((Path(__file__).parent / "tflite_files").glob("*.tflite"))


def network(**changed: Any) -> bytes:
    """conv -> relu on [1,4,4,3], int8; changed: fields of the second operator's output tensor."""
    m = Builder()
    x = m.tensor("x", (1, 4, 4, 3), "int8", 0.1, 3)
    w = m.constant("w", np.ones((2, 1, 1, 3), np.int8), [0.1, 0.2], [0, 0])
    b = m.constant("b", np.array([5, -5], np.int32), [0.01, 0.02], [0, 0])
    y = m.tensor("y", (1, 4, 4, 2), "int8", 0.2, -5)
    z = m.tensor("z", (1, 4, 4, 2), "int8", 0.2, -5)
    m.op("CONV_2D", [x, w, b], [y], "Conv2DOptions", padding="SAME", strideH=1, strideW=1, dilationHFactor=1,
         dilationWFactor=1)  # fmt: skip
    m.op("RELU", [y], [z])
    return m.build([x], [z])


def edited(change: Any) -> bytes:
    """The same file with its schema's objects changed."""
    import flatbuffers

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(network(), 0))
    change(model, model.subgraphs[0])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def set_on(target: Any, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(target, name, value)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


BAD: dict[str, tuple[Any, type[MeraError], str]] = {
    "operator code": (lambda m, g: set_on(g.operators[0], opcodeIndex=9), CorruptFileError, "operator code 9"),
    "unknown operator": (
        lambda m, g: set_on(m.operatorCodes[0], builtinCode=100000), UnsupportedError, "operator code 100000"),
    "input tensor": (lambda m, g: set_on(g.operators[0], inputs=ints(0, 1, 99)), CorruptFileError, "not there"),
    "negative tensor": (lambda m, g: set_on(g.operators[0], inputs=ints(-2, 1, 2)), CorruptFileError, "not there"),
    "model input": (lambda m, g: set_on(g, inputs=ints(77)), CorruptFileError, "inputs name a tensor"),
    "no model input": (lambda m, g: set_on(g, inputs=ints(-1)), CorruptFileError, "is no tensor"),
    "no outputs": (lambda m, g: set_on(g, outputs=None), InvalidModelError, "no outputs"),
    "buffer": (lambda m, g: set_on(g.tensors[1], buffer=55), CorruptFileError, "buffer 55"),
    "missing data": (lambda m, g: set_on(g.tensors[1], buffer=0), InvalidModelError, "no data"),
    "short data": (lambda m, g: set_on(m.buffers[1], data=np.zeros(3, np.uint8)), CorruptFileError, "has 3 bytes"),
    "external buffer": (
        lambda m, g: set_on(m.buffers[1], data=None, offset=2**62, size=2**62), CorruptFileError, "beyond the file"),
    "negative size": (lambda m, g: set_on(g.tensors[0], shape=ints(1, -4, 4, 3)), CorruptFileError, "none below 0"),
    "huge input": (lambda m, g: set_on(g.tensors[0], shape=ints(2**31 - 1, 2**31 - 1, 4, 3)), InvalidModelError, "GiB"),
    "empty input": (lambda m, g: set_on(g.tensors[0], shape=ints(1, 0, 4, 3)), MeraError, "."),
    "rank": (lambda m, g: set_on(g.tensors[0], shape=ints(*[1] * 9)), CorruptFileError, "up to 8 sizes"),
    "element type": (lambda m, g: set_on(g.tensors[0], type=77), UnsupportedError, "element type 77"),
    "string input": (lambda m, g: set_on(g.tensors[0], type=5), UnsupportedError, "STRING"),
    "scales": (
        lambda m, g: set_on(g.tensors[1].quantization, scale=np.ones(5, np.float32)), CorruptFileError, "5 scales"),
    "scale NaN": (
        lambda m, g: set_on(g.tensors[0].quantization, scale=np.float32([np.nan])), CorruptFileError, "finite"),
    "scale tiny": (
        lambda m, g: set_on(g.tensors[3].quantization, scale=np.float32([1e-40])), InvalidModelError, "2\\^-60"),
    "scale negative": (
        lambda m, g: set_on(g.tensors[0].quantization, scale=np.array([-1], np.float32)), CorruptFileError, "below 0"),
    "zero point": (
        lambda m, g: set_on(g.tensors[0].quantization, zeroPoint=np.array([300])), CorruptFileError, "zero points"),
    "axis": (lambda m, g: set_on(g.tensors[1].quantization, quantizedDimension=7), CorruptFileError, "dimension 7"),
    "cycle": (lambda m, g: set_on(g.operators[0], inputs=ints(4, 1, 2)), InvalidModelError, "no operator before"),
    "own output": (lambda m, g: set_on(g.operators[0], inputs=ints(3, 1, 2)), InvalidModelError, "no operator before"),
    "twice": (lambda m, g: set_on(g.operators[1], outputs=ints(3)), InvalidModelError, "computed twice"),
    "no output": (lambda m, g: set_on(g.operators[1], outputs=ints()), InvalidModelError, "output 0 is missing"),
    "no input": (lambda m, g: set_on(g.operators[1], inputs=ints()), InvalidModelError, "input 0 is missing"),
    "options": (lambda m, g: set_on(g.operators[0], builtinOptionsType=5), InvalidModelError, "Conv2DOptions"),
    "stride": (lambda m, g: set_on(g.operators[0].builtinOptions, strideH=0), InvalidModelError, "at least 1"),
    "padding": (lambda m, g: set_on(g.operators[0].builtinOptions, padding=9), InvalidModelError, "padding 9"),
    "activation": (
        lambda m, g: set_on(g.operators[0].builtinOptions, fusedActivationFunction=4), UnsupportedError, "TANH"),
    "kernel": (lambda m, g: set_on(g.tensors[1], shape=ints(2, 1, 3, 1)), MeraError, "CONV_2D"),
    "bias": (lambda m, g: set_on(g.operators[0], inputs=ints(0, 1, 1)), InvalidModelError, "bias must have 2 elements"),
    "bias of bytes": (lambda m, g: set_on(g.tensors[2], type=9) or set_on(m.buffers[2], data=np.zeros(2, np.uint8)),
                      InvalidModelError, "32 or 64 bits"),
    "version": (lambda m, g: set_on(m, version=4), UnsupportedError, "schema version 4"),
    "no subgraph": (lambda m, g: set_on(m, subgraphs=[]), CorruptFileError, "no subgraph"),
    "sparse": (
        lambda m, g: set_on(g.tensors[1], sparsity=schema.SparsityParametersT()), UnsupportedError, "sparse"),
    "variable": (
        lambda m, g: set_on(g.tensors[0], isVariable=True) or set_on(g, inputs=ints()), UnsupportedError, "variable"),
    "float bias of nothing": (lambda m, g: set_on(g.tensors[0], quantization=None), MeraError, "."),
    "custom quantization": (
        lambda m, g: set_on(g.tensors[0].quantization, detailsType=1, details=schema.CustomQuantizationT()),
        UnsupportedError, "custom quantization"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(name: str) -> None:
    change, error, part = BAD[name]
    with pytest.raises(error, match=part):
        from_tflite(edited(change))


REFUSED = {
    **dict.fromkeys(("WHILE", "IF", "CALL_ONCE", "VAR_HANDLE"), "control flow"),
    **dict.fromkeys(("UNIDIRECTIONAL_SEQUENCE_LSTM", "LSTM"), "recurrent"),
    "DENSIFY": "sparse",
    "WHERE": "depends on data",
    "DELEGATE": "another accelerator",
    "STABLEHLO_ADD": "not supported",
    "CUSTOM": "'TFLite_Detection_PostProcess'",
}


@pytest.mark.parametrize("code", REFUSED)
def test_refusals_name_operator_and_reason(code: str) -> None:
    m = Builder()
    x, y = m.tensor("x", (2, 3), "float32"), m.tensor("some/name", (2, 3), "float32")
    m.op(code, [x], [y], custom="TFLite_Detection_PostProcess" if code == "CUSTOM" else "")
    with pytest.raises(UnsupportedError, match=REFUSED[code]) as refusal:
        from_tflite(m.build([x], [y]))
    assert code in str(refusal.value) and "some/name" in str(refusal.value)


def test_operators_check_what_their_kernels_need() -> None:
    m = Builder()
    x, y = m.tensor("x", (1, 4), "int8", 1.0), m.tensor("y", (1, 4), "int8", 0.001)
    m.op("HARD_SWISH", [x], [y])
    with pytest.raises(InvalidModelError, match="1/128"):
        from_tflite(m.build([x], [y]))
    m = Builder()
    x, y = m.constant("x", np.ones(4, np.float32)), m.tensor("y", (4,), "float32")
    m.op("MAX_POOL_2D", [x], [y], "Pool2DOptions", strideH=1, strideW=1, filterHeight=1, filterWidth=1)
    with pytest.raises(InvalidModelError, match="rank 4"):
        from_tflite(m.build([], [y]))


def test_every_truncation_is_refused() -> None:
    file = network()
    for size in range(0, len(file), 7):
        with pytest.raises(MeraError):
            from_tflite(file[:size])


def test_every_hostile_field_is_bounded() -> None:
    """Each aligned 32-bit field as 2^31 and 2^32-1: an import or an error, in no time."""
    file = network()
    began = time.monotonic()
    for at in range(0, len(file), 4):
        for value in (2**31, 2**32 - 1):
            damaged = bytearray(file)
            struct.pack_into("<I", damaged, at, value)
            try:
                from_tflite(bytes(damaged))
            except MeraError:
                pass
    assert time.monotonic() - began < 60


def test_vectors_shared_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """30,000 operators that are one table with 3,000 inputs: a file of 130 KB that stands for 90 million numbers."""
    once: list[Any] = []
    pack = schema.OperatorT.Pack

    def packed(self: Any, builder: Any) -> Any:
        if not once:
            once.append(pack(self, builder))
        return once[0]

    def change(model: Any, graph: Any) -> None:
        once.clear()
        set_on(graph.operators[1], inputs=ints(*[3] * 3000))
        graph.operators = [graph.operators[1]] * 30_000

    monkeypatch.setattr(schema.OperatorT, "Pack", packed)
    with pytest.raises(CorruptFileError, match="times the file"):
        from_tflite(edited(change))


def test_external_buffers_are_read() -> None:
    """Files above 2 GB hold their constants behind the flatbuffer, at an offset."""
    marker = np.full(1, 0x5A5A, np.uint64)

    def change(model: Any, graph: Any) -> None:
        set_on(model.buffers[1], data=None, offset=int(marker[0]), size=6)

    file = edited(change)
    data = np.array([[1, 2, 3], [4, 5, 6]], np.int8).tobytes()
    where = file.index(struct.pack("<Q", 0x5A5A))
    file = file[:where] + struct.pack("<Q", len(file)) + file[where + 8 :] + data
    np.testing.assert_array_equal(load(file).tensors[1].data.reshape(2, 3), [[1, 2, 3], [4, 5, 6]])
    with pytest.raises(CorruptFileError, match="beyond the file"):
        load(file[:-1])


def test_int4_constants_are_unpacked() -> None:
    m = Builder()
    x = m.tensor("x", (1, 3), "int8", 0.1)
    packed = np.array([0x21, 0xF3, 0x8A, 0x7], np.uint8)  # 1 2, 3 -1, -6 -8, 7
    w = m.tensor("w", (7, 1), "int4", 0.1, data=packed)
    y = m.tensor("y", (3, 7), "int8", 0.5)
    m.op("FULLY_CONNECTED", [x, w], [y], "FullyConnectedOptions")
    file = load(m.build([x], [y]))
    np.testing.assert_array_equal(file.tensors[w].data.ravel(), [1, 2, 3, -1, -6, -8, 7])


def test_names_of_signatures_are_used() -> None:
    def change(model: Any, graph: Any) -> None:
        model.signatureDefs = [
            schema.SignatureDefT(
                inputs=[schema.TensorMapT(name="image", tensorIndex=0)],
                outputs=[schema.TensorMapT(name="scores", tensorIndex=4)], signatureKey="serving_default",
            )
        ]  # fmt: skip

    info = from_tflite(edited(change)).info
    assert [i.name for i in info.inputs] == ["image"] and [o.name for o in info.outputs] == ["scores"]
    assert (info.inputs[0].layout, info.inputs[0].scale, info.inputs[0].zero_point) == ("NHWC", pytest.approx(0.1), 3)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_the_converter(path: Path) -> None:
    """What TensorFlow's converter made of one network: float, float16 weights, int8, int16; and shape arithmetic."""
    from mera_torch.compare import compare_tflite

    found = compare_tflite(path, simulator=False)
    if path.stem == "int16":  # on the host, in float
        largest = [d.largest for t in found.tensors for d in t.differences.values() if d and t.dtype == "int16"]
        assert max(largest, default=0) <= 2
    else:
        assert found.equal, str(found)


def test_shape_arithmetic_leaves_no_trace() -> None:
    targets = {str(node.target) for node in from_tflite(FILES[-1]).graph.nodes if node.op == "call_function"}
    assert FILES[-1].stem == "shapes" and "aten.stack.default" not in targets


def test_provenance_is_the_files_names() -> None:
    model = from_tflite(network())
    places = {
        name: kind
        for node in model.graph.nodes
        for name, kind in node.meta.get("nn_module_stack", {}).values()
        if node.op == "call_function"
    }
    assert places["y"] == "tflite.CONV_2D" and places["z"] == "tflite.RELU"


def test_random_cases_survive_damage() -> None:
    """A short run of the fuzzer's kind; tools/fuzz_readers.py is the long one."""
    rng = np.random.default_rng(0)
    files = [CASES[name].build()[0] for name in list(CASES)[::25]]
    for _ in range(150):
        file = bytearray(files[rng.integers(len(files))])
        for _ in range(rng.integers(1, 4)):
            file[rng.integers(len(file))] = rng.integers(256)
        try:
            model = from_tflite(bytes(file))
        except MeraError:
            continue
        assert isinstance(model, torch.nn.Module)


def test_example_inputs_fit() -> None:
    x = random_array(T((1, 4, 4, 3), (0.1, 3)), np.random.default_rng(0))
    (example,) = from_tflite(network()).example_inputs()
    assert example.dtype == torch.int8 and tuple(example.shape) == x.shape
