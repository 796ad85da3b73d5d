"""The cycle formulas of docs/hardware.md, on programs of a few instructions: what each costs, and what overlaps."""

from __future__ import annotations

import math

import pytest

from mera_torch import native
from mera_torch._core import ffi, lib

ARCH = {ffi.string(lib.mera_arch_name(i)).decode(): int(lib.mera_arch_value(i)) for i in range(lib.mera_arch_count())}
ISSUE, PIPELINE, LATENCY, BANKS, W = ARCH["ISSUE_CYCLES"], ARCH["PIPELINE_CYCLES"], 50, 256, 16
BYTES_A_CYCLE = 16  # 8 GB/s at 500 MHz
HEAD = f'platform "m" 1 {W} 500 262144 8 0 {BANKS} {LATENCY}\nmemory 0 262144\nnode "n" "conv2d" "" "" 0\ncode\n'


class Timed:
    """The simulated times of a program: start and end of each instruction (but sync), all cycles, conflicts."""

    def __init__(self, *code: str) -> None:
        program = native.Program.parse(HEAD + "\n".join(code) + "\nconstants 0\n")
        simulator = native.Simulator(program)
        self.stats = simulator.stats()
        self.cycles = self.stats["cycles"]
        events = sorted(simulator.events(), key=lambda e: int(e["instruction"]))
        self.start = [int(e["start_cycle"]) for e in events]
        self.end = [int(e["end_cycle"]) for e in events]

    @property
    def busy(self) -> int:
        (start,), (end,) = self.start, self.end
        return end - start


def vector(n: tuple[int, int, int, int] = (1, 1, 1, 1), run: int = 16, **fields: int) -> str:
    counts = " ".join(f"n{i}={count}" for i, count in enumerate(n))
    return f"vector0.vector {counts} run={run} " + " ".join(f"{name}={value}" for name, value in fields.items())


def conv(oh: int, ow: int, co: int = 16, kh: int = 3, kw: int = 1, run: int = 48, out: int = 32768) -> str:
    chunk = co * W
    return (
        f"array0.conv first=1 last=1 in_rows=64 in_row_bytes=1024 in_pitch=1024 oh={oh} ow={ow} sy=1 sx=16 "
        f"kh={kh} kw={kw} dy=1 dx=16 run={run} w=131072 w_chunk={chunk} w_tap={co * run} co={co} param=196608 "
        f"low=-128 high=127 out={out} out_pitch={ow * 16} out_step=16"
    )


def window(mode: int, oh: int, ow: int, run: int, kh: int, kw: int, pitch: int = 1024, out: int = 65536) -> str:
    return (
        f"window0.window mode={mode} first=1 last=1 in_rows=60 in_row_bytes={pitch} in_pitch={pitch} oh={oh} ow={ow} "
        f"run={run} sy=1 sx=16 kh={kh} kw={kw} dy=1 dx=16 cy1=60 cx1={pitch} channels=16 w=196608 param=229376 "
        f"low=-128 high=127 out={out} out_pitch=1024 out_step=16"
    )


def dma(kind: str, run: int, at: int = 0, n: int = 1, stride: int = 0) -> str:
    name = "store" if kind == "store" else "load"
    return f"{kind}.{name} dram={at} sram={at} run={run} n0=1 n1=1 n2={n} d2={stride} s2={run}"


def bus(bursts: int) -> float:
    return bursts * ARCH["DRAM_BURST_BYTES"] / BYTES_A_CYCLE


# ---- issue, pipeline, order ----


def test_an_instruction_is_issued_and_seen_after_the_pipeline() -> None:
    found = Timed(vector(run=160, mode=1))
    assert found.start == [ISSUE] and found.end == [ISSUE + 10]
    assert found.cycles == found.end[0] - 1 + PIPELINE
    assert Timed("vector0.sync").cycles == ISSUE + 1


def test_a_wait_costs_pipeline_and_issue() -> None:
    waiting = window(1, 2, 1, 16, 1, 1).replace("window0.window", "window0.window wait vector0>=1")
    found = Timed(vector(run=160, mode=1), waiting)
    assert found.start[1] == found.end[0] - 1 + PIPELINE + ISSUE + 1  # and one to load its first (empty) group


