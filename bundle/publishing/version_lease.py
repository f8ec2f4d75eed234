"""Which versions are being served: a server holds its version, so that no pruning takes it away.

A server may stay with a version for long after newer ones were published, because it refuses those; its next
worker then still needs the files. What is held is a shared lock of the kernel's on the version's manifest: it
needs no right to write there and dies with its process. Servers on other machines are seen where the file
system carries locks of files from one machine to the other, as NFS and GlusterFS do.
"""

import fcntl
import os
from pathlib import Path
from typing import Self

from re4.bundle.layout import MANIFEST


class Hold:
    """A version that is served by this process, until `release`."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @classmethod
    def of(cls, version: Path) -> Self:
        """Hold a version. Where the file system has no locks, nothing is held, and nothing said."""
        descriptor = None
        try:
            descriptor = _open(version, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            if descriptor is not None:
                os.close(descriptor)
            return cls(None)
        return cls(descriptor)

    def release(self) -> None:
        """Serve it no longer."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_served(version: Path) -> bool:
    """Whether any process holds a version."""
    try:
        try:
            # Network file systems give an exclusive lock only to who may write.
            descriptor = _open(version, os.O_RDWR)
        except PermissionError:
            descriptor = _open(version, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here
        return False
    finally:
        os.close(descriptor)
    return False


def _open(version: Path, mode: int) -> int:
    return os.open(version / MANIFEST, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
