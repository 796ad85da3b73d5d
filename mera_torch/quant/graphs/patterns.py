"""Finds in a graph the operators that the DNA can compute in int8, each with the activation fused into it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from mera_torch.errors import InvalidModelError

from . import operators as ops

KEPT_IN_FLOAT = "mera_float"
"""Key in ``node.meta`` of the reason why an operator that int8 could compute stays in float."""
Apart = Callable[[Node, Node], bool]
"""Whether an operator must not become a part of another one (of another class, if both are the same)."""


def never(node: Node, other: Node) -> bool:
    """Without a configuration, all may."""
    return False


@dataclass(frozen=True)
class QuantizedOp:
    """An operator computed in int8.

    Attributes:
        nodes: The operator, then what is fused into it: batch norm (QAT), clamp. The last one's output is quantized.
        inputs: The activations it reads, without repetition.
        weight: Weight of a convolution or linear, [Co, ...]; transposed [Ci, Co / groups, ...]; constant.
        bias: Its bias, [Co]; constant.
        axis: The dimension of the weight that is the output channels'.
        shares: All inputs and the output have one quantization.
        moves: It moves values and computes nothing: worth int8 only beside an operator that does.
        inner: Worth int8 only between operators that compute in int8; before float ones its result is better in float.
        fixed: (scale, zero point) of the output, when its range is known.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    weight: Node | None = None
    bias: Node | None = None
    axis: int = 0
    shares: bool = False
    moves: bool = False
    inner: bool = False
    fixed: tuple[float, int] | None = None

    @property
    def output(self) -> Node:
        return self.nodes[-1]


def find_quantized_ops(graph: Graph, excluded: Callable[[Node], bool] = lambda node: False) -> list[QuantizedOp]:
    """The operators of `graph` to quantize, in graph order; none of which `excluded` says so, or that a transform has
    marked with KEPT_IN_FLOAT."""
    constants = find_constants(graph)

    def left_out(node: Node) -> bool:
        value = value_of(node)
        return KEPT_IN_FLOAT in node.meta or excluded(node) or value is not None and not value.numel()

    found: list[QuantizedOp] = []
    fused: set[Node] = set()
    for node in graph.nodes:
        if node.op != "call_function" or node in fused or node in constants or not is_float32(node) or left_out(node):
            continue
        op = _match(node, constants)
        if op is None or not all(is_float32(x) for x in op.inputs):
            continue
        op = replace(op, nodes=(node, *_fused_after(node, left_out)))
        fused.update(op.nodes)
        found.append(op)
    return found


def find_constants(graph: Graph) -> set[Node]:
    """The nodes whose value depends on no input of the graph: parameters, buffers, and what is computed from them
    alone."""
    constants: set[Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (
            node.op == "call_function" and node.all_input_nodes and constants.issuperset(node.all_input_nodes)
        ):
            constants.add(node)
    return constants


def value_of(node: Node) -> torch.Tensor | None:
    """The (fake) tensor that `node` computes, or None if it is no tensor or unknown."""
    value = node.meta.get("val")
    if value is None and node.op == "get_attr" and node.graph.owning_module is not None:
        value = attribute(node.graph.owning_module, str(node.target))
    return value if isinstance(value, torch.Tensor) else None


def attribute(module: torch.nn.Module, path: str) -> object:
    """The parameter, buffer or submodule of `module` at the dotted `path`."""
    owner: object = module
    for name in path.split("."):
        owner = getattr(owner, name)
    return owner


def constant_of(module: GraphModule, node: Any) -> torch.Tensor:
    """The tensor that a get_attr `node` of `module` reads, without gradient."""
    value = attribute(module, str(node.target))
    if not isinstance(value, torch.Tensor):
        raise InvalidModelError(f"{node.target!r} of the graph must be a tensor, got {type(value).__name__}")
    return value.detach()


def evaluate(module: GraphModule, node: Node) -> torch.Tensor:
    """The tensor that a constant `node` (see :func:`find_constants`) of `module` computes, without gradient."""
    if node.op == "get_attr":
        return constant_of(module, node)
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda source: evaluate(module, source))
    with torch.no_grad():
        result: torch.Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return result


def is_float32(node: Node) -> bool:
    value = value_of(node)
    return value is not None and value.dtype == torch.float32


