"""What one deploys for: targets, layouts of images, devices. Needs the standard library alone.

Wherever one of these is taken, its name as a string will do.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeVar

from .errors import ConfigError, UnsupportedError, nearest

Found = TypeVar("Found", bound="_Named")


class _Named(Enum):
    """An enum whose members are found by name, too; an unknown one is a ConfigError that names the nearest."""

    @classmethod
    def _missing_(cls, value: object) -> Any:
        if isinstance(value, str) and value in cls.__members__:
            return cls[value]
        kind = cls.__name__.removesuffix("Target").lower() or "target"
        raise ConfigError(f"unknown {kind} {value!r}: {nearest(str(value), cls.__members__)}")


class Target(str, _Named):
    """Where a deployment runs. A member is its name as a string."""

    IP = "IP"
    Interpreter = "Interpreter"
    InterpreterHw = "InterpreterHw"
    Simulator = "Simulator"
    VerilatorSimulator = "VerilatorSimulator"
    InterpreterBf16 = "InterpreterBf16"
    InterpreterHwBf16 = "InterpreterHwBf16"
    SimulatorBf16 = "SimulatorBf16"

    def __str__(self) -> str:
        return self.value

    @property
    def str_val(self) -> str:
        """The name."""
        return self.value

    @property
    def x86_only(self) -> bool:
        """Whether it runs on x86 hosts alone: all but the device do."""
        return self is not Target.IP

    @property
    def uses_fp32_flow(self) -> bool:
        """Whether it takes a float model."""
        return self is Target.Interpreter or self.value.endswith("Bf16")

    def check_available(self) -> Target:
        """The target itself. Raises UnsupportedError, saying what to take instead, if it does not exist yet."""
        if self in _MISSING:
            raise UnsupportedError(f"target {self} does not exist yet ({_MISSING[self]}); there are {_there()}")
        return self


_MISSING = {
    Target.VerilatorSimulator: "it needs the hardware description of the DNA; Simulator gives the same bytes",
    Target.InterpreterBf16: "it needs BF16 arithmetic; Interpreter runs the model in float32",
    Target.InterpreterHwBf16: "it needs BF16 arithmetic; quantize the model to int8 for InterpreterHw",
    Target.SimulatorBf16: "it needs BF16 arithmetic; quantize the model to int8 for Simulator",
}


def _there() -> str:
    return ", ".join(target for target in Target if target not in _MISSING)


class Layout(str, _Named):
    """How images lie in an array of four dimensions."""

    NCHW = "NCHW"
    NHWC = "NHWC"

    def __str__(self) -> str:
        return self.value


class DeviceTarget(_Named):
    """The boards that MERA's scripts name: (what it is, MERA's code).

    Which programs a board runs is a property of the deployment's platform; see docs/mera.md.
    """

    SAKURA_1 = ("Sakura-1", 1)
    XILINX_U50 = ("AMD Xilinx U50", 2)
    INTEL_IA420 = ("Intel IA420", 3)
    SAKURA_2 = ("Sakura-2", 5)

    def __str__(self) -> str:
        return str(self.value[0])

    @property
    def code(self) -> int:
        """MERA's number."""
        return int(self.value[1])

    @classmethod
    def _missing_(cls, value: object) -> Any:
        for member in cls:
            if member.code == value and not isinstance(value, bool):
                return member
        return super()._missing_(value)
