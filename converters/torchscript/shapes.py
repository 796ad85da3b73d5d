"""Shapes: what views a tensor, and what asks for its sizes."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..registry import converts
from .call import DTYPES, Call
from .values import Ref, View
from .views import permuted, reshaped, selected, sliced, view

aten: Any = torch.ops.aten
FORMAT = "torchscript"


# ---- questions ----


@converts(FORMAT, "aten::size")
def size(call: Call) -> Any:
    sizes = list(call.tensor(0).shape)
    return sizes if len(call.args) == 1 else sizes[call.number(1)]


@converts(FORMAT, "aten::dim")
def dim(call: Call) -> int:
    return len(call.tensor(0).shape)


@converts(FORMAT, "aten::len")
def length(call: Call) -> int:
    return call.tensor(0).shape[0]


@converts(FORMAT, "aten::numel")
def numel(call: Call) -> int:
    return math.prod(call.tensor(0).shape)


@converts(FORMAT, "prim::dtype")
def dtype(call: Call) -> int:
    x = call.tensor(0)
    return DTYPES.index(x.q.dtype if x.q else x.dtype)


@converts(FORMAT, "aten::is_floating_point", "aten::is_complex")
def kind_of_dtype(call: Call) -> bool:
    found = call.tensor(0).dtype
    return found.is_floating_point if call.name == "is_floating_point" else found.is_complex


@converts(FORMAT, "prim::device")
def device(call: Call) -> torch.device:
    return torch.device("cpu")


@converts(FORMAT, "prim::layout")
def layout(call: Call) -> int:
    return 0  # strided


@converts(
    FORMAT, "prim::is_cuda", "prim::is_mkldnn", "prim::is_mps", "prim::is_meta", "prim::is_sparse", "prim::is_nested",
    "prim::is_vulkan", "prim::is_xla", "prim::is_xpu", "prim::is_ipu", "prim::is_maia", "prim::is_sparse_csr",
)  # fmt: skip
def is_elsewhere(call: Call) -> bool:
    return False


@converts(FORMAT, "prim::is_quantized", "aten::is_quantized")
def is_quantized(call: Call) -> bool:
    return call.tensor(0).q is not None


@converts(FORMAT, "prim::requires_grad")
def requires_grad(call: Call) -> bool:
    return True


@converts(FORMAT, "aten::is_contiguous")
def is_contiguous(call: Call) -> bool:
    return call.get(1, 0) in (0, torch.contiguous_format)


# ---- numbers ----


@converts(FORMAT, "aten::Int", "aten::IntImplicit")
def to_int(call: Call) -> int:
    return int(call.number(0))


@converts(FORMAT, "aten::Float", "aten::FloatImplicit")
def to_float(call: Call) -> float:
    return float(call.number(0))


@converts(FORMAT, "aten::Bool", "aten::is_nonzero")
def to_bool(call: Call) -> bool:
    return bool(call.number(0))


@converts(FORMAT, "aten::item", "aten::ScalarImplicit")
def item(call: Call) -> Any:
    return call.number(0)


@converts(FORMAT, "prim::NumToTensor", "aten::scalar_tensor")
def number_to_tensor(call: Call) -> Ref:
    dtype = None if call.get(1) is None else call.dtype(call.args[1])
    return Ref(torch.tensor(call.args[0], dtype=dtype))


@converts(FORMAT, "aten::tensor", "aten::as_tensor")
def tensor(call: Call) -> Ref:
    dtype = None if call.get(1) is None else call.dtype(call.args[1])
    data = call.args[0]
    if isinstance(data, Ref) and dtype in (None, data.dtype):
        return data
    if isinstance(data, Ref):
        return Ref(call.builder.call(aten._to_copy.default, data.value, dtype=dtype))
    try:
        return Ref(torch.tensor(data, dtype=dtype))
    except (TypeError, ValueError, RuntimeError) as error:
        raise call.builder.invalid(f"{data!r:.80} makes no tensor: {error}") from error


# ---- views ----


@converts(FORMAT, "aten::view", "aten::reshape", "aten::_unsafe_view", "aten::_reshape_alias")
def reshape(call: Call) -> Ref:
    x, sizes = call.tensor(0), call.args[1]
    if not isinstance(sizes, list):
        raise call.builder.unsupported("a view as another dtype has no conversion")
    return reshaped(call.builder, x, _inferred(call, x, [int(s) for s in sizes]))


@converts(FORMAT, "aten::view_as", "aten::reshape_as")
def reshape_as(call: Call) -> Ref:
    return reshaped(call.builder, call.tensor(0), call.tensor(1).shape)


def _inferred(call: Call, x: Ref, sizes: list[int]) -> list[int]:
    count = math.prod(x.shape)
    if sizes.count(-1) == 1:
        known = math.prod(s for s in sizes if s != -1)
        if known > 0 and count % known == 0:
            sizes = [count // known if s == -1 else s for s in sizes]
    if any(s < 0 for s in sizes) or math.prod(sizes) != count:
        raise call.builder.invalid(f"a tensor of shape {list(x.shape)} cannot have shape {sizes}")
    return sizes


@converts(FORMAT, "aten::flatten")
def flatten(call: Call) -> Ref:
    x = call.tensor(0)
    sizes = list(x.shape)
    if not sizes:
        return reshaped(call.builder, x, [1])
    first, last = (_dim(call, call.args[i], len(sizes)) for i in (1, 2))
    return reshaped(call.builder, x, [*sizes[:first], math.prod(sizes[first : last + 1]), *sizes[last + 1 :]])


@converts(FORMAT, "aten::unflatten")
def unflatten(call: Call) -> Ref:
    x = call.tensor(0)
    d = _dim(call, call.args[1], len(x.shape))
    known = math.prod(s for s in call.args[2] if s != -1)
    sizes = [x.shape[d] // max(known, 1) if s == -1 else s for s in call.args[2]]
    return reshaped(call.builder, x, _inferred(call, x, [*x.shape[:d], *sizes, *x.shape[d + 1 :]]))


@converts(FORMAT, "aten::squeeze", "aten::squeeze_")
def squeeze(call: Call) -> Ref:
    x = call.tensor(0)
    rank = len(x.shape)
    asked = call.get(1, list(range(rank)))
    dims = {_dim(call, d, rank) for d in (asked if isinstance(asked, list) else [asked])} if rank else set()
    found = reshaped(call.builder, x, [s for d, s in enumerate(x.shape) if s != 1 or d not in dims])
    return _rebound(call, x, found)


@converts(FORMAT, "aten::unsqueeze", "aten::unsqueeze_")
def unsqueeze(call: Call) -> Ref:
    x = call.tensor(0)
    d = _dim(call, call.args[1], len(x.shape) + 1)
    return _rebound(call, x, reshaped(call.builder, x, [*x.shape[:d], 1, *x.shape[d:]]))


@converts(FORMAT, "aten::permute")
def permute(call: Call) -> Ref:
    x = call.tensor(0)
    dims = [_dim(call, d, len(x.shape)) for d in call.args[1]]
    if sorted(dims) != list(range(len(x.shape))):
        raise call.builder.invalid(f"{call.args[1]} is no permutation of the dimensions of {list(x.shape)}")
    return permuted(call.builder, x, dims)


@converts(FORMAT, "aten::transpose", "aten::transpose_", "aten::swapaxes", "aten::swapdims")
def transpose(call: Call) -> Ref:
    x = call.tensor(0)
    dims = list(range(len(x.shape)))
    if dims:
        i, j = (_dim(call, call.args[k], len(dims)) for k in (1, 2))
        dims[i], dims[j] = dims[j], dims[i]
    return _rebound(call, x, permuted(call.builder, x, dims))


@converts(FORMAT, "aten::t", "aten::t_", "aten::numpy_T", "aten::mT")
def matrix_transpose(call: Call) -> Ref:
    x = call.tensor(0)
    dims = list(range(len(x.shape)))
    if call.name == "mT" and len(dims) >= 2:
        dims[-2:] = dims[-1], dims[-2]
    elif call.name != "mT":
        dims.reverse()
    return _rebound(call, x, permuted(call.builder, x, dims))


@converts(FORMAT, "aten::movedim", "aten::moveaxis")
def movedim(call: Call) -> Ref:
    x = call.tensor(0)
    rank = len(x.shape)
    source, target = (
        [_dim(call, d, rank) for d in (a if isinstance(a, list) else [a])] for a in (call.args[1], call.args[2])
    )
    order = [d for d in range(rank) if d not in source]
    for to, origin in sorted(zip(target, source, strict=True)):
        order.insert(to, origin)
    return permuted(call.builder, x, order)


@converts(FORMAT, "aten::slice")
def slice_(call: Call) -> Ref:
    x = call.tensor(0)
    d = _dim(call, call.get(1, 0), len(x.shape))
    return sliced(call.builder, x, d, call.get(2), call.get(3), call.get(4, 1))


@converts(FORMAT, "aten::narrow")
def narrow(call: Call) -> Ref:
    x, start, count = call.tensor(0), call.number(2), call.args[3]
    d = _dim(call, call.args[1], len(x.shape))
    start = start % max(x.shape[d], 1) if start < 0 else start
    return sliced(call.builder, x, d, start, start + count)


@converts(FORMAT, "aten::select")
def select(call: Call) -> Ref:
    x = call.tensor(0)
    d = _dim(call, call.args[1], len(x.shape))
    index = call.args[2]
    if not -x.shape[d] <= index < x.shape[d]:
        raise call.builder.invalid(f"index {index} is outside dimension {d} of {list(x.shape)}")
    return selected(call.builder, x, d, index % x.shape[d])


@converts(
    FORMAT, "aten::split", "aten::split_with_sizes", "aten::chunk", "aten::unsafe_chunk", "aten::unsafe_split",
    "aten::unsafe_split_with_sizes", "aten::tensor_split", "aten::hsplit",
)  # fmt: skip
def split(call: Call) -> list[Ref]:
    """Each part is a slice."""
    x, how = call.tensor(0), call.args[1]
    d = _dim(call, call.get(2, 1 if call.name == "hsplit" else 0), len(x.shape))
    total = x.shape[d]
    if call.name in ("tensor_split", "hsplit"):
        cuts = how if isinstance(how, list) else [total // how * i + min(i, total % how) for i in range(1, how)]
    elif isinstance(how, list):
        cuts = [sum(how[:i]) for i in range(1, len(how))]
    else:
        step = -(-total // max(how, 1)) if "chunk" in call.name else how
        cuts = list(range(step, total, step)) if step > 0 else []
    bounds = [0, *cuts, total]
    return [sliced(call.builder, x, d, a, b) for a, b in zip(bounds, bounds[1:], strict=False)]


@converts(FORMAT, "prim::ConstantChunk")
def constant_chunk(call: Call) -> Any:
    raise call.builder.unsupported("it is made by an optimization of TorchScript: save the module without it")


@converts(FORMAT, "aten::unbind")
def unbind(call: Call) -> list[Ref]:
    x = call.tensor(0)
    d = _dim(call, call.get(1, 0), len(x.shape))
    return [selected(call.builder, x, d, i) for i in range(x.shape[d])]


@converts(FORMAT, "aten::expand", "aten::expand_as", "aten::broadcast_to")
def expand(call: Call) -> Ref:
    x, sizes = call.tensor(0), call.args[1]
    wanted = list(sizes.shape) if isinstance(sizes, Ref) else sizes
    if list(x.shape) == wanted:
        return view(x, View(lambda value: value, lambda base, value: value))
    return view(x, View(lambda value: call.builder.call(aten.expand.default, value, wanted), None))


@converts(FORMAT, "aten::detach", "aten::detach_", "aten::alias", "aten::requires_grad_", "prim::data")
def same(call: Call) -> Ref:
    return call.tensor(0)


@converts(FORMAT, "aten::contiguous")
def contiguous(call: Call) -> Ref:
    x = call.tensor(0)
    held = x.value if x.is_constant else x.value.meta["val"]
    return x if held.is_contiguous() else Ref(x.value, x.q)


@converts(FORMAT, "aten::clone", "aten::lift_fresh", "aten::lift_fresh_copy", "aten::cpu")
def copy(call: Call) -> Ref:
    x = call.tensor(0)
    return Ref(x.value, x.q)


@converts(FORMAT, "aten::to", "aten::type_as", "aten::_to_copy", "aten::float", "aten::half", "aten::double")
def to(call: Call) -> Ref:
    """Another dtype; there is one device."""
    x = call.tensor(0)
    wanted: Any = None
    if call.name in ("float", "half", "double"):
        wanted = getattr(torch, call.name)
    for index, arg in enumerate(call.args[1:], 1):
        if isinstance(arg, Ref):
            wanted = arg.dtype
        elif type(arg) is int and wanted is None and not (call.overload == "device" and index > 2):
            wanted = call.dtype(arg)
    if x.q is not None:
        if wanted is not None:
            raise call.builder.unsupported(f"a quantized tensor is converted to {wanted}; dequantize it before")
        return x
    if wanted is None or wanted == x.dtype:
        return x
    return Ref(call.builder.call(aten._to_copy.default, x.value, dtype=wanted))


def _dim(call: Call, index: int, rank: int) -> int:
    if not isinstance(index, int) or not -max(rank, 1) <= index < max(rank, 1):
        raise call.builder.invalid(f"dimension {index} is not among the {rank} of its input")
    return index % max(rank, 1)


def _rebound(call: Call, x: Ref, found: Ref) -> Ref:
    """x itself, if the operator changes its input's shape in place."""
    if call.name.endswith("_"):
        # A copy of x stands for what x showed before, so that x may view it.
        before = Ref(x.value, x.q)
        before.rebind(x)
        found = Ref(found.value, found.q, before, found._view)
        x.rebind(found)
        return x
    return found
