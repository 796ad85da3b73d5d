"""Control flow: If whose condition is constant; Loop and Scan whose number of turns is, unrolled."""

from __future__ import annotations

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten

MOST_TURNS = 1024
"""Turns of a loop that are unrolled."""


@converts("onnx", "If")
def if_(g: OnnxBuilder, node: OnnxNode) -> Value:
    branch = "then_branch" if g.number(node.require(0), "condition (the DNA has no branches)") else "else_branch"
    return tuple(g.subgraph(node.graph(branch), []))


@converts("onnx", "Loop")
def loop(g: OnnxBuilder, node: OnnxNode) -> Value:
    trips, condition, *carried = (*node.inputs, None, None)[: max(2, len(node.inputs))]
    body = node.graph("body")
    count = len(carried)
    most = MOST_TURNS + 1 if trips is None else int(g.number(trips, "trip count"))
    going = condition is None or bool(g.number(condition, "condition"))
    scanned: list[list[Value]] = [[] for _ in range(len(body.output) - 1 - count)]
    turn = 0
    while going and turn < most:
        if turn >= MOST_TURNS:
            raise g.unsupported(f"it has more turns than the {MOST_TURNS} that are unrolled")
        again = torch.tensor(True)
        results = g.subgraph(body, [torch.tensor(turn), again, *carried])
        if results[0] is again and most > MOST_TURNS:  # nothing ends it but its trip count
            raise g.unsupported(f"it has {most} turns, and at most {MOST_TURNS} are unrolled")
        going = bool(g.number(results[0], "condition (the DNA has no branches)"))
        carried = results[1 : 1 + count]
        for values, value in zip(scanned, results[1 + count :], strict=True):
            values.append(value)
        turn += 1
    return (*carried, *(_stack(g, values, 0) for values in scanned))


@converts("onnx", "Scan", since=9)
def scan(g: OnnxBuilder, node: OnnxNode) -> Value:
    body = node.graph("body")
    scans = node.int("num_scan_inputs")
    states, sequences = list(node.inputs[: len(node.inputs) - scans]), node.inputs[len(node.inputs) - scans :]
    if not 1 <= scans <= len(node.inputs) or any(value is None for value in node.inputs):
        raise g.invalid(f"num_scan_inputs is {scans}, and it has {len(node.inputs)} inputs")
    results = len(body.output) - len(states)
    in_axes, out_axes = node.ints("scan_input_axes", [0] * scans), node.ints("scan_output_axes", [0] * results)
    in_back = node.ints("scan_input_directions", [0] * scans)
    out_back = node.ints("scan_output_directions", [0] * results)
    if not (len(in_axes) == len(in_back) == scans and len(out_axes) == len(out_back) == results):
        raise g.invalid("its axes and directions must be one for each scanned input and output")
    turns = {_length(g, value, axis) for value, axis in zip(sequences, in_axes, strict=True)}
    if len(turns) != 1:
        raise g.invalid(f"its scanned inputs have different lengths {sorted(turns)}")
    (count,) = turns
    if count > MOST_TURNS:
        raise g.unsupported(f"it has {count} turns, and at most {MOST_TURNS} are unrolled")
    scanned: list[list[Value]] = [[] for _ in range(results)]
    for turn in range(count):
        items = [
            g.call(aten.select.int, value, axis, count - 1 - turn if back else turn)
            for value, axis, back in zip(sequences, in_axes, in_back, strict=True)
        ]
        found = g.subgraph(body, [*states, *items])
        states = found[: len(states)]
        for values, value in zip(scanned, found[len(states) :], strict=True):
            values.append(value)
    outputs = [
        _stack(g, values[::-1] if back else values, axis)
        for values, axis, back in zip(scanned, out_axes, out_back, strict=True)
    ]
    return (*states, *outputs)


def _length(g: OnnxBuilder, value: Value, axis: int) -> int:
    sizes = shape(value)
    if not -len(sizes) <= axis < len(sizes):
        raise g.invalid(f"its scan axis {axis} is out of range for shape {list(sizes)}")
    return sizes[axis]


def _stack(g: OnnxBuilder, values: list[Value], axis: int) -> Value:
    if not values:
        raise g.unsupported("it has no turns, so that the shape of its scanned output is not known")
    if len({shape(v) for v in values}) != 1 or len({dtype(v) for v in values}) != 1:
        raise g.unsupported("the shape of its scanned output changes from turn to turn")
    return g.call(aten.stack.default, values, axis)
