"""from_onnx: what a model may consist of; convolution, pooling, normalization, products, activations and resizing
against ONNX Runtime."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx", reason="package onnx reads ONNX files")
pytest.importorskip("onnxruntime", reason="package onnxruntime is the reference")

from compiled import built, quantized, run  # noqa: E402
from models import build_torchvision  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from onnx.helper import make_function, make_graph, make_node, make_opsetid, make_tensor_value_info  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnx_models import FLOAT, exported, model, random, reference  # noqa: E402

import mera_torch  # noqa: E402
from mera_torch.converters import from_onnx  # noqa: E402
from mera_torch.errors import InvalidModelError, UnsupportedError  # noqa: E402

aten: Any = torch.ops.aten


def agrees(made: onnx.ModelProto, *inputs: np.ndarray, tolerance: float = 1e-4) -> torch.fx.GraphModule:
    """Converts the model and compares every output with ONNX Runtime's."""
    converted = from_onnx(made)
    with torch.no_grad():
        got = converted(*(torch.from_numpy(x) for x in inputs))
    wanted = reference(made, *inputs)
    for g, w in zip(got if isinstance(got, tuple) else (got,), wanted, strict=True):
        assert g.numpy().dtype == w.dtype and g.shape == w.shape
        np.testing.assert_allclose(g.numpy(), w, rtol=tolerance, atol=tolerance)
    return converted


def targets(converted: torch.fx.GraphModule) -> list[Any]:
    return [node.target for node in converted.graph.nodes if node.op == "call_function"]


# ---- convolution ----

