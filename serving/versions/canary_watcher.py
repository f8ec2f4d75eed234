"""Following `CANARY` of a bundle directory: the version that servers load beside the live one."""

import logging
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from pathlib import Path

from re4.bundle.layout import CANARY
from re4.bundle.publishing.canary import Canary, read_canary
from re4.bundle.publishing.current import read_current
from re4.common.errors import BundleError
from re4.serving.host.failures import is_transient
from re4.serving.host.file_poller import FilePoller, file_mark
from re4.serving.versions.watcher import finish_while

_log = logging.getLogger(__name__)


class CanaryWatcher:
    """The canary of a bundle directory, after its check.

    A file that cannot be used, or a version that fails its check, ends the canary: the live version answers
    all calls. A transient failure changes nothing, and is retried. A check that still runs when the file
    changes is cancelled, so that the end of a canary waits for none.
    """

    def __init__(
        self,
        bundles: Path,
        check: Callable[[Path], Awaitable[None]],
        on_change: Callable[[], None],
        *,
        poll_interval_s: float = 1.0,
    ) -> None:
        """Watch a directory.

        Args:
            bundles: The bundle directory.
            check: Raises BundleError for a version that must not be loaded, anything else for a check that
                must be repeated.
            on_change: Called after `canary` or `failure` changed.
            poll_interval_s: Between two reads of the file while a check runs.
        """
        self._bundles = bundles
        self._check = check
        self._on_change = on_change
        self._poll_interval_s = poll_interval_s
        self.canary: Canary | None = None
        self._live = ""
        """The version that `CURRENT` named last."""
        self.failure = ""
        """Why the canary of the file is not used; empty where it is, or where there is none."""
        self.poller = FilePoller(self._mark, on_failure=_log_failure)
        self.poller.read_now()  # a server may start with a canary

    async def poll(self) -> None:
        """Follow a change since the last poll, if there is one."""
        if not self.poller.is_due():
            return
        with self.poller.attempt():
            try:
                canary = await self._checked()
                if canary == self._named():  # otherwise the next poll sees the newer mark
                    self._set(canary)
            except BundleError as error:
                if is_transient(error):
                    raise
                self._set(None, str(error))

    def _named(self) -> Canary | None:
        canary = read_canary(self._bundles)
        with suppress(BundleError):  # a `CURRENT` that cannot be read leaves the live version as it is
            self._live = read_current(self._bundles)
        return None if canary is None or canary.version == self._live else canary

    async def _checked(self) -> Canary | None:
        """Return the canary of the file once its version is checked; a change of the file cancels this."""
        canary = self._named()
        if canary is not None and (self.canary is None or canary.version != self.canary.version):
            path = self._bundles / canary.version
            check = self._check(path)
            await finish_while(check, lambda: self._named() == canary, path, self._poll_interval_s)
        return canary

    def _set(self, canary: Canary | None, failure: str = "") -> None:
        if failure:
            _log.error("the canary is not used: %s", failure)
        if (canary, failure) != (self.canary, self.failure):
            previous = self.canary, self.failure
            self.canary, self.failure = canary, failure
            try:
                self._on_change()
            except BaseException:
                self.canary, self.failure = previous  # so that the next poll tries again
                raise

    def _mark(self) -> Hashable:
        """Change with the file, and with the live version: a canary that goes live is none."""
        live = ""
        with suppress(BundleError):
            live = read_current(self._bundles)
        return file_mark(self._bundles / CANARY), live


def _log_failure(failure: str) -> None:
    _log.error("the canary stays as it is: %s", failure)
