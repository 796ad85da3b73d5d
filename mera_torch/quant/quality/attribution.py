"""The operators of a quantized graph, each with its twin in the float graph; and what an operator makes of float
inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from mera_torch.ops.bf16 import is_bf16_cast
from mera_torch.ops.common import DEQUANTIZE_OPS, QUANTIZE_OPS

from ..graphs import operators as ops
from ..graphs.canonicalize import remove_in_place
from ..graphs.capture import twin as copy_of
from ..graphs.patterns import attribute, find_constants, value_of

_LONGEST_TWIN = 16  # float operators that one quantized operator may stand for


@dataclass(frozen=True)
class Operator:
    """What computes one value of the quantized graph; or an input of the graph.

    Attributes:
        nodes: The operator, then the activations fused into it; the last one gives the value.
        sources: The graph's values that it reads, before they are rounded.
        rounding, restored: What rounds its value (quantize, or the cast to bfloat16), and makes a float of that again.
            The value itself, if it is codes already.
        twins: The float graph's nodes that compute the value from the sources' twins; the last one is its twin. Only
            that, if it is computed from others; none, if there is no twin.
        isolated: Whether the twins compute it from nothing else.
        note: Why there is no twin.
    """

    nodes: tuple[Node, ...]
    sources: tuple[Node, ...]
    rounding: Node | None
    restored: Node | None
    twins: tuple[Node, ...]
    isolated: bool
    note: str

    @property
    def value(self) -> Node:
        return self.nodes[-1]

    @property
    def twin(self) -> Node | None:
        return self.twins[-1] if self.twins else None

    @property
    def coded(self) -> bool:
        """Whether its value is codes, not a float."""
        return self.rounding is self.value


class Graph:
    """A graph with what it computes from constants alone, once."""

    def __init__(self, module: GraphModule) -> None:
        self.module = copy_of(module)  # which shares the tensors
        remove_in_place(self.module)
        self.nodes = list(self.module.graph.nodes)
        self.inputs = [node for node in self.nodes if node.op == "placeholder"]
        self.output = next(node for node in self.nodes if node.op == "output")
        self.by_name = {node.name: node for node in self.nodes}
        self.constants: dict[Node, Any] = {}
        fixed = find_constants(self.module.graph)
        with torch.no_grad():
            for node in self.nodes:
                if node.op == "get_attr":
                    self.constants[node] = attribute(self.module, str(node.target))
                elif node in fixed:
                    self.constants[node] = self.compute(node, self.constants.__getitem__)

    def compute(self, node: Node, value: Callable[[Node], Any]) -> Any:
        """What a called function or module gives for the values of what it reads."""
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), value)
        if node.op == "call_module":
            return self.module.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def is_computed(self, node: Node) -> bool:
        """Whether it depends on the graph's inputs and is no output."""
        return node.op not in ("placeholder", "get_attr", "output") and node not in self.constants

    def variables(self, node: Node) -> list[Node]:
        """What it reads and is not constant."""
        return [source for source in node.all_input_nodes if source not in self.constants]


# ---- rounding ----


def is_rounding(node: Node) -> bool:
    """Whether it only changes the number format: quantize, dequantize, a cast to bfloat16 and back."""
    if node.op != "call_function":
        return False
    return node.target in QUANTIZE_OPS or node.target in DEQUANTIZE_OPS or is_bf16_cast(node)


