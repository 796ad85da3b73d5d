"""Where two rungs part: the first node of a DNA graph on which oracle, interpreter and simulator differ."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import graph_text, native, oracle
from .dump import graphs_of
from .errors import InvalidModelError
from .platform import Platform, find

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Difference:
    """Two rungs disagree on the output of ``node``; every tensor before it, as far as compared, agrees.

    ``position`` (NHWC) is the first differing element, where ``wanted`` is the reference rung's value and ``got`` the
    other one's; ``count`` of ``elements`` differ. ``instructions`` are lines of the program, those of the node.
    """

    node: oracle.Node
    reference: str
    rung: str
    position: tuple[int, ...]
    wanted: int
    got: int
    count: int
    elements: int
    instructions: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.node.op} {self.node.name!r}: {self.rung} differs from {self.reference} in {self.count} of "
            f"{self.elements} elements, first at {list(self.position)} (NHWC): {self.got} instead of {self.wanted}"
        ]
        return "\n  ".join([*lines, *self.instructions])


def build(graph: oracle.Graph, context: native.Context | None = None) -> native.Graph:
    """The same graph in C, finished; tensors and nodes get the same indices. Raises InvalidModelError."""
    built = native.Graph(graph.name, context)
    for tensor in graph.tensors:
        if tensor.data is None:
            index = built.tensor(tensor.name, tensor.shape, tensor.dtype)
        else:
            index = built.constant(tensor.name, tensor.data)
        if tensor.scale:
            built.quantize(index, np.array(tensor.scale, np.float32), np.array(tensor.zero_point, np.int32))
    for index in graph.inputs:
        built.input(index)
    for node in graph.nodes:
        built.node(
            node.op,
            list(node.inputs),
            node.output,
            dict(node.attrs),
            name=node.name,
            layer=node.layer,
            source=node.source,
        )
    for index in graph.outputs:
        built.output(index)
    built.finish()
    return built


def prefix(graph: oracle.Graph, tensor: int) -> tuple[oracle.Graph, list[int]]:
    """The part of the graph that computes one tensor, its only output; and which of the graph's inputs it reads."""
    needed = {tensor}
    nodes = []
    for node in reversed(graph.nodes):
        if node.output in needed:
            nodes.append(node)
            needed.update(node.inputs)
    index = {old: new for new, old in enumerate(sorted(needed))}
    nodes = [replace(n, inputs=tuple(index[i] for i in n.inputs), output=index[n.output]) for n in reversed(nodes)]
    read = [position for position, i in enumerate(graph.inputs) if i in needed]
    inputs = [index[graph.inputs[position]] for position in read]
    return oracle.Graph(graph.name, [graph.tensors[old] for old in index], nodes, inputs, [index[tensor]]), read


def _compare(node: oracle.Node, names: tuple[str, str], wanted: oracle.Array, got: oracle.Array) -> Difference | None:
    different = wanted != got.reshape(wanted.shape)
    if not different.any():
        return None
    at = tuple(int(i) for i in np.argwhere(different)[0])
    got = got.reshape(wanted.shape)
    return Difference(node, *names, at, int(wanted[at]), int(got[at]), int(different.sum()), wanted.size)


def _instructions(simulator: native.Simulator, name: str) -> tuple[str, ...]:
    """The first instructions of a node, as assembly; of the last node that has any, if it was fused into that one."""
    shown = 8
    program = simulator.program
    code = program.text().partition("\ncode\n")[2].splitlines()
    events = simulator.events()
    named = [index for index, node in enumerate(program.nodes) if node[0] == name]
    own = events["instruction"][np.isin(events["node"], named or [events["node"].max()])]
    lines = [f"instruction {index}: {code[index]}" for index in sorted(own.tolist()) if index < len(code)]
    return (*lines[:shown], f"... and {len(lines) - shown} more") if len(lines) > shown else tuple(lines)


def bisect(
    graph: native.Graph,
    inputs: Sequence[oracle.Int8],
    platform: Platform | None = None,
    options: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> Difference | None:
    """The first node at which interpreter and oracle, or (with a platform) simulator and interpreter, differ, or None.

    inputs: int8 NHWC, in order of the graph's inputs. For the simulator every node is compiled as the last of a graph
    that ends at it, from the first node on: one compilation a node. progress(done, total) is called after each.
    """
    model = graph_text.read(graph.text(), {name: info.attrs for name, info in native.OPS.items()})
    truth = oracle.run_all(model, inputs)
    interpreted = native.Interpreter(graph).run_all(list(inputs))
    for node in model.nodes:
        found = _compare(node, ("oracle", "interpreter"), truth[node.output], interpreted[node.output])
        if found:
            return found
    if platform is None:
        return None
    for done, node in enumerate(model.nodes):
        part, read = prefix(model, node.output)
        program = build(part).compile(platform, dict(options or {}))
        simulator = native.Simulator(program)
        got = simulator.run([inputs[position] for position in read])[0]
        found = _compare(node, ("interpreter", "simulator"), truth[node.output], got)
        if found:
            return replace(found, instructions=_instructions(simulator, node.name))
        if progress:
            progress(done + 1, len(model.nodes))
    return None


def bisect_file(
    path: str | os.PathLike[str],
    platform: str | os.PathLike[str] | Platform | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Difference | None]]:
    """(name, first difference or None) of each region of a deployment, .pt2 file or DNA graph, for random int8 inputs.

    platform: default: the deployment's own, else SAKURA_1. seed: of the inputs. Raises InvalidModelError for a program,
    which holds no graph to compare with.
    """
    rng = np.random.default_rng(seed)
    for name, graph, own, options in graphs_of(Path(path)):
        if isinstance(graph, native.Program):
            raise InvalidModelError(f"{os.fspath(path)!r} holds a compiled program; bisect needs its graph")
        inputs = [rng.integers(-128, 128, info.shape).astype(np.int8) for info in graph.inputs]
        yield name, bisect(graph, inputs, own if platform is None else find(platform), options, progress)
