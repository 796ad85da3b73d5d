"""How arguments and results nest, as text: as PyTorch writes it, classes by their fields, and nothing is imported."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

import mera_torch
from mera_torch import UnsupportedError, pytrees

Point = namedtuple("Point", "x y")


@dataclasses.dataclass
class Pair:
    first: Any
    second: Any = None


class Output(OrderedDict):  # type: ignore[type-arg]
    """As transformers' ModelOutput: a dict whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@dataclasses.dataclass
class Logits(Output):
    """As its subclasses."""

    logits: Any = None
    loss: Any = None

    def __post_init__(self) -> None:
        self.update((f.name, v) for f in dataclasses.fields(self) if (v := self.__dict__[f.name]) is not None)


class Opaque:
    pass


pytree.register_dataclass(Pair)
pytree.register_pytree_node(
    Logits, lambda o: (list(o.values()), list(o)), lambda values, names: Logits(**dict(zip(names, values, strict=True)))
)
pytree.register_pytree_node(Opaque, lambda o: ([1], object()), lambda values, context: Opaque())


def there_and_back(tree: Any) -> Any:
    leaves, spec = pytree.tree_flatten(tree)
    return pytree.tree_unflatten(leaves, pytrees.loads(pytrees.dumps(spec)))


@pytest.mark.parametrize(
    "tree",
    [1, (1, [2, {"a": 3, "b": (4,)}]), (), {}, {0: 1, "0": 2}, OrderedDict(b=1, a=[2]), [[[(((1,),),)]]]],
)
def test_plain_structures_are_written_as_pytorch_does(tree: Any) -> None:
    text = pytrees.dumps(pytree.tree_structure(tree))
    assert text == pytree.treespec_dumps(pytree.tree_structure(tree))
    back = there_and_back(tree)
    assert back == tree and type(back) is type(tree)


@pytest.mark.parametrize(
    ("tree", "plain"),
    [
        (immutable_list([1, 2]), [1, 2]),
        (immutable_dict(a=1), {"a": 1}),
        (defaultdict(list, a=1), {"a": 1}),
        (deque([1, 2], maxlen=4), [1, 2]),
        (torch.Size([1, 2]), (1, 2)),
    ],
)
def test_other_containers_become_plain_ones(tree: Any, plain: Any) -> None:
    back = there_and_back(tree)
    assert back == plain and type(back) is type(plain)


def test_what_pytorch_wrote_of_immutable_containers_is_read() -> None:
    spec = pytree.tree_structure(immutable_list([1, immutable_dict(a=1)]))
    assert pytrees.loads(pytree.treespec_dumps(spec)) == pytree.tree_structure([1, {"a": 1}])


def test_namedtuples_are_made_anew() -> None:
    back = there_and_back({"p": Point(1, Point(2, [3]))})["p"]
    assert type(back).__name__ == "Point" and type(back) is not Point
    assert back == Point(1, Point(2, [3])) and back._fields == Point._fields and back.y.x == 2
    assert type(there_and_back(Point(1, 2))) is type(back)


def test_results_of_operators() -> None:
    found = torch.topk(torch.arange(5), 2)
    back = there_and_back(found)
    assert type(back) is torch.return_types.topk and back.indices is found.indices


def test_registered_classes_come_back_as_themselves() -> None:
    assert there_and_back([Pair(1), Pair(1, (2, Pair(3)))]) == [Pair(1), Pair(1, (2, Pair(3)))]
    back = there_and_back(Logits(logits=1))
    assert type(back) is Logits and back.logits == 1 and list(back) == ["logits"]


def test_classes_that_this_process_does_not_know() -> None:
    for tree, kind in ((Pair(1, 2), tuple), (Logits(logits=1, loss=2), dict)):
        leaves, spec = pytree.tree_flatten(tree)
        text = pytrees.dumps(spec).replace(f"{__name__}.", "absent_module.")
        assert "absent_module." in text
        back = pytree.tree_unflatten(leaves, pytrees.loads(text))
        assert isinstance(back, kind) and "absent_module" not in sys.modules
        assert (back.first, back.second) == (1, 2) if kind is tuple else back == {"logits": 1, "loss": 2}


def test_a_class_that_lost_a_field_is_not_made() -> None:
    text = pytrees.dumps(pytree.tree_structure(Pair(1, 2))).replace("second", "third")
    assert pytree.tree_unflatten([1, 2], pytrees.loads(text)).third == 2
    text = pytrees.dumps(pytree.tree_structure(Pair(1))).replace("first", "second").replace('second\\"]]', 'other\\"]]')
    assert type(pytree.tree_unflatten([1], pytrees.loads(text))) is not Pair


@pytest.mark.parametrize("tree", [Opaque(), {(1, 2): 3}, {1.5: 2}, {True: 1}])
def test_what_has_no_fields_cannot_be_stored(tree: Any) -> None:
    with pytest.raises(UnsupportedError, match="takes or returns a (Opaque|dict), which cannot be stored: wrap it"):
        pytrees.dumps(pytree.tree_structure(tree))


def test_equal() -> None:
    same = pytree.tree_structure(Point(1, 2)), pytrees.loads(pytrees.dumps(pytree.tree_structure(Point(1, 2))))
    assert pytrees.equal(*same) and same[0] != same[1]
    for other in ((1, 2), Point(1, (2,)), namedtuple("Point", "x z")(1, 2), Opaque()):
        assert not pytrees.equal(same[0], pytree.tree_structure(other))


def container(kind: str, context: Any, count: int = 0) -> Any:
    leaf = {"type": None, "context": None, "children_spec": []}
    return {"type": kind, "context": json.dumps(context), "children_spec": [leaf] * count}


