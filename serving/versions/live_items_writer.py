"""Durable changes of live items with group commit: calls that come while a commit runs share the next one."""

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from typing import Final

from re4.bundle.live_items.records import Change
from re4.bundle.live_items.writer import append_changes, is_compaction_due
from re4.common.errors import BundleError, BundleReadOnlyError, LiveItemsError, ShedError, TooLateError

_MAX_GROUP_CHANGES: Final = 1_000
"""Changes of one commit: the thread holds Python's lock for a part of it, and other calls wait for that."""
_MAX_WAITING_CHANGES: Final = 50_000
"""Bounds the memory of a worker whose disk does not keep up."""
_NEWEST_WEIGHT: Final = 0.2
_PATIENCE_S: Final = 10.0
"""How long a commit waits for other writers of the directory."""
_LONGEST_RETRY_S: Final = 60.0
"""Between two starts of a compaction."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
    """A call that waits for its commit."""

    future: "asyncio.Future[int]"
    changes: Sequence[Change]
    deadline_s: float


class LiveItemsWriter:
    """Writes the changes of a worker's calls. Belongs to one event loop."""

    def __init__(
        self, max_wait_ms: float, *, on_written: Callable[[], None], on_commit: Callable[[float, bool], None]
    ) -> None:
        """Write nothing yet.

        Args:
            max_wait_ms: Calls that would wait longer are rejected.
            on_written: Called after each commit.
            on_commit: Called with the seconds of each commit, and whether it failed.
        """
        self._max_wait_ms = max_wait_ms
        self._on_written = on_written
        self._on_commit = on_commit
        self._waiting: deque[_Waiting] = deque()
        self._num_waiting = 0
        self._commit_ms = 5.0
        self._thread = ThreadPoolExecutor(1, "live-items")
        self._writing: asyncio.Task[None] | None = None
        self._compacting: asyncio.Task[None] | None = None
        self._next_compaction_s = 0.0

    def check(self, num_changes: int, time_left_s: float | None) -> None:
        """Raise if a call with so many changes would be rejected now.

        Raises:
            ShedError: it would wait longer than is allowed.
            TooLateError: the caller's deadline is too near.
        """
        wait_ms = self._commit_ms * (self._num_waiting / _MAX_GROUP_CHANGES)
        if time_left_s is not None and wait_ms >= time_left_s * 1e3:
            raise TooLateError(
                f"the caller's deadline is {max(time_left_s, 0) * 1e3:.0f} ms away, and these changes would "
                f"wait about {wait_ms:.0f} ms for their turn: none was written"
            )
        if wait_ms > self._max_wait_ms or self._num_waiting + num_changes > _MAX_WAITING_CHANGES:
            raise ShedError(wait_ms=wait_ms, max_wait_ms=self._max_wait_ms)

    async def write(self, bundles: Path, changes: Sequence[Change], time_left_s: float | None) -> int:
        """Make changes durable and return the sequence number of the last of their commit.

        Raises:
            BundleReadOnlyError: the directory mirrors object storage.
            LiveItemsError: they cannot be written. None of them counts.
            TooLateError: the deadline passed before the commit began.
        """
        deadline_s = inf if time_left_s is None else monotonic() + time_left_s
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(future=future, changes=changes, deadline_s=deadline_s))
        self._num_waiting += len(changes)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(bundles))
        return await future

    def compact_if_due(self, bundles: Path, num_bytes: int, compacted_bytes: int) -> None:
        """Start a compaction in a process of the lowest priority, if most bytes may be superseded."""
        is_running = self._compacting is not None and not self._compacting.done()
        if is_running or monotonic() < self._next_compaction_s:
            return
        if is_compaction_due(num_bytes, compacted_bytes):
            self._next_compaction_s = monotonic() + _LONGEST_RETRY_S
            self._compacting = asyncio.create_task(_compact(bundles))

    def close(self) -> None:
        """End the thread after the commit that runs."""
        self._thread.shutdown(wait=True)

    async def _write_all(self, bundles: Path) -> None:
        """Commit groups until none waits."""
        try:
            while self._waiting:
                group = self._next_group()
                if group:
                    await self._commit(bundles, group)
        finally:
            self._writing = None

    def _next_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        num_changes, now_s = 0, monotonic()
        while self._waiting and (not group or num_changes < _MAX_GROUP_CHANGES):
            call = self._waiting.popleft()
            self._num_waiting -= len(call.changes)
            if call.future.done():  # the caller left
                continue
            if call.deadline_s <= now_s:
                call.future.set_exception(
                    TooLateError("the caller's deadline passed while these changes waited: none was written")
                )
                continue
            group.append(call)
            num_changes += len(call.changes)
        return group

    async def _commit(self, bundles: Path, group: Sequence[_Waiting]) -> None:
        changes = [change for call in group for change in call.changes]
        began_s, outcome = monotonic(), 0
        error: Exception | None = None
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(
                self._thread, partial(append_changes, bundles, changes, patience_s=_PATIENCE_S)
            )
        except BundleReadOnlyError as failure:
            error = failure
        except BundleError as failure:
            _log.error("live items are not written: %s", failure)
            error = LiveItemsError(str(failure))
        except Exception as failure:  # the callers get INTERNAL
            error = failure
        took_s = monotonic() - began_s
        self._commit_ms += _NEWEST_WEIGHT * (took_s * 1e3 - self._commit_ms)
        self._on_commit(took_s, error is not None)
        for call in group:
            if call.future.done():
                continue
            if error is not None:
                call.future.set_exception(error)
            else:
                call.future.set_result(outcome)
        if error is None:
            self._on_written()


async def _compact(bundles: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "re4.bundle.live_items.compaction", str(bundles)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )
    if code := await child.wait():
        _log.error("the compaction of live items ended with code %d", code)
