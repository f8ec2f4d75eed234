"""Temporary folders of a server. Those of a server that was killed are removed by the next start.

A server holds a shared lock (flock) of the kernel on each of its folders, which ends with its process. The
lock also keeps systemd-tmpfiles away, which skips folders that it cannot lock.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Final

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def temporary_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Give a new folder, and remove it at the end.

    Args:
        prefix: Start of its name. Unlocked folders of this user with the same prefix are removed first.
        parent: The folder that it is in; None for the system's folder of temporary files.
    """
    for left in (parent or Path(gettempdir())).glob(f"{prefix}*"):
        _remove_unlocked(left)
    descriptor = None
    while descriptor is None:
        path = Path(mkdtemp(prefix=prefix, dir=parent))
        descriptor = _lock_shared(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _lock_shared(path: Path) -> int | None:
    """Lock a new folder; None where another start, which took it for a left one, removes it."""
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # no locks here: other servers cannot lock the folder either
        return descriptor
    if path.exists():
        return descriptor
    os.close(descriptor)
    return None


def _remove_unlocked(path: Path) -> None:
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_uid == os.geteuid():
            shutil.rmtree(path, ignore_errors=True)
    except OSError:  # its server runs, or there are no locks here
        pass
    finally:
        os.close(descriptor)
