"""A graph of aten and quantized_decomposed calls as JSON and tensors, and back: reading it runs no code of the file.

{"in_spec", "out_spec": pytrees of the arguments (args, kwargs) and the result: see mera_torch.pytrees;
 "nodes": [{"name", "op": "placeholder" | "get_attr" | "call_function" | "output", "target", "args", "kwargs",
            "value": {"dtype", "shape"}, {"constant": ...} of an input that is no tensor, null of several results,
            "tensor": of a get_attr, its key among the tensors,
            "modules": [[key, path, class], ...] from the outermost, "trace": stack trace}]}

Arguments are as in a deployment (mera_torch.backend.host.encode); {"ref": NAME} is an earlier node's value.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, FailFast, ValidationError
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from mera_torch.backend.host import Ref, decode, encode, find_target, names, refs, target_name
from mera_torch.errors import CorruptFileError, UnsupportedError
from mera_torch.pytrees import dumps, loads

from ..graphs.patterns import attribute

LARGEST_VALUE = 2**33
"""Bytes of the largest value that a graph may compute."""
MOST_PARTS = 2**16
"""Largest dimension of what an operator with a list of results may read."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,499}")
_PART = re.compile(r"[\w /:@#+,;<>=~-]{1,500}")  # neither quotes nor parentheses


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    op: Literal["placeholder", "get_attr", "call_function", "output"]
    target: str
    args: Annotated[list[Any], FailFast()] = []
    kwargs: dict[str, Any] = {}
    value: Any = None
    tensor: str = ""
    modules: Annotated[list[Annotated[list[str], FailFast()]], FailFast()] = []
    trace: str = ""


