"""host_families.py, the operators that compute."""

from __future__ import annotations

import math

import torch
from host_cases import ALL, FLOATS, INTEGERS, NUMBERS, any_of, broadcasting, dim_of, dims_of, pick, shapes, tensor
from host_families import family, flag, indices, number
from hypothesis import strategies as st

# ---- functions of one element ----

REAL_NAMES = (
    "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc sigmoid "
    "special_expit sqrt rsqrt reciprocal"
)


@family(REAL_NAMES)
def real_function(draw, name):
    return [tensor(draw, shapes(draw), any_of(draw, ALL))], {}


ACTIVATIONS = (
    "silu mish log_sigmoid softplus elu selu celu gelu hardswish hardsigmoid leaky_relu hardshrink softshrink frac"
)


@family(ACTIVATIONS)
def activation(draw, name):
    x = tensor(draw, shapes(draw), any_of(draw, FLOATS))
    kind = name.split(".")[1]
    if kind == "gelu":
        return [x], {"approximate": pick(draw, "none", "tanh")}
    extra = {
        "softplus": [2.0, 5.0], "elu": [1.5, 2.0, 0.5], "celu": [1.5], "leaky_relu": [0.2], "hardshrink": [0.75],
        "softshrink": [0.25],
    }.get(kind, [])  # fmt: skip
    return [x, *(extra if flag(draw) else [])], {}


@family("logit")
def logit(draw, name):
    return [tensor(draw, shapes(draw), torch.float32, special=False, low=0.05, high=0.95), pick(draw, None, 0.1)], {}


@family("abs neg absolute negative relu sign sgn square floor ceil trunc fix round relu6 hardtanh threshold")
def unary(draw, name):
    x = tensor(draw, shapes(draw), any_of(draw, NUMBERS))
    kind = name.split(".")[1]
    if kind in ("hardtanh", "relu6"):
        x = tensor(draw, shapes(draw), any_of(draw, FLOATS if kind == "relu6" else (*FLOATS, torch.int32)))
    extra = {"hardtanh": [-2, 3], "threshold": [1, -5]}.get(kind, [])
    if x.dtype is torch.uint8 and kind == "threshold":
        extra = [1, 5]
    return [x, *extra], {}


@family("round.decimals")
def decimals(draw, name):
    return [tensor(draw, shapes(draw), any_of(draw, FLOATS), special=False)], {"decimals": draw(st.integers(-2, 3))}


@family("logical_not isnan isinf isfinite signbit")
def test(draw, name):
    return [tensor(draw, shapes(draw), any_of(draw, ALL))], {}


@family("bitwise_not")
def bitwise_not(draw, name):
    return [tensor(draw, shapes(draw), any_of(draw, (*INTEGERS, torch.bool)))], {}


@family("frexp.Tensor")
def frexp(draw, name):
    return [tensor(draw, shapes(draw), any_of(draw, FLOATS), special=False, low=-1e6, high=1e6)], {}


# ---- functions of two and three elements ----


def pair(draw, dtypes, name, special=True, other=None):
    """self and other: tensors that are broadcast and promoted, or a number in place of one."""
    a, b = broadcasting(draw, 2)
    first = any_of(draw, dtypes)
    second = first if flag(draw) else any_of(draw, dtypes)
    x = tensor(draw, a, first, special=special)
    kind = name.rsplit(".", 1)[1]
    if "Scalar" in kind or (kind == "Tensor" and other is None and draw(st.integers(0, 5)) == 0):
        return [x, number(draw, any_of(draw, (first, torch.float32)))]
    return [x, other(b, second) if other else tensor(draw, b, second, special=special)]


@family("add.Tensor add.Scalar sub.Tensor sub.Scalar subtract.Tensor rsub.Tensor rsub.Scalar")
def add(draw, name):
    args = pair(
        draw, (*NUMBERS, torch.float16), name, other=(lambda s, d: tensor(draw, s, d)) if "rsub" in name else None
    )
    real = torch.result_type(*args).is_floating_point
    alpha = pick(draw, 1, 2, -3) if not real else pick(draw, 1, 2, 0.75)
    if args[0].dtype is torch.float16:
        alpha = 1
    if name.endswith("Scalar"):
        return args + ([alpha] if alpha != 1 else []), {}
    return args, {"alpha": alpha} if alpha != 1 else {}


