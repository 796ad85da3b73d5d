"""The estimate of energy and power: it follows from counters, adds up, and says that it is an estimate."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from random_graphs import random_graph

from mera_torch import energy, native
from mera_torch.bisect import build
from mera_torch.errors import ConfigError
from mera_torch.platform import Platform, find, platforms


def region(seed: int, platform: Platform) -> Any:
    """What power_metrics needs of a DnaRegion."""
    program = build(random_graph(random.Random(seed), 8)).compile(platform)
    return SimpleNamespace(name=f"region_{seed}", program=program, simulator=native.Simulator(program))


@pytest.mark.parametrize("name", ["SAKURA_1", "DNAF132S0001"])
@pytest.mark.parametrize("windows", [1, 7, 100])
def test_power_over_windows_adds_up_to_the_energy_of_the_counters(name: str, windows: int) -> None:
    platform = find(name)
    regions = [region(seed, platform) for seed in (1, 2)]
    found = energy.power_metrics(regions, platform, windows)
    model, stats = energy.energy_model(platform), [r.simulator.stats() for r in regions]
    cycles = sum(s["cycles"] for s in stats)
    assert found.watts.shape == (windows, 3) and found.duration == pytest.approx(cycles / (platform.clock_mhz * 1e6))
    joules = found.watts.T @ found.seconds
    words = sum(s["sram_words_read"] + s["sram_words_written"] for s in stats)
    for value, rail, counted in zip(
        joules,
        energy.RAILS,
        (
            sum(s["macs"] for s in stats) * model.mac,
            words * model.sram_word,
            sum(s["dram_bytes_read"] + s["dram_bytes_written"] for s in stats) * model.dram_byte,
        ),
        strict=True,
    ):
        assert value == pytest.approx(counted * 1e-12 + model.idle[rail] * found.duration)
    assert found.energy_mj == pytest.approx(1e3 * joules.sum())


def test_no_window_draws_less_than_an_idle_platform() -> None:
    platform = find("SAKURA_1")
    found = energy.power_metrics([region(3, platform)], platform)
    idle = energy.energy_model(platform).idle
    assert (found.watts >= [idle[rail] * (1 - 1e-9) for rail in energy.RAILS]).all()
    raw = found.report_raw
    for row in raw.values():
        assert set(row) == {"avg", "min", "max", "median"}
        assert 0 < row["min"] <= row["median"] <= row["max"] and row["min"] <= row["avg"] <= row["max"]
    assert json.loads(json.dumps(raw)) == raw


def test_it_is_marked_as_an_estimate() -> None:
    found = energy.power_metrics([region(4, find("SAKURA_1"))], find("SAKURA_1"))
    assert found.to_dict()["estimate"] is True and "estimate" in found.report and str(found) == found.report


def test_windows_are_at_least_one() -> None:
    with pytest.raises(ConfigError, match="windows must be at least 1, got 0"):
        energy.power_metrics([], find("SAKURA_1"), 0)


def test_a_mean_and_a_median_weigh_windows_by_their_length() -> None:
    raw = energy._summary(np.array([4.0, 1.0, 2.0]), np.array([8.0, 1.0, 1.0]))
    assert raw == {"avg": 3.5, "min": 1.0, "max": 4.0, "median": 4.0}


def test_models_of_platforms() -> None:
    models = {row.name: energy.energy_model(row) for row in platforms()}
    assert models["SAKURA_1"].technology == "ASIC, 12 nm" and models["DNAF200L0003"].technology == "FPGA, 16 nm"
    assert models["DNAF200L0003"].mac > 5 * models["SAKURA_1"].mac
    for row in platforms():
        model, seconds = models[row.name], 1 / (row.clock_mhz * 1e6)
        arithmetic = row.macs_per_cycle * model.mac * 1e-12 / seconds
        assert 0.05 < arithmetic + sum(model.idle.values()) < 40, row.name  # watts


def test_published_ends_of_a_scaling_are_met() -> None:
    for name in ("int8_multiply", "int32_add", "sram_1MiB_64bit"):
        for process in (45, 7):
            wanted = energy.CONSTANTS[f"{name}_{process}nm"].value
            assert energy._scaled(name, process) == pytest.approx(wanted)
    assert all(constant.source and constant.unit for constant in energy.CONSTANTS.values())
