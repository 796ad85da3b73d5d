"""The compile cache: a program is kept under a hash of all that decides it, and compiled once.

The key is the graph's bytes (weights, quantization and names included), the platform, every option of the compiler that
changes its result, and the C core's version and build. An entry is one file: a line of JSON that says what it is, then
the program. Entries appear whole (one rename) and are never changed, so that any number of processes may read, write
and remove them without a lock; one that is damaged is removed and compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import native
from .atomic import atomic_file, storage_error, sweep
from .errors import ConfigError, MeraError
from .platform import Platform

FORMAT = 1
FOLDER_VARIABLE, SWITCH_VARIABLE = "MERA_CACHE_DIR", "MERA_CACHE"
DEFAULT_LIMIT_BYTES = 2 << 30
LIMIT_FILE, SUFFIX = "limit.json", ".program"
NOT_IN_KEY = frozenset({"workers"})
"""Options of the compiler on which its result does not depend."""

log = logging.getLogger(__name__)
_folder: Path | None = None


@dataclass(frozen=True)
class Entry:
    """A program of the cache. used: when it was last read or written (seconds since 1970); seconds: what compiling it
    took."""

    key: str
    bytes: int
    used: float
    graph: str
    platform: str
    seconds: float


@dataclass(frozen=True)
class Compiled:
    """A program and, where they are at hand, its bytes. cache: "hit", "miss" or "off"; seconds: what having it took."""

    program: native.Program
    data: bytes | None
    cache: str
    seconds: float


class Cache:
    """The entries of one folder, which is made when the first one is written."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @property
    def limit_bytes(self) -> int:
        """How much the entries may take; it is kept in the folder."""
        try:
            limit = json.loads((self.folder / LIMIT_FILE).read_text(encoding="utf-8"))["bytes"]
            return limit if isinstance(limit, int) and limit >= 0 else DEFAULT_LIMIT_BYTES
        except (OSError, ValueError, KeyError, TypeError):
            return DEFAULT_LIMIT_BYTES

    @limit_bytes.setter
    def limit_bytes(self, limit: int) -> None:
        """Keeps the limit and removes what exceeds it. Raises StorageError."""
        self._make_folder()
        with atomic_file(self.folder / LIMIT_FILE) as path:
            path.write_text(json.dumps({"bytes": limit}), encoding="utf-8")
        self.trim()

    def get(self, key: str) -> tuple[native.Program, bytes] | None:
        """The program of that key and its bytes; None if there is none, or none that is whole: it is removed then."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("compile cache: %s", storage_error(path, error, "read"))
            return None
        try:
            data = _unpacked(key, data)
            program = native.Program.load(data)
        except (MeraError, ValueError, KeyError, TypeError) as error:
            log.warning("compile cache: entry %s is damaged (%s): removed, compiled anew", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return program, data

    def put(self, key: str, data: bytes, graph: str, platform: str, seconds: float) -> None:
        """Keeps a program's bytes. A disk that is full or read-only is a line in the log and no error: the program
        exists."""
        about = {
            "format": FORMAT, "key": key, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
            "graph": graph, "platform": platform, "seconds": round(seconds, 6),
        }  # fmt: skip
        if len(data) > self.limit_bytes:
            return
        try:
            self._make_folder()
            with atomic_file(self._path(key), durable=False) as path:
                path.write_bytes(json.dumps(about).encode() + b"\n" + data)
            self.trim()
        except MeraError as error:
            log.warning("compile cache: the program of %r is not kept: %s", graph, error)

    def entries(self) -> list[Entry]:
        """All entries, the one that was used last first."""
        found = []
        for path in self._files():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                with open(path, "rb") as file:
                    about = json.loads(file.readline(1 << 16))
                status = path.stat()
                found.append(
                    Entry(path.name.removesuffix(SUFFIX), status.st_size, status.st_mtime, str(about["graph"]),
                          str(about["platform"]), float(about["seconds"]))
                )  # fmt: skip
        return sorted(found, key=lambda entry: -entry.used)

    def trim(self, limit_bytes: int | None = None) -> int:
        """Removes the entries that were used longest ago until the rest fits the limit, and what killed writers left;
        gives how many. Several processes may do so at once: each counts what another has removed as gone."""
        limit = self.limit_bytes if limit_bytes is None else limit_bytes
        sweep(self.folder)
        sizes = []
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                sizes.append((status.st_mtime, status.st_size, path))
        total, removed = sum(size for _, size, _ in sizes), 0
        for _, size, path in sorted(sizes):
            if total <= limit:
                break
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(path, error, "removed") from error
            total, removed = total - size, removed + 1
        return removed

    def clear(self) -> int:
        """Removes every entry; gives how many. Raises StorageError."""
        return self.trim(-1)

    def _files(self) -> list[Path]:
        return list(self.folder.glob(f"*{SUFFIX}"))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.folder, error, "made") from error


def use(folder: str | os.PathLike[str] | None) -> None:
    """Puts this process's cache into another folder; None: back to $MERA_CACHE_DIR or the user's cache folder."""
    global _folder
    _folder = None if folder is None else Path(folder)


def default() -> Cache | None:
    """The cache of this process: see use(). None if $MERA_CACHE switches it off, or where platformdirs, which knows the
    user's cache folder, is not installed and no folder is named."""
    switch = os.environ.get(SWITCH_VARIABLE, "").lower()
    if switch not in ("", "0", "1", "on", "off"):
        raise ConfigError(f"{SWITCH_VARIABLE} must be 0 (off) or 1 (on), got {switch!r}")
    if switch in ("0", "off"):
        return None
    named = _folder or os.environ.get(FOLDER_VARIABLE)
    if named:
        return Cache(named)
    try:
        from platformdirs import user_cache_path
    except ModuleNotFoundError:
        return None
    return Cache(user_cache_path("mera_torch", appauthor=False) / "programs")


