"""The text of stage "lower": it parses back to what it printed, and the later stages run from it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import graphs

from mera_torch import native, oracle
from mera_torch.bisect import build
from mera_torch.errors import DoesNotFitError, InvalidModelError
from mera_torch.platform import Platform, find

TINY = Platform("tiny", 2, 16, 500.0, 32 * 1024, 8.0)
SMALL = """layers 1
buffer 0 dram "constants" 64 bytes
buffer 1 dram "x" 64 bytes
buffer 2 dram "y" 64 bytes
buffer 3 stage "x" 64 bytes load 0
job 0 layer 0 dram@1 sram@3: load.load run=64 n0=1 n1=1 n2=1
job 1 layer 0 dram@2 sram@3: store.store run=64 n0=1 n1=1 n2=1
"""


@settings(max_examples=30, deadline=None)
@given(graphs(max_nodes=8), st.sampled_from([TINY, find("SAKURA_1"), find("DNAF132S0001")]))
def test_text_and_back(graph: oracle.Graph, platform: Platform) -> None:
    built = build(graph)
    try:
        text = built.dump("lower", platform)
    except DoesNotFitError:
        return
    assert native.compile_text(text, platform, "lower") == text


@pytest.mark.parametrize("platform", ["SAKURA_1", "DNAF132S0001"])
def test_scheduling_the_text_gives_the_compilers_schedule(platform: str) -> None:
    graph = native.Graph("g")
    x, y = graph.tensor("x", (1, 12, 12, 24)), graph.tensor("y", (1, 12, 12, 24))
    for tensor in (x, y):
        graph.quantize(tensor, 0.1, 0)
    graph.input(x)
    graph.node(
        "max_pool2d",
        [x],
        y,
        {"kernel_h": 3, "kernel_w": 3, "pad_top": 1, "pad_bottom": 1, "pad_left": 1, "pad_right": 1},
        name="p",
    )
    graph.output(y)
    graph.finish()
    machine = find(platform)
    assert native.compile_text(graph.dump("lower", machine), machine) == graph.dump("schedule", machine)


def test_a_program_by_hand_gets_its_wait() -> None:
    code = native.compile_text(SMALL, TINY)
    assert "store.store wait load>=1" in code


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "run=64 n0=1 n1=1 n2=1\njob 1",
            "run=65 n0=1 n1=1 n2=1\njob 1",
            r"job 0 \(load\): 'dram' reaches bytes \[0, 65\)",
        ),
        ("sram@3: load", "sram@9: load", "line 6"),
        ("layer 0", "layer 4", "line 6"),
        ("load 0", "load 1", "is loaded by job 1, which is no load"),
        ("load.load", "array7.load", "line 6: no queue is named 'array7'|the platform has no such queue"),
        ("buffer 3", "buffer 4", "line 5.*numbered one after the other"),
        ("stage", "heap", "line 5"),
    ],
)
def test_mistakes_name_their_line(old: str, new: str, message: str) -> None:
    with pytest.raises(InvalidModelError, match=message):
        native.compile_text(SMALL.replace(old, new, 1), TINY)