def nested(depth: int) -> Any:
    node = container("builtins.list", None)
    for _ in range(depth):
        node = {**container("builtins.list", None), "children_spec": [node]}
    return node


CODE = "__import__('os')"
HOSTILE: dict[str, Any] = {
    "an enum, which PyTorch would import": container(
        "builtins.dict", [{"__enum__": True, "fqn": "antigravity:x", "name": "y"}], 1
    ),
    "a factory, which PyTorch would import": container(
        "collections.defaultdict",
        {"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": ["a"]},
        1,
    ),
    "a class of PyTorch that is no result": container("torch.return_types.__builtins__", None, 1),
    "another number of results": container("torch.return_types.topk", None, 3),
    "a function": container("os.system", "ls", 1),
    "a class without fields": container("antigravity.X", {"a": 1}, 1),
    "a class with code as its name": container(CODE, [["x"], []], 1),
    "code as a name": container("collections.namedtuple", {"name": CODE, "fields": ["x"]}, 1),
    "code as a field": container("collections.namedtuple", {"name": "P", "fields": [CODE]}, 1),
    "a keyword as a field": container("collections.namedtuple", {"name": "P", "fields": ["class"]}, 1),
    "a dunder as a field": container("collections.namedtuple", {"name": "P", "fields": ["__class__"]}, 1),
    "fields that repeat": container("collections.namedtuple", {"name": "P", "fields": ["x", "x"]}, 2),
    "too few fields": container("collections.namedtuple", {"name": "P", "fields": ["x"]}, 2),
    "fields that are none": container("collections.namedtuple", {"name": "P", "fields": [1]}, 1),
    "a name that is none": container("collections.namedtuple", {"name": 1, "fields": ["x"]}, 1),
    "a registered name": container("collections.namedtuple", "test_pytrees.Point", 2),
    "unknown values of a namedtuple": container("collections.namedtuple", {"name": "P", "fields": [], "x": 1}),
    "keys that repeat": container("builtins.dict", ["a", "a"], 2),
    "keys that are equal": container("builtins.dict", [1, True], 2),
    "too few keys": container("builtins.dict", ["a"], 2),
    "a key that is none": container("builtins.dict", [None], 1),
    "keys of a tuple": container("builtins.tuple", ["a"], 1),
    "fields that are there and are not": container("m.C", [["x"], ["x"]], 1),
    "a nameless type": container("", [["x"], []], 1),
    "no type": {"type": 1, "context": "null", "children_spec": []},
    "no children": {"type": "builtins.list", "context": "null", "children_spec": 3},
    "no context": {"type": "builtins.list", "context": None, "children_spec": []},
    "more": {**container("builtins.list", None), "more": 1},
    "no node": 1,
    "too many levels": nested(pytrees.DEEPEST),
    "too many containers": {
        **container("builtins.list", None), "children_spec": [nested(0)] * pytrees.MOST_CONTAINERS
    },
    "many namedtuples": {
        **container("builtins.list", None),
        "children_spec": [
            container("collections.namedtuple", {"name": f"P{i}", "fields": []})
            for i in range(2 * pytrees.MOST_CONTAINERS)
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_is_refused_and_imports_nothing(kind: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ValueError):
        pytrees.loads(json.dumps([1, HOSTILE[kind]]))
    assert set(sys.modules) == before


@pytest.mark.parametrize("text", ["", "null", "[1]", "[2, null]", "[" * 100_000, '[1, {"type": ' * 50_000, "[1, []"])
def test_text_that_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        pytrees.loads(text)


def test_the_deepest_structure_that_is_read() -> None:
    spec = pytrees.loads(json.dumps([1, nested(pytrees.DEEPEST - 1)]))
    assert spec.num_leaves == 0 and pytrees.equal(spec, spec)


class Sum(torch.nn.Module):
    """x + y in int8."""

    def forward(self, points: Any) -> Any:
        return Pair(rounded(rounded(points.x) + rounded(points.y)))


def rounded(x: torch.Tensor) -> torch.Tensor:
    qd = torch.ops.quantized_decomposed
    spec = (1 / 16, 0, -128, 127, torch.int8)
    return qd.dequantize_per_tensor(qd.quantize_per_tensor(x, *spec), *spec)


def test_deployments_take_and_give_them(tmp_path: Path) -> None:
    point = Point(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4))
    deployed = mera_torch.export(Sum().eval(), (point,), tmp_path / "d", target="InterpreterHw")
    for runner in (deployed.get_runner(), mera_torch.load(tmp_path / "d").get_runner()):
        found = runner(point)
        assert isinstance(found, Pair) and torch.equal(found.first, torch.full((1, 2, 4, 4), 2.0))
        with pytest.raises(mera_torch.InvalidModelError, match="another structure"):
            runner(tuple(point))


@pytest.mark.parametrize(
    "result, names",
    [
        (0, ["output_0"]),
        ((0, [1, 2]), ["output_0", "output_1", "output_2"]),
        ({"boxes": 0, "scores": (1, 2)}, ["boxes", "scores.0", "scores.1"]),
        ((0, {"a": 1}), ["output_0", "1.a"]),
        (Point(0, (1, 2)), ["x", "y.0", "y.1"]),
        ({1: 0, 2: 1}, ["output_0", "output_1"]),
        ({"a": {"b": 0}, "a.b": 1}, ["output_0", "output_1"]),  # which would be alike
    ],
)
def test_names_of_leaves(result: Any, names: list[str]) -> None:
    assert pytrees.leaf_names(pytree.tree_structure(result)) == names


def test_leaves_of_a_class_that_does_not_tell_its_keys_are_numbered() -> None:
    assert pytrees.leaf_names(pytree.tree_structure(Logits(0, 1))) == ["output_0", "output_1"]
