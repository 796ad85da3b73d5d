"""What a conversion of an ONNX operator is given: the graph under construction and the node to convert.

A conversion is a function in one of the family files of this folder::

    @converts("onnx", "LeakyRelu", since=7)          # "Op" of ai.onnx; other domains: "com.microsoft.QLinearAdd"
    def leaky_relu(g: OnnxBuilder, node: OnnxNode) -> Value:
        return g.call(aten.leaky_relu.default, node.require(0), node.float("alpha", 0.01))

- `since` and `until` are opset numbers of the operator's domain as the model imports it (both included).
- Values are `fx.Node` (depends on an input of the model), `torch.Tensor` (constant; never a Python number), `list` (an
  ONNX sequence) or `EMPTY` (an optional without element). Use `shape`, `dtype`, `is_constant` of converters/graph.py.
- `node.inputs` holds None where an optional input is left out; `node.require(i)`, `node.optional(i)`, `node.take(n)`.
- Attributes: `node.int/ints/float/floats/string/tensor/graph(name[, default])`; without a default it is required, and
  `node.has(name)` tells. Inputs that must be constant (axes, shapes, ...): `g.constant(value, "axes")` -> Tensor,
  `g.int_list(value, "axes")` -> list[int], `g.number(value, "depth")`.
- The result is one value, or a tuple (not a list) if the operator has several outputs; `node.outputs` is how many the
  node lists, `node.wants(i)` whether output i is named. Surplus and unnamed ones are ignored, and may be None.
- Malformed: `raise g.invalid("why")`; not supported: `raise g.unsupported("why")`. The message says which node it is.
- `g.call` computes at once what depends on constants alone, so shape arithmetic folds; `g.emit` always makes a node.
- `g.expand(node)` converts the body that ONNX itself defines for the operator (also what happens to operators without
  a conversion); `g.subgraph(node.graph("body"), values)` converts a subgraph here and gives its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from onnx import AttributeProto, GraphProto, NodeProto
from torch import fx

from mera_torch.errors import InternalError, InvalidModelError, UnsupportedError

from ..graph import LARGEST, GraphBuilder, Value, is_constant
from ..registry import REGISTRY, find
from . import functions
from .tensors import is_narrow, to_tensor

aten: Any = torch.ops.aten
qd: Any = torch.ops.quantized_decomposed

DEEPEST = 40
"""Subgraphs and functions within each other."""

MOST_NODES = 100_000
"""Nodes that one model may come to, with functions expanded and loops unrolled."""

EMPTY = type("Empty", (), {"__repr__": lambda self: "EMPTY"})()
"""The value of an optional without element."""

MOST_FOLDED = 2 * LARGEST
"""Bytes of all constants that are computed from others."""

TAKE_SEQUENCES = frozenset({
    "ConcatFromSequence", "Identity", "If", "Loop", "Optional", "OptionalGetElement", "OptionalHasElement", "Scan",
    "SequenceAt", "SequenceConstruct", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap",
})  # fmt: skip
"""Operators whose inputs may be lists or EMPTY."""

_REQUIRED: Any = object()


class UnknownInput(UnsupportedError):
    """A value that must be known when the model is imported depends on `inputs` of the model."""

    def __init__(self, message: str, inputs: Sequence[str]) -> None:
        super().__init__(message)
        self.inputs = tuple(inputs)


@dataclass(frozen=True)
class Unusable:
    """The value of a tensor that has no torch.Tensor (strings, maps); the operator that reads it is refused."""

    why: str


@dataclass
class Scope:
    """The names that a node sees: its graph's, then those of the graphs around it."""

    opsets: dict[str, int]
    parent: Scope | None = None
    attributes: dict[str, AttributeProto] = field(default_factory=dict)
    prefix: str = ""
    provenance: bool = True
    values: dict[str, Value] = field(default_factory=dict)

    def find(self, name: str) -> Value | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.parent
        return None


