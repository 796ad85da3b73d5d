"""The project folder: what it holds, what it refuses, who may have it open."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import face
import numpy as np
import pytest

import mera_torch as mera
from mera_torch import ConfigError, CorruptFileError, InvalidModelError, LockedError, StateError, Target
from mera_torch.project_folder import FOLDERS

INT8 = face.TFLITE / "int8.tflite"
FLOAT = face.TFLITE / "float.tflite"
IMAGE = np.full((1, 8, 8, 3), 100, np.uint8)


@pytest.fixture(scope="module")
def model() -> mera.MeraModel:
    return mera.ModelLoader().from_tflite(INT8)


def output(path: Path, target: str | None = None) -> np.ndarray:
    return mera.load_mera_deployment(path, target).get_runner().set_input(IMAGE).run().get_output()


def test_what_a_project_holds(tmp_path: Path) -> None:
    with mera.Deployer(tmp_path / "p") as deployer:
        model = mera.ModelLoader(deployer).from_tflite(INT8, model_name="tiny")
        deployer.deploy(model, "DNAF132S0001", {"compiler_workers": 2}, Target.Simulator, "x86")
        deployer.deploy(model, "SAKURA_1", target="InterpreterHw")
        deployer.deploy(model, target="Interpreter")
        assert deployer.targets == [Target.Interpreter, Target.InterpreterHw, Target.Simulator]
    root = tmp_path / "p"
    assert {path.name for path in root.iterdir() if path.name[0] != "."} == {"project.json", *FOLDERS}
    project = json.loads((root / "project.json").read_text())
    assert project["format"] == "mera_torch project" and project["version"] == 1 and project["tools"]["C core"]
    described = json.loads((root / "model" / "tiny" / "model.json").read_text())
    assert (root / "model" / "tiny" / described["file"]).read_bytes() == INT8.read_bytes()
    assert described["layout"] == "NHWC" and described["inputs"][0]["dtype"] == "uint8" and described["quantized"]
    metrics = mera.Deployer(root).compile_metrics("Simulator")
    assert metrics["platform"] == "DNAF132S0001" and metrics["build_config"]["compiler_workers"] == 2
    assert metrics["host_arch"] == "x86" and metrics["compile_seconds"] > 0 and metrics["model"] == "tiny"
    assert "DNA region 0" in (root / "logs" / "Simulator.log").read_text()
    assert mera.load(root / "build" / "Simulator").platform.name == "DNAF132S0001"
    assert np.array_equal(output(root, "Simulator"), output(root / "build" / "InterpreterHw"))
    assert np.array_equal(output(root, "Simulator"), output(root / "build" / "Simulator", "InterpreterHw"))


def test_deploying_again_replaces_and_overwrite_empties(tmp_path: Path, model: mera.MeraModel) -> None:
    with mera.Deployer(tmp_path / "p") as deployer:
        deployer.deploy(model, "SAKURA_1")
        deployer.deploy(model, "DNAF132S0001")
    assert mera.load(tmp_path / "p" / "build" / "Simulator").platform.name == "DNAF132S0001"
    with mera.Deployer(tmp_path / "p") as deployer:  # continued
        deployer.deploy(model, target="InterpreterHw")
        assert len(deployer.targets) == 2
    with mera.TVMDeployer(tmp_path / "p", overwrite=True) as deployer:
        assert deployer.targets == [] and not any((deployer.path / "build").iterdir())


def test_data_files(tmp_path: Path) -> None:
    deployer = mera.Deployer(tmp_path / "p")
    for name in ("a.bin", "b.npy", "plain"):
        for array in (np.arange(6.0, dtype=np.float32).reshape(2, 3), np.array([-1, 7], np.int64), np.float32(3)):
            path = deployer.save_data_file(name, array)
            found = deployer.load_data_file(name)
            assert found.dtype == np.asarray(array).dtype and np.array_equal(found, array) and path.is_file()
            assert found.shape == np.shape(array) and found.flags.writeable
    assert np.fromfile(tmp_path / "p" / "data" / "a.bin", np.float32) == 3
    assert np.load(tmp_path / "p" / "data" / "b.npy") == 3
    with pytest.raises(mera.StorageError, match="was not saved in this project: did you mean 'a.bin'"):
        deployer.load_data_file("a.bim")
    for bad in ("../x", "a/b", "", ".hidden", 3):
        with pytest.raises(InvalidModelError, match="plain file name"):
            deployer.save_data_file(bad, np.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(InvalidModelError, match="array of numbers"):
        deployer.save_data_file("o", np.array([object()]))
    (tmp_path / "p" / "data" / "a.bin").write_bytes(b"abc")
    with pytest.raises(CorruptFileError, match="checksum"):
        deployer.load_data_file("a.bin")


def test_a_data_file_whose_writer_was_killed_is_the_old_one(tmp_path: Path) -> None:
    """The description goes first, and keeps the one before."""
    deployer = mera.Deployer(tmp_path / "p")
    old = np.arange(3.0)
    path = deployer.save_data_file("x.bin", old)
    before = path.read_bytes()
    deployer.save_data_file("x.bin", np.zeros((2, 2), np.int8))
    path.write_bytes(before)
    assert np.array_equal(deployer.load_data_file("x.bin"), old)


# ---- what is refused ----


def rewrite(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "project.json").read_text())
    (folder / "project.json").write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        ({"version": 2}, CorruptFileError, "written by a newer mera_torch .schema version 2.*update"),
        ({"version": 0}, CorruptFileError, "no schema version 0"),
        ({"version": True}, CorruptFileError, "'version' is True"),
        ({"format": "other"}, InvalidModelError, "another program's"),
        ({"data": []}, CorruptFileError, "'data' is .*no dict"),
        ({"data": {"x": 1}}, CorruptFileError, "data 'x' is 1"),
        ({"surprise": 1}, CorruptFileError, "unknown key 'surprise'"),
    ],
)
def test_a_project_json_that_is_not_ours(
    changes: dict[str, object], kind: type[Exception], match: str, tmp_path: Path
) -> None:
    mera.Deployer(tmp_path / "p")
    rewrite(tmp_path / "p", **changes)
    for open_it in (mera.Deployer, mera.load_mera_deployment):
        with pytest.raises(kind, match=match):
            open_it(tmp_path / "p")
    if kind is CorruptFileError:
        assert mera.Deployer(tmp_path / "p", overwrite=True).targets == []
    else:
        with pytest.raises(kind, match=match):
            mera.Deployer(tmp_path / "p", overwrite=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100000, "\x00\xff"])
def test_a_project_json_that_is_no_json(text: str, tmp_path: Path) -> None:
    mera.Deployer(tmp_path / "p")
    (tmp_path / "p" / "project.json").write_text(text)
    with pytest.raises((CorruptFileError, InvalidModelError)):
        mera.Deployer(tmp_path / "p")


def test_folders_of_others_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "mera").mkdir()
    (tmp_path / "mera" / "project.mdp").write_text("prj_version: 1")
    (tmp_path / "file").write_text("mine")
    for name, match in (("notes", "holds a.txt"), ("mera", "project of EdgeCortix's MERA"), ("file", "it is a file")):
        for overwrite in (False, True):
            with pytest.raises(InvalidModelError, match=match):
                mera.Deployer(tmp_path / name, overwrite=overwrite)
        with pytest.raises(InvalidModelError, match="neither a project nor a deployment"):
            mera.load_mera_deployment(tmp_path / name)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    mera.Deployer(tmp_path / "empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir(mode=0o555)
    with pytest.raises(mera.StorageError):
        mera.Deployer(tmp_path / "ro" / "p")


def test_targets_that_are_not_built(tmp_path: Path, model: mera.MeraModel) -> None:
    deployer = mera.Deployer(tmp_path / "p")
    with pytest.raises(StateError, match="has no deployment yet"):
        mera.load_mera_deployment(tmp_path / "p")
    deployer.deploy(model, target="InterpreterHw")
    assert mera.load_mera_deployment(tmp_path / "p").target is Target.InterpreterHw
    with pytest.raises(StateError, match="is not built for Simulator, but for InterpreterHw"):
        mera.load_mera_deployment(tmp_path / "p", Target.Simulator)
    deployer.deploy(model, target="Interpreter")
    with pytest.raises(StateError, match="built for Interpreter, InterpreterHw: say which"):
        mera.load_mera_deployment(tmp_path / "p")
    with pytest.raises(StateError, match="built for Interpreter, not for Simulator"):
        mera.load_mera_deployment(tmp_path / "p" / "build" / "Interpreter", "Simulator")
    with pytest.raises(StateError, match="built for InterpreterHw, not for Interpreter"):
        mera.load_mera_deployment(tmp_path / "p" / "build" / "InterpreterHw", "Interpreter")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"host_arch": "riscv"}, "host_arch 'riscv' is not supported.*x86, arm"),
        ({"host_arch": "arm"}, "target Simulator runs on x86 hosts alone"),
        ({"host_arch": "arm", "target": "Interpreter"}, "target Interpreter runs on x86 hosts alone"),
        ({"target": "Simulate"}, "unknown target 'Simulate': did you mean 'Simulator'"),
        ({"mera_platform": "SAKURA_7"}, "unknown platform 'SAKURA_7'.*did you mean"),
        ({"mera_platform": 7}, "a platform is a Platform, a name or a path, got 7"),
        ({"build_config": {"sim_freq": 300}}, "unknown key 'sim_freq'.*did you mean 'sim_freq_mhz'"),
    ],
)
def test_deploy_refuses(options: dict[str, object], match: str, tmp_path: Path, model: mera.MeraModel) -> None:
    with pytest.raises(ConfigError, match=match):
        mera.Deployer(tmp_path / "p").deploy(model, **options)  # type: ignore[arg-type]
    assert mera.Deployer(tmp_path / "p").targets == []


def test_what_fails_leaves_what_was(tmp_path: Path, model: mera.MeraModel) -> None:
    deployer = mera.Deployer(tmp_path / "p")
    deployer.deploy(model)
    wanted = output(tmp_path / "p")
    with pytest.raises(mera.UnsupportedError, match="float and target Simulator computes in int8: quantize it"):
        deployer.deploy(mera.ModelLoader(deployer).from_tflite(FLOAT))
    with pytest.raises(InvalidModelError, match="deploy takes a model of ModelLoader, got str"):
        deployer.deploy("net.tflite")  # type: ignore[arg-type]
    assert np.array_equal(output(tmp_path / "p"), wanted)


@pytest.mark.parametrize("name", ["model.pt2", "interpreter.json"])
def test_an_altered_interpreter(name: str, tmp_path: Path, model: mera.MeraModel) -> None:
    mera.Deployer(tmp_path / "p").deploy(model, target="Interpreter")
    path = tmp_path / "p" / "build" / "Interpreter" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptFileError, match=name):
        mera.load_mera_deployment(tmp_path / "p").get_runner()


# ---- several processes ----

HOLD = """
import sys, time, mera_torch
with mera_torch.Deployer(sys.argv[1]):
    print("open", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_has_it_open(tmp_path: Path, model: mera.MeraModel) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "p")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        deployer = mera.Deployer(tmp_path / "p")  # looking is free
        for use in (deployer.__enter__, lambda: deployer.deploy(model), lambda: mera.Deployer(tmp_path / "p", True)):
            with pytest.raises(LockedError, match=rf"process {process.pid} "):
                use()
    finally:
        process.kill()
        process.wait()
    with mera.Deployer(tmp_path / "p", overwrite=True) as deployer:
        deployer.deploy(model)


