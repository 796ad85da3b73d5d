"""Shared by the tests of the PyTorch side: quantize, build and run small modules."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn

import mera_torch
from mera_torch import native, passes
from mera_torch.backend.capture import capture
from mera_torch.backend.partition import partition
from mera_torch.backend.region import Port
from mera_torch.backend.runtime import last_uses, on, run_steps
from mera_torch.backend.to_dna import Border, Lowering
from mera_torch.compile import Built, build, settings_of

SETTINGS = settings_of("DNAF132S0001", "InterpreterHw", None)


def quantized(module: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    """module as a converted PT2E graph, calibrated with the inputs themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mera_torch.quantize(module.eval(), inputs, [inputs], progress=False)


def built(module: nn.Module, *inputs: Tensor) -> Built:
    """module captured, divided and lowered."""
    return build(capture(module, inputs), SETTINGS)


def run(result: Built, *inputs: Tensor) -> list[Any]:
    """The flat outputs, which InterpreterHw and Simulator must agree on."""
    dead = last_uses(result.graph, result.regions)
    with torch.no_grad():
        found, simulated = (
            run_steps(result.graph, result.regions, on(target), inputs, dead)
            for target in ("InterpreterHw", "Simulator")
        )
    for a, b in zip(found, simulated, strict=True):
        assert a is b or torch.equal(a, b), "InterpreterHw and Simulator differ"
    return found


def steps_apart(module: nn.Module, *inputs: Tensor) -> tuple[float, Built]:
    """How many steps of the output's scale the DNA and the eager q/dq module differ at most, and the build."""
    converted = quantized(module, *inputs)
    result = built(converted, *inputs)
    with torch.no_grad():
        wanted = converted(*inputs)
    difference = (run(result, *inputs)[0] - wanted).abs().max().item()
    scale = max(port.scale for region in result.regions for port in region.outputs)
    return difference / scale, result


def steps_apart_by_node(converted: fx.GraphModule, *inputs: Tensor) -> dict[str, int]:
    """For each node of the one region: the steps between the interpreter and the node's reference in PyTorch, for the
    same inputs."""
    gm = passes.run(capture(converted, inputs).gm)
    (region,) = partition(gm).regions
    low = Lowering("region", gm)
    assert low.run(region.inputs, region.nodes, region.outputs) == []
    given = dict(zip([n for n in gm.graph.nodes if n.op == "placeholder"], inputs, strict=True))
    stored = []
    for border in low.inputs:
        q = border.node
        stored.append(port_of(border).store(q.target(given[q.args[0]], *q.args[1:]).numpy()))
    tensors = native.Interpreter(low.graph).run_all(stored)

    def value(node: fx.Node) -> Tensor:
        if node.op == "get_attr":
            return getattr(gm, str(node.target))
        held = low.values[node]
        array = port_of(Border(node, held.form, held.q, held.tensor)).fetch(tensors[held.tensor])
        return torch.from_numpy(array.copy())

    worst = {}
    with torch.no_grad():
        for node in region.nodes:
            wanted = node.target(*fx.map_arg(node.args, value), **node.kwargs)
            worst[node.name] = int((wanted.int() - value(node).int()).abs().max())
    return worst


def port_of(border: Border) -> Port:
    """The border in int8."""
    layout = border.form.layout
    return Port("x", layout.shape, layout.sizes, layout.dims, border.form.shape, *border.q, False)
