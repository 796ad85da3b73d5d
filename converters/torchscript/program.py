"""Runs a TorchScript program on values of the graph under construction: calls, branches and loops are followed as they
are for the given shapes, and what remains is the straight line of tensor operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..graph import GraphBuilder, identifier
from . import quantized, scalars
from .aten import convert
from .call import Call
from .values import Ref

STEPS = 2_000_000
"""Operations of the TorchScript program that are followed at most: networks need some ten thousand."""

_IGNORED = frozenset({
    "aten::warn", "prim::Print", "prim::profile", "aten::_assert_tensor_metadata", "aten::manual_seed",
})  # fmt: skip


@dataclass(frozen=True)
class Module:
    """A module of the program; path: as named_modules() says it, "layer1.0.conv1"."""

    held: Any
    path: str


@dataclass(frozen=True)
class Function:
    """A function of the program, by its qualified name."""

    name: str


class Program:
    """The state of a run. unit: the compilation unit that holds the program's functions."""

    def __init__(self, unit: Any, builder: GraphBuilder) -> None:
        self.unit, self.builder = unit, builder
        self._steps = 0
        self._attributes: dict[tuple[str, str], Any] = {}

    def call_method(self, module: Module, name: str, args: Sequence[Any]) -> Any:
        """module.name(*args)."""
        if not module.held._has_method(name):
            raise self.builder.invalid(f"module {module.path!r} has no method {name!r}")
        return self._call(module.held._get_method(name).graph, [module, *args], module.path)

    def _call(self, graph: Any, args: Sequence[Any], path: str) -> Any:
        results = self._block(graph, args, {}, path)
        return results[0] if len(results) == 1 else tuple(results)

    def _block(self, block: Any, args: Sequence[Any], env: dict[str, Any], path: str) -> list[Any]:
        parameters = list(block.inputs())
        if len(parameters) != len(args):
            raise self.builder.invalid(f"a function of {len(parameters)} arguments is called with {len(args)}")
        env.update((p.debugName(), a) for p, a in zip(parameters, args, strict=True))
        for node in block.nodes():
            self._step(node, env, path)
        return [env[output.debugName()] for output in block.outputs()]

    def _step(self, node: Any, env: dict[str, Any], path: str) -> None:
        self._steps += 1
        kind = str(node.kind())
        if self._steps > STEPS:
            raise self.builder.unsupported(f"it takes more than {STEPS} operations: a loop that does not end?")
        if kind in _IGNORED:
            return
        outputs = [output.debugName() for output in node.outputs()]
        if kind == "prim::Constant":
            env[outputs[0]] = self._constant(node)
            return
        inputs = [env[value.debugName()] for value in node.inputs()]
        if kind == "prim::If":
            taken = list(node.blocks())[0 if self._condition(inputs[0], node, path) else 1]
            results = self._block(taken, [], env, path)
        elif kind == "prim::Loop":
            results = self._loop(node, inputs, env, path)
        elif kind in ("prim::TupleUnpack", "prim::ListUnpack"):
            results = list(inputs[0])
        elif kind == "prim::GetAttr":
            results = [self._attribute(inputs[0], node.s("name"), node)]
        elif kind == "prim::CallMethod":
            results = [self._call_on(inputs[0], node.s("name"), inputs[1:])]
        elif kind == "prim::CallFunction":
            results = [self._call(self._function(inputs[0]), inputs[1:], path)]
        else:
            with self.builder.at(path or location(node), kind):
                result = self._operator(node, kind, inputs, path)
            results = list(result) if len(outputs) > 1 else [result] if outputs else []
        if len(results) != len(outputs):
            raise self.builder.invalid(f"{kind} gives {len(results)} values, {len(outputs)} are wanted")
        env.update(zip(outputs, results, strict=True))

    # ---- one operation ----

    def _operator(self, node: Any, kind: str, inputs: list[Any], path: str) -> Any:
        builder = self.builder
        if kind == "prim::SetAttr":
            self._attributes[inputs[0].path, node.s("name")] = inputs[1]
            return None
        if kind == "prim::RaiseException":
            raise builder.invalid(f"for these inputs the model raises {str(inputs[0])!r}")
        if kind == "prim::isinstance":
            return scalars.is_instance(inputs[0], [str(t) for t in node.tys("types")])
        if kind == "prim::TupleIndex":
            return inputs[0][inputs[1]]
        if kind in scalars.BUILD:
            return scalars.BUILD[kind](inputs)
        schema = str(node.schema())
        overload = schema.partition("(")[0].removeprefix(kind).removeprefix(".") or "default"
        call = Call(builder, kind, overload, inputs, path)
        if kind in scalars.TABLE and "Tensor" not in schema.partition("->")[0]:
            return scalars.compute(call)
        return convert(call)

    def _condition(self, value: Any, node: Any, path: str) -> bool:
        if isinstance(value, Ref) and not value.is_constant:
            with self.builder.at(path or location(node), "prim::If"):
                raise self.builder.unsupported("which branch is taken depends on data; the DNA runs fixed programs")
        return bool(value.value if isinstance(value, Ref) else value)

    def _loop(self, node: Any, inputs: list[Any], env: dict[str, Any], path: str) -> list[Any]:
        trips, condition, *carried = inputs
        (body,) = node.blocks()
        for i in range(trips):
            if not self._condition(condition, node, path):
                break
            condition, *carried = self._block(body, [i, *carried], env, path)
        return carried

    def _constant(self, node: Any) -> Any:
        output = node.output()
        if output.type().kind() == "FunctionType":
            return Function(str(output.type()))
        value = output.toIValue()
        if isinstance(value, torch.Tensor) and not value.dim() and not value.is_quantized:
            return Ref(value, literal=True)
        return self._value(value)

    def _function(self, value: Any) -> Any:
        found = self.unit.find_function(value.name) if isinstance(value, Function) else None
        if found is None:
            raise self.builder.invalid(f"it calls {value}, which the file does not define")
        return found.graph

    def _call_on(self, value: Any, name: str, args: list[Any]) -> Any:
        if not isinstance(value, Module):
            raise self.builder.unsupported(f"method {name!r} of an object of type {type(value).__name__} is called")
        return self.call_method(value, name, args)

    # ---- attributes ----

    def _attribute(self, owner: Any, name: str, node: Any) -> Any:
        if not isinstance(owner, Module):
            raise self.builder.unsupported(f"attribute {name!r} of an object of type {type(owner).__name__} is read")
        path = f"{owner.path}.{name}" if owner.path else name
        children = dict(torch._C.ModuleDict(owner.held).items())
        if name in children:
            return Module(children[name], path)
        key = owner.path, name
        if key not in self._attributes:
            if not owner.held.hasattr(name):
                raise self.builder.invalid(f"module {owner.path!r} has no attribute {name!r}")
            self._attributes[key] = self._value(owner.held.getattr(name), path)
        return self._attributes[key]

    def _value(self, value: Any, name: str = "constant") -> Any:
        """A Python value as a value of the program; tensors get the name of the attribute."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value.detach(), name)
        if isinstance(value, list):
            return [self._value(v, name) for v in value]
        if isinstance(value, tuple):
            return tuple(self._value(v, name) for v in value)
        if isinstance(value, dict):
            return {key: self._value(v, name) for key, v in value.items()}
        return value

    def _tensor(self, tensor: torch.Tensor, name: str) -> Ref:
        if tensor.is_quantized:
            return quantized.constant(self.builder, tensor)
        if tensor.layout is not torch.strided:
            raise self.builder.unsupported(f"tensor {name!r} is sparse ({tensor.layout}); make it dense")
        self.builder.node(tensor, identifier(name))  # so that the buffer has this name if it is read
        return Ref(tensor)


def location(node: Any) -> str:
    """Where the Python source of a node stood, "resnet.py:281"; "" if unknown."""
    text = str(node).rpartition(" # ")[2].strip().splitlines()
    parts = text[0].rpartition("/")[2].split(":") if text else []
    return ":".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else ""
