"""bisect names the first node on which two rungs differ. The differences are made here: there are none to be found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mera_torch import native, oracle
from mera_torch.bisect import bisect, bisect_file, build, prefix
from mera_torch.errors import InvalidModelError
from mera_torch.graph_text import read
from mera_torch.platform import find

TEXT = """
graph "net"
tensor %0 "x" int8[1, 6, 6, 8] scale 0.1 zero 3
tensor %1 "w" int8[8, 3, 3, 8] scale 0.01 = random(1)
tensor %2 "b" int32[1, 1, 1, 8] = random(2)
tensor %3 "c" int8[1, 4, 4, 8] scale 0.2 zero -5
tensor %4 "g" int8[1, 1, 1, 8] scale 0.2 zero 0
tensor %5 "m" int8[1, 4, 4, 8] scale 0.3 zero 0
tensor %6 "y" int8[1, 2, 2, 8] scale 0.3 zero 0
input %0
input %4
%3 "conv" = conv2d(%0, %1, %2) layer "block.conv" source "net.py:3"
%5 "scale" = mul(%3, %4)
%6 "pool" = max_pool2d(%5) {kernel_h=2, kernel_w=2, stride_h=2, stride_w=2}
output %6
"""
DEFAULTS = {name: info.attrs for name, info in native.OPS.items()}
MACHINE = find("DNAF132S0001")


@pytest.fixture
def inputs() -> list[oracle.Int8]:
    rng = np.random.default_rng(0)
    return [rng.integers(-128, 128, shape).astype(np.int8) for shape in ((1, 6, 6, 8), (1, 1, 1, 8))]


def test_nothing_differs(inputs: list[oracle.Int8]) -> None:
    seen: list[tuple[int, int]] = []
    assert bisect(native.Graph.parse(TEXT), inputs, MACHINE, progress=lambda *at: seen.append(at)) is None
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_interpreter_against_oracle(inputs: list[oracle.Int8], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(call: oracle.Call) -> oracle.Int8:
        value = oracle.mul(call)
        value[0, 1, 2, 3] ^= 1
        return value

    monkeypatch.setitem(oracle.OPERATORS, "mul", wrong)
    found = bisect(native.Graph.parse(TEXT), inputs)
    assert found is not None
    assert (found.node.name, found.reference, found.rung) == ("scale", "oracle", "interpreter")
    assert (found.position, found.count, found.elements) == ((0, 1, 2, 3), 1, 128)
    assert found.wanted == found.got ^ 1
    assert "mul 'scale': interpreter differs from oracle in 1 of 128 elements, first at [0, 1, 2, 3]" in str(found)


def test_simulator_names_instructions(inputs: list[oracle.Int8], monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(native.Simulator):
        def run(self, inputs: Sequence[native.Array]) -> list[native.Int8Array]:
            values = super().run(inputs)
            if any(name == "scale" for name, *_ in self.program.nodes):
                values[0][5] ^= 1
            return values

    monkeypatch.setattr("mera_torch.native.Simulator", Wrong)
    found = bisect(native.Graph.parse(TEXT), inputs, MACHINE)
    assert found is not None
    assert (found.node.name, found.rung, found.position) == ("scale", "simulator", (0, 0, 0, 5))
    assert any("vector" in line for line in found.instructions), found.instructions


def test_prefix_keeps_only_what_a_tensor_needs() -> None:
    graph = read(TEXT, DEFAULTS)
    part, used = prefix(graph, 3)
    assert [node.name for node in part.nodes] == ["conv"] and used == [0]
    assert [tensor.name for tensor in part.tensors] == ["x", "w", "b", "c"]
    assert part.nodes[0].source == "net.py:3"
    assert build(part).outputs[0].name == "c"
    assert prefix(graph, 6)[1] == [0, 1]


def test_files(tmp_path: Path) -> None:
    graph = native.Graph.parse(TEXT)
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "graph").write_bytes(graph.save())
    (tmp_path / "program").write_bytes(graph.compile(MACHINE).save())
    assert list(bisect_file(tmp_path / "text")) == [("text", None)]
    assert list(bisect_file(tmp_path / "graph", "DNAF232S0002", seed=3)) == [("graph", None)]
    with pytest.raises(InvalidModelError, match="holds a compiled program"):
        list(bisect_file(tmp_path / "program"))
