"""Readers of foreign model formats; each gives an FX graph of aten calls."""
