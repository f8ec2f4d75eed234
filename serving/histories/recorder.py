"""Durable recording with group commit: calls that arrive while a commit runs share the next one.

One thread of each worker process writes. A call is answered when its events are on disk. Calls that would
wait too long, or whose deadline passes before their commit begins, are rejected as a whole.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from time import monotonic, time
from typing import Final, Protocol

from re4.common.errors import HistoryStoreError, Re4Error, ShedError, TooLateError
from re4.common.pauses import with_pauses
from re4.protos.v1 import retrieval_pb2
from re4.serving.histories.breaker import CircuitBreaker
from re4.serving.histories.event_log import logged_events
from re4.serving.histories.popularity import RecentPopularity
from re4.serving.histories.store import Event, HistoryStore, LogEntry, event_mark

_MAX_GROUP_EVENTS: Final = 1_000
"""Events of one commit: the thread holds Python's lock for a part of it, and other calls wait for that."""
_MAX_WAITING_EVENTS: Final = 200_000
"""Bounds the memory of a worker whose store does not keep up."""
_FEW_EVENTS: Final = 50
_CHUNK_EVENTS: Final = 64
"""Events that are read at once: 0.1 ms."""
_NEWEST_WEIGHT: Final = 0.2

_log = logging.getLogger(__name__)


