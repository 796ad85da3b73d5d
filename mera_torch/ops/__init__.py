"""The operators: one file a family. Importing this package fills the tables of ops/registry.py."""

from . import conv, elementwise, movement, pool, table
from .registry import FOLDS, LOWERINGS, QUANTIZED

__all__ = ["FOLDS", "LOWERINGS", "QUANTIZED", "conv", "elementwise", "movement", "pool", "table"]
