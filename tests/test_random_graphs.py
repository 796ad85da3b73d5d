"""The project's law: oracle, interpreter and simulator give the same bytes, on random graphs and every platform."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from random_graphs import graphs, random_inputs

from mera_torch import graph_text, native, oracle
from mera_torch.bisect import bisect, build
from mera_torch.errors import DoesNotFitError, InvalidModelError, UnsupportedError
from mera_torch.platform import Platform, platforms


def small(name: str, units: int, array: int, sram_kib: int) -> Platform:
    return Platform(name, units, array, 500.0, sram_kib * 1024, 8.0, 0, 16 * units, 50)


SMALL = [
    small("small16", 1, 16, 16),
    small("small16x2", 2, 16, 32),
    small("small32", 4, 32, 64),
    small("wide", 1, 128, 64),
]


def kernel_sets() -> list[str]:
    """Those that this CPU runs."""
    found = []
    for name in ("generic", "avx2", "avx512vnni"):
        with contextlib.suppress(InvalidModelError, UnsupportedError):
            native.Context(kernels=name)
            found.append(name)
    return found


TILES = st.fixed_dictionaries(
    {},
    optional={
        f"max_{what}_{side}": st.sampled_from([1, 2, 3, 7, 16])
        for what in ("tile", "acc_tile")
        for side in ("height", "width")
    },
)


def equal(wanted: Sequence[oracle.Int8], got: Sequence[oracle.Int8]) -> bool:
    return all(np.array_equal(w.reshape(-1), g.reshape(-1)) for w, g in zip(wanted, got, strict=True))


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(0, 1000), st.sampled_from(kernel_sets()))
def test_interpreter_equals_oracle(graph: oracle.Graph, seed: int, kernels: str) -> None:
    inputs = random_inputs(graph, seed)
    built = build(graph, native.Context(kernels=kernels))
    values = native.Interpreter(built).run_all(inputs)
    wanted = oracle.run_all(graph, inputs)
    for node in graph.nodes:
        assert np.array_equal(wanted[node.output], values[node.output]), bisect(built, inputs)
    assert equal([wanted[i] for i in graph.outputs], native.Interpreter(built).run(inputs))


@settings(max_examples=40, deadline=None)
@given(graphs(), st.integers(0, 1000), st.sampled_from([*platforms(), *SMALL]), TILES)
def test_simulator_equals_oracle(graph: oracle.Graph, seed: int, platform: Platform, tiles: dict[str, int]) -> None:
    inputs = random_inputs(graph, seed)
    built = build(graph)
    try:
        program = built.compile(platform, tiles)
    except DoesNotFitError:
        assert platform in SMALL, "random graphs are small"
        event(f"{platform.name}: does not fit")
        return
    event(f"{platform.name}: runs")
    assert equal(oracle.run(graph, inputs), native.Simulator(program).run(inputs)), bisect(
        built, inputs, platform, tiles
    )


@settings(max_examples=15, deadline=None)
@given(graphs(max_nodes=6))
def test_reading_what_was_printed_or_saved_gives_the_same_graph(graph: oracle.Graph) -> None:
    built = build(graph)
    text = built.text()
    assert native.Graph.parse(text).text() == text
    assert native.Graph.load(built.save()).text() == text
    again = graph_text.read(text, {name: info.attrs for name, info in native.OPS.items()})
    inputs = random_inputs(graph)
    assert equal(oracle.run(graph, inputs), oracle.run(again, inputs))


@pytest.mark.parametrize("platform", [*platforms(), *SMALL], ids=lambda p: p.name)
@settings(max_examples=3, deadline=None)
@given(graphs(max_nodes=5))
def test_program_files_hold_the_whole_program(platform: Platform, graph: oracle.Graph) -> None:
    try:
        program = build(graph).compile(platform)
    except DoesNotFitError:
        assert platform in SMALL
        return
    assert build(graph).compile(platform, {"workers": 2}).save() == program.save()
    inputs = random_inputs(graph)
    for again in (native.Program.load(program.save()), native.Program.parse(program.text())):
        assert again.text() == program.text()
        assert equal(oracle.run(graph, inputs), native.Simulator(again).run(inputs))
