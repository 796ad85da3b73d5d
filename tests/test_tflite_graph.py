"""The graphs that come of TFLite files: their layout, and the ways that lead on from them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tflite")
from tflite_models import Builder, reference

import mera_torch
from mera_torch.converters import from_tflite
from mera_torch.converters.registry import operators
from mera_torch.converters.tflite.refused import REASONS

RNG = np.random.default_rng(1)
CONV = {"padding": "SAME", "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
aten = torch.ops.aten


def chain(quantized: bool) -> tuple[bytes, np.ndarray, list[int]]:
    """(file, input, the tensors that are its outputs) of a network that has images all along."""
    m = Builder()
    scale = {"scale": 0.1, "zero_point": 3} if quantized else {}
    kind = "int8" if quantized else "float32"

    def image(name: str, *shape: int) -> int:
        return m.tensor(name, (1, *shape), kind, **scale)  # type: ignore[arg-type]

    def conv(x: int, y: int, channels: int) -> None:
        data = RNG.normal(size=(channels, 3, 3, 4))
        if quantized:
            w = m.constant("w", np.clip(data * 40, -127, 127).astype(np.int8), 0.01)
            b = m.constant("b", np.arange(channels, dtype=np.int32) * 50, 0.001)
        else:
            w = m.constant("w", (data * 0.4).astype(np.float32))
            b = m.constant("b", np.arange(channels, dtype=np.float32) * 0.05)
        m.op("CONV_2D", [x, w, b], [y], "Conv2DOptions", **CONV, fusedActivationFunction="RELU")

    x, a, b = image("x", 8, 8, 4), image("a", 8, 8, 4), image("b", 8, 8, 4)
    conv(x, a, 4)
    conv(a, b, 4)
    total = image("sum", 8, 8, 4)
    m.op("ADD", [a, b], [total], "AddOptions")
    pooled = image("pooled", 4, 4, 4)
    m.op("MAX_POOL_2D", [total], [pooled], "Pool2DOptions", padding="SAME", strideH=2, strideW=2, filterHeight=3,
         filterWidth=3)  # fmt: skip
    wide = image("wide", 8, 8, 4)
    m.op("RESIZE_NEAREST_NEIGHBOR", [pooled, m.constant("size", np.array([8, 8], np.int32))], [wide],
         "ResizeNearestNeighborOptions")  # fmt: skip
    joined = image("joined", 8, 8, 8)
    m.op("CONCATENATION", [wide, total], [joined], "ConcatenationOptions", axis=3)
    padded = image("padded", 9, 9, 8)
    m.op("PAD", [joined, m.constant("pads", np.array([[0, 0], [1, 0], [0, 1], [0, 0]], np.int32))], [padded])
    part = image("part", 9, 9, 4)
    ranges = [m.constant("range", np.array(v, np.int32)) for v in ([0, 0, 0, 2], [1, 9, 9, 6], [1] * 4)]
    m.op("STRIDED_SLICE", [padded, *ranges], [part], "StridedSliceOptions")
    mean = m.tensor("mean", (1, 4), kind, **scale)  # type: ignore[arg-type]
    m.op("MEAN", [part, m.constant("axes", np.array([1, 2], np.int32))], [mean], "ReducerOptions")
    given = RNG.normal(size=(1, 8, 8, 4)).astype(np.float32)
    given = np.clip(given * 30, -128, 127).astype(np.int8) if quantized else given
    return m.build([x], [mean, part]), given, [mean, part]


@pytest.mark.parametrize("quantized", [False, True])
def test_chains_of_images_are_permuted_at_their_ends_alone(quantized: bool) -> None:
    file, x, outputs = chain(quantized)
    model = from_tflite(file)
    permutes = [node for node in model.graph.nodes if node.target is aten.permute.default]
    assert len(permutes) == 2, model.code  # of the input, and of the second output
    wanted = reference(file, [x])
    for got, index in zip(model(torch.from_numpy(x)), outputs, strict=True):
        np.testing.assert_allclose(got.numpy(), wanted[index], rtol=1e-4, atol=1.01 if quantized else 1e-4)


def test_quantized_chain_is_one_region_without_transpositions(tmp_path: Path) -> None:
    file, x, outputs = chain(True)
    model = from_tflite(file)
    deployment = mera_torch.export(model, (torch.from_numpy(x),), tmp_path / "d", target="InterpreterHw")
    assert len(deployment.regions) == 1 and deployment.transposes == 0 and not deployment.host_operators
    runner = deployment.get_runner("InterpreterHw")
    wanted = reference(file, [x])
    for got, index in zip(runner(torch.from_numpy(x)), outputs, strict=True):
        np.testing.assert_array_equal(got.numpy(), wanted[index])


def test_float_models_quantize_and_compile(tmp_path: Path) -> None:
    file, x, _ = chain(False)
    model = from_tflite(file)
    rng = np.random.default_rng(2)
    batches = [(torch.from_numpy(rng.normal(size=x.shape).astype(np.float32)),) for _ in range(8)]
    quantized = mera_torch.quantize(model, batches[0], batches, progress=False)
    deployment = mera_torch.export(quantized, batches[0], tmp_path / "d", target="InterpreterHw")
    assert len(deployment.regions) == 1 and not deployment.host_operators
    got, want = deployment.get_runner("InterpreterHw")(*batches[0]), model(*batches[0])
    for a, b in zip(got, want, strict=True):
        assert float((a - b).abs().max()) < 0.05 * float(b.abs().max())


def test_models_export_and_compile_as_any_module() -> None:
    model = from_tflite(chain(False)[0])
    (x,) = model.example_inputs()
    exported = torch.export.export(model, (x,)).module()
    for a, b in zip(exported(x), model(x), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled[0], model(x)[0])


def test_uint8_models_are_int8_within() -> None:
    m = Builder()
    x = m.tensor("x", (1, 4, 4, 3), "uint8", 0.1, 128)
    y = m.tensor("y", (1, 2, 2, 3), "uint8", 0.1, 128)
    m.op("MAX_POOL_2D", [x], [y], "Pool2DOptions", padding="VALID", strideH=2, strideW=2, filterHeight=2, filterWidth=2)
    model = from_tflite(m.build([x], [y]))
    kinds = [node.args[-1] for node in model.graph.nodes if "quantize_per_tensor" in str(node.target)]
    assert kinds and set(kinds) == {torch.int8}
    assert (model.info.inputs[0].dtype, model.info.inputs[0].zero_point) == (torch.uint8, 128)


def test_documentation_lists_the_operators() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "tflite.md").read_text(encoding="utf-8")
    table = page.partition("| family | operators |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"\b[A-Z][A-Z0-9_]*[A-Z0-9]\b", table))
    assert listed == set(operators("tflite")) - set(REASONS) - {"CUSTOM"}


@pytest.mark.parametrize("dequantized", [False, True])
def test_int8_weights_of_float_models_become_float(dequantized: bool) -> None:
    """Read by the operator itself (TFLite's hybrid kernels), or through a DEQUANTIZE for each channel."""
    data = RNG.integers(-127, 128, (6, 3, 3, 4)).astype(np.int8)
    scales = RNG.uniform(0.001, 0.01, 6).astype(np.float32)
    m = Builder()
    x, y = m.tensor("x", (1, 5, 5, 4), "float32"), m.tensor("y", (1, 5, 5, 6), "float32")
    w = m.constant("w", data, scales, np.zeros(6, np.int64))
    if dequantized:
        real = m.tensor("real", data.shape, "float32")
        m.op("DEQUANTIZE", [w], [real])
        w = real
    m.op("CONV_2D", [x, w, m.constant("b", np.zeros(6, np.float32))], [y], "Conv2DOptions", **CONV)
    model = from_tflite(m.build([x], [y]))
    assert not any("quantize" in str(node.target) for node in model.graph.nodes)
    (given,) = model.example_inputs()
    weight = torch.from_numpy(data * scales.reshape(-1, 1, 1, 1)).permute(0, 3, 1, 2)
    want = torch.nn.functional.conv2d(given.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(model(given), want, rtol=1e-5, atol=1e-5)


def test_stale_scales_of_moving_operators_do_not_matter(tmp_path: Path) -> None:
    """TFLite moves the integers, whatever scale the file gives the result."""
    m = Builder()
    x = m.tensor("x", (1, 4, 4, 3), "int8", 0.1, 3)
    pooled = m.tensor("pooled", (1, 2, 2, 3), "int8", 0.1, 3)
    flat = m.tensor("flat", (1, 12), "int8", 0.2, -7)
    y = m.tensor("y", (1, 12), "int8", 0.05, 9)
    m.op("MAX_POOL_2D", [x], [pooled], "Pool2DOptions", padding="VALID", strideH=2, strideW=2, filterHeight=2,
         filterWidth=2)  # fmt: skip
    m.op("RESHAPE", [pooled, m.constant("shape", np.array([1, 12], np.int32))], [flat])
    m.op("RELU", [flat], [y])
    file = m.build([x], [y])
    given = RNG.integers(-128, 128, (1, 4, 4, 3)).astype(np.int8)
    model = from_tflite(file)
    deployment = mera_torch.export(model, (torch.from_numpy(given),), tmp_path / "d", target="InterpreterHw")
    want = reference(file, [given])[y]
    np.testing.assert_array_equal(model(torch.from_numpy(given)).numpy(), want)
    np.testing.assert_array_equal(deployment.get_runner("InterpreterHw")(torch.from_numpy(given)).numpy(), want)
