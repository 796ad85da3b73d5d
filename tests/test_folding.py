"""What becomes DNA operators, exactly: each case against TFLite's integer arithmetic, written out here once more."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compiled import built, run
from torch import Tensor, nn

from mera_torch import native
from mera_torch.compile import Built

q = torch.ops.quantized_decomposed
QParams = tuple[float, int]
RANGE = {torch.int8: (-128, 127), torch.uint8: (0, 255)}


class Of(nn.Module):
    """A module of one function of its inputs and constants."""

    def __init__(self, function: Callable[..., Any], **constants: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in constants.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, **dict(self.named_buffers()))


def f32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


def dq(x: Tensor, scale: float, zero: int) -> Tensor:
    low, high = RANGE.get(x.dtype, (-(2**31), 2**31 - 1))
    return q.dequantize_per_tensor(x, f32(scale), zero, low, high, x.dtype)


def qu(x: Tensor, scale: float, zero: int, dtype: torch.dtype = torch.int8) -> Tensor:
    return q.quantize_per_tensor(x, f32(scale), zero, *RANGE[dtype], dtype)


def dq_channel(w: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    low, high = RANGE.get(w.dtype, (-(2**31), 2**31 - 1))
    return q.dequantize_per_channel(w, scale, zero, axis, low, high, w.dtype)


def integers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.int8) -> Tensor:
    low, high = RANGE[dtype]
    return torch.randint(low, high + 1, shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def rescale(acc: Tensor, real: float) -> Tensor:
    """TFLite's MultiplyByQuantizedMultiplier of int64 `acc`, which must hold int32."""
    multiplier, shift = native.quantize_multiplier(real)
    left, right = max(shift, 0), max(-shift, 0)
    product = (acc << left) * multiplier
    nudge = torch.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = torch.div(product + nudge, 1 << 31, rounding_mode="trunc")
    mask, threshold = (1 << right) - 1, ((1 << right) - 1) >> 1
    return (high >> right) + ((high & mask) > threshold + (high < 0).long()).long()


def saturated(acc: Tensor, zero: int) -> Tensor:
    return (acc + zero).clamp(-128, 127).to(torch.int8)


def dna(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, list[str], Built]:
    """The first output, of which everything is one region; the DNA operators; the build."""
    result = built(module.eval(), *inputs)
    assert len(result.regions) == 1, str(result.explanation)
    host = [row for row in result.explanation.rows if row.where == "host"]
    assert not host, str(result.explanation)
    return run(result, *inputs)[0], [node.op for node in result.regions[0].graph.nodes], result


# ---- tables that the model spells out ----


def lookup(x: Tensor, table: Tensor) -> Tensor:
    return table[x.long() + 128]


def test_lookup_is_a_table() -> None:
    x, table = integers(1, 3, 5, 4), integers(256, seed=1)
    y, ops, _ = dna(Of(lookup, table=table), x)
    assert torch.equal(y, lookup(x, table)) and ops == ["lut"]


def test_lookup_takes_the_quantization_of_its_reader() -> None:
    x, table = integers(1, 3, 5, 4), integers(256, seed=1)

    def model(x: Tensor, table: Tensor) -> Tensor:
        moved = lookup(x.permute(0, 3, 1, 2), table).permute(0, 2, 3, 1)
        return qu(dq(moved, 0.1, 3) + dq(x, 0.2, -5), 0.25, 1)

    y, ops, result = dna(Of(model, table=table), x)
    assert ops == ["lut", "add"] and result.transposes == 0
    assert (y.int() - model(x, table).int()).abs().max() <= 1
    assert [t.scale for t in result.regions[0].graph.tensors if t.name.startswith("index")][0] == f32(0.1)


