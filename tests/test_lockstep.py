"""Injected differences are found: an altered instruction, an altered constant, an operator that computes wrongly, a
device that does; and the right node and instruction are named."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from random_graphs import random_graph, random_inputs
from test_bisect import TEXT

from mera_torch import ladder, lockstep, native, oracle
from mera_torch.backend.region import DnaRegion
from mera_torch.bisect import build
from mera_torch.errors import InvalidModelError
from mera_torch.lockstep import first_divergence, instructions, runnable_order, same_shape
from mera_torch.platform import find

MACHINE = find("DNAF132S0001")


def simulate(program: native.Program, inputs: Sequence[native.Array]) -> Sequence[native.Array]:
    return native.Simulator(program).run(inputs)


def altered(program: native.Program, old: str, new: str) -> native.Program:
    text = program.text()
    assert text.count(old) == 1, text.count(old)
    return native.Program.parse(text.replace(old, new))


def region(graph: native.Graph) -> DnaRegion:
    """A region without borders: what locate() needs of one."""
    found = DnaRegion("region_0", graph, [], [], [], MACHINE, {}, {}, {})
    found.compile()
    return found


@pytest.fixture
def graph() -> native.Graph:
    return native.Graph.parse(TEXT)


@pytest.fixture
def inputs() -> list[oracle.Int8]:
    rng = np.random.default_rng(0)
    return [rng.integers(-128, 128, shape).astype(np.int8) for shape in ((1, 6, 6, 8), (1, 1, 1, 8))]


# ---- cutting programs ----


def test_a_cut_program_shows_all_that_it_did(graph: native.Graph, inputs: list[oracle.Int8]) -> None:
    program = graph.compile(MACHINE)
    code = instructions(program)
    assert [i.name for i in code].count("conv") == 1 and code[4].waits == (("const", 2), ("load", 1))
    order = runnable_order(code)
    assert sorted(i.index for i in order) == list(range(len(code)))
    (memory,) = simulate(lockstep.cut(program, order), inputs)
    (wanted,) = simulate(program, inputs)
    assert wanted.tobytes() in memory.tobytes()
    (nothing,) = simulate(lockstep.cut(program, []), inputs)
    assert not nothing[1152 - 648 :].any()  # SRAM is as it was


def test_programs_of_other_instructions_are_not_compared(graph: native.Graph, inputs: list[oracle.Int8]) -> None:
    program, other = graph.compile(MACHINE), graph.compile(find("DNAF232S0002"))
    assert not same_shape(instructions(program), instructions(other))
    with pytest.raises(InvalidModelError, match="cannot be compared"):
        first_divergence((program, simulate), (other, simulate), inputs)


def test_equal_programs_do_not_diverge(graph: native.Graph, inputs: list[oracle.Int8]) -> None:
    program = graph.compile(MACHINE)
    assert first_divergence((program, simulate), (program, simulate), inputs) is None


@pytest.mark.parametrize(
    ("old", "new", "node"),
    [
        ("zero=-5 low=-128 high=127 out=320 out_pitch=32 out_step=8 ; node 0", "zero=-4 low=-128 high=127 out=320 "
         "out_pitch=32 out_step=8 ; node 0", "conv"),
        ("m_out=1145324672", "m_out=1945324672", "scale"),
        ("out=512 out_pitch=16 out_step=8 ; node 2", "out=512 out_pitch=8 out_step=8 ; node 2", "pool"),
        ("load.load dram=1024 sram=448 run=8", "load.load dram=1024 sram=448 run=7", "scale"),
        ("dram=1088 sram=512 run=32", "dram=1088 sram=513 run=31", "pool"),
    ],
)  # fmt: skip
def test_an_altered_instruction_is_named(
    old: str, new: str, node: str, graph: native.Graph, inputs: list[oracle.Int8]
) -> None:
    program = graph.compile(MACHINE)
    wrong = altered(program, old, new)
    found = first_divergence((program, simulate), (wrong, simulate), inputs)
    assert found is not None and new in found.instruction.text and found.node == node
    assert instructions(wrong)[found.instruction.index] == found.instruction


def test_an_altered_constant_is_named_by_its_load(graph: native.Graph, inputs: list[oracle.Int8]) -> None:
    program = graph.compile(MACHINE)
    head, _, constants = program.text().partition("constants 648\n")
    wrong = native.Program.parse(f"{head}constants 648\n{'00' if constants[:2] != '00' else '01'}{constants[2:]}")
    found = first_divergence((program, simulate), (wrong, simulate), inputs)
    assert (
        found is not None and found.node == "conv" and found.instruction.text.startswith("const.load sram=704 run=576")
    )


@pytest.mark.parametrize("platform", ["DNAF132S0001", "SAKURA_1"])
def test_altered_instructions_of_random_graphs(platform: str) -> None:
    """A clamp or zero point of one instruction is altered; if that changes memory at all, it is found."""
    rng, hits = random.Random(5), 0
    for seed in range(12):
        graph = random_graph(random.Random(seed), 6)
        program = build(graph).compile(find(platform))
        code = [i for i in instructions(program) if re.search(r" (high|zero)=(-?\d+)", i.text)]
        victim = rng.choice(code)
        new = re.sub(r" high=(-?\d+)", lambda m: f" high={int(m[1]) - 1}", victim.text)
        if new == victim.text:
            continue
        try:
            wrong = altered(program, victim.text, new)
        except native_errors:
            continue
        found = first_divergence((program, simulate), (wrong, simulate), random_inputs(graph, seed))
        if found is not None:
            assert found.instruction.text == new and found.instruction.index == victim.index
            hits += 1
    assert hits >= 2


native_errors = (ValueError, AssertionError)


# ---- between rungs ----


def test_a_program_that_is_not_its_graphs(graph: native.Graph, inputs: list[oracle.Int8]) -> None:
    held = region(graph)
    held.adopt(altered(held.program, "m_out=1145324672", "m_out=1945324672"))
    found = ladder.locate(held, "InterpreterHw", "Simulator", inputs)
    assert (found.node, found.op, found.reference, found.rung) == ("scale", "mul", "InterpreterHw", "Simulator")
    assert "m_out=1945324672" in found.instructions[0] and "is not what the compiler makes" in found.detail


def test_a_program_of_another_compiler(graph: native.Graph, inputs: list[oracle.Int8]) -> None:
    held = region(graph)
    text = held.program.text().replace("m_out=1145324672", "m_out=1945324672")
    held.adopt(native.Program.parse(text.replace("store.store wait", "store.sync ; node 2\nstore.store wait")))
    found = ladder.locate(held, "InterpreterHw", "Simulator", inputs)
    assert "are not those that this compiler makes" in found.detail and found.instructions == ()


def test_an_operator_that_the_simulator_computes_wrongly(
    graph: native.Graph, inputs: list[oracle.Int8], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(native.Simulator):
        def run(self, inputs: Sequence[native.Array]) -> list[native.Int8Array]:
            values = super().run(inputs)
            if any(name == "scale" for name, *_ in self.program.nodes):
                values[0][3] ^= 1
            return values

    held = region(graph)
    monkeypatch.setattr("mera_torch.native.Simulator", Wrong)
    found = ladder.locate(held, "InterpreterHw", "Simulator", inputs)
    assert (found.node, found.rung) == ("scale", "simulator") and any("vector" in line for line in found.instructions)


def test_an_operator_that_the_oracle_sees_otherwise(
    graph: native.Graph, inputs: list[oracle.Int8], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = oracle.OPERATORS["max_pool2d"]
    monkeypatch.setitem(oracle.OPERATORS, "max_pool2d", lambda call: np.bitwise_xor(right(call), np.int8(1)))
    found = ladder.locate(region(graph), "oracle", "InterpreterHw", inputs)
    assert (found.node, found.op, found.reference) == ("pool", "max_pool2d", "oracle")


def test_a_device_that_computes_one_instruction_wrongly(
    graph: native.Graph, inputs: list[oracle.Int8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device runs every program with its first vector instruction altered."""
    engine = ladder.program_engine

    def faulty(rung: str, program: native.Program, device_ids: object = None) -> ladder.Engine:
        if rung == "IP":
            text = program.text().replace("m_out=1145324672", "m_out=1945324672")
            return native.Simulator(native.Program.parse(text)).run
        return engine(rung, program)

    monkeypatch.setattr(ladder, "program_engine", faulty)
    found = ladder.locate(region(graph), "Simulator", "IP", inputs)
    assert (found.node, found.op, found.reference, found.rung) == ("scale", "mul", "Simulator", "IP")
    assert found.instructions[0].startswith("instruction 5: vector0.vector")
    assert replace(found, region="x") != found
