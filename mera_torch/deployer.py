"""Deployer: a project folder, and what is deployed into it."""

from __future__ import annotations

import hashlib
import json
import os
import platform as host
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from . import interpreter
from .atomic import atomic_file, atomic_folder
from .compile import export
from .config import build_config as checked_config
from .errors import (
    ConfigError,
    CorruptFileError,
    InvalidModelError,
    StateError,
    StorageError,
    UnsupportedError,
    nearest,
)
from .loader import FOR_QUANTIZING, MeraModel
from .locks import FolderLock, folder_lock
from .platform import Platform
from .platform import find as find_platform
from .project_folder import ProjectFolder, is_project, manifest_digest, now, plain_name
from .runner import MeraDeployment
from .targets import Target

HOST_ARCHITECTURES = ("x86", "arm")
_MACHINES = {"x86_64": "x86", "amd64": "x86", "i386": "x86", "i686": "x86", "aarch64": "arm", "arm64": "arm"}


class Deployer:
    """A project folder: `with Deployer("project", overwrite=True) as deployer: ...` holds its lock.

    output_dir: made if it is not there; a project that is there is continued, or emptied if overwrite is true.

    Raises InvalidModelError if something else is there, CorruptFileError if its project.json is damaged or of a newer
    version (overwrite=True replaces it), LockedError naming the holder if it is open elsewhere, StorageError if it
    cannot be written. Without `with`, each call takes the lock for itself.
    """

    def __init__(self, output_dir: str | os.PathLike[str], overwrite: bool = False) -> None:
        path = Path(output_dir).absolute()
        if overwrite and is_project(path):
            with folder_lock(path):
                self.project = ProjectFolder.create(path, replace=True)
        else:
            self.project = ProjectFolder.create(path)
        self._lock: FolderLock | None = None
        self._writing, self._nested = threading.RLock(), False

    @property
    def path(self) -> Path:
        return self.project.path

    @property
    def targets(self) -> list[Target]:
        """What is built."""
        return self.project.targets

    def __enter__(self) -> Deployer:
        self._lock = folder_lock(self.path).acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Releases the lock."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def deploy(
        self,
        model: MeraModel,
        mera_platform: Platform | str | os.PathLike[str] = "DNAF200L0003",
        build_config: Mapping[str, Any] | None = None,
        target: Target | str = Target.Simulator,
        host_arch: str | None = None,
    ) -> MeraDeployment:
        """Compiles a model of ModelLoader for a target; a deployment for the same target is replaced, as one step.

        mera_platform: Platform.SAKURA_1, its name, or a TOML file. build_config: see docs/export.md. host_arch: "x86"
        or "arm", of the machine that will run it (default: any); the simulators and interpreters are for x86 alone.

        Raises UnsupportedError (a float model for a target of int8; a target that does not exist yet), ConfigError
        (unknown target, platform, host_arch or key, naming the nearest), InvalidModelError, DoesNotFitError,
        StorageError. What was deployed before is untouched then.
        """
        wanted = Target(target).check_available()
        if not isinstance(model, MeraModel):
            raise InvalidModelError(
                f"deploy takes a model of ModelLoader, got {type(model).__name__}: see ModelLoader.from_tflite"
            )
        arch = check_host_arch(host_arch, wanted)
        machine, config = find_platform(mera_platform), checked_config(build_config)
        if wanted is not Target.Interpreter and not model.quantized:
            raise UnsupportedError(
                f"model {model.model_name!r} is float and target {wanted} computes in int8: quantize it "
                f"({FOR_QUANTIZING}), or deploy it for Target.Interpreter"
            )
        with self._held():
            begin = time.perf_counter()
            folder = self.project.build_folder(wanted)
            facts: dict[str, Any] = {}
            if wanted is Target.Interpreter:
                interpreter.save(model.module, folder, model.model_name)
                explanation = "every operator in PyTorch, on the host"
            else:
                built = export(
                    model.module, None, folder, platform=machine, target=wanted.value,
                    build_config=build_config, overwrite=True,
                )  # fmt: skip
                explanation = built.explanation
                facts = {
                    "regions": len(built.regions), "host_operators": built.host_operators,
                    "lower_bound_cycles": built.lower_bound_cycles,
                }  # fmt: skip
            metrics = {
                "model": model.model_name, "target": wanted.value, "platform": machine.name, "host_arch": arch,
                "build_config": config.values, "compile_seconds": round(time.perf_counter() - begin, 3),
                "compile_date": now(), "deployment_sha256": manifest_digest(folder), **facts,
            }  # fmt: skip
            self._record(wanted, metrics, explanation)
        return MeraDeployment(folder, wanted, self.project)

    def compile_metrics(self, target: Target | str) -> dict[str, Any]:
        """What the deployment for the target took to make: metrics/<target>.json.

        Raises StateError if it is not built, or its maker was killed before it wrote them; CorruptFileError.
        """
        found = self.project.built(target)
        path = self.path / "metrics" / f"{found.value}.json"
        try:
            metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CorruptFileError(f"{str(path)!r} cannot be read: {error}") from error
        if metrics.get("deployment_sha256") != manifest_digest(self.project.build_folder(found)):
            raise StateError(f"{str(path)!r} is of an earlier deployment: deploy for {found} again")
        return metrics

    # ---- data files ----

    def save_data_file(self, filename: str, data: npt.ArrayLike) -> Path:
        """Keeps an array in the project for other programs: its bytes, in C order, or, for a name that ends in .npy,
        a numpy file. Shape and dtype stand in project.json. The path of the file."""
        name = plain_name(filename, "filename")
        array = np.ascontiguousarray(data)
        if array.dtype.kind not in "biufc":
            raise InvalidModelError(f"save_data_file: an array of numbers is needed, got dtype {array.dtype}")
        path = self.path / "data" / name
        row = {
            "dtype": array.dtype.str, "shape": list(np.shape(data)), "sha256": _digest(array.tobytes()),
        }  # fmt: skip
        with self._held():
            before = self.project.read()["data"].get(name)
            if before is not None:  # whichever of the two the file is when this process is killed now
                row["before"] = {key: value for key, value in before.items() if key != "before"}
            self.project.update_data(name, row)
            with atomic_file(path) as file, open(file, "wb") as stream:
                if name.endswith(".npy"):
                    np.save(stream, array.reshape(np.shape(data)), allow_pickle=False)
                else:
                    stream.write(array.tobytes())
        return path

    def load_data_file(self, filename: str) -> npt.NDArray[Any]:
        """What save_data_file kept, with its shape and dtype. Raises StorageError if there is no such file,
        CorruptFileError if it was altered."""
        name = plain_name(filename, "filename")
        rows = self.project.read()["data"]
        path = self.path / "data" / name
        if name not in rows:
            known = nearest(name, rows) if rows else "there are none"
            raise StorageError(f"{str(path)!r} was not saved in this project: {known}")
        try:
            if name.endswith(".npy"):
                data = np.load(path, allow_pickle=False).tobytes()
            else:
                data = path.read_bytes()
            row = next(row for row in (rows[name], rows[name].get("before", {})) if row.get("sha256") == _digest(data))
            array: npt.NDArray[Any] = np.frombuffer(data, np.dtype(row["dtype"])).reshape(row["shape"]).copy()
            return array
        except StopIteration:
            raise CorruptFileError(f"{str(path)!r} was truncated or altered: its checksum does not match") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(f"{str(path)!r} cannot be read: {error}") from error

    # ---- within ----

    def add_model(self, name: str, row: Mapping[str, Any], write: Callable[[Path], None] | None = None) -> None:
        """Keeps a model as model/<name>/: model.json describes it, write(folder) adds its files."""
        with self._held(), atomic_folder(self.path / "model" / name) as folder:
            if write is not None:
                write(folder)
            (folder / "model.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")

    def _record(self, target: Target, metrics: Mapping[str, Any], explanation: str) -> None:
        lines = [f"{key}: {value}" for key, value in metrics.items()]
        self.project.write(f"logs/{target.value}.log", "\n".join([*lines, "", explanation, ""]))
        self.project.write(f"metrics/{target.value}.json", json.dumps(metrics, indent=1, default=dict) + "\n")

    @contextmanager
    def _held(self) -> Iterator[None]:
        """With the project's lock, taken for the moment where it is not held already."""
        with self._writing:
            if self._lock is not None or self._nested:
                yield
                return
            with folder_lock(self.path):
                self._nested = True
                try:
                    yield
                finally:
                    self._nested = False


TVMDeployer = Deployer


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_host_arch(given: str | None, target: Target) -> str:
    """ "x86" or "arm"; None: this machine's. Raises ConfigError if it is another or not the target's."""
    if given is None:
        return _MACHINES.get(host.machine().lower(), host.machine())
    if given not in HOST_ARCHITECTURES:
        raise ConfigError(
            f"host_arch {given!r} is not supported: {nearest(str(given), HOST_ARCHITECTURES)}; there are "
            f"{', '.join(HOST_ARCHITECTURES)}"
        )
    if given != "x86" and target.x86_only:
        raise ConfigError(f"host_arch {given!r}: target {target} runs on x86 hosts alone; target IP runs on both")
    return given