@pytest.mark.parametrize("spelled", [torch.take, lambda t, i: t[i.to(torch.int32)]], ids=["take", "int32"])
def test_other_spellings_of_a_lookup(spelled: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, table = integers(2, 7), integers(256, seed=1)
    y, ops, _ = dna(Of(lambda x, table: spelled(table, x.long() + 128), table=table), x)
    assert torch.equal(y, lookup(x, table)) and ops == ["lut"]


def test_integer_arithmetic_on_one_value_is_a_table() -> None:
    def model(x: Tensor) -> Tensor:
        wide = x.to(torch.int32) + 3
        return torch.where(wide >= 0, wide, (wide * 5) >> 3).clamp(-128, 127).to(torch.int8)

    x = integers(3, 50)
    y, ops, _ = dna(Of(model), x)
    assert torch.equal(y, model(x)) and ops == ["lut"]


def test_lookup_beyond_its_table_stays_on_the_host() -> None:
    result = built(Of(lookup, table=integers(255)), integers(1, 4).clamp(max=100))
    assert not result.regions and any("cannot be tabulated" in r for r in result.explanation.counts_by_reason())


def test_chain_of_lookups_is_one_table() -> None:
    x, table = integers(1, 40), integers(256, seed=1)
    y, ops, _ = dna(Of(lambda x, table: lookup(lookup(x, table).reshape(2, 20), table), table=table), x)
    assert torch.equal(y, lookup(lookup(x, table), table).reshape(2, 20)) and ops == ["lut", "lut"]


# ---- uint8 ----


def test_uint8_model_from_end_to_end() -> None:
    def model(x: Tensor, w: Tensor, table: Tensor) -> Tensor:
        y = qu(F.conv2d(dq(x, 0.02, 120), dq(w, 0.01, 140)), 0.1, 110, torch.uint8)
        return table[y.permute(0, 2, 3, 1).to(torch.int32)]

    x, w = integers(1, 3, 6, 5, dtype=torch.uint8), integers(4, 3, 2, 2, seed=1, dtype=torch.uint8)
    table = integers(256, seed=2, dtype=torch.uint8)
    result = built(Of(model, w=w, table=table), x)
    assert len(result.regions) == 1
    host = {row.op for row in result.explanation.rows if row.where == "host"}
    (y,) = run(result, x)
    acc = F.conv2d(x.double() - 120, w.double() - 140).long()
    levels = saturated(rescale(acc, f32(0.02) * f32(0.01) / f32(0.1)), 110 - 128).int() + 128
    assert torch.equal(y, table[levels.permute(0, 2, 3, 1)]), host


def test_uint8_image_that_the_host_scales_is_left_alone() -> None:
    x = integers(1, 3, 6, 5, dtype=torch.uint8)
    result = built(Of(lambda x: dq(qu(x.float() / 255, 1 / 255, -128), 1 / 255, -128).relu()), x)
    assert "aten.bitwise_xor.Scalar" not in {row.op for row in result.explanation.rows}


# ---- weights ----


CONVOLUTIONS = [
    # dtype, zero points from, to, per channel
    (torch.int8, 0, 0, True), (torch.int8, -3, 4, True), (torch.int8, -90, 90, True), (torch.uint8, 128, 128, False),
    (torch.uint8, 100, 151, True), (torch.uint8, 0, 255, True), (torch.uint8, 117, 117, False),
]  # fmt: skip


def some_weight(rng: random.Random, shape: list[int], axis: int, kind: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(levels, scales, zero points), the latter per channel of `axis`, or with one element."""
    dtype, low, high, per_channel = kind
    seed = rng.randrange(1 << 30)
    count = shape[axis] if per_channel else 1
    scale = torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 0.02 + 0.001
    zero = torch.tensor([rng.randint(low, high) for _ in range(count)])
    return integers(*shape, seed=seed, dtype=dtype), scale, zero


def of_weight(axis: int, scale: Tensor, zero: Tensor, per_channel: bool) -> Callable[..., Tensor]:
    """How a model dequantizes a weight: by its buffers, or by one scale and zero point that it has as numbers."""
    one, level = float(scale[0]), int(zero[0])
    if not per_channel:
        return lambda w, *_: dq(w, one, level)
    return lambda w, scale, zero: dq_channel(w, scale, zero, axis)


def rounded(acc: Tensor, real: float) -> Tensor:
    """TFLite's FULLY_CONNECTED: the product in float64, rounded half away from zero."""
    product = acc.double() * real
    return (product.sign() * (product.abs() + 0.5).floor()).long()


def convolved(
    acc: Tensor, bias: Tensor, scale: Tensor, sx: float, sy: float, zy: int,
    rescale: Callable[[Tensor, float], Tensor] = rescale,
) -> Tensor:  # fmt: skip
    """acc [N,C,...] int64 of an ordinary sum, scale [1] or [C]."""
    rows = [
        rescale(acc[:, c] + bias[c].long(), f32(sx) * float(scale[c % len(scale)]) / f32(sy))
        for c in range(acc.shape[1])
    ]
    return saturated(torch.stack(rows, 1), zy)


@pytest.mark.parametrize("kind", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_convolution_with_any_zero_points(kind: Any, seed: int) -> None:
    rng = random.Random(f"{seed}{kind}")
    groups = rng.choice([1, 1, 2, 6])
    kernel, stride, padding, dilation = ((rng.randint(1, 3), rng.randint(1, 3)) for _ in range(4))
    rank = rng.choice([3, 4])
    outputs = groups * rng.randint(1, 3)
    if rank == 3:
        kernel, stride, padding, dilation = ((v[0],) for v in (kernel, stride, padding, dilation))
    x = integers(rng.randint(1, 2), 6, *[11, 9][: rank - 2], seed=seed)
    w, scale, zero = some_weight(rng, [outputs, 6 // groups, *kernel], 0, kind)
    bias = torch.randint(-(2**26), 2**26, (outputs,), dtype=torch.int32)
    sx, zx, sy, zy = 0.05, rng.randint(-128, 127), f32(0.05 * float(scale.mean()) * 300), rng.randint(-20, 20)
    weight = of_weight(0, scale, zero, kind[3])
    function = F.conv1d if rank == 3 else F.conv2d
    attrs = (stride, padding, dilation, groups)

    def model(x: Tensor, w: Tensor, scale: Tensor, zero: Tensor, bias: Tensor, bias_scale: Tensor) -> Tensor:
        b = dq_channel(bias, bias_scale, torch.zeros(outputs, dtype=torch.int64), 0)
        return qu(function(dq(x, sx, zx), weight(w, scale, zero), b, *attrs), sy, zy)

    bias_scale = (f32(sx) * scale).expand(outputs).contiguous()
    y, ops, _ = dna(Of(model, w=w, scale=scale, zero=zero, bias=bias, bias_scale=bias_scale), x)
    shifted = w.double() - zero.view(-1, *[1] * (rank - 1))
    acc = function(x.double() - zx, shifted, None, *attrs).long()
    assert torch.equal(y, convolved(acc, bias, scale, sx, sy, zy))
    assert set(ops) <= {"conv2d", "reshape", "resize_nearest"}


@pytest.mark.parametrize(
    ("spelled", "kind"),
    [
        pytest.param(spelled, kind, marks=[] if (row + column) % 4 == 0 else pytest.mark.slow, id=f"{spelled} {kind}")
        for row, spelled in enumerate(["linear", "matmul", "mm", "addmm", "left"])
        for column, kind in enumerate(CONVOLUTIONS)
    ],
)
def test_fully_connected_with_any_zero_points(spelled: str, kind: Any) -> None:
    rng = random.Random(f"{spelled}{kind}")
    axis = 1 if spelled in ("matmul", "mm", "addmm") else 0
    w, scale, zero = some_weight(rng, [11, 7] if axis == 0 else [7, 11], axis, kind)
    x = integers(4, 7) if spelled in ("mm", "addmm") else integers(2, 4, 7)
    bias = torch.randint(-(2**26), 2**26, (11,), dtype=torch.int32)
    if spelled in ("matmul", "mm", "left"):
        bias.zero_()
    if spelled == "left":
        x = x.transpose(1, 2).contiguous()
    sx, zx, sy, zy = 0.05, -11, f32(0.05 * float(scale.mean()) * 300), 9
    weight = of_weight(axis, scale, zero, kind[3])

    def model(x: Tensor, w: Tensor, scale: Tensor, zero: Tensor, bias: Tensor, bias_scale: Tensor) -> Tensor:
        a, c = dq(x, sx, zx), weight(w, scale, zero)
        b = dq_channel(bias, bias_scale, torch.zeros(11, dtype=torch.int64), 0)
        functions = {
            "linear": lambda: F.linear(a, c, b), "matmul": lambda: a @ c, "mm": lambda: torch.mm(a, c),
            "addmm": lambda: torch.addmm(b, a, c), "left": lambda: c @ a,
        }  # fmt: skip
        return qu(functions[spelled](), sy, zy)

    bias_scale = (f32(sx) * scale).expand(11).contiguous()
    y, ops, _ = dna(Of(model, w=w, scale=scale, zero=zero, bias=bias, bias_scale=bias_scale), x)
    shifted = w.double() - (zero.view(-1, 1) if axis == 0 else zero)
    rows = x.transpose(1, 2) if spelled == "left" else x
    acc = ((rows.double() - zx) @ (shifted.T if axis == 0 else shifted)).long()
    wanted = convolved(acc.reshape(-1, 11), bias, scale, sx, sy, zy, rounded).reshape(acc.shape)
    assert torch.equal(y, wanted.transpose(1, 2) if spelled == "left" else wanted)
    assert set(ops) <= {"conv2d", "reshape", "concat"}


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 80))])
def test_transposed_convolution(seed: int) -> None:
    rng = random.Random(seed)
    rank = rng.choice([3, 4, 4])
    groups = rng.choice([1, 1, 2, 6])
    each, dims = rng.randint(1, 3), rank - 2
    kernel, stride, dilation = (tuple(rng.randint(1, limit) for _ in range(dims)) for limit in (4, 3, 2))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(rng.randint(0, r) for r in reach)
    extra = tuple(rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
    kind = rng.choice(CONVOLUTIONS)
    axis = 0 if groups == 6 and rng.random() < 0.5 else 1
    x = integers(rng.randint(1, 2), 6, *[rng.randint(7, 9) for _ in range(dims)], seed=seed)
    w, scale, zero = some_weight(rng, [6, each, *kernel], axis, kind)
    outputs = groups * each
    bias = torch.randint(-(2**26), 2**26, (outputs,), dtype=torch.int32)
    whole = scale.repeat(groups) if axis == 1 else scale.repeat_interleave(each)
    whole = scale if scale.numel() == 1 else whole
    sx, zx, sy, zy = 0.05, rng.randint(-128, 127), f32(0.05 * float(scale.mean()) * 300), rng.randint(-20, 20)
    weight = of_weight(axis, scale, zero, kind[3])
    function: Any = F.conv_transpose1d if rank == 3 else F.conv_transpose2d
    attrs = (stride, padding, extra, groups, dilation)

    def model(x: Tensor, w: Tensor, scale: Tensor, zero: Tensor, bias: Tensor, bias_scale: Tensor) -> Tensor:
        b = dq_channel(bias, bias_scale, torch.zeros(outputs, dtype=torch.int64), 0)
        return qu(function(dq(x, sx, zx), weight(w, scale, zero), b, *attrs), sy, zy)

    bias_scale = (f32(sx) * whole).expand(outputs).contiguous()
    y, ops, _ = dna(Of(model, w=w, scale=scale, zero=zero, bias=bias, bias_scale=bias_scale), x)
    per_channel = [-1 if d == axis else 1 for d in range(rank)]
    acc = function(x.double() - zx, w.double() - zero.view(per_channel), None, *attrs).long()
    assert torch.equal(y, convolved(acc, bias, whole, sx, sy, zy))
    assert set(ops) <= {"conv2d", "reshape", "transpose", "slice", "resize_nearest"}


# ---- prelu ----


@pytest.mark.parametrize("slopes", [(6, 1, 1), (6, 5, 4), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_prelu_of_quantized_slopes(slopes: tuple[int, ...], seed: int) -> None:
    rng = random.Random(seed)
    x, alpha = integers(2, 6, 5, 4, seed=seed), integers(1, *slopes, seed=seed + 9)
    (sx, zx), (sa, za), (sy, zy) = ((f32(rng.uniform(0.01, 0.03)), rng.randint(-128, 127)) for _ in range(3))

    def model(x: Tensor, alpha: Tensor) -> Tensor:
        return qu(torch.ops.aten._prelu_kernel(dq(x, sx, zx), dq(alpha, sa, za)), sy, zy)

    y, ops, result = dna(Of(model, alpha=alpha), x)
    level, slope = x.long() - zx, alpha.long() - za
    negative = rescale(level * slope, f32(f32(sx * sa) / sy))
    assert torch.equal(y, saturated(torch.where(level >= 0, rescale(level, f32(sx / sy)), negative), zy))
    assert result.transposes == 0 and len(ops) <= 4


def test_prelu_of_channel_slopes() -> None:
    x, alpha = integers(1, 6, 5, 4), torch.linspace(-0.3, 1.7, 6)

    def model(x: Tensor, alpha: Tensor) -> Tensor:
        return qu(F.prelu(dq(x, 0.02, 9), alpha), 0.03, -5)

    y, ops, _ = dna(Of(model, alpha=alpha), x)
    assert (y.int() - model(x, alpha).int()).abs().max() <= 1
    assert ops == ["lut", "conv2d", "lut", "add"]


def test_prelu_of_one_slope_is_a_table() -> None:
    def model(x: Tensor, alpha: Tensor) -> Tensor:
        return qu(F.prelu(dq(x, 0.02, 9), alpha), 0.03, -5)

    x, alpha = integers(1, 6, 5, 4), torch.tensor([0.2])
    y, ops, _ = dna(Of(model, alpha=alpha), x)
    assert torch.equal(y, model(x, alpha)) and ops == ["lut"]


# ---- movement ----

Q = (0.02, 5)
INDEX = torch.tensor([4, 0, 2, 1, 1])
MOVED: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "flip": (lambda a: a.flip(2), (1, 3, 5, 4)),
    "flip of many": (lambda a: a.flip(-1, 1), (1, 3, 2, 90)),
    "roll": (lambda a: a.roll((1, -2), (1, 3)), (2, 3, 5, 4)),
    "roll of all": (lambda a: a.roll(7), (1, 3, 5, 4)),
    "index_select": (lambda a: a.index_select(1, INDEX), (1, 5, 3, 4)),
    "index": (lambda a: a[:, :, INDEX], (2, 2, 5, 4)),
    "reflect": (lambda a: F.pad(a, (2, 1, 1, 2), mode="reflect"), (1, 3, 5, 4)),
    "replicate": (lambda a: F.pad(a, (2, 1, 1, 0), mode="replicate"), (1, 3, 5, 4)),
    "circular": (lambda a: F.pad(a, (2, 1, 1, 0), mode="circular"), (1, 3, 5, 4)),
    "reflect of rank 3": (lambda a: F.pad(a, (2, 1), mode="reflect"), (2, 3, 5)),
    "expand": (lambda a: a.expand(2, 3, 5, 4), (2, 1, 5, 1)),
    "expand to more": (lambda a: a.expand(3, -1, -1), (5, 4)),
    "repeat": (lambda a: a.repeat(1, 2, 3, 1), (1, 3, 2, 4)),
    "tile": (lambda a: a.tile(2, 2), (3, 4)),
    "tile of rank 6": (
        lambda a: a.reshape(1, 3, 1, 4, 1, 5).tile(1, 1, 2, 1, 3, 1).reshape(1, 6, 12, 5), (1, 3, 4, 5)),
    "repeat_interleave": (lambda a: a.repeat_interleave(3, 1), (1, 4, 3, 2)),
    "split": (lambda a: torch.cat(a.split([1, 3, 2], 1)[::-1], 1), (1, 6, 3, 4)),
    "chunk": (lambda a: torch.cat(a.chunk(3, 2)[1:], 2), (1, 2, 7, 4)),
    "stack": (lambda a: torch.stack([a, a[:, ::1]], 2), (1, 2, 7, 4)),
    "narrow": (lambda a: a.narrow(3, 1, 2), (1, 2, 7, 4)),
    "pixel_shuffle": (lambda a: F.pixel_shuffle(a, 2), (1, 12, 3, 4)),
    "pixel_unshuffle": (lambda a: F.pixel_unshuffle(a, 2), (1, 3, 4, 6)),
    "channel_shuffle": (lambda a: F.channel_shuffle(a, 3), (1, 12, 3, 4)),
    "space to depth": (
        lambda a: a.reshape(1, 2, 2, 3, 2, 5).permute(0, 1, 3, 2, 4, 5).reshape(1, 2, 3, 20), (1, 4, 6, 5)),
    "slice of rank 5": (lambda a: a.reshape(2, 3, 2, 2, 4)[:, :, :, 1:].permute(1, 0, 2, 3, 4), (6, 16)),
    "pad": (lambda a: F.pad(a, (1, 2, 0, 3)), (1, 3, 5, 4)),
    "max_pool1d": (lambda a: F.max_pool1d(a, 3, 2, 1), (2, 3, 9)),
    "max_pool3d": (lambda a: F.max_pool3d(a, (2, 3, 2), (2, 1, 2), (1, 1, 0)), (1, 3, 4, 5, 6)),
    "adaptive_max_pool": (lambda a: F.adaptive_max_pool2d(a, 1), (2, 3, 7, 6)),
    "amax": (lambda a: a.amax((2, 3)), (2, 3, 7, 6)),
    "amax of channels": (lambda a: a.amax(1, keepdim=True), (2, 3, 7, 6)),
    "amin": (lambda a: a.amin((1, 2)), (2, 7, 6, 3)),
    "max": (lambda a: a.max(2)[0], (2, 3, 7, 6)),
    "min of all": (lambda a: a.min(), (2, 3, 7, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize("dtype", [torch.int8, pytest.param(torch.uint8, marks=pytest.mark.slow)], ids=str)
def test_movement_of_quantized_values(name: str, dtype: torch.dtype) -> None:
    """Between a dequantize and a quantize, hence equal to PyTorch's."""
    function, shape = MOVED[name]
    scale, zero = (0.02, 5) if dtype is torch.int8 else (0.02, 133)

    def model(x: Tensor) -> Tensor:
        y = qu(function(dq(qu(x.relu(), scale, zero, dtype), scale, zero)), scale, zero, dtype)
        return dq(y, scale, zero)

    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    result = built(Of(model), x)
    host = [row for row in result.explanation.rows if row.where == "host" and row.op != "aten.relu.default"]
    assert len(result.regions) <= 1 and (not host or not result.regions), str(result.explanation)
    assert torch.equal(run(result, x)[0], model(x))


@pytest.mark.parametrize("name", MOVED)
def test_movement_between_operators(name: str) -> None:
    """All in one region, with what computes before and behind."""
    function, shape = MOVED[name]

    def model(x: Tensor) -> Tensor:
        y = qu(dq(x, *Q) * dq(x, *Q), 0.05, -7)
        return qu(torch.sigmoid(function(dq(y, 0.05, -7))), 1 / 255, -128)

    x = integers(*shape)
    y, ops, _ = dna(Of(model), x)
    inner = dna(Of(lambda x: qu(dq(x, *Q) * dq(x, *Q), 0.05, -7)), x)[0]
    assert torch.equal(y, qu(torch.sigmoid(function(dq(inner, 0.05, -7))), 1 / 255, -128)), ops


INT8_MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "reshape": lambda a: a.reshape(2, 30),
    "permute": lambda a: a.permute(0, 3, 1, 2),
    "cat": lambda a: torch.cat([a, a[:, 1:]], 1),
    "pad": lambda a: F.pad(a, (1, 1), value=-9),
    "flip": lambda a: a.flip(1),
    "amax": lambda a: a.amax(1),
    "amin": lambda a: a.amin((1, 2)),
    "clamp": lambda a: a.clamp(-3, 70),
}


@pytest.mark.parametrize("name", INT8_MOVED)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
def test_movement_that_the_model_spells_in_integers(name: str, dtype: torch.dtype) -> None:
    function = INT8_MOVED[name]
    if dtype is torch.uint8 and name in ("pad", "clamp"):
        function = {"pad": lambda a: F.pad(a, (1, 1), value=9), "clamp": lambda a: a.clamp(3, 70)}[name]
    zero = 3 if dtype is torch.int8 else 131

    def model(x: Tensor) -> Tensor:
        return qu(torch.tanh(dq(function(x), 0.05, zero)), 1 / 127, 0)

    x = integers(2, 5, 3, 2, dtype=dtype)
    result = built(Of(model), x)
    assert len(result.regions) == 1, str(result.explanation)
    host = {row.op for row in result.explanation.rows if row.where == "host"}
    assert dtype is torch.uint8 or not host, str(result.explanation)
    assert torch.equal(run(result, x)[0], model(x))


@pytest.mark.parametrize("function", [torch.maximum, torch.minimum], ids=["maximum", "minimum"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (7,), (3, 9)], ids=str)
def test_extremum_of_two(function: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
    def model(a: Tensor, b: Tensor) -> Tensor:
        return qu(function(dq(a, *Q), dq(b, 0.03, -4)), 0.025, 1)

    a, b = integers(*shape), integers(*shape, seed=1)
    y, ops, _ = dna(Of(model), a, b)
    assert torch.equal(y, model(a, b)) and "max_pool2d" in ops


def test_conflicting_scales_of_one_value_are_told_apart() -> None:
    """The same int8 values read under two scales."""

    def model(x: Tensor) -> Tensor:
        return qu(dq(x, 0.02, 1) + dq(x, 0.05, -3), 0.07, 2)

    x = integers(2, 9)
    y, ops, _ = dna(Of(model), x)
    assert (y.int() - model(x).int()).abs().max() <= 1 and ops == ["lut"]


def test_quantize_that_is_read_under_another_scale() -> None:
    def model(x: Tensor) -> Tensor:
        return dq(qu(F.hardswish(dq(x, 0.02, 1)), 0.03, 4), 0.06, -1)

    x = integers(2, 9)
    y, _, _ = dna(Of(model), x)
    assert torch.equal(y, model(x))


# ---- images in NHWC ----


def test_network_in_nhwc_has_no_transposes() -> None:
    """As importers of NHWC formats spell it: permutes around every convolution."""
    w = [integers(*s, seed=i) for i, s in enumerate([(8, 3, 3, 3), (8, 1, 3, 3), (12, 8, 1, 1), (12, 12)])]

    def conv(x: Tensor, weight: Tensor, *attrs: Any) -> Tensor:
        y = F.conv2d(x.permute(0, 3, 1, 2), dq(weight, 0.005, 0), None, *attrs)
        return dq(qu(y.permute(0, 2, 3, 1), 0.1, -3), 0.1, -3)

    def model(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        image = dq(qu(F.pad(dq(x, 0.02, 3), (0, 0, 0, 1, 0, 1)), 0.02, 3), 0.02, 3)
        y = conv(image, a, 2)
        z = conv(y, b, 1, 1, 1, 8)
        y = dq(qu(y + z, 0.15, 2), 0.15, 2)
        y = dq(qu(torch.cat([y, z], 3), 0.12, 0), 0.12, 0)[..., 4:12]
        y = conv(y, c)
        y = dq(qu(y.mean((1, 2)), 0.05, 0), 0.05, 0)
        return qu(F.linear(y, dq(d, 0.01, 0)), 0.1, 0)

    x = integers(1, 13, 15, 3)
    y, ops, result = dna(Of(model, **dict(zip("abcd", w, strict=True))), x)
    assert result.transposes == 0 and "transpose" not in ops
    assert (y.int() - model(x, *w).int()).abs().max() <= 3


def test_channel_shuffle_is_a_permutation_by_convolution() -> None:
    """A transpose would move single bytes."""

    def model(x: Tensor) -> Tensor:
        y = qu(F.avg_pool2d(dq(x, 0.02, 5), 2, 1), 0.03, -7)
        return qu(F.max_pool2d(F.channel_shuffle(dq(y, 0.03, -7), 4), 2), 0.03, -7)

    x = integers(2, 48, 9, 7)
    y, ops, result = dna(Of(model), x)
    assert (y.int() - model(x).int()).abs().max() <= 1  # the average's
    assert [op for op in ops if op != "reshape"] == ["conv2d", "conv2d", "max_pool2d"] and result.transposes == 0
