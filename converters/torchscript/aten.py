"""Tensor operators that PyTorch still has under the same name: they become calls of their functional overloads."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..graph import Value
from ..registry import REGISTRY, find
from .call import MEMORY_FORMATS, Call
from .values import Ref, refs

aten: Any = torch.ops.aten

FORBIDDEN = frozenset({
    "from_file", "save", "set_", "resize_", "resize_as_", "empty_strided", "as_strided", "as_strided_",
})  # fmt: skip
"""Operators on files or raw memory."""

FLOAT = frozenset({
    "aten::batch_norm", "aten::native_batch_norm", "aten::_convolution", "aten::convolution", "aten::addmm", "aten::mm",
    "aten::matmul", "aten::index", "aten::index_put", "aten::index_put_", "aten::copy_",
})  # fmt: skip
"""Operators with a conversion of their own that does not know quantized tensors."""

LIKE = frozenset({
    "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty",
    "zero_", "fill_", "zero", "fill",
})  # fmt: skip
"""Their result depends on the shape and dtype of their input alone."""

_EMPTY = {"empty": "zeros", "empty_like": "zeros_like", "new_empty": "new_zeros"}
_SPELLED = {"__and__": "bitwise_and", "__or__": "bitwise_or", "__xor__": "bitwise_xor", "concat": "cat",
            "concatenate": "cat", "multiply": "mul", "divide": "div", "subtract": "sub", "true_divide": "div",
            "__iand__": "bitwise_and_", "__ior__": "bitwise_or_", "clip": "clamp", "clip_": "clamp_"}  # fmt: skip


def convert(call: Call) -> Any:
    """The operation's result: tensors as Ref. Raises UnsupportedError, InvalidModelError."""
    from . import quantized_aten

    is_quantized = any(ref.q is not None for ref in refs(call.args))
    if ("torchscript", call.kind) in REGISTRY and not (is_quantized and call.kind in FLOAT):
        return find("torchscript", call.kind, 1, call.builder.where)(call)
    if not call.kind.startswith("aten::") or call.name in FORBIDDEN:
        raise call.builder.unsupported("it has no conversion")
    return quantized_aten.convert(call) if is_quantized else generic(call)


def generic(call: Call) -> Any:
    """The operator by its schema; one that writes into its input gives the input, which has changed."""
    result, target = functional(call)
    if target is None:
        return result
    write(call, target, result.value)
    return target


def functional(call: Call) -> tuple[Any, Ref | None]:
    """(result, the tensor that the operator writes the result into or None)."""
    op = _overload(call)
    schema = op._schema
    args = list(call.args)
    written = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    if any(schema.arguments[i].kwarg_only for i in written) or written not in ([], [0]):
        raise call.builder.unsupported("it writes into more than its first argument")
    target = call.tensor(0) if written else None
    if target is not None:
        op = _functional(call, op)
    if call.name in LIKE:
        x = call.tensor(0)
        args[0] = Ref(torch.zeros((), dtype=x.dtype).expand(x.shape))
    _refuse_random(call, op, args)
    result = call_op(call, op, args)
    if target is not None and not isinstance(result, Ref):
        raise call.builder.unsupported("it changes its input in place in a way that has no conversion")
    return result, target


def write(call: Call, target: Ref, value: Value) -> None:
    """target's memory gets the value, broadcast to its shape and converted to its dtype."""
    if list(target.shape) != list(Ref(value).shape):
        value = call.builder.call(aten.expand.default, value, list(target.shape))
    if target.dtype != Ref(value).dtype:
        value = call.builder.call(aten._to_copy.default, value, dtype=target.dtype)
    if not target.write(value):
        raise call.builder.unsupported("it changes in place a tensor whose elements share memory")


def call_op(call: Call, op: Any, args: list[Any]) -> Any:
    """The overload called with the program's arguments."""
    schema = op._schema
    if len(args) > len(schema.arguments):
        raise call.builder.invalid(f"{op} takes {len(schema.arguments)} arguments, got {len(args)}")
    converted = [_argument(call, a, arg) for a, arg in zip(schema.arguments, args, strict=False)]
    positional = [v for a, v in zip(schema.arguments, converted, strict=False) if not a.kwarg_only]
    named = {
        a.name: v
        for a, v in zip(schema.arguments, converted, strict=False)
        if a.kwarg_only and v is not None and not (a.has_default_value() and a.default_value == v)
    }
    if {a.name for a in schema.arguments} >= {"dtype", "device"}:
        named = {key: v for key, v in named.items() if key not in ("device", "layout", "pin_memory")}
    while positional and _is_default(schema.arguments[len(positional) - 1], positional[-1]):
        positional.pop()
    literal = [isinstance(a, Ref) and a.literal for a in args]
    return results(call, call.builder.call(op, *_numbers(op, positional, literal), **named))