def module_path(node: Node) -> str:
    """Path in the original model of the module that `node` came from, such as ``"layer1.0.conv1"``; "" at the top."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def provenance(node: Node) -> dict[str, Any]:
    """Where `node` comes from, as the meta of a node that is made from it says it."""
    return {key: node.meta[key] for key in ("nn_module_stack", "stack_trace", "source_fn_stack") if key in node.meta}


def new_call(model: GraphModule, source: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A call at the insertion point, with its value and the provenance of `source`."""
    node = model.graph.call_function(target, args, kwargs)
    value = target(*(value_of(arg) if isinstance(arg, Node) else arg for arg in args), **kwargs)
    node.meta = {**provenance(source), "val": value}
    return node


def pair(value: Any) -> tuple[Any, Any]:
    """(vertical, horizontal) of a stride, padding or the like, which may be one number, a list of one or two, or
    empty: 0."""
    if isinstance(value, (list, tuple)):
        return (value[0], value[-1]) if value else (0, 0)
    return (value, value)


def for_each_dim(value: Any, dims: int) -> list[int]:
    """A stride, padding or dilation, which may be one number or a list of one or `dims`, as `dims` numbers."""
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return values * (dims // len(values))


def describe(node: Node) -> str:
    """`node` as a message names it: ``'conv2d' (layer1.0.conv1)``."""
    path = module_path(node)
    return f"{node.name!r} ({path})" if path else repr(node.name)


def argument(node: Node, index: int, name: str, default: object = None) -> object:
    """Argument of `node` by position or, failing that, by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _match(node: Node, constants: set[Node]) -> QuantizedOp | None:
    if node.target not in ops.INT8:
        return None
    if node.target in ops.CONV | ops.CONV_1D | ops.CONV_TRANSPOSED | ops.LINEAR:
        return _weighted(node, constants)
    if node.target in ops.PRELU:
        return QuantizedOp((node,), _inputs(node)[:1]) if node.args[1] in constants else None
    if node.target in ops.EXTREMA:
        same = len({value.shape for x in _inputs(node) if (value := value_of(x)) is not None}) == 1
        return QuantizedOp((node,), _inputs(node), shares=True) if same and len(_inputs(node)) == 2 else None
    if node.target in ops.PICK:
        picks = node.all_input_nodes[1:]
        known = len(picks) == 1 and picks[0] in constants and value_of(picks[0]) is not None
        return QuantizedOp((node,), _inputs(node)[:1], shares=True, moves=True) if known else None
    if node.target in ops.SCALAR_BINARY:
        return _binary(node)
    if node.target is ops.aten.batch_norm.default:
        return _batch_norm(node)
    if node.target in ops.UNARY:
        fixed = ops.FIXED_QPARAMS.get(node.target)
        return QuantizedOp((node,), _inputs(node), fixed=fixed) if len(node.all_input_nodes) == 1 else None
    if node.target in ops.CAT:
        return QuantizedOp((node,), _inputs(node), shares=True, moves=True)
    if node.target in ops.MOVE:
        return QuantizedOp((node,), _inputs(node)[:1], shares=True, moves=True)
    if node.target in ops.SOFTMAX:
        return QuantizedOp((node,), _inputs(node), inner=True, fixed=ops.FIXED_QPARAMS[node.target])
    if node.target in ops.BILINEAR:
        return QuantizedOp((node,), _inputs(node)[:1], shares=True)
    if node.target in ops.PAD:
        constant = node.target is ops.aten.constant_pad_nd.default
        mode = "constant" if constant else argument(node, 2, "mode", "constant")
        fill = argument(node, 2, "value", 0) if constant else argument(node, 3, "value")
        finite = isinstance(fill, (int, float, type(None))) and math.isfinite(fill or 0)
        known = finite if mode == "constant" else mode in ("reflect", "replicate", "circular")
        return QuantizedOp((node,), _inputs(node), shares=True, moves=True) if known else None
    return _pool(node)


def _weighted(node: Node, constants: set[Node]) -> QuantizedOp | None:
    x, weight, bias = (argument(node, i, name) for i, name in enumerate(("input", "weight", "bias")))
    if not isinstance(x, Node) or not isinstance(weight, Node) or weight not in constants or x in constants:
        return None
    x_value, weight_value = value_of(x), value_of(weight)
    if x_value is None or weight_value is None:
        return None
    if node.target not in ops.LINEAR and (x_value.dim() not in (3, 4) or weight_value.dim() != x_value.dim()):
        return None
    axis = 0
    if node.target in ops.CONV_TRANSPOSED or (node.target is ops.aten.convolution.default and node.args[6]):
        position = 8 if node.target is ops.aten.convolution.default else 6
        groups = argument(node, position, "groups", 1)
        axis = 0 if groups == weight_value.shape[0] else 1
    bias_node = bias if isinstance(bias, Node) and bias in constants else None
    if isinstance(bias, Node) and bias_node is None:
        return None
    result = value_of(node)
    channels = result.shape[-1 if node.target in ops.LINEAR else 1] if result is not None else 0
    if weight_value.shape[axis] != channels:  # several channels have one scale: the bias stays float
        bias_node = None
    return QuantizedOp((node,), (x,), weight, bias_node, axis)


def _batch_norm(node: Node) -> QuantizedOp | None:
    """One that no convolution takes in: `convert` makes it a depthwise convolution."""
    x = node.args[0]
    value = value_of(x) if isinstance(x, Node) else None
    return QuantizedOp((node,), (x,)) if isinstance(x, Node) and value is not None and value.dim() == 4 else None


def _binary(node: Node) -> QuantizedOp | None:
    a, b = node.args[:2]
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") is not None or not isinstance(a, Node):
        return None
    if isinstance(b, (int, float)):
        return QuantizedOp((node,), (a,))
    if node.target not in ops.BINARY or not isinstance(b, Node):
        return None
    a_value, b_value = value_of(a), value_of(b)
    if a_value is None or b_value is None or not _one_way_broadcast(a_value.shape, b_value.shape):
        return None
    return QuantizedOp((node,), _inputs(node))


def _pool(node: Node) -> QuantizedOp | None:
    x = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    value, result = (value_of(x) if x is not None else None), value_of(node)
    if x is None or value is None or result is None:
        return None
    if node.target in ops.MEAN:
        return QuantizedOp((node,), (x,)) if isinstance(argument(node, 1, "dim"), (list, tuple)) else None
    if node.target in ops.MAX_POOL_1D_3D:
        return QuantizedOp((node,), (x,), shares=True)
    if node.target in ops.AVG_POOL_1D and value.dim() == 3:
        return QuantizedOp((node,), (x,), shares=result.shape[2] != 1)
    if value.dim() != 4:
        return None
    averages = result.shape[2:] == (1, 1)
    if node.target in ops.MAX_POOL:
        return QuantizedOp((node,), (x,), shares=True)
    if node.target in ops.ADAPTIVE_AVG_POOL:
        return QuantizedOp((node,), (x,), shares=not averages)
    if node.target in ops.AVG_POOL:
        if argument(node, 6, "divisor_override") is not None:
            return None
        whole = (
            averages
            and tuple(pair(node.args[1])) == tuple(value.shape[2:])
            and not any(pair(argument(node, 3, "padding", 0)))
        )
        return QuantizedOp((node,), (x,), shares=not whole)
    return None


def _fused_after(node: Node, excluded: Callable[[Node], bool]) -> Iterator[Node]:
    """What is computed within `node`'s operator: batch norm (QAT) and then a clamp, each the only user of the one
    before."""
    last = node
    bn = _only_user(node)
    if node.target in ops.CONV | ops.CONV_1D and bn is not None and bn.target is ops.aten.batch_norm.default:
        yield (last := bn)
    if node.target in ops.TAKES_CLAMP and (clamp := _only_user(last)) is not None and clamp.target in ops.CLAMP:
        if len(clamp.all_input_nodes) == 1 and not excluded(clamp):
            yield clamp


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _inputs(node: Node) -> tuple[Node, ...]:
    return tuple(dict.fromkeys(node.all_input_nodes))


def _one_way_broadcast(a: torch.Size, b: torch.Size) -> bool:
    """At most 4 dimensions, and one of the shapes is the result's, as the DNA's add and mul need."""
    if max(len(a), len(b)) > 4:
        return False
    joined = tuple(torch.broadcast_shapes(a, b))  # type: ignore[no-untyped-call]
    return joined in (tuple(a), tuple(b))
