"""Work-conserving batches: whatever queued while the last batch ran is the next one. No timer.

An idle server answers a lone query at once; a busy one shares each run among all who wait. One thread, the
compute lane, runs the batches, so that the event loop stays free to read the next calls. Knows nothing about
what a query is.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Generic, NamedTuple, TypeVar

QueryT = TypeVar("QueryT")
ResultT = TypeVar("ResultT")


@dataclass(eq=False, slots=True)
class _Waiting(Generic[QueryT, ResultT]):
    query: QueryT
    future: "asyncio.Future[Finished[ResultT]]"
    since_ns: int


class Finished(NamedTuple, Generic[ResultT]):
    """A result, and how long its query waited for its batch to start."""

    result: ResultT
    queue_us: int


class Batcher(Generic[QueryT, ResultT]):
    """A queue in front of one compute lane. Belongs to one event loop."""

    def __init__(
        self,
        run: Callable[[Sequence[QueryT]], Sequence[ResultT | Exception]],
        *,
        max_batch_size: int,
        may_share: Callable[[QueryT, QueryT], bool],
        on_lane_start: Callable[[], None],
    ) -> None:
        """Start the lane.

        Args:
            run: Answers a batch, in the lane; an exception in place of a result concerns that query alone.
            max_batch_size: Most queries that `run` is given.
            may_share: Whether a query may share the batch of the first one.
            on_lane_start: Called once in the lane's thread.
        """
        self._run = run
        self._max_batch_size = max_batch_size
        self._may_share = may_share
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="compute-lane", initializer=on_lane_start)
        self._waiting: deque[_Waiting[QueryT, ResultT]] = deque()
        self._is_busy = False

    async def submit(self, query: QueryT) -> Finished[ResultT]:
        """The result of a query. Cancelled while it waits, it is never run.

        Raises:
            Exception: whatever `run` gave for this query, or raised for its batch.
        """
        loop = asyncio.get_running_loop()
        entry = _Waiting[QueryT, ResultT](query, loop.create_future(), perf_counter_ns())
        self._waiting.append(entry)
        if not self._is_busy:
            self._is_busy = True
            # Not at once: calls that arrived in the same turn of the loop share the batch.
            loop.call_soon(self._start_next)
        return await entry.future

    def close(self) -> None:
        """End the lane after the batch that is running."""
        self._lane.shutdown(wait=False)

    def _start_next(self) -> None:
        batch = self._next_batch()
        self._is_busy = bool(batch)
        if not batch:
            return
        queries = [entry.query for entry in batch]
        started_ns = perf_counter_ns()
        running = asyncio.get_running_loop().run_in_executor(self._lane, self._run, queries)
        running.add_done_callback(lambda done: self._finish(batch, started_ns, done))

    def _next_batch(self) -> list[_Waiting[QueryT, ResultT]]:
        batch: list[_Waiting[QueryT, ResultT]] = []
        while self._waiting and len(batch) < self._max_batch_size:
            entry = self._waiting[0]
            if not entry.future.done():  # done here means that the caller has gone
                if batch and not self._may_share(batch[0].query, entry.query):
                    break
                batch.append(entry)
            self._waiting.popleft()
        return batch

    def _finish(
        self,
        batch: Sequence[_Waiting[QueryT, ResultT]],
        started_ns: int,
        done: "asyncio.Future[Sequence[ResultT | Exception]]",
    ) -> None:
        self._start_next()  # the lane works while the replies are built
        failure = done.exception()
        results = [failure] * len(batch) if failure is not None else done.result()
        for entry, result in zip(batch, results, strict=True):
            if entry.future.done():
                continue
            if isinstance(result, BaseException):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(Finished(result, (started_ns - entry.since_ns) // 1000))
