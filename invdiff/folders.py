"""Folders that appear whole or not at all, and that one process at a time writes to."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import uuid
from pathlib import Path

__all__ = ["beside", "locked", "remove", "sweep"]

_LOCK = ".lock"


def locked(folder: Path) -> int:
    """The handle of a folder's lock, which goes when it is closed or the process ends, however that ends.

    Raises:
        FileNotFoundError: there is no such folder.
        BlockingIOError: another process holds it.
        OSError: the file system has no locks.
    """
    import fcntl

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
        except OSError:
            shutil.rmtree(part)
            raise
        if (part / _LOCK).exists():
            return part, handle
        os.close(handle)


def sweep(path: Path) -> None:
    """Remove what processes that were killed left beside a path, and nothing that is still in work."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.part"):
        with contextlib.suppress(OSError):
            handle = locked(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)


def remove(path: Path) -> None:
    """Take a folder away in one piece."""
    away = _hidden(path)
    os.rename(path, away)
    shutil.rmtree(away, ignore_errors=True)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