CONVS: list[dict[str, Any]] = [
    {},
    {"strides": [2, 1], "pads": [1, 2, 1, 2]},
    {"pads": [0, 1, 2, 0], "dilations": [1, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"auto_pad": "VALID", "strides": [3, 1]},
]


@pytest.mark.parametrize("attributes", CONVS, ids=str)
@pytest.mark.parametrize("group", [1, 2, 4])
def test_conv(attributes: dict[str, Any], group: int) -> None:
    node = make_node("Conv", ["x", "w", "b"], ["y"], group=group, **attributes)
    constants = {"w": random(8, 4 // group, 3, 2), "b": random(8, seed=1)}
    converted = agrees(model([node], {"x": [2, 4, 11, 10]}, constants=constants), random(2, 4, 11, 10))
    assert aten.convolution.default in targets(converted)


@pytest.mark.parametrize("rank", [1, 3])
def test_conv_of_other_ranks(rank: int) -> None:
    node = make_node("Conv", ["x", "w"], ["y"], pads=[1] * 2 * rank, strides=[2] * rank)
    sizes = [1, 3, *[7] * rank]
    agrees(model([node], {"x": sizes}, constants={"w": random(5, 3, *[3] * rank)}), random(*sizes))


def test_conv_of_a_weight_that_is_an_input() -> None:
    made = model([make_node("Conv", ["x", "w"], ["y"])], {"x": [1, 2, 5, 5], "w": [3, 2, 2, 2]})
    agrees(made, random(1, 2, 5, 5), random(3, 2, 2, 2))


TRANSPOSED: list[dict[str, Any]] = [
    {},
    {"strides": [3, 2]},
    {"strides": [3, 2], "output_padding": [1, 1], "pads": [1, 0, 1, 0]},
    {"strides": [2, 2], "pads": [0, 1, 2, 1]},
    {"strides": [3, 3], "pads": [2, 0, 0, 1]},
    {"strides": [3, 2], "output_shape": [13, 10]},
    {"strides": [2, 2], "output_shape": [8, 9], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"strides": [1, 2], "dilations": [2, 2]},
]


@pytest.mark.parametrize("attributes", TRANSPOSED, ids=str)
@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(attributes: dict[str, Any], group: int) -> None:
    node = make_node("ConvTranspose", ["x", "w", "b"], ["y"], group=group, **attributes)
    constants = {"w": random(4, 3, 3, 3), "b": random(3 * group, seed=1)}
    agrees(model([node], {"x": [1, 4, 4, 5]}, constants=constants), random(1, 4, 4, 5))


# ---- pooling ----

POOLS: list[dict[str, Any]] = [
    {},
    {"strides": [2, 2]},
    {"strides": [2, 3], "pads": [1, 1, 1, 1]},
    {"strides": [2, 2], "pads": [0, 0, 1, 1]},
    {"strides": [1, 1], "pads": [1, 0, 0, 1]},
    {"strides": [2, 2], "ceil_mode": 1},
    {"strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 1], "auto_pad": "SAME_LOWER"},
]


@pytest.mark.parametrize("attributes", POOLS, ids=str)
@pytest.mark.parametrize(
    ("op", "extra"), [("MaxPool", {}), ("AveragePool", {}), ("AveragePool", {"count_include_pad": 1})]
)
def test_pool(op: str, extra: dict[str, Any], attributes: dict[str, Any]) -> None:
    made = model([make_node(op, ["x"], ["y"], kernel_shape=[3, 2], **attributes, **extra)], {"x": [1, 3, 12, 9]})
    converted = agrees(made, random(1, 3, 12, 9))
    if op == "MaxPool":  # no infinite padding where PyTorch's own pool does: it could not be quantized
        assert aten.constant_pad_nd.default not in targets(converted)


@pytest.mark.parametrize("size", [7, 8, 9, 10])
@pytest.mark.parametrize(
    "attributes", [{"pads": [2, 0]}, {"dilations": [2]}, {"ceil_mode": 1, "pads": [0, 1]}], ids=str
)
def test_max_pool_of_sequences(size: int, attributes: dict[str, Any]) -> None:
    made = model([make_node("MaxPool", ["x"], ["y"], kernel_shape=[3], strides=[2], **attributes)], {"x": [2, 3, size]})
    agrees(made, random(2, 3, size))


@pytest.mark.parametrize("attributes", [{}, {"pads": [1, 0, 0, 1]}, {"strides": [2, 2], "ceil_mode": 1}], ids=str)
@pytest.mark.parametrize("order", [0, 1])
def test_max_pool_gives_indices(order: int, attributes: dict[str, Any]) -> None:
    node = make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 3], storage_order=order, **attributes)
    made = model([node], {"x": [2, 3, 7, 8]}, ["y", "i"], kinds={"i": TensorProto.INT64})
    agrees(made, random(2, 3, 7, 8))


def test_pools_of_integers() -> None:
    made = model([make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 0, 1, 0])], {"x": [1, 2, 6, 6]},
                 kinds={"x": TensorProto.UINT8, "y": TensorProto.UINT8})  # fmt: skip
    agrees(made, np.random.default_rng(0).integers(0, 256, (1, 2, 6, 6)).astype(np.uint8))


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_global_pools(op: str, rank: int) -> None:
    sizes = [2, 3, *range(4, 4 + rank)]
    agrees(model([make_node(op, ["x"], ["y"])], {"x": sizes}), random(*sizes))


# ---- normalization, products, activations ----


def test_normalizations() -> None:
    c = {"s": random(6, seed=1), "b": random(6, seed=2), "m": random(6, seed=3), "v": np.abs(random(6, seed=4)) + 0.1}
    x = random(2, 6, 5, 4)
    for node in (
        make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=1e-3),
        make_node("InstanceNormalization", ["x", "s", "b"], ["y"]),
        make_node("LRN", ["x"], ["y"], size=3, alpha=0.1, beta=0.6, bias=2.0),
        make_node("LpNormalization", ["x"], ["y"], axis=1, p=1),
    ):
        agrees(model([node], {"x": list(x.shape)}, constants=c), x)
    terms = {"s": random(5, 4, seed=1), "b": random(4, seed=2)}
    node = make_node("LayerNormalization", ["x", "s", "b"], ["y", "m", "d"], axis=2)
    agrees(model([node], {"x": list(x.shape)}, ["y", "m", "d"], terms), x)


def test_batch_norm_in_training_mode_is_refused() -> None:
    node = make_node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y", "m", "v"], training_mode=1, name="bn7")
    with pytest.raises(UnsupportedError, match=r"BatchNormalization \(opset 17\) 'bn7': .*eval mode"):
        from_onnx(model([node], {"x": [1, 3, 2, 2]}, constants={"s": random(3)}))


