"""The least cycles that any program of a network can take on a platform, from the FX graph alone.

lower_bound_cycles = max(MACs / peak MACs a cycle, compulsory DRAM bytes / DRAM bytes a cycle); compulsory are the
inputs, the outputs, and every weight and bias once. The DNA compiler has no part in it. Several networks in one region
have one bound, of their MACs and bytes together; what they share, an input or a weight, counts once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .platform import Platform

if TYPE_CHECKING:
    from torch import fx

MULTIPLYING = ("conv1d", "conv2d", "convolution", "linear", "addmm", "mm", "matmul")


def work(nodes: Iterable[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> dict[str, int]:
    """MACs and compulsory DRAM bytes of a region of quantized FX nodes: {"macs": ..., "bytes": ...}.

    Activations and weights have 1 byte an element, biases 4 bytes a channel. Scalings that run as convolutions (batch
    norm, averages) count as no MACs, for the network as written has none there.
    """
    from .ops.common import origins, shape  # here, since lower_bound_cycles() must do without torch
    from .ops.conv import conv2d, linear

    macs = 0
    traffic = sum(math.prod(shape(node)) for node in (*inputs, *outputs))
    weights: set[Any] = set()
    for node in nodes:
        if node.target not in (conv2d, linear):
            continue
        weight: Any = node.args[1]
        sizes = tuple(weight.meta["val"].shape)
        if any(o.op.split(".")[1:2] and o.op.split(".")[1] in MULTIPLYING for o in origins(node)):
            positions = math.prod(shape(node)) // sizes[0]
            macs += positions * math.prod(sizes)
            traffic += 0 if weight in weights else math.prod(sizes) + 4 * sizes[0]
            weights.add(weight)
    return {"macs": macs, "bytes": traffic}


def lower_bound_cycles(work: dict[str, int], platform: Platform) -> int:
    """For the result of work(): cycles of the platform's clock, rounded up."""
    return math.ceil(max(work["macs"] / platform.macs_per_cycle, work["bytes"] / platform.dram_bytes_per_cycle))
