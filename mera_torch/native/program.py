"""Compiled programs."""

from __future__ import annotations

from typing import Any

from mera_torch._core import ffi, lib
from mera_torch.native.context import Context, Handle, text_of
from mera_torch.native.tables import platform_from_c
from mera_torch.platform import Platform


class Program:
    """A compiled graph: code, constants, platform, interface, layer table."""

    def __init__(self, context: Context, handle: Handle) -> None:
        self.context = context
        self._handle = handle

    @property
    def handle(self) -> Any:
        """The mera_program pointer; valid as long as this object lives."""
        return self._handle.pointer

    @classmethod
    def load(cls, data: bytes, context: Context | None = None) -> Program:
        """The program that save() gave. Raises CorruptFileError for anything else."""
        context = context or Context()
        return cls(context, context.make("program", lib.mera_program_load, context.pointer, data, len(data)))

    @classmethod
    def parse(cls, text: str, context: Context | None = None) -> Program:
        """Assembles what text() gave."""
        context, data = context or Context(), text.encode()
        return cls(context, context.make("program", lib.mera_program_parse, context.pointer, data, len(data)))

    def save(self) -> bytes:
        """The program as bytes: the container that a deployment holds."""
        return self.context.saved(lib.mera_program_save, self.handle)

    def text(self) -> str:
        """The program as assembly."""
        return self.context.text(lib.mera_program_print, self.handle)

    @property
    def platform(self) -> Platform:
        """What it was compiled for."""
        row = ffi.new("mera_platform *")
        lib.mera_program_platform(self.handle, row)
        return platform_from_c(row)

    @property
    def instruction_count(self) -> int:
        """Instructions of all queues."""
        return int(lib.mera_program_instruction_count(self.handle))

    @property
    def constant_bytes(self) -> int:
        """Bytes of constants in DRAM."""
        return int(lib.mera_program_constant_bytes(self.handle))

    @property
    def sram_peak_bytes(self) -> int:
        """The highest SRAM address used, plus one."""
        return int(lib.mera_program_sram_peak_bytes(self.handle))

    @property
    def input_bytes(self) -> list[int]:
        """Bytes of each input."""
        count = lib.mera_program_input_count(self.handle)
        return [int(lib.mera_program_input_bytes(self.handle, i)) for i in range(count)]

    @property
    def output_bytes(self) -> list[int]:
        """Bytes of each output."""
        count = lib.mera_program_output_count(self.handle)
        return [int(lib.mera_program_output_bytes(self.handle, i)) for i in range(count)]

    @property
    def nodes(self) -> list[tuple[str, str, str, str]]:
        """The layer table: (name, op, layer, source) of each node."""
        texts = (
            lib.mera_program_node_name,
            lib.mera_program_node_op,
            lib.mera_program_node_layer,
            lib.mera_program_node_source,
        )
        found = []
        for i in range(lib.mera_program_node_count(self.handle)):
            name, op, layer, source = (text_of(get(self.handle, i)) for get in texts)
            found.append((name, op, layer, source))
        return found

    @property
    def queue_names(self) -> list[str]:
        """The names of the machine's queues, as events number them."""
        count = lib.mera_program_queue_count(self.handle)
        return [text_of(lib.mera_program_queue_name(self.handle, i)) for i in range(count)]