@pytest.mark.parametrize(("a", "b"), list(itertools.product([0, 1], [0, 1])))
@pytest.mark.parametrize("c", [None, [5], [1, 5], [4, 1], [4, 5], []], ids=str)
def test_gemm(a: int, b: int, c: list[int] | None) -> None:
    node = make_node(
        "Gemm", ["x", "w", *(["c"] if c is not None else [])], ["y"], transA=a, transB=b, alpha=0.5, beta=2.0
    )
    constants = {"w": random(*([5, 3] if b else [3, 5]))} | ({} if c is None else {"c": random(*c, seed=3)})
    sizes = [3, 4] if a else [4, 3]
    converted = agrees(model([node], {"x": sizes}, constants=constants), random(*sizes))
    assert aten.linear.default in targets(converted)


def test_bias_of_its_own_node_returns_into_the_product() -> None:
    nodes = [make_node("MatMul", ["x", "w"], ["t"]), make_node("Add", ["b", "t"], ["y"])]
    converted = agrees(model(nodes, {"x": [2, 3, 4]}, constants={"w": random(4, 5), "b": random(5)}), random(2, 3, 4))
    assert targets(converted) == [aten.linear.default]
    nodes = [make_node("Conv", ["x", "w"], ["t"]), make_node("Add", ["t", "b"], ["y"])]
    constants = {"w": random(5, 3, 2, 2), "b": random(1, 5, 1, 1)}
    converted = agrees(model(nodes, {"x": [2, 3, 4, 4]}, constants=constants), random(2, 3, 4, 4))
    assert targets(converted) == [aten.convolution.default]
    both = model(nodes, {"x": [2, 3, 4, 4]}, ["t", "y"], constants)  # read elsewhere too: stays
    assert targets(agrees(both, random(2, 3, 4, 4))) == [aten.convolution.default, aten.add.Tensor]


ACTIVATIONS = [
    ("Relu", {}), ("Sigmoid", {}), ("Tanh", {}), ("LeakyRelu", {"alpha": 0.3}), ("Elu", {"alpha": 0.7}), ("Selu", {}),
    ("Celu", {"alpha": 2.0}), ("ThresholdedRelu", {"alpha": 0.5}), ("HardSigmoid", {}), ("Softplus", {}),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}), ("HardSwish", {}), ("Softsign", {}), ("Shrink", {"bias": 0.2}),
    ("Softmax", {"axis": 1}), ("LogSoftmax", {}), ("Hardmax", {"axis": 0}), ("Dropout", {}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attributes"), ACTIVATIONS, ids=str)
def test_activations(op: str, attributes: dict[str, Any]) -> None:
    agrees(model([make_node(op, ["x"], ["y"], **attributes)], {"x": [2, 3, 4, 5]}), 3 * random(2, 3, 4, 5))


@pytest.mark.parametrize("opset", [7, 12])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_of_old_opsets_flattens(op: str, opset: int) -> None:
    agrees(model([make_node(op, ["x"], ["y"])], {"x": [2, 3, 4]}, opset=opset), random(2, 3, 4))


def test_clips_and_slopes() -> None:
    x = 4 * random(2, 3, 4, 4)
    for low, high in ((0, 6), (0, None), (None, 1), (-2, 3), (2, -2), (None, None), (-3.0, -1.0), (0, -1)):
        names = ["x", "" if low is None else "low", "" if high is None else "high"]
        constants = {k: np.float32(v) for k, v in (("low", low), ("high", high)) if v is not None}
        agrees(model([make_node("Clip", names, ["y"])], {"x": [2, 3, 4, 4]}, constants=constants), x)
    agrees(model([make_node("Clip", ["x"], ["y"], min=0.0, max=6.0)], {"x": [2, 3, 4, 4]}, opset=7), x)
    for sizes in ([], [1], [3, 1, 1], [4], [3, 4, 4]):
        agrees(model([make_node("PRelu", ["x", "s"], ["y"])], {"x": [2, 3, 4, 4]}, constants={"s": random(*sizes)}), x)


# ---- resizing ----

COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_resize_nearest(coordinates: str, rounding: str) -> None:
    for sizes in ([1, 2, 8, 15], [1, 2, 3, 2], [1, 2, 5, 5]):
        node = make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="nearest", nearest_mode=rounding,
                         coordinate_transformation_mode=coordinates)  # fmt: skip
        made = model([node], {"x": [1, 2, 4, 5]}, constants={"sizes": np.array(sizes)}, opset=19)
        agrees(made, random(1, 2, 4, 5))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES[:4])
