"""mera verify: an intact deployment passes with and without torch; anything else is named, position and value."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_tools import Mera, mera  # noqa: F401
from compiled import quantized
from test_lite import WITHOUT_TORCH
from test_project_files import mixed
from torch import Tensor, nn

import mera_torch
from mera_torch import ConfigError, CorruptFileError, InvalidModelError, files, golden
from mera_torch.golden import REQUANTIZED, ROUNDING, golden_inputs, tolerances
from mera_torch.verify import _different, verify

BUILT = ["InterpreterHw", "Simulator"]
DATA = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def conv(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


BUILT = ["InterpreterHw", "Simulator"]  # what is verified of a deployment for the Simulator


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "d"
    return mera_torch.export(quantized(conv(), DATA), (DATA,), folder, platform="DNAF132S0001").path


@pytest.fixture
def deployment(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "d"))


def replaced(folder: Path, name: str, data: bytes) -> None:
    """Another file, with the manifest's checksums right."""
    (folder / name).write_bytes(data)
    manifest = files.read_manifest(folder)
    manifest["files"][name] = files.hashlib.sha256(data).hexdigest()
    (folder / "deployment.json").write_bytes(files.seal(manifest))


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = files.read_manifest(folder)
    change(manifest)
    (folder / "deployment.json").write_bytes(files.seal(manifest))


def pair(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "golden.npz", allow_pickle=False) as held:
        return dict(held)


# ---- what is as it was ----


@pytest.mark.parametrize("with_torch", [True, False])
def test_intact(with_torch: bool, original: Path) -> None:
    found = verify(original, with_torch=with_torch)
    assert found.equal and found.targets == BUILT and found.tolerances == {"output_0": 0.0}
    assert found.files == len(list(original.iterdir())) and str(found).count("every byte equal") == len(BUILT)
    assert verify(original, ["Simulator"]).targets == ["Simulator"]
    with pytest.raises(ConfigError, match="did you mean 'Simulator'"):
        verify(original, ["Simulater"])


@pytest.mark.parametrize("with_torch", [True, False])
def test_on_a_device(with_torch: bool, original: Path) -> None:
    """Only if asked for: where there is no board, an emulated one is started."""
    found = verify(original, ["IP"], with_torch=with_torch)
    assert found.equal and found.targets == ["IP"]


def test_host_operators_and_constants(tmp_path: Path) -> None:
    model, inputs = mixed()
    path = mera_torch.export(model, inputs, tmp_path / "d", platform="DNAF132S0001").path
    found = verify(path, with_torch=True)
    assert found.equal and found.tolerances == {"y": 0.0, "p": ROUNDING, "i": 0.0, "three": 0.0}
    assert f"p within {ROUNDING:g}" in str(found)


