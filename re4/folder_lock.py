"""A lock inside a folder that one process works in: who is at work there, and what did dead ones leave?

The lock is a file's, taken from the kernel, so that it dies with its process.

Network file systems keep a file that is removed while it is open under another name until it is closed. So a
folder whose lock was held while it was emptied may stay, empty; the next one who clears up removes it.
"""

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

LOCK: Final = "lock"
"""Name of the locked file in the folder."""


def try_lock(folder: Path) -> int | None:
    """Lock a folder: a descriptor to keep, or None where someone else has the folder or removed it.

    The lock file is made where it is missing, so that a process that is just starting and one that is
    clearing up meet at the same lock, whoever comes first.
    """
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(folder / LOCK, flags, 0o644)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (folder / LOCK).stat().st_ino == os.fstat(lock).st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


def unlock(folder: Path, lock: int) -> None:
    """Give a lock back, and with it the folder where nothing is left in it."""
    os.close(lock)
    with suppress(OSError):
        folder.rmdir()


def remove_unlocked(folder: Path) -> bool:
    """Remove a folder that a dead process left; False where one is at work in it."""
    if folder.is_symlink():
        return False
    with suppress(OSError):
        folder.rmdir()  # empty: without a lock file there is nobody
        return True
    lock = try_lock(folder)
    if lock is None:
        return False
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        unlock(folder, lock)
    return True
