"""Operators on the host in C against PyTorch: every row of csrc/runtime/host_ops.def."""

from __future__ import annotations

import re
from typing import Any

import host_functions  # noqa: F401  (adds to FAMILIES)
import numpy as np
import pytest
import torch
from host_cases import close, find_target, plan, run_c, run_torch, same
from host_families import FAMILIES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mera_torch import errors
from mera_torch.native.host import HOST_OPS, HostStep, TensorSpec


def test_every_row_has_cases():
    assert sorted(FAMILIES) == sorted(HOST_OPS)


@pytest.mark.parametrize("name", sorted(set(HOST_OPS) - {"getitem"}))
def test_schema_is_pytorchs(name):
    text = str(find_target(name)._schema)
    text = re.sub(r"\([a-z]!?(?: -> \*)?\)", "", text)
    inside = text[text.index("(") + 1 : text.rindex(") -> ")]
    shorter = re.sub(r"=(\d+)\.(?=,|$)", r"=\1.0", inside.replace("1.0000000000000001e-05", "1e-05"))
    assert HOST_OPS[name].schema == shorter


def magnitude(args: list[object]) -> float:
    """What sums over these arguments may lose digits of: products of the largest elements, times how many there are."""
    found = 1.0
    for value in args:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            found *= max(float(value.nan_to_num(0, 1, 1).abs().max()), 1.0)
    return found


HALF = (torch.float16, torch.bfloat16)  # rounded once here, by PyTorch after each of several operations
LINEAR = re.compile(r"col2im|grid|mm|matmul|linear|conv|attention|sum|mean|norm|prod|pool|upsample|var|std|addc|lerp")


def in_double(value: Any) -> Any:
    """The same arguments, from which PyTorch's result has no rounding errors of its own."""
    if isinstance(value, list):
        return [in_double(v) for v in value]
    if value is torch.float32:
        return torch.float64
    return value.double() if isinstance(value, torch.Tensor) and value.dtype is torch.float32 else value


def check(name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    theirs, mine = run_torch(name, args, kwargs), run_c(name, args, kwargs)
    assert [(t.dtype, t.shape) for t in mine] == [(t.dtype, t.shape) for t in theirs]
    exact, linear = HOST_OPS[name].exact, LINEAR.search(name)
    if not exact and not linear:
        exactly = run_torch(name, in_double(args), {key: in_double(v) for key, v in kwargs.items()})
        theirs = [b.to(a.dtype) for a, b in zip(theirs, exactly, strict=True)]
    for a, b in zip(mine, theirs, strict=True):
        if (exact and b.dtype not in HALF) or not b.is_floating_point():
            assert same(a, b), f"{args} {kwargs}: {a} is not {b}"
        else:
            assert close(a, b, 40 * magnitude(args) if linear else 0.0), f"{args} {kwargs}: {a} is far from {b}"


def examples(count: int) -> Any:
    every = list(HealthCheck)
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=every, database=None)


