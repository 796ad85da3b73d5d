"""Which arguments each operator of host_ops.def is tested with: FAMILIES, by name.

Here are the operators that move values; host_functions.py adds those that compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from host_cases import ALL, FLOATS, NUMBERS, Draw, any_of, broadcasting, dim_of, dims_of, pick, shapes, tensor
from hypothesis import strategies as st

FAMILIES: dict[str, Callable[[Draw, str], tuple[list[Any], dict[str, Any]]]] = {}
"""Operator -> a function that draws its arguments; it is given the operator's name."""


def family(*names: str) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        for name in " ".join(names).split():
            full = name if name == "getitem" or name.count(".") == 2 else f"aten.{name}"
            FAMILIES[full if full == "getitem" or full.count(".") == 2 else f"{full}.default"] = function
        return function

    return register


def number(draw: Draw, dtype: torch.dtype) -> Any:
    if dtype.is_floating_point:
        return draw(st.sampled_from([0.0, 0.5, -1.25, 2, 3.0, -2, 6.5, 1e-3]))
    return draw(st.sampled_from([0, 1, 2, 3, 5] if dtype in (torch.uint8, torch.bool) else [0, 1, 2, 3, -1, -3, 7]))


def flag(draw: Draw) -> bool:
    return bool(draw(st.booleans()))


# ---- quantization ----

BOUNDS = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.int16: (-32768, 32767),
    torch.int32: (-(2**31), 2**31 - 1),
}


def bounds(draw: Draw) -> tuple[torch.dtype, int, int]:
    dtype = any_of(draw, tuple(BOUNDS))
    low, high = BOUNDS[dtype]
    return (dtype, low + 1, high - 3) if flag(draw) else (dtype, low, high)


SCALE = st.floats(1e-4, 4.0, allow_nan=False)


@family("quantized_decomposed.quantize_per_tensor.default", "quantized_decomposed.quantize_per_tensor.tensor")
def quantize(draw, name):
    dtype, low, high = bounds(draw)
    x = tensor(draw, shapes(draw), any_of(draw, (torch.float32, torch.float16, torch.bfloat16)), high=40)
    scale, zero = draw(SCALE), draw(st.integers(low, min(high, 100)))
    if name.endswith("tensor"):
        kind = any_of(draw, FLOATS)
        return [x, torch.tensor([scale], dtype=kind), torch.tensor(zero, dtype=torch.int64), low, high, dtype], {}
    return [x, scale, zero, low, high, dtype], {}


@family("quantized_decomposed.dequantize_per_tensor.default", "quantized_decomposed.dequantize_per_tensor.tensor")
def dequantize(draw, name):
    dtype, low, high = bounds(draw)
    x, scale, zero = tensor(draw, shapes(draw), dtype), draw(SCALE), draw(st.integers(low, min(high, 100)))
    named = {"out_dtype": any_of(draw, (torch.float32, torch.float64))} if flag(draw) else {}
    if name.endswith("tensor"):
        return [x, torch.tensor(scale), torch.tensor([zero]), low, high, dtype], named
    return [x, scale, zero, low, high, dtype], named


@family("quantized_decomposed.quantize_per_channel.default", "quantized_decomposed.dequantize_per_channel.default")
def per_channel(draw, name):
    dtype, low, high = bounds(draw)
    shape = shapes(draw, 1, 4, 1)
    axis = draw(st.integers(0, len(shape) - 1))
    scales = tensor(draw, [shape[axis]], any_of(draw, FLOATS), special=False, low=0.01, high=2)
    zeros = tensor(
        draw, [shape[axis]], any_of(draw, (torch.int64, torch.int32)), special=False, low=max(low, -10), high=10
    )
    if ".quantize" in name:
        return [tensor(draw, shape, torch.float32, high=40), scales, zeros, axis, low, high, dtype], {}
    return [tensor(draw, shape, dtype), scales, zeros if flag(draw) else None, axis, low, high, dtype], {}


# ---- dtypes, copies, lists ----


@family("_to_copy to.dtype to.dtype_layout to.device type_as")
def cast(draw, name):
    x, dtype = tensor(draw, shapes(draw), any_of(draw, ALL)), any_of(draw, ALL)
    if name == "aten.type_as.default":
        return [x, torch.zeros(2, dtype=dtype)], {}
    if name == "aten.to.dtype":
        return [x, dtype, False, flag(draw)], {}
    if name == "aten.to.device":
        return [x, torch.device("cpu"), dtype], {}
    return [x], {"dtype": dtype, "device": torch.device("cpu")} if flag(draw) else {}


@family("clone contiguous alias detach lift_fresh_copy lift_fresh positive")
def same_values(draw, name):
    x = tensor(draw, shapes(draw), any_of(draw, NUMBERS))
    return [x], {"memory_format": torch.contiguous_format} if name.startswith(("aten.clone", "aten.contig")) else {}


