"""The operators: one file a family. Importing this package fills the tables of ops/registry.py."""

from . import conv, elementwise, extrema, movement, pool, prelu, resize, softmax, table
from .registry import FOLDS, LOWERINGS, QUANTIZED

__all__ = [
    "FOLDS",
    "LOWERINGS",
    "QUANTIZED",
    "conv",
    "elementwise",
    "extrema",
    "movement",
    "pool",
    "prelu",
    "resize",
    "softmax",
    "table",
]
