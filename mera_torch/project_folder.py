"""A project: a readable folder that holds a model, what it was built into for each target, and what belongs to it.

project.json            schema version, tools, and dtype, shape and checksum of the data files
model/<name>/           a source model (or its .pt2), and model.json, which describes it
build/<target>/         a deployment for each target, as mera_torch.export writes it (Interpreter: see interpreter.py)
data/                   arrays of Deployer.save_data_file
logs/<target>.log       how the target was built
metrics/<target>.json   what its compilation took

A target is built if its folder under build/ holds a deployment: that is the one place where this is written. Needs the
standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .atomic import atomic_file, atomic_folder, settle
from .errors import CorruptFileError, InvalidModelError, StateError, StorageError
from .targets import Target

FORMAT, VERSION = "mera_torch project", 1
FILE = "project.json"
FOLDERS = ("model", "build", "data", "logs", "metrics")
DEPLOYMENTS = ("deployment.json", "interpreter.json")
"""The file, one of these, that makes a folder a deployment."""
_KINDS: dict[str, type] = {"format": str, "version": int, "created": str, "tools": dict, "data": dict}


class ProjectFolder:
    """A project that is there. Raises, when opened, InvalidModelError if there is none or another program's,
    CorruptFileError if its project.json is damaged or of a newer version."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.read()

    @staticmethod
    def create(path: str | os.PathLike[str], replace: bool = False) -> ProjectFolder:
        """An empty project at `path`, or, if there is a project already, that one; replace: an empty one then, too.

        Raises InvalidModelError if something else is there, StorageError if it cannot be written.
        """
        folder = Path(path).absolute()
        if is_project(folder):
            if not replace:
                return ProjectFolder(folder)
            _check_replaceable(folder)
        else:
            _check_empty(folder)
        try:
            with atomic_folder(folder, replace=replace) as new:
                for name in FOLDERS:
                    (new / name).mkdir()
                (new / FILE).write_text(_text(_fresh()), encoding="utf-8")
        except StorageError:
            if replace or not is_project(folder):  # else another process has just made it
                raise
        return ProjectFolder(folder)

    def read(self) -> dict[str, Any]:
        """project.json, checked."""
        path = self.path / FILE
        settle(self.path)
        if not path.is_file():
            raise InvalidModelError(f"{str(self.path)!r} is no project: {_what_is_there(self.path)}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CorruptFileError(f"{str(path)!r} cannot be read: {error}") from error
        return _checked(path, values)

    def update_data(self, name: str, row: Mapping[str, Any]) -> None:
        """Sets the row of a data file."""
        values = self.read()
        values["data"][name] = dict(row)
        self.write(FILE, _text(values))

    def write(self, name: str, text: str) -> None:
        """A file of the project, as one step. Raises StorageError."""
        path = self.path / name
        _make(path.parent)
        with atomic_file(path) as file:
            file.write_text(text, encoding="utf-8")

    def build_folder(self, target: Target) -> Path:
        return self.path / "build" / target.value

    @property
    def targets(self) -> list[Target]:
        """Those that are built."""
        return [target for target in Target if is_deployment(self.build_folder(target))]

    def built(self, target: Target | str | None) -> Target:
        """The target itself, or the only one there is. Raises StateError naming what is built if that does not settle
        it."""
        found = self.targets
        names = ", ".join(found)
        if not found:
            raise StateError(f"project {str(self.path)!r} has no deployment yet: call Deployer.deploy first")
        if target is None:
            if len(found) > 1:
                raise StateError(f"project {str(self.path)!r} is built for {names}: say which with target=")
            return found[0]
        wanted = Target(target)
        if wanted not in found:
            raise StateError(f"project {str(self.path)!r} is not built for {wanted}, but for {names}: deploy it first")
        return wanted


def is_project(path: str | os.PathLike[str]) -> bool:
    """Whether there is a project, sound or not."""
    settle(path)
    return Path(path, FILE).is_file()


def is_deployment(path: str | os.PathLike[str]) -> bool:
    """Whether there is a deployment, sound or not."""
    settle(path)
    return any(Path(path, name).is_file() for name in DEPLOYMENTS)


def manifest_digest(folder: Path) -> str:
    """A checksum of the deployment: of the file that holds those of all others. Raises CorruptFileError."""
    for name in DEPLOYMENTS:
        if (folder / name).is_file():
            return hashlib.sha256((folder / name).read_bytes()).hexdigest()
    raise CorruptFileError(f"{str(folder)!r} holds no deployment")


def plain_name(name: Any, what: str) -> str:
    """The name itself, if it can be a file's. Raises InvalidModelError."""
    bad = not isinstance(name, str) or not name or name.startswith(".") or os.path.basename(name) != name
    if bad or "\0" in name or "\\" in name:
        raise InvalidModelError(f"{what} must be a plain file name, without folders; got {name!r:.80}")
    return str(name)


def now() -> str:
    """The time, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _fresh() -> dict[str, Any]:
    from .versions import versions

    return {
        "format": FORMAT, "version": VERSION, "created": now(), "tools": versions(), "data": {},
    }  # fmt: skip


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1) + "\n"


def _checked(path: Path, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InvalidModelError(f"{str(path)!r} is another program's: it does not say {FORMAT!r}")
    version = values.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise CorruptFileError(
            f"{str(path)!r} was written by a newer mera_torch (schema version {version}, this one reads up to "
            f"{VERSION}): update mera_torch"
        )
    for key, kind in _KINDS.items():
        if not isinstance(values.get(key), kind) or isinstance(values[key], bool):
            raise CorruptFileError(f"{str(path)!r} is damaged: {key!r} is {values.get(key)!r:.60}, no {kind.__name__}")
    unknown = sorted(set(values) - set(_KINDS))
    if unknown or version != VERSION:
        bad = f"unknown key {unknown[0]!r}" if unknown else f"there is no schema version {version}"
        raise CorruptFileError(f"{str(path)!r} is damaged: {bad}")
    for name, row in values["data"].items():
        if not isinstance(row, dict) or not isinstance(row.get("before", {}), dict):
            raise CorruptFileError(f"{str(path)!r} is damaged: data {name!r} is {row!r:.60}")
    return values


def _check_replaceable(folder: Path) -> None:
    try:
        ProjectFolder(folder)
    except CorruptFileError:
        pass  # ours, if damaged or newer


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidModelError(
            f"output_dir {str(folder)!r} cannot become a project: {_what_is_there(folder)}; choose another folder"
        )


def _what_is_there(folder: Path) -> str:
    if not folder.exists():
        return "it does not exist"
    if not folder.is_dir():
        return "it is a file"
    if (folder / "project.mdp").is_file():
        return "it is a project of EdgeCortix's MERA, whose programs only MERA runs: deploy the model again"
    if is_deployment(folder):
        return "it is a deployment"
    names = sorted(path.name for path in folder.iterdir())
    return f"it has no {FILE} and holds {', '.join(names[:3])}{', ...'[: 5 * (len(names) > 3)]}" if names else "empty"


def _make(folder: Path) -> None:
    from .atomic import storage_error

    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
