"""Which instruction two runs of a program differ in first.

A program is cut off after ever fewer of its instructions, and what it has made of SRAM and DRAM by then is stored and
read: so the first instruction with another effect is found by bisection, on any engine that runs programs, a device
included. It needs nothing of the engine but to run them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .errors import InvalidModelError
from .native import Array, Program

Run = Callable[[Program, Sequence[Array]], Sequence[Array]]
_INSTRUCTION = re.compile(r"(?P<queue>\w+)\.(?P<name>\w+)(?P<rest>[^;]*)(?:; node (?P<node>\d+))?")
_WAIT = re.compile(r"wait (\w+)>=(\d+)")
_FIELD = re.compile(r"(\w+)=(-?\d+)")
REDUCING = ("conv", "window")


@dataclass(frozen=True)
class Instruction:
    """A line of a program's code: waits are (queue, count) pairs."""

    index: int
    text: str
    queue: str
    name: str
    node: int
    waits: tuple[tuple[str, int], ...]
    fields: Mapping[str, int] = field(hash=False)

    @property
    def begins(self) -> bool:
        """Whether it begins a reduction (or is none)."""
        return self.name not in REDUCING or self.fields.get("first", 0) == 1

    @property
    def ends(self) -> bool:
        """Whether it ends a reduction (or is none)."""
        return self.name not in REDUCING or self.fields.get("last", 0) == 1


def instructions(program: Program) -> list[Instruction]:
    """The code, in the order of the program."""
    lines = program.text().partition("\ncode\n")[2].partition("\nconstants ")[0].splitlines()
    return [_parsed(index, line) for index, line in enumerate(lines)]


def _parsed(index: int, line: str) -> Instruction:
    match = _INSTRUCTION.match(line)
    if match is None:
        raise InvalidModelError(f"instruction {index} cannot be read: {line!r}")
    waits = tuple((queue, int(count)) for queue, count in _WAIT.findall(match["rest"]))
    values = {name: int(value) for name, value in _FIELD.findall(_WAIT.sub("", match["rest"]))}
    node = -1 if match["node"] is None else int(match["node"])
    return Instruction(index, line.strip(), match["queue"], match["name"], node, waits, values)


def runnable_order(code: Sequence[Instruction]) -> list[Instruction]:
    """The instructions in an order in which one unit after the other could run them."""
    queues: dict[str, list[Instruction]] = {}
    for instruction in code:
        queues.setdefault(instruction.queue, []).append(instruction)
    taken = dict.fromkeys(queues, 0)
    order: list[Instruction] = []
    while len(order) < len(code):
        before = len(order)
        for queue, waiting in queues.items():
            while taken[queue] < len(waiting) and _met(waiting[taken[queue]], taken):
                order.append(waiting[taken[queue]])
                taken[queue] += 1
        if len(order) == before:
            raise InvalidModelError("the program's queues wait for each other")
    return order


def _met(instruction: Instruction, done: Mapping[str, int]) -> bool:
    return all(done.get(queue, 0) >= count for queue, count in instruction.waits)


def _complete(order: Sequence[Instruction]) -> list[Instruction]:
    """Those of them that end the reductions they belong to, and wait for nothing else."""
    while True:
        dropped: set[str] = set()
        done: dict[str, int] = {}
        open_at: dict[str, int] = {}
        kept: list[Instruction] = []
        for instruction in order:
            if instruction.queue in dropped or not _met(instruction, done):
                dropped.add(instruction.queue)
                continue
            if instruction.name in REDUCING:
                if instruction.begins:
                    open_at[instruction.queue] = done.get(instruction.queue, 0)
                if instruction.ends:
                    open_at.pop(instruction.queue, None)
            done[instruction.queue] = done.get(instruction.queue, 0) + 1
            kept.append(instruction)
        if not open_at and not dropped:
            return kept
        seen: dict[str, int] = {}
        order = []
        for instruction in kept:
            number = seen.get(instruction.queue, 0)
            seen[instruction.queue] = number + 1
            if number < open_at.get(instruction.queue, number + 1):
                order.append(instruction)
        if not open_at:
            return list(order)