@family("mul.Tensor mul.Scalar multiply.Tensor maximum max.other minimum min.other fmax fmin")
def mul(draw, name):
    return pair(draw, (*NUMBERS, torch.bool, torch.bfloat16), name, other=lambda s, d: tensor(draw, s, d)), {}


@family("div.Tensor div.Scalar divide.Tensor true_divide.Tensor")
def div(draw, name):
    return pair(draw, NUMBERS, name), {}


@family(
    "div.Tensor_mode div.Scalar_mode floor_divide floor_divide.Scalar",
    "remainder.Tensor remainder.Scalar fmod.Tensor fmod.Scalar",
)
def div_mode(draw, name):
    def divisor(shape, dtype):
        found = tensor(draw, shape, dtype, special=False)
        return torch.where(found == 0, torch.ones_like(found), found)

    args = pair(draw, NUMBERS, name, special=False, other=divisor)
    if not isinstance(args[1], torch.Tensor) and args[1] == 0:
        args[1] = 3
    return args, {"rounding_mode": pick(draw, "trunc", "floor", None)} if "mode" in name else {}


@family("pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar")
def power(draw, name):
    dtype = any_of(draw, (*FLOATS, torch.int32, torch.int64))
    a, b = broadcasting(draw, 2)
    base = tensor(draw, a, dtype, special=False, low=0.1 if dtype.is_floating_point else -3, high=4)
    exponent = tensor(draw, b, dtype, special=False, low=0, high=5)
    if name.endswith("Tensor_Scalar"):
        return [
            base,
            pick(draw, 0.5, 2, 3, -0.5, -1.0, -2.0, 1.7, 0.0) if dtype.is_floating_point else pick(draw, 0, 2, 5),
        ], {}
    return ([pick(draw, 2, 3.0), exponent] if name.endswith("pow.Scalar") else [base, exponent]), {}


@family("atan2 xlogy.Tensor")
def two_reals(draw, name):
    return pair(
        draw, (*FLOATS, torch.int32), name, special=False, other=lambda s, d: tensor(draw, s, d, special=False, low=1)
    ), {}


COMPARISONS = "eq ne lt le gt ge greater greater_equal less less_equal not_equal"


@family(*(f"{name}.Tensor {name}.Scalar" for name in COMPARISONS.split()))
def compare(draw, name):
    return pair(draw, ALL, name, other=lambda s, d: tensor(draw, s, d)), {}


@family("logical_and logical_or logical_xor")
def logical(draw, name):
    return pair(draw, ALL, name, other=lambda s, d: tensor(draw, s, d)), {}


BITWISE = "bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__"


@family(*(f"{name}.Tensor {name}.Scalar" for name in BITWISE.split()))
def bitwise(draw, name):
    args = pair(draw, (*INTEGERS, torch.bool), name, other=lambda s, d: tensor(draw, s, d))
    return [args[0], int(args[1]) if isinstance(args[1], float) else args[1]], {}


@family(
    "bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar __lshift__.Tensor __lshift__.Scalar",
    "bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar __rshift__.Tensor __rshift__.Scalar",
)
def shift(draw, name):
    a, b = broadcasting(draw, 2)
    dtype = any_of(draw, INTEGERS)
    x = tensor(draw, a, dtype)
    bits = 8 * dtype.itemsize
    return [
        x,
        draw(st.integers(0, bits - 1)) if "Scalar" in name else tensor(draw, b, dtype, special=False, low=0, high=bits),
    ], {}


@family("where.self where.ScalarOther where.ScalarSelf where.Scalar")
def where(draw, name):
    shape = broadcasting(draw, 3)
    condition = tensor(draw, shape[0], torch.bool)
    left, right = (tensor(draw, s, any_of(draw, ALL)) for s in shape[1:])
    values = [left, right]
    if name.endswith(("ScalarSelf", ".Scalar")):
        values[0] = number(draw, any_of(draw, ALL))
    if name.endswith(("ScalarOther", ".Scalar")):
        values[1] = number(draw, any_of(draw, ALL))
    return [condition, *values], {}


@family("masked_fill.Scalar masked_fill.Tensor")
def masked_fill(draw, name):
    a, b = broadcasting(draw, 2)
    x = tensor(draw, torch.broadcast_shapes(a, b), any_of(draw, ALL))
    value = number(draw, x.dtype) if name.endswith("Scalar") else tensor(draw, (), x.dtype)
    return [x, tensor(draw, b, torch.bool), value], {}


