"""How a network's arguments and results nest (torch.utils._pytree), as JSON and back: reading imports and runs nothing.

The text is what pytree.treespec_dumps writes, [1, NODE], where NODE is {"type", "context", "children_spec": [NODE...]},
all three empty for a leaf, and the context is JSON text of its own:

"builtins.tuple", "builtins.list"            null
"builtins.dict", "collections.OrderedDict"   [key, ...]
"collections.namedtuple"                     {"name", "fields": [name, ...]} (torch names a registered class instead)
"torch.return_types.topk" and the like       null
"MODULE.CLASS", a mapping                    [field, ...] (transformers' ModelOutput)
"MODULE.CLASS", a dataclass                  [[field, ...], [field that is None, ...]]

torch's own reader imports whatever module a context names.
"""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict, defaultdict, deque, namedtuple
from functools import lru_cache
from typing import Any

import torch
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

from .errors import UnsupportedError

DEEPEST = 64
"""Levels of a structure that is read."""
MOST_CONTAINERS = 10_000
_PROTOCOL = 1
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
_SEQUENCES: dict[Any, type] = {
    tuple: tuple, torch.Size: tuple, list: list, immutable_list: list, deque: list,
}  # fmt: skip
_MAPPINGS: dict[Any, type] = {dict: dict, immutable_dict: dict, defaultdict: dict, OrderedDict: OrderedDict}
_NAMEDTUPLE, _RESULTS = "collections.namedtuple", "torch.return_types."


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


_PLAIN = {_name(kind): plain for kind, plain in (_SEQUENCES | _MAPPINGS).items()}


# ---- writing ----


def dumps(spec: pytree.TreeSpec) -> str:
    """`spec` as text. Raises UnsupportedError for a class whose fields are not known."""
    return json.dumps([_PROTOCOL, _node(spec)])


def equal(one: pytree.TreeSpec, other: pytree.TreeSpec) -> bool:
    """Whether both nest alike; a namedtuple that was read is another class than the one that was written."""
    try:
        return one == other or dumps(one) == dumps(other)
    except UnsupportedError:
        return False


def _node(spec: pytree.TreeSpec) -> dict[str, Any]:
    if spec.is_leaf():
        return _LEAF
    kind, context = _described(spec)
    return {"type": kind, "context": json.dumps(context), "children_spec": [_node(child) for child in spec.children()]}


def _described(spec: pytree.TreeSpec) -> tuple[str, Any]:
    kind, context = spec.type, spec.context
    if kind in _SEQUENCES:
        return _name(_SEQUENCES[kind]), None
    if kind in _MAPPINGS:
        keys = list(context[1] if kind is defaultdict else context)
        if all(_is_key(key) for key in keys):
            return _name(_MAPPINGS[kind]), keys
    if kind is namedtuple:
        return _NAMEDTUPLE, {"name": context.__name__, "fields": list(context._fields)}
    if pytree.is_structseq_class(kind):
        return _name(kind), None
    if _has_fields(kind) and _fields(context, len(spec.children())) is not None:
        return _name(kind), context
    raise UnsupportedError(
        f"the network takes or returns a {getattr(kind, '__name__', kind)}, which cannot be stored: wrap it in a "
        "module that takes and returns tuples, lists, dicts with keys of str or int, namedtuples or dataclasses"
    )


def _is_key(value: Any) -> bool:
    return type(value) in (str, int)


def _has_fields(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, dict) or dataclasses.is_dataclass(kind))


def _fields(context: Any, count: int) -> tuple[list[str], list[str]] | None:
    """The names of the `count` fields that are there, and of those that are None, as a class's context says; None if
    it says something else."""
    pair = isinstance(context, list) and len(context) == 2 and all(isinstance(part, list) for part in context)
    there, absent = context if pair else (context, [])
    if not isinstance(there, list) or not all(type(name) is str for name in (*there, *absent)):
        return None
    unlike = len({*there, *absent}) == len(there) + len(absent)
    return (there, absent) if unlike and len(there) == count else None


# ---- names ----


def leaf_names(spec: pytree.TreeSpec) -> list[str]:
    """Names for the leaves of a model's result: the keys of dicts and the fields of classes on the way to each, joined
    by dots; output_0, output_1, ... where there are none, or two leaves would be alike."""
    count = spec.num_leaves
    plain = [f"output_{index}" for index in range(count)]
    try:
        tree = pytree.tree_unflatten(list(range(count)), spec)
        paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    except ValueError:  # a class that does not tell its fields
        return plain
    named = [_joined(path) or other for path, other in zip(paths, plain, strict=True)]
    return named if len(set(named)) == count == len(paths) else plain


