"""The verifier: what must hold of the FX graph after every pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..errors import InternalError
from ..ops.common import DEQUANTIZE, QParams, args_of, is_call, kwargs_of
from ..ops.registry import QUANTIZED


def verify(gm: fx.GraphModule, after: str) -> None:
    """Raises InternalError naming the pass and the node if the graph is malformed."""
    seen: set[fx.Node] = set()
    for node in gm.graph.nodes:
        problem = _problem(gm, node, seen)
        if problem:
            raise InternalError(f"pass {after}: node {node.name} ({node.target}): {problem}")
        seen.add(node)


def _problem(gm: fx.GraphModule, node: fx.Node, seen: set[fx.Node]) -> str:
    for source in node.all_input_nodes:
        if source not in seen:
            return f"it reads {source.name}, which is computed later"
    if node.op == "get_attr":
        return "" if _held(gm, str(node.target)) else "the module has no such attribute"
    if node.op not in ("placeholder", "call_function", "output"):
        return f"{node.op} nodes must have been inlined"
    if node.op == "call_function" and "val" not in node.meta:
        return "its shape and dtype are unknown (no meta['val'])"
    if node.target in QUANTIZED:
        return _quantized_problem(node)
    if is_call(node, DEQUANTIZE) and isinstance(args_of(node)[0], fx.Node):
        q = args_of(node)[0].meta.get("q")
        if q is not None and tuple(q) != (args_of(node)[1], args_of(node)[2]):
            return f"it reads {args_of(node)[0].name} as {tuple(args_of(node)[1:3])}, which is {tuple(q)}"
    return ""


def _quantized_problem(node: fx.Node) -> str:
    val = node.meta["val"]
    if not isinstance(val, torch.Tensor) or val.dtype is not torch.int8:
        return f"a quantized operator gives int8, got {getattr(val, 'dtype', type(val).__name__)}"
    if not isinstance(node.meta.get("q"), QParams):
        return "its quantization is unknown (no meta['q'])"
    stated: Any = kwargs_of(node).get("y_q")
    if stated is not None and tuple(stated) != tuple(node.meta["q"]):
        return f"it says {tuple(stated)}, but its quantization is {tuple(node.meta['q'])}"
    for name, source in (("x_q", 0), ("a_q", 0), ("b_q", 1)):
        if name in kwargs_of(node):
            x: Any = args_of(node)[source]
            held = x.meta.get("q")
            if held is not None and tuple(held) != tuple(kwargs_of(node)[name]):
                return f"it reads {x.name} as {tuple(kwargs_of(node)[name])}, which is {tuple(held)}"
    if "clamp" in kwargs_of(node):
        low, high = kwargs_of(node)["clamp"]
        if not -128 <= low <= high <= 127:
            return f"its clamp [{low}, {high}] is empty or not int8"
    return ""


def _held(gm: fx.GraphModule, path: str) -> bool:
    target: Any = gm
    for part in path.split("."):
        if not hasattr(target, part):
            return False
        target = getattr(target, part)
    return True
