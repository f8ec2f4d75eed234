"""Following the live items of a bundle directory in a worker: read, apply in slices, show as a whole.

Changes are applied in slices between which the event loop answers calls. All changes of one read become
visible at once.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import time
from typing import Final, NoReturn

from re4.bundle.hidden_ids import HiddenIds
from re4.bundle.layout import LIVE
from re4.bundle.live_items.reader import LiveItemsReader, NewChanges
from re4.common.errors import IndexUnavailableError
from re4.serving.host.file_poller import FilePoller, file_mark
from re4.serving.retrieval.live_items.index import Cancelled, LiveIndex, lower_thread_priority
from re4.serving.retrieval.live_items.overlay import IndexJob, LiveOverlay
from re4.serving.versions.live_version import LiveVersion
from re4.serving.versions.snapshot import Snapshot

_SLICE: Final = 8
"""Changes that are applied at once: some 0.05 ms each."""
_CHUNK_ITEMS: Final = 2
"""Items that are folded in at once: some 0.5 ms each."""

_log = logging.getLogger(__name__)


class FollowedItems:
    """The live items of one loaded version."""

    def __init__(self, snapshot: Snapshot, hidden: HiddenIds) -> None:
        """Read nothing yet.

        Args:
            snapshot: The version.
            hidden: Items that no answer may contain.
        """
        self._snapshot = snapshot
        self._hidden = hidden
        self._reader = LiveItemsReader(snapshot.path.parent)
        self.overlay = self._new_overlay()
        self._reads_anew = False
        self.sequence = 0
        self.newest = NewChanges()

    def hide(self, hidden: HiddenIds) -> None:
        """Leave these items out of every later view, and no others."""
        self._hidden = hidden
        self.overlay.hide(hidden)

    async def read(self) -> int | None:
        """Read and apply the changes since the last read.

        Returns:
            The Unix milliseconds of the oldest of them; None for none.

        Raises:
            BundleError: the live items are damaged, or cannot be read at this moment.
            IndexUnavailableError: item vectors are on another machine, which does not answer.
        """
        new = await asyncio.to_thread(self._reader.read)
        is_reset = new.is_reset or self._reads_anew
        overlay = self._new_overlay() if is_reset else self.overlay
        if self._snapshot.are_vectors_remote:
            try:
                await asyncio.to_thread(overlay.fetch_vectors, new.records)
            except IndexUnavailableError:
                # The next read returns all changes again.
                self._reader, self._reads_anew = LiveItemsReader(self._snapshot.path.parent), True
                raise
        self._reads_anew = False
        for start in range(0, len(new.records), _SLICE):
            overlay.apply(new.records[start : start + _SLICE], folds_in=False)
            await asyncio.sleep(0)
        while overlay.fold_in(_CHUNK_ITEMS):
            await asyncio.sleep(0)
        overlay.forget_fetched()
        if is_reset:
            overlay.hide(self._hidden)  # it may have changed meanwhile
        self.overlay, self.sequence, self.newest = overlay, new.sequence, new
        return new.records[0].time_ms if new.records else None

    def _new_overlay(self) -> LiveOverlay:
        overlay = self._snapshot.new_overlay()
        overlay.hide(self._hidden)
        return overlay


class LiveItemsFollower:
    """Keeps the live version's items as new as the bundle directory. Belongs to one event loop."""

    def __init__(
        self,
        live: LiveVersion,
        *,
        poll_interval_s: float,
        on_lag: Callable[[float], None],
        on_changed: Callable[[int], None],
    ) -> None:
        """Follow nothing yet.

        Args:
            live: The version that answers.
            poll_interval_s: Between two looks at the list of live items.
            on_lag: Called with the seconds from a change until answers show it: the longest of each read.
            on_changed: Called with the number of live items that answers may contain.
        """
        self._live = live
        self._poll_interval_s = poll_interval_s
        self._on_lag = on_lag
        self._on_changed = on_changed
        self._followed: FollowedItems | None = None
        self._poller: FilePoller | None = None
        self._growing: asyncio.Future[LiveIndex] | None = None
        # A thread of its own: those of the event loop also load versions, and keep their priority.
        self._thread = ThreadPoolExecutor(1, "live-index", initializer=lower_thread_priority)
        self._job: IndexJob | None = None

    async def prepare(self, snapshot: Snapshot, hidden: HiddenIds) -> FollowedItems:
        """Read the live items for a version that is about to go live.

        Raises:
            BundleError: they are damaged, or cannot be read at this moment.
        """
        followed = FollowedItems(snapshot, hidden)
        await followed.read()
        while followed.newest.records:  # changes that came meanwhile
            await followed.read()
        return followed

    def swap(self, snapshot: Snapshot, followed: FollowedItems) -> None:
        """Answer from a version with its live items from now on."""
        self._cancel_job()
        followed.hide(self._live.hidden)
        self._followed = followed
        self._poller = FilePoller(
            lambda: (file_mark(snapshot.path.parent / LIVE), self._followed), on_failure=self._fail
        )
        self._live.swap(snapshot.with_hidden(self._live.hidden).with_live(followed.overlay.view()))
        self._live.live_sequence = followed.sequence
        self._live.items_written.set()  # changes since the last read
        self._report()

    def hide(self, hidden: HiddenIds, snapshot: Snapshot) -> Snapshot:
        """Return a snapshot, of which the version's items are hidden, with the hidden live items left out."""
        if self._followed is None:
            return snapshot
        self._followed.hide(hidden)
        return snapshot.with_live(self._followed.overlay.view())

    async def follow(self) -> NoReturn:
        """Follow until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_interval_s):
                    await self._live.items_written.wait()
            is_written = self._live.items_written.is_set()
            self._live.items_written.clear()
            await self.poll(is_due=is_written)

    async def poll(self, *, is_due: bool = False) -> None:
        """Read the changes since the last read, if the list changed; errors are reported and retried."""
        poller, followed = self._poller, self._followed
        if poller is None or followed is None or not (is_due or poller.is_due()):
            self._start_job()
            return
        with poller.attempt():
            oldest_ms = await followed.read()
            if followed is self._followed:  # otherwise another version went live meanwhile
                if self._live.live_failure:
                    _log.info("live items are followed again")
                self._live.live_failure = ""
                self._show()
                if oldest_ms is not None:
                    self._on_lag(max(0.0, time() - oldest_ms / 1e3))
        self._start_job()

    def stop(self) -> None:
        """End the work beside the calls, and free the version, which the poller refers to in a cycle."""
        self._cancel_job()
        self._thread.shutdown(wait=False)
        self._followed = self._poller = None

    def _show(self) -> None:
        assert self._followed is not None
        self._live.show_items(self._followed.overlay.view(), self._followed.sequence)
        self._live.items_bytes = (self._followed.newest.num_bytes, self._followed.newest.compacted_bytes)
        self._report()

    def _report(self) -> None:
        live = None if self._live.snapshot is None else self._live.snapshot.live
        self._on_changed(0 if live is None else live.num_visible)

    def _fail(self, failure: str) -> None:
        _log.error("live items: the last good state stays in use, %s", failure)
        self._live.live_failure = failure

    def _start_job(self) -> None:
        """Make the next index in a thread, if it is time for one."""
        if self._growing is None and self._followed is not None:
            overlay = self._followed.overlay
            self._job = overlay.next_job()
            if self._job is not None:
                self._growing = asyncio.get_running_loop().run_in_executor(self._thread, self._job.run)
                self._growing.add_done_callback(lambda task: self._finish_job(overlay, task))

    def _finish_job(self, overlay: LiveOverlay, task: "asyncio.Future[LiveIndex]") -> None:
        job, self._growing, self._job = self._job, None, None
        if task.cancelled() or isinstance(error := task.exception(), Cancelled):
            return
        if error is not None:
            _log.error("the index of live items is not made: they are compared one by one", exc_info=error)
            return
        if job is not None and self._followed is not None and self._followed.overlay is overlay:
            overlay.finish(job, task.result())
            self._show()

    def _cancel_job(self) -> None:
        if self._job is not None:
            self._job.cancelled.set()
