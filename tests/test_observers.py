"""Statistics of calibration and the ranges taken of them, held against plain numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mera_torch.errors import CalibrationError
from mera_torch.quant.calibration.observers import ActivationObserver, WeightObserver, affine
from mera_torch.quant.calibration.ranges import find_range, least_divergence, least_error
from mera_torch.quant.calibration.statistics import Statistics, from_arrays, joined, to_arrays
from mera_torch.quant.rules import OBSERVERS

KINDS = OBSERVERS
BINS = 128

batches = st.lists(
    st.tuples(st.integers(1, 60), st.floats(1e-6, 1e6), st.floats(-3, 3), st.integers(0, 2**31)), min_size=1, max_size=5
)


def tensors(described: list[tuple[int, float, float, int]]) -> list[torch.Tensor]:
    """Normal values of the described (count, spread, mean in spreads, seed)."""
    return [
        (torch.randn(n, generator=torch.Generator().manual_seed(seed)) + mean) * spread
        for n, spread, mean, seed in described
    ]


def seen(*data: torch.Tensor, bins: int = BINS) -> Statistics:
    held = Statistics(bins)
    for x in data:
        held.update(x)
    return held


def same(a: Statistics, b: Statistics, but: tuple[str, ...] = ()) -> bool:
    return all(np.array_equal(a.to_arrays()[key], b.to_arrays()[key]) for key in a.to_arrays() if key not in but)


# ---- statistics ----


@settings(deadline=None, max_examples=40)
@given(batches, st.permutations(range(5)), st.integers(0, 5))
def test_any_order_and_any_parts_give_the_same_but_for_the_moving_average(
    described: Any, order: list[int], cut: int
) -> None:
    data = tensors(described)
    whole = seen(*data)
    shuffled = [data[i] for i in order if i < len(data)]
    assert same(whole, seen(*shuffled), but=("average", "total"))
    np.testing.assert_allclose(whole.total, seen(*shuffled).total, rtol=1e-9)
    parts = seen(*shuffled[:cut])
    parts.merge(seen(*shuffled[cut:]))
    assert same(whole, parts, but=("average", "total"))
    together = seen(torch.cat(data))
    assert np.array_equal(together.counts, whole.counts) and together.exponent == whole.exponent


def test_automatic_ranges_are_the_narrower_of_two_for_maps_and_of_least_error_for_vectors() -> None:
    usual, odd = torch.linspace(-1, 1, 4096).view(1, 4, 32, 32), torch.zeros(1, 4, 32, 32)
    odd[0, 0, 0, 0] = 9.0
    maps = seen(*[usual] * 7, odd)
    np.testing.assert_allclose(find_range(maps, "mean"), (-7 / 8, 2.0))
    (low, high), error = find_range(maps, "auto"), find_range(maps, "histogram")
    assert (low, high) == (max(error[0], -7 / 8), min(error[1], 2.0)) and high <= 2.0
    vectors = seen(*[usual.view(4096, 1)] * 7, odd.view(4096, 1))
    assert vectors.positions == 1 and find_range(vectors, "auto") == find_range(vectors, "histogram")
    assert seen(torch.rand(2, 5, 1, 1)).positions == 1 and seen(torch.rand(1, 9, 6)).positions == 9
    assert joined([maps, seen(torch.rand(1, 4096, 1, 1))]).positions == 1


@settings(deadline=None, max_examples=30)
@given(batches, st.integers(0, 5), st.integers(0, 5))
def test_merging_in_order_gives_the_moving_average_of_the_whole(described: Any, a: int, b: int) -> None:
    data = tensors(described)
    i, j = sorted((min(a, len(data)), min(b, len(data))))
    one, two, three = (seen(*part) for part in (data[:i], data[i:j], data[j:]))
    right, left, whole = two.copy(), one.copy(), one.copy()
    right.merge(three)
    for part in (two, three):
        left.merge(part)
    whole.merge(right)
    for total in (left, whole):
        np.testing.assert_allclose(total.average, seen(*data).average, rtol=1e-9, atol=1e-12)


def test_values_of_one_quantization_have_the_furthest_of_their_means_and_averages() -> None:
    wide, narrow = seen(*[torch.tensor([-10.0, 5.0])] * 4), seen(*[torch.tensor([-0.1, 6.0])] * 4)
    for several in ([wide, narrow], [narrow, wide]):
        both = joined(several)
        for kind in ("mean", "moving_average", "minmax"):
            np.testing.assert_allclose(find_range(both, kind), (-10.0, 6.0), rtol=1e-6)
        assert both.elements == 16 and wide.elements == narrow.elements == 8


@settings(deadline=None, max_examples=40)
@given(batches)
def test_the_histogram_holds_every_element_in_its_bin(described: Any) -> None:
    values = torch.cat(tensors(described))
    held = seen(*tensors(described))
    assert held.counts.sum() == held.elements == len(values)
    assert (held.low, held.high) == (float(values.min()), float(values.max()))
    wanted, _ = np.histogram(values.double().numpy(), held.edges())
    assert np.array_equal(wanted, held.counts)
    largest = float(values.abs().max())
    assert largest / held.width >= BINS or largest < 1e-25  # at least so many bins on the larger side


@settings(deadline=None, max_examples=30)
@given(batches)
def test_stored_and_loaded_is_the_same(described: Any) -> None:
    held = {"a": seen(*tensors(described)), "b.c/d": seen(torch.ones(2, 3, 4, 4)), "none": Statistics(BINS)}
    loaded = from_arrays(to_arrays(held))
    assert loaded.keys() == held.keys() and all(same(held[name], loaded[name]) for name in held)
    more = torch.arange(-3.0, 3.0)
    for each in (held, loaded):
        each["a"].update(more)
    assert same(held["a"], loaded["a"])


def test_channels_and_layouts() -> None:
    x = torch.randn(2, 5, 7, 3)
    held = seen(x)
    assert (held.low, held.high, held.positions) == (float(x.min()), float(x.max()), 21)
    for other in (x.to(memory_format=torch.channels_last), x.permute(0, 1, 3, 2), x.expand(2, 5, 7, 3)):
        assert np.array_equal(seen(other).counts, held.counts)
    assert [seen(torch.randn(shape)).positions for shape in ((4, 6), (2, 9, 6), (2, 3, 4, 5, 6), ())] == [1, 9, 360, 1]
    scalar = seen(torch.tensor(2.5))
    assert (scalar.low, scalar.high, scalar.elements) == (2.5, 2.5, 1)
    assert seen(torch.zeros(0)).batches == 0


@pytest.mark.parametrize("extreme", [1e-40, 1e-30, 3e38, 0.0])
def test_extreme_magnitudes(extreme: float) -> None:
    held = seen(torch.tensor([extreme, -extreme / 2, 0.0]))
    assert held.counts.sum() == 3
    held.update(torch.tensor([1.0]))
    assert held.counts.sum() == 4
    for kind in KINDS:
        assert all(map(math.isfinite, find_range(held, kind)))


def test_what_is_not_finite_is_counted() -> None:
    x = torch.randn(10)
    x[2], x[3], x[4] = math.nan, math.nan, -math.inf
    with pytest.raises(CalibrationError, match="holds NaN in 2 and infinity in 1 of 10 elements"):
        seen(x)


def test_damaged_arrays_and_unlike_statistics_are_told() -> None:
    good = to_arrays({"conv": seen(torch.randn(50))})
    for key, array in good.items():
        with pytest.raises(CalibrationError, match="'conv'.*damaged"):
            from_arrays({name: held for name, held in good.items() if name != key})
        if "channel" not in key:
            with pytest.raises(CalibrationError, match="'conv'.*damaged"):
                from_arrays({**good, key: array[:-1]})
    for key, value in {
        "conv/histogram": np.array([1 << 40, 0, 0]),
        "conv/counts": -good["conv/counts"],
        "conv/extremes": np.array([math.nan, 1.0]),
        "conv/seen": np.array([-1, 50]),
    }.items():
        with pytest.raises(CalibrationError, match="damaged"):
            from_arrays({**good, key: value})
    with pytest.raises(CalibrationError, match="histogram_bins"):
        seen(torch.ones(1)).merge(Statistics(4096))


# ---- ranges ----


@settings(deadline=None, max_examples=40)
@given(batches, st.sampled_from(KINDS), st.booleans())
def test_every_range_contains_zero_and_stays_within_the_extremes(described: Any, kind: str, symmetric: bool) -> None:
    held = seen(*tensors(described))
    low, high = find_range(held, kind, symmetric=symmetric)
    if kind == "headroom":
        low, high = low / 1.25, high / 1.25
    slack = 1e-9 * max(abs(low), abs(high))
    if symmetric:
        assert low == -high and high <= max(-held.low, held.high) + slack
    else:
        assert min(held.low, 0.0) - slack <= low <= 0.0 <= high <= max(held.high, 0.0) + slack
    scale, zero_point = affine(low, high, symmetric)
    assert scale > 0 and -128 <= zero_point <= 127 and (zero_point == 0 or not symmetric)


@settings(deadline=None, max_examples=30)
@given(batches, st.floats(90, 100))
def test_percentile_is_numpys_to_the_width_of_a_bin(described: Any, percentile: float) -> None:
    values = torch.cat(tensors(described)).double().numpy()
    held = seen(*tensors(described))
    rare = (100 - percentile) / 2
    low, high = np.percentile(values, [rare, 100 - rare], method="inverted_cdf")
    got = find_range(held, "percentile", percentile=percentile)
    # The value at a rank, or the next: a rank that is nearly whole may round to either side.
    apart = held.width * (1 + 1e-6)
    ordered = np.sort(values)
    for wanted, found, side in ((low, got[0], min), (high, got[1], max)):
        at = int(np.searchsorted(ordered, wanted))
        near = ordered[max(at - 1, 0) : at + 2]
        assert any(abs(side(v, 0.0) - found) <= apart for v in near) or near[0] - apart <= found <= near[-1] + apart
    magnitude = np.percentile(np.abs(values), percentile, method="inverted_cdf")
    ordered = np.sort(np.abs(values))
    at = int(np.searchsorted(ordered, magnitude))
    found = find_range(held, "percentile", percentile=percentile, symmetric=True)[1]
    assert ordered[max(at - 1, 0)] - apart <= found <= ordered[min(at + 1, len(ordered) - 1)] + apart


def test_percentile_of_many_values() -> None:
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    held = seen(x, bins=2048)
    for percentile in (99.0, 99.9, 99.99):
        rare = (100 - percentile) / 2
        low, high = np.percentile(x.double().numpy(), [rare, 100 - rare])
        got = find_range(held, "percentile", percentile=percentile)
        assert abs(got[0] - low) < 2 * held.width and abs(got[1] - high) < 2 * held.width
    assert find_range(held, "percentile", percentile=100.0) == find_range(held, "minmax")
    assert find_range(held, "headroom") == tuple(1.25 * extreme for extreme in find_range(held, "minmax"))


def rounded(x: np.ndarray, scale: float, zero: float) -> np.ndarray:
    return (np.clip(np.rint(x / scale + zero), -128, 127) - zero) * scale


@pytest.mark.parametrize("relu", [False, True])
def test_least_error_is_the_histograms(relu: bool) -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1)) * 3
    held = seen(x.relu() if relu else x, bins=2048)
    used = held.counts.nonzero()[0]
    centres = (used - held.side + 0.5) * held.width
    scales, zeros = np.array([0.01, 0.05, 0.09, 0.3]), np.array([-128.0, 3.0, 0.0, 100.0])
    wanted = [
        ((rounded(centres, s, z) - centres) ** 2 * held.counts[used]).sum() for s, z in zip(scales, zeros, strict=True)
    ]
    np.testing.assert_allclose(least_error(held)(scales, zeros), wanted, rtol=1e-6)


def divergence_oracle(held: Statistics, scale: float, zero: float) -> float:
    """D(P || Q) of the definition in `least_divergence`, loop by loop."""
    counts, width = held.counts.astype(float), held.width
    used = np.flatnonzero(counts)
    span = used[-1] - used[0] + 1
    while span > max(512, held.elements / 64):
        counts, width, span = counts[0::2] + counts[1::2], 2 * width, span // 2
    side = len(counts) // 2
    counts[side - 1], counts[side] = counts[side - 2], counts[side + 1]
    centres = (np.arange(len(counts)) - side + 0.5) * width
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    inside = (centres >= low) & (centres < high)
    p = counts[inside].copy()
    q_counts = counts[inside]
    levels = np.clip(np.floor(centres[inside] / scale + zero + 0.5), -128, 127)
    p[0] += counts[centres < low].sum()
    p[-1] += counts[centres >= high].sum()
    q = np.zeros_like(p)
    for level in np.unique(levels):
        cell = (levels == level) & (q_counts > 0)
        if cell.any():
            q[cell] = q_counts[cell].mean()
    p, q = p / p.sum(), q / q.sum()
    if (q[p > 0] == 0).any():
        return math.inf
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


@pytest.mark.parametrize("shape", ["normal", "relu", "outlier", "few"])
def test_least_divergence_is_the_definitions(shape: str) -> None:
    x = torch.randn(300 if shape == "few" else 200_000, generator=torch.Generator().manual_seed(2))
    if shape == "relu":
        x = x.relu()
    if shape == "outlier":
        x[0] = 40.0
    held = seen(x, bins=2048)
    tried = [(-t * (shape != "relu"), t) for t in (0.3, 1.0, 2.5, 3.3, 4.0, 60.0)]
    for symmetric in (False, True):
        for low, high in tried:
            scale, zero = affine(min(low, -high if symmetric else low), high, symmetric)
            got = float(least_divergence(held)(np.array([scale]), np.array([float(zero)]))[0])
            assert got == pytest.approx(divergence_oracle(held, scale, zero), rel=1e-6, abs=1e-9)


def test_entropy_clips_a_lone_outlier_and_relus_zeros_do_not_draw_it() -> None:
    x = torch.randn(500_000, generator=torch.Generator().manual_seed(0))
    assert 2.5 < find_range(seen(x.relu(), bins=2048), "entropy")[1] < 5
    x[0] = 50.0
    assert 2.5 < find_range(seen(x, bins=2048), "entropy")[1] < 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 5.0, -0.001])
def test_constant_values_are_represented(kind: str, symmetric: bool, value: float) -> None:
    low, high = find_range(seen(torch.full((100,), value)), kind, symmetric=symmetric)
    scale, zero = affine(low, high, symmetric)
    assert abs(float(rounded(np.array([value]), scale, zero)[0]) - value) <= scale / 2 + 1e-6


# ---- observers ----


def test_the_kind_is_chosen_after_the_data() -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    observer = ActivationObserver("minmax")
    observer(x)
    ranges = set()
    for kind in KINDS:
        observer.kind, observer._found = kind, None
        fresh = ActivationObserver(kind)
        fresh(x)
        assert observer.range() == fresh.range()
        ranges.add(fresh.range())
    assert len(ranges) >= 4


def test_values_of_one_group_have_the_range_of_all() -> None:
    a = ActivationObserver("minmax")
    b = a.twin()
    a(torch.tensor([-1.0, 2.0]))
    with pytest.raises(CalibrationError, match="never seen"):
        a.calculate_qparams()
    b(torch.tensor([-7.0, 1.0]))
    assert a.range() == b.range() == (-7.0, 2.0)
    a(torch.tensor([9.0]))
    assert b.range() == (-7.0, 9.0)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 40), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_weights_of_least_error(channels: int, each: int, per_channel: bool, symmetric: bool, seed: int) -> None:
    weight = torch.randn(channels, each, generator=torch.Generator().manual_seed(seed)) ** 3
    scheme = {
        (True, True): torch.per_channel_symmetric, (True, False): torch.per_channel_affine,
        (False, True): torch.per_tensor_symmetric, (False, False): torch.per_tensor_affine,
    }[per_channel, symmetric]  # fmt: skip

    def error(kind: str) -> torch.Tensor:
        observer = WeightObserver(qscheme=scheme, kind=kind, quant_min=-127 if symmetric else -128)
        observer(weight)
        scale, zero = observer.calculate_qparams()
        assert (scale > 0).all() and (zero.abs() <= 128).all() and (not symmetric or not zero.any())
        q = (weight / scale[:, None] + zero[:, None]).round().clamp(observer.quant_min, 127)
        squares = ((q - zero[:, None]) * scale[:, None] - weight).square()
        return squares.sum(1) if per_channel else squares.sum()[None]

    best, plain = error("mse"), error("minmax")
    assert (best <= plain * (1 + 1e-4) + 1e-12).all()


def test_an_outlier_among_weights_is_clipped() -> None:
    weight = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = 8.0
    observer = WeightObserver(kind="mse")
    observer(weight)
    assert float(observer.calculate_qparams()[0]) < 0.75 * 8 / 127
