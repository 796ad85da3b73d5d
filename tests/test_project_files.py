"""Deployments on disk: what they hold, old and new versions, writes that are whole whatever happens, locks."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import export_loop
import numpy as np
import pytest
import torch
from compiled import quantized
from torch import Tensor, fx, nn

import mera_torch
from mera_torch import CorruptFileError, LockedError, StorageError, atomic, files, lite, locks, native, schema
from mera_torch.atomic import atomic_file, atomic_folder
from mera_torch.locks import folder_lock
from mera_torch.verify import verify

HERE = Path(__file__).parent
OLD = HERE / "data" / "deployment_v1"
DATA = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(7))


class Mixed(nn.Module):
    """An image through the DNA, a softmax on the host, an index and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, index: Tensor) -> dict[str, Any]:
        y = self.conv(x)
        return {"y": y, "p": torch.softmax(y, 1).cumsum(2), "i": index + 1, "three": 3}


def mixed() -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    torch.manual_seed(1)
    inputs = (DATA, torch.tensor([0, 1]))
    return quantized(Mixed(), *inputs), inputs


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> mera_torch.Deployment:
    model, inputs = mixed()
    return mera_torch.export(model, inputs, tmp_path_factory.mktemp("files") / "d", platform="DNAF132S0001")


@pytest.fixture(scope="module")
def two() -> list[Any]:
    return export_loop.networks()


# ---- what a deployment holds ----


def test_interface(deployment: mera_torch.Deployment) -> None:
    x, index = deployment.manifest["inputs"]
    port = deployment.regions[0].inputs[0]
    assert (x["shape"], x["dtype"], x["layout"]) == ([1, 3, 6, 6], {"torch": "float32"}, "NCHW")
    assert x["quantization"] == {"scale": port.scale, "zero_point": port.zero_point, "dtype": {"torch": "int8"}}
    assert index["dtype"] == {"torch": "int64"} and index["quantization"] is None
    rows = deployment.manifest["outputs"]
    assert [row["name"] for row in rows] == ["y", "p", "i", "three"]  # the keys of the dict
    by_kind = {(row["dtype"] or {}).get("torch"): row for row in rows}
    assert by_kind[None]["constant"] == 3 and by_kind["int64"]["shape"] == [2]
    floats = [row for row in rows if row["dtype"] == {"torch": "float32"}]
    assert sorted(row["quantization"] is None for row in floats) == [False, True]
    got = deployment.get_runner()(*mixed()[1])
    for key, row in zip(got, rows, strict=True):
        assert row["constant"] == got[key] if row["dtype"] is None else list(got[key].shape) == row["shape"]


def test_versions_source_and_metrics(deployment: mera_torch.Deployment, tmp_path: Path) -> None:
    manifest = deployment.manifest
    assert set(manifest["versions"]) == {"mera_torch", "core", "core_build", "torch", "torchao", "numpy", "python"}
    assert manifest["versions"]["core_build"] == native.core_build() and len(native.core_build()) == 16
    assert manifest["compile"]["regions"] == 1 and manifest["compile"]["host_operators"] == 3
    assert manifest["compile"]["cycles"] == deployment.get_runner().metrics()["cycles"]
    taken = files.unseal(deployment.path / "metrics.json", "metrics")
    assert taken["compile_seconds"] > 0 and taken["regions"]["region_0"]["cache"] in ("hit", "miss")
    on_disk = {path.name for path in deployment.path.iterdir()}
    assert on_disk == {*manifest["files"], "deployment.json", "metrics.json"}
    only_graph = mera_torch.export(*mixed(), tmp_path / "g", platform="DNAF132S0001", target="InterpreterHw")
    assert only_graph.manifest["compile"]["cycles"] is None and only_graph.manifest["source"] == manifest["source"]


def test_source_hashes_tell_graph_from_weights(tmp_path: Path) -> None:
    def hashes(model: nn.Module, name: str) -> tuple[str, str]:
        found = mera_torch.export(quantized(model, DATA), (DATA,), tmp_path / name, target="InterpreterHw")
        source = found.manifest["source"]
        return source["graph_sha256"], source["weights_sha256"]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False))
    first = hashes(model, "a")
    with torch.no_grad():
        model[0].weight.view(-1)[5] *= 0.5  # not the largest: neither scale nor range changes
    second = hashes(model, "b")
    third = hashes(nn.Sequential(model[0], nn.ReLU()), "c")
    assert first[1] != second[1] and first[0] != third[0] and second[1] == third[1]


