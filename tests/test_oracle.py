"""The oracle against torch's float formulas (at most 1 step apart), its arithmetic against exact rational numbers."""

from __future__ import annotations

import random
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from formulas import quantized
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import OPERATORS, graphs, random_graph, random_inputs

from mera_torch import oracle
from mera_torch.errors import InvalidModelError

INT32 = st.integers(-(2**31), 2**31 - 1)


def check_against_formulas(graph: oracle.Graph, seed: int) -> None:
    values = oracle.run_all(graph, random_inputs(graph, seed))
    for node in graph.nodes:
        wanted = quantized(graph, node, [values[i] for i in node.inputs]).numpy()
        apart = np.abs(values[node.output].astype(np.int64) - wanted).max()
        assert apart <= 1, f"{node} is {apart} steps from the float formula"


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("seed", range(3))
def test_each_kind_is_within_a_step_of_its_formula(kind: str, seed: int) -> None:
    check_against_formulas(random_graph(random.Random(f"{kind} {seed}"), 3, [kind]), seed)


@settings(max_examples=30, deadline=None)
@given(graphs(), st.integers(0, 1000))
def test_random_graphs_are_within_a_step_of_their_formulas(graph: oracle.Graph, seed: int) -> None:
    check_against_formulas(graph, seed)


# ---- requantization, against exact rational arithmetic ----


def half_up(x: Fraction) -> int:
    return floor(x + Fraction(1, 2))


def half_away(x: Fraction) -> int:
    return half_up(x) if x >= 0 else -half_up(-x)


def rounded_twice(x: int, multiplier: int, shift: int) -> int:
    """To the nearest at 2^-31 (ties up), then at 2^shift (ties away from zero)."""
    left = max(shift, 0)
    wrapped = (x * 2**left + 2**31) % 2**32 - 2**31
    return half_away(Fraction(half_up(Fraction(wrapped * multiplier, 2**31))) / 2 ** max(-shift, 0))


@given(INT32, st.integers(2**30, 2**31 - 1), st.integers(-31, 30))
@settings(max_examples=500)
def test_apply_scale_rounds_twice(x: int, multiplier: int, shift: int) -> None:
    assert oracle.apply_scale(np.array([x], np.int64), multiplier, shift) == rounded_twice(x, multiplier, shift)


@given(st.integers(1 - 2**30, 2**30 - 1), st.floats(2.0**-24, 1.0))  # a factor of 1 shifts left by one
def test_rescale_is_within_one_of_the_real_product(x: int, real: float) -> None:
    exact = x * Fraction(real)
    assert abs(oracle.rescale(np.array(x), real).item() - exact) <= 1 + abs(exact) / 2**30


@given(st.floats(2.0**-31, 2.0**29))
def test_quantize_multiplier_has_31_bits(real: float) -> None:
    multiplier, shift = (int(v) for v in oracle.quantize_multiplier(real))
    assert 2**30 <= multiplier < 2**31
    assert abs(Fraction(multiplier) * Fraction(2) ** (shift - 31) - Fraction(real)) <= Fraction(real) / 2**31


@pytest.mark.parametrize(
    ("real", "wanted"),
    [
        (0.0, (0, 0)),
        (1.0, (2**30, 1)),
        (0.5, (2**30, 0)),
        (1.0 - 2.0**-40, (2**30, 1)),  # the fraction rounds up to 2^31 and is normalized
        (2.0**-33, (0, 0)),
        (2.0**40, (2**31 - 1, 30)),
    ],
)
def test_quantize_multiplier_at_the_edges(real: float, wanted: tuple[int, int]) -> None:
    assert tuple(int(v) for v in oracle.quantize_multiplier(real)) == wanted


# ---- by hand ----


def one_node(
    op: str, attrs: dict[str, int], x: oracle.Array, shape: tuple[int, int, int, int], zero: int = 0
) -> oracle.Int8:
    tensors = [oracle.Tensor("x", x.shape, "int8", (1.0,), (zero,)), oracle.Tensor("y", shape, "int8", (1.0,), (zero,))]
    graph = oracle.Graph("one", tensors, [oracle.Node(op, op, (0,), 1, attrs)], [0], [1])
    return oracle.run(graph, [x.astype(np.int8)])[0]


POOL = {f"{a}_{d}": v for a, v in (("kernel", 2), ("stride", 2)) for d in "hw"}
POOL |= {"pad_top": 1, "pad_left": 1, "pad_bottom": 0, "pad_right": 0, "clamp_min": -128, "clamp_max": 127}


def test_average_counts_padding_only_if_asked() -> None:
    x = np.array([[-7, 5], [9, 3]]).reshape(1, 2, 2, 1)
    excluded = one_node("avg_pool2d", {**POOL, "count_include_pad": 0}, x, (1, 1, 1, 1), zero=4)
    included = one_node("avg_pool2d", {**POOL, "count_include_pad": 1}, x, (1, 1, 1, 1), zero=4)
    assert excluded.item() == -7
    assert included.item() == 1  # (-7 + 3 * 4) / 4


def test_average_does_not_count_what_a_window_reaches_beyond_the_padding() -> None:
    x = np.array([1, 2, 6]).reshape(1, 1, 3, 1)
    attrs = {**POOL, "kernel_h": 1, "pad_top": 0, "pad_left": 0, "count_include_pad": 1}
    assert one_node("avg_pool2d", attrs, x, (1, 1, 2, 1)).flatten().tolist() == [2, 6]  # 1.5 rounds away from zero


def test_max_pool_never_takes_padding() -> None:
    attrs = {**POOL, "dilation_h": 1, "dilation_w": 1}
    x = np.full((1, 2, 2, 1), -128)
    assert one_node("max_pool2d", attrs, x, (1, 1, 1, 1)).item() == -128


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(InvalidModelError, match="transpose.*declared"):
        one_node("transpose", {f"perm_{i}": i for i in range(4)}, np.zeros((1, 2, 3, 4)), (1, 3, 2, 4))


def test_a_wrong_input_is_named() -> None:
    tensor = oracle.Tensor("x", (1, 1, 1, 2), "int8", (1.0,), (0,))
    graph = oracle.Graph("g", [tensor], [], [0], [0])
    with pytest.raises(InvalidModelError, match="input x"):
        oracle.run(graph, [np.zeros((1, 1, 1, 3), np.int8)])
    with pytest.raises(InvalidModelError, match="1 inputs, got 0"):
        oracle.run(graph, [])
