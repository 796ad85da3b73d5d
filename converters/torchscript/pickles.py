"""Checks a pickle of a TorchScript file without building what it describes: the operations that TorchScript writes, on
values of the right kinds, and tensors that lie within their storages."""

from __future__ import annotations

import pickletools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mera_torch.errors import CorruptFileError

DEEPEST = 200
"""Containers in containers at most: PyTorch's loader follows them recursively."""
LARGEST = 50_000_000
"""Values of a container at most, counted as often as they are referred to."""

ITEM_SIZES = {
    "ByteStorage": 1, "CharStorage": 1, "BoolStorage": 1, "ShortStorage": 2, "HalfStorage": 2, "BFloat16Storage": 2,
    "IntStorage": 4, "FloatStorage": 4, "LongStorage": 8, "DoubleStorage": 8, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16, "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4,
}  # fmt: skip
"""Bytes of an element."""

_REBUILD = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_qtensor")
_CALLABLE = frozenset({
    "collections OrderedDict", "torch.jit._pickle build_intlist", "torch.jit._pickle build_tensorlist",
    "torch.jit._pickle build_doublelist", "torch.jit._pickle build_boollist", "torch.jit._pickle restore_type_tag",
    "torch device", *_REBUILD,
})  # fmt: skip
_QSCHEMES = frozenset({
    "torch per_tensor_affine", "torch per_channel_affine", "torch per_tensor_symmetric", "torch per_channel_symmetric",
    "torch per_channel_affine_float_qparams",
})  # fmt: skip


@dataclass(frozen=True)
class Value:
    """kind: "int", "str", "tuple", "list", "dict", "global", "storage", "tensor", "object" or "other".

    data: an int's or a str's value, a tuple's items, a storage's elements; size: values within, depth: of nesting.
    """

    kind: str
    data: Any = None
    size: int = 1
    depth: int = 1


_MARK = Value("mark")
_MUTABLE = ("list", "dict", "object")


def check_pickle(data: bytes, name: str, records: Mapping[str, int]) -> None:
    """Raises CorruptFileError with the offset. records: the bytes of each tensor record that the pickle may name."""
    machine = _Machine(records)
    position = 0
    try:
        for opcode, argument, offset in pickletools.genops(data):
            position = offset or 0
            machine.step(opcode.name, argument)
    except CorruptFileError as error:
        raise CorruptFileError(f"{name}, offset {position}: {error}") from None
    except Exception as error:  # what pickletools raises for damaged bytes has no common base
        raise CorruptFileError(f"{name} is damaged behind offset {position}: {error}") from None
    if machine.result is None:
        raise CorruptFileError(f"{name} describes nothing")


