"""Several networks in one program: the same bytes, never slower than one after the other, near the bound of both.

The two pairs that must come within 1.2 of their bound are measured at full size. Weights are random: cycles do not
depend on them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled import quantized
from fused import fuse, networks
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from models import set_batchnorm_statistics
from random_graphs import random_graph, random_inputs
from test_random_graphs import SMALL
from torch import nn

import mera_torch
from mera_torch import graph_text, native, oracle
from mera_torch.backend.capture import capture
from mera_torch.backend.region import DnaRegion
from mera_torch.bisect import build
from mera_torch.compile import build as build_model
from mera_torch.compile import settings_of
from mera_torch.errors import DoesNotFitError
from mera_torch.lower_bound import lower_bound_cycles
from mera_torch.platform import Platform, find, platforms
from mera_torch.zoo_models.mobilenet_v2 import MobileNetV2
from mera_torch.zoo_models.resnet import resnet18

SAKURA_1 = find("SAKURA_1")
ATTRIBUTES = {name: info.attrs for name, info in native.OPS.items()}


class UNet(nn.Module):
    """Four scales, two 3x3 convolutions each: float32 [N, 3, H, W], H and W multiples of 8 -> [N, 2, H, W]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def double(inputs: int, outputs: int) -> nn.Sequential:
            convolutions = (nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1))
            return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU())

        widths = [width << scale for scale in range(4)]
        self.down = nn.ModuleList(double(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(double(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.pool, self.larger = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for index, stage in enumerate(self.down):
            x = stage(self.pool(x) if index else x)
            skips.append(x)
        for stage, skip in zip(self.up, skips[-2::-1], strict=True):
            x = stage(torch.cat((skip, self.larger(x)), 1))
        return self.head(x)  # type: ignore[no-any-return]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (resnet18, 224),
    "mobilenet_v2": (MobileNetV2, 224),
    "unet": (UNet, 256),
}


@cache
def region(name: str) -> DnaRegion:
    torch.manual_seed(0)
    make, side = NETWORKS[name]
    model, x = make().eval(), torch.randn(1, 3, side, side)
    set_batchnorm_statistics(model, torch.randn(2, 3, 64, 64))
    built = build_model(capture(quantized(model, x), (x,)), settings_of("SAKURA_1", "Simulator", None))
    assert len(built.regions) == 1
    return built.regions[0]


@cache
def as_text(name: str) -> oracle.Graph:
    return graph_text.read(region(name).graph.text(), ATTRIBUTES)


def cycles(graph: native.Graph, platform: Platform) -> int:
    return int(native.Simulator(graph.compile(platform)).stats()["cycles"])


def bound(names: Sequence[str], platform: Platform) -> int:
    work = [region(name).lower_bound for name in names]
    return lower_bound_cycles({key: sum(one[key] for one in work) for key in work[0]}, platform)


@pytest.mark.parametrize("names", [("resnet18", "mobilenet_v2"), ("resnet18", "unet")], ids="+".join)
def test_a_pair_is_near_its_bound_and_faster_than_one_after_the_other(names: tuple[str, str]) -> None:
    fused = build(fuse([as_text(name) for name in names]))
    singles = [cycles(region(name).graph, SAKURA_1) for name in names]
    found = cycles(fused, SAKURA_1)
    assert found <= 1.2 * bound(names, SAKURA_1)
    assert found <= 0.96 * sum(singles)
    assert found >= bound(names, SAKURA_1)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["DNAF200L0003", "DNAF632L0003", "DNAF232S0002", "DNAF132S0001"])
@pytest.mark.parametrize("count", [2, 3])
def test_networks_are_never_slower_together(platform: str, count: int) -> None:
    for names in combinations(NETWORKS, count):
        fused = build(fuse([as_text(name) for name in names]))
        assert cycles(fused, find(platform)) <= sum(cycles(region(name).graph, find(platform)) for name in names)


def test_a_unet_is_bound_by_its_arrays() -> None:
    """Convolutions of 32 channels would fill half of the array's columns; two pixels at once fill all of them."""
    stats = native.Simulator(region("unet").graph.compile(SAKURA_1)).stats()
    assert stats["cycles"] <= 1.2 * bound(["unet"], SAKURA_1)
    assert stats["array_busy_cycles"] >= 0.95 * SAKURA_1.units * stats["cycles"]


# ---- random networks ----


def small_networks(seed: int, count: int) -> list[oracle.Graph]:
    """Connected graphs: a graph in several parts would itself be compiled as several networks."""
    rng = random.Random(seed)
    found: list[oracle.Graph] = []
    while len(found) < count:
        graph = random_graph(rng, rng.randint(1, 8))
        if networks(graph) == 1:
            found.append(graph)
    return found


def check(graphs: list[oracle.Graph], platform: Platform, share_input: bool, options: dict[str, int]) -> None:
    inputs = [random_inputs(graph) for graph in graphs]
    if share_input:
        inputs = [inputs[0]] * len(graphs)
    wanted = [y for graph, given in zip(graphs, inputs, strict=True) for y in oracle.run(graph, given)]
    try:
        singles = [cycles(build(graph), platform) for graph in graphs]
    except DoesNotFitError:
        assume(False)
    simulator = native.Simulator(build(fuse(graphs, share_input)).compile(platform, options))
    given = inputs[0] if share_input else [x for one in inputs for x in one]
    for got, want in zip(simulator.run(given), wanted, strict=True):
        assert np.array_equal(got.reshape(-1), want.reshape(-1))
    assert options or simulator.stats()["cycles"] <= sum(singles)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.integers(0, 10**6), st.integers(2, 4), st.sampled_from([*platforms(), *SMALL]))
def test_random_networks_together(seed: int, count: int, platform: Platform) -> None:
    check(small_networks(seed, count), platform, share_input=False, options={})


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.integers(0, 10**6), st.integers(2, 3), st.sampled_from([*platforms(), *SMALL]))
def test_a_network_several_times_on_one_input(seed: int, count: int, platform: Platform) -> None:
    check(small_networks(seed, 1) * count, platform, share_input=True, options={})


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.integers(0, 10**6), st.sampled_from([*platforms(), *SMALL]), st.integers(1, 7), st.integers(1, 7))
def test_the_tiling_options_hold_for_all(seed: int, platform: Platform, height: int, width: int) -> None:
    options = {"max_tile_height": height, "max_acc_tile_width": width}
    check(small_networks(seed, 2), platform, share_input=False, options=options)


