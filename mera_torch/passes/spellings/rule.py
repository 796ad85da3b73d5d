"""The table of rules, which the modules beside this one fill."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from ...ops.common import args_of, is_call

Rule = Callable[[fx.GraphModule, fx.Node], fx.Node | None]
"""Gives what takes the node's place, inserted before it; None leaves the node (or the rule has replaced its users)."""

RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return register


def take_first(node: fx.Node, replacement: Any) -> None:
    """A node with several results of which only the first is used gives way to `replacement`."""
    if any(not is_call(user, operator.getitem) or args_of(user)[1] != 0 for user in node.users):
        return
    for user in list(node.users):
        user.replace_all_uses_with(replacement)
        user.graph.erase_node(user)