@pytest.mark.parametrize("antialias", [0, 1])
def test_resize_weighted(mode: str, coordinates: str, antialias: int) -> None:
    for sizes in ([1, 2, 8, 15], [1, 2, 3, 2]):
        node = make_node("Resize", ["x", "", "", "sizes"], ["y"], mode=mode, antialias=antialias,
                         coordinate_transformation_mode=coordinates)  # fmt: skip
        made = model([node], {"x": [1, 2, 4, 5]}, constants={"sizes": np.array(sizes)}, opset=18)
        converted = from_onnx(made)
        x = random(1, 2, 4, 5)
        wanted = ReferenceEvaluator(made).run(None, {"x": x})[0]
        np.testing.assert_allclose(converted(torch.from_numpy(x)).numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize(("mode", "corners", "target"), [
    ("nearest", None, aten.upsample_nearest2d.vec), ("bilinear", False, aten.upsample_bilinear2d.vec),
    ("bilinear", True, aten.upsample_bilinear2d.vec),
])  # fmt: skip
def test_exported_resizing_is_pytorchs_own_operator(mode: str, corners: bool | None, target: Any) -> None:
    upsample = nn.Upsample(scale_factor=2, mode=mode, align_corners=corners)
    x = torch.randn(1, 3, 5, 6)
    converted = from_onnx(exported(upsample, x))
    assert targets(converted) == [target]
    assert torch.allclose(converted(x), upsample(x), atol=1e-6)


@pytest.mark.parametrize("opset", [7, 9, 10])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_of_old_opsets(opset: int, mode: str) -> None:
    scales = np.array([1, 1, 2, 3], np.float32)
    if opset < 9:
        made = model([make_node("Upsample", ["x"], ["y"], mode=mode, scales=scales)], {"x": [1, 2, 4, 5]}, opset=opset)
    else:
        op = "Upsample" if opset < 10 else "Resize"
        made = model(
            [make_node(op, ["x", "s"], ["y"], mode=mode)], {"x": [1, 2, 4, 5]}, opset=opset, constants={"s": scales}
        )
    agrees(made, random(1, 2, 4, 5))


# ---- the whole model ----

RELU = [make_node("Relu", ["x"], ["y"])]


def test_symbolic_sizes() -> None:
    made = model(RELU, {"x": ["batch", 3, "height", "width"]})
    with pytest.raises(
        InvalidModelError, match=r"input 'x': dimension 2 has symbolic dimension 'height'; pass shape_mapp"
    ):
        from_onnx(made)
    info = from_onnx(made, {"height": 4, "width": 5}, batch_num=2).info
    assert info.inputs[0].shape == (2, 3, 4, 5) == info.outputs[0].shape
    assert from_onnx(made, {"x": [7, 3, 1, 2]}).info.inputs[0].shape == (7, 3, 1, 2)
    assert from_onnx(made, {"batch": 6, "height": 4, "width": 5}).info.inputs[0].shape == (6, 3, 4, 5)
    for mapping, sentence in (
        ({"heigth": 4}, "no symbolic dimension 'heigth'; did you mean 'height'?"),
        ({"z": [1, 3, 4, 5]}, "the model has no input 'z'"),
        ({"x": [1, 4, 4, 5]}, r"has shape \['batch', 3, 'height', 'width'\], got \[1, 4, 4, 5\]"),
        ({"height": -1}, "must hold sizes from 0"),
        ({"height": "4"}, "must be a size or a list of sizes"),
    ):
        with pytest.raises(InvalidModelError, match=sentence):
            from_onnx(made, mapping)
    with pytest.raises(InvalidModelError, match="batch_num must be a whole number"):
        from_onnx(made, batch_num=0)
    with pytest.raises(InvalidModelError, match="the file fixes the sizes"):
        from_onnx(model(RELU, {"x": [1, 3]}), batch_num=4)
    assert from_onnx(model(RELU, {"x": ["N", 3]}), batch_num=4).info.inputs[0].shape == (4, 3)
    two = model([make_node("Concat", ["x", "z"], ["y"], axis=1)], {"x": ["b", 3], "z": ["b", 2]})
    assert from_onnx(two, batch_num=3).info.outputs[0].shape == (3, 5)


def test_constant_inputs() -> None:
    made = model([make_node("Reshape", ["x", "s"], ["y"])], {"x": [2, 6], "s": [2]}, kinds={"s": TensorProto.INT64})
    with pytest.raises(UnsupportedError, match="must be constant"):
        from_onnx(made)
    converted = from_onnx(made, constants={"s": np.array([3, 4])})
    assert [i.name for i in converted.info.inputs] == ["x"] and converted.info.outputs[0].shape == (3, 4)


def test_initializers_listed_as_inputs_are_no_inputs() -> None:
    made = model([make_node("Add", ["x", "w"], ["y"])], {"x": [2, 3], "w": [3]}, constants={"w": random(3)})
    made.ir_version = 3
    converted = from_onnx(made)
    assert [i.name for i in converted.info.inputs] == ["x"] and list(converted.state_dict()) == ["w"]
    x = torch.from_numpy(random(2, 3))
    assert torch.equal(converted(x), x + torch.from_numpy(random(3)))


def test_sparse_initializers() -> None:
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [5.0, 7.0])
    for indices in (helper.make_tensor("i", TensorProto.INT64, [2], [1, 5]),
                    helper.make_tensor("i", TensorProto.INT64, [2, 2], [0, 1, 1, 2])):  # fmt: skip
        made = model([make_node("Add", ["x", "w"], ["y"])], {"x": [2, 3]})
        made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
        assert from_onnx(made)(torch.zeros(2, 3)).tolist() == [[0, 5, 0], [0, 0, 7]]
    made.graph.sparse_initializer[0].indices.int64_data[3] = 3
    with pytest.raises(InvalidModelError, match="an index lies outside its shape"):
        from_onnx(made)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_weights_of_other_precisions(kind: int) -> None:
    weight = helper.make_tensor("h", kind, [2, 3], [1.5, -2, 3, 0.25, -0.5, 6])
    nodes = [make_node("Cast", ["h"], ["w"], to=TensorProto.FLOAT), make_node("MatMul", ["x", "w"], ["y"])]
    made = model(nodes, {"x": [4, 2]})
    made.graph.initializer.append(weight)
    converted = from_onnx(made)
    assert targets(converted) == [aten.linear.default]  # the cast is folded
    expected = random(4, 2) @ np.array([[1.5, -2, 3], [0.25, -0.5, 6]], np.float32)
    np.testing.assert_allclose(converted(torch.from_numpy(random(4, 2))).numpy(), expected, atol=1e-6)