def test_twenty_networks() -> None:
    graphs = small_networks(7, 20)
    given = [random_inputs(graph) for graph in graphs]
    simulator = native.Simulator(build(fuse(graphs)).compile(SAKURA_1))
    wanted = [y for graph, x in zip(graphs, given, strict=True) for y in oracle.run(graph, x)]
    for got, want in zip(simulator.run([x for one in given for x in one]), wanted, strict=True):
        assert np.array_equal(got.reshape(-1), want.reshape(-1))


def test_compiling_again_and_with_more_workers_gives_the_same_program() -> None:
    fused = build(fuse(small_networks(3, 3)))
    assert fused.compile(SAKURA_1).save() == fused.compile(SAKURA_1, {"workers": 4}).save()


def test_progress_can_stop_while_orders_are_tried() -> None:
    class StopError(Exception):
        pass

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "order the networks":
            raise StopError

    with pytest.raises(StopError):
        build(fuse(small_networks(3, 2))).compile(SAKURA_1, progress=progress)


# ---- modules ----


class Small(nn.Module):
    """A convolution, on the host its cumulative sum if asked, another convolution."""

    def __init__(self, channels: int, host: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.host = host

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        return self.second(torch.cumsum(x, 1) if self.host else x)  # type: ignore[no-any-return]


class Both(nn.Module):
    """Two networks on one input, or on one each."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(x), self.b(x if y is None else y)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("host", [(False, False), (True, False), (False, True), (True, True)])
def test_networks_share_regions_and_none_is_cut_for_another(share: bool, host: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    model = Both(Small(8, host[0]), Small(16, host[1])).eval()
    inputs = (torch.randn(1, 3, 16, 16),) + (() if share else (torch.randn(1, 3, 24, 24),))
    built = build_model(capture(quantized(model, *inputs), inputs), settings_of("SAKURA_1", "Simulator", None))
    found = [sorted(name for _, name, _ in region.rows.values() if "." in name) for region in built.regions]
    parts = [[f"{network}.{part}" for network in "ab"] for part in ("first", "second")]
    if not any(host):
        assert found == [sorted(parts[0] + parts[1])]
    else:
        late = [f"{network}.second" for network, on_host in zip("ab", host, strict=True) if on_host]
        assert found == [sorted({*parts[0], *parts[1]} - {*late}), late]


def test_one_networks_movement_stays_on_the_host_while_another_computes() -> None:
    """What would move data only is no reason for a region: not even if another network has one at that time."""

    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.cumsum(self.first(x), 1)
            x = torch.cumsum(x.flip(2)[:, :, 1:], 1)
            return self.second(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 16)
    settings = settings_of("SAKURA_1", "Simulator", None)
    alone = build_model(capture(quantized(Moves(), x), (x,)), settings)
    both = build_model(capture(quantized(Both(Moves(), Small(8, True)), x), (x,)), settings)
    assert len(both.regions) == len(alone.regions)


def test_layers_say_which_network_they_belong_to(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 16, 16)
    models = [quantized(Small(channels, False), x) for channels in (8, 16)]
    runner = mera_torch.export(mera_torch.fuse_models(models, share_input=True), (x,), tmp_path / "d").get_runner()
    rows = runner.metrics()["layers"]
    assert {row["module"].split(".")[0] for row in rows} == {"model_0", "model_1"}
    assert len({row["node"] for row in rows}) == len(rows) == 4
    with torch.no_grad():
        for model, found in zip(models, runner(x), strict=True):
            alone = mera_torch.export(model, (x,), tmp_path / "alone", overwrite=True).get_runner()
            assert torch.equal(alone(x), found)


def test_the_bound_of_a_deployment_is_that_of_both_networks_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    a, b, x = Small(8, False), Small(16, False), torch.randn(1, 3, 16, 16)
    deployments = [
        mera_torch.export(quantized(model, x), (x,), tmp_path / name)
        for name, model in (("a", a), ("b", b), ("both", Both(a, b)))
    ]
    alone, other, both = (deployment.regions[0].lower_bound for deployment in deployments)
    assert both["macs"] == alone["macs"] + other["macs"]
    assert both["bytes"] == alone["bytes"] + other["bytes"] - x.numel()  # the input counts once
    metrics = deployments[2].get_runner().metrics()
    assert metrics["lower_bound_cycles"] == lower_bound_cycles(both, deployments[2].platform)
    assert {row["module"].split(".")[0] for row in metrics["layers"]} == {"a", "b"}
