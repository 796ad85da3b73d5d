"""The C core's tables: versions, platforms, operators, instructions."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from mera_torch import errors
from mera_torch._core import ffi, lib
from mera_torch.native.context import Context, text_of
from mera_torch.platform import Platform


def core_version() -> str:
    """The version of the C core."""
    return text_of(lib.mera_core_version())


def core_build() -> str:
    """A hash of the C core's sources: two cores of one build compile the same programs."""
    return text_of(lib.mera_core_build())


def core_features() -> str:
    """How the C core was built and which kernels this CPU gets, e.g. "openmp; kernels: avx2"."""
    return text_of(lib.mera_core_features())


_local = threading.local()


def thread_context() -> Context:
    """This thread's context for calls that make no object."""
    if not hasattr(_local, "context"):
        _local.context = Context()
    context: Context = _local.context
    return context


# ---- platforms ----


def platform_from_c(row: Any) -> Platform:
    return Platform(
        name=text_of(row.name),
        units=row.units,
        array=row.array,
        clock_mhz=row.clock_mhz,
        sram_bytes=row.sram_bytes,
        dram_gbps=row.dram_gbps,
        bf16=bool(row.bf16),
        sram_banks=row.sram_banks,
        dram_latency_cycles=row.dram_latency_cycles,
    )


def platform_to_c(platform: Platform) -> Any:
    row = ffi.new("mera_platform *")
    name = platform.name.encode()
    if not 1 <= len(name) <= 63:
        raise errors.ConfigError(f"platform {platform.name!r}: name must have 1 to 63 bytes, got {len(name)}")
    row.name = name
    for field in ("units", "array", "clock_mhz", "sram_bytes", "dram_gbps", "sram_banks", "dram_latency_cycles"):
        setattr(row, field, getattr(platform, field))
    row.bf16 = int(platform.bf16)
    return row


def platforms() -> list[Platform]:
    """The platforms of csrc/dna_arch.def."""
    return [platform_from_c(lib.mera_platform_at(i)) for i in range(lib.mera_platform_count())]


def platform_aliases() -> dict[str, str]:
    """Other identifiers of the same machines: alias -> name."""
    found: dict[str, str] = {}
    index = ffi.new("int32_t *")
    while alias := lib.mera_platform_alias(len(found), index):
        found[text_of(alias)] = text_of(lib.mera_platform_at(index[0]).name)
    return found


def check_platform(platform: Platform) -> None:
    """Raises InvalidModelError if a value is out of its range."""
    context = thread_context()
    context.call(lib.mera_platform_check, context.pointer, platform_to_c(platform))


# ---- operators ----


@dataclass(frozen=True)
class OpInfo:
    """A row of csrc/dna_ops.def. attrs: name -> default, in the table's order."""

    index: int
    name: str
    min_inputs: int
    max_inputs: int
    attrs: dict[str, int]
    doc: str


def _op(index: int) -> OpInfo:
    attrs = {
        text_of(lib.mera_op_attr_name(index, i)): int(lib.mera_op_attr_default(index, i))
        for i in range(lib.mera_op_attr_count(index))
    }
    least, most = lib.mera_op_min_inputs(index), lib.mera_op_max_inputs(index)
    return OpInfo(index, text_of(lib.mera_op_name(index)), least, most, attrs, text_of(lib.mera_op_doc(index)))


OPS: dict[str, OpInfo] = {info.name: info for info in map(_op, range(lib.mera_op_count()))}


def instruction_names() -> list[str]:
    """The instructions of csrc/dna_isa.def, by opcode."""
    return [text_of(lib.mera_isa_name(i)) for i in range(lib.mera_isa_count())]


# ---- accounts of cycles ----


def cycle_kinds() -> dict[str, str]:
    """What a unit does in a cycle, or why it does nothing: name -> meaning, as csrc/dna_arch.def numbers them."""
    kinds = range(lib.mera_cycle_kind_count())
    return {text_of(lib.mera_cycle_kind_name(i)): text_of(lib.mera_cycle_kind_doc(i)) for i in kinds}
