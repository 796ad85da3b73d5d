"""Reads the text form of a DNA graph, which ``csrc/graph_text.c`` describes, into the oracle's graph, without C."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from .errors import InvalidModelError
from .oracle import Array, Graph, Node, Tensor

_TOKEN = re.compile(
    r'(?P<space>\s+|#[^\n]*)|(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<word>[A-Za-z_]\w*)|(?P<number>[-+]?[\d.][\w.+-]*)|.',
    re.S,
)
_ESCAPE = re.compile(rb'\\(?:x([0-9a-fA-F]{2})|(["\\]))')
_MASK = (1 << 64) - 1
T = TypeVar("T")


def read(text: str, defaults: Mapping[str, Mapping[str, int]]) -> Graph:
    """The graph that a text describes. defaults: the attributes of every operator with their default values.

    Raises InvalidModelError, naming the line, if the text is no graph; the graph itself is not checked.
    """
    return _Parser(text).graph(defaults)


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "space":
            yield match.group(), line
        line += match.group().count("\n")
    yield "", line


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.token, self.line = next(self.tokens)

    def fail(self, wanted: str) -> InvalidModelError:
        return InvalidModelError(f"graph text, line {self.line}: {wanted} is expected, got {self.token[:40]!r}")

    def take(self) -> str:
        token = self.token
        self.token, self.line = next(self.tokens, ("", self.line))
        return token

    def accept(self, token: str) -> bool:
        return self.token == token and bool(self.take())

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise self.fail(repr(token))

    def word(self) -> str:
        if not (self.token[:1].isalpha() or self.token[:1] == "_"):
            raise self.fail("a word")
        return self.take()

    def integer(self) -> int:
        try:
            value = int(self.token)
        except ValueError:
            raise self.fail("a whole number") from None
        self.take()
        return value

    def number(self) -> float:
        try:
            value = float(np.float32(self.token))
        except ValueError:
            raise self.fail("a number") from None
        self.take()
        return value

    def string(self) -> str:
        if not self.token.startswith('"'):
            raise self.fail('a "string"')
        raw = self.take()[1:-1].encode()
        return _ESCAPE.sub(lambda m: bytes([int(m[1], 16)]) if m[1] else m[2], raw).decode("utf-8", "replace")

    def index(self) -> int:
        self.expect("%")
        return self.integer()

    # ---- statements ----

    def graph(self, defaults: Mapping[str, Mapping[str, int]]) -> Graph:
        self.expect("graph")
        graph = Graph(self.string())
        while self.token:
            if self.accept("tensor"):
                graph.tensors.append(self.tensor(len(graph.tensors)))
            elif self.accept("input"):
                graph.inputs.append(self.index())
            elif self.accept("output"):
                graph.outputs.append(self.index())
            else:
                graph.nodes.append(self.node(defaults))
        for index in {*graph.inputs, *graph.outputs, *(i for n in graph.nodes for i in (*n.inputs, n.output))}:
            if index >= len(graph.tensors):
                raise InvalidModelError(f"graph text: there is no tensor %{index}")
        return graph

    def tensor(self, count: int) -> Tensor:
        if self.index() != count:
            raise self.fail(f"tensor %{count} before this")
        name, dtype = self.string(), self.word()
        if dtype not in ("int8", "int32"):
            raise self.fail("int8 or int32 before this")
        self.expect("[")
        shape = [self.integer()]
        for _ in range(3):
            self.expect(",")
            shape.append(self.integer())
        self.expect("]")
        dims = (shape[0], shape[1], shape[2], shape[3])
        scale: list[float] = []
        zero: list[int] = []
        if self.accept("scale"):
            scale = self.list_or_one(self.number)
            zero = self.list_or_one(self.integer) if self.accept("zero") else [0]
            zero = zero * len(scale) if len(zero) == 1 else zero
        data = self.data(dims, dtype) if self.accept("=") else None
        return Tensor(name, dims, dtype, tuple(scale), tuple(zero), data)

    def list_or_one(self, item: Callable[[], T]) -> list[T]:
        if not self.accept("["):
            return [item()]
        found = [item()]
        while self.accept(","):
            found.append(item())
        self.expect("]")
        return found

    def data(self, shape: tuple[int, int, int, int], dtype: str) -> Array:
        kind, count = self.word(), int(np.prod(shape, dtype=np.int64))
        little = np.dtype(dtype).newbyteorder("<")
        if kind in ("hex", "base64"):
            text = self.string()
            try:
                data = bytes.fromhex(text) if kind == "hex" else base64.b64decode(text, validate=True)
            except (ValueError, binascii.Error):
                raise self.fail(f"{kind} before this") from None
            if len(data) != count * little.itemsize:
                raise self.fail(f"{count * little.itemsize} bytes before this, not {len(data)},")
            return np.frombuffer(data, little).reshape(shape).astype(dtype)
        self.expect("(")
        values = [self.integer()]
        while self.accept(","):
            values.append(self.integer())
        self.expect(")")
        if kind == "random":
            values = list(_random(values[0], count, dtype))
        elif kind == "splat":
            values *= count
        elif kind != "list" or len(values) != count:
            raise self.fail(f"hex, base64, splat, random or a list of {count} before this")
        return np.array(values, dtype).reshape(shape)

    def node(self, defaults: Mapping[str, Mapping[str, int]]) -> Node:
        output, name = self.index(), self.string()
        self.expect("=")
        op = self.word()
        if op not in defaults:
            raise self.fail(f"a known operator instead of {op!r} before this")
        self.expect("(")
        inputs = [self.index()]
        while self.accept(","):
            inputs.append(self.index())
        self.expect(")")
        attrs = dict(defaults[op])
        if self.accept("{"):
            while True:
                key = self.word()
                if key not in attrs:
                    raise self.fail(f"an attribute of {op} instead of {key!r} before this")
                self.expect("=")
                attrs[key] = self.integer()
                if not self.accept(","):
                    break
            self.expect("}")
        layer = self.string() if self.accept("layer") else ""
        source = self.string() if self.accept("source") else ""
        return Node(op, name, tuple(inputs), output, attrs, layer, source)


def _random(state: int, count: int, dtype: str) -> Iterator[int]:
    """random(seed): splitmix64, reduced to -127..127 (int8) or to 16 bits (int32)."""
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        x = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
        yield x % 255 - 127 if dtype == "int8" else x % 65536 - 32768
