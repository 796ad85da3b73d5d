"""Where the nodes of a directed acyclic graph are drawn: in layers, from top to bottom.

Sugiyama's four steps (Sugiyama, Tagawa, Toda, "Methods for Visual Understanding of Hierarchical System Structures",
1981): layers by longest path, lanes for edges that pass layers, order within a layer by barycentres, coordinates. An
edge that several nodes read has one lane for all of them, so a value that lives long is one line however many read it.
The same graph is always drawn the same way.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_ORDER_SWEEPS = 8
_POSITION_SWEEPS = 12
_NODE_WEIGHT = 20.0  # chains of nodes are straight; the lanes, of weight 1, make room
Point = tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """points: the centre of each node. edges: (source, target, the points that it passes), in the order of the
    targets' inputs. width, height: of what encloses all nodes; its upper left corner is (0, 0)."""

    points: list[Point]
    edges: list[tuple[int, int, list[Point]]]
    width: float
    height: float


@dataclass
class _Cell:
    """A node, or a stretch of the lane of an edge, in one layer."""

    width: float
    weight: float = _NODE_WEIGHT
    above: list[int] = field(default_factory=list)
    below: list[int] = field(default_factory=list)


def draw(inputs: Sequence[Sequence[int]], *, width: float, height: float, lane: float, gap: Point) -> Drawing:
    """Places nodes of `width` x `height`, `gap` apart (across, down); an edge that passes a layer gets `lane`.

    inputs: for each node, in topological order, the indices of the nodes that it reads.
    Raises ValueError if a node reads itself or a later one.
    """
    for node, sources in enumerate(inputs):
        if any(not 0 <= source < node for source in sources):
            raise ValueError(f"node {node} reads {list(sources)}: nodes must stand after those that they read")
    ranks = _ranks(inputs)
    cells = [_Cell(width) for _ in inputs]
    layers: list[list[int]] = [[] for _ in range(max(ranks, default=-1) + 1)]
    for node, rank in enumerate(ranks):
        layers[rank].append(node)
    routes = _lanes(inputs, ranks, cells, layers, lane)
    _order(cells, layers)
    across = _positions(cells, layers, gap[0])
    pitch = height + gap[1]
    level = {cell: i * pitch + height / 2 for i, layer in enumerate(layers) for cell in layer}
    edges = [(s, t, [(across[cell], level[cell]) for cell in route]) for s, t, route in routes]
    left = min((across[c] - cells[c].width / 2 for c in range(len(cells))), default=0.0)
    right = max((across[c] + cells[c].width / 2 for c in range(len(cells))), default=0.0)
    return Drawing(
        [(across[node] - left, level[node]) for node in range(len(inputs))],
        [(s, t, [(x - left, y) for x, y in points]) for s, t, points in edges],
        right - left,
        max(len(layers) * pitch - gap[1], 0.0),
    )


def _ranks(inputs: Sequence[Sequence[int]]) -> list[int]:
    """The length of the longest path to each node; what reads nothing stands just above its first reader."""
    ranks: list[int] = []
    for sources in inputs:
        ranks.append(max((ranks[source] + 1 for source in sources), default=0))
    readers: dict[int, int] = {}
    for node, sources in enumerate(inputs):
        for source in sources:
            readers[source] = min(readers.get(source, ranks[node]), ranks[node])
    return [readers[n] - 1 if not inputs[n] and n in readers else rank for n, rank in enumerate(ranks)]


def _lanes(
    inputs: Sequence[Sequence[int]], ranks: list[int], cells: list[_Cell], layers: list[list[int]], lane: float
) -> list[tuple[int, int, list[int]]]:
    """Adds the cells of lanes; returns the edges as (source, target, cells that they pass, both ends included)."""
    chains: dict[int, list[int]] = {node: [node] for node in range(len(inputs))}
    routes = []
    for target, sources in enumerate(inputs):
        for source in dict.fromkeys(sources):
            chain = chains[source]
            while len(chain) < ranks[target] - ranks[source]:
                cells.append(_Cell(lane, weight=1.0))
                layers[ranks[source] + len(chain)].append(len(cells) - 1)
                _join(cells, chain[-1], len(cells) - 1)
                chain.append(len(cells) - 1)
            passed = chain[: ranks[target] - ranks[source]]
            _join(cells, passed[-1], target)
            routes.append((source, target, [*passed, target]))
    return routes


