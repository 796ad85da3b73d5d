"""Networks on the IP target, through every runner: IP = Simulator = InterpreterHw, and the cycles are counted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from compiled import quantized
from torch import nn

import mera_torch
from mera_torch import device, lite, native
from mera_torch.backend.capture import capture
from mera_torch.compile import build, settings_of
from mera_torch.errors import InvalidModelError
from mera_torch.zoo_models.mobilenet_v2 import MobileNetV2
from mera_torch.zoo_models.resnet import resnet18

PLATFORM = "DNAF132S0001"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where emulated devices are by default; those that this process opened are given up in the end."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield
        device._opened.close()


@pytest.fixture(scope="module")
def data() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def deployment(data: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> mera_torch.Deployment:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("d") / "d"
    return mera_torch.export(quantized(models.PlainCnn(), data), (data,), path, platform=PLATFORM, target="IP")


def test_export_for_ip(deployment: mera_torch.Deployment, data: torch.Tensor) -> None:
    assert deployment.target == "IP"
    loaded = mera_torch.load(deployment.path)
    ip, simulator, interpreter = loaded.get_runner(), *map(loaded.get_runner, ("Simulator", "InterpreterHw"))
    assert ip.target == "IP"
    assert torch.equal(ip(data), simulator(data)) and torch.equal(ip(data), interpreter(data))
    assert ip.metrics() == {**simulator.metrics(), "target": "IP"}


def test_without_torch(deployment: mera_torch.Deployment, data: torch.Tensor) -> None:
    wanted = deployment.get_runner("Simulator")(data).numpy()
    runner = lite.load(deployment.path).get_runner("IP")
    assert np.array_equal(runner(data.numpy()), wanted)
    assert runner.metrics()["cycles"] == deployment.get_runner("Simulator").metrics()["cycles"]


@pytest.mark.parametrize("how", ["torch", "lite"])
def test_threads_on_several_devices(how: str, deployment: mera_torch.Deployment, data: torch.Tensor) -> None:
    wanted = deployment.get_runner("Simulator")(data).numpy()
    with device.start_emulated(PLATFORM) as one, device.start_emulated(PLATFORM) as two:
        addresses = [one.address, two.address]
        if how == "torch":
            torch_runner = deployment.get_runner("IP", device_ids=addresses)
            run = lambda: torch_runner(data).numpy()  # noqa: E731
        else:
            lite_runner = lite.load(deployment.path).get_runner("IP", device_ids=addresses)
            run = lambda: lite_runner(data.numpy())  # noqa: E731
        with ThreadPoolExecutor(4) as pool:
            assert all(np.array_equal(found, wanted) for found in pool.map(lambda _: run(), range(24)))
        runs = [device.open_device(address).counters()["runs"] for address in addresses]
        assert sum(runs) >= 24 and min(runs) > 0
        for address in addresses:
            device.close_device(address)


def test_device_of_another_platform(deployment: mera_torch.Deployment) -> None:
    with device.start_emulated("DNAF232S0002") as board:
        with pytest.raises(InvalidModelError, match=f"platform {PLATFORM}, device {board.address} is DNAF232S0002"):
            deployment.get_runner("IP", device_ids=[board.address])
        device.close_device(board.address)


def test_host_steps_between_regions(tmp_path: Path) -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.cumsum(self.a(x), 1))

    x = torch.randn(1, 3, 12, 12)
    exported = mera_torch.export(quantized(Halves(), x), (x,), tmp_path / "d", platform=PLATFORM)
    assert len(exported.regions) == 2
    assert torch.equal(exported.get_runner("IP")(x), exported.get_runner("Simulator")(x))


def test_torch_compile(data: torch.Tensor) -> None:
    model = quantized(models.PlainCnn(), data)
    compiled = [
        torch.compile(copy.deepcopy(model), backend=mera_torch.mera_backend(platform=PLATFORM, target=target))
        for target in ("IP", "Simulator")
    ]
    ip, simulated = (run(data) for run in compiled)
    assert torch.equal(ip, simulated)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["SAKURA_1", "DNAF132S0001", "DNAA800L0001"])
@pytest.mark.parametrize("network", [resnet18, MobileNetV2, models.UNet], ids=["resnet18", "mobilenet_v2", "unet"])
def test_large_networks(network: Callable[[], nn.Module], platform: str) -> None:
    torch.manual_seed(0)
    model = models.set_batchnorm_statistics(network().eval(), torch.randn(2, 3, 96, 96))
    x = torch.randn(1, 3, 96, 160)
    (region,) = build(capture(quantized(model, x), (x,)), settings_of(platform, "IP", None)).regions
    stored = [np.random.default_rng(1).integers(-128, 128, port.dna).astype(np.int8) for port in region.inputs]
    simulator = native.Simulator(region.program)
    with device.start_emulated(platform) as board, native.Device(board.address) as dev:
        engine = dev.engine(region.program)
        for found, wanted in zip(engine.run(stored), simulator.run(stored), strict=True):
            assert np.array_equal(found, wanted)
        assert engine.stats() == simulator.stats()
