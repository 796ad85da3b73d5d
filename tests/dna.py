"""Shared by the tests of compiler and program: small machines, small graphs as text, and their code."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from mera_torch import native
from mera_torch.platform import Platform


def machine(units: int = 1, array: int = 16, sram_kib: int = 64, **other: float) -> Platform:
    """A machine small enough that small graphs meet its limits."""
    values: dict[str, float] = {"clock_mhz": 500.0, "dram_gbps": 8.0, "dram_latency_cycles": 50, **other}
    return Platform(f"m{units}x{array}", units, array, sram_bytes=sram_kib * 1024, **values)  # type: ignore[arg-type]


def graph(text: str) -> native.Graph:
    """Tensors %0, %1, ... in order; quantization scale 0.1 zero 3 unless it is given or the tensor is constant."""
    lines = ['graph "test"']
    for line in text.strip().splitlines():
        line = line.strip()
        if line.startswith("tensor") and "scale" not in line and "=" not in line:
            line += " scale 0.1 zero 3"
        lines.append(line)
    return native.Graph.parse("\n".join(lines))


def inputs(built: native.Graph, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(-128, 128, t.shape).astype(np.int8) for t in built.inputs]


def same_bytes(built: native.Graph, program: native.Program, seed: int = 0) -> bool:
    """Whether the program's simulation gives what the interpreter gives."""
    given = inputs(built, seed)
    wanted = native.Interpreter(built).run(given)
    got = native.Simulator(program).run(given)
    return all(np.array_equal(w.reshape(-1), g) for w, g in zip(wanted, got, strict=True))


def opcodes(program: native.Program) -> list[str]:
    """The instruction of each line of code."""
    return [line.split()[0].split(".")[1] for line in code(program)]


def code(program: native.Program) -> list[str]:
    return program.text().partition("\ncode\n")[2].partition("\nconstants ")[0].splitlines()


def fields(line: str) -> Mapping[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(-?\d+)", line.partition(";")[0]) if value}


def convolution(n: int = 1, h: int = 8, w: int = 8, ci: int = 16, co: int = 16, k: int = 3) -> str:
    """x -> conv k x k, padded, -> y: tensors %0 x, %1 weights, %2 bias, %3 y."""
    p = k // 2
    return f"""
    tensor %0 "x" int8[{n}, {h}, {w}, {ci}]
    tensor %1 "w" int8[{co}, {k}, {k}, {ci}] scale 0.01 = random(1)
    tensor %2 "b" int32[1, 1, 1, {co}] = random(2)
    tensor %3 "y" int8[{n}, {h}, {w}, {co}]
    input %0
    %3 "conv" = conv2d(%0, %1, %2) {{pad_top={p}, pad_bottom={p}, pad_left={p}, pad_right={p}}}
        layer "net.conv" source "net.py:3"
    output %3
    """


RESIDUAL_NET = """
tensor %0 "x" int8[1, 10, 9, 16]
tensor %1 "w1" int8[16, 3, 3, 16] scale 0.01 = random(1)
tensor %2 "b1" int32[1, 1, 1, 16] = random(2)
tensor %3 "y1" int8[1, 10, 9, 16]
tensor %4 "sum" int8[1, 10, 9, 16] scale 0.15 zero -5
tensor %5 "w2" int8[16, 3, 3, 1] scale 0.01 = random(3)
tensor %6 "b2" int32[1, 1, 1, 16] = random(4)
tensor %7 "y2" int8[1, 5, 5, 16]
tensor %8 "pool" int8[1, 1, 1, 16]
input %0
%3 "conv" = conv2d(%0, %1, %2) {pad_top=1, pad_bottom=1, pad_left=1, pad_right=1} layer "net.conv" source "net.py:3"
%4 "add" = add(%3, %0) {clamp_min=-5} layer "net.add"
%7 "depthwise" = conv2d(%4, %5, %6)
    {stride_h=2, stride_w=2, pad_top=1, pad_bottom=1, pad_left=1, pad_right=1, groups=16}
%8 "mean" = mean(%7)
output %8
"""
