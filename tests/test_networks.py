"""Whole networks: one region, no transpose, and InterpreterHw = Simulator on every platform, at even and odd sizes.

The default run takes a few small networks; `pytest --slow` takes all of them, at 224 and 97x161, with batches of 1 and
4.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled import quantized
from models import MobileNetV1, UNet, build_torchvision, set_batchnorm_statistics
from torch import nn

from mera_torch import native
from mera_torch.backend.capture import capture
from mera_torch.backend.region import DnaRegion
from mera_torch.compile import build, settings_of
from mera_torch.lower_bound import lower_bound_cycles
from mera_torch.platform import Platform, find, platforms
from mera_torch.zoo_models.efficientnet_lite import EfficientNetLite0
from mera_torch.zoo_models.mobilenet_v2 import MobileNetV2
from mera_torch.zoo_models.resnet import resnet18, resnet50

U2X32 = find(Path(__file__).parent.parent / "benchmarks" / "platforms" / "u2x32.toml")
OWN: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v2": MobileNetV2,
    "unet": UNet,
    "resnet50": resnet50,
    "efficientnet_lite0": EfficientNetLite0,
}
TORCHVISION = ["mobilenet_v3_large", "squeezenet1_1", "densenet121", "efficientnet_b0"]
SMALL = [("resnet18", (1, 3, 65, 97)), ("mobilenet_v2", (1, 3, 65, 97)), ("unet", (2, 3, 44, 60))]
LARGE = [
    (name, (batch, 3, *((100, 164) if (name, size) == ("unet", (97, 161)) else size)))  # U-Net: multiples of 4
    for name in [*OWN, *TORCHVISION]
    for batch, size in ((1, (224, 224)), (1, (97, 161)), (4, (97, 161)))
]


@lru_cache(maxsize=2)
def region(name: str, shape: tuple[int, int, int, int]) -> DnaRegion:
    if name in TORCHVISION:
        pytest.importorskip("torchvision", reason="torchvision defines the network")
    torch.manual_seed(0)
    model = OWN[name]() if name in OWN else build_torchvision(name)
    set_batchnorm_statistics(model.eval(), torch.randn(2, 3, 96, 96))
    x = torch.randn(shape)
    result = build(capture(quantized(model, x), (x,)), settings_of("SAKURA_1", "Simulator", None))
    assert len(result.regions) == 1, str(result.explanation)
    assert result.transposes == 0
    return result.regions[0]


def same_bytes(built: native.Graph, platform: Platform) -> dict[str, int]:
    rng = np.random.default_rng(0)
    inputs = [rng.integers(-128, 128, t.shape).astype(np.int8) for t in built.inputs]
    simulator = native.Simulator(built.compile(platform))
    wanted, got = native.Interpreter(built).run(inputs), simulator.run(inputs)
    for w, g in zip(wanted, got, strict=True):
        assert np.array_equal(w.reshape(-1), g.reshape(-1)), "InterpreterHw and Simulator differ; see mera_torch.bisect"
    return simulator.stats()


@pytest.mark.parametrize("platform", [*platforms(), U2X32], ids=lambda p: p.name)
@pytest.mark.parametrize(
    ("name", "shape"),
    [*SMALL, *(pytest.param(*case, marks=pytest.mark.slow) for case in LARGE)],
    ids=lambda v: v if isinstance(v, str) else "x".join(map(str, v)),
)
def test_every_network_on_every_platform(platform: Platform, name: str, shape: tuple[int, int, int, int]) -> None:
    stats = same_bytes(region(name, shape).graph, platform)
    assert stats["cycles"] * platform.macs_per_cycle >= stats["macs"], "faster than the array can be"


@pytest.mark.parametrize(("name", "most"), [("resnet50", 1.35), ("mobilenet_v2", None)])
def test_cycles_stay_near_the_lower_bound(name: str, most: float | None) -> None:
    part = region(name, (1, 3, 224, 224))
    for platform in (find("SAKURA_1"), U2X32):
        cycles = native.Simulator(part.graph.compile(platform)).stats()["cycles"]
        bound = lower_bound_cycles(part.lower_bound, platform)
        assert bound <= cycles
        assert most is None or cycles <= most * bound, f"{cycles} cycles on {platform.name}, lower bound {bound}"
        assert most is not None or cycles <= 500_000
