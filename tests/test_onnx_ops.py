"""ONNX operators with random shapes, attributes and opsets: from_onnx against ONNX Runtime; and their graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402

from mera_torch.converters import from_onnx  # noqa: E402
from mera_torch.errors import InvalidModelError, MeraError, UnsupportedError  # noqa: E402

few = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
fewer = settings(few, max_examples=10)
many = settings(few, max_examples=60)

NUMBERS = {"float32": np.float32, "float64": np.float64, "int32": np.int32, "int64": np.int64}


def model_of(
    op: str,
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray] | None = None,
    *,
    order: list[str] | None = None,
    outputs: int = 1,
    opset: int = 18,
    domain: str = "",
    **attributes: Any,
) -> Any:
    """A model of one node. order: its inputs, "" where one is left out (all inputs, then all constants)."""
    constants = constants or {}
    order = [*inputs, *constants] if order is None else order
    names = [f"out{i}" for i in range(outputs)]
    node = helper.make_node(op, order, names, domain=domain, **attributes)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in inputs.items()
    ]
    graph = helper.make_graph(
        [node],
        "one",
        infos,
        [onnx.ValueInfoProto(name=name) for name in names],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)], ir_version=10)
    whole = onnx.shape_inference.infer_shapes(whole)
    for info in whole.graph.output:
        info.type.tensor_type.shape.SetInParent()  # ONNX's checker wants one, and from_onnx finds the true one
    return whole


def runtime(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime gives, on one thread and without optimizations."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, inputs)
    return found


def imported(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    module = from_onnx(model)
    results = module(*(torch.from_numpy(np.array(a)) for a in inputs.values()))
    return [r.numpy() for r in (results if isinstance(results, tuple) else (results,))]


def agree(
    op: str,
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray] | None = None,
    *,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    **attributes: Any,
) -> None:
    """from_onnx gives what ONNX Runtime gives; with every operand constant it folds to the same."""
    inputs = {name: np.asarray(value) for name, value in inputs.items()}
    model = model_of(op, inputs, constants, **attributes)
    expected = runtime(model, inputs)
    order = attributes.pop("order", None) or [*inputs, *(constants or {})]
    folded = model_of(op, {}, {**inputs, **(constants or {})}, order=order, **attributes)
    for found in (imported(model, inputs), imported(folded, {})):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_equal(a.shape, b.shape)
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


# ---- values ----


def shapes(least: int = 0, most: int = 4, size: int = 5) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(1, size), min_size=least, max_size=most).map(tuple)


def values(draw: Any, shape: tuple[int, ...], kind: str = "float32", low: int = -9, high: int = 9) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    if kind == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if kind.startswith("float"):
        return np.asarray(rng.uniform(low, high, shape)).astype(kind)
    low = max(low, int(np.iinfo(kind).min))
    return np.asarray(rng.integers(low, high + 1, shape)).astype(kind)


def broadcastable(draw: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts with this one (and may be of higher rank)."""
    kept = shape[draw(st.integers(0, len(shape))) :]
    kept = tuple(1 if draw(st.booleans()) else n for n in kept)
    return (*draw(shapes(0, 1, 3)), *kept) if len(kept) == len(shape) else kept


def axis_of(draw: Any, rank: int) -> int:
    return draw(st.integers(-rank, rank - 1))


def axes_of(draw: Any, rank: int, least: int = 0) -> list[int]:
    chosen = draw(st.lists(st.integers(0, rank - 1), unique=True, min_size=min(least, rank), max_size=rank))
    return [a - rank if draw(st.booleans()) else a for a in chosen]


# ---- arithmetic ----

UNARY = {
    "Abs": 6, "Acosh": 9, "Asin": 7, "Asinh": 9, "Atan": 7, "Atanh": 9, "Ceil": 6, "Cos": 7, "Cosh": 9, "Erf": 9,
    "Exp": 6, "Floor": 6, "Log": 6, "Neg": 6, "Reciprocal": 6, "Round": 11, "Sign": 9, "Sin": 7, "Sinh": 9, "Sqrt": 6,
    "Tan": 7, "Acos": 7,
}  # fmt: skip
BOUNDED = {"Acos": (-1, 1), "Asin": (-1, 1), "Atanh": (-1, 1), "Acosh": (1, 9), "Log": (0, 9), "Sqrt": (0, 9)}


@fewer
@given(st.data())
@pytest.mark.parametrize("op", UNARY)
def test_functions_of_one_value(op: str, data: Any) -> None:
    low, high = BOUNDED.get(op, (-9, 9))
    x = values(data.draw, data.draw(shapes()), "float32", low, high)
    agree(op, {"x": x}, opset=data.draw(st.sampled_from([o for o in (7, 9, 13, 20, 22) if o >= UNARY[op]])), atol=1e-4)