def cut(program: Program, kept: Sequence[Instruction]) -> Program:
    """The program with these instructions alone, after which all of SRAM that it uses is stored; its one output is
    DRAM behind the constants, with the SRAM at its end."""
    head, _, tail = program.text().partition("\ncode\n")
    constants = tail.partition("\nconstants ")[2]
    constant_bytes = int(constants.split(None, 1)[0])
    lines = [line for line in head.splitlines() if not line.startswith("output ")]
    at = next(i for i, line in enumerate(lines) if line.startswith("memory "))
    sram, dram = (int(word) for word in lines[at].split()[1:])
    base, size = -(-dram // 64) * 64, max(1, sram)
    lines[at] = f"memory {sram} {base + size}"
    last_input = max(i for i, line in enumerate(lines) if line.startswith(("platform ", "memory ", "input ")))
    lines.insert(last_input + 1, f'output "memory" {constant_bytes} {base + size - constant_bytes}')
    counts: dict[str, int] = {}
    for instruction in kept:
        counts[instruction.queue] = counts.get(instruction.queue, 0) + 1
    code = [instruction.text for instruction in sorted(kept, key=lambda i: i.index)]
    code += [f"store.sync wait {queue}>={count}" for queue, count in counts.items() if queue != "store"]
    code.append(f"store.store dram={base} run={size} n0=1 n1=1 n2=1")
    text = "\n".join([*lines, "code", *code, f"constants {constants}"])
    return Program.parse(text)


@dataclass(frozen=True)
class Divergence:
    """The first instruction whose effect differs, as a line of the program; node: its name in the layer table."""

    instruction: Instruction
    node: str
    count: int

    def __str__(self) -> str:
        return f"instruction {self.instruction.index}: {self.instruction.text}"


def same_shape(a: Sequence[Instruction], b: Sequence[Instruction]) -> bool:
    """Whether the programs have the same instructions on the same queues with the same waits, whatever their fields."""
    return [(i.queue, i.name, i.waits) for i in a] == [(i.queue, i.name, i.waits) for i in b]


def first_divergence(
    wanted: tuple[Program, Run],
    got: tuple[Program, Run],
    inputs: Sequence[Array],
    progress: Callable[[str, int, int], object] | None = None,
) -> Divergence | None:
    """The first instruction after which memory differs between two runs, or None if it never does.

    wanted, got: program and engine; the programs must be of the same_shape, else InvalidModelError. inputs: int8. As
    many runs as the logarithm of the number of instructions.
    """
    codes = instructions(wanted[0]), instructions(got[0])
    if not same_shape(*codes):
        raise InvalidModelError(
            "the programs have other instructions, not just others' fields: they cannot be compared"
        )
    orders = tuple(runnable_order(code) for code in codes)
    total = len(codes[0])

    def differing(count: int) -> int:
        dumps = [
            np.asarray(run(cut(program, _complete(order[:count])), inputs)[0])
            for (program, run), order in zip((wanted, got), orders, strict=True)
        ]
        return int((dumps[0] != dumps[1]).sum())

    found = differing(total)
    if not found:
        return None
    low, high, steps = 0, total, max(1, total.bit_length())
    for step in range(steps + 1):
        if high - low <= 1:
            break
        if progress:
            progress("instructions", step, steps)
        middle = (low + high) // 2
        count = differing(middle)
        low, high, found = (low, middle, count) if count else (middle, high, found)
    before = {i.index for i in _complete(orders[1][:low])}
    fresh = [i for i in _complete(orders[1][:high]) if i.index not in before]
    altered = [i for i in fresh if i.text != codes[0][i.index].text]
    culprit = (altered or fresh)[0]
    nodes = got[0].nodes
    return Divergence(culprit, nodes[culprit.node][0] if 0 <= culprit.node < len(nodes) else "", found)
