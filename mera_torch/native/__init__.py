"""The C core, as Python objects: status codes become exceptions, handles have lifetimes, arrays are checked.

numpy and cffi are all that this module and what it imports need. Every object holds its Context; a context is used by
one thread at a time, which its lock sees to.
"""

from mera_torch.native.context import Context
from mera_torch.native.graph import Array, Graph, NodeInfo, Progress, TensorInfo, compile_text
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
    core_features,
    core_version,
    instruction_names,
    platform_aliases,
    platforms,
)

__all__ = [
    "OPS",
    "Array",
    "Context",
    "FloatArray",
    "Graph",
    "Int8Array",
    "Interpreter",
    "NodeInfo",
    "OpInfo",
    "Program",
    "Progress",
    "Simulator",
    "TensorInfo",
    "check_platform",
    "compile_text",
    "core_features",
    "core_version",
    "dequantize_i8",
    "instruction_names",
    "platform_aliases",
    "platforms",
    "quantize_f32",
    "quantize_multiplier",
    "requantize",
]
