"""Following a bundle directory: the live version that `CURRENT` names, and the items that `HIDDEN` lists."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final

from re4.bundle.hidden_ids import HiddenIds, read_hidden
from re4.bundle.layout import CURRENT, HIDDEN
from re4.bundle.publishing.current import live_version
from re4.common.errors import BundleError
from re4.serving.host.backoff import Backoff
from re4.serving.host.failures import is_transient
from re4.serving.host.file_poller import FilePoller, file_mark

_FIRST_RETRY_S: Final = 1.0
_LONGEST_RETRY_S: Final = 300.0
"""Between two checks of a version: a check costs seconds of CPU time."""

_log = logging.getLogger(__name__)


async def finish_while(
    check: Awaitable[None], is_named: Callable[[], bool], path: Path, interval_s: float
) -> bool:
    """Run the check of a version; cancel it and return False where the version is not named any more.

    Args:
        check: Raises what the check raises.
        is_named: Whether the followed file still names the version; an error is no answer.
        path: The version's folder, for the log.
        interval_s: Between two reads of the file.
    """
    checking = asyncio.ensure_future(check)
    try:
        while not (await asyncio.wait({checking}, timeout=interval_s))[0]:
            with suppress(Exception):  # the file may be missing for a moment
                if not is_named():
                    _log.warning("the check of %s is cancelled: it is not named any more", path.name)
                    return False
        checking.result()
    finally:
        checking.cancel()
        await asyncio.wait({checking})  # raises where this task is cancelled itself: a stop is not lost
        if not checking.cancelled():
            checking.exception()
    return True


class VersionWatcher:
    """Checks each new version once and reports whether it goes live.

    A version that fails its check stays refused until `CURRENT` is written again: by a rollback to it, or by
    a repair and a new publication. A check that fails for a transient reason is retried with backoff. A check
    that still runs when `CURRENT` names another version is cancelled.
    """

    def __init__(
        self,
        bundles: Path,
        check: Callable[[Path], Awaitable[None]],
        *,
        on_live: Callable[[Path], None],
        on_refused: Callable[[str, str], None],
        poll_interval_s: float = 1.0,
        clock_s: Callable[[], float] = monotonic,
    ) -> None:
        """Watch a directory.

        Args:
            bundles: The bundle directory.
            check: Raises BundleError for a version that must not go live, anything else for a check that
                must be repeated.
            on_live: Called with the folder of a version that passed its check, or that is live already while
                a newer one was given up.
            on_refused: Called with the name of a refused version, or `CURRENT` where that names none, and
                the reason.
            poll_interval_s: Between two reads of `CURRENT` while a check runs.
            clock_s: Seconds since any moment.
        """
        self._bundles = bundles
        self._check = check
        self._on_live = on_live
        self._on_refused = on_refused
        self._poll_interval_s = poll_interval_s
        self._live: Path | None = None
        self._named = CURRENT
        self._has_refused = False
        self.poller = FilePoller(
            self._mark,
            on_failure=self._refuse,
            backoff=Backoff(first_delay_s=_FIRST_RETRY_S, longest_delay_s=_LONGEST_RETRY_S),
            clock_s=clock_s,
        )

    async def first(self) -> Path:
        """Check the version to start with and return its folder.

        Raises:
            BundleError: there is none, or it fails its check.
        """
        path = live_version(self._bundles)
        while not await self._is_checked(path):
            path = live_version(self._bundles)
        self._live = path
        return path

    async def poll(self) -> None:
        """Check and report a change since the last poll, if there is one."""
        if not self.poller.is_due():
            return
        with self.poller.attempt():
            try:
                await self._read()
            except BundleError as error:
                if is_transient(error):
                    raise
                self._refuse(str(error))

    async def _read(self) -> None:
        self._named = CURRENT
        path = live_version(self._bundles)
        self._named = path.name
        if path == self._live:
            if not self._has_refused:
                return
        elif not await self._is_checked(path):
            return  # the next poll sees the newer mark
        self._on_live(path)  # where this fails, the version is not live, and the next poll tries again
        self._live, self._has_refused = path, False

    async def _is_checked(self, path: Path) -> bool:
        """Check a version; False where the check was cancelled because `CURRENT` names another one now."""
        return await finish_while(
            self._check(path), lambda: live_version(self._bundles) == path, path, self._poll_interval_s
        )

    def _refuse(self, failure: str) -> None:
        self._has_refused = True
        self._on_refused(self._named, failure)

    def _mark(self) -> Hashable:
        """Distinguish one writing of `CURRENT` from the next, also of the same name."""
        try:
            named = live_version(self._bundles).name
        except Exception as error:
            named = str(error)
        return file_mark(self._bundles / CURRENT), named


class HiddenWatcher:
    """The hidden items of a bundle directory: the newest usable list."""

    def __init__(self, bundles: Path, on_change: Callable[[], None]) -> None:
        """Watch a directory, from `first` on.

        Args:
            bundles: The bundle directory.
            on_change: Called after `hidden` or `failure` changed.
        """
        self._bundles = bundles
        self._on_change = on_change
        self.poller = FilePoller(lambda: file_mark(bundles / HIDDEN), on_failure=self._fail)
        self.hidden = HiddenIds()
        self.failure = ""
        """Why the newest file is not used; empty where it is."""

    def first(self) -> None:
        """Read the list to start with.

        Raises:
            BundleError: the file is damaged. A server that never read a usable list must not guess.
        """
        self.hidden = read_hidden(self._bundles)

    async def poll(self) -> None:
        """Read a file that changed since the last poll; a damaged one leaves the list as it was."""
        if self.poller.is_due():
            with self.poller.attempt():
                self.hidden, self.failure = read_hidden(self._bundles), ""
                self._on_change()

    def _fail(self, failure: str) -> None:
        self.failure = failure
        self._on_change()
