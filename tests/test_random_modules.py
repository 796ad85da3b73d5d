"""The law from PyTorch on: each operator of the eager q/dq module at most 1 step from the interpreter, and on the whole
regions oracle = interpreter = simulator, byte for byte. Random networks."""

from __future__ import annotations

import random

import numpy as np
import pytest
from compiled import built, quantized, steps_apart_by_node
from random_graphs import random_inputs
from random_modules import random_module
from torch import Tensor, nn

from mera_torch import graph_text, native, oracle
from mera_torch.platform import Platform, platforms

SEEDS = [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 80))]
MACHINES = [*platforms(), Platform("small", 2, 16, 500.0, 96 * 1024, 8.0)]


def check(module: nn.Module, data: Tensor, seed: int) -> None:
    converted = quantized(module, data)
    result = built(converted, data)
    assert result.regions, "nothing runs on the DNA"
    if len(result.regions) == 1:
        worst = steps_apart_by_node(converted, data)
        assert max(worst.values()) <= 1, worst
    for region in result.regions:
        model = graph_text.read(region.graph.text(), {name: info.attrs for name, info in native.OPS.items()})
        inputs = random_inputs(model, seed)
        wanted = oracle.run(model, inputs)
        machine = random.Random(seed).choice(MACHINES)
        found = native.Interpreter(region.graph).run(inputs)
        simulated = native.Simulator(region.graph.compile(machine)).run(inputs)
        for rung, values in (("interpreter", found), (f"simulator of {machine.name}", simulated)):
            for w, v in zip(wanted, values, strict=True):
                assert np.array_equal(w.reshape(-1), v.reshape(-1)), f"the {rung} differs from the oracle"


@pytest.mark.parametrize("seed", SEEDS)
def test_random_module(seed: int) -> None:
    check(*random_module(seed), seed)
