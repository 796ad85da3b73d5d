"""mera_torch: an open, PyTorch-native compiler and simulator for the Dynamic Neural Accelerator.

The names below are loaded when first used, so that the parts without torch work where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mera_torch.errors import (
    CalibrationError,
    ConfigError,
    CorruptFileError,
    DoesNotFitError,
    InternalError,
    InvalidModelError,
    MeraError,
    OutOfMemoryError,
    UnsupportedError,
)
from mera_torch.platform import Platform

if TYPE_CHECKING:
    from mera_torch.backend.dynamo import mera_backend
    from mera_torch.backend.explain import Explanation, explain
    from mera_torch.backend.runtime import Runner
    from mera_torch.compile import export
    from mera_torch.converters import (
        ImportedModel,
        from_keras,
        from_onnx,
        from_pt2,
        from_tflite,
        from_torchscript,
        load_model,
    )
    from mera_torch.project import Deployment, load
    from mera_torch.quant import MeraQuantizer, quantize

_LAZY = {
    "Deployment": "mera_torch.project",
    "Explanation": "mera_torch.backend.explain",
    "ImportedModel": "mera_torch.converters",
    "MeraQuantizer": "mera_torch.quant",
    "Runner": "mera_torch.backend.runtime",
    "explain": "mera_torch.backend.explain",
    "export": "mera_torch.compile",
    "from_keras": "mera_torch.converters",
    "from_onnx": "mera_torch.converters",
    "from_pt2": "mera_torch.converters",
    "from_tflite": "mera_torch.converters",
    "from_torchscript": "mera_torch.converters",
    "load": "mera_torch.project",
    "load_model": "mera_torch.converters",
    "mera_backend": "mera_torch.backend.dynamo",
    "quantize": "mera_torch.quant",
}

__all__ = [
    "CalibrationError",
    "ConfigError",
    "CorruptFileError",
    "Deployment",
    "DoesNotFitError",
    "Explanation",
    "ImportedModel",
    "InternalError",
    "InvalidModelError",
    "MeraError",
    "MeraQuantizer",
    "OutOfMemoryError",
    "Platform",
    "Runner",
    "UnsupportedError",
    "explain",
    "export",
    "from_keras",
    "from_onnx",
    "from_pt2",
    "from_tflite",
    "from_torchscript",
    "load",
    "load_model",
    "mera_backend",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mera_torch' has no attribute {name!r}")
    module = _LAZY[name]
    if name == "load" and find_spec("torch") is None:
        module = "mera_torch.lite"
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
