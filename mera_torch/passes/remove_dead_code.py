"""Removes what nothing reads."""

from __future__ import annotations

from torch import fx


def remove_dead_code(gm: fx.GraphModule) -> None:
    gm.graph.eliminate_dead_code()