def test_shape_subgraphs_fold() -> None:
    nodes = [
        make_node("Shape", ["x"], ["s"]), make_node("Gather", ["s", "zero"], ["n"]),
        make_node("Concat", ["n", "rest"], ["t"], axis=0), make_node("Reshape", ["x", "t"], ["y"]),
    ]  # fmt: skip
    made = model(nodes, {"x": ["N", 3, 4]}, constants={"zero": np.array([0]), "rest": np.array([-1])})
    converted = from_onnx(made, batch_num=5)
    assert len(targets(converted)) == 1 and converted.info.outputs[0].shape == (5, 12)


def test_names_and_layouts_of_the_file() -> None:
    nodes = [
        make_node("Conv", ["x/in:0", "w"], ["c"], name="stem/conv"), make_node("Relu", ["c"], ["r"]),
        make_node("Flatten", ["r"], ["y"], name="flat"),
    ]  # fmt: skip
    converted = from_onnx(model(nodes, {"x/in:0": [1, 3, 8, 8]}, ["y", "r"], {"w": random(4, 3, 3, 3)}))
    (x,) = converted.info.inputs
    assert (x.name, x.layout) == ("x/in:0", "NCHW")
    assert [(o.name, o.layout) for o in converted.info.outputs] == [("y", ""), ("r", "NCHW")]
    places = [list(n.meta["nn_module_stack"].values())[-1] for n in converted.graph.nodes if n.op == "call_function"]
    assert places == [("stem/conv", "onnx.Conv"), ("Relu_1", "onnx.Relu"), ("flat", "onnx.Flatten")]


