"""Work-conserving batches: whatever queued while the last batch ran is the next one. No timer by default.

An idle server answers a lone query at once; a busy one shares each run among all who wait. Those whom the
transport holds are let through first: a batch starts when the event loop has nothing new to say. One
thread, the compute lane, runs the batches, so that the event loop stays free to read the next calls; a batch
that is over sooner than that is worth runs in the event loop's own thread. Work is spent only on those who
can still be answered: who would wait too long is turned away on arrival, who left or whose deadline passed
is dropped when the batch is formed. Knows nothing about what a query is.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from time import perf_counter_ns
from typing import Any, Final, Generic, NamedTuple, TypeVar

from re4.common.errors import ShedError, TooLateError
from re4.serving.batching.latency_estimate import Pace
from re4.serving.batching.queue import Backlog, Group

_QUIET_TURNS: Final = 8
"""Turns of the event loop without a new query after which nobody else is taken to be on the way. A call that
the transport holds takes several turns to get here; whoever starts without it runs a batch of one, and at
saturation all batches stay that small. A query that comes after so many quiet turns is alone: it waits for
nobody. In each turn the core is offered to the transport's threads, which bring the calls."""

_ANSWERS_A_REFUSAL: Final = 8
"""Answers for each refusal where far too many call, and the event loop runs the batches: to take a call and
refuse it is work, too. The rest is left to the transport, which ends it for less."""

QueryT = TypeVar("QueryT")
ResultT = TypeVar("ResultT")


class _Waiting(asyncio.Future["Finished[ResultT]"], Generic[QueryT, ResultT]):
    """A query that waits, and the future of its result. Cancelled, it takes nobody's place any longer."""

    def __init__(
        self,
        query: QueryT,
        group: Group,
        backlog: "Backlog[_Waiting[QueryT, ResultT]]",
        since_ns: int,
        deadline_ns: float,
    ) -> None:
        super().__init__()
        self.query = query
        self.since_ns = since_ns
        self.deadline_ns = deadline_ns
        self.group = group
        self._backlog = backlog

    def cancel(self, msg: Any = None) -> bool:
        self._backlog.discard(self.group, self)
        return super().cancel(msg)