class Scaled(nn.Module):
    """An input that is a number, between tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, factor: int, y: Tensor) -> tuple[Tensor, Tensor, int]:
        return self.conv(x) * factor, y + 1, 3


def test_an_input_that_is_no_tensor(tmp_path: Path) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(0)
    inputs = (DATA, 2, torch.randn(4))
    prepared = prepare_pt2e(
        torch.export.export(Scaled().eval(), inputs).module(check_guards=False), mera_torch.MeraQuantizer()
    )
    prepared(*inputs)
    path = mera_torch.export(convert_pt2e(prepared), inputs, tmp_path / "d", platform="DNAF132S0001").path
    for with_torch in (True, False):
        found = verify(path, with_torch=with_torch)
        assert found.equal and found.targets == BUILT and len(found.tolerances) == 3


def test_only_graphs_were_built(tmp_path: Path) -> None:
    path = mera_torch.export(
        quantized(conv(), DATA), (DATA,), tmp_path / "d", platform="DNAF132S0001", target="InterpreterHw"
    ).path
    assert verify(path).targets == ["InterpreterHw"] and verify(path, ["Simulator"]).equal


def test_runtime_install(original: Path, deployment: Path) -> None:
    absent = WITHOUT_TORCH.replace('"pydantic"', '"pydantic", "typer", "filelock", "platformdirs"')
    change = pair(deployment)
    change["output_0"].reshape(-1)[3] += 1
    replaced(deployment, "golden.npz", golden.pack(change))
    for folder, code, text in (
        (original, 0, "Simulator: golden pair, every byte equal"),
        (deployment, 1, "differs in 1"),
    ):
        command = f"sys.argv = ['mera', 'verify', {str(folder)!r}]\nfrom mera_torch.__main__ import main\nmain()"
        program = f"{absent}\n{command}"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert (done.returncode, text in done.stdout) == (code, True), done.stderr


def test_golden_inputs_cover_the_calibrated_range(original: Path) -> None:
    manifest = files.read_manifest(original)
    scale, zero = (manifest["inputs"][0]["quantization"][key] for key in ("scale", "zero_point"))
    (x,) = golden_inputs(manifest["inputs"]).values()
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    assert x.dtype == np.float32 and low <= x.min() < low + 0.1 * (high - low) and high - 0.1 * (high - low) < x.max()
    assert np.array_equal(x, pair(original)["input_0"])
    rows = [{"shape": [50], "dtype": {"torch": t}, "quantization": None} for t in ("int8", "uint8", "int64", "bool")]
    drawn = golden_inputs([*rows, {"shape": [], "dtype": None, "quantization": None}])
    assert [int(a.min()) for a in drawn.values()][2:] == [0, 0] and drawn["input_0"].min() < -64
    assert len(drawn) == 4 and [str(a.dtype) for a in drawn.values()] == ["int8", "uint8", "int64", "bool"]


# ---- what is not ----


def test_an_output_that_changed(deployment: Path, mera: Mera) -> None:  # noqa: F811
    arrays = pair(deployment)
    held = arrays["output_0"]
    was = held[0, 2, 1, 4].item()
    held[0, 2, 1, 4] += 1
    held[0, 3, 0, 0] -= 1
    replaced(deployment, "golden.npz", golden.pack(arrays))
    found = verify(deployment)
    assert not found.equal and len(found.differences) == len(BUILT)
    difference = found.differences[1]
    assert (difference.target, difference.output, difference.position) == ("Simulator", "output_0", (0, 2, 1, 4))
    assert (difference.wanted, difference.got, difference.count) == (held[0, 2, 1, 4].item(), was, 2)
    done = mera("verify", deployment)
    assert done.code == 1
    assert "output 'output_0' differs in 2 of 144 elements, first at [0, 2, 1, 4]" in done.out
    told = json.loads(mera("verify", deployment, "--json", "--target", "InterpreterHw").out)
    assert told["equal"] is False and told["differences"][0]["position"] == [0, 2, 1, 4]


def test_a_graph_that_is_another(deployment: Path, tmp_path: Path) -> None:
    """Checksums are right, but one rung computes something else."""
    other = mera_torch.export(quantized(conv(5), DATA), (DATA,), tmp_path / "o", platform="DNAF132S0001")
    replaced(deployment, "region_0.graph", (other.path / "region_0.graph").read_bytes())
    assert {difference.target for difference in verify(deployment).differences} == {"InterpreterHw"}


def test_every_damaged_file_is_named(deployment: Path, mera: Mera) -> None:  # noqa: F811
    (deployment / "region_0.graph").write_bytes(b"")
    (deployment / "explanation.txt").unlink()
    with pytest.raises(CorruptFileError) as caught:
        verify(deployment)
    assert "region_0.graph was truncated or altered" in str(caught.value)
    assert "explanation.txt cannot be read: No such file" in str(caught.value)
    done = mera("verify", deployment)
    assert done.code not in (0, 1) and "region_0.graph was truncated" in done.err


@pytest.mark.parametrize("how", ["altered", "missing"])
def test_metrics_carry_their_own_checksum(how: str, deployment: Path) -> None:
    path = deployment / "metrics.json"
    if how == "missing":
        path.unlink()
    else:
        path.write_text(path.read_text().replace("compile_seconds", "compile_secondz"))
    with pytest.raises(CorruptFileError, match="metrics.json"):
        verify(deployment)


def test_no_deployment(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="has no deployment.json"):
        verify(tmp_path)


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def huge() -> bytes:
    """A header that asks for 2^60 bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 58,)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("input_0.npy", header.getvalue())
    return buffer.getvalue()