@family("dropout feature_dropout alpha_dropout")
def dropout(draw, name):
    return [tensor(draw, shapes(draw, 2, 4), torch.float32), 0.3, False], {}


@family("getitem")
def getitem(draw, name):
    items = [tensor(draw, shapes(draw), any_of(draw, ALL)) for _ in range(draw(st.integers(1, 4)))]
    return [items, draw(st.integers(-len(items), len(items) - 1))], {}


# ---- shapes ----


@family("reshape view _unsafe_view view_copy")
def reshape(draw, name):
    x = tensor(draw, shapes(draw, 0, 4, 1), any_of(draw, ALL))
    shape = [x.numel(), 1] if flag(draw) else [1, -1]
    if x.dim() > 1 and flag(draw):
        shape = [*x.shape[:-2], x.shape[-1] * x.shape[-2]]
    return [x, shape], {}


@family("view_as reshape_as")
def reshape_as(draw, name):
    x = tensor(draw, shapes(draw), torch.float32)
    return [x, torch.zeros(x.numel(), 1, dtype=torch.int8)], {}


@family("flatten.using_ints")
def flatten(draw, name):
    x = tensor(draw, shapes(draw), any_of(draw, ALL))
    a, b = sorted(draw(st.integers(0, max(x.dim() - 1, 0))) for _ in range(2))
    return [x, a, b - x.dim() if x.dim() and flag(draw) else b], {}


@family("unflatten.int")
def unflatten(draw, name):
    a, b = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = list(shapes(draw, 1, 3, 1))
    dim = draw(st.integers(0, len(shape) - 1))
    shape[dim] = a * b
    return [tensor(draw, shape, torch.int8), dim, [a, -1] if flag(draw) else [a, b]], {}


@family("squeeze squeeze_copy squeeze.dim squeeze_copy.dim squeeze.dims squeeze_copy.dims")
def squeeze(draw, name):
    shape = [size if size > 2 else 1 for size in shapes(draw, 0, 5)]
    x = tensor(draw, shape, any_of(draw, ALL))
    if name.endswith(".dim"):
        return [x, dim_of(draw, x.dim())], {}
    return ([x, dims_of(draw, x.dim())] if name.endswith("dims") else [x]), {}


@family("unsqueeze unsqueeze_copy")
def unsqueeze(draw, name):
    x = tensor(draw, shapes(draw), torch.int16)
    return [x, dim_of(draw, x.dim() + 1)], {}


# ---- order and parts ----


@family("permute permute_copy")
def permute(draw, name):
    x = tensor(draw, shapes(draw, 0, 5), any_of(draw, ALL))
    order = draw(st.permutations(range(x.dim())))
    return [x, [d - x.dim() if flag(draw) else d for d in order]], {}


@family("transpose.int transpose_copy.int swapaxes swapdims")
def transpose(draw, name):
    x = tensor(draw, shapes(draw), any_of(draw, ALL))
    return [x, dim_of(draw, x.dim()), dim_of(draw, x.dim())], {}


@family("t t_copy mT numpy_T")
def t(draw, name):
    shape = shapes(draw, 2, 5) if "mT" in name else shapes(draw, 2, 2) if "numpy" in name else shapes(draw, 0, 2)
    return [tensor(draw, shape, torch.float32)], {}


@family("movedim.intlist moveaxis.intlist movedim.int moveaxis.int")
def movedim(draw, name):
    x = tensor(draw, shapes(draw, 1, 5), torch.int32)
    if name.endswith(".int"):
        return [x, dim_of(draw, x.dim()), dim_of(draw, x.dim())], {}
    source = draw(st.lists(st.integers(0, x.dim() - 1), unique=True))
    return [x, source, draw(st.permutations(range(x.dim())))[: len(source)]], {}


@family("flip")
def flip(draw, name):
    x = tensor(draw, shapes(draw, 0, 4), any_of(draw, ALL))
    return [x, dims_of(draw, x.dim()) if x.dim() else []], {}


@family("expand expand_copy broadcast_to expand_as")
def expand(draw, name):
    small, large = broadcasting(draw, 2)
    whole = torch.broadcast_shapes(small, large)
    x = tensor(draw, small, any_of(draw, ALL))
    if name.endswith("expand_as.default"):
        return [x, torch.zeros(whole)], {}
    lead = len(whole) - len(small)
    sizes = [-1 if i >= lead and small[i - lead] == size and flag(draw) else size for i, size in enumerate(whole)]
    return [x, sizes], {}


@family("select.int select_copy.int")
def select(draw, name):
    x = tensor(draw, shapes(draw, 1, 4, 1), any_of(draw, ALL))
    dim = dim_of(draw, x.dim())
    return [x, dim, draw(st.integers(-x.shape[dim], x.shape[dim] - 1))], {}