def _joined(path: pytree.KeyPath) -> str:
    """Empty if sequences alone lead there."""
    parts: list[Any] = [getattr(key, "idx", getattr(key, "key", getattr(key, "name", ""))) for key in path]
    return ".".join(map(str, parts)) if any(isinstance(part, str) and part for part in parts) else ""


# ---- reading ----


def loads(text: str) -> pytree.TreeSpec:
    """dumps()'s inverse.

    A class comes back as itself where this process has registered it with pytree under its module and name; else a
    mapping becomes a dict, and a dataclass a namedtuple of the fields that are not None. Raises ValueError for what is
    no such text, or nests deeper than DEEPEST or in more than MOST_CONTAINERS.
    """
    try:
        parsed = json.loads(text)
        if not isinstance(parsed, list) or len(parsed) != 2 or parsed[0] != _PROTOCOL:
            raise ValueError(f"a structure is [{_PROTOCOL}, node], got {text!r:.80}")
        return _Reader().read(parsed[1])
    except RecursionError as error:
        raise ValueError("a structure nests too deeply") from error


class _Reader:
    """Reads one structure, and counts its containers."""

    def __init__(self) -> None:
        self._containers = 0

    def read(self, node: Any, depth: int = 0) -> pytree.TreeSpec:
        if node == _LEAF:
            return pytree.tree_structure(0)
        self._containers += 1
        if depth >= DEEPEST or self._containers > MOST_CONTAINERS:
            raise ValueError(f"a structure has more than {DEEPEST} levels or {MOST_CONTAINERS} containers")
        if not isinstance(node, dict) or set(node) != set(_LEAF):
            raise ValueError(f"a structure's node has the keys {', '.join(_LEAF)}, got {node!r:.80}")
        kind, context, below = node["type"], node["context"], node["children_spec"]
        if not isinstance(kind, str) or not isinstance(context, str) or not isinstance(below, list):
            raise ValueError(f"a structure's node has a type, a context and a list, got {node!r:.80}")
        children = [self.read(child, depth + 1) for child in below]
        return pytree.TreeSpec(*_kind_and_context(kind, json.loads(context), len(children)), children)


def _kind_and_context(kind: str, context: Any, count: int) -> tuple[Any, Any]:
    """What pytree calls a container of `count` items."""
    plain = _PLAIN.get(kind)
    if plain in (tuple, list):
        if context is None:
            return plain, None
    elif plain is not None:
        if isinstance(context, list) and all(map(_is_key, context)) and len(context) == len(set(context)) == count:
            return plain, context
    elif kind == _NAMEDTUPLE and isinstance(context, dict) and set(context) == {"name", "fields"}:
        names = _fields(context["fields"], count)
        if names is not None and isinstance(context["name"], str):
            return namedtuple, _namedtuple(context["name"], *names[0])
    elif kind.startswith(_RESULTS):
        found: Any = getattr(torch.return_types, kind.removeprefix(_RESULTS), None)
        if context is None and pytree.is_structseq_class(found) and found.n_sequence_fields == count:
            return found, None
    elif (fields := _fields(context, count)) is not None:
        return _class(kind, *fields, context)
    raise ValueError(f"a structure of type {kind!r:.80} with {count} items and context {context!r:.80} is unknown")


def _class(kind: str, there: list[str], absent: list[str], context: Any) -> tuple[Any, Any]:
    """The dataclass that pytree knows by this name and these fields, or what stands in for it."""
    for known in pytree.SUPPORTED_NODES:
        if isinstance(known, type) and dataclasses.is_dataclass(known) and _name(known) == kind:
            fields = [field for field in dataclasses.fields(known) if field.init]
            needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
            if needed <= {*there, *absent} <= {f.name for f in fields}:
                return known, context
    if there is context:
        return dict, context
    return namedtuple, _namedtuple(kind.rpartition(".")[2], *there, rename=True)


@lru_cache(maxsize=1024)
def _namedtuple(name: str, *fields: str, rename: bool = False) -> type:
    """One class a name and fields: structures of equal files are equal. Raises ValueError for names that are none."""
    return namedtuple(name, fields, rename=rename, module=__name__)
