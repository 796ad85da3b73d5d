"""One model for each operator of TFLite and each of its options: the table behind test_tflite_ops.py.

A row: name -> (operator, inputs, outputs, options, fields). Inputs are arrays (constants), or T(shape, dtype, scale,
zero point); operators whose constants are quantized take C(data, scale, zero point, axis).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tflite_models import NO_TENSOR, Builder

Array = Any
Q = tuple[float, int]
A, B, Y = (0.05, -3), (0.07, 11), (0.09, -20)
SAME = (0.05, -3)


@dataclass(frozen=True)
class T:
    """A tensor that is computed or given."""

    shape: tuple[int, ...]
    q: Q | None = None
    dtype: str = ""

    @property
    def kind(self) -> str:
        return self.dtype or ("float32" if self.q is None else "int8")


@dataclass(frozen=True)
class C:
    """A quantized constant."""

    data: Array
    scale: Any
    zero: Any = 0
    axis: int = 0


@dataclass
class Case:
    code: str
    inputs: list[Any]
    outputs: list[T]
    options: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    positive: bool = False  # inputs above 0

    def build(self, seed: int = 0) -> tuple[bytes, list[Array]]:
        """(file, random inputs)."""
        rng = np.random.default_rng(seed)
        m = Builder()
        names, given, ids = [], [], []
        for i, x in enumerate(self.inputs):
            if x is None:
                ids.append(NO_TENSOR)
            elif isinstance(x, T):
                scale, zero = x.q or (None, 0)
                ids.append(m.tensor(f"x{i}", x.shape, x.kind, scale, zero))
                names.append(ids[-1])
                given.append(random_array(x, rng, self.positive))
            elif isinstance(x, C):
                ids.append(m.constant(f"c{i}", x.data, x.scale, x.zero, x.axis))
            else:
                ids.append(m.constant(f"c{i}", x))
        outputs = [m.tensor(f"y{i}", y.shape, y.kind, *(y.q or (None, 0))) for i, y in enumerate(self.outputs)]
        m.op(self.code, ids, outputs, self.options, **self.fields)
        return m.build(names, outputs), given


def random_array(x: T, rng: np.random.Generator, positive: bool = False) -> Array:
    if x.kind == "float32":
        values = rng.normal(size=x.shape)
        return np.asarray(np.abs(values) + 0.1 if positive else values, np.float32)
    if x.kind == "bool":
        return rng.random(x.shape) < 0.5
    if x.kind in ("int32", "int64"):
        return rng.integers(1 if positive else -9, 10, x.shape).astype(x.kind)
    limits = np.iinfo(x.kind)
    return rng.integers(max(limits.min, x.q[1]) if positive and x.q else limits.min, limits.max + 1, x.shape).astype(
        x.kind
    )


RNG = np.random.default_rng(5)
I32 = np.int32


def ints(*values: int) -> Array:
    return np.array(values, I32)


def floats(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def weight(*shape: int, axis: int | None = 0, low: int = -127) -> C:
    data = RNG.integers(low, 128, shape).astype(np.int8)
    if axis is None:
        return C(data, 0.02)
    scales = RNG.uniform(0.005, 0.03, shape[axis]).astype(np.float32)
    return C(data, scales, np.zeros(shape[axis], np.int64), axis)


def bias(w: C, x: Q = A) -> C:
    scales = np.atleast_1d(np.asarray(w.scale, np.float32)) * np.float32(x[0])
    channels = w.data.shape[w.axis] if w.axis else w.data.shape[0]
    return C(RNG.integers(-3000, 3000, channels).astype(I32), scales, np.zeros(scales.size, np.int64))


CASES: dict[str, Case] = {}


def add(
    name: str, code: str, inputs: list[Any], outputs: list[T] | T, options: str | None = None, **fields: Any
) -> None:
    positive = fields.pop("positive", False)
    outs = outputs if isinstance(outputs, list) else [outputs]
    CASES[name] = Case(code, inputs, outs, options, fields, positive)


# ---- convolutions ----

IMAGE = (1, 9, 8, 4)
for _padding in ("SAME", "VALID"):
    for _stride, _dilation, _kernel in ((1, 1, 3), (2, 1, 3), (2, 1, 2), (1, 2, 3), (3, 1, 1), (1, 1, 2)):
        _name = f"{_padding} k{_kernel} s{_stride} d{_dilation}"
        _fields = {
            "padding": _padding, "strideH": _stride, "strideW": _stride, "dilationHFactor": _dilation,
            "dilationWFactor": _dilation,
        }  # fmt: skip
        _reach = (_kernel - 1) * _dilation + 1
        _h, _w = ((-(-n // _stride) if _padding == "SAME" else -(-(n - _reach + 1) // _stride)) for n in (9, 8))
        _wt = weight(6, _kernel, _kernel, 4)
        add(f"conv {_name}", "CONV_2D", [T(IMAGE, A), _wt, bias(_wt)], T((1, _h, _w, 6), Y), "Conv2DOptions", **_fields)
        _dw = weight(1, _kernel, _kernel, 8, axis=3)
        add(
            f"depthwise {_name}", "DEPTHWISE_CONV_2D", [T(IMAGE, A), _dw, bias(_dw)], T((1, _h, _w, 8), Y),
            "DepthwiseConv2DOptions", depthMultiplier=2, **_fields,
        )  # fmt: skip
        add(
            f"float conv {_name}", "CONV_2D", [T(IMAGE), floats(6, _kernel, _kernel, 4), floats(6)],
            T((1, _h, _w, 6)), "Conv2DOptions", **_fields,
        )  # fmt: skip
        if _dilation == 1:
            for _op in ("MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D"):
                for _q in (SAME, None):
                    if _op == "L2_POOL_2D" and _q:
                        continue
                    add(
                        f"{'int8' if _q else 'float'} {_op} {_name}", _op, [T(IMAGE, _q)], T((1, _h, _w, 4), _q),
                        "Pool2DOptions", padding=_padding, strideH=_stride, strideW=_stride, filterHeight=_kernel,
                        filterWidth=_kernel,
                    )  # fmt: skip

ONE = {"padding": "VALID", "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
for _act in ("RELU", "RELU6", "RELU_N1_TO_1"):
    _wt = weight(6, 3, 3, 4)
    add(f"conv {_act}", "CONV_2D", [T(IMAGE, A), _wt, bias(_wt)], T((1, 7, 6, 6), Y), "Conv2DOptions", **ONE,
        fusedActivationFunction=_act)  # fmt: skip
    add(f"float conv {_act}", "CONV_2D", [T(IMAGE), floats(6, 3, 3, 4), floats(6)], T((1, 7, 6, 6)), "Conv2DOptions",
        **ONE, fusedActivationFunction=_act)  # fmt: skip
    add(f"add {_act}", "ADD", [T(IMAGE, A), T(IMAGE, B)], T(IMAGE, Y), "AddOptions", fusedActivationFunction=_act)
    add(f"max pool {_act}", "MAX_POOL_2D", [T(IMAGE, A)], T((1, 8, 7, 4), A), "Pool2DOptions", padding="VALID",
        strideH=1, strideW=1, filterHeight=2, filterWidth=2, fusedActivationFunction=_act)  # fmt: skip
_wt = weight(6, 3, 3, 2)
add("conv grouped", "CONV_2D", [T(IMAGE, A), _wt, bias(_wt)], T((1, 7, 6, 6), Y), "Conv2DOptions", **ONE)
_wt = weight(6, 3, 3, 4, axis=None)
add("conv per tensor", "CONV_2D", [T(IMAGE, A), _wt, bias(_wt)], T((1, 7, 6, 6), Y), "Conv2DOptions", **ONE)
_big = C(np.full(6, 2**29 - 12345, I32), bias(_wt).scale, np.zeros(1, np.int64))
add("conv large bias", "CONV_2D", [T(IMAGE, A), _wt, _big], T((1, 7, 6, 6), (3000.0, 3)), "Conv2DOptions", **ONE)
_odd = C(
    np.array([2**26 + 1, 2**25 + 3, 2**24 + 1, -(2**27) - 1, 5, 2**28 + 7], I32), _big.scale, np.zeros(1, np.int64)
)
add("conv odd bias", "CONV_2D", [T(IMAGE, A), _wt, _odd], T((1, 7, 6, 6), (float(2**22), 3)), "Conv2DOptions", **ONE)
_u = C(RNG.integers(0, 256, (6, 3, 3, 4)).astype(np.uint8), 0.02, 120)
_ub = C(RNG.integers(-3000, 3000, 6).astype(I32), np.float32(0.02) * np.float32(0.05), 0)
add("conv uint8", "CONV_2D", [T(IMAGE, (0.05, 125), "uint8"), _u, _ub], T((1, 7, 6, 6), (0.2, 110), "uint8"),
    "Conv2DOptions", **ONE)  # fmt: skip
for _k, _s, _padding, _out in (
    (2, 2, "VALID", (8, 10)), (3, 2, "SAME", (8, 10)), (3, 2, "VALID", (9, 11)), (4, 2, "SAME", (8, 10)),
    (3, 1, "SAME", (4, 5)), (3, 2, "SAME", (7, 9)), (2, 3, "SAME", (12, 15)),
):  # fmt: skip
    _wt = weight(6, _k, _k, 4)
    _shape = ints(1, *_out, 6)
    add(f"transpose conv k{_k} s{_s} {_padding} {_out}", "TRANSPOSE_CONV", [_shape, _wt, T((1, 4, 5, 4), A), bias(_wt)],
        T((1, *_out, 6), Y), "TransposeConvOptions", padding=_padding, strideH=_s, strideW=_s)  # fmt: skip
    add(f"float transpose conv k{_k} s{_s} {_padding} {_out}", "TRANSPOSE_CONV",
        [_shape, floats(6, _k, _k, 4), T((1, 4, 5, 4))], T((1, *_out, 6)), "TransposeConvOptions", padding=_padding,
        strideH=_s, strideW=_s)  # fmt: skip
for _keep in (False, True):
    _wt = weight(5, 12, axis=None)
    _result = (2, 3, 5) if _keep else (6, 5)
    add(f"fully connected keep={_keep}", "FULLY_CONNECTED", [T((2, 3, 12), A), _wt, bias(_wt)], T(_result, Y),
        "FullyConnectedOptions", keepNumDims=_keep)  # fmt: skip
    add(f"float fully connected keep={_keep}", "FULLY_CONNECTED", [T((2, 3, 12)), floats(5, 12), floats(5)],
        T(_result), "FullyConnectedOptions", keepNumDims=_keep)  # fmt: skip
_wt = weight(5, 12)
add("fully connected per channel", "FULLY_CONNECTED", [T((3, 12), A), _wt, bias(_wt)], T((3, 5), Y),
    "FullyConnectedOptions")  # fmt: skip
add(
    "fully connected no bias", "FULLY_CONNECTED", [T((3, 2, 2, 3), A), _wt, None], T((3, 5), Y), "FullyConnectedOptions"
)
_wt = weight(5, 12, axis=None)
add("fully connected relu", "FULLY_CONNECTED", [T((3, 12), A), _wt, bias(_wt)], T((3, 5), Y), "FullyConnectedOptions",
    fusedActivationFunction="RELU")  # fmt: skip
add("float conv 3d", "CONV_3D", [T((1, 4, 5, 6, 2)), floats(2, 3, 2, 2, 3), floats(3)], T((1, 4, 5, 6, 3)),
    "Conv3DOptions", padding="SAME", strideD=1, strideH=1, strideW=1, dilationDFactor=1, dilationHFactor=1,
    dilationWFactor=1)  # fmt: skip
for _x, _y in (((3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (3, 4, 5)), ((2, 3, 4), (4, 5))):
    _shape = (*np.broadcast_shapes(_x[:-2], _y[:-2]), 3, 5)
    for _q in (A, None):
        add(f"{'int8' if _q else 'float'} matmul {_x} {_y}", "BATCH_MATMUL", [T(_x, _q), T(_y, _q and B)],
            T(_shape, _q and Y), "BatchMatMulOptions")  # fmt: skip
        _turned = (*_y[:-2], *_y[:-3:-1])
        add(f"{'int8' if _q else 'float'} matmul adj {_x} {_y}", "BATCH_MATMUL", [T(_x, _q), T(_turned, _q and B)],
            T(_shape, _q and Y), "BatchMatMulOptions", adjY=True)  # fmt: skip

# ---- elementwise ----

PAIRS = (
    ((1, 4, 5, 6), (1, 4, 5, 6)),
    ((1, 4, 5, 6), (6,)),
    ((1, 4, 5, 6), (1, 1, 1, 6)),
    ((2, 1, 5), (2, 3, 1)),
    ((4, 5), ()),
)
for _x, _y in PAIRS:
    _shape = np.broadcast_shapes(_x, _y)
    for _op in (
        "ADD",
        "SUB",
        "MUL",
        "DIV",
        "MAXIMUM",
        "MINIMUM",
        "SQUARED_DIFFERENCE",
        "FLOOR_DIV",
        "FLOOR_MOD",
        "POW",
    ):
        _options = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions", "DIV": "DivOptions"}.get(_op)
        add(f"float {_op} {_x} {_y}", _op, [T(_x), T(_y)], T(_shape), _options, positive=_op in ("POW", "DIV"))
        if _op in ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "FLOOR_DIV", "FLOOR_MOD"):
            add(f"int32 {_op} {_x} {_y}", _op, [T(_x, dtype="int32"), T(_y, dtype="int32")], T(_shape, dtype="int32"),
                _options, positive=_op in ("DIV", "FLOOR_DIV", "FLOOR_MOD"))  # fmt: skip
        if _op in ("ADD", "SUB", "MUL", "SQUARED_DIFFERENCE"):
            add(f"int8 {_op} {_x} {_y}", _op, [T(_x, A), T(_y, B)], T(_shape, Y), _options)
        if _op in ("MAXIMUM", "MINIMUM"):
            add(f"int8 {_op} {_x} {_y}", _op, [T(_x, A), T(_y, A)], T(_shape, A), _options)
    for _op in ("EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"):
        add(f"float {_op} {_x} {_y}", _op, [T(_x), T(_y)], T(_shape, dtype="bool"))
        add(f"int8 {_op} {_x} {_y}", _op, [T(_x, A), T(_y, B)], T(_shape, dtype="bool"))
for _op in ("ADD", "MUL"):
    _options = {"ADD": "AddOptions", "MUL": "MulOptions"}[_op]
    add(f"int8 {_op} constant", _op, [T((1, 4, 5, 6), A), C(RNG.integers(-128, 128, 6).astype(np.int8), *B)],
        T((1, 4, 5, 6), Y), _options)  # fmt: skip
    add(f"uint8 {_op}", _op, [T((1, 4, 5, 6), (0.05, 125), "uint8"), T((1, 4, 5, 6), (0.07, 100), "uint8")],
        T((1, 4, 5, 6), (0.09, 120), "uint8"), _options)  # fmt: skip
for _op in ("LOGICAL_AND", "LOGICAL_OR"):
    add(_op, _op, [T((2, 3), dtype="bool"), T((2, 3), dtype="bool")], T((2, 3), dtype="bool"))
add("LOGICAL_NOT", "LOGICAL_NOT", [T((2, 3), dtype="bool")], T((2, 3), dtype="bool"))
for _op in ("SELECT", "SELECT_V2"):
    for _q in (A, None):
        add(f"{_op} {'int8' if _q else 'float'}", _op, [T((2, 3, 4), dtype="bool"), T((2, 3, 4), _q), T((2, 3, 4), _q)],
            T((2, 3, 4), _q))  # fmt: skip
add("SELECT vector", "SELECT", [T((2,), dtype="bool"), T((2, 3, 4)), T((2, 3, 4))], T((2, 3, 4)))
add("SELECT_V2 broadcast", "SELECT_V2", [T((3, 1), dtype="bool"), T((2, 3, 4)), T((4,))], T((2, 3, 4)))
add("ADD_N", "ADD_N", [T((2, 3)), T((2, 3)), T((2, 3))], T((2, 3)), "AddNOptions")
add("ATAN2", "ATAN2", [T((2, 3)), T((2, 3))], T((2, 3)))
for _q in (A, None):
    _kind = "int8" if _q else "float"
    _alpha = C(RNG.integers(-128, 128, (1, 1, 6)).astype(np.int8), 0.01, 3) if _q else floats(1, 1, 6)
    add(f"PRELU {_kind}", "PRELU", [T((1, 4, 5, 6), _q), _alpha], T((1, 4, 5, 6), _q and Y))

# ---- unary ----

UNARY = ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LOGISTIC", "TANH", "HARD_SWISH", "ABS", "NEG", "SIN", "COS",
         "FLOOR", "CEIL", "ROUND", "SIGN", "SQUARE", "EXP", "LOG", "SQRT", "RSQRT", "ZEROS_LIKE")  # fmt: skip
for _op in UNARY:
    add(f"float {_op}", _op, [T((1, 4, 5, 6))], T((1, 4, 5, 6)), positive=_op in ("LOG", "SQRT", "RSQRT"))
add("float GELU", "GELU", [T((1, 4, 5, 6))], T((1, 4, 5, 6)), "GeluOptions")
add("float GELU tanh", "GELU", [T((1, 4, 5, 6))], T((1, 4, 5, 6)), "GeluOptions", approximate=True)
add("float LEAKY_RELU", "LEAKY_RELU", [T((1, 4, 5, 6))], T((1, 4, 5, 6)), "LeakyReluOptions", alpha=0.2)
for _op in ("RELU", "RELU6", "TANH", "ABS", "HARD_SWISH", "EXP"):
    add(f"int8 {_op}", _op, [T((1, 4, 5, 6), A)], T((1, 4, 5, 6), Y))
for _op in ("LOGISTIC",):
    add(f"int8 {_op}", _op, [T((1, 4, 5, 6), A)], T((1, 4, 5, 6), (1 / 256, -128)))
    add(f"uint8 {_op}", _op, [T((1, 4, 5, 6), (0.05, 125), "uint8")], T((1, 4, 5, 6), (1 / 256, 0), "uint8"))
add("int8 QUANTIZE", "QUANTIZE", [T((1, 4, 5, 6), A)], T((1, 4, 5, 6), Y))
add("uint8 to int8", "QUANTIZE", [T((1, 4, 5, 6), (0.05, 125), "uint8")], T((1, 4, 5, 6), (0.05, -3)))
add("int8 to uint8", "QUANTIZE", [T((1, 4, 5, 6), A)], T((1, 4, 5, 6), (0.03, 100), "uint8"))
for _kind, _zero in (("int8", -3), ("uint8", 125), ("int16", 0)):
    add(f"float to {_kind}", "QUANTIZE", [T((1, 40, 5, 6))], T((1, 40, 5, 6), (2**-5, _zero), _kind))
    add(f"{_kind} to float", "DEQUANTIZE", [T((1, 4, 5, 6), (0.05, _zero), _kind)], T((1, 4, 5, 6)))
for _from, _to in (
    ("float32", "int32"),
    ("int32", "float32"),
    ("bool", "float32"),
    ("int32", "int64"),
    ("float32", "bool"),
):
    add(f"CAST {_from} {_to}", "CAST", [T((2, 3), dtype=_from)], T((2, 3), dtype=_to), "CastOptions")

# ---- shapes ----

for _q in (A, None):
    _k = "int8" if _q else "float"
    _big4 = (1, 4, 6, 8)
    add(f"{_k} RESHAPE", "RESHAPE", [T(_big4, _q), ints(2, -1, 8)], T((2, 12, 8), _q))
    add(f"{_k} SQUEEZE", "SQUEEZE", [T((1, 4, 1, 8), _q)], T((4, 8), _q), "SqueezeOptions")
    add(
        f"{_k} SQUEEZE dims", "SQUEEZE", [T((1, 4, 1, 8), _q)], T((1, 4, 8), _q), "SqueezeOptions", squeezeDims=ints(-2)
    )
    add(f"{_k} EXPAND_DIMS", "EXPAND_DIMS", [T((4, 8), _q), ints(1)], T((4, 1, 8), _q))
    add(f"{_k} TRANSPOSE", "TRANSPOSE", [T(_big4, _q), ints(0, 3, 1, 2)], T((1, 8, 4, 6), _q))
    add(f"{_k} TRANSPOSE 3", "TRANSPOSE", [T((2, 3, 4), _q), ints(2, 0, 1)], T((4, 2, 3), _q))
    add(f"{_k} SLICE", "SLICE", [T(_big4, _q), ints(0, 1, 2, 0), ints(1, 2, -1, 5)], T((1, 2, 4, 5), _q))
    for _n, (_b, _e, _s, _masks, _r) in {
        "plain": ((0, 1, 0, 2), (1, 4, 6, 8), (1, 1, 2, 3), {}, (1, 3, 3, 2)),
        "masks": ((0, 1, 3, 2), (1, 4, 2, 6), (1, 1, 1, 1), {"beginMask": 4, "endMask": 8}, (1, 3, 2, 6)),
        "shrink": ((0, 2, 0, 0), (1, 3, 6, 8), (1, 1, 1, 1), {"shrinkAxisMask": 2}, (1, 6, 8)),
        "negative": ((0, -1, 5, 0), (1, -5, -7, 8), (1, -1, -2, 1), {}, (1, 4, 3, 8)),
        "ellipsis": ((0, 0, 1), (1, 0, 3), (1, 1, 1), {"ellipsisMask": 2}, (1, 4, 6, 2)),
        "new axis": ((0, 0, 1), (1, 0, 3), (1, 1, 1), {"newAxisMask": 2}, (1, 1, 2, 6, 8)),
    }.items():
        add(f"{_k} STRIDED_SLICE {_n}", "STRIDED_SLICE", [T(_big4, _q), ints(*_b), ints(*_e), ints(*_s)], T(_r, _q),
            "StridedSliceOptions", **_masks)  # fmt: skip
    add(f"{_k} SPLIT", "SPLIT", [ints(3), T(_big4, _q)], [T((1, 4, 6, 4), _q)] * 2, "SplitOptions", numSplits=2)
    add(f"{_k} SPLIT_V", "SPLIT_V", [T(_big4, _q), ints(2, -1), ints(2)], [T((1, 4, 2, 8), _q), T((1, 4, 4, 8), _q)],
        "SplitVOptions", numSplits=2)  # fmt: skip
    add(f"{_k} UNPACK", "UNPACK", [T((2, 3, 4), _q)], [T((2, 4), _q)] * 3, "UnpackOptions", axis=1, num=3)
    add(f"{_k} PACK", "PACK", [T((2, 4), _q)] * 3, T((2, 3, 4), _q), "PackOptions", axis=1, valuesCount=3)
    add(f"{_k} CONCATENATION", "CONCATENATION", [T(_big4, _q), T((1, 4, 6, 3), _q)], T((1, 4, 6, 11), _q),
        "ConcatenationOptions", axis=-1)  # fmt: skip
    add(f"{_k} TILE", "TILE", [T((1, 2, 3, 4), _q), ints(1, 2, 1, 3)], T((1, 4, 3, 12), _q))
    add(f"{_k} BROADCAST_TO", "BROADCAST_TO", [T((3, 1), _q), ints(2, 3, 4)], T((2, 3, 4), _q))
    add(f"{_k} PAD", "PAD", [T(_big4, _q), np.array([[0, 0], [1, 2], [3, 0], [0, 1]], I32)], T((1, 7, 9, 9), _q))
    _value = C(np.array(17, np.int8), *A) if _q else np.array(0.7, np.float32)
    add(f"{_k} PADV2", "PADV2", [T(_big4, _q), np.array([[0, 0], [1, 2], [3, 0], [0, 1]], I32), _value],
        T((1, 7, 9, 9), _q))  # fmt: skip
    for _mode in (0, 1):
        add(f"{_k} MIRROR_PAD {_mode}", "MIRROR_PAD", [T(_big4, _q), np.array([[0, 0], [1, 2], [3, 0], [0, 1]], I32)],
            T((1, 7, 9, 9), _q), "MirrorPadOptions", mode=_mode)  # fmt: skip
    add(
        f"{_k} SPACE_TO_DEPTH",
        "SPACE_TO_DEPTH",
        [T(_big4, _q)],
        T((1, 2, 3, 32), _q),
        "SpaceToDepthOptions",
        blockSize=2,
    )
    add(
        f"{_k} DEPTH_TO_SPACE",
        "DEPTH_TO_SPACE",
        [T(_big4, _q)],
        T((1, 8, 12, 2), _q),
        "DepthToSpaceOptions",
        blockSize=2,
    )
    add(f"{_k} SPACE_TO_BATCH_ND", "SPACE_TO_BATCH_ND", [T(_big4, _q), ints(2, 2), np.array([[0, 0], [2, 0]], I32)],
        T((4, 2, 4, 8), _q))  # fmt: skip
    add(f"{_k} BATCH_TO_SPACE_ND", "BATCH_TO_SPACE_ND",
        [T((4, 2, 4, 8), _q), ints(2, 2), np.array([[0, 1], [2, 0]], I32)], T((1, 3, 6, 8), _q))  # fmt: skip
    add(f"{_k} REVERSE_V2", "REVERSE_V2", [T((2, 3, 4), _q), ints(1)], T((2, 3, 4), _q))
    add(f"{_k} GATHER", "GATHER", [T((2, 5, 4), _q), ints(3, 0, 3)], T((2, 3, 4), _q), "GatherOptions", axis=1)
    add(f"{_k} GATHER matrix", "GATHER", [T((2, 5, 4), _q), np.array([[3, 0], [1, 4]], I32)], T((2, 2, 2, 4), _q),
        "GatherOptions", axis=1)  # fmt: skip
    add(f"{_k} GATHER batch", "GATHER", [T((2, 3, 5, 4), _q), np.array([[3, 0], [1, 4]], I32)], T((2, 3, 2, 4), _q),
        "GatherOptions", axis=2, batchDims=1)  # fmt: skip
    add(f"{_k} GATHER_ND", "GATHER_ND", [T((2, 5, 4), _q), np.array([[1, 3], [0, 2], [1, 1]], I32)], T((3, 4), _q))
    add(f"{_k} REVERSE_SEQUENCE", "REVERSE_SEQUENCE", [T((2, 3, 5, 4)), ints(5, 0, 3)], T((2, 3, 5, 4)),
        "ReverseSequenceOptions", seqDim=2, batchDim=1)  # fmt: skip
    add(f"{_k} MATRIX_DIAG", "MATRIX_DIAG", [T((2, 3), _q)], T((2, 3, 3), _q))
    for _m in ((3, 5), (5, 3)):
        add(f"{_k} MATRIX_SET_DIAG {_m}", "MATRIX_SET_DIAG", [T((2, *_m), _q), T((2, 3), _q)], T((2, *_m), _q))
    _rest = C(np.array(5, np.int8), *A) if _q else np.array(0.5, np.float32)
    add(f"{_k} SPARSE_TO_DENSE", "SPARSE_TO_DENSE", [np.array([[0, 1], [2, 3]], I32), ints(3, 4), T((2,), _q), _rest],
        T((3, 4), _q))  # fmt: skip
    add(f"{_k} DYNAMIC_UPDATE_SLICE", "DYNAMIC_UPDATE_SLICE", [T((4, 5), _q), T((2, 3), _q), ints(1, 9)], T((4, 5), _q))
    add(f"{_k} TOPK_V2", "TOPK_V2", [T((3, 8), _q), ints(3)], [T((3, 3), _q), T((3, 3), dtype="int32")])
    for _op in ("ARG_MAX", "ARG_MIN"):
        add(f"{_k} {_op}", _op, [T((2, 5, 4), _q), ints(1)], T((2, 4), dtype="int32"), f"Arg{_op[4:].title()}Options",
            outputType=2)  # fmt: skip
    for _axes, _keep, _r in (
        ((1, 2), True, (2, 1, 1, 8)),
        ((1, 2), False, (2, 8)),
        ((3,), False, (2, 4, 6)),
        ((-1, 1), True, (2, 1, 6, 1)),
    ):
        for _op in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"):
            if _q and _op in ("SUM", "REDUCE_PROD"):
                continue
            _y = _q and (A if "REDUCE" in _op else (0.03, 9))
            add(f"{_k} {_op} {_axes} {_keep}", _op, [T((2, 4, 6, 8), _q), ints(*_axes)], T(_r, _y), "ReducerOptions",
                keepDims=_keep)  # fmt: skip
    for _size in ((8, 12), (7, 5), (3, 11)):
        for _align, _half in ((False, False), (True, False), (False, True)):
            add(f"{_k} RESIZE_BILINEAR {_size} {_align} {_half}", "RESIZE_BILINEAR",
                [T((1, 4, 6, 3), _q), ints(*_size)], T((1, *_size, 3), _q), "ResizeBilinearOptions",
                alignCorners=_align, halfPixelCenters=_half)  # fmt: skip
            add(f"{_k} RESIZE_NEAREST {_size} {_align} {_half}", "RESIZE_NEAREST_NEIGHBOR",
                [T((1, 4, 6, 3), _q), ints(*_size)], T((1, *_size, 3), _q), "ResizeNearestNeighborOptions",
                alignCorners=_align, halfPixelCenters=_half)  # fmt: skip
# of int8, the reference SUM reads the bytes as uint8: see test_tflite_arithmetic.py
for _axes, _r in (((1, 2), (2, 8)), ((3,), (2, 4, 6)), ((1,), (2, 6, 8))):
    add(f"uint8 SUM {_axes}", "SUM", [T((2, 4, 6, 8), (0.05, 125), "uint8"), ints(*_axes)], T(_r, (0.4, 133), "uint8"),
        "ReducerOptions")  # fmt: skip
for _op in ("REDUCE_ANY", "REDUCE_ALL"):
    add(_op, _op, [T((3, 2, 4), dtype="bool"), ints(1)], T((3, 4), dtype="bool"), "ReducerOptions")
add("float CUMSUM", "CUMSUM", [T((3, 4)), ints(1)], T((3, 4)), "CumsumOptions")
add("float CUMSUM reverse", "CUMSUM", [T((3, 4)), ints(0)], T((3, 4)), "CumsumOptions", exclusive=True, reverse=True)
_on, _off = np.array(2.5, np.float32), np.array(-1.0, np.float32)
add("ONE_HOT", "ONE_HOT", [np.array([[0, 2], [1, 5]], I32), ints(4).reshape(()), _on, _off], T((2, 4, 2)),
    "OneHotOptions", axis=1)  # fmt: skip
add("SCATTER_ND", "SCATTER_ND", [np.array([[1], [3], [1]], I32), T((3, 4)), ints(5, 4)], T((5, 4)))
add("EMBEDDING_LOOKUP", "EMBEDDING_LOOKUP", [ints(2, 0, 1, 2), T((3, 4))], T((4, 4)))
add("SHAPE", "SHAPE", [T((3, 4, 2))], T((3,), dtype="int32"), "ShapeOptions", outType=2)
add("RANK", "RANK", [T((3, 4, 2))], T((), dtype="int32"))
add("FILL", "FILL", [ints(2, 3), T(())], T((2, 3)))
add("RANGE", "RANGE", [ints(2).reshape(()), ints(11).reshape(()), ints(3).reshape(())], T((3,), dtype="int32"))
add("BROADCAST_ARGS", "BROADCAST_ARGS", [ints(2, 1), ints(3, 1, 4)], T((3,), dtype="int32"))

# ---- over channels ----

for _q in (A, None):
    _k = "int8" if _q else "float"
    add(f"{_k} SOFTMAX", "SOFTMAX", [T((2, 10), _q)], T((2, 10), _q and (1 / 256, -128)), "SoftmaxOptions", beta=1.0)
    add(
        f"{_k} SOFTMAX beta",
        "SOFTMAX",
        [T((1, 2, 3, 7), _q)],
        T((1, 2, 3, 7), _q and (1 / 256, -128)),
        "SoftmaxOptions",
        beta=0.5,
    )
    add(f"{_k} LOG_SOFTMAX", "LOG_SOFTMAX", [T((2, 10), _q)], T((2, 10), _q and (16 / 256, 127)), "LogSoftmaxOptions")
    add(
        f"{_k} L2_NORMALIZATION", "L2_NORMALIZATION", [T((2, 10), _q)], T((2, 10), _q and (1 / 128, 0)), "L2NormOptions"
    )
add("int8 matmul constant", "BATCH_MATMUL", [T((2, 3, 4), A), C(RNG.integers(-128, 128, (4, 5)).astype(np.int8), 0.02)],
    T((2, 3, 5), Y), "BatchMatMulOptions")  # fmt: skip
add("int8 PRELU whole", "PRELU", [T((1, 4, 5, 6), A), C(RNG.integers(-128, 128, (4, 5, 6)).astype(np.int8), 0.01, 3)],
    T((1, 4, 5, 6), Y))  # fmt: skip
add("LOCAL_RESPONSE_NORMALIZATION", "LOCAL_RESPONSE_NORMALIZATION", [T((1, 3, 4, 9))], T((1, 3, 4, 9)),
    "LocalResponseNormalizationOptions", radius=2, bias=1.0, alpha=0.3, beta=0.75)  # fmt: skip