@dataclass(frozen=True, slots=True)
class _Running:
    group: Group
    num_queries: int
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
        max_wait_ms: float,
        max_delay_ms: float = 0.0,
        max_block_ms: float = 0.0,
        has_core_beside: bool = True,
        group_of: Callable[[QueryT], Group],
        on_lane_start: Callable[[], None],
        lane: ThreadPoolExecutor | None = None,
        clock_ns: Callable[[], int] = perf_counter_ns,
    ) -> None:
        """Start the lane.

        Args:
            run: Answers a batch, in the lane; an exception in place of a result concerns that query alone.
            max_batch_size: Most queries that `run` is given.
            max_wait_ms: Queries that would wait longer for their batch to start are turned away.
            max_delay_ms: How long an idle lane waits for company before it runs a batch that is not full.
            max_block_ms: Batches that should take no longer run in the event loop's thread; 0 for none.
            has_core_beside: Whether the lane has a core of its own. Otherwise it would only take turns with
                the event loop: batches are then cut to what this thread may run.
            group_of: Says which queries may share a batch, and how deep they are.
            on_lane_start: Called once in each thread that may run a batch.
            lane: One thread to be the lane, which the batcher then ends; None for one of its own.
            clock_ns: What time it is, in nanoseconds since any moment.
        """
        self._run = run
        self._max_wait_ms = max_wait_ms
        self._max_batch_size = max_batch_size
        self._delay_s = max_delay_ms / 1e3
        self._max_block_ms = max_block_ms
        self._group_of = group_of
        self._clock_ns = clock_ns
        self._lane = lane or ThreadPoolExecutor(1, thread_name_prefix="compute-lane")
        self._lane.submit(on_lane_start)
        if max_block_ms:
            on_lane_start()
        self._pace = Pace()
        max_turn_ms = inf if has_core_beside else max_block_ms
        self._backlog = Backlog[_Waiting[QueryT, ResultT]](max_batch_size, self._pace.ms, max_turn_ms)
        self._is_busy = False
        self._num_come = 0
        self._num_refused = 0  # since the last batch started
        self._has_core_beside = has_core_beside
        self._is_quiet = True
        self._delayed: asyncio.TimerHandle | None = None
        self._running: _Running | None = None

    def admit(self, group: Group, *, time_left_s: float | None, wait_ms: float | None = None) -> None:
        """Say whether a query of this group would be let in now; cheap, so worth asking before it is read.

        Args:
            group: Of the query.
            time_left_s: When the caller will have gone; None for never.
            wait_ms: What `wait_ms` has just said; None to ask.

        Raises:
            ShedError, TooLateError: it would not, as `enqueue` says.
        """
        if wait_ms is None:
            wait_ms = self.wait_ms(group)
        if time_left_s is not None and wait_ms >= time_left_s * 1e3:
            raise TooLateError(
                f"the caller's deadline is {max(time_left_s, 0) * 1e3:.0f} ms away, and this call would wait "
                f"about {wait_ms:.0f} ms for its turn: nothing was computed for it"
            )
        if wait_ms > self._max_wait_ms:
            self._num_come += 1
            self._num_refused += 1
            raise ShedError(wait_ms=wait_ms, max_wait_ms=self._max_wait_ms)

    def wait_ms(self, group: Group) -> float:
        """How long a query of this group that arrived now would wait for its turn, by the measured pace."""
        return self._running_ms(self._clock_ns()) + self._backlog.wait_ms(group)

    async def submit(
        self, query: QueryT, *, time_left_s: float | None = None, admitted: Group | None = None
    ) -> Finished[ResultT]:
        """The result of a query. Cancelled while it waits, it is never run.

        Args:
            query: What to run.
            time_left_s: When the caller will have gone; None for never.
            admitted: The group that `admit` has just let this caller into.

        Raises:
            ShedError: it would wait longer than is allowed.
            TooLateError: its turn would come, or came, after the caller's deadline.
            Exception: whatever `run` gave for this query, or raised for its batch.
        """
        group = self._group_of(query)
        if group != admitted:
            self.admit(group, time_left_s=time_left_s)
        if self._is_quiet and not self._is_busy and not self._delay_s and self._is_soon_over(group, 1):
            return self._answer_at_once(query, group)
        (future,) = self.enqueue([query], time_left_s=time_left_s, is_let_in=True)
        return await future

    def enqueue(
        self,
        queries: Sequence[QueryT],
        *,
        time_left_s: float | None = None,
        is_let_in: bool = False,
    ) -> list["asyncio.Future[Finished[ResultT]]"]:
        """Let all the queries of one call in, or none: a future for each. Cancel one, and it is not run.

        Args:
            queries: What to run; in as many batches as it takes.
            time_left_s: When the caller will have gone; None for never.
            is_let_in: The call was let in before: what waits by now does not turn it away.

        Raises:
            ShedError: the first would wait longer than is allowed.
            TooLateError: the first one's turn would come after the caller's deadline.
        """
        loop = asyncio.get_running_loop()
        now_ns = self._clock_ns()
        groups = [self._group_of(query) for query in queries]
        if not is_let_in:
            for group in set(groups):
                self.admit(group, time_left_s=time_left_s)
        deadline_ns = inf if time_left_s is None else now_ns + time_left_s * 1e9
        futures: list[asyncio.Future[Finished[ResultT]]] = []
        for query, group in zip(queries, groups, strict=True):
            waiting = _Waiting(query, group, self._backlog, now_ns, deadline_ns)
            self._backlog.add(group, waiting)
            futures.append(waiting)
        self._num_come += len(futures)
        if futures and not self._is_busy:
            self._is_busy = True
            if self._delay_s:
                self._delayed = loop.call_later(self._delay_s, self._start_next)
            else:
                num_turns = _QUIET_TURNS if self._is_quiet else 0
                loop.call_soon(self._start_when_quiet, self._num_come, num_turns)
        if self._delayed is not None and len(self._backlog) >= self._max_batch_size:
            self._start_next()
        return futures

    @property
    def is_lane_busy(self) -> bool:
        """Whether the lane is running a batch."""
        return self._running is not None

    def close(self) -> None:
        """End the lane after the batch that is running."""
        self._lane.shutdown(wait=False)

    def _running_ms(self, now_ns: int) -> float:
        """How much longer the batch in the lane should take; nothing where it should be done by now."""
        if self._running is None:
            return 0.0
        expected_ms = self._running.num_queries * self._pace.ms(self._running.group.cost_class)
        return max(expected_ms - (now_ns - self._running.since_ns) / 1e6, 0.0)

    def _start_when_quiet(self, num_seen: int, num_turns: int) -> None:
        """Start the next batch when no query has come for some turns of the event loop, or enough have.

        For a lane on a core of its own a full batch is enough: others are let in and turned away meanwhile.
        While a batch runs in this thread nobody is, so those come first who can wait for the next.
        """
        num_come = self._num_come
        if num_come > num_seen:
            num_turns = 0
        is_enough = self._num_refused * _ANSWERS_A_REFUSAL >= self._max_batch_size or (
            self._has_core_beside and len(self._backlog) >= self._max_batch_size
        )
        if is_enough or num_turns >= _QUIET_TURNS:
            self._start_next()
        else:
            os.sched_yield()
            loop = asyncio.get_running_loop()
            loop.call_soon(self._start_when_quiet, num_come, num_turns + 1)

    def _start_next(self) -> None:
        if self._delayed is not None:
            self._delayed.cancel()
            self._delayed = None
        started_ns = self._clock_ns()
        batch = self._next_batch(started_ns)
        self._is_busy = bool(batch)
        self._running = _Running(batch[0].group, len(batch), started_ns) if batch else None
        self._num_refused = 0
        if not batch:
            return
        queries = [entry.query for entry in batch]
        loop = asyncio.get_running_loop()
        if self._is_soon_over(batch[0].group, len(batch)):
            self._finish(batch, started_ns, self._outcomes(queries))
        else:
            running = loop.run_in_executor(self._lane, self._outcomes, queries)
            running.add_done_callback(lambda done: self._finish(batch, started_ns, done.result()))

    def _outcomes(self, queries: Sequence[QueryT]) -> Sequence[ResultT | BaseException]:
        """What `run` gives for each query; what it raises is the outcome of all."""
        try:
            return self._run(queries)
        except BaseException as error:  # whatever it is, those who wait are told
            return [error] * len(queries)

    def _is_soon_over(self, group: Group, num_queries: int) -> bool:
        """Whether so many queries of a group are known to be short enough for the event loop's thread."""
        return 0 < num_queries * self._pace.ms(group.cost_class) <= self._max_block_ms

    def _answer_at_once(self, query: QueryT, group: Group) -> Finished[ResultT]:
        """The result of a lone query, which waits for nothing: no queue, no future, no turn of the loop."""
        started_ns = self._clock_ns()
        (result,) = self._outcomes([query])
        self._end(group, 1, started_ns)
        if isinstance(result, BaseException):
            raise result
        return Finished(result, 0)

    def _next_batch(self, now_ns: int) -> list[_Waiting[QueryT, ResultT]]:
        while taken := self._backlog.take():
            batch = []
            for entry in taken:
                if entry.done():  # the caller has gone
                    continue
                if entry.deadline_ns <= now_ns:
                    entry.set_exception(
                        TooLateError(
                            "the caller's deadline passed while this call waited for its turn: nothing was "
                            "computed for it"
                        )
                    )
                    continue
                batch.append(entry)
            if batch:
                return batch
        return []

    def _finish(
        self,
        batch: Sequence[_Waiting[QueryT, ResultT]],
        started_ns: int,
        outcomes: Sequence[ResultT | BaseException],
    ) -> None:
        self._end(batch[0].group, len(batch), started_ns)
        for entry, result in zip(batch, outcomes, strict=True):
            if entry.done():
                continue
            if isinstance(result, BaseException):
                entry.set_exception(result)
            else:
                entry.set_result(Finished(result, (started_ns - entry.since_ns) // 1000))

    def _end(self, group: Group, num_queries: int, started_ns: int) -> None:
        """A batch has ended: begin the next, or see whether anybody comes."""
        self._pace.note(group.cost_class, num_queries, (self._clock_ns() - started_ns) / 1e6)
        self._running = None
        self._is_quiet = False
        loop = asyncio.get_running_loop()
        if self._backlog:
            loop.call_soon(self._start_when_quiet, 0, 0)
        else:
            self._is_busy = False
            loop.call_soon(self._watch, self._num_come, 0)

    def _watch(self, num_come: int, num_turns: int) -> None:
        """See whether anybody comes within some turns of the event loop."""
        if self._num_come != num_come:
            return
        if num_turns >= _QUIET_TURNS:
            self._is_quiet = True
        else:
            os.sched_yield()
            asyncio.get_running_loop().call_soon(self._watch, num_come, num_turns + 1)