class _Machine:
    """The stack of an unpickler, of descriptions."""

    def __init__(self, records: Mapping[str, int]) -> None:
        self.records = records
        self.stack: list[Value] = []
        self.memo: list[Value] = []
        self.places: dict[int, list[int]] = {}  # where in the memo a container stands, by its id
        self.result: Value | None = None

    def step(self, name: str, argument: Any) -> None:
        operation = getattr(self, f"_{name.lower()}", None)
        if name in _PLAIN:
            self.stack.append(Value(_PLAIN[name], argument))
        elif operation is not None:
            operation(argument)
        else:
            raise CorruptFileError(f"TorchScript does not write the operation {name}")

    # ---- the stack ----

    def pop(self, *kinds: str) -> Value:
        if not self.stack or self.stack[-1] is _MARK:
            raise CorruptFileError("a value is missing")
        value = self.stack.pop()
        if kinds and value.kind not in kinds:
            raise CorruptFileError(f"a {' or '.join(kinds)} is expected, got a {value.kind}")
        return value

    def marked(self) -> list[Value]:
        items: list[Value] = []
        while self.stack:
            value = self.stack.pop()
            if value is _MARK:
                return items[::-1]
            items.append(value)
        raise CorruptFileError("a mark is missing")

    def push(self, kind: str, items: Sequence[Value] = (), data: Any = None) -> None:
        size, depth = 1 + sum(i.size for i in items), 1 + max((i.depth for i in items), default=0)
        if size > LARGEST or depth > DEEPEST:
            raise CorruptFileError(f"a {kind} of {size} values, nested {depth} deep")
        self.stack.append(Value(kind, data, size, depth))

    def grow(self, items: Sequence[Value], *kinds: str) -> None:
        """Items go into the container on top: it is described anew, in the memo too."""
        old = self.pop(*kinds)
        self.push(old.kind, items, old.data)
        new = self.stack[-1] = _sum(old, self.stack[-1])
        for index in self.places.pop(id(old), ()):
            self.memo[index] = new
            self.places.setdefault(id(new), []).append(index)

    # ---- operations ----

    def _proto(self, argument: int) -> None:
        if argument != 2:
            raise CorruptFileError(f"pickle protocol {argument}, TorchScript writes 2")

    def _stop(self, argument: Any) -> None:
        self.result = self.pop()
        if self.stack:
            raise CorruptFileError("values are left over")

    def _mark(self, argument: Any) -> None:
        self.stack.append(_MARK)

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        storage = module == "torch" and name in ITEM_SIZES
        if not (storage or module.startswith("__torch__") or argument in _CALLABLE or argument in _QSCHEMES):
            raise CorruptFileError(f"it names {argument!r}, which no TorchScript file needs")
        self.stack.append(Value("global", argument))

    def _binput(self, index: int) -> None:
        value = self.pop()
        self.stack.append(value)
        if index > len(self.memo):
            raise CorruptFileError(f"memo {index} is set after {len(self.memo)}")
        self.memo[index : index + 1] = [value]
        if value.kind in _MUTABLE:
            self.places.setdefault(id(value), []).append(index)

    _long_binput = _binput

    def _binget(self, index: int) -> None:
        if index >= len(self.memo):
            raise CorruptFileError(f"memo {index} is not set")
        self.stack.append(self.memo[index])

    _long_binget = _binget

    def _empty_tuple(self, argument: Any) -> None:
        self.push("tuple", (), ())

    def _tuple(self, argument: Any) -> None:
        items = self.marked()
        self.push("tuple", items, tuple(items))

    def _some(self, count: int) -> None:
        items = [self.pop() for _ in range(count)][::-1]
        self.push("tuple", items, tuple(items))

    def _tuple1(self, argument: Any) -> None:
        self._some(1)

    def _tuple2(self, argument: Any) -> None:
        self._some(2)

    def _tuple3(self, argument: Any) -> None:
        self._some(3)

    def _empty_list(self, argument: Any) -> None:
        self.push("list")

    def _empty_dict(self, argument: Any) -> None:
        self.push("dict")

    def _append(self, argument: Any) -> None:
        self.grow([self.pop()], "list")

    def _appends(self, argument: Any) -> None:
        self.grow(self.marked(), "list")

    def _setitem(self, argument: Any) -> None:
        value, key = self.pop(), self.pop("str", "int", "float", "bool", "tensor")
        self.grow([key, value], "dict")

    def _setitems(self, argument: Any) -> None:
        items = self.marked()
        if len(items) % 2 or any(key.kind not in ("str", "int", "float", "bool", "tensor") for key in items[::2]):
            raise CorruptFileError("a dict's keys must be numbers, strings or tensors, one for each value")
        self.grow(items, "dict")

    def _newobj(self, argument: Any) -> None:
        arguments, cls = self.pop("tuple"), self.pop("global")
        if arguments.data or not str(cls.data).startswith("__torch__"):
            raise CorruptFileError(f"an object of {cls.data!r} is made")
        self.push("object", (), cls.data)

    def _build(self, argument: Any) -> None:
        self.grow([self.pop()], "object")

    def _reduce(self, argument: Any) -> None:
        arguments, function = self.pop("tuple"), self.pop("global")
        if function.data in _REBUILD:
            self.stack.append(_tensor(arguments.data))
        elif function.data == "collections OrderedDict":
            self.push("dict")
        elif function.data in _CALLABLE:
            self.push("list" if "list" in function.data else "other", arguments.data)
            self._kept(function.data, arguments.data)
        else:
            raise CorruptFileError(f"{function.data!r} is called")

    def _kept(self, function: str, arguments: tuple[Value, ...]) -> None:
        expected = {"restore_type_tag": ("any", "str"), "device": ("str",)}.get(function.split(" ")[-1], ("list",))
        kinds = tuple(a.kind for a in arguments)
        if len(kinds) != len(expected) or any(e not in ("any", k) for e, k in zip(expected, kinds, strict=True)):
            raise CorruptFileError(f"{function!r} takes a {' and a '.join(expected)}, got {kinds}")
        if function.endswith("restore_type_tag"):  # it gives its first argument
            self.stack[-1] = Value(arguments[0].kind, arguments[0].data, self.stack[-1].size, self.stack[-1].depth)

    def _binpersid(self, argument: Any) -> None:
        items = self.pop("tuple").data
        if tuple(i.kind for i in items) != ("str", "global", "str", "str", "int") or items[0].data != "storage":
            raise CorruptFileError("a tensor's storage is described wrongly")
        kind = str(items[1].data).partition(" ")[2]
        count, key = items[4].data, items[2].data
        held = self.records.get(key)
        if kind not in ITEM_SIZES or count < 0:
            raise CorruptFileError(f"a storage of {count} elements of {items[1].data!r}")
        if held is None or held < count * ITEM_SIZES[kind]:
            found = "no such record" if held is None else f"{held} bytes"
            raise CorruptFileError(f"tensor record {key!r} needs {count * ITEM_SIZES[kind]} bytes, there are {found}")
        self.stack.append(Value("storage", count))


_PLAIN = {
    "BININT": "int", "BININT1": "int", "BININT2": "int", "LONG1": "int", "BINFLOAT": "float", "BINUNICODE": "str",
    "NONE": "none", "NEWTRUE": "bool", "NEWFALSE": "bool",
}  # fmt: skip


def _sum(old: Value, added: Value) -> Value:
    size, depth = old.size + added.size, max(old.depth, added.depth)
    if size > LARGEST:
        raise CorruptFileError(f"a {old.kind} of {size} values")
    return Value(old.kind, old.data, size, depth)


def _tensor(items: Sequence[Value]) -> Value:
    """The tensor of (storage, offset, sizes, strides, ...), within its storage."""
    if tuple(i.kind for i in items[:4]) != ("storage", "int", "tuple", "tuple") or len(items) < 6:
        raise CorruptFileError("a tensor is described wrongly")
    sizes, strides = ([i.data if i.kind == "int" else -1 for i in v.data] for v in items[2:4])
    offset = items[1].data
    if len(sizes) != len(strides) or len(sizes) > 64 or any(not 0 <= v < 2**63 for v in (offset, *sizes, *strides)):
        raise CorruptFileError(f"a tensor of sizes {sizes} and strides {strides} at offset {offset}")
    last = offset + sum((s - 1) * t for s, t in zip(sizes, strides, strict=True))
    if 0 not in sizes and last >= items[0].data:
        raise CorruptFileError(f"a tensor of sizes {sizes} reaches element {last} of a storage of {items[0].data}")
    return Value("tensor")