@pytest.mark.parametrize("name", sorted(HOST_OPS))
@examples(5)
@given(data=st.data())
def test_against_pytorch(name, data):
    check(name, *FAMILIES[name](data.draw, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(HOST_OPS))
@examples(100)
@given(data=st.data())
def test_against_pytorch_at_length(name, data):
    check(name, *FAMILIES[name](data.draw, name))


# ---- what is refused, and how ----

X = torch.zeros(2, 3)
WRONG = [
    ("aten.nonexistent.default", [X], {}, errors.UnsupportedError, "aten.nonexistent.default does not run"),
    ("aten.add.Tensor", [X], {}, errors.InvalidModelError, "argument other is missing"),
    ("aten.add.Tensor", [X, X, X], {}, errors.InvalidModelError, "takes 2 arguments by position, got 3"),
    ("aten.add.Tensor", [X, X], {"other": X}, errors.InvalidModelError, "argument other is given twice"),
    ("aten.add.Tensor", [X, X], {"beta": 1}, errors.UnsupportedError, "there is no argument beta"),
    ("aten.add.Tensor", [X, torch.zeros(4)], {}, errors.InvalidModelError, "sizes 3 and 4 cannot be broadcast"),
    ("aten.add.Tensor", [X, "text"], {}, errors.UnsupportedError, "argument other must be Tensor"),
    ("aten.sub.Tensor", [X > 0, X > 0], {}, errors.UnsupportedError, "bool cannot be subtracted"),
    ("aten.relu.default", [1.0], {}, errors.UnsupportedError, "argument self must be a tensor"),
    ("aten.silu.default", [X.int()], {}, errors.UnsupportedError, "not for int32"),
    ("aten.softmax.int", [X, 2], {}, errors.InvalidModelError, "dimension 2 is not one of 2"),
    ("aten.permute.default", [X, [0, 0]], {}, errors.InvalidModelError, "names a dimension twice"),
    ("aten.reshape.default", [X, [4, -1]], {}, errors.InvalidModelError, "6 elements cannot have that shape"),
    ("aten.reshape.default", [X, [7]], {}, errors.InvalidModelError, "6 elements cannot have a shape of 7"),
    ("aten.expand.default", [X, [2, 2**41]], {}, errors.InvalidModelError, "cannot be expanded"),
    ("aten.full.default", [[2**30, 2**30], 0], {}, errors.UnsupportedError, "at most 2"),
    ("aten.cat.default", [[X, torch.zeros(3, 4)], 0], {}, errors.InvalidModelError, "other sizes"),
    ("aten.cat.default", [[], 0], {}, errors.InvalidModelError, "list of tensors is empty"),
    ("aten.index.Tensor", [X, [X > 0]], {}, errors.UnsupportedError, "masks have no static shape"),
    ("aten.dropout.default", [X, 0.5, True], {}, errors.UnsupportedError, "cannot train"),
    ("aten.mm.default", [X, X], {}, errors.InvalidModelError, "3 columns cannot meet 2 rows"),
    ("aten.mm.default", [X, X.double()], {}, errors.UnsupportedError, "float32 and float64"),
    ("aten.conv2d.default", [X, X], {}, errors.InvalidModelError, "weight must have 4 to 4 dimensions, got 2"),
    ("aten.gelu.default", [X], {"approximate": "exact"}, errors.UnsupportedError, "none or tanh, not exact"),
    ("aten.to.device", [X, torch.device("cuda"), torch.float32], {}, errors.UnsupportedError, "device must be Device"),
    ("aten._to_copy.default", [X], {"dtype": torch.complex64}, errors.UnsupportedError, "dtype must be ScalarType"),
    ("aten.topk.default", [X, 4], {}, errors.InvalidModelError, "k must be 0 to 3, got 4"),
    ("getitem", [[X], 1], {}, errors.InvalidModelError, "there is no item 1 of 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    "target, args, kwargs, error, message", WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)]
)
def test_unsupported_arguments(target, args, kwargs, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        plan(target, args, kwargs)
    assert target in str(caught.value)


WRONG_VALUES = [
    ("aten.index_select.default", [X, 0, torch.tensor([2])], "index 2 is out of range"),
    ("aten.gather.default", [X, 1, torch.tensor([[-1]])], "index -1 is out of range"),
    ("aten.embedding.default", [X, torch.tensor([5])], "index 5 is out of range"),
    ("aten.index.Tensor", [X, [torch.tensor([-3])]], "index -3 is out of range"),
    ("aten.remainder.Tensor", [X.int(), X.int()], "an integer is divided by 0"),
    ("aten.one_hot.default", [torch.tensor([3]), 3], "class 3 is not one of 3"),
    ("mera_torch.resize_nearest.default", [torch.zeros(1, 1, 2, 2), *[torch.tensor([2], dtype=torch.int32)] * 2],
     "position 2 is not 0 to 1"),
]  # fmt: skip


@pytest.mark.parametrize("target, args, message", WRONG_VALUES, ids=[w[0] for w in WRONG_VALUES])
def test_values_that_are_not_allowed(target, args, message):
    with pytest.raises(errors.InvalidModelError, match=re.escape(message)):
        run_c(target, args, {})


def test_a_tensor_of_too_many_dimensions_is_refused():
    with pytest.raises(errors.UnsupportedError, match="at most 8 dimensions"):
        HostStep("aten.relu.default", [{"ref": "x"}], {}, {"x": TensorSpec("float32", (1,) * 9)})
    with pytest.raises(errors.UnsupportedError, match="at most 8 dimensions"):
        HostStep("aten.unsqueeze.default", [{"ref": "x"}, 0], {}, {"x": TensorSpec("float32", (1,) * 8)})


# ---- dimensions that are not there ----


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), ()])
@pytest.mark.parametrize("target, args", [
    ("aten.relu.default", []), ("aten.add.Tensor", [2.0]), ("aten.softmax.int", [0]), ("aten.cumsum.default", [0]),
    ("aten.sum.default", []), ("aten.sort.default", []), ("aten.flatten.using_ints", []), ("aten.exp.default", []),
    ("aten.amax.default", [[], True]), ("aten.clone.default", []), ("aten._to_copy.default", []),
])  # fmt: skip
def test_no_elements_and_no_dimensions(target, args, shape):
    x = torch.ones(shape)
    if target == "aten.amax.default" and x.numel() == 0:
        with pytest.raises(errors.InvalidModelError, match="no elements"):
            run_c(target, [x, *args], {})
        return
    for a, b in zip(run_c(target, [x, *args], {}), run_torch(target, [x, *args], {}), strict=True):
        assert a.shape == b.shape and same(a, b)


def test_only_what_moves_is_copied():
    x = torch.arange(6.0).reshape(2, 3)
    for target, args, alias in [
        ("aten.reshape.default", [[3, 2]], True), ("aten.unsqueeze.default", [0], True), ("aten.t.default", [], False),
        ("aten.slice.Tensor", [0, 0, 2], True), ("aten.slice.Tensor", [1, 0, 2], False),
        ("aten.clone.default", [], True),
        ("aten.permute.default", [[0, 1]], True), ("aten._to_copy.default", [], True),
    ]:  # fmt: skip
        step, _ = plan(target, [x, *args], {})
        assert step.aliases == [alias], target


def test_steps_run_often_and_check_their_arrays():
    step, values = plan("aten.mul.Tensor", [X + 2, X + 3], {})
    for factor in range(3):
        (found,) = step.run({name: array * factor for name, array in values.items()})
        assert np.array_equal(found, np.full((2, 3), 6.0 * factor**2, np.float32))
    with pytest.raises(errors.InvalidModelError, match=r"float32\[2, 3\], got float64\[2, 3\]"):
        step.run({name: array.astype(np.float64) for name, array in values.items()})


def test_out_of_memory_is_an_error_at_every_allocation():
    from mera_torch.native import Context

    specs = {"a": TensorSpec("float32", (4, 5)), "b": TensorSpec("float32", (5, 6))}
    for fail_after in range(100):
        try:
            HostStep("aten.matmul.default", [{"ref": "a"}, {"ref": "b"}], {}, specs, Context(fail_after))
        except errors.OutOfMemoryError:
            continue
        break
    assert 0 < fail_after < 99