class RecordMetrics(Protocol):
    """Counts what is recorded; called in the writing thread."""

    def recorded(self, num_events: int, num_duplicates: int, lags_s: Sequence[float]) -> None:
        """Count events that are durable now; for each call, the seconds since its newest event."""

    def store_call(self, operation: str, seconds: float, *, is_error: bool) -> None:
        """Count a use of the store."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
    """A call that waits for its commit."""

    future: "asyncio.Future[int]"
    loop: asyncio.AbstractEventLoop
    deadline_s: float
    num_events: int
    request: retrieval_pb2.RecordEventsRequest | None = None
    data: bytes = b""
    received_ms: int = 0
    user_id: str = ""
    """Of a user to forget, where there is no request."""


class Recorder:
    """The writing thread of a worker. Its methods belong to event loops."""

    def __init__(
        self,
        store: HistoryStore,
        metrics: RecordMetrics,
        max_wait_ms: float,
        popularity: RecentPopularity | None = None,
    ) -> None:
        """Start the thread.

        Args:
            store: Takes the events.
            metrics: Counts them.
            max_wait_ms: Calls that would wait longer are rejected.
            popularity: Counts new events; None for none.
        """
        self._store = store
        self._popularity = popularity
        self._metrics = metrics
        self._max_wait_ms = max_wait_ms
        self._waiting: deque[_Waiting] = deque()
        self._num_waiting_events = 0
        self._ms_per_commit = 1.0
        self._ms_per_event = 0.02
        self._changed = threading.Condition()
        self._is_closed = False
        self.breaker = CircuitBreaker()
        self._thread = threading.Thread(target=self._run, name="history-writer", daemon=True)
        self._thread.start()

    def check(self, num_events: int, time_left_s: float | None) -> None:
        """Raise if a call of so many events would be rejected now.

        Raises:
            HistoryStoreError: the store has just failed.
            ShedError: the call would wait longer than is allowed.
            TooLateError: the caller's deadline is too near.
        """
        self.breaker.check()
        num_commits = -(-self._num_waiting_events // _MAX_GROUP_EVENTS)
        wait_ms = num_commits * self._ms_per_commit + self._num_waiting_events * self._ms_per_event
        if time_left_s is not None and wait_ms >= time_left_s * 1e3:
            raise TooLateError(
                f"the caller's deadline is {max(time_left_s, 0) * 1e3:.0f} ms away, and these events would "
                f"wait about {wait_ms:.0f} ms for their turn: none was recorded"
            )
        if wait_ms > self._max_wait_ms or self._num_waiting_events + num_events > _MAX_WAITING_EVENTS:
            raise ShedError(wait_ms=wait_ms, max_wait_ms=self._max_wait_ms)

    async def record(
        self, request: retrieval_pb2.RecordEventsRequest, data: bytes, time_left_s: float | None
    ) -> int:
        """Record the events of a valid request, durably, and return how many were new.

        Args:
            request: The request.
            data: Its bytes, which become an entry of the event log.
            time_left_s: Seconds until the caller's deadline; None for none.

        Raises:
            HistoryStoreError: the store cannot be used.
            TooLateError: the deadline passed before the commit began.
        """
        return await self._submit(
            time_left_s,
            request=request,
            data=data,
            received_ms=int(time() * 1e3),
            num_events=len(request.user_ids),
        )

    async def forget(self, user_id: str, time_left_s: float | None) -> None:
        """Remove all that is stored of a user, durably, after the events that were sent before.

        Raises:
            HistoryStoreError: the store cannot be used.
            TooLateError: the deadline passed before the commit began.
        """
        await self._submit(time_left_s, user_id=user_id, num_events=1)

    def close(self) -> None:
        """End the thread after the calls that wait, and close the store."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        self._store.close()

    async def _submit(self, time_left_s: float | None, **fields: object) -> int:
        loop = asyncio.get_running_loop()
        deadline_s = inf if time_left_s is None else monotonic() + time_left_s
        call = _Waiting(future=loop.create_future(), loop=loop, deadline_s=deadline_s, **fields)  # type: ignore[arg-type]
        with self._changed:
            self._waiting.append(call)
            self._num_waiting_events += call.num_events
            self._changed.notify()
        return await call.future

    def _run(self) -> None:
        while group := self._next_group():
            try:
                outcomes = self._commit(group)
            except Re4Error as error:
                outcomes = [error] * len(group)
            except Exception as error:  # the thread must go on; the callers get INTERNAL
                outcomes = [error] * len(group)
            for call, outcome in zip(group, outcomes, strict=True):
                with suppress(RuntimeError):  # the event loop has ended
                    call.loop.call_soon_threadsafe(_resolve, call.future, outcome)

    def _next_group(self) -> list[_Waiting]:
        """Wait for calls, and return those of the next commit; empty at the end."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            group: list[_Waiting] = []
            num_events = 0
            while self._waiting and (not group or num_events < _MAX_GROUP_EVENTS):
                is_forget = self._waiting[0].request is None
                if group and (is_forget or group[-1].request is None):
                    break
                group.append(self._waiting.popleft())
                num_events += group[-1].num_events
            self._num_waiting_events -= num_events
            return group

    def _commit(self, group: Sequence[_Waiting]) -> list[int | Exception]:
        """Commit a group, and return the number of new events of each call, or its error."""
        now_s = monotonic()
        live = [call for call in group if call.deadline_s > now_s and not call.future.cancelled()]
        late = TooLateError("the caller's deadline passed while these events waited: none was recorded")
        if not live:
            return [late] * len(group)
        operation = "append" if live[0].request is not None else "forget"
        is_error = True
        self.breaker.check()  # calls behind one that failed are no further tries
        try:
            counts = self._append(live) if operation == "append" else self._forget(live[0])
            is_error = False
            self.breaker.succeeded()
        except HistoryStoreError as error:
            if str(error) != self.breaker.failure:
                _log.error("events are not recorded: %s", error)
            self.breaker.failed(error)
            raise
        finally:
            self._metrics.store_call(operation, monotonic() - now_s, is_error=is_error)
        took_ms, num_events = (monotonic() - now_s) * 1e3, sum(call.num_events for call in live)
        if num_events < _FEW_EVENTS:  # the disk's time, which does not grow with the events
            self._ms_per_commit += _NEWEST_WEIGHT * (took_ms - self._ms_per_commit)
        else:
            per_event_ms = max(0.0, took_ms - self._ms_per_commit) / num_events
            self._ms_per_event += _NEWEST_WEIGHT * (per_event_ms - self._ms_per_event)
        of_call = dict(zip(map(id, live), counts, strict=True))
        return [of_call.get(id(call), late) for call in group]

    def _append(self, calls: Sequence[_Waiting]) -> list[int]:
        now_ms = int(time() * 1e3)
        events: list[Event] = []
        log: list[LogEntry] = []
        for call in calls:
            assert call.request is not None
            event_ids = call.request.event_ids or [""] * call.num_events
            logged = zip(logged_events(call.request, call.received_ms), event_ids, strict=True)
            events += [
                Event(user_id, time_ms, event_mark(event_id, item), item)
                for (user_id, item, time_ms), event_id in with_pauses(logged, _CHUNK_EVENTS)
            ]
            log.append(LogEntry(call.received_ms, call.data, call.num_events))
        are_new = self._store.append(events, now_ms, log)
        if self._popularity is not None:
            new = [event for event, is_new in zip(events, are_new, strict=True) if is_new]
            self._popularity.count(new, now_ms)
        durable_ms = time() * 1e3
        counts, lags_s, start = [], [], 0
        for call in calls:
            end = start + call.num_events
            counts.append(sum(are_new[start:end]))
            lags_s.append(max(0.0, durable_ms - max(event.time_ms for event in events[start:end])) / 1e3)
            start = end
        self._metrics.recorded(sum(counts), len(events) - sum(counts), lags_s)
        return counts

    def _forget(self, call: _Waiting) -> list[int]:
        self._store.forget(call.user_id, int(time() * 1e3))
        return [0]


def _resolve(future: "asyncio.Future[int]", outcome: int | Exception) -> None:
    if future.done():  # the caller left
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
