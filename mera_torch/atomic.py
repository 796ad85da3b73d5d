"""Writes that happen whole or not at all: kill -9, a full disk or a power cut leave either the old state or the new.

What is written goes into a scratch folder beside its place and takes that place as one step, once it is on the disk:

    .NAME.mera-XXXXXXXX/owner     locked (flock) as long as the writer lives
    .NAME.mera-XXXXXXXX/new       what is being written
    .NAME.mera-XXXXXXXX/old       what was there, on file systems that cannot exchange two folders

Scratch folders whose owner is dead are removed by the next writer of the same place; a living writer's never. Where
two folders cannot be exchanged, a replacement is two renames: `old` beside `new` says that the writer died between
them, and the next reader or writer finishes its work. Needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import glob
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import StorageError

MARK = ".mera-"
SETTLE_SECONDS = 2.0
"""How long a reader waits for a living writer that is between two renames."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_REMEDIES = {
    errno.ENOSPC: "free space on that disk, or choose another",
    errno.EDQUOT: "free space within your quota, or choose another disk",
    errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.EACCES: "choose a folder in which you may write",
    errno.EPERM: "choose a folder in which you may write",
    errno.EBUSY: "it is a mount point: choose a folder in it",
    errno.EXDEV: "it is a mount point: choose a folder in it",
    errno.ENOTDIR: "a file is in its way: choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTEMPTY: "it holds something already",
    errno.ENOENT: "its folder must exist",
}
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def atomic_file(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """A path of the same name to write to; the file there becomes `path` if nothing fails. A device or a pipe is
    written as it is.

    durable: whether it is on the disk when this ends; without, only the order is kept: a power cut may lose it.

    Raises StorageError, naming path and remedy, if it cannot be written; `path` is then what it was.
    """
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise StorageError(f"{os.fspath(path)!r} cannot be written: it is a folder; name a file in it")
    if final.exists() and not final.is_file():
        with _storing(path):
            yield final
        return
    with _scratch(path, final) as scratch:
        written = scratch / "new" / final.name
        yield written
        with _storing(path):
            if durable:
                _sync(written)
            os.replace(written, final)
            if durable:
                _sync(final.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], replace: bool = True) -> Iterator[Path]:
    """A new, empty folder to fill; it becomes `path`, all of it, as one step if nothing fails.

    replace: whether it may take the place of a folder that holds something; of several writers the last one wins.
    Missing parents are made. Raises StorageError, naming path and remedy, if it cannot be written; `path` is then what
    it was.
    """
    final = Path(os.path.realpath(path))
    with _storing(path):
        final.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(path, final) as scratch:
        new = scratch / "new"
        yield new
        with _storing(path):
            for folder, _, names in os.walk(new, topdown=False):
                for name in names:
                    _sync(Path(folder, name))
                _sync(Path(folder))
            _install(new, scratch / "old", final, replace)
            _sync(final.parent)


def settle(path: str | os.PathLike[str]) -> None:
    """For readers: if `path` is missing because its writer was killed between two renames, finishes its work; if a
    living writer is between them, waits for it. Never raises."""
    final = Path(os.path.realpath(path))
    deadline = time.monotonic() + SETTLE_SECONDS
    while not final.exists() and _clean(final) and time.monotonic() < deadline:
        time.sleep(0.005)


def sweep(folder: str | os.PathLike[str]) -> None:
    """Removes what dead writers of any file or folder in `folder` left."""
    for name in glob.glob(f".*{MARK}*", root_dir=folder):
        _clean(Path(os.path.realpath(folder), name[1 : name.rindex(MARK)]))


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raises StorageError if there is no folder to write `path` into: ask before long work."""
    if not Path(os.path.realpath(path)).parent.is_dir():
        raise storage_error(path, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))


def storage_error(path: str | os.PathLike[str], error: OSError, doing: str = "written") -> StorageError:
    """The sentence for an OSError: what, why, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "")
    why = error.strerror or str(error)
    return StorageError(f"{os.fspath(path)!r} cannot be {doing}: {why}{remedy and '; ' + remedy}")