@family("clamp clip clamp.Tensor clip.Tensor clamp_min clamp_max clamp_min.Tensor clamp_max.Tensor")
def clamp(draw, name):
    shape = broadcasting(draw, 3)
    x = tensor(draw, shape[0], any_of(draw, NUMBERS))
    if name.endswith("Tensor"):
        bounds = [tensor(draw, s, any_of(draw, NUMBERS)) for s in shape[1:]]
    else:
        bounds = [number(draw, x.dtype), number(draw, any_of(draw, (x.dtype, torch.float32)))]
        if x.dtype is torch.uint8:
            bounds = [1, 5]
    if "clamp_m" in name:
        return [x, bounds[0]], {}
    missing = draw(st.integers(0, 2))
    return [x, *(None if i + 1 == missing else b for i, b in enumerate(bounds))], {}


@family("_prelu_kernel prelu")
def prelu(draw, name):
    x = tensor(draw, shapes(draw, 1, 4, 1), any_of(draw, FLOATS))
    channels = x.shape[1] if x.dim() > 1 else 1
    slope = tensor(draw, [pick(draw, 1, channels)], x.dtype)
    if "kernel" in name:
        slope = slope.reshape([1, -1] + [1] * (x.dim() - 2)) if x.dim() > 1 else slope
    return [x, slope], {}


@family("addcmul addcdiv lerp.Tensor lerp.Scalar")
def three(draw, name):
    shape, dtype = broadcasting(draw, 3), any_of(draw, FLOATS)
    args = [tensor(draw, s, dtype, special=False, low=1) for s in shape]
    if "lerp" in name:
        weight = args[2] / 7
        return [args[0], args[1], 0.3 if name.endswith("Scalar") else weight], {}
    return args, {"value": 0.5} if flag(draw) else {}


# ---- reductions ----


@family("sum sum.dim_IntList mean mean.dim prod prod.dim_int")
def sums(draw, name):
    mean = "mean" in name
    x = tensor(
        draw,
        shapes(draw, smallest=0 if "sum" in name else 1),
        any_of(draw, FLOATS if mean else (*NUMBERS, torch.bool)),
        special=False,
        low=0.5,
    )
    dtype = {"dtype": any_of(draw, FLOATS if mean else (torch.float32, torch.int64, torch.int32))} if flag(draw) else {}
    if name.endswith("default"):
        return [x], dtype
    dims = dim_of(draw, x.dim()) if "int" in name else pick(draw, None, dims_of(draw, x.dim()))
    return [x, dims, flag(draw)], dtype


@family("amax amin max min max.dim min.dim argmax argmin")
def extrema(draw, name):
    x = tensor(draw, shapes(draw, smallest=1), any_of(draw, NUMBERS))
    kind = name.split(".")[1]
    if name in ("aten.max.default", "aten.min.default"):
        return [x], {}
    if kind.startswith("arg"):
        return [x, pick(draw, None, dim_of(draw, x.dim())), flag(draw)], {}
    dims = dim_of(draw, x.dim()) if name.endswith("dim") else dims_of(draw, x.dim())
    return [x, dims, flag(draw)], {}


@family("any any.dim any.dims all all.dim all.dims")
def truth(draw, name):
    x = tensor(draw, shapes(draw), any_of(draw, ALL), low=-1.5, high=1.5)
    if name.endswith("default"):
        return [x], {}
    return [
        x,
        dim_of(draw, x.dim()) if name.endswith("dim") else pick(draw, None, dims_of(draw, x.dim(), 1)),
        flag(draw),
    ], {}


@family("var.correction std.correction var_mean.correction var.dim std.dim")
def variance(draw, name):
    x = tensor(draw, shapes(draw, 1, 4, 2), any_of(draw, FLOATS), special=False)
    dims = dims_of(draw, x.dim(), 1)
    if name.endswith("dim"):
        return [x, dims, flag(draw), flag(draw)], {}
    return [x, pick(draw, None, dims)], {"correction": pick(draw, None, 0, 1, 0.5), "keepdim": flag(draw)}


@family("logsumexp linalg_vector_norm norm.ScalarOpt_dim")
def logsumexp(draw, name):
    x = tensor(draw, shapes(draw, 1, 4, 1), any_of(draw, FLOATS), special="logsumexp" in name)
    dims = dims_of(draw, x.dim(), 1)
    if "logsumexp" in name:
        return [x.clamp(-1e20, 1e20), dims, flag(draw)], {}
    return [x, pick(draw, 2, 1, 0, math.inf, -math.inf, 3.0), dims, flag(draw)], {}