def origin(node: Node) -> Node:
    """The value that a chain of roundings begins with."""
    while is_rounding(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


@dataclass(frozen=True)
class Format:
    """A number format: "int8", ..., "bf16" or "float"; scale and zero point, None where it has none for all elements;
    the lowest and highest code."""

    name: str
    scale: float | None = None
    zero_point: int | None = None
    lowest: int = 0
    highest: int = 0

    @property
    def is_byte(self) -> bool:
        """Whether its codes are those of 8 bits with one scale."""
        return self.scale is not None and self.highest - self.lowest <= 255


FLOAT = Format("float")


def format_of(graph: Graph, node: Node | None) -> Format:
    """The format to which a rounding node rounds, or from which it restores; FLOAT for any other node."""
    if node is None or not is_rounding(node):
        return FLOAT
    if is_bf16_cast(node):
        return Format("bf16")
    names: tuple[str, ...] = ("input", "scale", "zero_point", "quant_min", "quant_max", "dtype")
    per_tensor = "per_tensor" in str(node.target)
    if not per_tensor:
        names = ("input", "scales", "zero_points", "axis", *names[3:])
    held: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    dtype = str(held["dtype"]).removeprefix("torch.")
    if not per_tensor:
        return Format(dtype)
    scale, zero_point = (graph.constants.get(held[name], held[name]) for name in ("scale", "zero_point"))
    return Format(dtype, float(scale), int(zero_point), int(held["quant_min"]), int(held["quant_max"]))


# ---- operators ----


def find_operators(quantized: Graph, reference: Graph) -> list[Operator]:
    """In the order of execution, the graph's inputs first; without those whose value nothing reads."""
    twins = _Twins(quantized, reference)
    found = [_operator(quantized, twins, (node,)) for node in quantized.inputs]
    fused: set[Node] = set()
    for node in quantized.nodes:
        if node.users and quantized.is_computed(node) and not is_rounding(node) and node not in fused:
            chain = (node, *_fused_after(quantized, node))
            fused.update(chain)
            found.append(_operator(quantized, twins, chain))
    return found


def main_operator(graph: Graph, value: Node) -> Node:
    """The operator into which the one that gives `value` is fused, or itself."""
    sources = graph.variables(value)
    fused = len(sources) == 1 and graph.is_computed(sources[0]) and value in _fused_after(graph, sources[0])
    return sources[0] if fused else value


def _fused_after(graph: Graph, node: Node) -> Iterable[Node]:
    """The clamp that alone reads the unrounded result of an operator with rounded inputs."""
    if not any(is_rounding(source) for source in graph.variables(node)) or len(node.users) != 1:
        return ()
    user = next(iter(node.users))
    return (user,) if user.target in ops.CLAMP and graph.variables(user) == [node] else ()


def _operator(graph: Graph, twins: _Twins, chain: tuple[Node, ...]) -> Operator:
    read = (source for node in chain for source in graph.variables(node) if source not in chain)
    sources = tuple(dict.fromkeys(map(origin, read)))
    rounding = next((user for user in chain[-1].users if is_rounding(user)), None)
    if rounding is not None and rounding.target in DEQUANTIZE_OPS:
        rounding = chain[-1]
    restored = None if rounding is None else next((user for user in rounding.users if is_rounding(user)), None)
    found, note = twins.of(chain[-1])
    path = twins.path(found, sources) if found is not None and chain[0].op != "placeholder" else None
    return Operator(
        chain, sources, rounding, restored, path or ((found,) if found is not None else ()), path is not None, note
    )  # fmt: skip


def value_format(graph: Graph, operator: Operator) -> Format:
    """That of the operator's value, rounded."""
    return format_of(graph, operator.restored if operator.coded else operator.rounding)


def number_format(graph: Graph, operator: Operator) -> str:
    """In which the operator computes: that of its rounded result, if its inputs are rounded likewise and it is one that
    can be quantized; of an input of the graph, that to which it is rounded; else "float"."""
    result = value_format(graph, operator).name
    first = operator.nodes[0]
    if first.op == "placeholder" or result == FLOAT.name:
        return result
    known = result == "bf16" or first.target in (ops.INT8 if len(operator.sources) < 2 else ops.INT8 - ops.PRODUCTS)
    return result if known and all(map(is_rounding, graph.variables(first))) else FLOAT.name


class _Twins:
    """Which node of the float graph computes the same value: the input of the same position, or what has the same name,
    with the batch norm that was folded into it."""

    def __init__(self, quantized: Graph, reference: Graph) -> None:
        self.quantized, self.reference = quantized, reference
        self._inputs = dict(zip(quantized.inputs, reference.inputs, strict=False))

    def of(self, node: Node) -> tuple[Node | None, str]:
        """The twin, or None and the reason."""
        found = self._inputs.get(node) or self.reference.by_name.get(node.name)
        if found is None:
            return None, "the float network has no node of this name"
        if found in self.reference.constants or found.op in ("output", "get_attr"):
            return None, "this node of the float network does not depend on its inputs"
        if found.op != "placeholder":
            found = self._with_batch_norm(found)
        shapes = [tuple(value.shape) for n in (node, found) if (value := value_of(n)) is not None]
        if len(shapes) == 2 and shapes[0] != shapes[1]:
            return None, f"its shape is {list(shapes[0])}, the float network's {list(shapes[1])}"
        return found, ""

    def _with_batch_norm(self, node: Node) -> Node:
        weighted = ops.CONV | ops.CONV_1D | ops.CONV_TRANSPOSED | ops.LINEAR
        user = next(iter(node.users)) if len(node.users) == 1 and node.target in weighted else None
        folded = user is not None and user.target in ops.BATCH_NORM and user.name not in self.quantized.by_name
        return user if folded and user is not None else node

    def path(self, twin: Node, sources: tuple[Node, ...]) -> tuple[Node, ...] | None:
        """The nodes from the sources' twins to this one; None if it reads anything else."""
        ends = {self.of(source)[0] for source in sources}
        needed, waiting = {twin}, [twin]
        while waiting:
            for source in self.reference.variables(waiting.pop()):
                if source in ends or source in needed:
                    continue
                if source.op == "placeholder" or len(needed) == _LONGEST_TWIN:
                    return None
                needed.add(source)
                waiting.append(source)
        return tuple(node for node in self.reference.nodes if node in needed) if twin not in ends else None


# ---- an operator by itself ----


@dataclass(frozen=True)
class Alone:
    """What an operator makes of float inputs.

    Attributes:
        given: The float operator on its inputs as those who made them round them; None if it cannot be told apart.
        rounded: The float operator on its inputs as this operator reads them, which may round them once more; None
            likewise.
        unrounded: The quantized operator on the same, its result not yet rounded.
        value: That, rounded.
    """

    given: Any
    rounded: Any
    unrounded: Any
    value: Any


class _Values:
    """Values of a graph's nodes, computed when they are asked for. (A function that calls itself would keep them alive
    until the garbage collector comes.)"""

    def __init__(self, graph: Graph, held: dict[Node, Any]) -> None:
        self._graph, self._held = graph, held

    def __call__(self, node: Node) -> Any:
        if node in self._graph.constants:
            return self._graph.constants[node]
        if node not in self._held:
            self._held[node] = self._graph.compute(node, self)
        return self._held[node]


class FloatFed:
    """Runs quantized operators on the values of the float graph."""

    def __init__(self, quantized: Graph, reference: Graph, operators: Iterable[Operator]) -> None:
        self.quantized, self.reference = quantized, reference
        self.operators = {operator.value: operator for operator in operators}
        self.twins = {value: operator.twin for value, operator in self.operators.items() if operator.twin is not None}

    def can_run(self, operator: Operator) -> bool:
        """Whether the operator and all that it reads have twins, and are floats before they are rounded."""
        values = (*operator.sources, operator.value)
        return all(value in self.twins and not self.operators[value].coded for value in values)

    def run(self, operator: Operator, floats: Mapping[Node, Any]) -> Alone:
        """floats: the values of the twins of what it reads (for an input of the graph: of its own twin)."""
        graph = self.quantized
        own = operator.sources or (operator.value,) * (operator.value.op == "placeholder")
        value = _Values(graph, {source: floats[self.twins[source]] for source in own})
        given: dict[Node, Any] = {}  # by the float graph's nodes
        rounded: dict[Node, Any] = {}
        for node in operator.nodes:
            for read in graph.variables(node):
                if (source := origin(read)) in operator.sources:
                    given.setdefault(self.twins[source], value(self._as_made(read, source)))
                    rounded.setdefault(self.twins[source], value(read))
        unrounded = value(operator.value)
        result = restored(graph, operator, value)
        weighted = any(source in graph.constants for node in operator.nodes for source in node.all_input_nodes)
        with_floats = self._twin_on(operator, rounded) if weighted else unrounded
        same = all(given[node] is rounded[node] for node in given)
        return Alone(with_floats if same else self._twin_on(operator, given), with_floats, unrounded, result)

    def _as_made(self, read: Node, source: Node) -> Node:
        """Of the roundings that lead to `read`, the one by which the source's own operator restores its value."""
        made = self.operators[source].restored
        while read is not source:
            if made is not None and (read.target, read.args, read.kwargs) == (made.target, made.args, made.kwargs):
                return read
            read = read.args[0]  # type: ignore[assignment]
        return source

    def _twin_on(self, operator: Operator, values: Mapping[Node, Any]) -> Any:
        if not operator.isolated:
            return None
        held = {**self.reference.constants, **values}
        for node in operator.twins:
            held[node] = self.reference.compute(node, held.__getitem__)
        return held[operator.twins[-1]]


def restored(graph: Graph, operator: Operator, value: Callable[[Node], Any]) -> Any:
    """The rounded value of an operator as a float again; value: of the graph's nodes."""
    if operator.restored is not None or operator.rounding is None:
        return value(operator.restored or operator.value)
    form = format_of(graph, operator.rounding)
    codes = value(operator.rounding).float()
    return codes if form.scale is None or form.zero_point is None else (codes - form.zero_point) * form.scale
