"""The zoo: what it does when the registry's client fails or brings other bytes; and its real artifacts."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mera_torch import MeraError, zoo
from mera_torch.zoo_models import MODELS


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(zoo.CACHE_VARIABLE, str(tmp_path))
    return tmp_path


def wheel(path: Path, text: str = "hello") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/file.txt", text)
    return path


def client(monkeypatch: pytest.MonkeyPatch, action: Callable[[Path], None], code: int = 0, stderr: str = "") -> None:
    """Puts a stand-in for pip and npm in place: action gets the folder that the archive is to come into."""

    def run(command: list[str], *, cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        action(Path(cwd))
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)


def pinned(monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
    monkeypatch.setitem(zoo.ARTIFACTS, "thing", zoo.Artifact("pypi", "thing", "1.0", sha256, "a thing"))


def test_fetches_once_then_reads_from_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    original = wheel(tmp_path_factory.mktemp("registry") / "thing.whl")
    pinned(monkeypatch, hashlib.sha256(original.read_bytes()).hexdigest())
    calls: list[Path] = []
    client(
        monkeypatch, lambda folder: (calls.append(folder), (folder / "thing.whl").write_bytes(original.read_bytes()))[0]
    )
    assert zoo.read("thing", "package/file.txt") == b"hello"
    assert zoo.read("thing", "package/file.txt") == b"hello"
    assert len(calls) == 1
    assert [path.name for path in cache.iterdir()] == ["thing-1.0.zip"]


def test_an_artifact_that_the_zoo_does_not_list(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(wheel(cache / "thing-1.0.zip").read_bytes()).hexdigest()
    listed_nowhere = zoo.Artifact("pypi", "thing", "1.0", digest, "a thing")
    assert zoo.read(listed_nowhere, "package/file.txt") == b"hello"
    client(monkeypatch, lambda folder: None, 1, "npm error network ENOTFOUND")
    with pytest.raises(zoo.ZooError, match=r"the zoo's 'other' \(other@2.0, .*ENOTFOUND.*'other-2.0.tgz' into"):
        zoo.read(zoo.Artifact("npm", "other", "2.0", digest, "another thing"), "package/file.txt")


def test_damaged_cache_is_fetched_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    original = wheel(tmp_path_factory.mktemp("registry") / "thing.whl")
    pinned(monkeypatch, hashlib.sha256(original.read_bytes()).hexdigest())
    (cache / "thing-1.0.zip").write_bytes(original.read_bytes()[:-5])
    client(monkeypatch, lambda folder: (folder / "thing.whl").write_bytes(original.read_bytes()))  # type: ignore[arg-type, return-value]
    assert zoo.read("thing", "package/file.txt") == b"hello"


def test_members_of_zip_files_in_the_archive(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inner = wheel(tmp_path / "inner.zip", "within")
    with zipfile.ZipFile(cache / "thing-1.0.zip", "w") as archive:
        archive.write(inner, "data/inner.zip")
    pinned(monkeypatch, hashlib.sha256((cache / "thing-1.0.zip").read_bytes()).hexdigest())
    assert zoo.read("thing", "data/inner.zip!package/file.txt") == b"within"
    with pytest.raises(zoo.ZooError, match="no-such"):
        zoo.read("thing", "data/inner.zip!no-such")


def test_source_archives_and_wheels_of_one_platform(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    original = tmp_path_factory.mktemp("registry") / "thing-1.0.tar.gz"
    with tarfile.open(original, "w:gz") as tarball:
        tarball.add(__file__, "thing-1.0/file.txt")
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    source = zoo.Artifact("pypi", "thing", "1.0", digest, "a thing", kind="source")
    monkeypatch.setitem(zoo.ARTIFACTS, "thing", source)
    client(monkeypatch, lambda folder: (folder / original.name).write_bytes(original.read_bytes()))  # type: ignore[arg-type, return-value]
    assert zoo.read("thing", "thing-1.0/file.txt") == Path(__file__).read_bytes()
    assert [path.name for path in cache.iterdir()] == ["thing-1.0.tgz"]
    assert "--no-binary=thing" in zoo._pip(source, cache) and "--only-binary=:all:" not in zoo._pip(source, cache)
    tagged = zoo.Artifact("pypi", "thing", "1.0", digest, "a thing", tags=("311", "cp311", "manylinux2014_x86_64"))
    command = " ".join(zoo._pip(tagged, cache))
    assert "--only-binary=:all:" in command
    assert "--python-version 311 --abi cp311 --platform manylinux2014_x86_64" in command


def test_other_bytes_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned(monkeypatch, "0" * 64)
    client(monkeypatch, lambda folder: wheel(folder / "thing.whl"))  # type: ignore[arg-type, return-value]
    with pytest.raises(zoo.ZooError, match="expected 0000"):
        zoo.archive("thing")
    assert not list(cache.iterdir())


def test_client_failure_is_one_sentence_with_a_remedy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned(monkeypatch, "0" * 64)
    client(monkeypatch, lambda _: None, code=1, stderr="looking\nERROR: no matching distribution\n")
    with pytest.raises(
        MeraError, match=r"cannot fetch .*thing==1.0.*no matching distribution.*put the archive as 'thing-1.0.zip'"
    ):
        zoo.archive("thing")


def test_missing_npm_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.shutil, "which", lambda _: None)
    with pytest.raises(zoo.ZooError, match="npm"):
        zoo.archive("digits")


def test_unknown_names(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(zoo.ZooError, match="it has mobilenet_v2"):
        zoo.archive("mobilenet_v3")
    pinned(monkeypatch, hashlib.sha256(wheel(cache / "thing-1.0.zip").read_bytes()).hexdigest())
    with pytest.raises(zoo.ZooError, match="other.txt"):
        zoo.read("thing", "other.txt")


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv(zoo.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(zoo.ZooError, match=zoo.CACHE_VARIABLE):
        zoo.archive("photos")


@pytest.mark.parametrize("name", MODELS)
def test_networks_take_every_size(name: str) -> None:
    model = MODELS[name].build().eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 65, 97)).shape == (2, 1000)


@pytest.mark.network
@pytest.mark.parametrize("name", MODELS)
def test_real_weights_name_real_photos(name: str, zoo_artifact: Callable[[str], None]) -> None:
    from mera_torch.zoo_models import class_names, photos

    for artifact in (name, "photos", "class_names"):
        zoo_artifact(artifact)
    entry = MODELS[name]
    model = entry.load()
    with torch.no_grad():
        right = sum(int(model(entry.preprocess(photo.data)).argmax()) == photo.label for photo in photos())
    assert right >= 18  # of 20
    assert len(class_names()) == 1000


@pytest.mark.network
def test_zoo_digits_are_split_without_overlap(zoo_artifact: Callable[[str], None]) -> None:
    from mera_torch.digits import calibration_digits, held_out_digits
    from mera_torch.zoo_models import zoo_digits

    zoo_artifact("digits")
    train, held_out = zoo_digits()
    assert (len(train), len(held_out)) == (8000, 2000)
    seen = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in seen for image in (*held_out.images, *held_out_digits().images))
    assert all(image.numpy().tobytes() in seen for image in calibration_digits().images)
