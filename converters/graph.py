"""Builds the FX graph of an imported model, operator by operator.

A value is an `fx.Node` (it depends on an input of the model), a `torch.Tensor` (it depends on constants alone) or a
number. What depends on constants alone is computed at once: shape arithmetic, expanded weights and the like never
become nodes.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import fx
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from mera_torch.errors import InvalidModelError, MeraError, UnsupportedError

from .model import ImportedModel, TensorInfo

Value = Any
"""fx.Node | torch.Tensor | a number; operators with several results give tuples of these."""

LARGEST = 2**31
"""Bytes that one value may take: more is a malformed file rather than a network."""

COMPUTED = 2**33
"""Bytes that all values computed from constants may take together."""


class GraphBuilder:
    """The graph under construction. format: "onnx", ...; it names the source in messages and in node.meta."""

    def __init__(self, format: str) -> None:
        self.format = format
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self.inputs: list[TensorInfo] = []
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._named: dict[str, int] = {}
        self._held: dict[int, tuple[torch.Tensor, fx.Node]] = {}
        self._computed = 0
        self._place = ("", "")

    # ---- provenance ----

    @contextmanager
    def at(self, name: str, op: str) -> Iterator[None]:
        """Nodes made within belong to the file's operator `op` called `name`: later messages and reports say so."""
        before, self._place = self._place, (name, op)
        try:
            yield
        finally:
            self._place = before

    @property
    def where(self) -> str:
        """The file's operator being converted, for messages."""
        name, op = self._place
        return f"{self.format} operator {op} {name!r}" if op else f"{self.format} model"

    def invalid(self, why: str) -> InvalidModelError:
        """The error of a malformed operator, to be raised."""
        return InvalidModelError(f"{self.where}: {why}")

    def unsupported(self, why: str) -> UnsupportedError:
        """The error of a well-formed operator that has no conversion, to be raised."""
        return UnsupportedError(f"{self.where}: {why}")

    # ---- values ----

    def input(self, name: str, shape: Sequence[int], dtype: torch.dtype, layout: str = "") -> fx.Node:
        """An input of the model; layout: "NHWC", "NCHW" or "" if unknown. Inputs are called in this order."""
        sizes = tuple(shape)
        if any(not isinstance(size, int) or size < 0 for size in sizes):
            raise InvalidModelError(f"{self.format} input {name!r}: shape {list(sizes)} is not static")
        self._bounded(sizes, dtype)
        node = self.graph.placeholder(identifier(name))
        with self._mode:
            node.meta["val"] = torch.empty(sizes, dtype=dtype)
        self._label(node)
        self.inputs.append(TensorInfo(name, sizes, dtype, layout))
        return node

    def node(self, value: Value, name: str = "constant") -> fx.Node:
        """The value as a node: a tensor becomes a parameter or, of integers, a buffer of the module (one, however often
        it is read)."""
        if isinstance(value, fx.Node):
            return value
        tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
        known = self._held.get(id(tensor))
        if known is not None:
            return known[1]
        name = wanted = identifier(name)
        while hasattr(self.root, name):
            self._named[wanted] = self._named.get(wanted, 0) + 1
            name = f"{wanted}_{self._named[wanted]}"
        if tensor.is_floating_point():  # torchao folds batch norms into parameters alone
            self.root.register_parameter(name, torch.nn.Parameter(tensor.detach(), requires_grad=False))
        else:
            self.root.register_buffer(name, tensor.detach())
        node = self.graph.get_attr(name)
        node.meta["val"] = self._mode.from_tensor(tensor.detach(), static_shapes=True)
        self._label(node)
        self._held[id(tensor)] = (tensor, node)
        return node

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
        """target(*args, **kwargs): a node, or its value if all arguments are constants.

        Raises InvalidModelError if the operator does not take these shapes and dtypes, UnsupportedError if the shape
        of its result depends on data.
        """
        if any(isinstance(leaf, fx.Node) for leaf in pytree.tree_leaves((args, kwargs))):
            return self.emit(target, *args, **kwargs)
        self._evaluate(target, args, kwargs)  # first with fake tensors: it may not fit into memory
        try:
            with torch.no_grad():
                found = target(*args, **kwargs)
        except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError) as error:
            raise self.invalid(f"{target} does not take its constants: {first_line(error)}") from error
        self._computed += sum(leaf.nbytes for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor))
        if self._computed > COMPUTED:
            raise self.invalid(f"the model computes constants of more than {COMPUTED >> 30} GiB")
        return found

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """call() that always makes a node: what dequantizes a weight must stay in the graph."""
        args, kwargs = pytree.tree_map(lambda a: self.node(a) if isinstance(a, torch.Tensor) else a, (args, kwargs))
        val = self._evaluate(target, args, kwargs)
        node = self.graph.call_function(target, args, kwargs)
        node.meta["val"] = val
        self._label(node)
        return node

    def _evaluate(self, target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        fake = pytree.tree_map(self._fake, (args, kwargs))
        try:
            with self._mode, torch.no_grad(), _unlogged():
                val = target(*fake[0], **fake[1])
        except MeraError:
            raise
        except (DynamicOutputShapeException, GuardOnDataDependentSymNode) as error:
            raise self.unsupported("the shape of its result depends on data; the DNA needs fixed shapes") from error
        except Exception as error:  # torch's operators raise errors of many kinds
            raise self.invalid(f"{target} does not take its inputs: {first_line(error)}") from error
        for leaf in pytree.tree_leaves(val):
            if isinstance(leaf, torch.Tensor):
                if not all(isinstance(size, int) for size in leaf.shape):
                    raise self.unsupported("the shape of its result depends on data; the DNA needs fixed shapes")
                self._bounded(leaf.shape, leaf.dtype)
        return val

    def _fake(self, leaf: Any) -> Any:
        if isinstance(leaf, fx.Node):
            return leaf.meta["val"]
        return self._mode.from_tensor(leaf, static_shapes=True) if isinstance(leaf, torch.Tensor) else leaf

    def _bounded(self, sizes: Sequence[int], dtype: torch.dtype) -> None:
        if math.prod(sizes) * dtype.itemsize > LARGEST:
            raise self.invalid(f"a tensor of shape {list(sizes)} and {dtype} is larger than {LARGEST >> 30} GiB")

    def _label(self, node: fx.Node) -> None:
        name, op = self._place
        if op:
            node.meta["nn_module_stack"] = {name: (name, f"{self.format}.{op}")}

    # ---- the whole ----

    def finish(self, outputs: Sequence[tuple[str, Value, str]]) -> ImportedModel:
        """The module: (name, value, layout) of each output. It gives one tensor, or a tuple if there are several."""
        if not outputs:
            raise InvalidModelError(f"{self.format} model: it has no outputs")
        nodes = [self.node(value, name) for name, value, _ in outputs]
        infos = [
            TensorInfo(name, tuple(node.meta["val"].shape), node.meta["val"].dtype, layout)
            for (name, _, layout), node in zip(outputs, nodes, strict=True)
        ]
        self.graph.output(tuple(nodes))
        self._remove_dead_code()
        return ImportedModel.of(self.root, self.graph, self.format, self.inputs, infos)

    def _remove_dead_code(self) -> None:
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.op in ("call_function", "get_attr"):
                self.graph.erase_node(node)
        read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        held = [name for name, _ in (*self.root.named_buffers(), *self.root.named_parameters())]
        for name in [name for name in held if name not in read]:
            delattr(self.root, name)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Within, fake tensors do not log what they raise."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def shape(value: Value) -> tuple[int, ...]:
    """The static shape of a value."""
    return tuple(value.meta["val"].shape) if isinstance(value, fx.Node) else tuple(value.shape)


def dtype(value: Value) -> torch.dtype:
    """The dtype of a value."""
    found: torch.dtype = value.meta["val"].dtype if isinstance(value, fx.Node) else value.dtype
    return found


def is_constant(value: Value) -> bool:
    """Whether the value does not depend on the model's inputs."""
    return not isinstance(value, fx.Node)


def identifier(name: str) -> str:
    """A Python identifier that looks like the file's name of a tensor or operator."""
    found = re.sub(r"\W", "_", name, flags=re.ASCII)[:80]
    return f"_{found}" if not found or found[0].isdigit() else found


def first_line(error: BaseException) -> str:
    """What an error of PyTorch's says, without its advice."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
