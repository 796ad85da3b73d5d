"""Operations on numbers, strings, lists and the like, which a network's program computes shapes and settings with."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from .values import Ref

LONGEST = 1_000_000
"""Elements of a list or string that a program may build."""


def compute(call: Any) -> Any:
    """The result of an operation of TABLE. Raises InvalidModelError if it does not take its arguments."""
    try:
        return TABLE[call.kind](*call.args)
    except (TypeError, ValueError, IndexError, KeyError, ArithmeticError, AttributeError) as error:
        raise call.builder.invalid(f"it does not take its arguments: {error}") from error


def is_instance(value: Any, types: list[str]) -> bool:
    """Whether the value is of one of the types, by their TorchScript names."""
    return any(_is(value, name) for name in types)


def _is(value: Any, name: str) -> bool:
    plain: dict[str, Any] = {"int": int, "float": float, "str": str, "Tensor": Ref, "NoneType": type(None)}
    if name == "bool" or isinstance(value, bool):
        return name == "bool" and isinstance(value, bool)
    if name in plain:
        return isinstance(value, plain[name])
    for begin, kind in (("List", list), ("Tuple", tuple), ("Dict", dict), ("(", tuple)):
        if name.startswith(begin):
            return isinstance(value, kind)
    if name.endswith("[]"):
        return isinstance(value, list)
    return False


def _joined(a: Any, b: Any) -> Any:
    _bounded(len(a) + len(b))
    return a + b


def _add(a: Any, b: Any, alpha: Any = 1) -> Any:
    return _joined(a, b) if isinstance(a, str | list | tuple) else a + b * alpha


def _mul(a: Any, b: Any) -> Any:
    for sequence, count in ((a, b), (b, a)):
        if isinstance(sequence, str | list | tuple):
            _bounded(len(sequence) * max(count, 0))
    return a * b


def _pow(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        if abs(a) > 1 and b > 64:
            raise OverflowError("an integer power larger than 64 bits")
        return a**b if b >= 0 else float(a) ** b
    return math.pow(a, b)


def _bounded(length: int) -> None:
    if length > LONGEST:
        raise OverflowError(f"a list or string of {length} elements, more than {LONGEST}")


def _append(items: list[Any], item: Any) -> list[Any]:
    _bounded(len(items) + 1)
    items.append(item)
    return items


def _extend(items: list[Any], more: list[Any]) -> None:
    _bounded(len(items) + len(more))
    items.extend(more)


def _insert(items: list[Any], index: int, item: Any) -> None:
    _bounded(len(items) + 1)
    items.insert(index, item)


def _set(items: Any, key: Any, value: Any) -> Any:
    items[key] = value
    return items


def _slice(items: Any, start: int | None = None, stop: int | None = None, step: int = 1) -> Any:
    return items[slice(start, stop, step)]


def _range(*args: int) -> list[int]:
    _bounded(len(range(*args)))
    return list(range(*args))


def _range_length(low: int, high: int, step: int) -> int:
    return len(range(low, high, step))


def _format(template: str, *args: Any) -> str:
    found = template
    for arg in args:
        found = found.replace("{}", "a tensor" if isinstance(arg, Ref) else str(arg)[:1000], 1)
        _bounded(len(found))
    return found


def _is_none(a: Any, b: Any) -> bool:
    return a is b or (a == b and not any(isinstance(v, Ref | list | dict) for v in (a, b)))


def _int(value: Any, base: int = 10) -> int:
    return int(value, base) if isinstance(value, str) else int(value)


def _extreme(choose: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b=None: choose(a) if b is None else choose(a, b)


def _unwrap(value: Any) -> Any:
    if value is None:
        raise ValueError("None is unwrapped")
    return value


TABLE: dict[str, Callable[..., Any]] = {
    "aten::add": _add,
    "aten::add_": _extend,
    "aten::sub": operator.sub,
    "aten::mul": _mul,
    "aten::div": operator.truediv,
    "aten::floordiv": operator.floordiv,
    "aten::__round_to_zero_floordiv": lambda a, b: math.trunc(a / b),
    "aten::remainder": operator.mod,
    "aten::mathremainder": math.remainder,
    "aten::fmod": math.fmod,
    "aten::divmod": divmod,
    "aten::pow": _pow,
    "aten::neg": operator.neg,
    "aten::abs": abs,
    "prim::abs": abs,
    "aten::fabs": abs,
    "aten::sqrt": math.sqrt,
    "aten::exp": math.exp,
    "aten::log": math.log,
    "aten::log2": math.log2,
    "aten::log10": math.log10,
    "aten::log1p": math.log1p,
    "aten::sin": math.sin,
    "aten::cos": math.cos,
    "aten::tan": math.tan,
    "aten::tanh": math.tanh,
    "aten::ceil": math.ceil,
    "aten::floor": math.floor,
    "aten::round": lambda x: float(round(x)),
    "aten::gcd": math.gcd,
    "aten::isnan": math.isnan,
    "aten::isinf": math.isinf,
    "aten::isfinite": math.isfinite,
    "aten::sum": sum,
    "aten::all": all,
    "aten::any": any,
    "prim::min": _extreme(min),
    "prim::max": _extreme(max),
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::__and__": operator.and_,
    "aten::__or__": operator.or_,
    "aten::__xor__": operator.xor,
    "aten::__not__": operator.not_,
    "aten::__is__": _is_none,
    "aten::__isnot__": lambda a, b: not _is_none(a, b),
    "aten::Int": _int,
    "aten::IntImplicit": int,
    "aten::Float": float,
    "aten::FloatImplicit": float,
    "aten::Bool": bool,
    "aten::ScalarImplicit": lambda x: x,
    "aten::str": lambda x: str(x)[:1000],
    "aten::len": len,
    "aten::__getitem__": operator.getitem,
    "aten::_set_item": _set,
    "aten::__contains__": operator.contains,
    "aten::append": _append,
    "aten::extend": _extend,
    "aten::insert": _insert,
    "aten::pop": lambda items, *key: items.pop(*key),
    "aten::clear": lambda items: items.clear(),
    "aten::reverse": lambda items: items.reverse(),
    "aten::sort": lambda items, reverse=False: items.sort(reverse=reverse),
    "aten::sorted": lambda items, reverse=False: sorted(items, reverse=reverse),
    "aten::index": lambda items, item: items.index(item),
    "aten::count": lambda items, item: items.count(item),
    "aten::slice": _slice,
    "aten::list": list,
    "aten::copy": lambda items: items.copy(),
    "aten::dict": dict,
    "aten::keys": lambda items: list(items.keys()),
    "aten::values": lambda items: list(items.values()),
    "aten::items": lambda items: list(items.items()),
    "aten::get": lambda items, key, default=None: items.get(key, default),
    "aten::update": lambda items, more: items.update(more),
    "aten::Delete": lambda items, key: operator.delitem(items, key),
    "aten::format": _format,
    "aten::startswith": lambda text, begin: text.startswith(begin),
    "aten::endswith": lambda text, end: text.endswith(end),
    "aten::lower": lambda text: text.lower(),
    "aten::upper": lambda text: text.upper(),
    "aten::__range_length": _range_length,
    "aten::__derive_index": lambda index, start, step: start + index * step,
    "prim::rangelist": _range,
    "prim::unchecked_cast": lambda x: x,
    "prim::unchecked_unwrap_optional": _unwrap,
    "aten::_unwrap_optional": _unwrap,
    "aten::device": torch.device,
    "aten::is_scripting": lambda: True,
    "aten::is_grad_enabled": lambda: True,
    "aten::_get_tracing_state": lambda: False,
    "aten::is_autocast_enabled": lambda *kind: False,
    "aten::is_autocast_cpu_enabled": lambda: False,
    "aten::has_torch_function": lambda *args: False,
    "prim::index": lambda device: device.index,
}
"""By name: Python's operators do what the overloads for int, float, str, list, ... do."""


def _dict(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


BUILD: dict[str, Callable[[list[Any]], Any]] = {
    "prim::ListConstruct": list,
    "prim::TupleConstruct": tuple,
    "prim::DictConstruct": _dict,
    "prim::Uninitialized": lambda inputs: None,
    "prim::type": lambda inputs: "cpu",
}
"""Operations that make a value from others without looking at them."""