def key_of(graph: bytes, platform: Platform, options: Mapping[str, int]) -> str:
    """The hash of all that decides the program; graph: as Graph.save gives it."""
    values = native.compiler_options(options)
    decides = {
        "format": FORMAT, "core": native.core_version(), "build": native.core_build(), "platform": asdict(platform),
        "options": {name: value for name, value in values.items() if name not in NOT_IN_KEY},
        "graph": hashlib.sha256(graph).hexdigest(),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def compile(
    graph: native.Graph,
    platform: Platform,
    options: Mapping[str, int],
    progress: native.Progress | None = None,
    *,
    saved: Callable[[], bytes] | None = None,
    name: str = "",
    cached: bool = True,
) -> Compiled:
    """The program, from the cache if it is there; else compiled, and kept if `cached`. Raises as Graph.compile.

    saved: gives graph.save(), for a caller that keeps it. name: what the cache's list calls the graph.
    """
    begin = time.perf_counter()
    cache = default() if cached and native.core_build() != "unknown" else None
    if cache is None:
        program = graph.compile(platform, options, progress)
        return Compiled(program, None, "off", time.perf_counter() - begin)
    key = key_of((saved or graph.save)(), platform, options)
    found = cache.get(key)
    if found is not None:
        if progress is not None:
            progress("compile cache", 1, 1)
        return Compiled(*found, "hit", time.perf_counter() - begin)
    program = graph.compile(platform, options, progress)
    seconds, data = time.perf_counter() - begin, program.save()
    cache.put(key, data, name, platform.name, seconds)
    return Compiled(program, data, "miss", seconds)


def _unpacked(key: str, data: bytes) -> bytes:
    """The program's bytes of an entry. Raises ValueError, KeyError or TypeError for what is not that entry, whole."""
    line, _, program = data.partition(b"\n")
    about: dict[str, Any] = json.loads(line)
    if about["format"] != FORMAT or about["key"] != key:
        raise ValueError("it is another entry")
    if about["bytes"] != len(program) or about["sha256"] != hashlib.sha256(program).hexdigest():
        raise ValueError("its checksum does not match")
    return program
