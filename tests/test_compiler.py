"""The compiler: what it promises to fuse, to keep in SRAM and not to copy; tiny memories; options; errors."""

from __future__ import annotations

import random
import re

import pytest
from dna import RESIDUAL_NET, code, convolution, fields, graph, inputs, machine, opcodes, same_bytes
from random_graphs import GraphBuilder, random_graph

from mera_torch import errors, native
from mera_torch.bisect import build
from mera_torch.platform import Platform

BIG = machine(units=2, array=32, sram_kib=1024)


def stats(program: native.Program) -> dict[str, int]:
    return native.Simulator(program).stats()


def bursts(bytes_: int) -> int:
    """Bytes rounded up to DRAM's bursts."""
    return -(-bytes_ // 64) * 64


# ---- what costs nothing ----


def test_residual_add_and_table_ride_on_the_convolution() -> None:
    built = graph(
        convolution().replace("output %3", "")
        + """
        tensor %4 "sum" int8[1, 8, 8, 16] scale 0.2 zero 1
        tensor %5 "table" int8[1, 1, 1, 256] = random(9)
        tensor %6 "out" int8[1, 8, 8, 16]
        %4 "add" = add(%3, %0)
        %6 "act" = lut(%4, %5)
        output %6
        """
    )
    program = built.compile(BIG)
    assert set(opcodes(program)) <= {"load", "store", "conv", "sync"}
    convolutions = [fields(line) for line in code(program) if ".conv" in line]
    assert all(f["add"] == 1 and f["lut"] == 1 for f in convolutions if f.get("last"))
    assert same_bytes(built, program)


@pytest.mark.parametrize("op", ["add", "sub"])
@pytest.mark.parametrize("swapped", [False, True])
def test_either_operand_may_be_the_residual(op: str, swapped: bool) -> None:
    operands = "%0, %3" if swapped else "%3, %0"
    built = graph(
        convolution().replace("output %3", "")
        + f"""
        tensor %4 "sum" int8[1, 8, 8, 16] scale 0.2 zero 1
        %4 "join" = {op}({operands}) {{clamp_min=1}}
        output %4
        """
    )
    program = built.compile(BIG)
    assert "vector" not in opcodes(program)
    assert same_bytes(built, program)


CONCAT = """
tensor %0 "x" int8[1, 6, 7, 8]
tensor %1 "w1" int8[16, 1, 1, 8] scale 0.01 = random(1)
tensor %2 "b1" int32[1, 1, 1, 16] = random(2)
tensor %3 "y1" int8[1, 6, 7, 16]
tensor %4 "w2" int8[8, 3, 3, 8] scale 0.01 = random(3)
tensor %5 "b2" int32[1, 1, 1, 8] = random(4)
tensor %6 "y2" int8[1, 6, 7, 8]
tensor %7 "all" int8[1, 6, 7, 24]
tensor %8 "part" int8[1, 3, 7, 8]
tensor %9 "out" int8[1, 3, 7, 8]
input %0
%3 "conv1" = conv2d(%0, %1, %2)
%6 "conv2" = conv2d(%0, %4, %5) {pad_top=1, pad_bottom=1, pad_left=1, pad_right=1}
%7 "concat" = concat(%3, %6)
%8 "slice" = slice(%7) {begin_h=1, step_h=2, begin_c=12}
%9 "pool" = max_pool2d(%8)
output %9
"""


def test_concat_and_slice_are_addresses() -> None:
    built = graph(CONCAT)
    program = built.compile(BIG)
    assert "vector" not in opcodes(program)
    assert all(line.endswith("; node 4") for line in code(program) if ".window" in line)
    dump = built.dump("fuse", BIG)
    assert re.search(r'view concat "concat"', dump) and re.search(r'view slice "slice"', dump)
    assert same_bytes(built, program)


def test_dense_blocks_are_free_of_copies() -> None:
    """Concatenations of concatenations, as DenseNet has them: every layer writes where the last one wants it."""
    lines = ['tensor %0 "x" int8[1, 5, 5, 8]', "input %0"]
    growing, channels, index = ["%1"], 8, 2
    lines += ['tensor %1 "stem" int8[1, 5, 5, 8]', '%1 "stem" = max_pool2d(%0)']
    previous = "%1"
    for step in range(3):
        lines += [
            f'tensor %{index} "w{step}" int8[8, 1, 1, {channels}] scale 0.01 = random({step})',
            f'tensor %{index + 1} "b{step}" int32[1, 1, 1, 8] = random(7)',
            f'tensor %{index + 2} "y{step}" int8[1, 5, 5, 8]',
            f'%{index + 2} "conv{step}" = conv2d({previous}, %{index}, %{index + 1})',
        ]
        growing.append(f"%{index + 2}")
        channels += 8
        previous = f"%{index + 3}"
        lines += [
            f'tensor {previous} "cat{step}" int8[1, 5, 5, {channels}]',
            f'{previous} "cat{step}" = concat({", ".join(growing)})',
        ]
        index += 4
    lines += [
        f'tensor %{index} "out" int8[1, 1, 1, {channels}]',
        f'%{index} "mean" = mean({previous})',
        f"output %{index}",
    ]
    built = graph("\n".join(lines))
    program = built.compile(BIG)
    assert "vector" not in opcodes(program)
    assert same_bytes(built, program)


def test_a_chain_of_convolutions_stays_in_sram() -> None:
    """DRAM moves the input, the constants and the output, each once."""
    built = graph(
        """
        tensor %0 "x" int8[1, 9, 7, 16]
        tensor %1 "w1" int8[32, 1, 1, 16] scale 0.01 = random(1)
        tensor %2 "b1" int32[1, 1, 1, 32] = random(2)
        tensor %3 "y1" int8[1, 9, 7, 32]
        tensor %4 "w2" int8[24, 1, 1, 32] scale 0.01 = random(3)
        tensor %5 "b2" int32[1, 1, 1, 24] = random(4)
        tensor %6 "y2" int8[1, 9, 7, 24]
        input %0
        %3 "conv1" = conv2d(%0, %1, %2)
        %6 "conv2" = conv2d(%3, %4, %5)
        output %6
        """
    )
    program = built.compile(BIG)
    found = stats(program)
    assert found["dram_bytes_written"] == bursts(9 * 7 * 24)
    weights = 32 * 16 + 24 * 32 + 9 * (32 + 24)
    assert found["dram_bytes_read"] <= bursts(9 * 7 * 16) + weights + 64 * 8
    assert found["macs"] == 9 * 7 * (16 * 32 + 32 * 24)
    assert same_bytes(built, program)


def test_depthwise_lanes_run_across_pixels() -> None:
    """8 channels on an array of 32: a row of 16 pixels is 4 words, not 16."""
    built = graph(
        """
        tensor %0 "x" int8[1, 16, 16, 8]
        tensor %1 "w" int8[8, 3, 3, 1] scale 0.01 = random(1)
        tensor %2 "b" int32[1, 1, 1, 8] = random(2)
        tensor %3 "y" int8[1, 16, 16, 8]
        input %0
        %3 "depthwise" = conv2d(%0, %1, %2) {pad_top=1, pad_bottom=1, pad_left=1, pad_right=1, groups=8}
        output %3
        """
    )
    program = built.compile(BIG)
    assert {fields(line)["run"] for line in code(program) if ".window" in line} == {128}
    assert same_bytes(built, program)


def test_work_is_spread_over_all_units() -> None:
    built = graph(convolution(h=16, w=16, ci=32, co=64))
    for units in (1, 2, 3, 5, 8):
        program = built.compile(machine(units, array=16, sram_kib=256))
        assert len({line.split(".")[0] for line in code(program) if ".conv" in line}) == units
        assert same_bytes(built, program)


def test_every_instruction_belongs_to_its_layer() -> None:
    program = graph(RESIDUAL_NET).compile(BIG)
    assert [(name, op, layer) for name, op, layer, _ in program.nodes] == [
        ("conv", "conv2d", "net.conv"),
        ("add", "add", "net.add"),
        ("depthwise", "conv2d", ""),
        ("mean", "mean", ""),
    ]
    assert all("; node " in line for line in code(program))
    rows = native.Simulator(program).layers()
    assert sum(row["dram_bytes_read"] for row in rows) == stats(program)["dram_bytes_read"]
    assert sum(row["macs"] for row in rows) == stats(program)["macs"]


# ---- SRAM too small for the tensors ----

WIDE_NETS = {
    "conv": convolution(n=4, h=20, w=12, ci=16, co=24),
    "pointwise": convolution(n=4, h=24, w=16, ci=24, co=16, k=1),
    "large kernel": convolution(h=24, w=24, ci=16, co=8, k=7),
    "residual": RESIDUAL_NET.replace("10, 9, 16", "30, 40, 16").replace("5, 5, 16", "15, 20, 16"),
    "concat": CONCAT.replace("6, 7,", "40, 30,").replace("3, 7,", "20, 30,"),
    "broadcast": """
        tensor %0 "x" int8[4, 20, 20, 24]
        tensor %1 "mean" int8[4, 1, 1, 24]
        tensor %2 "y" int8[4, 20, 20, 24]
        input %0
        %1 "mean" = mean(%0)
        %2 "mul" = mul(%0, %1)
        output %2
        """,
    "movement": f"""
        tensor %0 "x" int8[4, 20, 10, 16]
        tensor %1 "pad" int8[4, 23, 11, 18]
        tensor %2 "up" int8[4, 46, 22, 18]
        tensor %3 "turned" int8[4, 22, 46, 18]
        tensor %4 "flat" int8[4, 1, 46, 396]
        tensor %5 "rows" int32[1, 1, 1, 46] = list({", ".join(str(i // 2) for i in range(46))})
        tensor %6 "columns" int32[1, 1, 1, 22] = list({", ".join(str(i // 2) for i in range(22))})
        input %0
        %1 "pad" = pad(%0) {{pad_top=1, pad_bottom=2, pad_left=1, pad_channel_after=2, value=3}}
        %2 "resize" = resize_nearest(%1, %5, %6)
        %3 "transpose" = transpose(%2) {{perm_1=2, perm_2=1}}
        %4 "reshape" = reshape(%3)
        output %4
        """.replace("[4, 1, 46, 396]", "[4, 22, 1, 828]"),
    "pools": """
        tensor %0 "x" int8[4, 30, 30, 16]
        tensor %1 "max" int8[4, 15, 15, 16]
        tensor %2 "avg" int8[4, 15, 15, 16]
        tensor %3 "sub" int8[4, 15, 15, 16]
        input %0
        %1 "max" = max_pool2d(%0) {kernel_h=3, kernel_w=3, stride_h=2, stride_w=2, pad_top=1, pad_left=1}
        %2 "avg" = avg_pool2d(%1) {kernel_h=3, kernel_w=3, pad_top=1, pad_bottom=1, pad_left=1, pad_right=1}
        %3 "sub" = sub(%1, %2)
        output %3
        """,
}


@pytest.mark.parametrize("name", list(WIDE_NETS))
@pytest.mark.parametrize("sram_kib", [16, 24, 64])
def test_tensors_larger_than_sram_live_in_dram(name: str, sram_kib: int) -> None:
    built = graph(WIDE_NETS[name])
    platform = machine(units=2, array=16, sram_kib=sram_kib)
    program = built.compile(platform)
    assert program.sram_peak_bytes <= platform.sram_bytes
    if sram_kib == 16:
        assert re.search(r"root \d+ .* dram", built.dump("tile", platform))
    assert same_bytes(built, program)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_on_tiny_memories(seed: int) -> None:
    rng = random.Random(seed)
    builder = GraphBuilder(rng, max_elements=8000)
    builder.input((rng.choice([1, 4]), rng.randint(8, 20), rng.randint(8, 20), rng.choice([3, 8, 16, 19])))
    kinds = ("convolution", "depthwise", "elementwise", "pool", "join", "table", "residual", "cut", "resize", "pad")
    from random_graphs import OPERATORS

    while len(builder.graph.nodes) < 5:
        OPERATORS[rng.choice(kinds)][1](builder, builder.pick())
    built = build(builder.finish())
    ran = 0
    for sram_kib in (16, 32, 64, 512):
        try:
            program = built.compile(machine(units=1 + seed % 3, array=16, sram_kib=sram_kib))
        except errors.DoesNotFitError:
            continue
        assert same_bytes(built, program, seed), sram_kib
        ran += 1
    assert ran


@pytest.mark.parametrize("width", [64, 300])
@pytest.mark.parametrize("channels", [16, 64, 200])
@pytest.mark.parametrize("array", [16, 64])
def test_what_does_not_fit_says_what_would(width: int, channels: int, array: int) -> None:
    built = graph(convolution(h=8, w=width, ci=channels, co=64))
    with pytest.raises(errors.DoesNotFitError) as caught:
        built.compile(machine(array=array, sram_kib=4))
    message = str(caught.value)
    assert message.startswith("conv2d 'conv' (layer 'net.conv', net.py:3): no tiling fits")
    assert f"needs more than the 4096 bytes of SRAM of platform m1x{array}" in message
    enough = re.search(r"\((\d+) bytes of SRAM would do\)", message)
    assert enough, message
    assert same_bytes(built, built.compile(machine(array=array, sram_kib=int(enough[1]) // 1024)))


# ---- options ----


@pytest.mark.parametrize(
    "options",
    [
        {"max_tile_height": 3},
        {"max_tile_width": 5},
        {"max_acc_tile_height": 2},
        {"max_acc_tile_width": 3},
        {"max_tile_height": 1, "max_tile_width": 1, "max_acc_tile_height": 1, "max_acc_tile_width": 1},
        {"workers": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("sram_kib", [16, 256])
def test_options_change_no_bytes(options: dict[str, int], sram_kib: int) -> None:
    for text in (RESIDUAL_NET, WIDE_NETS["conv"]):
        built = graph(text)
        assert same_bytes(built, built.compile(machine(units=2, sram_kib=sram_kib), options))


def test_options_limit_the_tiles() -> None:
    built = graph(convolution(h=20, w=20))
    for name, limit, field in (
        ("max_acc_tile_height", 2, "oh"),
        ("max_acc_tile_width", 7, "ow"),
        ("max_tile_width", 6, "ow"),
    ):
        program = built.compile(machine(sram_kib=256), {name: limit})
        assert max(fields(line)[field] for line in code(program) if ".conv" in line) <= limit
    tall = graph(convolution(h=30, w=30)).compile(machine(sram_kib=16), {"max_tile_height": 2})
    assert max(fields(line)["run"] for line in code(tall) if line.startswith("store.store")) == 2 * 30 * 16


def test_workers_do_not_change_the_program() -> None:
    built = build(random_graph(random.Random(5), nodes=8))
    assert built.compile(BIG).save() == built.compile(BIG, {"workers": 4}).save()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tile_hight": 1}, "did you mean 'max_tile_height'"),
        ({"max_tile_height": -1}, "option max_tile_height must be 0 to"),
        ({"mode": 2}, "option mode must be 0 to 1, got 2"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(errors.MeraError, match=message):
        graph(convolution()).compile(BIG, options)


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(errors.InvalidModelError, match="no stage is named 'ast'; there are graph, fuse, tile"):
        graph(convolution()).dump("ast", BIG)


# ---- the machine's numbers ----


def test_traffic_and_time_obey_the_machine() -> None:
    """Bounds that follow from docs/hardware.md, whatever the schedule."""
    for seed in range(6):
        built = build(random_graph(random.Random(seed), nodes=5))
        platform: Platform = machine(units=2, array=32, sram_kib=512)
        program = built.compile(platform)
        found = stats(program)
        assert found["cycles"] >= found["macs"] / platform.macs_per_cycle
        moved = found["dram_bytes_read"] + found["dram_bytes_written"]
        assert found["cycles"] >= moved / platform.dram_bytes_per_cycle - 64
        assert found["dram_bytes_written"] >= sum(program.output_bytes)
        assert found["sram_peak_bytes"] == program.sram_peak_bytes <= platform.sram_bytes
        assert found["array_busy_cycles"] <= platform.units * found["cycles"]
        assert found["instructions"] == program.instruction_count == len(code(program))


def test_cycles_follow_the_formula() -> None:
    """One convolution alone on one unit: 9 kernel taps in 3 runs of 48 bytes, 64 pixels in two tiles, 16 channels."""
    built = graph(convolution())
    events = native.Simulator(built.compile(machine())).events()
    conv = events[[native.instruction_names()[op] == "conv" for op in events["opcode"]]]
    assert len(conv) == 2
    busy = int(conv["end_cycle"][1] - conv["start_cycle"][0])
    assert busy - int(conv["stall_cycles"].sum()) <= 3 * 3 * 2 * max(32, 8) <= busy


def test_compiling_again_gives_the_same_program() -> None:
    built = build(random_graph(random.Random(11), nodes=8))
    assert built.compile(BIG).save() == native.Graph.load(built.save()).compile(BIG).save()
    given = inputs(built)
    first, second = native.Simulator(built.compile(BIG)), native.Simulator(built.compile(BIG))
    assert first.stats() == second.stats()
    assert all((a == b).all() for a, b in zip(first.run(given), first.run(given), strict=True))