def test_names_of_an_imported_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from onnx import helper
    from onnx_models import model as onnx_model

    from mera_torch.converters import from_onnx

    weight = np.ones((4, 3, 3, 3), np.float32) / 9
    node = helper.make_node("Conv", ["image:0", "w"], ["logits/conv"])
    source = onnx_model([node], {"image:0": (1, 3, 6, 6)}, ["logits/conv"], {"w": weight})
    imported = from_onnx(source)
    found = mera_torch.export(quantized(imported, DATA), None, tmp_path / "d", platform="DNAF132S0001").manifest
    assert found["source"]["format"] == "onnx"
    assert found["inputs"][0]["source_name"] == "image:0" and found["outputs"][0]["name"] == "logits/conv"


# ---- versions and the schema ----


def test_version_1_loads_runs_and_compiles_anew() -> None:
    wanted = np.load(OLD.with_suffix(".npz"), allow_pickle=False)
    old = mera_torch.load(OLD)
    for target in ("InterpreterHw", "Simulator"):
        got = old.get_runner(target)(torch.from_numpy(wanted["input_0"]))
        assert np.allclose(got.numpy(), wanted["output_0"], atol=2 * old.regions[1].outputs[0].scale)
    assert old.manifest["version"] == 1 and old.manifest["outputs"][0]["shape"] == [1, 4, 4, 3]
    light = lite.load(OLD)
    assert light.needs_torch is None
    got = light.get_runner("Simulator")(wanted["input_0"])
    assert np.allclose(got, wanted["output_0"], atol=2 * old.regions[1].outputs[0].scale)
    assert "version 1 of the format has none" in str(verify(OLD))


def test_program_of_another_version_is_compiled_anew(two: list[Any], tmp_path: Path) -> None:
    """Its checksum is right, this core cannot read it, and the manifest says that another core wrote it."""
    found = export_loop.write(tmp_path / "d", two[0])
    wanted = found.get_runner()(DATA)

    def edit(build: str) -> None:
        (tmp_path / "d" / "region_0.dna").write_bytes(b"a program of the future")
        digest = files.hashlib.sha256(b"a program of the future").hexdigest()
        manifest = files.read_manifest(tmp_path / "d")
        manifest["versions"]["core_build"] = build
        manifest["files"]["region_0.dna"] = digest
        (tmp_path / "d" / "deployment.json").write_bytes(files.seal(manifest))

    edit("another")
    assert torch.equal(mera_torch.load(tmp_path / "d").get_runner("Simulator")(DATA), wanted)
    edit(native.core_build())
    with pytest.raises(CorruptFileError, match="program"):
        mera_torch.load(tmp_path / "d")


@pytest.mark.parametrize("read", [mera_torch.load, lite.load, verify])
def test_newer_version_says_so(read: Any, two: list[Any], tmp_path: Path) -> None:
    export_loop.write(tmp_path / "d", two[0])
    manifest = files.read_manifest(tmp_path / "d")
    (tmp_path / "d" / "deployment.json").write_bytes(files.seal({**manifest, "version": 3}))
    with pytest.raises(CorruptFileError, match="is of version 3, and this mera_torch reads up to 2: install a newer"):
        read(tmp_path / "d")
    for nonsense in (0, "2", None, True):
        (tmp_path / "d" / "deployment.json").write_bytes(files.seal({**manifest, "version": nonsense}))
        with pytest.raises(CorruptFileError, match="is of version"):
            read(tmp_path / "d")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda m: m.pop("golden"), "golden: Field required"),
        (lambda m: m.update(extra=1), "extra: Extra inputs"),
        (lambda m: m["inputs"][0].update(shape=[1, -3]), r"inputs\.0\.shape\.1"),
        (lambda m: m["outputs"][0].update(layout="CHWN"), r"outputs\.0\.layout"),
        (lambda m: m["inputs"][0]["quantization"].update(scale=0.0), r"inputs\.0\.quantization\.scale"),
        (lambda m: m["source"].update(graph_sha256="abc"), r"source\.graph_sha256"),
        (lambda m: m["files"].update({"../x": "0" * 64}), "files"),
        (lambda m: m.update(regions=[]), "regions"),
    ],
)
def test_schema(change: Any, where: str, deployment: mera_torch.Deployment) -> None:
    manifest = files.read_manifest(deployment.path)
    schema.check(manifest)
    change(manifest)
    with pytest.raises(CorruptFileError, match=where):
        schema.check(manifest)
    assert "golden" in schema.json_schema()["required"]