def test_what_no_output_needs_is_not_converted() -> None:
    made = model([*RELU, make_node("NonZero", ["x"], ["z"])], {"x": [2, 2]})
    assert targets(from_onnx(made)) == [aten.relu.default]


# ---- functions and control flow ----


def doubled(name: str, inner: str) -> onnx.FunctionProto:
    """f(a) = inner(a) + inner(a), times its attribute."""
    nodes = [
        make_node(inner, ["a"], ["t"], domain="" if inner == "Relu" else "own", name="first"),
        make_node("Constant", [], ["c"]), make_node("Add", ["t", "t"], ["u"]), make_node("Mul", ["u", "c"], ["b"]),
    ]  # fmt: skip
    factor = onnx.AttributeProto(name="value_float", type=onnx.AttributeProto.FLOAT, ref_attr_name="factor")
    nodes[1].attribute.append(factor)
    function = make_function("own", name, ["a"], ["b"], nodes, [make_opsetid("", 17), make_opsetid("own", 1)], [],
                             [helper.make_attribute("factor", 0.5)])  # fmt: skip
    return function


def test_model_local_functions() -> None:
    functions = [doubled("Outer", "Inner"), doubled("Inner", "Relu")]
    made = model([make_node("Outer", ["x"], ["y"], domain="own", factor=3.0, name="o")], {"x": [2, 3]},
                 functions=functions, domains=["own"])  # fmt: skip
    x = torch.from_numpy(random(2, 3))
    converted = from_onnx(made)
    assert torch.allclose(converted(x), 6 * torch.relu(x))
    first = next(n for n in converted.graph.nodes if n.op == "call_function")
    assert list(first.meta["nn_module_stack"]) == ["o/first/first"]


def test_recursive_and_explosive_functions_are_refused() -> None:
    made = model([make_node("A", ["x"], ["y"], domain="own")], {"x": [2]}, domains=["own"],
                 functions=[doubled("A", "B"), doubled("B", "A")])  # fmt: skip
    with pytest.raises(InvalidModelError, match="calls itself"):
        from_onnx(made)
    functions = [doubled("F0", "Relu")]
    for i in range(1, 12):
        calls = [make_node(f"F{i - 1}", [f"t{k}" if k else "a"], [f"t{k + 1}"], domain="own") for k in range(10)]
        functions.append(make_function("own", f"F{i}", ["a"], ["t10"], calls, [make_opsetid("own", 1)]))
    made = model([make_node("F11", ["x"], ["y"], domain="own")], {"x": [2]}, domains=["own"], functions=functions)
    with pytest.raises(InvalidModelError, match="more than 100000 nodes"):
        from_onnx(made)


def test_operators_without_conversion_are_expanded_by_their_own_body() -> None:
    node = make_node("MeanVarianceNormalization", ["x"], ["y"], name="mvn", axes=[0, 2, 3])
    converted = agrees(model([node], {"x": [2, 3, 4, 4]}), random(2, 3, 4, 4))
    assert {list(n.meta["nn_module_stack"])[0] for n in converted.graph.nodes if n.op == "call_function"} == {"mvn"}


def branch(op: str) -> onnx.GraphProto:
    return make_graph([make_node(op, ["x"], [f"{op}_out"])], op, [], [make_tensor_value_info(f"{op}_out", 1, None)])


def test_if_of_a_constant_condition() -> None:
    node = make_node("If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg"), name="choice")
    for condition, target in ((True, aten.relu.default), (False, aten.neg.default)):
        made = model([node], {"x": [2]}, constants={"c": np.array(condition)})
        assert targets(from_onnx(made)) == [target]
    made = model([node], {"x": [2], "c": []}, kinds={"c": TensorProto.BOOL})
    with pytest.raises(UnsupportedError, match=r"If \(opset 17\) 'choice': its condition .* depends on input 'c'"):
        from_onnx(made)