@many
@given(st.data(), st.sampled_from(["Add", "Sub", "Mul", "Div"]), st.sampled_from([*NUMBERS]), st.integers(0, 2))
def test_arithmetic_broadcasts(data: Any, op: str, kind: str, constant: int) -> None:
    """With either operand constant, and with none."""
    shape = data.draw(shapes())
    a, b = values(data.draw, shape, kind), values(data.draw, broadcastable(data.draw, shape), kind)
    if op == "Div":
        b = np.where(b == 0, np.ones_like(b), b)
    given_ = {"a": a, "b": b}
    held = {name: given_.pop(name) for name in (["a"], ["b"], [])[constant]}
    agree(op, given_, held, order=["a", "b"], opset=data.draw(st.sampled_from([7, 13, 14])))


@few
@given(st.data(), st.sampled_from(["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"]), st.booleans())
def test_comparisons(data: Any, op: str, constant: bool) -> None:
    shape = data.draw(shapes())
    a, b = (values(data.draw, s, "int32", -2, 2) for s in (shape, broadcastable(data.draw, shape)))
    opset = data.draw(st.sampled_from([13, 16]))
    agree(op, {"a": a} if constant else {"a": a, "b": b}, {"b": b} if constant else {}, opset=opset)


@few
@given(st.data(), st.sampled_from(["float32", "int32", "int64"]), st.booleans())
def test_mod(data: Any, kind: str, truncating: bool) -> None:
    shape = data.draw(shapes())
    a, b = values(data.draw, shape, kind), values(data.draw, broadcastable(data.draw, shape), kind)
    b = np.where(b == 0, np.full_like(b, 3), b)
    agree("Mod", {"a": a, "b": b}, fmod=1 if kind == "float32" else int(truncating), opset=13)


@few
@given(st.data(), st.sampled_from(["float32", "int32", "int64"]), st.sampled_from(["float32", "int32", "int64"]))
def test_pow(data: Any, base: str, exponent: str) -> None:
    shape = data.draw(shapes())
    x = values(data.draw, shape, base, 1, 5)
    y = values(data.draw, broadcastable(data.draw, shape), exponent, 0, 4)
    if base != "float32" and exponent == "float32":
        y = np.round(y)
    held = data.draw(st.booleans())
    agree("Pow", {"x": x} if held else {"x": x, "y": y}, {"y": y} if held else {}, opset=15, rtol=1e-3)


@few
@given(st.data(), st.sampled_from(["Sum", "Max", "Min", "Mean"]))
def test_functions_of_several(data: Any, op: str) -> None:
    shape = data.draw(shapes())
    count = data.draw(st.integers(1, 4))
    given_ = {f"x{i}": values(data.draw, broadcastable(data.draw, shape) if i else shape) for i in range(count)}
    try:
        np.broadcast_shapes(*(a.shape for a in given_.values()))
    except ValueError:
        assume(False)
    agree(op, given_, opset=data.draw(st.sampled_from([8, 13])))


@few
@given(st.data(), st.sampled_from(["LEFT", "RIGHT"]), st.sampled_from(["uint8", "uint32", "uint64"]))
def test_bit_shifts(data: Any, direction: str, kind: str) -> None:
    bits = np.dtype(kind).itemsize * 8
    shape = data.draw(shapes(1, 2))
    x = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 2**bits - 1, shape, np.uint64).astype(kind)
    agree("BitShift", {"x": x, "y": values(data.draw, shape, kind, 0, bits - 1)}, direction=direction, opset=11)