@contextmanager
def _storing(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


# ---- scratch folders ----


@contextmanager
def _scratch(path: str | os.PathLike[str], final: Path) -> Iterator[Path]:
    """A scratch folder that holds an empty folder `new`; it is removed at the end, whatever happens.

    OSErrors of the body become StorageErrors, but for those that name a file elsewhere.
    """
    with _storing(path):
        _clean(final)
        owner = None
        while owner is None:  # another writer may take it for a dead one's before it is locked
            folder = Path(tempfile.mkdtemp(prefix=f".{final.name}{MARK}", dir=final.parent))
            owner = _own(folder, fresh=True)
    try:
        with _storing(path):
            (folder / "new").mkdir()
        yield folder
    except OSError as error:
        if error.filename is not None and not os.fsdecode(error.filename).startswith(str(folder)):
            raise
        raise storage_error(path, error) from error
    finally:
        _discard(folder, final)
        os.close(owner)


def _own(folder: Path, fresh: bool = False) -> int | None:
    """A descriptor that makes the scratch folder this process's, or None if another one's or gone.

    fresh: it was made by this call's process; then a file system without locks does not matter.
    """
    try:
        owner = os.open(folder / "owner", os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if fresh else 0), 0o600)
    except FileNotFoundError:
        if not fresh:
            with contextlib.suppress(OSError):  # its writer died, or is about to make the file; or it is not of ours
                folder.rmdir()
        return None
    except OSError:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return None
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(owner), os.stat(folder / "owner")):
            return owner
    except OSError as error:
        if fresh and error.errno in _NO_LOCKS:
            return owner
    os.close(owner)
    return None


def _clean(final: Path) -> bool:
    """Removes what dead writers of `final` left, finishing a replacement that one began. Whether a living writer is
    between two renames."""
    living = False
    for name in glob.glob(f".{glob.escape(final.name)}{MARK}*", root_dir=final.parent):
        folder = final.parent / name
        owner = _own(folder)
        if owner is None:
            living = living or _between(folder, final)
            continue
        if _between(folder, final):
            with contextlib.suppress(OSError):
                os.rename(folder / "new", final)
        _discard(folder, final)
        os.close(owner)
    return living


def _between(folder: Path, final: Path) -> bool:
    """Whether the writer got as far as the first of a replacement's two renames: `new` is whole then."""
    return (folder / "old").exists() and (folder / "new").exists() and not final.exists()


def _discard(folder: Path, final: Path) -> None:
    """Removes the scratch folder, `owner` last, unless it holds what there is of `final`."""
    if not _between(folder, final):
        for name in ("new", "old", ""):
            shutil.rmtree(folder / name, ignore_errors=True)


# ---- taking a place ----


def _install(new: Path, old: Path, final: Path, replace: bool) -> None:
    """`new` becomes `final`; what was there goes, or stays if `replace` is false or anything fails."""
    while True:
        try:
            os.rename(new, final)  # there is nothing, or an empty folder
            return
        except OSError as error:
            if not replace or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            if _exchange(new, final):
                return
            os.rename(final, old)
        except FileNotFoundError:
            continue  # another writer has just taken it away
        try:
            os.rename(new, final)
            return
        except OSError as error:
            if not final.exists():
                os.rename(old, final)
                raise
            shutil.rmtree(old)  # another writer has put its own there meanwhile
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


@functools.cache
def _renameat2() -> Callable[..., Any] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    found: Callable[..., Any] = function
    return found


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names as one step (renameat2); False where the system or the file system cannot."""
    function = _renameat2()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _sync(path: Path) -> None:
    """What is there is on the disk. Some file systems cannot sync folders (EINVAL): they keep their own order."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)
