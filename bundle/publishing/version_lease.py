"""Leases of versions: a server holds the version that it serves, so that no pruning removes it.

A server may serve a version for long after newer ones were published, because it refuses those; its next
worker then still needs the files. A lease is a shared lock of the kernel on the version's manifest: it needs
no right to write there and ends with its process. Leases of servers on other machines are seen where the file
system carries locks of files from one machine to the other, as NFS and GlusterFS do.
"""

import os
from pathlib import Path

from re4.bundle.layout import MANIFEST
from re4.bundle.safe_files import unavailable
from re4.common.file_lock import lock_file


class VersionLease:
    """A version that this process serves, until `release`."""

    def __init__(self, version: Path) -> None:
        """Take the lease; where the file system has no locks, there is none, and no error.

        Raises:
            BundleUnavailableError: it cannot be taken at this moment.
        """
        self._descriptor: int | None
        try:
            self._descriptor = lock_file(version / MANIFEST, is_shared=True)
        except OSError as error:
            if reason := unavailable(error, version):
                raise reason from error
            self._descriptor = None

    def release(self) -> None:
        """End the lease; once is enough."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_served(version: Path) -> bool:
    """Return whether any process has a lease of a version.

    Raises:
        BundleUnavailableError: that cannot be found out at this moment.
    """
    try:
        try:
            descriptor = lock_file(version / MANIFEST, flags=os.O_RDWR)
        except PermissionError:
            descriptor = lock_file(version / MANIFEST)
    except BlockingIOError:
        return True
    except OSError as error:
        if reason := unavailable(error, version):
            raise reason from error
        return False  # no such version, or no locks here
    os.close(descriptor)
    return False