@family("slice.Tensor slice_copy.Tensor")
def slices(draw, name):
    x = tensor(draw, shapes(draw, 1, 4), any_of(draw, ALL))
    edge = st.one_of(st.none(), st.integers(-7, 7), st.just(2**63 - 1))
    return [x, dim_of(draw, x.dim()), draw(edge), draw(edge), draw(st.integers(1, 4))], {}


@family("narrow narrow_copy")
def narrow(draw, name):
    x = tensor(draw, shapes(draw, 1, 4, 1), torch.float32)
    dim = dim_of(draw, x.dim())
    start = draw(st.integers(0, x.shape[dim] - 1))
    return [x, dim, start, draw(st.integers(0, x.shape[dim] - start))], {}


@family("split.Tensor chunk split_with_sizes split.sizes unbind.int")
def split(draw, name):
    x = tensor(draw, shapes(draw, 1, 4, 1), any_of(draw, ALL))
    dim = dim_of(draw, x.dim())
    if "unbind" in name:
        return [x, dim], {}
    if "sizes" in name:
        first = draw(st.integers(0, x.shape[dim]))
        return [x, [first, x.shape[dim] - first], dim], {}
    return [x, draw(st.integers(1, 4)), dim], {}


@family("diagonal")
def diagonal(draw, name):
    x = tensor(draw, shapes(draw, 2, 4), torch.float32)
    a, b = draw(st.permutations(range(x.dim())))[:2]
    return [x, draw(st.integers(-4, 4)), a, b], {}


@family("unfold")
def unfold(draw, name):
    x = tensor(draw, shapes(draw, 1, 4, 2), torch.float32)
    return [x, dim_of(draw, x.dim()), draw(st.integers(0, 2)), draw(st.integers(1, 3))], {}


@family("repeat tile repeat_interleave.self_int")
def repeat(draw, name):
    x = tensor(draw, shapes(draw, 0, 3), any_of(draw, ALL))
    times = draw(st.lists(st.integers(0, 3), min_size=0 if "tile" in name else x.dim(), max_size=4))
    if "interleave" in name:
        dim = None if x.dim() == 0 or flag(draw) else dim_of(draw, x.dim())
        return [x if x.dim() else x.reshape(1), draw(st.integers(0, 3)), dim], {}
    return [x, times], {}


@family("pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle")
def shuffle(draw, name):
    r = draw(st.integers(1, 3))
    lead, a, b = shapes(draw, 0, 2, 1), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if "channel" in name:
        return [tensor(draw, (2, r * a, b, 2), torch.float32), r], {}
    shape = (*lead, a * r * r, b, 3) if "un" not in name else (*lead, a, b * r, 2 * r)
    return [tensor(draw, shape, any_of(draw, (torch.float32, torch.int8))), r], {}


# ---- joining and padding ----


@family("cat concat concatenate stack")
def cat(draw, name):
    shape = list(shapes(draw, 0 if "stack" in name else 1, 4))
    rank = len(shape) + ("stack" in name)
    dim = dim_of(draw, rank)
    dtypes = [any_of(draw, ALL)] if flag(draw) else list(ALL)
    items = []
    for _ in range(draw(st.integers(1, 4))):
        if "stack" not in name:
            shape[dim] = draw(st.integers(0, 4))
        items.append(tensor(draw, shape, any_of(draw, dtypes)))
    if "stack" not in name and flag(draw):
        items.insert(draw(st.integers(0, len(items))), torch.zeros(0, dtype=items[0].dtype))
    return [items, dim], {}


