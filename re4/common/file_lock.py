"""Locks of the kernel on files and folders: they end with their process, whatever ends it.

A process holds the lock of a folder while it works there: a publisher, a build, a training run. A folder
without a lock is thus the remains of a dead process.

Network file systems keep a file that is removed while it is open under another name until it is closed. So a
folder whose lock was held while it was emptied may stay, empty; the next process that clears up removes it.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

LOCK: Final = "lock"
"""Name of the locked file in a folder."""


def lock_file(path: Path, *, flags: int = os.O_RDONLY, is_shared: bool = False) -> int:
    """Lock a file, without waiting, and return its descriptor. Closing the descriptor ends the lock.

    Args:
        path: The file; a symbolic link is not followed.
        flags: How to open it. Network file systems give an exclusive lock only for writing.
        is_shared: Let others share the lock.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be opened, or the file system has no locks.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def try_lock(folder: Path) -> int | None:
    """Lock a folder: a descriptor to keep, or None where another process has the folder or removed it.

    The lock file is made where it is missing, so that a process that is just starting and one that is
    clearing up use the same lock, in whatever order they come.
    """
    try:
        lock = lock_file(folder / LOCK, flags=os.O_RDWR | os.O_CREAT)
    except (FileNotFoundError, NotADirectoryError, PermissionError, BlockingIOError):
        return None
    with suppress(FileNotFoundError):
        if (folder / LOCK).stat().st_ino == os.fstat(lock).st_ino:
            return lock
    os.close(lock)
    return None


def unlock(folder: Path, lock: int) -> None:
    """Release the lock of a folder, and remove the folder where nothing is left in it."""
    os.close(lock)
    with suppress(OSError):
        folder.rmdir()


def remove_unlocked(folder: Path) -> bool:
    """Remove a folder that a dead process left; False where a process works in it."""
    if folder.is_symlink():
        return False
    with suppress(OSError):
        folder.rmdir()  # an empty folder has no lock file, so no process works in it
        return True
    lock = try_lock(folder)
    if lock is None:
        return False
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        unlock(folder, lock)
    return True


@contextmanager
def staging_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Give a locked folder to make something in that is then moved to its place; remove the rest at the end.

    Folders of the same prefix that dead processes left are removed first.

    Args:
        parent: Folder that will hold the result: the move then stays on one file system.
        prefix: Start of the new folder's name; no other file of `parent` may start with it.

    Raises:
        OSError: the folder cannot be made.
    """
    for left in parent.glob(f"{prefix}*"):
        remove_unlocked(left)
    while True:
        folder = parent / f"{prefix}{secrets.token_hex(8)}"
        folder.mkdir()
        lock = try_lock(folder)
        if lock is not None:  # None: another process took the new folder for a left-over
            break
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)
        (folder / LOCK).unlink()  # last: until then the folder is locked
        unlock(folder, lock)