# ---- one step, whatever happens ----


def scratch_folders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if atomic.MARK in path.name]


@pytest.fixture(scope="module")
def killed_writer() -> Iterator[Any]:
    """write(mode, path, seconds): a child writes deployments to path for so long, and is killed."""
    paths = os.pathsep.join([str(HERE), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "5", "PYTHONPATH": paths}
    command = [sys.executable, str(HERE / "export_loop.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdin is not None and process.stdout is not None

    def write(mode: str, path: Path, seconds: float) -> None:
        print(mode, path, file=process.stdin, flush=True)
        pid = int(process.stdout.readline())  # type: ignore[union-attr]
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        assert process.stdout.readline() == f"{-signal.SIGKILL}\n"  # type: ignore[union-attr]

    yield write
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


def kill_at_random(mode: str, times: int, folder: Path, two: list[Any], write: Any) -> None:
    """After each kill the deployments there are whole, and byte for byte what this process writes. Goes on beyond so
    many `times`, and waits longer, until a writer has finished and one has been killed in the middle."""
    known, begin = [], time.monotonic()
    for index, built in enumerate(two):
        export_loop.write(folder / f"known_{index}", built)
        known.append((folder / f"known_{index}" / "deployment.json").read_bytes())
    period = (time.monotonic() - begin) / len(two)
    rng, seen, left = random.Random(3), set(), 0
    if mode != "fresh":
        export_loop.write(folder / "d", two[0])
    for turn in range(10 * times):
        if turn >= times and seen == {0, 1} and left:
            break
        place = folder / (f"fresh_{turn}" if mode == "fresh" else "d")
        write(mode, place, rng.uniform(0, 4 * period) * (1 + turn / times))
        left += bool(scratch_folders(place if mode == "fresh" and place.exists() else folder))
        for found in place.glob("[0-9]*") if mode == "fresh" else [place]:
            assert verify(found).equal
            data = (found / "deployment.json").read_bytes()
            seen.add(known.index(data))
            assert mera_torch.load(found).get_runner()(DATA).shape[1] == (4, 7)[known.index(data)]
    assert seen == {0, 1} and left, "no writer was killed in the middle: the test proves nothing"
    if mode != "fresh":
        export_loop.write(folder / "d", two[0])
        assert scratch_folders(folder) == []


@pytest.mark.parametrize("mode", ["exchange", "renames"])
def test_killed_writers(mode: str, two: list[Any], tmp_path: Path, killed_writer: Any) -> None:
    kill_at_random(mode, 20, tmp_path, two, killed_writer)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exchange", "renames", "fresh"])
def test_killed_writers_200_times(mode: str, two: list[Any], tmp_path: Path, killed_writer: Any) -> None:
    kill_at_random(mode, 200, tmp_path, two, killed_writer)


@pytest.mark.parametrize("exchange", [True, False])
def test_killed_at_every_step(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child dies before its nth call of any function that changes the disk, for every n: old or new, never less; and
    the next writer cleans up."""
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    path, outcomes = tmp_path / "d", []
    with atomic_folder(path) as new:
        (new / "a").write_text("old")
    for last in range(100):
        pid = os.fork()
        if pid == 0:
            die_at(last)
            with atomic_folder(path) as new:
                (new / "a").write_text("new")
            os._exit(0)
        survived = os.waitpid(pid, 0)[1] == 0
        atomic.settle(path)
        outcomes.append((path / "a").read_text())
        with atomic_folder(path) as new:
            (new / "a").write_text("old")
        assert [p.name for p in tmp_path.iterdir()] == ["d"]
        if survived:
            break
    assert survived and outcomes[0] == "old" and outcomes[-1] == "new"
    assert outcomes == sorted(outcomes, reverse=True)  # old up to some step, new from there on


def die_at(last: int) -> None:
    """This process is killed before call number `last` of what changes the disk."""
    count = [0]

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if count[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            return function(*args, **kwargs)

        return call

    for module, name in (
        (atomic.tempfile, "mkdtemp"), (atomic.fcntl, "flock"), (atomic, "_exchange"), (os, "mkdir"), (os, "fsync"),
        (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "replace"),
    ):  # fmt: skip
        setattr(module, name, counted(getattr(module, name)))


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "d"
    with atomic_folder(path) as slow:
        (slow / "a").write_text("slow")
        with atomic_folder(path) as quick:
            (quick / "a").write_text("quick")
        assert (path / "a").read_text() == "quick" and (slow / "a").read_text() == "slow"
        with pytest.raises(ZeroDivisionError), atomic_folder(path) as failing:
            (failing / "a").write_text(str(1 // 0))
    assert (path / "a").read_text() == "slow" and scratch_folders(tmp_path) == []


def test_folders_that_only_look_like_leftovers_stay(tmp_path: Path) -> None:
    mine = tmp_path / ".d.mera-thesis01"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    (tmp_path / ".d.mera-notes").write_text("a file")
    with atomic_folder(tmp_path / "d") as new:
        (new / "a").write_text("1")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".d.mera-notes", ".d.mera-thesis01", "d"]
    assert (mine / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("exchange", [True, False])
def test_writers_and_readers_at_once(
    exchange: bool, two: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    path, stop, errors, reads = tmp_path / "d", time.monotonic() + 0.7, [], [0]
    export_loop.write(path, two[0])
    contents = [{p.name: p.read_bytes() for p in path.iterdir()}]
    export_loop.write(path, two[1])
    contents.append({p.name: p.read_bytes() for p in path.iterdir()})

    def attempt(work: Any) -> None:
        try:
            while time.monotonic() < stop:
                work()
        except Exception as error:
            errors.append(error)

    def write() -> None:
        for held in contents:
            with atomic_folder(path) as new:
                for name, data in held.items():
                    (new / name).write_bytes(data)

    def read() -> None:
        manifest, data = files.read_deployment(path)
        assert set(data) == set(manifest["files"])
        light = lite.load(path)
        assert light.outputs[0].shape[1] == light.manifest["outputs"][0]["shape"][1]
        reads[0] += 1

    threads = [threading.Thread(target=attempt, args=(work,)) for work in (write, write, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and reads[0] > 3 and scratch_folders(tmp_path) == []


def test_atomic_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with atomic_file(path) as written:
        assert written.name == "x.pt"
        written.write_text("1")
    link = tmp_path / "link"
    link.symlink_to(path)
    with atomic_file(link) as written:
        written.write_text("2")
    assert path.read_text() == "2" and link.is_symlink()
    with pytest.raises(StorageError, match="it is a folder"), atomic_file(tmp_path):
        pass
    with pytest.raises(StorageError, match="its folder must exist"), atomic_file(tmp_path / "no" / "x"):
        pass
    with pytest.raises(FileNotFoundError), atomic_file(path):
        (tmp_path / "what the body reads").read_text()
    with atomic_file("/dev/null") as written:
        written.write_text("gone")
    assert path.read_text() == "2" and sorted(p.name for p in tmp_path.iterdir()) == ["link", "x.pt"]


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "real") as new:
        (new / "a").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_folder(tmp_path / "link") as new:
        (new / "a").write_text("2")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "a").read_text() == "2"


def test_what_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds something already"):
        with atomic_folder(tmp_path / "d", replace=False) as new:
            (new / "a").write_text("mine")
            (tmp_path / "d").mkdir()
            (tmp_path / "d" / "a").write_text("theirs")
    assert (tmp_path / "d" / "a").read_text() == "theirs" and scratch_folders(tmp_path) == []


# ---- disks that are full or read-only ----


def refused(two: list[Any], path: Path, match: str) -> None:
    """The deployment at `path` stays as it was, and none appears beside it."""
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    for place in (path, path.with_name("new")):
        with pytest.raises(StorageError, match=match) as caught:
            export_loop.write(place, two[1])
        assert str(place) in str(caught.value)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert verify(path).equal


def test_limit_of_file_sizes(two: list[Any], tmp_path: Path) -> None:
    export_loop.write(tmp_path / "d", two[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError, match="File too large; raise the limit"):
            export_loop.write(tmp_path / "d", two[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert verify(tmp_path / "d").equal and [p.name for p in tmp_path.iterdir()] == ["d"]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Any]:
    """A tmpfs of 64 KiB; remount() makes it read-only."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_and_read_only_disk(two: list[Any], tmp_path: Path) -> None:
    with small_disk(tmp_path) as read_only:
        export_loop.write(tmp_path / "d", two[0])
        export_loop.write(tmp_path / "d", two[1])  # room for two
        export_loop.write(tmp_path / "d", two[0])
        (tmp_path / "d" / "filler").write_bytes(bytes(8 << 10))
        refused(two, tmp_path / "d", "No space left on device; free space")
        read_only()
        refused(two, tmp_path / "d", "Read-only file system; choose a folder on a disk that can be written")
        with pytest.raises(StorageError, match="cannot be locked: Read-only"):
            folder_lock(tmp_path / "d").acquire()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(two: list[Any], tmp_path: Path) -> None:
    export_loop.write(tmp_path / "d", two[0])
    tmp_path.chmod(0o500)
    try:
        refused(two, tmp_path / "d", "Permission denied; choose a folder in which you may write")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("number", [28, 30, 13, 122, 5])
@pytest.mark.parametrize("name", ["fsync", "rename", "mkdir"])
def test_every_error_of_the_system(
    number: int, name: str, two: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC, EROFS, EACCES, EDQUOT, EIO, wherever the system reports them."""
    export_loop.write(tmp_path / "d", two[0])

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, name, fail)
        with pytest.raises(StorageError, match=f"cannot be written: {os.strerror(number)}"):
            export_loop.write(tmp_path / "d", two[1])
    assert mera_torch.load(tmp_path / "d").get_runner()(DATA).shape[1] == 4
    export_loop.write(tmp_path / "d", two[1])
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


# ---- locks ----


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    take = f"from mera_torch.locks import folder_lock\nlock = folder_lock({str(tmp_path)!r}).acquire()\n"
    with folder_lock(tmp_path) as lock:
        assert lock.held
        told = run_python(take).stderr.splitlines()[-1]
        assert "LockedError" in told and f"is open in process {os.getpid()} on " in told and "since 20" in told
        assert Path(sys.orig_argv[-1]).name in told or "..." in told
        with pytest.raises(LockedError, match=f"{tmp_path}.* is open in this process already, since .*: close it"):
            folder_lock(tmp_path).acquire()
        with pytest.raises(LockedError, match="in this object"):
            lock.acquire()
    assert not lock.held and run_python(take).returncode == 0
    lock.release()  # once more is nothing
    with folder_lock(tmp_path), pytest.raises(LockedError):
        folder_lock(tmp_path).acquire()


def test_dead_holders_do_not_block(tmp_path: Path) -> None:
    take = f"from mera_torch.locks import *\nimport os, time\nlock = folder_lock({str(tmp_path)!r}).acquire()\n"
    run_python(take + "os.kill(os.getpid(), 9)")
    holder = locks.read_holder(tmp_path)
    assert holder is not None and holder.dead
    with folder_lock(tmp_path):
        pass
    # A child of the dead holder still has the descriptor, and so the system's lock.
    run_python(take + "if os.fork() == 0:\n  os.closerange(0, 3); time.sleep(20)\nos._exit(0)")
    with folder_lock(tmp_path):
        assert locks.read_holder(tmp_path) == locks.read_holder(tmp_path) != holder
        with pytest.raises(LockedError):
            folder_lock(tmp_path).acquire()


def test_lock_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be locked: it is no folder"):
        folder_lock(tmp_path / "none").acquire()


def test_one_of_many_gets_the_lock(tmp_path: Path) -> None:
    """Eight threads, one folder, a counter that only the lock protects."""
    counter, most, refusals = [0], [0], [0]

    def work() -> None:
        for _ in range(30):
            try:
                with folder_lock(tmp_path):
                    counter[0] += 1
                    most[0] = max(most[0], counter[0])
                    time.sleep(0.0005)
                    counter[0] -= 1
            except LockedError:
                refusals[0] += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and refusals[0] > 0
