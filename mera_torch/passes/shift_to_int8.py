"""uint8 activations, as other PT2E quantizers make them, become int8: the same values under a zero point 128 lower."""

from __future__ import annotations

import torch
from torch import fx

from ..ops.common import DEQUANTIZE, QUANTIZE, args_of, call, is_call


def shift_to_int8(gm: fx.GraphModule) -> None:
    """Rewrites each quantize to uint8 that only dequantizes read, and these."""
    for node in list(gm.graph.nodes):
        if not is_call(node, QUANTIZE) or args_of(node)[5] is not torch.uint8:
            continue
        readers = list(node.users)
        if not readers or any(not is_call(u, DEQUANTIZE) or args_of(u)[1:3] != args_of(node)[1:3] for u in readers):
            continue
        source, scale, zero_point, low, high, _ = args_of(node)
        shifted = (scale, zero_point - 128, low - 128, high - 128, torch.int8)
        with gm.graph.inserting_before(node):
            new = call(gm, node, QUANTIZE, source, *shifted, val=node.meta["val"].to(torch.int8))
        node.replace_all_uses_with(new)
        for reader in readers:
            reader.args = (new, *shifted)
        gm.graph.erase_node(node)
