"""The one poller of every file that a server follows: `CURRENT`, `HIDDEN`, tokens and certificates.

A file is read again when its mark changes. No error of a read leaves the poller: it is reported once, and the
read is retried with backoff until it succeeds, also where the file itself stays as it is.
"""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from errno import EFBIG, EINVAL
from pathlib import Path
from time import monotonic
from typing import Final, NoReturn

from re4.common.errors import Re4Error
from re4.serving.host.backoff import Backoff

_MAX_FOLLOWED_BYTES: Final = 1 << 24


def file_mark(path: Path) -> Hashable:
    """Return a value that changes when the file, or the target of a link, is written or replaced."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def read_followed(path: Path) -> bytes:
    """Return the content of a regular file; a link is followed, and a pipe does not block.

    Raises:
        OSError: the file cannot be read, is not a regular one, or is larger than 16 MiB.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(EINVAL, "Not a regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(_MAX_FOLLOWED_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > _MAX_FOLLOWED_BYTES:
        raise OSError(EFBIG, "Larger than 16 MiB", str(path))
    return content


class FilePoller:
    """Decides when to read files again. The caller keeps what was read."""

    def __init__(
        self,
        mark: Callable[[], Hashable],
        *,
        on_failure: Callable[[str], None],
        backoff: Backoff | None = None,
        clock_s: Callable[[], float] = monotonic,
    ) -> None:
        """Count the files as read in their present state: the caller reads them first by itself.

        Args:
            mark: Returns a value that changes with the files; raises nothing.
            on_failure: Called with the reason of a failed read; not again while mark and reason are the same.
            backoff: Delays between the retries of a failed read.
            clock_s: Seconds since any moment.
        """
        self._mark = mark
        self._on_failure = on_failure
        self._backoff = backoff or Backoff()
        self._clock_s = clock_s
        self._last_mark = mark()
        self._failure = ""
        self._retry_at_s = 0.0
        self.wake = asyncio.Event()
        """Ends the wait before the next poll."""

    def read_now(self) -> None:
        """Let the files count as changed, and end the wait before the next poll."""
        self._last_mark = object()
        self._retry_at_s = 0.0
        self._backoff.reset()
        self.wake.set()

    def is_due(self) -> bool:
        """Return whether the files changed, or a failed read is to be retried."""
        is_retry = bool(self._failure) and self._clock_s() >= self._retry_at_s
        return is_retry or self._mark() != self._last_mark

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Read the files in the block. Whatever it raises is reported and retried, never propagated."""
        mark = self._mark()  # before the read: a change during it is then seen
        try:
            yield
        except Exception as error:
            failure = _reason(error)
            is_news = (mark, failure) != (self._last_mark, self._failure)
            if mark != self._last_mark:
                self._backoff.reset()
            self._last_mark, self._failure = mark, failure
            self._retry_at_s = self._clock_s() + self._backoff.delay_s()
            if is_news:
                self._on_failure(failure)
        else:
            self._last_mark, self._failure = mark, ""
            self._backoff.reset()


async def poll_forever(
    interval_s: float, poll: Callable[[], Awaitable[None]], wake: asyncio.Event | None = None
) -> NoReturn:
    """Poll at an interval, and whenever `wake` is set, until cancelled."""
    wake = wake or asyncio.Event()
    task = asyncio.current_task()
    while task is None or not task.cancelling():
        with suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await wake.wait()
        wake.clear()
        await poll()
    raise asyncio.CancelledError  # a call inside the poll took the cancellation for its own


def _reason(error: Exception) -> str:
    """Return the reason of a failed read, without any content of the file: a key must not reach the log."""
    if isinstance(error, Re4Error | OSError) and str(error):
        return str(error)
    return f"the read failed with {type(error).__name__}"
