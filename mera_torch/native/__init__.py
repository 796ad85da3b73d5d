"""The C core, as Python objects: status codes become exceptions, handles have lifetimes, arrays are checked.

numpy and cffi are all that this module and what it imports need. Every object holds its Context; a context is used by
one thread at a time, which its lock sees to.
"""

from mera_torch.native.context import Context
from mera_torch.native.device import Board, Device, DeviceEngine, DeviceInfo, Request, device_list
from mera_torch.native.graph import Array, Graph, NodeInfo, Progress, TensorInfo, compile_text, compiler_options
from mera_torch.native.program import Program
from mera_torch.native.run import (
    FloatArray,
    Int8Array,
    Interpreter,
    Simulator,
    dequantize_i8,
    quantize_f32,
    quantize_multiplier,
    requantize,
)
from mera_torch.native.tables import (
    OPS,
    OpInfo,
    check_platform,
    core_build,
    core_features,
    core_version,
    cycle_kinds,
    instruction_names,
    platform_aliases,
    platforms,
)

__all__ = [
    "OPS",
    "Array",
    "Board",
    "Context",
    "Device",
    "DeviceEngine",
    "DeviceInfo",
    "FloatArray",
    "Graph",
    "Int8Array",
    "Interpreter",
    "NodeInfo",
    "OpInfo",
    "Program",
    "Progress",
    "Request",
    "Simulator",
    "TensorInfo",
    "check_platform",
    "compile_text",
    "compiler_options",
    "core_build",
    "core_features",
    "core_version",
    "cycle_kinds",
    "dequantize_i8",
    "device_list",
    "instruction_names",
    "platform_aliases",
    "platforms",
    "quantize_f32",
    "quantize_multiplier",
    "requantize",
]
