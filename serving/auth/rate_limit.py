"""The rate limit of a caller: a token bucket whose level all worker processes share.

The kernel distributes connections, not calls, to workers. A rate divided among workers would give a caller
with one connection only a part of it. The level is one number in a file that every worker maps: a read and a
write take well under a microsecond. There is no lock: two workers that charge one caller within the same
fraction of a microsecond may count two calls as one, so the limit is exceeded very slightly, never undercut.
"""

import logging
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final

from re4.common.errors import RateError

_CELL_BYTES: Final = 8
_log = logging.getLogger(__name__)
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Pattern of callers' names: a name becomes a file name, and a label of metrics."""


class TokenBucket:
    """One caller's bucket: it holds up to `burst` users, and is refilled by `users_per_s`."""

    def __init__(
        self,
        name: str,
        *,
        users_per_s: float,
        burst: float,
        folder: Path | None = None,
        clock_s: Callable[[], float] = monotonic,
    ) -> None:
        """Open the bucket of this name; a new one is full.

        Args:
            name: The caller's name; matches `NAME`.
            users_per_s: Requested users per second, in the long run.
            burst: Requested users at once; at least 1.
            folder: A folder that all workers share; None for a bucket of this process alone.
            clock_s: Seconds since any moment, the same for all processes of the machine.
        """
        self._name = name
        self._interval_s = 1 / users_per_s
        self._users_per_s = users_per_s
        self._capacity_s = burst * self._interval_s
        self._clock_s = clock_s
        # The bucket is stored as the moment at which it will be full again.
        self._full_at = memoryview(_cell(folder, name)).cast("d")

    def charge(self, num_users: int = 1) -> None:
        """Take users out of the bucket, which must hold at least one; the rest becomes debt.

        Raises:
            RateError: the bucket is empty; the error has the time to wait.
        """
        now = self._clock_s()
        full_at = max(self._full_at[0], now)
        too_early_s = full_at + self._interval_s - self._capacity_s - now
        if too_early_s > 1e-9:
            raise RateError(self._name, users_per_s=self._users_per_s, wait_s=too_early_s)
        self._full_at[0] = full_at + num_users * self._interval_s

    def overdraw(self, num_users: int) -> None:
        """Take users out of the bucket, also of an empty one: later calls wait until the debt is paid.

        Nothing is put back: a number below 0 counts as 0.
        """
        self._full_at[0] = max(self._full_at[0], self._clock_s()) + max(num_users, 0) * self._interval_s


def _cell(folder: Path | None, name: str) -> mmap.mmap:
    """Map the shared cell of a caller, or one of this process, so that tokens are read on a full disk too."""
    if folder is None:
        return mmap.mmap(-1, _CELL_BYTES)
    try:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # It takes the disk space: a process that maps a file without it is killed on a full disk.
            os.posix_fallocate(descriptor, 0, _CELL_BYTES)
            return mmap.mmap(descriptor, _CELL_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        _log.error(
            "the rate of %s is limited by each worker alone until the tokens are read again: %s", name, error
        )
        return mmap.mmap(-1, _CELL_BYTES)
