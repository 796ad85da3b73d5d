"""Zero padding in front of a convolution becomes the convolution's own."""

from __future__ import annotations

from torch import fx

from ..ops.common import is_call, origins
from ..ops.conv import conv2d
from ..ops.movement import pad


def fuse_pad(gm: fx.GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if not is_call(node, pad) or any(not is_call(user, conv2d) for user in node.users):
            continue
        pads, value = list(node.args[1]), node.args[2]  # type: ignore[arg-type]
        if any(pads[4:]) or value != node.meta["q"].zero_point:
            continue
        left, right, top, bottom = (pads + [0] * 4)[:4]
        for conv in list(node.users):
            own = conv.kwargs["padding"]
            conv.kwargs = {
                **conv.kwargs,
                "padding": tuple(a + b for a, b in zip(own, (top, bottom, left, right), strict=True)),  # type: ignore[arg-type]
            }
            conv.args = (node.args[0], *conv.args[1:])
            conv.meta["origins"] = (*origins(conv), *origins(node))
        gm.graph.erase_node(node)