@family("constant_pad_nd pad")
def constant_pad(draw, name):
    x = tensor(draw, shapes(draw, 1, 4, 1), any_of(draw, NUMBERS))
    pads = []
    for size in reversed(x.shape[draw(st.integers(0, x.dim() - 1)) :]):
        pads += [draw(st.integers(-(size // 2), 3)), draw(st.integers(-(size // 2), 3))]
    value = number(draw, x.dtype)
    if name.endswith("aten.pad.default") and x.dim() > 2 and min(x.shape[-2:]) > 2 and flag(draw):
        x = x.float()
        rank_pads = [draw(st.integers(0, 2)) for _ in range(2 * (x.dim() - 2))]
        return [x, rank_pads, pick(draw, "reflect", "replicate", "circular")], {}
    return ([x, pads, "constant", float(value)] if "aten.pad." in name else [x, pads, value]), {}


@family("reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d")
def border_pad(draw, name):
    dims = int(name[-10])
    x = tensor(
        draw, [*shapes(draw, 1, 2, 1)[:2], *(draw(st.integers(3, 5)) for _ in range(dims))], any_of(draw, FLOATS)
    )
    return [x, [draw(st.integers(0, 2)) for _ in range(2 * dims)]], {}


@family("roll")
def roll(draw, name):
    x = tensor(draw, shapes(draw, 1, 4), any_of(draw, ALL))
    dims = dims_of(draw, x.dim(), 1)
    if flag(draw):
        return [x, [draw(st.integers(-9, 9))]], {}
    return [x, [draw(st.integers(-9, 9)) for _ in dims], dims], {}


# ---- indices ----


def indices(draw, shape, size, least=None):
    dtype = torch.int64
    return torch.randint(
        -size if least is None else least,
        size,
        tuple(shape),
        generator=torch.Generator().manual_seed(draw(st.integers(0, 999))),
    ).to(dtype)


@family("index_select gather scatter.src scatter.value")
def along(draw, name):
    x = tensor(draw, shapes(draw, 1, 4, 1), any_of(draw, ALL))
    dim = dim_of(draw, x.dim())
    if "index_select" in name:
        index = indices(draw, [draw(st.integers(0, 6))], x.shape[dim], 0)
        return [x, dim, index.to(any_of(draw, (torch.int64, torch.int32)))], {}
    shape = [draw(st.integers(0, size)) for size in x.shape]
    if "gather" in name:
        shape[dim] = draw(st.integers(0, 6))
        return [x, dim, indices(draw, shape, x.shape[dim], 0)], {}
    # no position twice: PyTorch does not say which of the values stays
    order = torch.rand([*shape[: dim % x.dim()], x.shape[dim], *shape[dim % x.dim() + 1 :]]).argsort(dim)
    index = order.narrow(dim, 0, shape[dim])
    return [x, dim, index, tensor(draw, x.shape, x.dtype) if "src" in name else number(draw, x.dtype)], {}


@family("embedding")
def embedding(draw, name):
    x = tensor(draw, [draw(st.integers(1, 6)), draw(st.integers(0, 5))], any_of(draw, FLOATS))
    return [x, indices(draw, shapes(draw, 0, 3), x.shape[0], 0)], {}


@family("index.Tensor index_put")
def index(draw, name):
    x = tensor(draw, shapes(draw, 1, 4, 1), any_of(draw, NUMBERS))
    common = shapes(draw, 0, 2, 1)
    count = draw(st.integers(1, x.dim()))
    used = [flag(draw) for _ in range(count)]
    used[draw(st.integers(0, count - 1))] = True
    given = [indices(draw, common if flag(draw) else common[1:], x.shape[d]) if used[d] else None for d in range(count)]
    if name == "aten.index.Tensor":
        return [x, given], {}
    x = x.to(torch.int32)
    like = x[tuple(slice(None) if g is None else g for g in given)]
    if flag(draw):  # positions may come twice: then their sum is defined
        return [x, given, tensor(draw, like.shape, x.dtype, special=False), True], {}
    return [x, given, torch.tensor(7, dtype=x.dtype)], {}


@family("tril triu")
def triangle(draw, name):
    return [tensor(draw, shapes(draw, 2, 4), any_of(draw, NUMBERS), special=False), draw(st.integers(-6, 6))], {}


# ---- tensors from numbers ----


@family("full full_like zeros ones zeros_like ones_like new_full new_zeros new_ones fill.Scalar scalar_tensor")
def filled(draw, name):
    kind, shape, dtype = name.split(".")[1], list(shapes(draw)), any_of(draw, ALL)
    x = tensor(draw, shape, any_of(draw, ALL))
    value = number(draw, torch.uint8 if torch.uint8 in (dtype, x.dtype) else torch.float32)  # no negative one for uint8
    named = {"dtype": dtype, "device": torch.device("cpu"), "pin_memory": False}
    if kind == "fill":
        return [x, value], {}
    if kind not in ("full", "scalar_tensor") and flag(draw):
        named = {}
    head = [] if kind in ("full", "zeros", "ones", "scalar_tensor") else [x]
    head += [] if kind.endswith("like") or kind == "scalar_tensor" else [shape]
    return head + ([value] if "full" in kind or kind == "scalar_tensor" else []), named


@family("arange arange.start arange.start_step")
def arange(draw, name):
    real = flag(draw)
    start, step = (draw(st.integers(-20, 20)) * (0.25 if real else 1), draw(st.integers(2, 4)) * (0.5 if real else 1))
    end = start + draw(st.integers(0, 20)) * (0.5 if real else 1)
    named = {"dtype": any_of(draw, (torch.float32, torch.int64, torch.float64, torch.int32))} if flag(draw) else {}
    if name.endswith("step"):
        return ([end, start, -step] if flag(draw) else [start, end, step]), named
    return ([start, end] if name.endswith("start") else [abs(end)]), named
