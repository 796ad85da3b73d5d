"""Variants of a quantized network in which some operators compute in BF16 or float, without calibrating again.

The quantized network gives each value's scale and each weight's int8; the float twin gives the rest. An operator that
leaves int8 takes its float weights and no longer rounds its result; what int8 operators read is still rounded for them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from mera_torch.errors import InternalError

from ..config import QuantConfig
from ..graphs import operators as ops
from ..graphs.domains import drop_idle, sharing_domains
from ..graphs.patterns import QuantizedOp, attribute, find_constants, find_quantized_ops, module_path, provenance
from ..pipeline import Quantization
from ..rules import Resolver, Rule, operator_classes
from ..transforms.bf16 import to_bf16

_qd: Any = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = _qd.quantize_per_tensor.default, _qd.dequantize_per_tensor.default
_DEQUANTIZES = frozenset({DEQUANTIZE, _qd.dequantize_per_channel.default})
QParams = tuple[Any, ...]  # scale, zero point, least, greatest, dtype


@dataclass(frozen=True)
class Choice:
    """Operators that are in int8 or not as one: one with what is fused into it, or all that share one scale.

    Attributes:
        name: Node name of the (first) operator.
        op: Its class, as in rules.
        module: Path of the module that it came from.
        nodes: Node names of all that belongs to it.
        position: Place in graph order.
    """

    name: str
    op: str
    module: str
    nodes: tuple[str, ...]
    position: int

    def rules(self, dtype: str) -> tuple[Rule, ...]:
        """What makes it compute in `dtype`."""
        return tuple(Rule(node=name, dtype=dtype) for name in self.nodes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Slot:
    """One tensor argument of an operator: the scales through which the quantized network reads it, or the dequantize
    node there of a constant."""

    chain: tuple[QParams, ...] = ()
    constant: Node | None = None


def all_int8(config: QuantConfig) -> QuantConfig:
    """`config` without any dtype but int8, and without bias correction: that makes up for an operator's error in the
    operators behind it, and so would punish what takes the error away."""
    kept = tuple(replace(rule, dtype=None) for rule in config.rules if set(rule.overrides) - {"dtype"})
    return replace(config, dtype="int8", exclude=(), rules=kept, correct_bias=False)


class Variants:
    """quantization: with everything in int8 (see all_int8); config: whose dtypes hold where no choice is to be made.

    Attributes:
        choices: What may be in int8 or not, in graph order.
    """

    def __init__(self, quantization: Quantization, config: QuantConfig) -> None:
        self._reference, self._module = quantization.reference, quantization.module
        self._constants = find_constants(self._reference.graph)
        self._twins = {node.name: node for node in self._module.graph.nodes}
        self._slots = {node: self._read_slots(node) for node in self._reference.graph.nodes}
        self._ops = self._quantized_ops()
        self._made = {op.output for op in self._ops}
        self._tensors: dict[tuple[str, str], torch.Tensor] = {}
        _check_rules(config, quantization.original.graph, self._reference.graph)
        rules = [replace(rule, required=False) for rule in config.all_rules]
        resolver = Resolver(config, rules, self._reference.graph)
        self._fixed = {n.name: resolver.dtype(n) for n in self._reference.graph.nodes if n.op == "call_function"}
        self._groups = self._grouped()
        self.choices = [choice for choice, members in self._groups.items() if self._is_free(members)]

    def neighbours(self, choices: Collection[Choice]) -> dict[Choice, tuple[tuple[Choice, ...], tuple[Choice, ...]]]:
        """For each of `choices`: those of them that make its operands, and those that read its results; what only moves
        values is looked through."""
        owner = {name: choice for choice in choices for name in choice.nodes}
        moving = {node for op in self._ops if op.moves for node in op.nodes if node.name not in owner}
        nodes = {node.name: node for node in self._reference.graph.nodes}

        def around(choice: Choice, near: Callable[[Node], Iterable[Node]]) -> tuple[Choice, ...]:
            todo, seen, found = [nodes[name] for name in choice.nodes], set[Node](), dict[Choice, None]()
            while todo:
                for node in near(todo.pop()):
                    if node in moving and node not in seen:
                        todo.append(node)
                    elif (other := owner.get(node.name)) is not None and other is not choice:
                        found[other] = None
                    seen.add(node)
            return tuple(found)

        return {c: (around(c, lambda n: n.all_input_nodes), around(c, lambda n: list(n.users))) for c in choices}

    def _is_free(self, members: list[QuantizedOp]) -> bool:
        return all(self._fixed[op.nodes[0].name] == "int8" for op in members)

    def build(self, dtypes: Mapping[Choice, str], *, otherwise: str = "int8", isolated: bool = False) -> GraphModule:
        """The network with each choice in its dtype ("int8", "bf16", "float"), `otherwise` elsewhere.

        isolated: int8 operators take other operators' results unrounded, so that the only rounding is of their weights,
        of their own results, and of the network's inputs.
        """
        given = {choice: dtypes.get(choice, otherwise) for choice in self.choices}
        quantized = self._in_int8(given, otherwise)
        outputs, heads = {op.output for op in quantized}, {op.nodes[0] for op in quantized}
        builder = _Builder(self._reference, self._module, self._tensors)
        for node in self._reference.graph.nodes:

            def read(source: Node, slot: _Slot, node: Node = node) -> Node:
                if slot.constant is not None:
                    return builder.constant(slot.constant) if node in heads else builder.values[source]
                chain = [slot.chain[0]] if source in outputs else []
                own = node in heads and not (isolated and source in self._made)
                if own and slot.chain[-1:] != tuple(chain[-1:]):
                    chain.append(slot.chain[-1])
                return builder.rounded(source, chain)

            builder.copy(node, self._slots[node], read)
        module = builder.finish()
        bf16 = {name for name, dtype in self._fixed.items() if dtype == "bf16"}
        for choice, dtype in given.items():
            bf16 = bf16 | set(choice.nodes) if dtype == "bf16" else bf16 - set(choice.nodes)
        to_bf16(module, lambda node: node.name in bf16)
        return module

    def _in_int8(self, given: Mapping[Choice, str], otherwise: str) -> list[QuantizedOp]:
        left = {name for choice, dtype in given.items() if dtype != "int8" for name in choice.nodes}
        left |= {name for name, dtype in self._fixed.items() if dtype != "int8"}
        if otherwise != "int8":
            chosen = {name for choice, dtype in given.items() if dtype == "int8" for name in choice.nodes}
            return [op for op in self._ops if op.nodes[0].name in chosen - left]
        return drop_idle([op for op in self._ops if op.nodes[0].name not in left])

    def _quantized_ops(self) -> list[QuantizedOp]:
        """Those that the quantized network computes in int8."""
        found = find_quantized_ops(self._reference.graph)
        return [op for op in found if all(slot.chain or slot.constant for slot in self._read_by(op))]

    def _read_by(self, op: QuantizedOp) -> Iterator[_Slot]:
        """How it reads its activations."""
        head = op.nodes[0]
        return (slot for slot, source in zip(self._slots[head], _inputs(head), strict=True) if source in op.inputs)

    def _grouped(self) -> dict[Choice, list[QuantizedOp]]:
        """Choices -> their operators; those that only move values follow their neighbours, and are in none."""
        sharing = sharing_domains(self._ops)
        groups: dict[Any, list[QuantizedOp]] = {}
        for op in self._ops:
            groups.setdefault(sharing.find(op.output) if op.shares else op, []).append(op)
        choices: dict[Choice, list[QuantizedOp]] = {}
        for members in groups.values():
            if all(op.moves and op.nodes[0].target not in ops.CAT for op in members):
                continue
            first = next(op for op in members if not op.moves or op.nodes[0].target in ops.CAT).nodes[0]
            names = tuple(node.name for op in members for node in op.nodes)
            choices[Choice(first.name, operator_classes(first)[-1], module_path(first), names, len(choices))] = members
        return choices

    def _read_slots(self, node: Node) -> list[_Slot]:
        twin = self._module.graph.output_node() if node.op == "output" else self._twins.get(node.name)
        mine, theirs = _inputs(node), _inputs(twin) if twin is not None else []
        if len(mine) != len(theirs):
            raise InternalError(f"node {node.name!r} of the float network has no like in the quantized one")
        return [self._slot(source, read) for source, read in zip(mine, theirs, strict=True)]

    def _slot(self, source: Node, read: Node) -> _Slot:
        if source in self._constants:
            return _Slot(constant=read if read.target in _DEQUANTIZES else None)
        chain: list[QParams] = []
        while read.target is DEQUANTIZE:
            quantize: Any = read.args[0]
            chain.insert(0, tuple(quantize.args[1:]))
            read = quantize.args[0]
        if read.name != source.name:
            raise InternalError(
                f"node {read.name!r} of the quantized network stands where {source.name!r} was in float"
            )
        return _Slot(tuple(chain))


class _Builder:
    """A new graph of the float network's nodes, with quantize and dequantize between them."""

    def __init__(
        self, reference: GraphModule, module: GraphModule, tensors: dict[tuple[str, str], torch.Tensor]
    ) -> None:
        self._graph = Graph()
        self._graph.set_codegen(reference.graph._codegen)
        self._owners = {"": reference, "int8_": module}
        self._tensors = tensors  # shared by all variants: equal constants are the same object
        self._held: dict[str, torch.Tensor] = {}
        self._made: dict[Any, Node] = {}
        self.values: dict[Node, Node] = {}

    def copy(self, node: Node, slots: list[_Slot], read: Callable[[Node, _Slot], Node]) -> None:
        if node.op == "get_attr":
            self.values[node] = self._attribute("", node)
            return
        reads = iter([read(source, slot) for source, slot in zip(_inputs(node), slots, strict=True)])
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda _: next(reads))
        new = self._graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
        new.meta = dict(node.meta)
        self.values[node] = new

    def rounded(self, source: Node, chain: list[QParams]) -> Node:
        """`source` through each quantize and dequantize of `chain`."""
        value = self.values[source]
        for end in range(1, len(chain) + 1):
            key = (source, *chain[:end])
            if key not in self._made:
                name = f"{source.name}_int8"
                q = self._graph.create_node("call_function", QUANTIZE, (value, *chain[end - 1]), {}, name)
                new = self._graph.create_node("call_function", DEQUANTIZE, (q, *chain[end - 1]), {}, f"{name}_real")
                q.meta = provenance(source)
                new.meta = {**q.meta, "val": source.meta.get("val")}
                self._made[key] = new
            value = self._made[key]
        return value

    def constant(self, node: Node) -> Node:
        """A weight or bias as the quantized network has it."""
        if node not in self._made:
            if node.op == "get_attr":
                self._made[node] = self._attribute("int8_", node)
            else:
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self.constant)
                new = self._graph.create_node(node.op, node.target, args, kwargs, node.name)
                new.meta = dict(node.meta)
                self._made[node] = new
        return self._made[node]

    def _attribute(self, prefix: str, node: Node) -> Node:
        target = str(node.target)
        if (prefix, target) not in self._tensors:
            held: Any = attribute(self._owners[prefix], target)
            self._tensors[prefix, target] = held.detach()
        name = prefix + target
        new = self._graph.create_node("get_attr", name, (), {}, prefix + node.name)
        new.meta = {**node.meta, "val": self._tensors[prefix, target]}
        self._held[name] = self._tensors[prefix, target]
        return new

    def finish(self) -> GraphModule:
        self._graph.eliminate_dead_code()
        used = {str(node.target) for node in self._graph.nodes if node.op == "get_attr"}
        self._graph.lint()
        return GraphModule({name: held for name, held in self._held.items() if name in used}, self._graph)


def _check_rules(config: QuantConfig, original: Graph, reference: Graph) -> None:
    """Raises ConfigError for a rule that matches nothing in the network, neither before nor after the rewrites."""
    for rule in config.all_rules:
        if rule.required and not any(operator_classes(node) and rule.matches(node) for node in original.nodes):
            Resolver(config, [rule], reference)


def _inputs(node: Node) -> list[Node]:
    """The nodes among the arguments, in order, one for each place."""
    found: list[Node] = []
    torch.fx.map_arg((node.args, node.kwargs), found.append)
    return found