@family("cumsum cumprod")
def scan(draw, name):
    x = tensor(draw, shapes(draw), any_of(draw, (*NUMBERS, torch.bool)), special=False, low=0.5)
    return [x, dim_of(draw, x.dim())], {"dtype": torch.float64} if flag(draw) else {}


@family("softmax.int special_softmax log_softmax.int special_log_softmax _softmax _log_softmax")
def softmax(draw, name):
    x = tensor(draw, shapes(draw), any_of(draw, FLOATS), low=-30, high=30)
    if "._" in name:
        return [x, dim_of(draw, x.dim()), False], {}
    dtype = pick(draw, None, torch.float32, torch.float64)
    if dtype is torch.float32:
        x = x.float().to(x.dtype)  # which both convert first
    if "special" in name:
        return [x, dim_of(draw, x.dim())], {"dtype": dtype}
    return [x, dim_of(draw, x.dim()), dtype], {}


# ---- order of values ----


@family("sort argsort sort.stable argsort.stable")
def sort(draw, name):
    x = tensor(draw, shapes(draw), any_of(draw, NUMBERS))
    dim, down = dim_of(draw, x.dim()), flag(draw)
    return ([x], {"stable": True, "dim": dim, "descending": down}) if "stable" in name else ([x, dim, down], {})


@family("topk")
def topk(draw, name):
    shape = shapes(draw, 1, 4, 1)
    count = math.prod(shape)  # no value twice: PyTorch does not say which index comes first
    x = torch.randperm(count, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).reshape(shape)
    dim = dim_of(draw, len(shape))
    return [x.to(any_of(draw, (torch.float32, torch.int64))), draw(st.integers(0, shape[dim])), dim, flag(draw)], {}


# ---- products of matrices ----


def matrix(draw, *shape, dtype):
    return tensor(draw, shape, dtype, special=False)


@family("mm bmm matmul addmm baddbmm")
def matmul(draw, name):
    dtype = any_of(draw, (*FLOATS, torch.int64, torch.int32))
    m, k, n = (draw(st.sampled_from([0, 1, 2, 3, 5, 17, 40])) for _ in range(3))
    batch = draw(st.integers(1, 3))
    lead = (batch,) if "bmm" in name else ()
    if name == "aten.matmul.default":
        a, b = broadcasting(draw, 2)
        left, right = pick(draw, ((*a, m, k), (*b, k, n)), ((k,), (*b, k, n)), ((*a, m, k), (k,)), ((k,), (k,)))
        return [matrix(draw, *left, dtype=dtype), matrix(draw, *right, dtype=dtype)], {}
    if "add" in name:
        dtype = any_of(draw, FLOATS)
        bias = matrix(draw, *pick(draw, (n,), (1, n), (m, 1), (m, n)), dtype=dtype)
        named = {"beta": pick(draw, 1, 0.5, 0), "alpha": pick(draw, 1, 2)} if flag(draw) else {}
        return [
            bias if "bad" not in name else matrix(draw, batch, m, n, dtype=dtype),
            matrix(draw, *lead, m, k, dtype=dtype),
            matrix(draw, *lead, k, n, dtype=dtype),
        ], named
    return [matrix(draw, *lead, m, k, dtype=dtype), matrix(draw, *lead, k, n, dtype=dtype)], {}


@family("linear")
def linear(draw, name):
    dtype = any_of(draw, FLOATS)
    k, n = draw(st.sampled_from([1, 3, 40, 300])), draw(st.integers(1, 20))
    x = matrix(draw, *shapes(draw, 0, 3), k, dtype=dtype)
    return [x, matrix(draw, n, k, dtype=dtype), pick(draw, None, matrix(draw, n, dtype=dtype))], {}


