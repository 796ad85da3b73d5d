"""torch.compile(backend="mera")."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import models
import pytest
import torch
from compiled import quantized
from torch import Tensor, fx, nn

import mera_torch
from mera_torch.backend.dynamo import MeraWarning, mera
from mera_torch.backend.region import DnaRegion

BACKEND = mera_torch.mera_backend(platform="DNAF132S0001", target="InterpreterHw")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def data() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def converted(data: Tensor) -> fx.GraphModule:
    torch.manual_seed(0)
    return quantized(models.set_batchnorm_statistics(models.Residual(), torch.randn(8, 3, 16, 16)), data)


def exported(model: nn.Module, data: Tensor, path: object) -> Tensor:
    runner = mera_torch.export(model, (data,), str(path), platform="DNAF132S0001", target="InterpreterHw").get_runner()
    return runner(data)


@torch.no_grad()
def test_converted_model_equals_its_deployment(converted: fx.GraphModule, data: Tensor, tmp_path: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", MeraWarning)
        y = torch.compile(converted, backend=BACKEND, fullgraph=True)(data)
    assert torch.equal(y, exported(converted, data, f"{tmp_path}/d"))


@torch.no_grad()
def test_backend_is_known_by_name(converted: fx.GraphModule, data: Tensor) -> None:
    if "mera" not in torch._dynamo.list_backends():
        pytest.skip("mera_torch is not installed, so its entry point is unknown")
    options = {"platform": "DNAF132S0001", "target": "Simulator"}
    y = torch.compile(converted, backend="mera", options=options)(data)
    assert torch.equal(y, torch.compile(converted, backend=BACKEND)(data))


@torch.no_grad()
def test_options(converted: fx.GraphModule, data: Tensor) -> None:
    y = torch.compile(converted, backend=mera, options={"target": "InterpreterHw"})(data)
    assert torch.equal(y, torch.compile(converted, backend=BACKEND)(data))
    with pytest.raises(Exception, match="'target'"):
        torch._dynamo.reset()
        torch.compile(converted, backend=mera, options={"targt": "InterpreterHw"})(data)
    with pytest.raises(mera_torch.ConfigError, match="Fast, Slow"):
        mera_torch.mera_backend(mode="Quick")
    with pytest.raises(mera_torch.ConfigError, match="InterpreterHw, Simulator"):
        mera_torch.mera_backend(target="Verilator")


@torch.no_grad()
def test_float_model_runs_in_pytorch_and_says_so(data: Tensor) -> None:
    model = models.Residual().eval()
    with pytest.warns(MeraWarning, match="not quantized.*mera_torch.quantize"):
        y = torch.compile(model, backend=BACKEND)(data)
    assert torch.allclose(y, model(data), atol=1e-5)


def test_training_falls_back_with_a_warning(data: Tensor) -> None:
    model = models.Residual()
    with pytest.warns(MeraWarning, match="gradients"):
        y = torch.compile(model, backend=BACKEND)(data)
    y.sum().backward()
    assert model.head.weight.grad is not None


@torch.no_grad()
def test_changed_parameters_are_seen(converted: fx.GraphModule, data: Tensor) -> None:
    compiled = torch.compile(converted, backend=BACKEND)
    before = compiled(data)
    scale = next(buffer for name, buffer in converted.named_buffers() if "scale" in name)
    scale.mul_(3)
    after = compiled(data)
    assert not torch.equal(before, after)
    assert (after - converted(data)).abs().max() <= 0.05 * after.abs().max()


@torch.no_grad()
def test_graph_breaks(converted: fx.GraphModule, data: Tensor, tmp_path: object) -> None:
    seen: list[float] = []

    def program(x: Tensor) -> Tensor:
        y = converted(x)
        seen.append(float(y.sum()))  # a break
        return torch.softmax(converted(x) + y, -1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeraWarning)
        y = torch.compile(program, backend=BACKEND)(data)
    wanted = exported(converted, data, f"{tmp_path}/d")
    assert torch.allclose(y, torch.softmax(2 * wanted, -1), atol=1e-6) and len(seen) == 1


@torch.no_grad()
def test_two_models_do_not_mix(data: Tensor, tmp_path: object) -> None:
    torch.manual_seed(3)
    a, b = (quantized(models.PlainCnn(), data) for _ in range(2))
    fa, fb = (torch.compile(model, backend=BACKEND) for model in (a, b))
    results = [fa(data), fb(data), fa(data), fb(data)]
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
    assert torch.equal(results[0], exported(a, data, f"{tmp_path}/a"))
    assert torch.equal(results[1], exported(b, data, f"{tmp_path}/b"))


@torch.no_grad()
def test_dynamic_shapes_run_in_pytorch(data: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with pytest.warns(MeraWarning, match="dynamic"):
        y = torch.compile(model, backend=BACKEND, dynamic=True)(data)
    assert torch.equal(y, model(data))


@torch.no_grad()
def test_float_around_quantized(converted: fx.GraphModule, data: Tensor, tmp_path: object) -> None:
    """Operators in float before and after a quantized model stay in PyTorch, in place."""
    y = torch.compile(lambda x: torch.cumsum(converted(x * 2), 1), backend=BACKEND)(data)
    assert torch.allclose(y, torch.cumsum(exported(converted, data * 2, f"{tmp_path}/d"), 1))


@torch.no_grad()
def test_inputs_changed_in_place(data: Tensor) -> None:
    def program(x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeraWarning)
        mine = data.clone()
        y = torch.compile(program, backend=BACKEND)(mine)
    assert torch.equal(mine, data + 1) and torch.equal(y, (data + 1) * 2)


@torch.no_grad()
def test_nothing_is_left_behind(data: Tensor) -> None:
    def regions() -> int:
        gc.collect()
        return sum(type(thing) is DnaRegion for thing in gc.get_objects())

    before = regions()
    model = quantized(models.PlainCnn(), data)
    compiled = torch.compile(model, backend=BACKEND)
    compiled(data)
    assert regions() > before
    del compiled, model
    torch._dynamo.reset()
    assert regions() == before