def _join(cells: list[_Cell], upper: int, lower: int) -> None:
    cells[upper].below.append(lower)
    cells[lower].above.append(upper)


# ---- order ----


def _order(cells: list[_Cell], layers: list[list[int]]) -> None:
    """Sorts each layer by the barycentres of its neighbours, downwards and upwards in turn; keeps the order with the
    fewest crossings."""
    best, fewest = [list(layer) for layer in layers], _crossings(cells, layers)
    place = _places(layers)
    for sweep in range(_ORDER_SWEEPS):
        downwards = sweep % 2 == 0
        for layer in layers[1:] if downwards else layers[-2::-1]:
            neighbours = {cell: cells[cell].above if downwards else cells[cell].below for cell in layer}
            keys = {
                cell: sum(place[n] for n in near) / len(near) if near else place[cell]
                for cell, near in neighbours.items()
            }
            layer.sort(key=keys.__getitem__)
            place.update(_places([layer]))
        if (crossings := _crossings(cells, layers)) < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    layers[:] = best


def _places(layers: Iterable[Sequence[int]]) -> dict[int, float]:
    """Each cell's place in its layer, from 0 to 1."""
    return {cell: (i + 0.5) / len(layer) for layer in layers for i, cell in enumerate(layer)}


def _crossings(cells: list[_Cell], layers: list[list[int]]) -> int:
    found = 0
    for upper, lower in zip(layers, layers[1:], strict=False):
        place = {cell: i for i, cell in enumerate(lower)}
        seen: list[int] = []
        for cell in upper:
            ends = sorted(place[n] for n in cells[cell].below)
            found += sum(len(seen) - bisect_left(seen, end + 1) for end in ends)
            for end in ends:
                insort(seen, end)
    return found


# ---- coordinates ----


def _positions(cells: list[_Cell], layers: list[list[int]], gap: float) -> dict[int, float]:
    """Each cell as near as the order and the gaps allow to the mean of its neighbours: weighted least squares, one
    layer after the other, downwards and upwards in turn."""
    across: dict[int, float] = {}
    for layer in layers:
        _place(cells, layer, dict.fromkeys(layer, 0.0), gap, across)
    for sweep in range(_POSITION_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = {}
            for cell in layer:
                near = cells[cell].above if sweep % 2 == 0 else cells[cell].below
                near = near or cells[cell].above or cells[cell].below
                weight = sum(cells[n].weight for n in near)
                wanted[cell] = sum(cells[n].weight * across[n] for n in near) / weight if near else across[cell]
            _place(cells, layer, wanted, gap, across)
    return across


def _place(
    cells: list[_Cell], layer: list[int], wanted: dict[int, float], gap: float, across: dict[int, float]
) -> None:
    """The positions in `layer` of least weighted squared distance from `wanted` that keep order and gaps: isotonic
    regression of what remains when the gaps are taken out (pool adjacent violators)."""
    offset, offsets = 0.0, []
    for i, cell in enumerate(layer):
        if i:
            offset += (cells[layer[i - 1]].width + cells[cell].width) / 2 + gap
        offsets.append(offset)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, cells
    for cell, taken in zip(layer, offsets, strict=True):
        mean, weight, count = wanted[cell] - taken, cells[cell].weight, 1
        while blocks and blocks[-1][0] > mean:
            m, w, n = blocks.pop()
            mean, weight, count = (m * w + mean * weight) / (w + weight), w + weight, n + count
        blocks.append((mean, weight, count))
    means = [mean for mean, _, count in blocks for _ in range(count)]
    for cell, mean, taken in zip(layer, means, offsets, strict=True):
        across[cell] = mean + taken