class _Graph(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    in_spec: str
    out_spec: str
    nodes: Annotated[list[_Node], FailFast()]


# ---- writing ----


def graph_to_json(model: fx.GraphModule, prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The graph as JSON; its tensors are added to `tensors`, keys beginning with `prefix`, each once however often it
    is held.

    Raises UnsupportedError for what has no such form: an operator of another library, arguments or results in a class
    that mera_torch.pytrees does not know.
    """
    codegen: Any = model.graph._codegen
    info = codegen.pytree_info if isinstance(codegen, fx.graph._PyTreeCodeGen) else None
    if info is None or info.in_spec is None or info.out_spec is None:
        raise UnsupportedError(
            "a .mera file holds networks of torch.export alone: this graph does not say its arguments and results"
        )
    keys = {id(tensor): key for key, tensor in tensors.items()}
    values = _values(model)
    rows = [_row(model, node, values, prefix, tensors, keys) for node in model.graph.nodes if not _is_check(node)]
    return {"in_spec": dumps(info.in_spec), "out_spec": dumps(info.out_spec), "nodes": rows}


def _is_check(node: fx.Node) -> bool:
    """Whether the node only checks, while the network runs, what the file says already."""
    return node.op == "call_function" and "_assert" in str(node.target) and not node.users


def _values(model: fx.GraphModule) -> dict[fx.Node, Any]:
    """What each node computes, as fake tensors: converted graphs know it of some nodes only."""
    values: dict[fx.Node, Any] = {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for node in model.graph.nodes:
        if node.op == "placeholder":
            val = node.meta.get("val")
            values[node] = _fake(mode, val) if isinstance(val, torch.Tensor) else val
        elif node.op == "get_attr":
            held = attribute(model, str(node.target))
            values[node] = mode.from_tensor(held, static_shapes=True) if isinstance(held, torch.Tensor) else held
        elif node.op == "call_function" and target_name(node.target):
            function: Any = node.target
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            with mode, torch.no_grad():
                values[node] = function(*args, **kwargs)
    return values


def _fake(mode: FakeTensorMode, like: torch.Tensor) -> torch.Tensor:
    with mode:
        return torch.empty([int(size) for size in like.shape], dtype=like.dtype)


def _row(
    model: fx.GraphModule,
    node: fx.Node,
    values: Mapping[fx.Node, Any],
    prefix: str,
    tensors: dict[str, torch.Tensor],
    keys: dict[int, str],
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": node.name, "op": node.op, "target": str(node.target)}
    if node.op == "call_function":
        row["target"] = target_name(node.target)
    elif node.op == "get_attr":
        held = attribute(model, str(node.target))
        if not isinstance(held, torch.Tensor):
            raise UnsupportedError(f"constant {node.target} is a {type(held).__name__}: a .mera file holds tensors")
        if not _is_path(str(node.target)):
            raise UnsupportedError(f"constant {node.target!r} has a name that no .mera file may hold: rename it")
        row["tensor"] = keys.setdefault(id(held), f"{prefix}{node.target}")
        tensors.setdefault(row["tensor"], held)
    elif node.op not in ("placeholder", "output"):
        raise UnsupportedError(f"node {node.name} calls a module: a .mera file holds networks of torch.export alone")
    if node.op in ("call_function", "output"):
        row["args"] = [encode(arg) for arg in refs(node.args)]
        if node.kwargs:
            row["kwargs"] = {key: encode(value) for key, value in refs(node.kwargs).items()}
    if node.op != "output":
        row["value"] = _value_to_json(values[node], node)
    stack = node.meta.get("nn_module_stack")
    if stack:
        row["modules"] = [[str(key), str(path), _class_name(kind)] for key, (path, kind) in stack.items()]
    if node.meta.get("stack_trace"):
        row["trace"] = str(node.meta["stack_trace"])
    return row


def _class_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)


def _value_to_json(value: Any, node: fx.Node) -> Any:
    if isinstance(value, torch.Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": [int(size) for size in value.shape]}
    return {"constant": encode(value)} if node.op == "placeholder" else None


# ---- reading ----


def graph_from_json(
    document: Any, tensors: Mapping[str, torch.Tensor], where: str, module: type[fx.GraphModule] = fx.GraphModule
) -> fx.GraphModule:
    """graph_to_json()'s inverse, as an instance of `module`; every node's shape and dtype is computed anew.

    Raises CorruptFileError, beginning with `where`, for anything that is no such graph.
    """
    try:
        parsed = _Graph.model_validate(document)
    except (ValidationError, RecursionError) as error:
        raise CorruptFileError(f"{where}: {_first(error)}") from error
    return _Reader(parsed, tensors, where).read(module)


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        row = error.errors()[0]
        return f"{'.'.join(map(str, row['loc']))}: {row['msg']}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Reader:
    """Builds a graph node by node, each checked before the next one."""

    def __init__(self, parsed: _Graph, tensors: Mapping[str, torch.Tensor], where: str) -> None:
        self._parsed, self._tensors, self._where = parsed, tensors, where
        self._root, self._graph = torch.nn.Module(), fx.Graph()
        self._nodes: dict[str, fx.Node] = {}
        self._held: dict[str, str] = {}  # path of a get_attr -> key of its tensor
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def read(self, kind: type[fx.GraphModule]) -> fx.GraphModule:
        rows = self._parsed.nodes
        for index, row in enumerate(rows):
            try:
                if (row.op == "output") != (index == len(rows) - 1):
                    raise ValueError("a graph ends with its output")
                self._add(row)
            except CorruptFileError:
                raise
            except Exception as error:  # operators raise errors of many kinds at arguments that they do not take
                raise CorruptFileError(f"{self._where}: node {row.name[:80]!r}: {_first(error)}") from error
        if not rows:
            raise CorruptFileError(f"{self._where}: it has no nodes")
        self._set_codegen()
        self._graph.lint()
        model = kind(self._root, self._graph, class_name=kind.__name__)
        return model.eval()

    def _add(self, row: _Node) -> None:
        _check_name(row.name)
        args, kwargs = self._arguments(row)
        target: Any = row.target
        if row.op == "call_function":
            target = find_target(row.target)
        elif row.op == "get_attr":
            self._hold(row.target, row.tensor)
        else:
            _check_name(row.target)
        node = self._graph.create_node(row.op, target, args, kwargs, name=row.name)
        if node.name != row.name:
            raise ValueError("there are two nodes of that name, or it is reserved")
        self._nodes[row.name] = node
        if row.op != "output":
            node.meta["val"] = self._checked(row, self._value(row, node))
        if row.modules:
            node.meta["nn_module_stack"] = {key: (path, kind) for key, path, kind in row.modules}
        if row.trace:
            node.meta["stack_trace"] = row.trace

    def _arguments(self, row: _Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if row.op not in ("call_function", "output") and (row.args or row.kwargs):
            raise ValueError(f"a {row.op} takes no arguments")
        for key in row.kwargs:
            _check_name(key)
        args, kwargs = tuple(map(decode, row.args)), {key: decode(value) for key, value in row.kwargs.items()}
        if row.op == "output":
            args = tuple(tuple(arg) if isinstance(arg, list) else arg for arg in args)
        for name in names((args, kwargs)):
            if name not in self._nodes or self._nodes[name].op == "output":
                raise ValueError(f"it reads {name[:80]!r}, which no node before it is called")
        found: tuple[tuple[Any, ...], dict[str, Any]] = _with_nodes((args, kwargs), self._nodes)
        return found

    def _hold(self, path: str, key: str) -> None:
        """Registers the tensor `key` at the dotted `path`."""
        if key not in self._tensors:
            raise ValueError(f"there is no tensor {key[:80]!r}")
        if self._held.setdefault(path, key) != key:
            raise ValueError(f"{path[:80]!r} is two tensors")
        owner = self._root
        *parents, leaf = path.split(".")
        if not _is_path(path):
            raise ValueError(f"{path[:80]!r} is no path of a tensor")
        for part in parents:
            if part not in owner._modules:
                owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
        if leaf not in owner._buffers:
            owner.register_buffer(leaf, self._tensors[key])

    def _value(self, row: _Node, node: fx.Node) -> Any:
        if row.op == "get_attr":
            return self._mode.from_tensor(self._tensors[row.tensor], static_shapes=True)
        if row.op == "placeholder":
            if isinstance(row.value, dict) and "constant" in row.value:
                return decode(row.value["constant"])
            dtype, shape = _dtype_and_shape(row.value)
            with self._mode:
                return _bounded(torch.empty(shape, dtype=dtype))
        function: Any = node.target
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        _check_parts(function, pytree.tree_leaves((args, kwargs)))
        with self._mode, torch.no_grad():
            return pytree.tree_map(_bounded, function(*args, **kwargs))

    def _checked(self, row: _Node, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if _dtype_and_shape(row.value) != (value.dtype, tuple(value.shape)):
                raise ValueError(f"it says {row.value!r:.100}, but computes {value.dtype}{list(value.shape)}")
        elif row.op != "placeholder" and row.value is not None:
            raise ValueError("its value is no tensor")
        return value

    def _set_codegen(self) -> None:
        inputs = [str(node.target) for node in self._graph.nodes if node.op == "placeholder"]
        output = next(iter(reversed(self._graph.nodes)))
        try:
            in_spec, out_spec = loads(self._parsed.in_spec), loads(self._parsed.out_spec)
            given = output.args[0] if len(output.args) == 1 and not output.kwargs else None
            if not isinstance(given, (tuple, list)) or out_spec.num_leaves != len(given):
                raise ValueError("out_spec has another number of results than the graph")
            if in_spec.num_leaves != len(inputs) or not _is_call(in_spec):
                raise ValueError("in_spec has other arguments than the graph")
        except ValueError as error:
            raise CorruptFileError(f"{self._where}: {_first(error)}") from error
        info = fx.graph._PyTreeInfo(inputs, in_spec, out_spec)
        self._graph.set_codegen(fx.graph._PyTreeCodeGen(info))


def _is_path(path: str) -> bool:
    """Whether a tensor may lie at the dotted `path`: in the module's generated code a part of it is an attribute or,
    where it is no identifier (``3x3``), a string."""
    return all(
        _PART.fullmatch(part) and not hasattr(torch.nn.Module, part) and not keyword.iskeyword(part)
        for part in path.split(".")
    )


def _check_name(name: str) -> None:
    """Names become Python identifiers in the module's generated code."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ValueError("its name is no identifier")


def _with_nodes(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, Ref):
        return nodes[value.name]
    if isinstance(value, Mapping):
        return {key: _with_nodes(held, nodes) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_nodes(held, nodes) for held in value)
    return value


def _dtype_and_shape(value: Any) -> tuple[torch.dtype, tuple[int, ...]]:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape"}:
        raise ValueError(f"its value must be a dtype and a shape, got {value!r:.80}")
    dtype, shape = getattr(torch, str(value["dtype"]), None), value["shape"]
    sizes = isinstance(shape, list) and all(type(size) is int and 0 <= size < 2**40 for size in shape)
    if not isinstance(dtype, torch.dtype) or not sizes or len(shape) > 64:
        raise ValueError(f"its value must be a dtype and a shape, got {value!r:.80}")
    if math.prod(shape) * dtype.itemsize > LARGEST_VALUE:
        raise ValueError(f"a value of shape {shape} is larger than {LARGEST_VALUE >> 30} GiB")
    return dtype, tuple(shape)


def _bounded(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if not all(isinstance(size, int) for size in value.shape):
            raise ValueError("the shape of its result depends on data")
        if value.numel() * value.dtype.itemsize > LARGEST_VALUE:
            raise ValueError(f"a value of shape {list(value.shape)} is larger than {LARGEST_VALUE >> 30} GiB")
    return value


def _check_parts(function: Any, arguments: Sequence[Any]) -> None:
    """An operator with a list of results might give as many as a dimension is large."""
    schema = getattr(function, "_schema", None)
    if schema is None or not any("List" in str(result.type) for result in schema.returns):
        return
    if any(max(x.shape, default=0) > MOST_PARTS for x in arguments if isinstance(x, torch.Tensor)):
        raise ValueError(f"it splits a dimension of more than {MOST_PARTS}")


def _is_call(spec: pytree.TreeSpec) -> bool:
    """Whether it is that of (args, kwargs)."""
    children = spec.children() if spec.type is tuple else []
    return len(children) == 2 and children[0].type is tuple and children[1].type is dict
