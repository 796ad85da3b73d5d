"""The passes, each FX graph -> FX graph, one a file. The verifier runs after each of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from .fold_constants import fold_constants
from .fold_quantized import fold_quantized
from .fuse_activation import fuse_activation
from .fuse_pad import fuse_pad
from .fuse_tables import fuse_tables
from .hoist_quantize import hoist_quantize
from .infer_int8 import infer_int8
from .normalize import normalize
from .remove_dead_code import remove_dead_code
from .shift_to_int8 import shift_to_int8
from .sink_dequantize import sink_dequantize
from .verify import verify

Pass = Callable[[fx.GraphModule], None]

PIPELINE: list[Pass] = [
    normalize,
    fold_constants,
    remove_dead_code,
    shift_to_int8,
    infer_int8,
    hoist_quantize,
    sink_dequantize,
    fold_quantized,
    fuse_tables,
    fuse_activation,
    fuse_pad,
    remove_dead_code,
]


def run(gm: fx.GraphModule, pipeline: list[Pass] | None = None) -> fx.GraphModule:
    """Runs the passes over gm, in place, verifying after each. Raises InternalError naming pass and node."""
    for one in PIPELINE if pipeline is None else pipeline:
        one(gm)
        gm.graph.lint()
        verify(gm, one.__name__)
    gm.recompile()
    return gm