@few
@given(st.data(), st.sampled_from(["float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool"]))
def test_casts(data: Any, source: str) -> None:
    low = 0 if source.startswith("u") else -9
    target = data.draw(
        st.sampled_from(["float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "bool"])
    )
    x = values(data.draw, data.draw(shapes()), source, 0 if target.startswith("u") else low, 9)
    agree("Cast", {"x": x}, to=helper.np_dtype_to_tensor_dtype(np.dtype(target)), opset=13)


def test_unsigned_arithmetic_is_exact() -> None:
    """uint64 beyond 2^63, for which torch has no kernels; against NumPy."""
    edge = np.array([0, 1, 2, 3, 2**31, 2**32, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1], np.uint64)
    a, b = (np.ascontiguousarray(m) for m in np.meshgrid(edge, edge))
    nonzero = np.where(b == 0, np.uint64(7), b)
    expected = {
        "Add": a + b, "Sub": a - b, "Mul": a * b, "Div": a // nonzero, "Mod": a % nonzero, "Less": a < b,
        "GreaterOrEqual": a >= b, "Equal": a == b, "Max": np.maximum(a, b), "Min": np.minimum(a, b),
    }  # fmt: skip
    for op, wanted in expected.items():
        given_ = {"a": a, "b": nonzero if op in ("Div", "Mod") else b}
        (found,) = imported(model_of(op, given_, opset=18), given_)
        np.testing.assert_array_equal(found, wanted, err_msg=op)
        assert found.dtype == wanted.dtype


# ---- reductions ----

REDUCTIONS = [
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
]  # fmt: skip


@fewer
@given(st.data(), st.booleans(), st.sampled_from([11, 13, 18]))
@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions(op: str, data: Any, keep: bool, opset: int) -> None:
    shape = data.draw(shapes(1, 4, 4))
    x = values(data.draw, shape, "float32", 1, 3)
    axes = axes_of(data.draw, len(shape))
    as_input = opset >= (13 if op == "ReduceSum" else 18)
    attributes: dict[str, Any] = {"keepdims": int(keep)}
    constants = {}
    if as_input:
        attributes["noop_with_empty_axes"] = data.draw(st.integers(0, 1))
        if axes or data.draw(st.booleans()):
            constants["axes"] = np.array(axes, np.int64)
    elif axes:
        attributes["axes"] = axes
    plain = op not in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare", "ReduceLogSumExp")
    assume(axes or plain or not attributes.get("noop_with_empty_axes"))  # ONNX Runtime skips their function
    agree(op, {"x": x}, constants, opset=opset, **attributes, rtol=1e-3)


@few
@given(st.data(), st.sampled_from(["ArgMax", "ArgMin"]), st.booleans(), st.booleans(), st.sampled_from([11, 12, 13]))
def test_arg_max_min(data: Any, op: str, keep: bool, last: bool, opset: int) -> None:
    shape = data.draw(shapes(1))
    attributes = {"select_last_index": int(last)} if opset >= 12 else {}
    x = values(data.draw, shape, "int32", 0, 2)
    agree(op, {"x": x}, opset=opset, axis=axis_of(data.draw, len(shape)), keepdims=int(keep), **attributes)


@few
@given(st.data(), st.booleans())
def test_top_k(data: Any, largest: bool) -> None:
    shape = data.draw(shapes(1))
    axis = axis_of(data.draw, len(shape))
    k = np.array([data.draw(st.integers(1, shape[axis]))], np.int64)
    x = values(data.draw, shape, "int32", 0, 3)
    agree("TopK", {"x": x}, {"k": k}, outputs=2, axis=axis, largest=int(largest), opset=11)


@few
@given(st.data(), st.booleans(), st.booleans())
def test_cum_sum(data: Any, exclusive: bool, reverse: bool) -> None:
    shape = data.draw(shapes(1))
    axis = np.array(axis_of(data.draw, len(shape)), np.int64)
    x = values(data.draw, shape)
    agree("CumSum", {"x": x}, {"axis": axis}, exclusive=int(exclusive), reverse=int(reverse), opset=14)


@few
@given(
    st.data(),
    st.sampled_from(["ij,jk->ik", "bij,bjk->bik", "ij->ji", "ii->i", "ij->", "i,j->ij", "...ij,...jk->...ik", "ij,ij"]),
)
def test_einsum(data: Any, equation: str) -> None:
    size = data.draw(st.integers(1, 4))
    terms = equation.replace("...", "b").partition("->")[0].split(",")
    given_ = {f"x{i}": values(data.draw, (size,) * len(term)) for i, term in enumerate(terms)}
    agree("Einsum", given_, equation=equation, opset=12, rtol=1e-3, atol=1e-3)


# ---- shapes ----


@few
@given(st.data(), st.sampled_from([9, 10, 13]))
def test_slice(data: Any, opset: int) -> None:
    shape = data.draw(shapes(1))
    axes = axes_of(data.draw, len(shape), 1)
    bounds = st.integers(-7, 7) | st.sampled_from([2**31 - 1, -(2**31), 2**63 - 1, -(2**63) + 1])
    starts, ends = ([data.draw(bounds) for _ in axes] for _ in range(2))
    x = {"x": values(data.draw, shape)}
    if opset == 9:
        agree("Slice", x, starts=starts, ends=ends, axes=axes, opset=opset)
        return
    steps = [data.draw(st.integers(-3, 3).filter(bool)) for _ in axes]
    assume(all(step > 0 or end < 2**31 - 1 for step, end in zip(steps, ends, strict=True)))  # ORT goes the other way
    held = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    agree("Slice", x, {name: np.array(v, np.int64) for name, v in held.items()}, opset=opset)


@many
@given(st.data(), st.sampled_from(["constant", "reflect", "edge", "wrap"]), st.sampled_from([10, 11, 18, 19]))
def test_pad(data: Any, mode: str, opset: int) -> None:
    assume(mode != "wrap" or opset == 19)
    rank = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.integers(2, 5)) for _ in range(rank))
    pads = [data.draw(st.integers(0, shape[i % rank] - 1)) for i in range(2 * rank)]
    if mode == "constant":
        pads = [data.draw(st.integers(-(shape[i % rank] // 2), 3)) for i in range(2 * rank)]
    assume(all(n + pads[i] + pads[rank + i] > 0 for i, n in enumerate(shape)))
    x = {"x": values(data.draw, shape)}
    if opset == 10:
        agree("Pad", x, pads=pads, mode=mode, value=1.5, opset=opset)
        return
    held = {"pads": np.array(pads, np.int64)}
    if mode == "constant" and data.draw(st.booleans()):
        held["number"] = np.array(data.draw(st.integers(-3, 3)), np.float32)
    elif opset >= 18:
        axes = data.draw(st.permutations(range(rank)))[: data.draw(st.integers(1, rank))]
        held = {"pads": np.array([pads[a] for a in axes] + [pads[rank + a] for a in axes], np.int64)}
        agree(
            "Pad", x, held | {"axes": np.array(axes, np.int64)}, order=["x", "pads", "", "axes"], mode=mode, opset=opset
        )
        return
    agree("Pad", x, held, mode=mode, opset=opset)


@few
@given(st.data(), st.sampled_from([11, 13, 18]), st.booleans())
def test_split(data: Any, opset: int, given_sizes: bool) -> None:
    shape = list(data.draw(shapes(1, 3)))
    axis = axis_of(data.draw, len(shape))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    shape[axis] = sum(sizes)
    x = {"x": values(data.draw, tuple(shape))}
    if given_sizes and opset >= 13:
        agree("Split", x, {"split": np.array(sizes, np.int64)}, axis=axis, outputs=len(sizes), opset=opset)
    elif given_sizes:
        agree("Split", x, axis=axis, split=sizes, outputs=len(sizes), opset=opset)
    else:
        count = data.draw(st.integers(1, 3))
        shape[axis] = count * 2 + (1 if opset >= 18 and count == 2 else 0)
        extra = {"num_outputs": count} if opset >= 18 else {}
        agree("Split", {"x": values(data.draw, tuple(shape))}, axis=axis, outputs=count, opset=opset, **extra)


@few
@given(st.data())
def test_concat_transpose_flatten(data: Any) -> None:
    shape = list(data.draw(shapes(1)))
    axis = axis_of(data.draw, len(shape))
    given_ = {}
    for i in range(data.draw(st.integers(1, 3))):
        shape[axis] = data.draw(st.integers(1, 4))
        given_[f"x{i}"] = values(data.draw, tuple(shape))
    agree("Concat", given_, axis=axis, opset=13)
    x = {"x": given_["x0"]}
    order = data.draw(st.permutations(range(len(shape))))
    agree("Transpose", x, opset=13, **({"perm": order} if data.draw(st.booleans()) else {}))
    agree("Flatten", x, axis=data.draw(st.integers(-len(shape), len(shape))), opset=13)


@few
@given(st.data(), st.sampled_from([11, 13]))
def test_reshape_squeeze_unsqueeze(data: Any, opset: int) -> None:
    x = values(data.draw, data.draw(shapes(1)))
    sizes = list(data.draw(st.permutations(x.shape)))
    if data.draw(st.booleans()):
        sizes[data.draw(st.integers(0, len(sizes) - 1))] = -1
    agree("Reshape", {"x": x}, {"shape": np.array(sizes, np.int64)}, opset=opset)
    axes = axes_of(data.draw, x.ndim + 1, 1)[:1]
    as_input = {"axes": np.array(axes, np.int64)} if opset >= 13 else {}
    as_attribute = {} if opset >= 13 else {"axes": axes}
    agree("Unsqueeze", {"x": x}, as_input, opset=opset, **as_attribute)
    agree("Squeeze", {"x": np.expand_dims(x, tuple(axes))}, as_input, opset=opset, **as_attribute)
    agree("Squeeze", {"x": np.expand_dims(x, tuple(axes))}, opset=opset)


@few
@given(st.data())
def test_expand_tile_where(data: Any) -> None:
    x = values(data.draw, data.draw(shapes(1)))
    sizes = np.array(broadcastable(data.draw, x.shape), np.int64)
    agree("Expand", {"x": x}, {"shape": sizes}, opset=13)
    agree("Tile", {"x": x}, {"repeats": np.array([data.draw(st.integers(1, 3)) for _ in x.shape], np.int64)}, opset=13)
    condition = values(data.draw, broadcastable(data.draw, x.shape), "bool")
    agree("Where", {"c": condition, "x": x, "y": -x}, opset=16)


@few
@given(st.data(), st.sampled_from(["DCR", "CRD"]))
def test_space_and_depth(data: Any, mode: str) -> None:
    n, c, h, w, block = (data.draw(st.integers(1, 3)) for _ in range(5))
    x = {"x": values(data.draw, (n, c * block * block, h, w))}
    agree("DepthToSpace", x, blocksize=block, mode=mode, opset=13)
    agree("SpaceToDepth", {"x": values(data.draw, (n, c, h * block, w * block))}, blocksize=block, opset=13)


@few
@given(st.data(), st.integers(0, 1), st.integers(-6, 6))
def test_trilu(data: Any, upper: int, k: int) -> None:
    x = {"x": values(data.draw, data.draw(shapes(2)))}
    agree("Trilu", x, {"k": np.array(k, np.int64)}, upper=upper, opset=14)


# ---- indices ----


@few
@given(st.data(), st.booleans(), st.sampled_from(["int32", "int64"]))
def test_gather(data: Any, constant: bool, kind: str) -> None:
    x = values(data.draw, data.draw(shapes(1, 3)))
    axis = axis_of(data.draw, x.ndim)
    size = x.shape[axis]
    index = values(data.draw, data.draw(shapes(0, 2)), kind, -size, size - 1)
    agree(
        "Gather", {"x": x} if constant else {"x": x, "i": index}, {"i": index} if constant else {}, axis=axis, opset=13
    )


@few
@given(st.data())
def test_gather_elements_and_scatter_elements(data: Any) -> None:
    x = values(data.draw, data.draw(shapes(1, 3)))
    axis = axis_of(data.draw, x.ndim)
    sizes = tuple(data.draw(st.integers(1, n)) for n in x.shape)
    index = values(data.draw, sizes, "int64", -x.shape[axis], x.shape[axis] - 1)
    agree("GatherElements", {"x": x, "i": index}, axis=axis, opset=13)
    how = data.draw(st.sampled_from(["none", "add", "mul", "max", "min"]))
    if how == "none":  # each place once: which of two writers wins is not said
        order = np.argsort(np.random.default_rng(0).random(x.shape), axis=axis)
        index = order[tuple(slice(0, n) for n in sizes)].astype(np.int64)
    agree("ScatterElements", {"x": x, "i": index, "u": values(data.draw, sizes)}, axis=axis, reduction=how, opset=18)


@few
@given(st.data())
def test_gather_nd_and_scatter_nd(data: Any) -> None:
    x = values(data.draw, data.draw(shapes(1, 3)))
    batch = data.draw(st.integers(0, x.ndim - 1))
    depth = data.draw(st.integers(1, x.ndim - batch))
    outer = (*x.shape[:batch], *data.draw(shapes(1, 2, 3)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    index = np.stack([rng.integers(-n, n, outer) for n in x.shape[batch : batch + depth]], -1).astype(np.int64)
    agree("GatherND", {"x": x, "i": index}, batch_dims=batch, opset=13)
    how = data.draw(st.sampled_from(["none", "add", "mul", "max", "min"]))
    count = data.draw(st.integers(1, 3))
    index = np.stack([rng.integers(-n, n, (count,)) for n in x.shape[:depth]], -1).astype(np.int64)
    if how == "none":
        index = index[:1]
    updates = values(data.draw, (*index.shape[:-1], *x.shape[depth:]))
    agree("ScatterND", {"x": x, "i": index, "u": updates}, reduction=how, opset=18)


@few
@given(st.data())
def test_one_hot(data: Any) -> None:
    index = values(data.draw, data.draw(shapes(1, 2)), "int64", -5, 5)
    axis = data.draw(st.integers(-index.ndim - 1, index.ndim))
    held = {"depth": np.array(4, np.int64), "values": np.array([2, 7], np.float32)}
    agree("OneHot", {"i": index}, held, axis=axis, opset=11)


@few
@given(st.data(), st.integers(0, 1))
def test_reverse_sequence(data: Any, time: int) -> None:
    shape = data.draw(shapes(2, 3))
    lengths = values(data.draw, (shape[1 - time],), "int64", 1, shape[time])
    agree(
        "ReverseSequence", {"x": values(data.draw, shape), "n": lengths}, time_axis=time, batch_axis=1 - time, opset=10
    )


# ---- recurrent ----

FUNCTIONS = ["Tanh", "Relu", "Sigmoid", "LeakyRelu", "HardSigmoid", "Softsign"]


@settings(few, max_examples=20)
@given(st.data(), st.sampled_from(["RNN", "GRU", "LSTM"]), st.sampled_from(["forward", "reverse", "bidirectional"]))
def test_recurrent(data: Any, op: str, direction: str) -> None:
    gates, used = {"RNN": (1, 1), "GRU": (3, 2), "LSTM": (4, 3)}[op]
    ways = 2 if direction == "bidirectional" else 1
    steps, batch, width, size = (data.draw(st.integers(1, n)) for n in (5, 3, 4, 4))
    held = {
        "w": values(data.draw, (ways, gates * size, width), low=-1, high=1),
        "r": values(data.draw, (ways, gates * size, size), low=-1, high=1),
        "b": values(data.draw, (ways, 2 * gates * size), low=-1, high=1),
    }
    x = values(data.draw, (steps, batch, width), low=-2, high=2)
    order = ["x", "w", "r", "b" if data.draw(st.booleans()) else ""]
    given_ = {"x": x}
    if data.draw(st.booleans()):
        held["n"] = values(data.draw, (batch,), "int32", 1, steps)
    order.append("n" if "n" in held else "")
    for name in ["h"] + ["c"] * (op == "LSTM"):
        if data.draw(st.booleans()):
            given_[name] = values(data.draw, (ways, batch, size), low=-1, high=1)
        order.append(name if name in given_ else "")
    if op == "LSTM" and data.draw(st.booleans()):
        held["p"] = values(data.draw, (ways, 3 * size), low=-1, high=1)
        order.append("p")
    attributes: dict[str, Any] = {"hidden_size": size, "direction": direction}
    if data.draw(st.booleans()):
        attributes["activations"] = [data.draw(st.sampled_from(FUNCTIONS)) for _ in range(used * ways)]
    if op == "GRU":
        attributes["linear_before_reset"] = data.draw(st.integers(0, 1))
    if data.draw(st.booleans()):
        attributes["clip"] = 0.75
    held = {name: value for name, value in held.items() if name in order}
    outputs = 3 if op == "LSTM" else 2
    agree(op, given_, held, order=order, outputs=outputs, opset=14, rtol=1e-3, **attributes)


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_recurrent_batch_first(op: str) -> None:
    """layout=1 (which ONNX Runtime refuses) is layout=0 with its axes exchanged."""
    rng = np.random.default_rng(0)
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    held = {"w": rng.normal(size=(1, gates * 4, 3)), "r": rng.normal(size=(1, gates * 4, 4))}
    held = {name: value.astype(np.float32) for name, value in held.items()}
    x = rng.normal(size=(5, 2, 3)).astype(np.float32)
    outputs = 3 if op == "LSTM" else 2
    first = model_of(op, {"x": x}, held, outputs=outputs, opset=14, hidden_size=4)
    swapped = {"x": np.ascontiguousarray(x.transpose(1, 0, 2))}
    second = model_of(op, swapped, held, outputs=outputs, opset=14, hidden_size=4, layout=1)
    y, *last = imported(first, {"x": x})
    z, *final = imported(second, swapped)
    np.testing.assert_allclose(z, y.transpose(2, 0, 1, 3), atol=1e-6)
    for a, b in zip(last, final, strict=True):
        np.testing.assert_allclose(b, a.transpose(1, 0, 2), atol=1e-6)


# ---- sampling and signals ----


@fewer
@given(
    st.data(),
    st.sampled_from(["linear", "nearest", "cubic"]),
    st.sampled_from(["zeros", "border", "reflection"]),
    st.integers(0, 1),
)
def test_grid_sample(data: Any, mode: str, padding: str, corners: int) -> None:
    n, c, h, w, rows, columns = (data.draw(st.integers(low, 4)) for low in (1, 1, 2, 2, 1, 1))
    grid = values(data.draw, (n, rows, columns, 2), low=-2, high=2)
    mode_16 = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}[mode]
    given_ = {"x": values(data.draw, (n, c, h, w)), "g": grid}
    common = {"padding_mode": padding, "align_corners": corners}
    agree("GridSample", given_, mode=mode, opset=20, **common, rtol=1e-3, atol=1e-3)
    agree("GridSample", given_, mode=mode_16, opset=16, **common, rtol=1e-3, atol=1e-3)


@fewer
@given(st.data(), st.sampled_from(["avg", "max"]), st.integers(0, 3), st.sampled_from([10, 16]))
def test_roi_align(data: Any, mode: str, ratio: int, opset: int) -> None:
    count, rng = data.draw(st.integers(1, 3)), np.random.default_rng(data.draw(st.integers(0, 99)))
    corner = rng.uniform(0, 5, (count, 2))
    rois = np.concatenate([corner, corner + rng.uniform(1, 6, (count, 2))], 1).astype(np.float32)
    x = values(data.draw, (2, 3, 7, 8))
    batch = rng.integers(0, 2, count).astype(np.int64)
    size = {"output_height": 2, "output_width": 3, "spatial_scale": 0.5, "sampling_ratio": ratio, "mode": mode}
    if ratio:
        agree("RoiAlign", {"x": x, "r": rois, "b": batch}, opset=opset, **size, atol=1e-4)
    else:
        agree("RoiAlign", {"x": x, "b": batch}, {"r": rois}, order=["x", "r", "b"], opset=opset, **size, atol=1e-4)


@fewer
@given(st.data(), st.integers(1, 2), st.integers(1, 2), st.booleans(), st.booleans())
def test_deform_conv(data: Any, groups: int, offset_groups: int, biased: bool, masked: bool) -> None:
    rows, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    strides, dilations = ([data.draw(st.integers(1, 2)) for _ in range(2)] for _ in range(2))
    pads = [data.draw(st.integers(0, 2)) for _ in range(4)]
    x = values(data.draw, (2, 4, 6, 7))
    weight = values(data.draw, (2 * groups, 4 // groups, rows, columns), low=-1, high=1)
    height, width = (
        (x.shape[2 + i] + pads[i] + pads[2 + i] - dilations[i] * ((rows, columns)[i] - 1) - 1) // strides[i] + 1
        for i in (0, 1)
    )
    places = offset_groups * rows * columns
    given_ = {"x": x, "w": weight, "o": values(data.draw, (2, 2 * places, height, width), low=-3, high=3)}
    order = ["x", "w", "o", "b" if biased else "", "m" if masked else ""]
    if biased:
        given_["b"] = values(data.draw, (2 * groups,))
    if masked:
        given_["m"] = values(data.draw, (2, places, height, width), low=0, high=1)
    attributes = {"strides": strides, "dilations": dilations, "pads": pads, "group": groups}
    agree("DeformConv", given_, order=order, opset=19, offset_group=offset_groups, **attributes, rtol=1e-3, atol=1e-3)


@few
@given(st.data(), st.sampled_from([17, 20]), st.booleans(), st.booleans())
def test_dft(data: Any, opset: int, inverse: bool, onesided: bool) -> None:
    assume(not (inverse and onesided))
    length = data.draw(st.integers(2, 8))
    x = values(data.draw, (2, length, 1 if onesided else data.draw(st.integers(1, 2))))
    flags = {"inverse": int(inverse), "onesided": int(onesided)}
    if opset == 17:
        agree("DFT", {"x": x}, axis=1, opset=17, **flags, atol=1e-4)
    else:
        agree("DFT", {"x": x}, {"axis": np.array(1, np.int64)}, order=["x", "", "axis"], opset=20, **flags, atol=1e-4)


# ---- graphs ----


def targets(op: str, shape: tuple[int, ...], constants: dict[str, np.ndarray], **attributes: Any) -> list[str]:
    """The operators that one operator of ONNX becomes."""
    inputs = {"x": np.zeros(shape, attributes.pop("kind", np.float32))}
    model = from_onnx(model_of(op, inputs, constants, **attributes))
    return [str(n.target).removeprefix("aten.") for n in model.graph.nodes if n.op == "call_function"]


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


IMAGE = (1, 8, 6, 6)
one = np.array([2], np.float32)
channels = np.ones((1, 8, 1, 1), np.float32)
GRAPHS: list[tuple[str, Callable[[], list[str]], list[str]]] = [
    ("a number", lambda: targets("Add", IMAGE, {"c": one}), ["add.Tensor"]),
    ("a number first", lambda: targets("Sub", IMAGE, {"c": one}, order=["c", "x"]), ["rsub.Scalar"]),
    ("one for each channel", lambda: targets("Mul", IMAGE, {"c": channels}), ["mul.Tensor"]),
    ("division by a number", lambda: targets("Div", IMAGE, {"c": one}), ["div.Tensor"]),
    ("the maximum with a number", lambda: targets("Max", IMAGE, {"c": one * 0}), ["clamp.default"]),
    ("the mean of an image", lambda: targets("ReduceMean", IMAGE, {"a": ints(2, 3)}), ["mean.dim"]),
    (
        "slices",
        lambda: targets("Slice", IMAGE, {"s": ints(1, 0), "e": ints(5, 6), "a": ints(2, 3)}),
        ["slice.Tensor"],
    ),
    ("parts", lambda: targets("Split", IMAGE, {}, axis=1, num_outputs=2, outputs=2), ["slice.Tensor"] * 2),
    ("zeros around", lambda: targets("Pad", IMAGE, {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}), ["constant_pad_nd.default"]),
    (
        "reflections around",
        lambda: targets("Pad", IMAGE, {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}, mode="reflect"),
        ["reflection_pad2d.default"],
    ),
    ("a row", lambda: targets("Gather", IMAGE, {"i": np.array(3)}, axis=2), ["select.int"]),
    ("rows", lambda: targets("Gather", IMAGE, {"i": ints(2, 3, 4)}, axis=2), ["slice.Tensor"]),
    ("other rows", lambda: targets("Gather", IMAGE, {"i": ints(4, 2)}, axis=2), ["index.Tensor"]),
    ("nothing", lambda: targets("Cast", IMAGE, {}, to=1), []),
    ("nothing either", lambda: targets("Transpose", IMAGE, {}, perm=[0, 1, 2, 3]), []),
    ("sub-pixels", lambda: targets("DepthToSpace", IMAGE, {}, blocksize=2, mode="CRD"), ["pixel_shuffle.default"]),
]


@pytest.mark.parametrize(("made", "expected"), [case[1:] for case in GRAPHS], ids=[case[0] for case in GRAPHS])
def test_graphs_are_those_that_the_compiler_knows(made: Callable[[], list[str]], expected: list[str]) -> None:
    assert made() == expected


def test_shape_arithmetic_folds() -> None:
    """Shape -> Gather -> Concat -> Reshape, as exporters write a flatten."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Gather", ["shape", "zero"], ["n"]),
        helper.make_node("Constant", [], ["axes"], value_ints=[0]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["first"]),
        helper.make_node("Constant", [], ["rest"], value_ints=[-1]),
        helper.make_node("Concat", ["first", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["x", "sizes"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", 1, [2, 3, 4])
    y = helper.make_tensor_value_info("y", 1, [2, 12])
    graph = helper.make_graph(nodes, "flatten", [x], [y])
    model = from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    assert [str(n.target) for n in model.graph.nodes if n.op == "call_function"] == ["aten.reshape.default"]


# ---- refusals ----


@pytest.mark.parametrize(
    ("op", "attributes", "error", "words"),
    [
        ("RandomNormalLike", {}, UnsupportedError, "random"),
        ("NonZero", {}, UnsupportedError, "input 'x'"),
        ("Reshape", {"order": ["x", "y"]}, UnsupportedError, "input 'y'"),
        ("Transpose", {"perm": [0, 0]}, InvalidModelError, "perm"),
        ("Unsqueeze", {"opset": 11, "axes": [5]}, InvalidModelError, "axes|axis"),
        ("Concat", {"axis": 7}, InvalidModelError, "axis"),
        ("Slice", {"opset": 9, "starts": [0, 1], "ends": [2]}, InvalidModelError, "."),
        ("Pad", {"opset": 10, "pads": [2**40, 0, 0, 0]}, InvalidModelError, "GiB"),
        ("DepthToSpace", {"blocksize": 0}, InvalidModelError, "."),
        ("ReduceSum", {"opset": 11, "axes": [3]}, InvalidModelError, "."),
    ],
)
def test_refusals_say_why(op: str, attributes: dict[str, Any], error: type[MeraError], words: str) -> None:
    """In one sentence that names the operator or its node."""
    order = attributes.pop("order", ["x"])
    opset = attributes.pop("opset", 18)
    inputs = [helper.make_tensor_value_info("x", 1, [2, 3]), helper.make_tensor_value_info("y", 7, [2])]
    node = helper.make_node(op, order, ["z"], **attributes)
    rank = {"Unsqueeze": 3, "DepthToSpace": 4}.get(op, 2)
    output = helper.make_tensor_value_info("z", 7 if op == "NonZero" else 1, [None] * rank)
    graph = helper.make_graph([node], "one", inputs[: len(order)], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    with pytest.raises(error, match=words) as caught:
        from_onnx(model)
    assert op in str(caught.value)


def test_inputs_given_as_constants() -> None:
    """What an operator must know may be an input of the file, if its value is given."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    model = model_of("Reshape", {"x": x, "shape": ints(3, 2)}, opset=13)
    with pytest.raises(UnsupportedError, match="constants"):
        from_onnx(model)
    module = from_onnx(model, constants={"shape": ints(3, 2)})
    assert [info.name for info in module.info.inputs] == ["x"]
    np.testing.assert_array_equal(module(torch.from_numpy(x)).numpy(), x.reshape(3, 2))
