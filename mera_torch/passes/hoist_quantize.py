"""Moves quantize nodes up past operators that compute nothing, towards the operator that computes: q(f(x)) = f(q(x))
for reshape, permute, slice, cat, max pooling, amax and nearest resizing. Other PT2E quantizers place them behind."""

from __future__ import annotations

from torch import fx

from ..ops.common import DEQUANTIZE, DEQUANTIZE_OPS, QUANTIZE, args_of, aten, call, is_call
from ..ops.movement import MOVED
from ..ops.resize import NEAREST

HOISTED = MOVED.union(NEAREST) - {aten.constant_pad_nd.default}


def hoist_quantize(gm: fx.GraphModule) -> None:
    """Puts a quantize and a dequantize in front of the operator; sink_dequantize leaves the quantize alone there."""
    waiting = [node for node in gm.graph.nodes if is_call(node, QUANTIZE)]
    while waiting:
        quantize = waiting.pop()
        node = args_of(quantize)[0]
        if not is_call(node, *HOISTED) or len(node.users) != 1:
            continue
        first = args_of(node)[0]
        for source in list(first) if isinstance(first, list | tuple) else [first]:
            computed = source.op == "call_function" and source.target not in DEQUANTIZE_OPS
            if not (computed or source.op == "placeholder") or len(source.users) != 1:
                continue
            val = source.meta["val"]
            with gm.graph.inserting_after(source):
                above = call(gm, quantize, QUANTIZE, source, *args_of(quantize)[1:], val=val.to(args_of(quantize)[5]))
            with gm.graph.inserting_after(above):
                back = call(gm, quantize, DEQUANTIZE, above, *args_of(quantize)[1:], val=val)
            node.replace_input_with(source, back)
            waiting.append(above)
