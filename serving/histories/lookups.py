"""Look-ups of histories for requests: at once in the embedded store, in shared round trips on a Redis server.

Requests that arrive while a round trip runs share the next one. Its thread is the only one that waits for the
server, so that requests without a user id notice nothing of a server that is slow or away.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, time
from typing import Final, Protocol, TypeVar

from re4.common.errors import HistoryStoreError, TooLateError
from re4.serving.histories.breaker import CircuitBreaker
from re4.serving.histories.store import HistoryStore, Item, StoredEvent

_MAX_ROUND_TRIP_USERS: Final = 512

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class LookupMetrics(Protocol):
    """Counts the uses of the store."""

    def store_call(self, operation: str, seconds: float, *, is_error: bool) -> None:
        """Count a use of the store."""


class HistoryLookups:
    """Reads a store for the requests of one event loop."""

    def __init__(self, store: HistoryStore, metrics: LookupMetrics, timeout_ms: float) -> None:
        """Start without a look-up.

        Args:
            store: The store.
            metrics: Counts its uses.
            timeout_ms: Longest wait for a store that is not local.
        """
        self._store = store
        self._metrics = metrics
        self._timeout_s = timeout_ms / 1e3
        self._thread = None if store.is_local else ThreadPoolExecutor(1, thread_name_prefix="history-reader")
        self._waiting: list[tuple[Sequence[str], asyncio.Future[list[list[Item]]]]] = []
        self._is_running = False
        self.breaker = CircuitBreaker()

    async def newest_items(self, user_ids: Sequence[str], time_left_s: float | None) -> list[list[Item]]:
        """Return the items of the newest events of each user, oldest first.

        Args:
            user_ids: The users.
            time_left_s: Seconds until the caller's deadline; None for none.

        Raises:
            HistoryStoreError: the store cannot be used, or does not answer in time.
            TooLateError: the caller's deadline passed before the store's answer.
        """
        if self._thread is None:
            return self._measured(lambda: self._store.newest_items(user_ids, int(time() * 1e3)))
        self.breaker.check()
        future: asyncio.Future[list[list[Item]]] = asyncio.get_running_loop().create_future()
        self._waiting.append((user_ids, future))
        if not self._is_running:
            self._start_round_trip()
        return await self._in_time(future, time_left_s)

    async def newest_events(self, user_id: str, time_left_s: float | None) -> list[StoredEvent]:
        """Return the newest events of a user, oldest first.

        Raises:
            HistoryStoreError, TooLateError: as for `newest_items`.
        """
        if self._thread is None:
            return self._measured(lambda: self._store.newest_events(user_id, int(time() * 1e3)))
        self.breaker.check()
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(
            self._thread,
            self._measured,
            lambda: self._store.newest_events(user_id, int(time() * 1e3)),
        )
        return await self._in_time(running, time_left_s)

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    async def _in_time(self, future: "asyncio.Future[_T]", time_left_s: float | None) -> _T:
        """Wait for a result until the time limit of the store, or until the caller's deadline."""
        left_s = self._timeout_s if time_left_s is None else min(time_left_s, self._timeout_s)
        try:
            async with asyncio.timeout(left_s):
                return await future
        except TimeoutError:
            if left_s < self._timeout_s:
                raise TooLateError(
                    "the caller's deadline passed before the store of histories answered"
                ) from None
            raise HistoryStoreError(
                f"the store of histories did not answer within {self._timeout_s * 1e3:g} ms "
                "(--history-timeout-ms); it is tried again by itself"
            ) from None

    def _start_round_trip(self) -> None:
        """Look up all users that wait, in the thread."""
        taken: list[tuple[Sequence[str], asyncio.Future[list[list[Item]]]]] = []
        user_ids: list[str] = []
        while self._waiting and (not taken or len(user_ids) < _MAX_ROUND_TRIP_USERS):
            own, future = self._waiting.pop(0)
            if not future.done():  # otherwise its caller left
                taken.append((own, future))
                user_ids += own
        self._is_running = bool(taken)
        if not taken:
            return
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(
            self._thread,
            self._measured,
            lambda: self._store.newest_items(user_ids, int(time() * 1e3)),
        )
        running.add_done_callback(lambda done: self._end_round_trip(taken, done))

    def _end_round_trip(
        self,
        taken: Sequence[tuple[Sequence[str], "asyncio.Future[list[list[Item]]]"]],
        done: "asyncio.Future[list[list[Item]]]",
    ) -> None:
        error = done.exception()
        found = [] if error is not None else done.result()
        start = 0
        for own, future in taken:
            if not future.done():
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(found[start : start + len(own)])
            start += len(own)
        self._start_round_trip()

    def _measured(self, look_up: Callable[[], _T]) -> _T:
        """Return the result of a look-up; note in metrics and breaker how it went."""
        self.breaker.check()
        began_s, is_error = monotonic(), True
        try:
            found = look_up()
            is_error = False
            self.breaker.succeeded()
        except HistoryStoreError as error:
            if not self.breaker.failure:
                _log.error("histories cannot be read: %s", error)
            self.breaker.failed(error)
            raise
        finally:
            self._metrics.store_call("read", monotonic() - began_s, is_error=is_error)
        return found
