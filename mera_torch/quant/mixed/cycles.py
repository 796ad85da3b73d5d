"""What a network of mixed precision costs on a platform, in cycles of its clock: the int8 part simulated, the rest
estimated by a model that is the same for the same network everywhere.

- INT8 regions: compiled, and run by the Simulator; its cycles are a fact of the program.
- BF16 on a platform that has it: the lower-bound model at half the int8 rate (HALF_RATE), for each connected piece of
  BF16 operators: max(MACs / (peak / 2), bytes / DRAM bytes a cycle), where the bytes are 2 for each element of a weight
  and of a value that enters or leaves the piece, 4 for a bias's. No program reaches its bound: so it is multiplied by
  what the all-int8 network took in the Simulator over that network's own lower bound.
- On the host: each value that crosses the border moves through DRAM once, at its bandwidth and after its latency
  (`mera_torch.backend.costs.round_trip_cycles`), and each operator takes its work / `host_gops`; work is its
  multiply-accumulates, or for what multiplies nothing the elements that it reads and writes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from mera_torch import platform as platforms
from mera_torch.backend.capture import capture
from mera_torch.backend.costs import macs_of
from mera_torch.backend.region import DnaRegion
from mera_torch.compile import build, settings_of
from mera_torch.errors import ConfigError
from mera_torch.lower_bound import lower_bound_cycles
from mera_torch.ops import bf16
from mera_torch.ops.common import DEQUANTIZE_OPS, QUANTIZE_OPS

from ..graphs.run import Inputs

HALF_RATE = 2
BF16_BYTES, BIAS_BYTES = 2, 4
HOST_GOPS = 8.0
"""1e9 operations a second: what one core with 8-lane fused multiply-add reaches in convolutions without tuning."""


@dataclass(frozen=True)
class Cycles:
    """Of one inference, in cycles of the platform's clock.

    Attributes:
        dna: Simulated: the int8 regions, one after the other.
        bf16: Estimated: the operators in BF16 on the DNA.
        border: Estimated: what moves between DNA and host because an operator runs on the host.
        host: Estimated: the operators on the host.
    """

    dna: int
    bf16: int = 0
    border: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        return self.dna + self.bf16 + self.border + self.host

    @property
    def estimated(self) -> int:
        """What of the total is not simulated."""
        return self.total - self.dna

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total, "estimated": self.estimated}


class CycleModel:
    """Args:
        example_inputs: Of the shapes to compile for.
        platform: A name, a Platform or a TOML file.
        host_gops: The host's rate, in 1e9 operations a second.

    Raises:
        ConfigError: an unknown platform, or a rate that is no positive number.
    """

    def __init__(self, example_inputs: Inputs, platform: Any = "SAKURA_II", host_gops: float = HOST_GOPS) -> None:
        if isinstance(host_gops, bool) or not isinstance(host_gops, (int, float)) or not 0 < host_gops < math.inf:
            raise ConfigError(f"host_gops must be a number above 0 (1e9 operations a second), got {host_gops!r}")
        self.platform: platforms.Platform = platforms.find(platform)
        self._settings = settings_of(self.platform, "Simulator", None)
        self._example, self._host_gops = example_inputs, float(host_gops)
        self._simulated: dict[str, int] = {}
        self.slowdown = 1.0
        """What the network in int8 takes over its lower bound; set by `reference`."""

    def reference(self, module: GraphModule) -> Cycles:
        """`of` the network with as much as possible in int8, which tells how near programs come to their bound."""
        built = self._build(module)
        bound = sum(lower_bound_cycles(region.lower_bound, self.platform) for region in built.regions)
        taken = sum(map(self._simulate, built.regions))
        self.slowdown = max(1.0, taken / bound) if bound else 1.0
        return self.of(module)

    def of(self, module: GraphModule) -> Cycles:
        """The cost of a quantized network; operators in BF16 are in the form of
        :mod:`mera_torch.quant.transforms.bf16`.

        Raises DoesNotFitError, UnsupportedError as compilation does.
        """
        built = self._build(module)
        nodes = {node.name: node for node in built.captured.gm.graph.nodes}
        here = [(row, nodes[row.node]) for row in built.explanation.rows if row.where == "host" and row.node in nodes]
        in_bf16 = {node for _, node in here if self.platform.bf16 and _in_bf16(node)}
        host = [(row, node) for row, node in here if node not in in_bf16 and not _serves(node, in_bf16)]
        return Cycles(
            sum(map(self._simulate, built.regions)),
            self._bf16(in_bf16),
            sum(row.cycles for row, _ in host),
            self._host_cycles(node for _, node in host),
        )

    def estimate(self, module: GraphModule, names: Iterable[str], dtype: str) -> int:
        """About what it costs that the operators of these node names leave int8, each for itself: for the order in
        which choices are tried, not for what a candidate is said to cost. module: any variant of the network."""
        nodes = [node for node in module.graph.nodes if node.name in set(names) and node.op == "call_function"]
        if dtype == "bf16" and self.platform.bf16:
            return max(1, sum(self._bf16({node}) for node in nodes))
        crossing = sum(_elements(source) for node in nodes for source in _activations(node)) + sum(
            map(_elements, nodes)
        )
        moved = crossing / self.platform.dram_bytes_per_cycle + 2 * self.platform.dram_latency_cycles
        return max(1, math.ceil(moved) + self._host_cycles(nodes))

    def _build(self, module: GraphModule) -> Any:
        return build(capture(module, self._example), self._settings)

    def _simulate(self, region: DnaRegion) -> int:
        key = hashlib.sha256(region.graph_bytes).hexdigest()
        if key not in self._simulated:
            region.compile()
            region.simulator.run([np.zeros(size, np.int8) for size in region.program.input_bytes])
            self._simulated[key] = region.simulator.stats()["cycles"]
        return self._simulated[key]

    def _bf16(self, nodes: set[Node]) -> int:
        return sum(math.ceil(self._piece(piece) * self.slowdown) for piece in _pieces(nodes))

    def _piece(self, nodes: set[Node]) -> float:
        """The lower bound of connected operators in BF16."""
        macs = sum(map(macs_of, nodes))
        entering = {x for node in nodes for x in map(_rounded, _activations(node)) if x not in nodes}
        leaving = {node for node in nodes if any(user not in nodes for user in _readers(node))}
        traffic = BF16_BYTES * (sum(map(_elements, entering)) + sum(map(_elements, leaving)))
        for node in nodes:
            for constant in _constants(node):
                traffic += _elements(constant) * (BIAS_BYTES if _rank(constant) == 1 else BF16_BYTES)
        return max(HALF_RATE * macs / self.platform.macs_per_cycle, traffic / self.platform.dram_bytes_per_cycle)

    def _host_cycles(self, nodes: Iterable[Node]) -> int:
        work = sum(macs_of(node) or _moved(node) for node in nodes)
        return math.ceil(work / (self._host_gops * 1e9) * self.platform.clock_mhz * 1e6)


# ---- the graph ----


def _serves(node: Node, in_bf16: set[Node]) -> bool:
    """Whether it is a cast, a quantize or a dequantize for operators that the DNA computes in BF16, or a clamp fused
    into one."""
    sources, users = set(node.all_input_nodes), set(node.users)
    if node.target in bf16.CLAMPS and sources & in_bf16:
        return True
    if bf16.is_bf16_cast(node):
        around = {n for source in sources for n in (source, *source.all_input_nodes)}
        around |= {n for user in users for n in (user, *user.users)}
        return bool((around | _beyond(around)) & in_bf16)
    if node.target in QUANTIZE_OPS | DEQUANTIZE_OPS:
        return any(bf16.is_bf16_cast(n) and _serves(n, in_bf16) for n in sources | users)
    return False


def _beyond(nodes: set[Node]) -> set[Node]:
    """What stands before the clamps among `nodes`."""
    return {source for node in nodes if node.target in bf16.CLAMPS for source in node.all_input_nodes}


def _in_bf16(node: Node) -> bool:
    """Whether it computes in BF16; a clamp that is fused into another operator is a part of that one."""
    fused = node.target in bf16.CLAMPS and not bf16.is_bf16_cast(node.all_input_nodes[0])
    return bf16.computes_in_bf16(node) and not fused


def _pieces(nodes: set[Node]) -> list[set[Node]]:
    """Connected parts, in the order of the graph."""
    piece_of: dict[Node, set[Node]] = {}
    for node in sorted(nodes):
        piece = {node}
        for source in map(_rounded, _activations(node)):
            piece |= piece_of.get(source, set())
        piece_of.update(dict.fromkeys(piece, piece))
    return list({id(piece): piece for piece in piece_of.values()}.values())


def _rounded(node: Node) -> Node:
    """What a pair of casts, or the clamp fused into an operator, reads."""
    while bf16.is_bf16_cast(node) or (node.target in bf16.CLAMPS and bf16.computes_in_bf16(node.all_input_nodes[0])):
        node = node.all_input_nodes[0]
    return node


def _readers(node: Node) -> set[Node]:
    """What reads `node`, through casts and the clamp fused into it."""
    found: set[Node] = set()
    for user in node.users:
        passes = bf16.is_bf16_cast(user) or (user.target in bf16.CLAMPS and bf16.computes_in_bf16(node))
        found |= _readers(user) if passes else {user}
    return found


def _activations(node: Node) -> list[Node]:
    return [source for source in node.all_input_nodes if not _is_constant(source)]


def _constants(node: Node) -> list[Node]:
    return [source for source in node.all_input_nodes if _is_constant(source)]


def _is_constant(node: Node) -> bool:
    return node.op == "get_attr" or (bool(node.all_input_nodes) and all(map(_is_constant, node.all_input_nodes)))


def _value(node: Node) -> torch.Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def _elements(node: Node) -> int:
    value = _value(node)
    return 0 if value is None else int(value.numel())


def _rank(node: Node) -> int:
    value = _value(node)
    return 0 if value is None else value.dim()


def _moved(node: Node) -> int:
    """The elements that it reads and writes."""
    return _elements(node) + sum(map(_elements, _activations(node)))
