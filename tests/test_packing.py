"""Convolutions of few output channels compute several pixels at once: where, what that saves, and the same bytes."""

from __future__ import annotations

import pytest
from dna import code, convolution, fields, graph, machine, same_bytes

from mera_torch import native
from mera_torch.platform import Platform

WIDE = machine(units=2, array=64, sram_kib=2048, dram_gbps=64.0)


def columns(program: native.Program) -> set[int]:
    """How many columns of the array the convolutions fill."""
    return {fields(line)["co"] for line in code(program) if ".conv" in line}


def array_cycles(built: native.Graph, platform: Platform = WIDE) -> int:
    return int(native.Simulator(built.compile(platform)).stats()["array_busy_cycles"])


@pytest.mark.parametrize(("co", "pixels"), [(32, 2), (16, 4), (24, 2), (8, 8), (33, 1), (64, 1)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_as_many_pixels_as_pay(co: int, pixels: int, k: int) -> None:
    built = graph(convolution(h=24, w=48, ci=32, co=co, k=k))
    program = built.compile(WIDE)
    found = columns(program)
    assert all(filled % co == 0 and co <= filled <= pixels * co for filled in found)
    assert (found == {co}) == (pixels == 1)
    assert same_bytes(built, program)


def test_two_pixels_of_32_channels_take_the_time_of_the_wider_run() -> None:
    """Kernel rows of 3 x 32 bytes, two steps; those of two pixels 4 x 32 bytes, two steps as well: half the cycles."""
    even, odd = (graph(convolution(h=32, w=w, ci=32, co=32)) for w in (64, 63))
    assert array_cycles(even) == 3 * 2 * 32 * 64 // 2
    assert array_cycles(odd) >= 3 * 2 * 32 * 63


@pytest.mark.parametrize("width", [7, 30, 31])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_every_geometry_gives_the_same_bytes(width: int, stride: int, dilation: int) -> None:
    out = (width + 2 - dilation * 2 - 1) // stride + 1
    built = graph(f"""
    tensor %0 "x" int8[2, {width + 2}, {width}, 11]
    tensor %1 "w" int8[13, 3, 3, 11] scale 0.01 = random(1)
    tensor %2 "b" int32[1, 1, 1, 13] = random(2)
    tensor %3 "y" int8[2, {(width + 4 - dilation * 2 - 1) // stride + 1}, {out}, 13]
    tensor %4 "table" int8[1, 1, 1, 256] = random(3)
    tensor %5 "z" int8[2, {(width + 4 - dilation * 2 - 1) // stride + 1}, {out}, 13]
    input %0
    %3 "conv" = conv2d(%0, %1, %2) {{pad_top=1, pad_bottom=1, pad_left=1, pad_right=1, stride_h={stride},
        stride_w={stride}, dilation_h={dilation}, dilation_w={dilation}}}
    %5 "act" = lut(%3, %4)
    output %5
    """)
    for platform in (WIDE, machine(units=3, array=128, sram_kib=512), machine(array=32, sram_kib=8)):
        assert same_bytes(built, built.compile(platform))


def test_the_residual_is_read_for_all_pixels() -> None:
    built = graph(
        convolution(h=16, w=16, ci=32, co=32).replace("output %3", "")
        + """
        tensor %4 "sum" int8[1, 16, 16, 32] scale 0.2 zero 1
        %4 "add" = add(%3, %0)
        output %4
        """
    )
    program = built.compile(WIDE)
    assert columns(program) == {64}
    assert all(fields(line)["add"] == 1 for line in code(program) if ".conv" in line)
    assert same_bytes(built, program)


CONCAT = """
tensor %0 "x" int8[1, {side}, {side}, 64]
tensor %1 "w" int8[32, 3, 3, 64] scale 0.01 = random(1)
tensor %2 "b" int32[1, 1, 1, 32] = random(2)
tensor %3 "y" int8[1, {side}, {side}, 32]
tensor %4 "two" int8[1, {side}, {side}, 96]
tensor %5 "v" int8[32, 3, 3, 32] scale 0.01 = random(3)
tensor %6 "c" int32[1, 1, 1, 32] = random(4)
tensor %7 "z" int8[1, {side}, {side}, 32]
tensor %8 "three" int8[1, {side}, {side}, 128]
input %0
%3 "first" = conv2d(%0, %1, %2) {{pad_top=1, pad_bottom=1, pad_left=1, pad_right=1}}
%4 "join" = concat(%0, %3) {{axis=3}}
%7 "second" = conv2d(%3, %5, %6) {{pad_top=1, pad_bottom=1, pad_left=1, pad_right=1}}
%8 "join again" = concat(%0, %3, %7) {{axis=3}}
output %4
output %8
"""


def test_a_concatenation_copies_what_was_worth_packing() -> None:
    """Large images: packed and copied; small ones are written straight into the concatenation, one by one."""
    for side, filled in ((64, {64}), (8, {32})):
        built = graph(CONCAT.format(side=side))
        program = built.compile(WIDE)
        assert columns(program) == filled
        assert same_bytes(built, program)
