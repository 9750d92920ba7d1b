"""Folders that appear whole or not at all, and that one process at a time writes to."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["beside", "give_to", "locked", "release", "remove", "require_locks", "sweep", "turn", "whose"]

_LOCK = ".lock"
# Names the run that may write, and is empty while there is none. Not the lock itself: a run holds that one throughout,
# and this one every writer for as long as it writes.
_RUN = ".run"


def require_locks() -> Any:
    """The module `fcntl`.

    Raises:
        OSError: the system has none.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError(
            f"store= needs a system with POSIX file locks (Linux, macOS), and this one is {sys.platform}: leave out "
            "store, and keep the draws with Posterior.save."
        ) from error
    return fcntl


def locked(folder: Path) -> int:
    """The handle of a folder's lock, which goes when it is closed or the process ends, however that ends.

    Raises:
        FileNotFoundError: there is no such folder.
        BlockingIOError: another process holds it.
        OSError: the system or the file system has no locks.
    """
    fcntl = require_locks()
    # A file and not the folder itself, which NFS cannot lock.
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        raise OSError(
            error.errno, f"{folder} cannot be locked ({error.strerror}): choose a folder on another file system"
        ) from error
    return handle


def release(handle: int) -> None:
    """Give a lock back.

    Closing the handle is not enough: a process that this one is starting just now has copies of all handles until it
    runs its own program, and a lock goes with the last of them.
    """
    require_locks().flock(handle, require_locks().LOCK_UN)
    os.close(handle)


def beside(path: Path) -> tuple[Path, int]:
    """A new hidden folder beside a path, to be moved there, and the handle of its lock."""
    while True:
        part = _hidden(path)
        part.mkdir()
        try:
            handle = locked(part)
        except (FileNotFoundError, BlockingIOError):
            # Another process took it for a leftover, as it had no lock yet.
            continue
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        if (part / _LOCK).exists():
            return part, handle
        release(handle)


def give_to(folder: Path, run: str) -> None:
    """Let this run alone write, "" for none; whoever writes at the moment is waited for.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: it cannot be written to.
    """
    fcntl = require_locks()
    handle = os.open(folder / _RUN, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.ftruncate(handle, 0)
        os.write(handle, run.encode())
        # So that workers on other machines read it.
        os.fsync(handle)
    finally:
        release(handle)


def whose(folder: Path) -> str | None:
    """The run that may write to a folder, "" for none; None where there is no such folder."""
    try:
        return (folder / _RUN).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Write to a folder while `whose` stays what it is; several may at a time.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    fcntl = require_locks()
    handle = os.open(folder / _RUN, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        release(handle)


def sweep(path: Path) -> None:
    """Remove what processes that were killed left beside a path, and nothing that is still in work."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.part"):
        with contextlib.suppress(OSError):
            handle = locked(left)
            shutil.rmtree(left, ignore_errors=True)
            release(handle)


def remove(path: Path) -> None:
    """Take a folder away in one piece."""
    away = _hidden(path)
    os.rename(path, away)
    shutil.rmtree(away, ignore_errors=True)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
