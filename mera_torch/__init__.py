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
    DeviceAbsentError,
    DeviceBusyError,
    DeviceError,
    DeviceFaultError,
    DoesNotFitError,
    InternalError,
    InvalidModelError,
    LockedError,
    MeraError,
    OutOfMemoryError,
    StateError,
    StorageError,
    UnsupportedError,
)
from mera_torch.platform import Platform
from mera_torch.targets import DeviceTarget, Layout, Target

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
    from mera_torch.deployer import Deployer, TVMDeployer
    from mera_torch.energy import PowerMetrics
    from mera_torch.fuse import fuse_models
    from mera_torch.input_desc import InputDescription, InputDescriptionContainer
    from mera_torch.loader import MeraModel, ModelLoader
    from mera_torch.project import Deployment, load
    from mera_torch.quant import MeraQuantizer, ModelQuantizer, QuantConfig, QuantizedModel, Rule, quantize
    from mera_torch.runner import (
        MeraDeployment,
        MeraModelRunner,
        MeraTvmDeployment,
        MeraTvmModelRunner,
        MeraTvmPrjDeployment,
        load_mera_deployment,
    )
    from mera_torch.versions import (
        __version__,
        get_mera_dna_version,
        get_mera_tvm_version,
        get_mera_version,
        get_versions,
    )

_LAZY = {
    "Deployer": "mera_torch.deployer",
    "Deployment": "mera_torch.project",
    "Explanation": "mera_torch.backend.explain",
    "ImportedModel": "mera_torch.converters",
    "InputDescription": "mera_torch.input_desc",
    "InputDescriptionContainer": "mera_torch.input_desc",
    "MeraDeployment": "mera_torch.runner",
    "MeraModel": "mera_torch.loader",
    "MeraModelRunner": "mera_torch.runner",
    "MeraQuantizer": "mera_torch.quant",
    "MeraTvmDeployment": "mera_torch.runner",
    "MeraTvmModelRunner": "mera_torch.runner",
    "MeraTvmPrjDeployment": "mera_torch.runner",
    "ModelLoader": "mera_torch.loader",
    "ModelQuantizer": "mera_torch.quant",
    "PowerMetrics": "mera_torch.energy",
    "QuantConfig": "mera_torch.quant",
    "QuantizedModel": "mera_torch.quant",
    "Rule": "mera_torch.quant",
    "Runner": "mera_torch.backend.runtime",
    "TVMDeployer": "mera_torch.deployer",
    "__version__": "mera_torch.versions",
    "explain": "mera_torch.backend.explain",
    "export": "mera_torch.compile",
    "from_keras": "mera_torch.converters",
    "from_onnx": "mera_torch.converters",
    "from_pt2": "mera_torch.converters",
    "from_tflite": "mera_torch.converters",
    "from_torchscript": "mera_torch.converters",
    "fuse_models": "mera_torch.fuse",
    "get_mera_dna_version": "mera_torch.versions",
    "get_mera_tvm_version": "mera_torch.versions",
    "get_mera_version": "mera_torch.versions",
    "get_versions": "mera_torch.versions",
    "load": "mera_torch.project",
    "load_mera_deployment": "mera_torch.runner",
    "load_model": "mera_torch.converters",
    "mera_backend": "mera_torch.backend.dynamo",
    "quantize": "mera_torch.quant",
}

__all__ = [
    "CalibrationError",
    "ConfigError",
    "CorruptFileError",
    "Deployer",
    "Deployment",
    "DeviceAbsentError",
    "DeviceBusyError",
    "DeviceError",
    "DeviceFaultError",
    "DeviceTarget",
    "DoesNotFitError",
    "Explanation",
    "ImportedModel",
    "InputDescription",
    "InputDescriptionContainer",
    "InternalError",
    "InvalidModelError",
    "Layout",
    "LockedError",
    "MeraDeployment",
    "MeraError",
    "MeraModel",
    "MeraModelRunner",
    "MeraQuantizer",
    "MeraTvmDeployment",
    "MeraTvmModelRunner",
    "MeraTvmPrjDeployment",
    "ModelLoader",
    "ModelQuantizer",
    "OutOfMemoryError",
    "Platform",
    "PowerMetrics",
    "QuantConfig",
    "QuantizedModel",
    "Rule",
    "Runner",
    "StateError",
    "StorageError",
    "TVMDeployer",
    "Target",
    "UnsupportedError",
    "__version__",
    "explain",
    "export",
    "from_keras",
    "from_onnx",
    "from_pt2",
    "from_tflite",
    "from_torchscript",
    "fuse_models",
    "get_mera_dna_version",
    "get_mera_tvm_version",
    "get_mera_version",
    "get_versions",
    "load",
    "load_mera_deployment",
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
