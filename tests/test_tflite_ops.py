"""Every operator of tflite_cases.py against TFLite's reference kernels: the FX graph, and what is compiled from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tflite")
from tflite_cases import CASES
from tflite_models import ReferenceFailed, Values, references

from mera_torch.backend.capture import capture
from mera_torch.backend.runtime import last_uses, on, run_steps
from mera_torch.compile import Built, build, settings_of
from mera_torch.converters import from_tflite
from mera_torch.converters.tflite.reader import load

WITHOUT_REFERENCE = ("CEIL", "ROUND", "BROADCAST_TO")  # not among the reference kernels: checked against NumPy
ON_DNA = (
    "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "MAX_POOL_2D", "AVERAGE_POOL_2D", "MEAN",
    "RELU", "RELU6", "LOGISTIC", "TANH", "HARD_SWISH", "SOFTMAX", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "PAD",
)  # fmt: skip
"""Operators that leave nothing but the border to the host."""
BORDER = ("aten._to_copy.default", "aten.sub.Tensor", "aten.add.Tensor", "aten.permute.default")
"""What turns uint8 into int8, and a lone image into channels first."""


@pytest.fixture(scope="module")
def results() -> dict[str, Values | ReferenceFailed]:
    """What TFLite computes, from one process."""
    return dict(zip(CASES, references([case.build() for case in CASES.values()]), strict=True))


def outputs_of(built: Built, target: str, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    steps = run_steps(built.graph, built.regions, on(target), list(inputs), last_uses(built.graph, built.regions))
    return [value.numpy() for value in steps]


def listed(value: Any) -> list[np.ndarray]:
    return [v.numpy() for v in ([value] if isinstance(value, torch.Tensor) else value)]


@pytest.mark.parametrize("name", CASES)
def test_equals_reference(name: str, results: dict[str, Values | ReferenceFailed]) -> None:
    file, arrays = CASES[name].build()
    wanted = results[name]
    if isinstance(wanted, ReferenceFailed):
        assert CASES[name].code in WITHOUT_REFERENCE, wanted
        from_tflite(file)
        return
    truth = [wanted[i] for i in load(file).outputs]
    model = from_tflite(file)
    inputs = tuple(torch.from_numpy(np.array(x)) for x in arrays)
    for got, want in zip(listed(model(*inputs)), truth, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        if want.dtype.kind == "f":
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        else:
            step = 1 if want.dtype.itemsize < 4 and want.dtype.kind != "b" else 0
            assert np.abs(got.astype(np.int64) - want.astype(np.int64)).max(initial=0) <= step
    if not any(want.dtype in (np.int8, np.uint8) for want in truth):
        return
    built = build(capture(model, inputs), settings_of("SAKURA_1", "InterpreterHw", None))
    for got, want in zip(outputs_of(built, "InterpreterHw", inputs), truth, strict=True):
        np.testing.assert_array_equal(got, want)
    if CASES[name].code in ON_DNA:
        assert built.regions
        assert {str(step.target) for step in built.graph.steps if step.region < 0} <= set(BORDER)


@pytest.mark.parametrize("code", ["CEIL", "ROUND"])
def test_rounding_functions(code: str) -> None:
    case = CASES[f"float {code}"]
    file, (x,) = case.build()
    want = np.ceil(x) if code == "CEIL" else np.round(x)  # halves to even
    np.testing.assert_array_equal(from_tflite(file)(torch.from_numpy(x)).numpy(), want)
