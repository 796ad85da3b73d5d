"""Zero padding in front of a convolution becomes the convolution's own."""

from __future__ import annotations

from torch import fx

from ..ops.common import args_of, is_call, kwargs_of, origins
from ..ops.conv import conv2d
from ..ops.movement import pad


def fuse_pad(gm: fx.GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if not is_call(node, pad) or any(not is_call(user, conv2d) for user in node.users):
            continue
        pads, value = list(args_of(node)[1]), args_of(node)[2]
        if any(pads[4:]) or value != node.meta["q"].zero_point:
            continue
        left, right, top, bottom = (pads + [0] * 4)[:4]
        for conv in list(node.users):
            own = kwargs_of(conv)["padding"]
            conv.kwargs = {
                **kwargs_of(conv),
                "padding": tuple(a + b for a, b in zip(own, (top, bottom, left, right), strict=True)),
            }
            conv.args = (args_of(node)[0], *args_of(conv)[1:])
            conv.meta["origins"] = (*origins(conv), *origins(node))
        gm.graph.erase_node(node)
