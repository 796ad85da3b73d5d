"""What the operator families share: quantization parameters, constraints, provenance, FX editing."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, ParamSpec

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import fx

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed

QUANTIZE = quantized.quantize_per_tensor.default
DEQUANTIZE = quantized.dequantize_per_tensor.default
DEQUANTIZE_CHANNEL = quantized.dequantize_per_channel.default
QUANTIZE_OPS = frozenset({QUANTIZE, quantized.quantize_per_channel.default, quantized.quantize_per_tensor.tensor})
DEQUANTIZE_OPS = frozenset({DEQUANTIZE, DEQUANTIZE_CHANNEL, quantized.dequantize_per_tensor.tensor})

Clamp = tuple[int, int]
P = ParamSpec("P")


class QParams(NamedTuple):
    """Per-tensor affine quantization: real = scale * (q - zero_point), q int8."""

    scale: float
    zero_point: int

    def quantize(self, real: float) -> int:
        """The int8 value of one real number: torch's formula, round half to even, saturating."""
        x = torch.tensor(real, dtype=torch.float32)
        return int(QUANTIZE(x, self.scale, self.zero_point, -128, 127, torch.int8))


class Unfit(Exception):
    """A node cannot go to the DNA; the message is the constraint that it breaks."""


class Rejected(Exception):
    """Lowering found that a node of a region cannot go to the DNA after all."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(f"{node.name}: {reason}")
        self.node, self.reason = node, reason


CONSTRAINTS: dict[str, str] = {}
"""Name of each constraint -> its sentence, with the values that fill it in braces; docs/ops.md lists them."""


def constraint(check: Callable[P, bool]) -> Callable[P, None]:
    """A function returns whether a node keeps a constraint; its docstring is the message if not.

    The function must be called with keyword arguments; the docstring's braces name them.
    """
    message = " ".join((check.__doc__ or "").split())
    CONSTRAINTS[check.__name__] = message

    @wraps(check)
    def require(*args: P.args, **kwargs: P.kwargs) -> None:
        if not check(*args, **kwargs):
            raise Unfit(message.format(**kwargs))

    return require


@constraint
def input_quantized(*, index: int, got: str) -> bool:
    """input {index} must be quantized (the result of a dequantize), got {got}"""
    return not got


@constraint
def per_tensor_int8(*, index: int, dtype: object) -> bool:
    """input {index} must be quantized to int8 per tensor, got {dtype}"""
    return dtype is torch.int8


@constraint
def one_quantization(*, index: int, got: QParams, known: QParams) -> bool:
    """input {index} must be read with one scale and zero point, it is read as {got} here and as {known} elsewhere"""
    return got == known


@constraint
def single_use(*, users: int) -> bool:
    """its float result must be used once, by a quantize; it has {users} users"""
    return users == 1


class Origin(NamedTuple):
    """One operator of the model as captured, for reports."""

    name: str  # of the FX node
    op: str  # "aten.conv2d.default"
    module: str  # path in the model: "layer1.0.conv1"
    source: str  # "model.py:12"


def op_name(target: object) -> str:
    """ "aten.add.Tensor" for an operator overload, else the function's name."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return getattr(target, "__name__", str(target))


def origin(node: fx.Node) -> Origin:
    """Where a node stands in the user's model."""
    stack = node.meta.get("nn_module_stack") or {}
    modules = [path for path, *_ in stack.values()] if isinstance(stack, dict) else []
    module = modules[-1] if modules else ""
    for prefix in ("L['self'].", "L__self___", "L['self']"):
        module = module.removeprefix(prefix)
    return Origin(node.name, op_name(node.target), module, _source_line(node.meta.get("stack_trace")))


def _source_line(trace: str | None) -> str:
    """ "file.py:12" of the innermost frame that is neither PyTorch's nor generated."""
    best = ""
    for line in (trace or "").splitlines():
        line = line.strip()
        if not line.startswith('File "'):
            continue
        path, _, rest = line[len('File "') :].partition('", line ')
        if path.startswith("<") or "/torch/" in path or "/torchao/" in path:
            continue
        best = f"{path}:{rest.partition(',')[0]}"
    return best


def origins(node: fx.Node) -> tuple[Origin, ...]:
    """The captured operators that a node stands for, the main one first."""
    return tuple(node.meta.get("origins", ())) or (origin(node),)


def excluded(gm: fx.GraphModule, node: fx.Node) -> str:
    """Why an earlier attempt at lowering found that the node must stay on the host; "" if it did not."""
    reasons: dict[str, str] = gm.meta.get("mera_excluded", {})
    return next((reasons[o.name] for o in origins(node) if o.name in reasons), "")