@family("scaled_dot_product_attention")
def attention(draw, name):
    dtype, lead = any_of(draw, FLOATS), (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    rows, columns, depth = (draw(st.integers(1, 6)) for _ in range(3))
    q, k = matrix(draw, *lead, rows, depth, dtype=dtype), matrix(draw, *lead, columns, depth, dtype=dtype)
    v = matrix(draw, *lead, columns, depth, dtype=dtype)
    if flag(draw):
        return [q, k, v, None, 0.0, True], {}
    mask = tensor(draw, [rows, columns], pick(draw, torch.bool, dtype), special=False)
    return [q, k, v, pick(draw, None, mask)], {"scale": pick(draw, None, 0.3)}


# ---- convolutions, pooling ----


@family("convolution conv1d conv2d conv1d.padding conv2d.padding conv_transpose1d conv_transpose2d.input")
def convolution(draw, name):
    dims = 1 if "1d" in name else 2 if "2d" in name else draw(st.integers(1, 2))
    transposed = "transpose" in name or (name == "aten.convolution.default" and flag(draw))
    groups, a, b = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5])), draw(st.sampled_from([1, 2, 4]))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    stride = [1 if "padding" in name else draw(st.integers(1, 3)) for _ in range(dims)]
    pad, dilation = ([draw(st.integers(low, 2)) for _ in range(dims)] for low in (0, 1))
    size = [draw(st.integers(5, 9)) for _ in range(dims)]
    extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    dtype = any_of(draw, FLOATS)
    x = matrix(draw, draw(st.integers(1, 2)), groups * a, *size, dtype=dtype)
    shape = (groups * a, b, *kernel) if transposed else (groups * b, a, *kernel)
    w, bias = matrix(draw, *shape, dtype=dtype), pick(draw, None, matrix(draw, groups * b, dtype=dtype))
    if name == "aten.convolution.default":
        return [x, w, bias, stride, pad, dilation, transposed, extra if transposed else [0] * dims, groups], {}
    x = x[0] if flag(draw) else x
    if draw(st.integers(0, 4)) == 0 and "padding" not in name:  # everything else by default
        return [x, w, bias], {"groups": groups}
    if "padding" in name:
        return [x, w, bias, stride, pick(draw, "same", "valid"), dilation, groups], {}
    if transposed:
        return [x, w, bias, stride, pad, extra, groups, dilation], {}
    return [x, w, bias, stride, pad, dilation, groups], {}