def test_one_object_at_a_time_within_a_process(tmp_path: Path, model: mera.MeraModel) -> None:
    with mera.Deployer(tmp_path / "p") as first:
        with pytest.raises(LockedError, match="in this process"), mera.Deployer(tmp_path / "p"):
            pass
        first.deploy(model)
    with mera.Deployer(tmp_path / "p") as second:
        assert second.targets == [Target.Simulator]


DEPLOY = """
import sys, mera_torch
model = mera_torch.ModelLoader().from_tflite(sys.argv[2])
deployer = mera_torch.Deployer(sys.argv[1])
while True:
    for platform in ("DNAF132S0001", "SAKURA_1"):
        with deployer:
            deployer.deploy(model, platform, target="InterpreterHw")
            deployer.save_data_file("x.bin", [1.0] * (3 if platform == "SAKURA_1" else 5))
        print("go", flush=True)
"""


@pytest.mark.parametrize("times", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_any_moment(times: int, tmp_path: Path, model: mera.MeraModel) -> None:
    path = tmp_path / "p"
    with mera.Deployer(path) as deployer:
        deployer.deploy(model, target="InterpreterHw")
        deployer.save_data_file("x.bin", [1.0] * 3)
    wanted = output(path)
    rng = np.random.default_rng(times)
    found = set()
    for _ in range(times):
        command = [sys.executable, "-c", DEPLOY, str(path), str(INT8)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "go\n"
            begin = time.perf_counter()
            process.stdout.readline()
            time.sleep(rng.uniform(0, time.perf_counter() - begin))  # anywhere in a cycle
            process.send_signal(signal.SIGKILL)
        assert np.array_equal(output(path), wanted)
        with mera.Deployer(path) as deployer:  # the lock of the dead is no one's
            assert deployer.load_data_file("x.bin").size in (3, 5)
            found.add(mera.load(deployer.project.build_folder(Target.InterpreterHw)).platform.name)
    assert found <= {"DNAF132S0001", "SAKURA_1"}
    assert not [name for name in os.listdir(path) if ".mera-" in name]