# ---- FX ----


def value(node: fx.Node) -> torch.Tensor:
    """The node's (fake) value: shape and dtype."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        raise Unfit(f"its result must be one tensor, got {type(val).__name__}")
    return val


def shape(node: fx.Node) -> tuple[int, ...]:
    """The node's static shape."""
    sizes = tuple(value(node).shape)
    if not all(isinstance(size, int) for size in sizes):
        raise Unfit(f"its shape must be static, got {list(sizes)}")
    return sizes


def is_call(node: object, *targets: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """node.args, for the type checker: FX's union of argument types says little."""
    return node.args


def kwargs_of(node: fx.Node) -> dict[str, Any]:
    """node.kwargs, likewise."""
    return node.kwargs


def target_of(node: fx.Node) -> Any:
    """node.target of a call_function node, likewise."""
    return node.target


def attribute(module: torch.nn.Module, path: str) -> Any:
    return operator.attrgetter(path)(module)


def constant(gm: fx.GraphModule, node: object) -> torch.Tensor | None:
    """The tensor that a get_attr node holds, or None for any other node."""
    if isinstance(node, fx.Node) and node.op == "get_attr":
        held = attribute(gm, str(node.target))
        if isinstance(held, torch.Tensor):
            return held.detach()
    return None


def add_constant(gm: fx.GraphModule, tensor: torch.Tensor, hint: str = "constant") -> fx.Node:
    """A get_attr node for a new buffer, inserted at the graph's current insertion point."""
    index = 0
    while hasattr(gm, f"_mera_{hint}_{index}"):
        index += 1
    name = f"_mera_{hint}_{index}"
    gm.register_buffer(name, tensor, persistent=False)
    node = gm.graph.get_attr(name)
    node.meta["val"] = tensor
    return node


def call(
    gm: fx.GraphModule, like: fx.Node, target: Callable[..., Any], *args: Any, val: Any = None, **kwargs: Any
) -> fx.Node:
    """A call_function node at the insertion point with `like`'s provenance; `val`: its fake value (default: like's)."""
    node = gm.graph.call_function(target, args, kwargs)
    node.meta = {k: v for k, v in like.meta.items() if k in ("nn_module_stack", "stack_trace", "origins")}
    node.meta.setdefault("origins", origins(like))
    node.meta["val"] = like.meta.get("val") if val is None else val
    return node


def normalized_dim(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def pair(x: int | Sequence[int]) -> tuple[int, int]:
    """PyTorch's shorthand: 3, [3] and [3, 3] mean the same."""
    if isinstance(x, int):
        return x, x
    return (int(x[0]), int(x[0])) if len(x) == 1 else (int(x[0]), int(x[1]))


def arguments(node: fx.Node) -> dict[str, Any]:
    """All of an operator's arguments by name, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        raise Unfit(f"{op_name(node.target)} is no PyTorch operator")
    values: dict[str, Any] = {}
    for index, arg in enumerate(node.target._schema.arguments):
        if index < len(args_of(node)):
            values[arg.name] = args_of(node)[index]
        elif arg.name in kwargs_of(node):
            values[arg.name] = kwargs_of(node)[arg.name]
        else:
            values[arg.name] = arg.default_value
    return values


@dataclass(frozen=True)
class Operand:
    """An int8 value as an operator reads it."""

    node: fx.Node
    q: QParams


def dequantized(node: object, index: int = 0) -> Operand:
    """The int8 tensor behind a dequantize node. Raises Unfit if `node` is not the result of one."""
    if not isinstance(node, fx.Node):
        raise Unfit(f"input {index} must be a tensor, got {node!r}")
    got = "" if is_call(node, *DEQUANTIZE_OPS) else (op_name(node.target) if node.op == "call_function" else node.op)
    input_quantized(index=index, got=got)
    if node.target is not DEQUANTIZE:
        raise Unfit(f"input {index} must be quantized per tensor with constant scale, got {op_name(node.target)}")
    source, scale, zero_point, _, _, dtype = args_of(node)[:6]
    per_tensor_int8(index=index, dtype=dtype)
    if not isinstance(source, fx.Node):
        raise Unfit(f"input {index} must be a tensor")
    q = QParams(float(scale), int(zero_point))
    one_quantization(index=index, got=q, known=source.meta.setdefault("q", q))
    return Operand(source, q)


def users_besides(node: fx.Node, allowed: Iterable[fx.Node]) -> list[fx.Node]:
    known = set(allowed)
    return [user for user in node.users if user not in known]