@family("max_pool1d max_pool2d max_pool1d_with_indices max_pool2d_with_indices avg_pool1d avg_pool2d")
def pool(draw, name):
    dims = 1 if "1d" in name else 2
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    stride = [draw(st.integers(1, 3)) for _ in range(dims)] if flag(draw) else []
    pad, size = [draw(st.integers(0, k // 2)) for k in kernel], [draw(st.integers(5, 9)) for _ in range(dims)]
    lead = [2, 3][: draw(st.integers(1, 2))]
    average = "avg" in name
    # PyTorch's max_pool1d of small batches leaves NaN to chance
    x = tensor(draw, [*lead, *size], any_of(draw, FLOATS), special=not average and dims == 2)
    if average:
        more = [pick(draw, None, 3)] if dims == 2 else []
        return [x, kernel, stride, pad, flag(draw), flag(draw), *more], {}
    return [x, kernel, stride, pad, draw(st.integers(1, 2)), flag(draw)], {}


@family("adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d")
def adaptive(draw, name):
    dims = 1 if "1d" in name else 2
    x = tensor(draw, [2, 3, *(draw(st.integers(1, 7)) for _ in range(dims))], any_of(draw, FLOATS), special=False)
    return [x if flag(draw) else x[0], [draw(st.integers(1, 8)) for _ in range(dims)]], {}


# ---- normalization ----


@family("batch_norm native_batch_norm _native_batch_norm_legit_no_training instance_norm")
def batch_norm(draw, name):
    dtype = any_of(draw, FLOATS)
    x = tensor(draw, [2, 3, *shapes(draw, 1, 2, 2)], dtype, special=False)
    weight, bias, mean = (tensor(draw, [3], dtype, special=False) for _ in range(3))
    var = tensor(draw, [3], dtype, special=False, low=0.5)
    if flag(draw):
        weight, bias = None, None
    if "instance" in name:
        return [x, weight, bias, None, None, True, 0.1, 1e-3, False], {}
    if "legit" in name:
        return [x, weight, bias, mean, var, 0.1, 1e-3], {}
    return [x, weight, bias, mean, var, False, 0.1, 1e-3, *([False] if name == "aten.batch_norm.default" else [])], {}


@family("layer_norm native_layer_norm rms_norm group_norm native_group_norm")
def layer_norm(draw, name):
    dtype = any_of(draw, FLOATS)
    if "group" in name:
        groups = draw(st.integers(1, 3))
        x = tensor(draw, [2, 2 * groups, *shapes(draw, 1, 2, 1)], dtype, special=False)
        weight, bias = (pick(draw, None, tensor(draw, [2 * groups], dtype, special=False)) for _ in range(2))
        if "native" in name:
            return [x, weight, bias, 2, 2 * groups, x[0, 0].numel(), groups, 1e-3], {}
        return [x, groups, weight, bias, 1e-3], {}
    x = tensor(draw, [*shapes(draw, 0, 2), *shapes(draw, 1, 2, 2)], dtype, special=False)
    shape = list(x.shape[draw(st.integers(max(x.dim() - 2, 0), x.dim() - 1)) :])
    if 0 in shape:
        x, shape = torch.ones(2, 3, dtype=dtype), [3]
    weight, bias = (pick(draw, None, tensor(draw, shape, dtype, special=False)) for _ in range(2))
    return ([x, shape, weight, 1e-3] if "rms" in name else [x, shape, weight, bias, 1e-3]), {}


# ---- resizing ----

UPSAMPLE = (
    "upsample_nearest1d upsample_nearest2d _upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d "
    "upsample_bilinear2d upsample_bicubic2d"
)


@family(*(f"{name} {name}.vec" for name in UPSAMPLE.split()))
def upsample(draw, name):
    dims = 1 if "1d" in name else 2
    nearest = "nearest" in name
    x = tensor(draw, [1, 2, *(draw(st.integers(1, 6)) for _ in range(dims))], torch.float32, special=nearest)
    sizes = [draw(st.integers(1, 12)) for _ in range(dims)]
    corners = [] if nearest else [flag(draw)]
    factors = [pick(draw, 2.0, 1.5, 3.0, 0.75 if x.shape[-1] > 1 and x.shape[2] > 1 else 1.0) for _ in range(dims)]
    if name.endswith("vec"):
        return ([x, sizes, *corners, None] if flag(draw) else [x, None, *corners, factors]), {}
    if flag(draw):
        return [x, sizes, *corners], {}
    return [x, [int(n * f) for n, f in zip(x.shape[2:], factors, strict=True)], *corners, *factors], {}


@family("mera_torch.resize_nearest.default mera_torch.resize_bilinear.default")
def resize(draw, name):
    linear = "bilinear" in name
    x = tensor(
        draw, [2, 2, draw(st.integers(1, 5)), draw(st.integers(1, 5))], any_of(draw, FLOATS if linear else NUMBERS)
    )
    unit = 1024 if linear else 1
    tables = [
        indices(draw, [draw(st.integers(0, 7))], unit * (size - 1) + 1, 0).to(torch.int32) for size in x.shape[2:]
    ]
    return [x, *tables], {}


# ---- several tensors, patches, samples ----


@family("meshgrid meshgrid.indexing broadcast_tensors")
def several(draw, name):
    if "broadcast" in name:
        return [[tensor(draw, s, any_of(draw, ALL)) for s in broadcasting(draw, 3)]], {}
    dtype = any_of(draw, ALL)
    items = [tensor(draw, shapes(draw, 0, 1), dtype) for _ in range(draw(st.integers(1, 4)))]
    return [items], {"indexing": pick(draw, "ij", "xy")} if name.endswith("indexing") else {}


@family("one_hot")
def one_hot(draw, name):
    return [indices(draw, shapes(draw, 0, 3, 1), 5, 0), draw(st.integers(5, 7))], {}


@family("im2col col2im")
def patches(draw, name):
    kernel, dilation, pad, stride = ([draw(st.integers(low, 2)) for _ in range(2)] for low in (1, 1, 0, 1))
    x = tensor(draw, [2, 3, draw(st.integers(4, 7)), draw(st.integers(4, 7))], any_of(draw, FLOATS), special=False)
    if "im2col" in name:
        return [x, kernel, dilation, pad, stride], {}
    columns = torch.ops.aten.im2col.default(x, kernel, dilation, pad, stride)
    return [columns, list(x.shape[2:]), kernel, dilation, pad, stride], {}


@family("grid_sampler_2d grid_sampler")
def grid_sample(draw, name):
    x = tensor(draw, [2, 2, draw(st.integers(2, 5)), draw(st.integers(2, 5))], any_of(draw, FLOATS), special=False)
    # away from the edges between pixels, where rounding decides
    grid = torch.randint(-7, 8, (2, 3, 4, 2), generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) / 5.03
    return [x, grid.to(x.dtype), draw(st.integers(0, 1)), draw(st.integers(0, 2)), flag(draw)], {}


@family("glu")
def glu(draw, name):
    shape = list(shapes(draw, 1, 4))
    dim = draw(st.integers(0, len(shape) - 1))
    shape[dim] *= 2
    return [tensor(draw, shape, any_of(draw, FLOATS), special=False), dim], {}