class OnnxNode:
    """A node to convert. op, domain, name: the file's; opset: the version of its domain; inputs: its values."""

    def __init__(self, g: OnnxBuilder, proto: NodeProto, name: str, opset: int, inputs: Sequence[Value]) -> None:
        self.proto = proto
        self.op = proto.op_type
        self.domain = "" if proto.domain == "ai.onnx" else proto.domain
        self.name = name
        self.opset = opset
        self.inputs: tuple[Value | None, ...] = tuple(inputs)
        self.outputs = len(proto.output)
        self.attributes = {a.name: a for a in proto.attribute}
        self._g = g

    # ---- inputs and outputs ----

    def optional(self, index: int) -> Value | None:
        """Input `index`, or None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def require(self, index: int) -> Value:
        """Input `index`. Raises InvalidModelError if it is left out."""
        value = self.optional(index)
        if value is None:
            raise self._g.invalid(f"its input {index} is missing")
        return value

    def take(self, count: int) -> tuple[Value | None, ...]:
        """The first `count` inputs, None where left out; the first must be there."""
        self.require(0)
        return (*self.inputs[:count], *[None] * (count - len(self.inputs)))

    def narrow(self, index: int) -> bool:
        """Whether input `index` is a constant of 4-bit integers, which the graph holds in 8 bits."""
        value = self.optional(index)
        return isinstance(value, torch.Tensor) and is_narrow(value)

    def wants(self, index: int) -> bool:
        """Whether output `index` has a name."""
        return index < self.outputs and bool(self.proto.output[index])

    # ---- attributes ----

    def has(self, name: str) -> bool:
        return name in self.attributes

    def int(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._attribute(name, AttributeProto.INT, default, lambda a: int(a.i))

    def ints(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._attribute(name, AttributeProto.INTS, default, lambda a: list(a.ints))

    def float(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._attribute(name, AttributeProto.FLOAT, default, lambda a: float(a.f))

    def floats(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._attribute(name, AttributeProto.FLOATS, default, lambda a: list(a.floats))

    def string(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._attribute(name, AttributeProto.STRING, default, lambda a: a.s.decode("utf-8", "replace"))

    def tensor(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._attribute(name, AttributeProto.TENSOR, default, lambda a: to_tensor(a.t, self._g.where))

    def graph(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._attribute(name, AttributeProto.GRAPH, default, lambda a: a.g)

    def _attribute(self, name: str, kind: Any, default: Any, read: Callable[[AttributeProto], Any]) -> Any:
        found = self.attributes.get(name)
        if found is None:
            if default is _REQUIRED:
                raise self._g.invalid(f"its attribute {name!r} is missing")
            return default
        if found.type != kind:
            names = AttributeProto.AttributeType
            raise self._g.invalid(f"its attribute {name!r} must be {names.Name(kind)}, got {names.Name(found.type)}")
        return read(found)


class OnnxBuilder(GraphBuilder):
    """The graph under construction, with what ONNX adds: names, versions, functions and subgraphs."""

    def __init__(self, local_functions: dict[functions.Key, onnx.FunctionProto]) -> None:
        super().__init__("onnx")
        self.local_functions = local_functions
        self._names: dict[int, tuple[torch.Tensor, str]] = {}
        self._opset = 0
        self._scope: Scope | None = None
        self._depth = 0
        self._count = 0
        self._folded = 0

    @property
    def where(self) -> str:
        name, op = self._place
        return f"onnx operator {op} (opset {self._opset}) {name!r}" if op else "onnx model"

    # ---- constants ----

    def named(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Lets the buffer that holds this constant be called like the file's tensor."""
        self._names[id(tensor)] = (tensor, name)
        return tensor

    def name_of(self, tensor: torch.Tensor) -> str:
        """The file's name of a constant, or "constant"."""
        return self._names[id(tensor)][1] if id(tensor) in self._names else "constant"

    def node(self, value: Value, name: str = "constant") -> Any:
        return super().node(value, self.name_of(value) if isinstance(value, torch.Tensor) else name)

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
        value = super().call(target, *args, **kwargs)
        if isinstance(value, torch.Tensor):
            self._folded += value.nbytes
            if self._folded > MOST_FOLDED:
                raise self.invalid(f"the model's computed constants are larger than {MOST_FOLDED >> 30} GiB together")
        return value

    def constant(self, value: Value, what: str) -> torch.Tensor:
        """The value of an input that must be known now; `what` names it in the message."""
        if isinstance(value, torch.Tensor):
            return value
        if not isinstance(value, fx.Node):
            raise self.invalid(f"its {what} must be a tensor")
        names = self._inputs_of(value)
        shown = ", ".join(map(repr, names))
        hint = "from_onnx(constants={name: value}) makes an input constant"
        raise UnknownInput(f"{self.where}: its {what} must be constant, but depends on input {shown}; {hint}", names)

    def _inputs_of(self, node: fx.Node) -> list[str]:
        """The model's inputs that a node depends on."""
        found, waiting = {node}, [node]
        while waiting:
            new = set(waiting.pop().all_input_nodes) - found
            found |= new
            waiting += new
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        return [info.name for n, info in zip(placeholders, self.inputs, strict=True) if n in found]

    def int_list(self, value: Value, what: str) -> list[int]:
        """A constant tensor of integers as a flat list."""
        tensor = self.constant(value, what)
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            raise self.invalid(f"its {what} must be integers, got {tensor.dtype}")
        return [int(i) for i in tensor.flatten().tolist()]

    def number(self, value: Value, what: str) -> Any:
        """A constant tensor of one element as a Python number."""
        tensor = self.constant(value, what)
        if tensor.numel() != 1:
            raise self.invalid(f"its {what} must have one element, got shape {list(tensor.shape)}")
        return tensor.item()

    # ---- nodes ----

    def graph_values(self, nodes: Sequence[NodeProto], outputs: Sequence[str], scope: Scope) -> list[Value]:
        """Converts the nodes that the outputs need, in order; gives the outputs' values."""
        if self._depth >= DEEPEST:
            raise self.invalid(f"subgraphs and functions are nested more than {DEEPEST} deep")
        self._depth += 1
        try:
            for index in needed(nodes, outputs):
                self._convert(nodes[index], index, scope)
            return [self._read(name, scope, "the graph's output") for name in outputs]
        finally:
            self._depth -= 1

    def subgraph(self, graph: GraphProto, inputs: Sequence[Value]) -> list[Value]:
        """Converts the body of the control-flow node being converted, with these values for its inputs."""
        around = self._scope
        if around is None:
            raise InternalError("subgraph() is called outside of a conversion")
        if len(inputs) != len(graph.input):
            raise self.invalid(f"its subgraph {graph.name!r} takes {len(graph.input)} inputs, got {len(inputs)}")
        scope = Scope(around.opsets, around, around.attributes, around.prefix, around.provenance)
        for tensor in graph.initializer:
            scope.values[tensor.name] = self._initializer(tensor)
        scope.values.update(zip((i.name for i in graph.input), inputs, strict=True))
        return self.graph_values(graph.node, [o.name for o in graph.output], scope)

    def expand(self, node: OnnxNode) -> Value:
        """Converts an operator by the body that ONNX defines for it. Raises UnsupportedError if it has none."""
        body = functions.schema_body(node)
        if body is None:
            raise self.unsupported("it has no conversion, nor a body defined by ONNX")
        return self._call_function(node, body, provenance=False)

    def _convert(self, proto: NodeProto, index: int, scope: Scope) -> None:
        self._count += 1
        if self._count > MOST_NODES:
            raise self.invalid(f"the model has more than {MOST_NODES} nodes, with its functions and loops expanded")
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        if not scope.provenance:
            self._convert_here(proto, self._place[0], domain, scope)
            return
        name = scope.prefix + (proto.name or f"{proto.op_type}_{index}")
        with self._place_at(name, proto.op_type, scope.opsets.get(domain, 0)):
            self._convert_here(proto, name, domain, scope)

    @contextmanager
    def _place_at(self, name: str, op: str, opset: int) -> Any:
        before, self._opset = self._opset, opset
        try:
            with self.at(name, op):
                yield
        finally:
            self._opset = before

    def _convert_here(self, proto: NodeProto, name: str, domain: str, scope: Scope) -> None:
        inputs = [self._read(i, scope, "its input") if i else None for i in proto.input]
        for value in inputs:
            if isinstance(value, Unusable):
                raise self.unsupported(value.why)
        if scope.attributes or any(a.ref_attr_name for a in proto.attribute):
            proto = functions.bind_attributes(proto, scope.attributes)
        node = OnnxNode(self, proto, name, scope.opsets.get(domain, 0), inputs)
        before, self._scope = self._scope, scope
        try:
            result = self._result(node)
        finally:
            self._scope = before
        results = result if isinstance(result, tuple) else (result,)
        for output, value in zip(proto.output, results, strict=False):
            if output:
                if output in scope.values:
                    raise self.invalid(f"its output {output!r} is made twice")
                if value is not None:
                    scope.values[output] = value

    def _result(self, node: OnnxNode) -> Value:
        local = self.local_functions.get((node.domain, node.op, node.proto.overload))
        if local is not None:
            return self._call_function(node, local, provenance=True)
        key = f"{node.domain}.{node.op}" if node.domain else node.op
        if any(isinstance(v, list) or v is EMPTY for v in node.inputs) and node.op not in TAKE_SEQUENCES:
            raise self.invalid("it takes tensors, and is given a sequence or an optional without element")
        if any(entry.takes(node.opset) for entry in REGISTRY.get(("onnx", key), [])):
            return find("onnx", key, node.opset, self.where)(self, node)
        body = functions.schema_body(node)
        if body is not None:
            return self._call_function(node, body, provenance=False)
        return find("onnx", key, node.opset, self.where)(self, node)

    def _call_function(self, node: OnnxNode, body: onnx.FunctionProto, provenance: bool) -> Value:
        """The function's outputs. provenance: its nodes keep names of their own, below the caller's."""
        if len(node.inputs) > len(body.input):
            raise self.invalid(f"function {body.name!r} takes {len(body.input)} inputs, got {len(node.inputs)}")
        opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in body.opset_import}
        if self._scope is not None:  # bodies of operators of other domains may not say which opset of ai.onnx they use
            opsets.setdefault("", self._scope.opsets.get("", 0))
        attributes = {a.name: a for a in body.attribute_proto} | dict(node.attributes)
        scope = Scope(opsets, None, attributes, f"{node.name}/", provenance and self._scope_provenance())
        for index, name in enumerate(body.input):
            scope.values[name] = node.optional(index)
        wanted = [name if node.wants(index) else "" for index, name in enumerate(body.output)]
        found = iter(self.graph_values(body.node, [name for name in wanted if name], scope))
        return tuple(next(found) if name else None for name in wanted)

    def _scope_provenance(self) -> bool:
        return self._scope is None or self._scope.provenance

    def _read(self, name: str, scope: Scope, what: str) -> Value:
        value = scope.find(name)
        if value is None and not _holds(scope, name):
            raise self.invalid(f"{what} {name!r} is made by no node before it")
        return value

    def _initializer(self, tensor: onnx.TensorProto) -> Value:
        return self.named(to_tensor(tensor, self.where), tensor.name)


def _holds(scope: Scope | None, name: str) -> bool:
    """Whether the name is known at all: an optional input of a function that is left out has the value None."""
    while scope is not None:
        if name in scope.values:
            return True
        scope = scope.parent
    return False


def needed(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[int]:
    """The indices of the nodes on which the outputs depend, in order."""
    wanted = set(outputs)
    found = []
    for index in range(len(nodes) - 1, -1, -1):
        if wanted.intersection(nodes[index].output):
            found.append(index)
            wanted.update(reads(nodes[index]))
    return found[::-1]


def reads(node: NodeProto) -> set[str]:
    """The names that a node reads, within its subgraphs too (and some that these make themselves)."""
    found = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.type in _GRAPHS else ():
            found.update(o.name for o in graph.output)
            for inner in graph.node:
                found |= reads(inner)
    return found


_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)

__all__ = [
    "EMPTY", "InvalidModelError", "OnnxBuilder", "OnnxNode", "Scope", "UnknownInput", "UnsupportedError", "Unusable",
    "Value", "aten", "is_constant", "qd",
]  # fmt: skip
