"""Several DNA graphs as one, and the networks that one graph holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mera_torch.oracle import Graph


def fuse(graphs: Sequence[Graph], share_input: bool = False) -> Graph:
    """All graphs side by side, names told apart; share_input: inputs of the first are everybody's."""
    fused = Graph(name="fused")
    for number, graph in enumerate(graphs):
        shared = share_input and number > 0
        index = {old: fused.inputs[at] for at, old in enumerate(graph.inputs)} if shared else {}
        for old, tensor in enumerate(graph.tensors):
            if old not in index:
                index[old] = len(fused.tensors)
                fused.tensors.append(replace(tensor, name=f"{number}.{tensor.name}"))
        if not shared:
            fused.inputs += [index[i] for i in graph.inputs]
        for node in graph.nodes:
            inputs = tuple(index[i] for i in node.inputs)
            fused.nodes.append(replace(node, name=f"{number}.{node.name}", inputs=inputs, output=index[node.output]))
        fused.outputs += [index[i] for i in graph.outputs]
    return fused


def networks(graph: Graph) -> int:
    """How many parts the graph has that share nothing but inputs and constants."""
    produced = {node.output for node in graph.nodes}
    parts: list[set[int]] = []
    for node in graph.nodes:
        mine = {node.output, *produced.intersection(node.inputs)}
        joined = [part for part in parts if part & mine]
        parts = [part for part in parts if not part & mine] + [mine.union(*joined)]
    return len(parts)
