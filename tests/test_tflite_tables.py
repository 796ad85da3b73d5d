"""The tables of int8 functions equal TFLite's reference kernels for all 256 inputs, over many scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tflite")
from tflite_models import Builder, ReferenceFailed, references

from mera_torch.converters.tflite import tables
from mera_torch.converters.tflite.context import QParams

CASES = 60  # scales, each operator
INT8 = np.arange(-128, 128, dtype=np.int8)

OPTIONS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "GELU": ("GeluOptions", {"approximate": False}),
    "GELU tanh": ("GeluOptions", {"approximate": True}),
    "LEAKY_RELU": ("LeakyReluOptions", {"alpha": 0.1}),
    "LEAKY_RELU steep": ("LeakyReluOptions", {"alpha": 1.7}),
    "LEAKY_RELU negative": ("LeakyReluOptions", {"alpha": -0.3}),
}
FILLS: dict[str, Any] = {
    **{name: fill for name, fill in tables.FUNCTIONS.items() if name != "ELU"},  # has no reference kernel
    "QUANTIZE": tables.requantize,
    "RELU": lambda x, y: tables.relu(x, y, 0.0, None),
    "RELU6": lambda x, y: tables.relu(x, y, 0.0, 6.0),
    "RELU_N1_TO_1": lambda x, y: tables.relu(x, y, -1.0, 1.0),
    "RELU_0_TO_1": lambda x, y: tables.relu(x, y, 0.0, 1.0),
    "GELU": lambda x, y: tables.gelu(x, y, False),
    "GELU tanh": lambda x, y: tables.gelu(x, y, True),
    **{
        name: lambda x, y, alpha=fields["alpha"]: tables.leaky_relu(x, y, alpha)
        for name, (_, fields) in OPTIONS.items()
        if name.startswith("LEAKY")
    },
}
POSITIVE = ("SQRT", "RSQRT")  # TFLite refuses what is below 0


def scales(name: str, rng: np.random.Generator) -> tuple[QParams, QParams]:
    """Random ones, and those that TFLite asks for."""
    x, y = (float(np.float32(np.exp(rng.uniform(np.log(1e-4), np.log(0.5))))) for _ in range(2))
    zeros = [int(z) for z in rng.integers(-128, 128, 2)]
    if rng.random() < 0.2:
        y = x
    if name == "LOGISTIC":
        y, zeros[1] = 1 / 256, -128
    if name in POSITIVE:
        zeros[0] = -128
    if name == "HARD_SWISH":
        y = float(np.float32(x * np.exp(rng.uniform(-1, 2))))
    return tuple(QParams(s, z, -128, 127, torch.int8) for s, z in zip((x, y), zeros, strict=True))  # type: ignore[return-value]


def model(name: str, x: QParams, y: QParams) -> bytes:
    m = Builder()
    a, b = (m.tensor(n, (1, 256), "int8", q.scale, q.zero_point) for n, q in (("x", x), ("y", y)))
    options, fields = OPTIONS.get(name, (None, {}))
    m.op(name.split()[0], [a], [b], options, **fields)
    return m.build([a], [b])


def test_elu_is_expm1_below_zero() -> None:
    x, y = QParams(0.05, 3, -128, 127, torch.int8), QParams(0.04, -100, -128, 127, torch.int8)
    real = 0.05 * (INT8.astype(np.float64) - 3)
    wanted = np.where(real < 0, np.expm1(real), real) / 0.04 - 100
    assert np.abs(tables.FUNCTIONS["ELU"](x, y) - np.clip(wanted, -128, 127)).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("name", sorted(FILLS))
def test_equals_reference_kernel(name: str) -> None:
    rng = np.random.default_rng(sum(map(ord, name)))
    pairs = [scales(name, rng) for _ in range(CASES)]
    results = references([(model(name, *pair), [INT8[None]]) for pair in pairs])
    compared = 0
    for (x, y), result in zip(pairs, results, strict=True):
        if isinstance(result, ReferenceFailed):
            assert name == "HARD_SWISH", result  # the only one that refuses some scales
            continue
        compared += 1
        np.testing.assert_array_equal(FILLS[name](x, y), result[1][0], err_msg=f"{name} {x} {y}")
    assert compared > CASES // 2
