"""Which nodes go to the DNA, in as few regions as their dependences allow, and which stay on the host.

A node's phase is how often the longest path to it has left the DNA for the host. All DNA nodes of one phase form one
region: no path can leave such a region and come back, for it would come back in a later phase. A network without host
operators in its middle is therefore one region; so are several networks that share nothing but inputs. Where one of
them has host operators in its middle, the others stay whole: all of such a network is in the first region.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx

from ..ops.movement import MOVEMENT
from ..ops.registry import QUANTIZED


@dataclass
class Region:
    """nodes in order; inputs: int8 nodes outside that it reads; outputs: its nodes that are read outside."""

    index: int
    nodes: list[fx.Node] = field(default_factory=list)
    inputs: list[fx.Node] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)


@dataclass
class Partition:
    """host[p]: the host nodes before regions[p], in order; host has one entry more than regions."""

    regions: list[Region]
    host: list[list[fx.Node]]


def runs_on_dna(node: fx.Node) -> bool:
    """Whether the DNA can run the node as it stands."""
    if node.op != "call_function":
        return False
    if node.target in QUANTIZED:
        return True
    val = node.meta.get("val")
    int8 = isinstance(val, torch.Tensor) and val.dtype is torch.int8
    return node.target in MOVEMENT and int8 and "q" in node.meta


def partition(gm: fx.GraphModule) -> Partition:
    """Divides the nodes (constants, placeholders and the output aside)."""
    on_dna = {node for node in gm.graph.nodes if runs_on_dna(node)}
    network = networks(gm)
    while True:
        phases = _phases(gm, on_dna)
        idle = _without_computation(on_dna, phases, network)
        if not idle:
            break
        on_dna -= idle
    used = sorted({phases[n] for n in on_dna})
    regions = {phase: Region(index) for index, phase in enumerate(used)}
    host: list[list[fx.Node]] = [[] for _ in range(len(used) + 1)]
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        if node in on_dna:
            _place(node, regions[phases[node]], on_dna, phases)
        else:
            host[sum(phase < phases[node] for phase in used)].append(node)
    return Partition(list(regions.values()), host)


def _phases(gm: fx.GraphModule, on_dna: set[fx.Node]) -> dict[fx.Node, int]:
    phases: dict[fx.Node, int] = {}
    for node in gm.graph.nodes:
        inside = node in on_dna
        phases[node] = max(
            (phases[i] + (i in on_dna and not inside) for i in node.all_input_nodes),
            default=0,
        )
    return phases


def networks(gm: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Each operator -> the first operator of its network; networks share nothing but inputs and constants."""
    first: dict[fx.Node, fx.Node] = {}
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        joined = list(dict.fromkeys(first[source] for source in node.all_input_nodes if source in first))
        into = joined[0] if joined else node
        for other in joined[1:]:
            members[into] += members.pop(other)
        members.setdefault(into, []).append(node)
        first.update((member, into) for member in (members[into] if len(joined) > 1 else [node]))
    return first


def _without_computation(
    on_dna: set[fx.Node], phases: dict[fx.Node, int], network: dict[fx.Node, fx.Node]
) -> set[fx.Node]:
    """The nodes of a network's phases in which nothing but movement would run on the DNA."""
    working = {(phases[n], network[n]) for n in on_dna if n.target not in MOVEMENT}
    return {n for n in on_dna if (phases[n], network[n]) not in working}


def _place(node: fx.Node, region: Region, on_dna: set[fx.Node], phases: dict[fx.Node, int]) -> None:
    def inside(other: fx.Node) -> bool:
        return other in on_dna and phases[other] == phases[node]

    region.nodes.append(node)
    for source in node.all_input_nodes:
        if source.op != "get_attr" and not inside(source) and source not in region.inputs:
            region.inputs.append(source)
    if any(not inside(user) for user in node.users):
        region.outputs.append(node)
