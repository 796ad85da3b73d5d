"""Where cycles go: every cycle of every queue's unit is busy, or lost for a reason, and the reasons are right."""

from __future__ import annotations

import random

import numpy as np
import pytest
from random_graphs import random_graph
from test_cycles import HEAD, ISSUE, LATENCY, PIPELINE, conv, dma, vector, window

from mera_torch import native
from mera_torch.bisect import build
from mera_torch.platform import find

KINDS = list(native.cycle_kinds())
QUEUES = ["const", "load", "store", "array0", "window0", "vector0"]
Account = dict[str, int]


def accounts(*code: str, banks: int = 256) -> dict[str, Account]:
    """Queue -> kind -> cycles (those that are not 0) of a program on the machine of test_cycles."""
    head = HEAD.replace(" 256 50\n", f" {banks} 50\n")
    program = native.Program.parse(head + "\n".join(code) + "\nconstants 0\n")
    assert program.queue_names == QUEUES
    simulator = native.Simulator(program)
    check(simulator)
    cycles = simulator.cycles().sum(1)
    return {
        q: {kind: int(n) for kind, n in zip(KINDS, row, strict=True) if n}
        for q, row in zip(QUEUES, cycles, strict=True)
    }


def check(simulator: native.Simulator) -> None:
    """Each queue's accounts sum to the cycles of the run; its stalls and instructions do not overlap, and the stalls
    sum to its accounts where no instruction was at work."""
    cycles, total = simulator.cycles(), simulator.stats()["cycles"]
    assert (cycles >= 0).all() and (cycles.sum((1, 2)) == total).all()
    stalls = simulator.stalls()
    assert (stalls["start_cycle"] < stalls["end_cycle"]).all() and not (stalls["kind"] == KINDS.index("busy")).any()
    for queue in range(len(simulator.program.queue_names)):
        own = stalls[stalls["queue"] == queue]
        assert (own["start_cycle"][1:] >= own["end_cycle"][:-1]).all()
        for index, kind in enumerate(KINDS):
            spent = own[own["kind"] == index]
            within = int((spent["end_cycle"] - spent["start_cycle"]).sum())
            assert within <= cycles[queue, :, index].sum(), kind
            if kind in ("dependency", "issue", "drain", "idle"):  # the others occur within an instruction, too
                assert within == cycles[queue, :, index].sum(), kind


def after(line: str, *waits: str) -> str:
    """The instruction, waiting."""
    name, rest = line.split(" ", 1)
    return f"{name} wait {', '.join(waits)} {rest}"


def test_an_instruction_alone() -> None:
    found = accounts(vector(run=160, mode=1))
    assert found["vector0"] == {"issue": ISSUE, "busy": 10, "idle": PIPELINE - 1}
    assert found["array0"] == {"idle": ISSUE + 10 + PIPELINE - 1}


def test_a_unit_waits_for_a_load() -> None:
    found = accounts(dma("load", 64, n=4, stride=64), after(vector(run=160, mode=1), "load>=1"))
    assert found["load"]["dram"] == LATENCY + 3 * 3 - 1  # a burst takes four cycles of the bus; one cycle had accrued
    assert found["load"]["busy"] == 4
    assert found["vector0"]["dram"] == sum(found["load"][kind] for kind in ("issue", "dram", "busy")) + PIPELINE - 1
    assert "dependency" not in found["vector0"]


def test_a_unit_waits_for_another() -> None:
    found = accounts(vector(run=160, mode=1), after(window(1, 2, 1, 16, 1, 1), "vector0>=1"))
    assert found["window0"]["dependency"] == ISSUE + 10 - 1 + PIPELINE
    assert found["window0"]["fill"] == 1 and "dram" not in found["window0"]


def test_a_load_that_a_unit_holds_up_is_no_wait_for_dram() -> None:
    found = accounts(
        vector(run=1600, mode=1),
        after(dma("load", 64), "vector0>=1"),
        after(window(1, 2, 1, 16, 1, 1), "load>=1"),
    )
    assert found["load"]["dependency"] == found["window0"]["dependency"] == ISSUE + 100 - 1 + PIPELINE
    assert LATENCY < found["window0"]["dram"] < LATENCY + 20


def test_an_array_waits_for_its_weights_and_for_its_drain() -> None:
    alone = accounts(conv(4, 16))["array0"]
    assert (
        alone["busy"] == 9 * 4 * 16 and alone["fill"] >= 5 + 8
    )  # parameters: 144 bytes, 32 a cycle; a tile of 16 rows
    short = accounts(*(conv(8, 8, kh=1, run=16, out=32768 + 2048 * i) for i in range(8)))["array0"]
    assert short["drain"] > 0 and "drain" not in alone


def test_ports_that_meet_at_a_bank() -> None:
    code = ["vector0.vector n0=1 n1=1 n2=8 n3=8 run=16 mode=2 a2=512 a3=64 b2=512 b3=64 b=4096 out=65536 o2=512 o3=64"]
    assert accounts(*code, banks=4)["vector0"]["bank"] > 0
    assert "bank" not in accounts(vector(run=160, mode=1), banks=4)["vector0"]


def test_cycles_belong_to_layers() -> None:
    program = native.Program.parse(
        HEAD + dma("load", 64) + "\n" + after(vector(run=160, mode=1), "load>=1") + "\nconstants 0\n"
    )
    cycles = native.Simulator(program).cycles()
    assert cycles.shape == (len(QUEUES), 2, len(KINDS))
    assert cycles[:, 1, : KINDS.index("idle")].sum() == cycles[:, :, : KINDS.index("idle")].sum()


@pytest.mark.parametrize("platform", ["DNAF132S0001", "SAKURA_1"])
def test_every_cycle_of_a_random_graph_is_accounted_for(platform: str) -> None:
    for seed in range(12):
        program = build(random_graph(random.Random(seed), 8)).compile(find(platform))
        simulator = native.Simulator(program)
        check(simulator)
        stats, cycles = simulator.stats(), simulator.cycles()
        kinds = [KINDS.index(kind) for kind in ("busy", "bank", "fill")]
        busy = cycles[5::3].sum((0, 1))[kinds]  # of the vector units: all that is within an instruction
        assert busy.sum() == stats["vector_busy_cycles"]
        assert stats["sram_words_read"] > 0 and stats["sram_words_written"] > 0


def test_counting_fails_cleanly_without_memory() -> None:
    data = build(random_graph(random.Random(3), 6)).compile(find("DNAF132S0001")).save()
    wanted = native.Simulator(native.Program.load(data)).stalls()
    failures = 0
    for allowed in range(4, 200):
        try:
            context = native.Context(fail_after=allowed)
            found = native.Simulator(native.Program.load(data, context)).stalls()
        except MemoryError:
            failures += 1
        else:
            assert np.array_equal(found, wanted) and failures > 0
            return
    pytest.fail("200 allocations are not enough")