X, Y = np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 4, 6, 6), np.float32)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"PK", b"nonsense", npz(input_0=X), npz(input_0=X, output_0=Y.astype(np.float64)),
        npz(input_0=X[:, :2], output_0=Y), npz(input_0=np.array([{}], object), output_0=Y), huge(),
        npz(input_0=X, output_0=Y)[:-40], npz(input_0=X, output_0=Y)[:300],
    ],
)  # fmt: skip
def test_hostile_golden_files(data: bytes, deployment: Path) -> None:
    replaced(deployment, "golden.npz", data)
    with pytest.raises(CorruptFileError, match="golden.npz cannot be read"):
        verify(deployment)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["golden"].update(tolerances=[]),
        lambda m: m["golden"].update(file="other.npz"),
        lambda m: m["golden"].pop("file"),
        lambda m: m.update(golden=3),
        lambda m: m.update(outputs=[]),
        lambda m: m.update(inputs=None),
        lambda m: m["files"].pop("golden.npz"),
        lambda m: m["files"].update({"/etc/passwd": "0" * 64}),
    ],
)
@pytest.mark.parametrize("with_schema", [True, False])
def test_malformed_manifests(change: Any, with_schema: bool, deployment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_schema:  # as in the runtime install
        monkeypatch.setattr("mera_torch.verify._check_schema", lambda manifest: None)
    edited(deployment, change)
    try:
        found = verify(deployment, with_torch=with_schema)
    except mera_torch.MeraError:
        return
    assert not with_schema and found.equal  # a name that nothing reads


# ---- how exactly ----


class Noise(nn.Module):
    """A region, then something that no deployment can repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), torch.rand(3)


class Lookup(nn.Module):
    """Takes no index but 7 and above."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return torch.ones(9).gather(0, index * 100 - 700) + self.conv(x).sum()


def test_what_cannot_be_repeated_has_no_pair(tmp_path: Path) -> None:
    noise = mera_torch.export(quantized(Noise(), DATA), (DATA,), tmp_path / "n", platform="DNAF132S0001")
    assert noise.manifest["golden"] == {"file": None, "reason": "the host's operators give another result each time"}
    index = torch.tensor([7])
    lookup = mera_torch.export(quantized(Lookup(), DATA, index), (DATA, index), tmp_path / "l", platform="DNAF132S0001")
    assert "do not take drawn inputs: index" in lookup.manifest["golden"]["reason"]
    assert "no golden pair to run: the host's operators do not take" in str(verify(lookup.path))
    assert not (lookup.path / "golden.npz").exists() and verify(noise.path).equal


def step(name: str, target: str, *reads: str) -> dict[str, Any]:
    return {"name": name, "target": target, "args": [[{"ref": read}] for read in reads], "kwargs": {}}


def test_tolerances() -> None:
    region = {"inputs": [{"value": "s"}], "outputs": [{"value": "r"}]}
    host = {
        "inputs": ["x"],
        "steps": [
            step("v", "aten.view.default", "x"),
            step("s", "aten.softmax.int", "v"),
            step("q", "quantized_decomposed.quantize_per_tensor.default", "s"),
            {"name": "region_0", "region": 0},
            step("g", "getitem", "r"),
            step("m", "aten.add.Tensor", "s", "v"),
        ],
        "outputs": [{"ref": "v"}, {"ref": "s"}, {"ref": "q"}, {"ref": "g"}, {"ref": "m"}, 3],
    }
    found = tolerances({"host": host, "regions": [region]})
    assert found == [0.0, ROUNDING, REQUANTIZED, REQUANTIZED, ROUNDING, 0.0]


def test_comparison() -> None:
    def same(one: Any, other: Any, part: float, kind: Any = np.float32) -> bool:
        return not _different(np.array(one, kind), np.array(other, kind), part).any()

    nan, inf = float("nan"), float("inf")
    assert same([1, nan, -0.0], [1, nan, -0.0], 0) and not same([0.0], [-0.0], 0) and not same([nan], [1], 0)
    assert same(3, 3, 0) and not same(3, 4, 0) and same([], [], 0) and same([], [], 0.1, np.int8)
    assert same([100, 1e-3], [100, 1.5e-3], 1e-5) and not same([100, 1], [100, 1.01], 1e-5)
    assert same([nan, inf, -inf], [nan, inf, -inf], 0.1) and not same([nan], [0], 0.1) and not same([inf], [-inf], 0.1)
    assert not same([1.0, inf], [inf, inf], 0.1)
    assert same(range(100), [*range(99), 0], 0.02, np.int64) and not same(range(100), [0] * 100, 0.02, np.int64)
    assert same([True] * 3, [True] * 3, 0, np.bool_) and not same([True], [False], 0, np.bool_)
