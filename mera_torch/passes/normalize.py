"""One spelling per operator: what the later passes see is convolution, linear, batch_norm, prelu, clamp, mean, amax,
avg_pool2d, max_pool2d, reshape, permute, slice, cat, constant_pad_nd, upsample_nearest2d, and pointwise operators."""

from __future__ import annotations

from torch import fx

from ..ops.common import Unfit, aten, is_call
from .spellings import RULES

MAX_ROUNDS = 4
"""A rule may give what another rule rewrites, at most so often in a row."""


def normalize(gm: fx.GraphModule) -> None:
    """Rewrites every operator that has several spellings into one."""
    for node in list(gm.graph.nodes):
        if is_call(node, aten._assert_tensor_metadata.default):
            gm.graph.erase_node(node)
    for _ in range(MAX_ROUNDS):
        if not _rewrite(gm):
            break


def _rewrite(gm: fx.GraphModule) -> bool:
    """One round of the rules; whether anything was rewritten."""
    changed = False
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node.target not in RULES or not node.users or node.meta.get("normal"):
            continue
        before = set(node.users)
        try:
            with gm.graph.inserting_before(node):
                new = RULES[node.target](gm, node)
        except Unfit:  # left as it is: it runs on the host, and explain() says why
            continue
        if new is not None and new is not node:
            new.meta["normal"] = new.target is node.target
            node.replace_all_uses_with(new)
            gm.graph.erase_node(node)
        changed = changed or new is not None or set(node.users) != before
    return changed
