"""The quantized network on what really runs: InterpreterHw, the Simulator or a device, built in memory."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from mera_torch.backend.capture import capture
from mera_torch.backend.region import COMPILED_TARGETS
from mera_torch.backend.runtime import last_uses, on, run_steps
from mera_torch.compile import Built, build, settings_of
from mera_torch.errors import UnsupportedError
from mera_torch.native import Progress
from mera_torch.platform import Platform
from mera_torch.targets import Target

INTERPRETER = "InterpreterHw"


class OnTarget:
    """Runs a quantized network on a target of the DNA.

    target: "InterpreterHw", "Simulator" or "IP". progress: of the compilation. Raises ConfigError for an unknown target
    or platform, UnsupportedError if nothing of the network runs on the DNA, and what compiling raises.
    """

    def __init__(
        self, module: GraphModule, inputs: Sequence[Any], target: str,
        platform: str | os.PathLike[str] | Platform = "SAKURA_1", progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.target = str(Target(target).check_available())
        settings = settings_of(platform, self.target, None)
        self.platform: Platform = settings.platform
        self._built: Built = build(capture(module, tuple(inputs)), settings)
        if not self._built.regions:
            raise UnsupportedError(self._built.explanation.why_nothing_runs())
        if self.target in COMPILED_TARGETS:
            for region in self._built.regions:
                region.compile(progress)
        self._dead = last_uses(self._built.graph, self._built.regions)

    @property
    def on_host(self) -> int:
        """How many operators run on the host, in float."""
        return self._built.explanation.on_host

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """The flat outputs."""
        flat = pytree.tree_leaves(tuple(inputs))
        with torch.no_grad():
            return run_steps(self._built.graph, self._built.regions, on(self.target), flat, self._dead)


class EveryValue:
    """InterpreterHw's int8 values of the named nodes of a network, each made an output."""

    def __init__(
        self, module: GraphModule, inputs: Sequence[Any], nodes: Sequence[str],
        platform: str | os.PathLike[str] | Platform = "SAKURA_1",
    ) -> None:  # fmt: skip
        self._nodes = list(nodes)
        self._runner = OnTarget(_with_outputs(module, self._nodes), inputs, INTERPRETER, platform)

    def __call__(self, inputs: Sequence[Any]) -> Mapping[str, torch.Tensor]:
        return dict(zip(self._nodes, self._runner(inputs), strict=True))


def _with_outputs(module: GraphModule, names: Sequence[str]) -> GraphModule:
    """A copy of the network with the nodes of these names as its outputs."""
    graph = copy.deepcopy(module.graph)
    by_name = {node.name: node for node in graph.nodes}
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (tuple(by_name[name] for name in names),)
    codegen: Any = module.graph._codegen
    placeholders = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    held = getattr(codegen, "pytree_info", None)
    in_spec = held.in_spec if held is not None else pytree.tree_structure(((None,) * len(placeholders), {}))
    orig_args = held.orig_args if held is not None else placeholders
    out_spec = pytree.tree_structure((None,) * len(names))
    graph.set_codegen(fx.graph._PyTreeCodeGen(fx.graph._PyTreeInfo(orig_args, in_spec, out_spec)))
    graph.eliminate_dead_code()
    return GraphModule(module, graph)
