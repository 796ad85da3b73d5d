"""TorchScript modules as FX graphs: float ones, and those that PyTorch's own eager and FX quantization made."""

from .load import from_torchscript

__all__ = ["from_torchscript"]
