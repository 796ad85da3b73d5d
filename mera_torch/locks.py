"""A lock on a folder that one process has open, which tells a second one who that is.

FOLDER/.mera.lock       locked by the system as long as the holder lives, so that a dead holder never blocks
FOLDER/.mera.holder     who holds it: JSON
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

import filelock

from .atomic import storage_error
from .errors import LockedError, StorageError

LOCK_FILE, HOLDER_FILE = ".mera.lock", ".mera.holder"
COMMAND_CHARACTERS = 120


@dataclass(frozen=True)
class Holder:
    """A process: since is an ISO 8601 time with its zone; started tells it from later ones of the same pid."""

    pid: int
    host: str
    command: str
    since: str
    started: str = ""

    @staticmethod
    def this() -> Holder:
        """This process, now."""
        command = " ".join(" ".join(sys.orig_argv).split())
        if len(command) > COMMAND_CHARACTERS:
            command = command[: COMMAND_CHARACTERS - 3] + "..."
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        return Holder(os.getpid(), socket.gethostname(), command, now, _started(os.getpid()))

    @property
    def dead(self) -> bool:
        """Whether it is certain that the process is no more."""
        if self.host != socket.gethostname() or self.pid == os.getpid():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return bool(self.started) and _started(self.pid) not in ("", self.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command}), since {self.since}"


class FolderLock:
    """acquire() and release(), or `with`. The lock ends with the process at the latest."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._lock: filelock.BaseFileLock | None = None

    @property
    def held(self) -> bool:
        return self._lock is not None

    def acquire(self) -> FolderLock:
        """Locks the folder, without waiting. Raises LockedError naming the holder, StorageError if the folder is not
        there or cannot be written."""
        if self._lock is not None:
            raise LockedError(f"{str(self.folder)!r} is open in this object already: release it first")
        if not self.folder.is_dir():
            raise StorageError(f"{str(self.folder)!r} cannot be locked: it is no folder")
        lock = self._taken()
        try:
            _write_holder(self.folder / HOLDER_FILE)
        except OSError as error:
            lock.release()
            raise storage_error(self.folder, error, "locked") from error
        self._lock = lock
        return self

    def release(self) -> None:
        """Unlocks the folder; nothing happens if it is not locked."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):
                (self.folder / HOLDER_FILE).unlink(missing_ok=True)
            lock.release()

    def _taken(self) -> filelock.BaseFileLock:
        path = self.folder / LOCK_FILE
        for attempt in range(10):
            lock = filelock.FileLock(path, timeout=0, thread_local=False)
            try:
                lock.acquire()
                return lock
            except filelock.Timeout:
                holder = read_holder(self.folder)
            except OSError as error:
                raise storage_error(self.folder, error, "locked") from error
            if holder is not None and holder.dead:  # a child of a dead holder keeps the system's lock
                self._break()
            elif holder is not None or attempt == 9:
                break
            else:
                time.sleep(0.02)  # it has the lock and has not yet said who it is
        raise LockedError(_refusal(self.folder, holder))

    def _break(self) -> None:
        """Gives the lock of a dead holder a new file; one process at a time, and only if it is still that holder's."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            holder = read_holder(self.folder)
            if holder is not None and holder.dead:
                (self.folder / LOCK_FILE).unlink(missing_ok=True)
                (self.folder / HOLDER_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(self.folder, error, "locked") from error
        finally:
            os.close(folder)

    def __enter__(self) -> FolderLock:
        return self if self.held else self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def folder_lock(folder: str | os.PathLike[str]) -> FolderLock:
    """A lock on a folder that is there: `with folder_lock(path): ...`, or .acquire() and .release().

    One holder at a time, over processes and within this one. Raises, when acquired, LockedError naming the holder (pid,
    host, command, since when), StorageError if the folder is missing or read-only.
    """
    return FolderLock(folder)


def read_holder(folder: str | os.PathLike[str]) -> Holder | None:
    """Who said last that it holds the folder; None if nobody did, or not readably."""
    try:
        return Holder(**json.loads(Path(folder, HOLDER_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _refusal(folder: Path, holder: Holder | None) -> str:
    if holder is None:
        return f"{str(folder)!r} is open in another process, which does not say who it is: close it there first"
    if holder.pid == os.getpid() and holder.host == socket.gethostname():
        return f"{str(folder)!r} is open in this process already, since {holder.since}: close it first"
    return f"{str(folder)!r} is open in {holder}: close it there first"


def _write_holder(path: Path) -> None:
    """One rename, so that nobody reads half of it; the lock is what keeps other writers away."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(asdict(Holder.this())), encoding="utf-8")
    os.replace(fresh, path)


def _started(pid: int) -> str:
    """When the kernel started the process, in its own ticks; "" where that is not told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