@pytest.mark.parametrize(
    ("n", "run"), [((1, 1, 1, 1), 1), ((1, 1, 1, 1), 16), ((1, 1, 1, 1), 17), ((2, 3, 1, 5), 33), ((1, 1, 7, 1), 16)]
)
@pytest.mark.parametrize("table", [0, 1])
def test_vector(n: tuple[int, int, int, int], run: int, table: int) -> None:
    stride = -(-run // W) * W
    strides = {f"{p}{i}": stride * math.prod(n[i + 1 :]) for p in "ao" for i in range(4)}
    found = Timed(vector(n, run, mode=0, lut=table, table=196608, out=65536, **strides))
    assert found.busy == math.prod(n) * math.ceil(run / W) + table * math.ceil(256 / W)


@pytest.mark.parametrize(("oh", "ow", "run"), [(1, 1, 1), (3, 5, 16), (4, 4, 40)])
@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("table", [0, 1])
def test_resize(oh: int, ow: int, run: int, mode: int, table: int) -> None:
    step, half = 64, 1 << 31
    found = Timed(
        f"vector0.resize mode={mode} lut={table} in_rows={oh} in_columns={ow} in_pitch={step * ow} in_step={step} "
        f"run={run} y0={half} dy={half} x0={half} dx={half} oh={oh} ow={ow} out=65536 out_pitch={step * ow} "
        f"out_step={step} table=196608"
    )
    formula = oh * ow * math.ceil(run / W) * (1 + mode) + table * math.ceil(256 / W)
    assert formula <= found.busy <= formula + found.stats["bank_conflict_cycles"] + 1


@pytest.mark.parametrize(("rows", "run"), [(1, 1), (1, 100), (16, 21), (40, 7)])
def test_softmax(rows: int, run: int) -> None:
    stride = -(-run // W) * W
    found = Timed(f"vector0.softmax n0=1 n1={rows} run={run} a1={stride} o1={stride} out=65536 table=196608")
    steps = math.ceil(run / W) + 2 * math.ceil(run / (W // 4))
    formula = rows * steps + math.ceil(rows / W) * ARCH["RECIPROCAL_CYCLES"] + 1024 // W
    assert formula <= found.busy <= formula + found.stats["bank_conflict_cycles"] + 1


def test_vector_instructions_follow_each_other_at_once() -> None:
    found = Timed(vector(run=160, mode=1), vector(run=160, mode=1, out=4096))
    assert found.start[1] == found.end[0]


# ---- array ----


@pytest.mark.parametrize(("kh", "kw", "run"), [(1, 1, 16), (1, 1, 17), (3, 1, 48), (3, 3, 16), (5, 2, 40)])
@pytest.mark.parametrize(("oh", "ow"), [(1, 1), (2, 3), (4, 4), (16, 32)])
@pytest.mark.parametrize("co", [1, 16])
def test_conv(kh: int, kw: int, run: int, oh: int, ow: int, co: int) -> None:
    found = Timed(conv(oh, ow, co, kh, kw, run))
    load = math.ceil(co / ARCH["WEIGHT_ROWS_PER_CYCLE"])
    steps = kh * kw * math.ceil(run / W)
    formula = steps * max(oh * ow, load)
    if oh * ow >= load:
        assert found.busy == formula
    else:  # the first tile was loaded in front
        assert formula - load < found.busy <= formula
    drained = found.cycles - found.end[0]
    assert oh * ow + PIPELINE <= drained <= oh * ow + 2 * PIPELINE


def test_drain_and_loading_hide_behind_the_next_convolution() -> None:
    found = Timed(*(conv(8, 8, out=32768 + 4096 * k) for k in range(4)))
    assert found.start[1:] == found.end[:-1]


def test_a_long_drain_holds_up_the_third_convolution_only() -> None:
    """Two accumulator banks: one step of 64 pixels each, drained in 64 cycles."""
    found = Timed(*(conv(8, 8, kh=1, run=16, out=32768 + 4096 * k) for k in range(4)))
    assert found.start[1] == found.end[0]
    assert found.start[2] > found.end[1]


# ---- window ----


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize(("kh", "kw"), [(1, 1), (3, 3), (5, 5), (7, 2)])
@pytest.mark.parametrize(("oh", "ow", "run"), [(1, 1, 16), (4, 3, 16), (6, 1, 100)])
def test_window(mode: int, kh: int, kw: int, oh: int, ow: int, run: int) -> None:
    found = Timed(window(mode, oh, ow, run, kh, kw))
    groups, load = math.ceil(run / W), (kh * kw + ARCH["PARAM_BYTES"]) * (mode == 0)
    work = ow * oh * kw * math.ceil(kh / ARCH["WINDOW_ROWS"])
    lost = found.stats["bank_conflict_cycles"]
    formula = groups * max(work, load)
    assert formula - load - lost <= found.busy <= formula + groups + lost
    assert found.busy >= groups * work


def test_rows_a_power_of_two_apart_do_not_meet_in_one_bank() -> None:
    for pitch in (1024, 2048, 4096):
        assert Timed(window(1, 8, 1, 64, 3, 3, pitch)).stats["bank_conflict_cycles"] <= 2


# ---- DMA ----


@pytest.mark.parametrize(
    ("run", "n", "stride", "bursts"),
    [(64, 1, 0, 1), (6400, 1, 0, 100), (65, 1, 0, 2), (10, 40, 64, 40), (16, 40, 16, 10)],
)
def test_load(run: int, n: int, stride: int, bursts: int) -> None:
    found = Timed(dma("load", run, 0, n, stride))
    assert found.start == [ISSUE + LATENCY]
    assert found.stats["dram_bytes_read"] == 64 * bursts
    lost = found.stats["bank_conflict_cycles"]
    assert bus(bursts) - bus(2) <= found.busy <= bus(bursts) + 1 + lost
    assert found.cycles == found.end[0] - 1 + PIPELINE


def test_a_store_is_complete_when_it_is_acknowledged() -> None:
    found = Timed(dma("store", 6400))
    assert found.start == [ISSUE] and found.stats["dram_bytes_written"] == 6400
    assert found.cycles == found.end[0] - 1 + LATENCY


def test_latencies_overlap_up_to_eight_requests() -> None:
    most = ARCH["DMA_IN_FLIGHT"]
    eight, nine = (Timed(*(dma("load", 64, 64 * k) for k in range(count))) for count in (most, most + 1))
    assert eight.cycles < ISSUE * most + LATENCY + bus(most) + PIPELINE + 2
    assert nine.start[most] >= nine.end[0] + LATENCY


def test_channels_share_the_bus() -> None:
    alone = Timed(dma("load", 6400))
    both = Timed(dma("load", 6400), dma("const", 6400, 16384))
    assert both.cycles >= alone.cycles + bus(100) - bus(2)
    assert both.end[0] - both.start[0] <= alone.busy + 2  # loads go before constants
