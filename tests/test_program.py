"""The program container: saved and loaded, printed and assembled, truncated, altered, hostile."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable

import numpy as np
import pytest
from dna import RESIDUAL_NET, code, convolution, graph, inputs, machine, same_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import random_graph

from mera_torch import errors, native
from mera_torch._core import ffi, lib
from mera_torch.bisect import build
from mera_torch.native import Program, Simulator

HEADER_BYTES = 32
VERSION_AT, LENGTH_AT, SUM_AT = 8, 16, 24

TINY = """
tensor %0 "x" int8[1, 1, 1, 3]
tensor %1 "y" int8[1, 1, 1, 3]
input %0
%1 "pool" = max_pool2d(%0)
output %1
"""


@pytest.fixture(scope="module")
def program() -> Program:
    return graph(RESIDUAL_NET).compile(machine(units=2))


@pytest.fixture(scope="module")
def tiny() -> Program:
    return graph(TINY).compile(machine())


def fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def sealed(data: bytearray) -> bytes:
    """An altered file with its length and checksum made right."""
    struct.pack_into("<Q", data, LENGTH_AT, len(data))
    struct.pack_into("<Q", data, SUM_AT, fnv1a(bytes(data[HEADER_BYTES:])))
    return bytes(data)


# ---- round trips ----


def test_loading_gives_what_was_saved(program: Program) -> None:
    again = Program.load(program.save())
    assert again.save() == program.save() and again.text() == program.text()
    for name in ("platform", "instruction_count", "constant_bytes", "sram_peak_bytes", "input_bytes", "output_bytes"):
        assert getattr(again, name) == getattr(program, name)
    assert again.nodes == program.nodes and again.nodes[0] == ("conv", "conv2d", "net.conv", "net.py:3")
    assert same_bytes(graph(RESIDUAL_NET), again)


def test_assembling_gives_what_was_printed(program: Program) -> None:
    again = Program.parse(program.text())
    assert again.text() == program.text() and again.save() == program.save()
    assert same_bytes(graph(RESIDUAL_NET), again)


@pytest.mark.parametrize("seed", range(8))
def test_random_programs_come_back(seed: int) -> None:
    built = build(random_graph(random.Random(seed), nodes=4, max_elements=1500))
    program = built.compile(machine(units=1 + seed % 3, array=16 << seed % 4, sram_kib=256))
    assert Program.load(program.save()).text() == program.text()
    assert Program.parse(program.text()).save() == program.save()


def test_saving_is_deterministic() -> None:
    first, second = (graph(RESIDUAL_NET).compile(machine(units=3)).save() for _ in range(2))
    assert first == second


def test_names_of_any_kind_survive() -> None:
    name = 'a "quoted" \\ name\twith\nlines, ünïcödé # ; = and \x7f'
    built = native.Graph("names")
    for index in range(2):
        built.tensor(name + str(index), (1, 1, 1, 4))
        built.quantize(index, 0.5, 0)
    built.input(0)
    built.node("max_pool2d", [0], 1, name=name, layer=name, source=name)
    built.output(1)
    program = built.finish().compile(machine())
    for again in (Program.load(program.save()), Program.parse(program.text())):
        assert again.nodes == [(name, "max_pool2d", name, name)]
        assert again.save() == program.save()


# ---- truncated and altered ----


def test_every_truncation_is_refused(program: Program) -> None:
    data = program.save()
    for length in range(len(data)):
        with pytest.raises(errors.CorruptFileError):
            Program.load(data[:length])
    with pytest.raises(errors.CorruptFileError, match="truncated or extended"):
        Program.load(data + b"\0")


def test_every_truncation_is_refused_with_a_right_checksum(tiny: Program) -> None:
    data = tiny.save()
    for length in range(HEADER_BYTES, len(data)):
        with pytest.raises(errors.CorruptFileError):
            Program.load(sealed(bytearray(data[:length])))


def test_every_flipped_bit_is_refused(tiny: Program) -> None:
    data = bytearray(tiny.save())
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.CorruptFileError):
            Program.load(bytes(data))
        data[bit // 8] ^= 1 << bit % 8


def test_another_version_says_what_to_do(tiny: Program) -> None:
    data = bytearray(tiny.save())
    struct.pack_into("<I", data, VERSION_AT, 99)
    with pytest.raises(errors.CorruptFileError, match="version 99.*compile the model again"):
        Program.load(sealed(data))


@pytest.mark.parametrize("data", [b"", b"MERA.DNA", b"MERAGRPH" + bytes(100), bytes(200)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(errors.CorruptFileError):
        Program.load(data)


def runs_or_refuses(data: bytes) -> None:
    """A file with a right checksum is refused, or runs without harm."""
    try:
        program = Program.load(data)
        if program.platform.sram_bytes <= 1 << 20 and sum(program.input_bytes) < 1 << 20:
            Simulator(program).run([np.zeros(size, np.int8) for size in program.input_bytes])
    except (errors.CorruptFileError, errors.InternalError, errors.OutOfMemoryError):
        pass


@pytest.mark.parametrize("value", [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], ids=hex)
def test_hostile_words_do_no_harm(tiny: Program, value: int) -> None:
    data = tiny.save()
    for at in range(HEADER_BYTES, len(data) - 3):
        altered = bytearray(data)
        struct.pack_into("<I", altered, at, value)
        runs_or_refuses(sealed(altered))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hostile_bytes_do_no_harm(program: Program, data: st.DataObject) -> None:
    altered = bytearray(program.save())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(HEADER_BYTES, len(altered) - 1))
        altered[at] = data.draw(st.integers(0, 255))
    runs_or_refuses(sealed(altered))


def replaced(text: str, old: str, new: str) -> str:
    assert re.search(old, text), old
    return re.sub(old, new, text, count=1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"\.conv ", ".convolve ", "no instruction is named 'convolve'"),
        (r"\narray0\.", "\narray9.", "no such queue"),
        (r"\narray0\.", "\nstore.", "a queue of another unit"),
        (r"wait const>=\d+", "wait const>=9999", "waits for more instructions than its queue holds"),
        (r"wait const>=\d+", "wait const>=0", "expected wait queue>=count"),
        (r" oh=\d+", " oh=1000", "oh\\*ow is not in 1..512"),
        (r" oh=\d+", " oh=1024", "'oh' is no field of conv with a value that fits"),
        (r" co=\d+", " co=17", "kh, kw, run or co is out of range"),
        (r" last=1", "", "nested or begin in the middle|never drained"),
        (r" out=\d+", " out=999999", "reaches outside of memory"),
        (r"\nstore\.store(.*) dram=\d+", r"\nstore.store\1 dram=0", "writes into the constants"),
        (r" n0=1", " n0=0", "a count is zero"),
        (r" run=\d+", " run=60000000", "more bytes than memory holds"),
        (r"(input \"x\") \d+", r"\1 0", "lies outside of DRAM"),
        (r"; node \d+", "; node 99", "belongs to no node"),
        (r"platform (.*) \d+ (\d+)\n", r"platform \1 7 \2\n", "platform is not valid"),
        (r"\ncode\n", "\ncodes\n", "line \\d+: expected platform, memory, input"),
    ],
)
def test_wrong_assembly_is_refused_with_its_reason(program: Program, old: str, new: str, message: str) -> None:
    with pytest.raises(errors.MeraError, match=message):
        Program.parse(replaced(program.text(), old, new))


# ---- the encoding holds every value of every field ----

HEAD = 'platform "m" 2 64 500 1073741824 8 0 64 50\nmemory 0 1099511627\ninput "x" 64 64\ncode\n'
ADDRESSES = ("dram", "sram", "in", "w", "param", "out", "res", "table", "a", "b")
COUNTS = ("in_columns", "run", "n0", "n1", "n2", "n3", "oh", "ow", "kh", "kw", "channels", "co")
QUEUES = {
    "sync": "vector1",
    "load": "load",
    "store": "store",
    "conv": "array1",
    "window": "window0",
    "vector": "vector1",
    "resize": "vector1",
    "softmax": "vector1",
}


def text_of(pointer: object) -> str:
    return ffi.string(pointer).decode()


FIELDS = {
    text_of(lib.mera_isa_name(op)): {
        text_of(lib.mera_isa_field_name(op, i)): int(lib.mera_isa_field_bits(op, i))
        for i in range(lib.mera_isa_field_count(op))
    }
    for op in range(lib.mera_isa_count())
}


@st.composite
def instruction(draw: Callable, op: str) -> str:
    """A valid instruction; fields are drawn from their whole range, but for counts: 1, so that strides are free."""
    values = {}
    for name, bits in FIELDS[op].items():
        low, high = (-(1 << -bits - 1), (1 << -bits - 1) - 1) if bits < 0 else (0, (1 << bits) - 1)
        values[name] = draw(st.one_of(st.sampled_from([low, high]), st.integers(low, high)))
        if name in ADDRESSES:
            values[name] = values[name] % (1 << 29) + 4096
        if name in COUNTS:
            values[name] = 1
    fixed = {"dtype": 0, "in_rows": 0, "first": 1, "last": 1}
    values.update({name: value for name, value in fixed.items() if name in values})
    for low, high in (("low", "high"), ("add_low", "add_high")):
        if low in values:
            values[low], values[high] = sorted((values[low], values[high]))
    if op == "resize":
        values["in_rows"] = 1
    if op == "vector":
        values["mode"] %= 4
        values["neg_b"] = values["neg_b"] & ~values["neg_a"]
    waits = "".join(f" wait const>={draw(st.integers(1, 1))}" for _ in range(draw(st.integers(0, 4))))
    return f"{QUEUES[op]}.{op}{waits} " + " ".join(f"{name}={value}" for name, value in values.items() if value)


@pytest.mark.parametrize("op", list(FIELDS))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_encoding_is_the_inverse_of_decoding(op: str, data: st.DataObject) -> None:
    line = data.draw(instruction(op)).strip()
    program = Program.parse(HEAD + "const.sync\n" + line + "\nconstants 0\n")
    assert code(program)[1] == line
    assert code(Program.load(program.save()))[1] == line


@pytest.mark.parametrize("op", list(FIELDS))
def test_values_beyond_a_field_are_refused(op: str) -> None:
    for name, bits in FIELDS[op].items():
        beyond = 1 << (-bits - 1 if bits < 0 else bits)
        for value in (beyond, -beyond - 1):
            with pytest.raises(errors.InvalidModelError, match=f"'{name}' is no field of {op} with a value that fits"):
                Program.parse(f"{HEAD}{QUEUES[op]}.{op} {name}={value}\nconstants 0\n")


# ---- what the waits are worth ----


def test_any_timing_gives_the_same_bytes() -> None:
    """The program on machines whose memory is slower, faster, or conflicts more: other orders, the same bytes."""
    for seed in range(4):
        built = build(random_graph(random.Random(100 + seed), nodes=6, max_elements=3000))
        program = built.compile(machine(units=3, sram_kib=256))
        given = inputs(built)
        wanted = native.Interpreter(built).run(given)
        cycles = set()
        for timing in ("500 262144 0.5 0 4 0", "100 262144 90 0 256 1000", "900 262144 3 0 16 7"):
            text = replaced(program.text(), r"500 262144 8 0 \d+ 50", timing)
            simulator = Simulator(Program.parse(text))
            for w, g in zip(wanted, simulator.run(given), strict=True):
                assert np.array_equal(w.reshape(-1), g)
            cycles.add(simulator.stats()["cycles"])
        assert len(cycles) == 3


def poisoned(program: Program) -> Program:
    """The program behind an instruction that fills all of SRAM: every queue first waits for it."""
    head, _, rest = program.text().partition("\ncode\n")
    body, _, constants = rest.partition("\nconstants ")
    shifted = re.sub(r"(wait \w+>=)(\d+)", lambda m: f"{m[1]}{int(m[2]) + 1}", body)
    fill = f"vector0.vector mode=1 n0=1 n1=1 n2=1 n3=1 run={program.platform.sram_bytes} zero=-86 low=-128 high=127"
    gates = [f"{queue}.sync wait vector0>=1" for queue in program.queue_names if queue != "vector0"]
    return Program.parse("\n".join([f"{head}\ncode", fill, *gates, shifted]) + f"\nconstants {constants}")


def test_nothing_is_read_that_was_not_written() -> None:
    for seed in range(6):
        built = build(random_graph(random.Random(200 + seed), nodes=6, max_elements=3000))
        program = poisoned(built.compile(machine(units=2, array=32, sram_kib=128)))
        assert same_bytes(built, program), seed


def test_a_program_that_deadlocks_is_an_error() -> None:
    text = graph(convolution()).compile(machine()).text()
    text = replaced(text, r"\nload\.load ", "\nload.load wait store>=1 ")
    with pytest.raises(errors.InternalError, match="queue load waits at instruction"):
        Simulator(Program.parse(text)).stats()
