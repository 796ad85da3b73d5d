"""Quantization measured against peers: data, networks, methods, rows and their tables."""
