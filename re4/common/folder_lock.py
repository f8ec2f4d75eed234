"""A lock inside a folder that one process works in: who is at work there, and what did dead ones leave?

The lock is a file's, taken from the kernel, so that it dies with its process.

Network file systems keep a file that is removed while it is open under another name until it is closed. So a
folder whose lock was held while it was emptied may stay, empty; the next one who clears up removes it.
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


@contextmanager
def staging_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder to make something in that then moves to its place; whatever is left in it goes at the end.

    What dead processes left under the same prefix goes at the start.

    Args:
        parent: Where, so that the move stays on one file system.
        prefix: How its name starts: what others keep there must not start so.

    Raises:
        OSError: the folder cannot be made.
    """
    for left in parent.glob(f"{prefix}*"):
        remove_unlocked(left)
    while True:
        folder = parent / f"{prefix}{secrets.token_hex(8)}"
        folder.mkdir()
        lock = try_lock(folder)
        if lock is not None:  # None: another process took the young folder for a left-over
            break
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)
        (folder / LOCK).unlink()  # last: until then the folder is taken
        unlock(folder, lock)
