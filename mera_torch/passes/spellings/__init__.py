"""How PyTorch's many spellings of one operator become one: a rule each, by family. Used by passes/normalize.py."""

from . import compute, gather, pooling, shapes
from .rule import RULES

__all__ = ["RULES", "compute", "gather", "pooling", "shapes"]