def results(call: Call, value: Any) -> Any:
    """What an operator gives as values of the program: several results as a list."""
    if isinstance(value, list | tuple):
        return [results(call, v) for v in value]
    if isinstance(value, fx.Node) and isinstance(value.meta["val"], list | tuple):
        return [Ref(call.builder.emit(operator.getitem, value, i)) for i in range(len(value.meta["val"]))]
    if isinstance(value, fx.Node) and not isinstance(value.meta["val"], torch.Tensor):
        return value.meta["val"]
    return Ref(value) if isinstance(value, fx.Node | torch.Tensor) else value


def _overload(call: Call) -> Any:
    name = _SPELLED.get(call.name, _EMPTY.get(call.name, call.name))
    packet = getattr(aten, name, None)
    op = getattr(packet, call.overload, None) if packet is not None else None
    if op is None and packet is not None and name != call.name:
        op = getattr(packet, "default", None) or getattr(packet, "Tensor", None)
    if not isinstance(op, torch._ops.OpOverload):
        raise call.builder.unsupported(f"PyTorch {torch.__version__} has no operator {call.kind}.{call.overload}")
    return op


def _functional(call: Call, op: Any) -> Any:
    name = str(op._schema.name).partition("::")[2]
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    wanted = [a.name for a in op._schema.arguments]
    for overload in packet.overloads() if packet is not None else []:
        found = getattr(packet, overload)
        if overload == op._overloadname and not found._schema.is_mutable:
            if [a.name for a in found._schema.arguments] == wanted:
                return found
    raise call.builder.unsupported("it changes its input in place, and has no functional counterpart")


def _refuse_random(call: Call, op: Any, args: list[Any]) -> None:
    if torch.Tag.nondeterministic_seeded not in op.tags:
        return
    for argument, value in zip(op._schema.arguments, args, strict=False):
        if argument.name in ("train", "training") and value is False or argument.name == "dropout_p" and value == 0:
            return
    raise call.builder.unsupported(
        "its result is random: call .eval() before tracing, and make noise an input of the model"
    )


def _argument(call: Call, argument: Any, value: Any) -> Any:
    kind = str(argument.real_type)
    if isinstance(value, Ref):
        return call.read(value) if "Scalar" == kind.removeprefix("Optional[").rstrip("]") else value.value
    if isinstance(value, list):
        return [_argument(call, argument, v) for v in value]
    if isinstance(value, torch.ScriptObject):
        raise call.builder.unsupported("it takes packed parameters, and has no conversion")
    if value is None or isinstance(value, bool):
        return value
    if "ScalarType" in kind:
        return call.dtype(value)
    if "MemoryFormat" in kind and isinstance(value, int):
        return MEMORY_FORMATS[value] if 0 <= value < len(MEMORY_FORMATS) else None
    if "Layout" in kind:
        return None
    return value


def _is_default(argument: Any, value: Any) -> bool:
    if not argument.has_default_value() or isinstance(value, fx.Node | torch.Tensor):
        return False
    default = argument.default_value
    return type(default) is type(value) and default == value


def _numbers(op: Any, args: list[Any], literal: Sequence[bool]) -> list[Any]:
    """Constants of no dimension beside a tensor are numbers, as PyTorch's type promotion treats them: so they stand in
    what it exports."""
    if torch.Tag.pointwise not in op.tags:
        return args
    if op in (aten.add.Tensor, aten.mul.Tensor) and len(args) == 2 and isinstance(args[1], fx.Node):
        if isinstance(args[0], torch.Tensor):
            args, literal = args[::-1], literal[::-1]
    if not isinstance(args[0], fx.Node) or not args[0].meta["val"].dim():
        return args
    dtype = args[0].meta["val"].dtype
    found = list(args)
    for i, arg in enumerate(args[1:], 1):
        if not isinstance(arg, torch.Tensor) or arg.dim() or arg.is_complex() or arg.dtype is torch.bool:
            continue
        same_kind = dtype.is_floating_point or not arg.is_floating_point() and dtype is not torch.bool
        if same_kind or literal[i]:
            found[i] = arg.item()
    return found
