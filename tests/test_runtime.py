"""The C runtime: what it computes is what the torch runner computes, byte for byte; many at once; errors."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled import quantized
from random_modules import random_module
from torch import Tensor, nn
from torch.nn import functional as F

import mera_torch
from mera_torch import device, lite
from mera_torch.native.host import HOST_OPS
from mera_torch.native.session import LoadedDeployment, Request, SessionRunner

PLATFORM = "DNAF132S0001"
WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchao", "safetensors", "rich", "typer", "pydantic", "onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
from importlib import util
found = util.find_spec
util.find_spec = lambda name, package=None: None if name == "torch" else found(name, package)
"""


class Tailed(nn.Module):
    """A network and what becomes of its result on the host."""

    def __init__(self, body: nn.Module, tail: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.body, self.tail = body, tail

    def forward(self, x: Tensor) -> object:
        return self.tail(self.body(x))


TAILS: dict[str, Callable[[Tensor], object]] = {
    "softmax": lambda y: torch.softmax(y, 1),
    "resize": lambda y: F.interpolate(y, (7, 9), mode="bilinear", align_corners=False),
    "transposes": lambda y: (y.permute(0, 2, 3, 1).reshape(y.shape[0], -1), y.transpose(1, 3)),
    "several": lambda y: [torch.sigmoid(y), y, *torch.split(y, 2, 1), y],
    "arithmetic": lambda y: (y * 0.5 + 1.0).clamp(min=0.0).mean((2, 3)),
    "indices": lambda y: (y.argmax(1), y[:, 1:3, ::2]),
    "constants": lambda y: {"y": y, "scale": 3, "none": None},
}


def same(wanted: Tensor, found: object, exact: bool) -> bool:
    """exact: to the bit; else as near as operators such as exp, whose last bits are each library's own, can be."""
    if not isinstance(found, np.ndarray) or found.shape != wanted.shape or found.dtype != wanted.numpy().dtype:
        return False
    if exact or not wanted.is_floating_point():
        return found.tobytes() == wanted.contiguous().numpy().tobytes()
    return np.allclose(found, wanted.numpy(), rtol=2e-6, atol=1e-7, equal_nan=True)


def assert_same(wanted: object, found: object, exact: bool = True) -> None:
    """The torch runner's result, flat, and the C runtime's."""
    flat, _ = torch.utils._pytree.tree_flatten(wanted)
    got = found if isinstance(found, list) else [found]
    assert len(flat) == len(got)
    for index, (w, g) in enumerate(zip(flat, got, strict=True)):
        assert same(w, g, exact) if isinstance(w, Tensor) else g == w, f"output {index}"


def check(path: Path, *inputs: object) -> None:
    deployment, loaded = mera_torch.load(path), lite.load(path)
    assert deployment.needs_torch is None and loaded.needs_torch is None
    exact = all(HOST_OPS[name].exact for name in deployment.host_operators if name in HOST_OPS)
    arrays = [x.numpy() for x in inputs if isinstance(x, Tensor)]
    for target in ("InterpreterHw", "Simulator"):
        assert_same(deployment.get_runner(target)(*inputs), loaded.get_runner(target)(*arrays), exact)


def exported(model: nn.Module, data: Tensor, path: Path, target: str = "Simulator") -> mera_torch.Deployment:
    return mera_torch.export(quantized(model, data), (data,), path, platform=PLATFORM, target=target)


@pytest.fixture(scope="module")
def data() -> Tensor:
    return torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def deployment(data: Tensor, tmp_path_factory: pytest.TempPathFactory) -> mera_torch.Deployment:
    """Two outputs, one through a softmax on the host."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3))
    model = Tailed(body, lambda y: (torch.softmax(y, 1), y))
    return exported(model, data, tmp_path_factory.mktemp("runtime") / "d")


# ---- what it computes ----


@pytest.mark.parametrize("tail", TAILS)
def test_host_steps(tail: str, data: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(1)
    exported(Tailed(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), TAILS[tail]), data, tmp_path / "d")
    check(tmp_path / "d", torch.randn(data.shape))


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(s, marks=pytest.mark.slow) for s in range(6, 60))])
def test_random_modules(seed: int, tmp_path: Path) -> None:
    module, x = random_module(seed)
    tail = list(TAILS.values())[seed % len(TAILS)] if module(x).dim() == 4 and module(x).shape[1] > 3 else torch.sigmoid
    exported(Tailed(module, tail), x, tmp_path / "d")
    check(tmp_path / "d", torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))


def test_exported_for_the_interpreter(data: Tensor, tmp_path: Path) -> None:
    """There is no program in the folder: the runtime compiles it."""
    exported(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), data, tmp_path / "d", target="InterpreterHw")
    assert not list((tmp_path / "d").glob("*.dna"))
    check(tmp_path / "d", data)


def test_old_version() -> None:
    pair = np.load(Path(__file__).parent / "data" / "deployment_v1.npz")
    loaded = lite.load(Path(__file__).parent / "data" / "deployment_v1")
    for target in ("InterpreterHw", "Simulator"):
        assert np.array_equal(loaded.get_runner(target)(pair["input_0"]), pair["output_0"])


def test_input_that_is_an_output(data: Tensor, tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, ...]:
            return x, self.conv(x), n + 3, n.reshape(-1)

    inputs = (data, torch.arange(6).reshape(2, 3))
    mera_torch.export(quantized(Both(), *inputs), inputs, tmp_path / "d", platform=PLATFORM)
    check(tmp_path / "d", *inputs)


# ---- handles ----


def test_handles_are_the_memory(deployment: mera_torch.Deployment, data: Tensor) -> None:
    runner = lite.load(deployment.path).get_runner("InterpreterHw")
    view = runner.get_input_handle(0)
    assert view is runner.get_input_handle(runner.inputs[0].name) and view.dtype == np.float32
    view[...] = data.numpy()
    first, second = runner.get_output_handle(0), runner.get_output_handle(runner.outputs[1].name)
    assert not first.flags.writeable and not first.any()
    wanted = [y.numpy() for y in deployment.get_runner("InterpreterHw")(data)]
    assert runner.run() is runner
    assert np.array_equal(second, wanted[1]) and np.allclose(first, wanted[0], rtol=2e-6)
    address, before = second.__array_interface__["data"], second.copy()
    view[...] = 0
    runner.run()
    assert second.__array_interface__["data"] == address and not np.array_equal(before, second)


def test_views_keep_the_request_alive(deployment: mera_torch.Deployment) -> None:
    view = lite.load(deployment.path).get_runner().request().inputs[0]
    view[...] = 7
    assert view.min() == 7


@pytest.mark.parametrize(("key", "match"), [("nonsense", "no input 'nonsense'"), (1, "no input 1.*has 1"), (-1, "-1")])
def test_unknown_handle(key: int | str, match: str, deployment: mera_torch.Deployment) -> None:
    with pytest.raises(mera_torch.InvalidModelError, match=match):
        lite.load(deployment.path).get_runner("InterpreterHw").get_input_handle(key)


# ---- many at once ----


def test_started_runs(deployment: mera_torch.Deployment) -> None:
    runner = lite.load(deployment.path).get_runner("Simulator", requests=3)
    arrays = [np.random.default_rng(i).normal(size=(2, 3, 12, 16)).astype(np.float32) for i in range(8)]
    runs = [runner.start(array) for array in arrays]
    found = [run.wait() for run in runs]
    assert all(run.done for run in runs)
    for array, (first, second) in zip(arrays, found, strict=True):
        one = runner(array)
        assert np.array_equal(one[0], first) and np.array_equal(one[1], second)
    assert runs[0].wait() is found[0]


def test_threads_share_a_runner(deployment: mera_torch.Deployment) -> None:
    runner = lite.load(deployment.path).get_runner("InterpreterHw")
    arrays = [np.random.default_rng(i).normal(size=(2, 3, 12, 16)).astype(np.float32) for i in range(4)]
    wanted = [runner(array)[1] for array in arrays]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(50):
            if not np.array_equal(runner(arrays[index])[1], wanted[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_python_goes_on_while_c_runs(data: Tensor, tmp_path: Path) -> None:
    """A run of C holds no GIL: this thread reads the clock in the middle of runs that another thread makes."""
    body = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    exported(body, torch.randn(1, 3, 64, 64), tmp_path / "d")
    request = lite.load(tmp_path / "d").get_runner("Simulator").request()
    request.inputs[0][...] = 1
    spans: list[tuple[float, float]] = []
    moments: list[float] = []

    def work() -> None:
        while len(spans) < 40:
            begin = time.monotonic()
            request.run()
            spans.append((begin, time.monotonic()))

    thread = threading.Thread(target=work)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # nobody is made to give the GIL up
    try:
        thread.start()
        while thread.is_alive():
            moments.append(time.monotonic())
            time.sleep(0.001)
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sum(begin < moment < end for moment in moments for begin, end in spans) > 5


# ---- without torch ----


def test_without_torch(deployment: mera_torch.Deployment, data: Tensor, tmp_path: Path) -> None:
    wanted = lite.load(deployment.path).get_runner()(data.numpy())
    np.savez(tmp_path / "pair.npz", x=data.numpy(), first=wanted[0], second=wanted[1])
    code = f"""{WITHOUT_TORCH}
import numpy, mera_torch
pair = numpy.load({str(tmp_path / "pair.npz")!r})
for target in ("InterpreterHw", "Simulator"):
    runner = mera_torch.load({str(deployment.path)!r}).get_runner(target, requests=2)
    runs = [runner.start(pair["x"]) for _ in range(3)]
    for first, second in [runner(pair["x"]), *(run.wait() for run in runs)]:
        assert numpy.array_equal(first, pair["first"]) and numpy.array_equal(second, pair["second"])
    assert runner.metrics()["cycles"] > 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0e(self.conv(x))


def test_needs_torch(data: Tensor, tmp_path: Path) -> None:
    deployment = exported(Foreign(), data, tmp_path / "d")
    sentence = deployment.needs_torch
    assert sentence is not None and "special_i0e" in sentence and "test_runtime.py:" in sentence
    assert deployment.explanation.endswith(f"needs torch: {sentence}")
    assert mera_torch.load(tmp_path / "d").needs_torch == sentence
    loaded = lite.load(tmp_path / "d")
    assert loaded.needs_torch == sentence and loaded.explanation == deployment.explanation
    with pytest.raises(mera_torch.UnsupportedError, match="special_i0e"):
        loaded.get_runner()


# ---- errors ----


def test_out_of_order(deployment: mera_torch.Deployment, data: Tensor) -> None:
    loaded = lite.load(deployment.path)
    request = loaded.get_runner("Simulator").request()
    with pytest.raises(mera_torch.StateError, match="never run"):
        request.wait()
    with pytest.raises(mera_torch.StateError, match="no run has succeeded"):
        request.metrics()
    request.inputs[0][...] = data.numpy()
    request.run()
    assert request.metrics()["cycles"] == sum(request.metrics(k)["cycles"] for k in range(len(deployment.regions)))


def test_start_while_running(deployment: mera_torch.Deployment) -> None:
    """Of two starts at once the second is refused, unless the first run is over already; nothing else may happen."""
    request = lite.load(deployment.path).get_runner("Simulator").request()
    request.inputs[0][...] = 1
    for _ in range(20):
        request.start()
        try:
            request.start()
        except mera_torch.StateError as error:
            assert "is running" in str(error)
        request.wait()
        assert request.done


@pytest.mark.parametrize(
    ("options", "match"),
    [({"requests": 65}, "requests must be 0 to 64"), ({"threads": -1}, "threads"), ({"timeout_ms": -5}, "timeout_ms")],
)
def test_wrong_options(options: dict[str, int], match: str, deployment: mera_torch.Deployment) -> None:
    with pytest.raises(mera_torch.InvalidModelError, match=match):
        lite.load(deployment.path).get_runner("InterpreterHw", **options)


def test_unknown_target(deployment: mera_torch.Deployment) -> None:
    with pytest.raises(mera_torch.ConfigError, match="Simulater"):
        lite.load(deployment.path).get_runner("Simulater")


def test_every_allocation_may_fail(deployment: mera_torch.Deployment) -> None:
    loaded = LoadedDeployment(deployment.path)
    runner = SessionRunner(loaded, "Simulator")
    attempts: list[Callable[[int], object]] = [
        lambda n: LoadedDeployment(deployment.path, fail_after=n),
        lambda n: SessionRunner(loaded, "Simulator", fail_after=n),
        lambda n: Request(runner, fail_after=n),
    ]
    for attempt in attempts:
        for n in range(1000):
            try:
                attempt(n)
                break
            except mera_torch.OutOfMemoryError as error:
                assert "out of memory" in str(error)
        else:
            raise AssertionError("it never succeeds")


@pytest.fixture
def boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No boards but those that this test starts."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    yield
    device._opened.close()


def test_ip(boards: None, deployment: mera_torch.Deployment, data: Tensor) -> None:
    """On an emulated device, which is started if there is none: the Simulator's bytes and cycles."""
    loaded = lite.load(deployment.path)
    on_device, simulated = loaded.get_runner("IP", requests=2), loaded.get_runner("Simulator")
    arrays = [np.random.default_rng(i).normal(size=data.shape).astype(np.float32) for i in range(4)]
    runs = [on_device.start(array) for array in arrays]
    for array, run in zip(arrays, runs, strict=True):
        for found, wanted in zip(run.wait(), simulated(array), strict=True):
            assert np.array_equal(found, wanted)
    assert on_device.metrics()["cycles"] == simulated.metrics()["cycles"]


def test_tflite_float_border(tmp_path: Path) -> None:
    """TFLite's own QUANTIZE of a float input: a division, rounded half away from zero, in host steps."""
    pytest.importorskip("tflite")
    from tflite_models import Builder

    m = Builder()
    x = m.tensor("image:0", (1, 6, 5, 3), "float32")
    q = m.tensor("q", (1, 6, 5, 3), "int8", 2**-5, 7)
    w = m.constant("w", np.arange(-12, 12).astype(np.int8).reshape(8, 1, 1, 3), [0.02] * 8)
    b = m.constant("b", np.arange(8, dtype=np.int32), [0.02 * 2**-5] * 8)
    y = m.tensor("y", (1, 6, 5, 8), "int8", 0.03, -5)
    z = m.tensor("z", (1, 6, 5, 8), "float32")
    m.op("QUANTIZE", [x], [q], "QuantizeOptions")
    m.op(
        "CONV_2D",
        [q, w, b],
        [y],
        "Conv2DOptions",
        padding="VALID",
        strideH=1,
        strideW=1,
        dilationHFactor=1,
        dilationWFactor=1,
    )
    m.op("DEQUANTIZE", [y], [z], "DequantizeOptions")
    (tmp_path / "m.tflite").write_bytes(m.build([x], [z]))
    deployment = mera_torch.export(str(tmp_path / "m.tflite"), None, tmp_path / "d", platform=PLATFORM)
    shape = tuple(deployment.manifest["inputs"][0]["shape"])
    halves = torch.arange(90).reshape(shape) / 64 - 0.7
    assert len(deployment.host_operators) > 2
    check(tmp_path / "d", halves)
    runner = lite.load(tmp_path / "d").get_runner()
    assert runner.inputs[0].name != "image:0"  # the module's own name; the file's is known, too
    assert np.shares_memory(runner.get_input_handle("image:0"), runner.get_input_handle(runner.inputs[0].name))


def test_a_thousand_runs_leak_nothing(deployment: mera_torch.Deployment, data: Tensor) -> None:
    runner, array = lite.load(deployment.path).get_runner("InterpreterHw"), data.numpy()

    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    for _ in range(100):
        runner(array)
    before = pages()
    for _ in range(500):
        runner(array)
        runner.start(array).wait()
    assert pages() - before < 256


def test_ip_by_the_driver(boards: None, deployment: mera_torch.Deployment, data: Tensor) -> None:
    """What a C program gets: the runtime opens the first free device itself."""
    loaded = LoadedDeployment(deployment.path)
    with pytest.raises(mera_torch.DeviceAbsentError):
        SessionRunner(loaded, "IP")
    wanted = lite.load(deployment.path).get_runner("Simulator")(data.numpy())
    board = device.start_emulated(deployment.platform)
    try:
        requests = [Request(runner) for runner in [SessionRunner(loaded, "IP", requests=2)] for _ in range(2)]
        for request in requests:
            request.inputs[0][...] = data.numpy()
            request.start()
        for request in requests:
            request.wait(60)
            assert all(np.array_equal(y, w) for y, w in zip(request.outputs, wanted, strict=True))
            assert request.metrics()["cycles"] > 0
        with pytest.raises(mera_torch.DeviceError):
            SessionRunner(loaded, "IP")  # one runner has it
        del request, requests
    finally:
        board.stop()