def loop(turns: int) -> onnx.ModelProto:
    """v = v + v * i, `turns` times; every v is collected."""
    nodes = [
        make_node("Cast", ["i"], ["f"], to=1), make_node("Mul", ["v", "f"], ["p"]), make_node("Add", ["v", "p"], ["w"]),
        make_node("Identity", ["c"], ["d"]), make_node("Identity", ["w"], ["all"]),
    ]  # fmt: skip
    boolean = TensorProto.BOOL
    values = (("i", TensorProto.INT64, []), ("c", boolean, []), ("v", FLOAT, None))
    inputs = [make_tensor_value_info(n, k, s) for n, k, s in values]
    outputs = [make_tensor_value_info(n, k, None) for n, k in (("d", boolean), ("w", FLOAT), ("all", FLOAT))]
    body = make_graph(nodes, "body", inputs, outputs)
    node = make_node("Loop", ["m", "", "x"], ["y", "z"], body=body)
    return model([node], {"x": [3]}, ["y", "z"], constants={"m": np.array(turns)})


def test_loops_of_known_length_are_unrolled() -> None:
    agrees(loop(4), random(3))
    with pytest.raises(UnsupportedError, match="has 1125899906842624 turns, and at most 1024 are unrolled"):
        from_onnx(loop(2**50))


def test_scan_is_unrolled() -> None:
    nodes = [make_node("Add", ["s", "e"], ["t"]), make_node("Mul", ["t", "e"], ["o"])]
    values = [make_tensor_value_info(n, 1, [2]) for n in ("s", "e", "t", "o")]
    body = make_graph(nodes, "body", values[:2], values[2:])
    node = make_node("Scan", ["a", "x"], ["y", "z"], body=body, num_scan_inputs=1, scan_input_directions=[1])
    agrees(model([node], {"a": [2], "x": [5, 2]}, ["y", "z"]), random(2), random(5, 2))


# ---- whole networks ----


class Squeeze(nn.Module):
    """Convolution, batch norm, squeeze-and-excite, concatenation and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        scale = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(torch.cat([x * scale, torch.max_pool2d(x, 3, 1, 1)], 1).mean((2, 3)))


@pytest.fixture(scope="module")
def squeeze() -> nn.Module:
    torch.manual_seed(0)
    return Squeeze().eval()


def test_an_imported_network_is_quantized_compiled_and_exported(squeeze: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    converted = from_onnx(exported(squeeze, x))
    assert (converted(x) - squeeze(x)).abs().max() < 1e-5
    result = built(quantized(converted, x), x)
    assert len(result.regions) == 1
    direct = run(built(quantized(squeeze, x), x), x)[0]
    assert (run(result, x)[0] - direct).abs().max() < 0.02
    mera_torch.export(quantized(converted, x), (x,), tmp_path / "deployment")
    assert torch.allclose(torch.export.export(converted, (x,)).module()(x), converted(x))


@pytest.mark.slow
def test_dynamo_export_agrees(squeeze: nn.Module) -> None:
    pytest.importorskip("onnxscript", reason="package onnxscript writes ONNX files from torch.export")
    x = torch.randn(1, 3, 16, 16)
    assert (from_onnx(exported(squeeze, x, dynamo=True))(x) - squeeze(x)).abs().max() < 1e-5


LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda path: path.stem)
def test_whole_networks_of_onnx(path: Path) -> None:
    """The nine networks with ONNX's own constant weights: as ONNX expects in float; in int8, the two engines agree."""
    converted = from_onnx(path)
    sizes = converted.info.inputs[0].shape
    x = (np.arange(np.prod(sizes)).reshape(sizes) / np.prod(sizes)).astype(np.float32)
    expected = onnx.numpy_helper.to_array(onnx.load_tensor(path.with_name(f"{path.stem}_output_0.pb")))
    with torch.no_grad():
        np.testing.assert_allclose(converted(torch.from_numpy(x)).numpy(), expected, rtol=1e-3, atol=1e-7)
    inputs = torch.rand(sizes, generator=torch.Generator().manual_seed(0))
    result = built(quantized(converted, inputs), inputs)
    run(result, inputs)  # asserts that InterpreterHw and Simulator agree
    assert result.regions


NETWORKS = [
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x0_5", "squeezenet1_1",
    "mnasnet0_5", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "densenet121",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_torchvision(name: str) -> None:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision defines the network")
    network = build_torchvision(name).eval()
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    converted = from_onnx(exported(network, x))
    with torch.no_grad():
        wanted = network(x)
        assert (converted(x) - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))
