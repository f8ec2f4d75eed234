"""Batching without a timer: the requests that queued while a batch ran are the next batch.

An idle server answers a lone request at once; a busy server shares each run among all waiting
requests. A batch starts when the event loop has no new request to read, so that calls which the
transport holds join it. One worker thread runs the batches, so that the event loop stays free to
read calls. A batch that is too short to gain by that runs in the event loop's thread. No work is
spent on requests that cannot be answered: a request that would wait too long is rejected on
arrival; one whose caller left or whose deadline passed is dropped when the batch is formed.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from time import perf_counter_ns
from typing import Any, Final, Generic, Protocol, TypeVar

from re4.common.errors import ShedError, TooLateError
from re4.serving.batching.queue import BatchGroup, BatchQueue, LatencyEstimate
from re4.serving.host.batch_deadline import DEADLINE_NS

_QUIET_TURNS: Final = 8
"""Turns of the event loop without a new request after which no other is expected. A call that the
transport holds takes several turns to arrive. A batch that starts without it is a batch of one, and
at saturation all batches would stay that small. A request that arrives after so many quiet turns is
alone and waits for no other. In each turn the core is yielded to the transport's threads, which
bring the calls."""

_ANSWERS_PER_REJECTION: Final = 8
"""Answers for each rejection, where far too many call and the event loop runs the batches: to
accept and reject a call is work, too. The transport ends the other calls, at a lower cost."""

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")
EntryRequestT = TypeVar("EntryRequestT", covariant=True)
EntryResultT = TypeVar("EntryResultT", contravariant=True)


class Entry(Protocol[EntryRequestT, EntryResultT]):
    """A request in the queue. Hashable by identity."""

    queue_us: int
    """How long it waited for its batch to start; set with the result."""

    @property
    def request(self) -> EntryRequestT:
        """The request."""
        ...

    @property
    def group(self) -> BatchGroup:
        """The group of the request."""
        ...

    @property
    def since_ns(self) -> int:
        """When it was queued."""
        ...

    @property
    def deadline_ns(self) -> float:
        """When it is too late for its batch to start; infinite for none."""
        ...

    def done(self) -> bool:
        """Return whether it needs no answer any more."""
        ...

    def set_result(self, result: EntryResultT, /) -> None:
        """Take the result."""
        ...

    def set_exception(self, exception: BaseException, /) -> None:
        """Take the error in place of a result."""
        ...


class QueuedRequest(asyncio.Future[ResultT], Generic[RequestT, ResultT]):
    """A request in the queue, and the future of its result."""

    def __init__(
        self,
        request: RequestT,
        group: BatchGroup,
        queue: "BatchQueue[Entry[RequestT, ResultT]]",
        since_ns: int,
        deadline_ns: float,
    ) -> None:
        super().__init__()
        self.request = request
        self.since_ns = since_ns
        self.deadline_ns = deadline_ns
        self.group = group
        self.queue_us = 0
        """How long it waited for its batch to start; set with the result."""
        self._queue = queue

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the request, and remove it from the queue."""
        self._queue.discard(self.group, self)
        return super().cancel(msg)


@dataclass(frozen=True, slots=True)
class _RunningBatch:
    group: BatchGroup
    num_requests: int
    since_ns: int


def too_late(time_left_s: float, wait_ms: float) -> TooLateError:
    """Return the error of a call whose deadline comes before its turn."""
    return TooLateError(
        f"the caller's deadline is {max(time_left_s, 0) * 1e3:.0f} ms away, and this call would wait "
        f"about {wait_ms:.0f} ms for its turn: nothing was computed for it"
    )


class Batcher(Generic[RequestT, ResultT]):
    """A queue and the worker thread that runs its batches. Belongs to one event loop."""

    def __init__(
        self,
        run: Callable[[Sequence[RequestT]], Sequence[ResultT | Exception]],
        *,
        max_batch_size: int,
        max_wait_ms: float,
        max_delay_ms: float = 0.0,
        max_block_ms: float = 0.0,
        has_own_core: bool = True,
        waits_for_quiet: bool = True,
        group_of: Callable[[RequestT], BatchGroup],
        on_thread_start: Callable[[], None],
        worker_thread: ThreadPoolExecutor | None = None,
        clock_ns: Callable[[], int] = perf_counter_ns,
    ) -> None:
        """Start the worker thread.

        Args:
            run: Returns the results of a batch; an exception in place of a result concerns that
                request alone.
            max_batch_size: Most requests in a batch.
            max_wait_ms: Requests that would wait longer for their batch to start are rejected.
            max_delay_ms: How long an idle server waits for other requests before it runs a batch
                that is not full.
            max_block_ms: Batches of at most this estimated length run in the event loop's thread; 0
                for none.
            has_own_core: Whether the worker thread has its own core. Otherwise it takes turns with
                the event loop on one core, and batches are limited to `max_block_ms`.
            waits_for_quiet: Whether calls arrive one by one in turns of the event loop, so that a
                batch starts when none has arrived for some turns. Otherwise the transport hands over
                all calls that it holds, and then calls `start`.
            group_of: Returns the group of a request.
            on_thread_start: Called once in each thread that may run a batch.
            worker_thread: An executor of one thread, which the batcher will shut down; None to make
                one.
            clock_ns: Returns the time in nanoseconds since any moment.
        """
        self._run = run
        self._max_wait_ms = max_wait_ms
        self._max_batch_size = max_batch_size
        self._delay_s = max_delay_ms / 1e3
        self._max_block_ms = max_block_ms
        self._group_of = group_of
        self._clock_ns = clock_ns
        self._worker_thread = worker_thread or ThreadPoolExecutor(1, thread_name_prefix="batch-worker")
        self._worker_thread.submit(on_thread_start)
        if max_block_ms:
            on_thread_start()
        self._estimate = LatencyEstimate()
        max_turn_ms = inf if has_own_core else max_block_ms
        self._queue = BatchQueue[Entry[RequestT, ResultT]](max_batch_size, self._estimate.ms, max_turn_ms)
        self._is_busy = False
        self._num_arrived = 0
        self._num_rejected = 0  # since the last batch started
        self._has_own_core = has_own_core
        self._waits_for_quiet = waits_for_quiet
        self._is_quiet = True
        self._starting: asyncio.Handle | None = None
        self._delayed: asyncio.TimerHandle | None = None
        self._running: _RunningBatch | None = None
        self._followed: _RunningBatch | None = None
        """The last batch, where requests waited at its end. It counts until the next one starts: to send its
        replies and to read and reject calls takes time too, for which the others wait."""
        self._unread_ms = 0.0
        """How long the last batch kept the event loop from reading, where calls are handed over together."""

    async def wait_for_worker_thread(self) -> None:
        """Return when the worker thread has finished its present batch; at once where it is idle."""
        await asyncio.get_running_loop().run_in_executor(self._worker_thread, int)

    def admit(self, group: BatchGroup, *, time_left_s: float | None, wait_ms: float | None = None) -> None:
        """Raise if a request of this group would be rejected now.

        Cheap enough to call before the request is parsed.

        Args:
            group: Of the request.
            time_left_s: Seconds until the caller's deadline; None for none.
            wait_ms: A result of `wait_ms` from just now; None to compute it.

        Raises:
            ShedError, TooLateError: as for `enqueue`.
        """
        if wait_ms is None:
            wait_ms = self.wait_ms(group)
        if time_left_s is not None and wait_ms >= time_left_s * 1e3:
            raise too_late(time_left_s, wait_ms)
        if wait_ms > self._max_wait_ms:
            self._num_arrived += 1
            self._num_rejected += 1
            raise ShedError(wait_ms=wait_ms, max_wait_ms=self._max_wait_ms)

    def num_admitted(self, group: BatchGroup, wait_ms: float | None = None) -> int:
        """Return how many requests of this group `admit` would admit now, one after the other.

        Args:
            group: Of the requests.
            wait_ms: As for `admit`.
        """
        ms_each = self._estimate.ms(group.cost_class)
        free_ms = self._max_wait_ms - (self.wait_ms(group) if wait_ms is None else wait_ms)
        if free_ms < 0:
            return 0
        return int(free_ms / ms_each) + 1 if ms_each else sys.maxsize

    def rejection(self, group: BatchGroup, num_requests: int) -> ShedError:
        """Return the error of some requests that would wait too long, and count them as rejected."""
        self._num_arrived += num_requests
        self._num_rejected += num_requests
        ms_each = self._estimate.ms(group.cost_class)
        wait_ms = max(self.wait_ms(group), self._max_wait_ms + ms_each)
        return ShedError(wait_ms=wait_ms, max_wait_ms=self._max_wait_ms)

    def wait_ms(self, group: BatchGroup) -> float:
        """Return how long a request of this group would wait now, by the latency estimate.

        Where others wait too, it may have waited unread while the last batch ran in the event loop.
        """
        wait_ms = self._running_ms(self._clock_ns()) + self._queue.wait_ms(group)
        return wait_ms + self._unread_ms if wait_ms else 0.0

    async def submit(
        self, request: RequestT, *, time_left_s: float | None = None, admitted: BatchGroup | None = None
    ) -> tuple[ResultT, int]:
        """Return the result of a request, and how long it waited for its batch (µs).

        A request that is cancelled while it waits is never run.

        Args:
            request: To run.
            time_left_s: Seconds until the caller's deadline; None for none.
            admitted: The group for which `admit` was called just now.

        Raises:
            ShedError: the request would wait longer than is allowed.
            TooLateError: its turn would come, or came, after the caller's deadline.
            Exception: the one that `run` returned for this request, or raised for its batch.
        """
        group = self._group_of(request)
        if group != admitted:
            self.admit(group, time_left_s=time_left_s)
        if self._is_quiet and not self._is_busy and not self._delay_s and self._is_short(group, 1):
            return self._run_at_once(request, group), 0
        (queued,) = self.enqueue([request], time_left_s=time_left_s, is_admitted=True)
        try:
            return await queued, queued.queue_us
        finally:
            # The traceback of its error refers to this frame. A cycle of the two would keep the version of
            # the request until the garbage collector runs, which a worker lets run seldom.
            del queued

    def enqueue(
        self,
        requests: Sequence[RequestT],
        *,
        time_left_s: float | None = None,
        is_admitted: bool = False,
    ) -> list[QueuedRequest[RequestT, ResultT]]:
        """Queue all the requests of one call, or none. A cancelled one is not run.

        Args:
            requests: To run, in as many batches as they need.
            time_left_s: Seconds until the caller's deadline; None for none.
            is_admitted: Whether the call was admitted before; then it is not rejected any more.

        Raises:
            ShedError: the first request would wait longer than is allowed.
            TooLateError: the first one's turn would come after the caller's deadline.
        """
        now_ns = self._clock_ns()
        groups = [self._group_of(request) for request in requests]
        if not is_admitted:
            for group in set(groups):
                self.admit(group, time_left_s=time_left_s)
        deadline_ns = inf if time_left_s is None else now_ns + time_left_s * 1e9
        queued: list[QueuedRequest[RequestT, ResultT]] = []
        for request, group in zip(requests, groups, strict=True):
            entry = QueuedRequest[RequestT, ResultT](request, group, self._queue, now_ns, deadline_ns)
            self.add(entry)
            queued.append(entry)
        if queued and not self._waits_for_quiet:
            self._start_soon()
        elif queued and not self._is_busy and self._delayed is None:
            self._is_busy = True
            num_turns = _QUIET_TURNS if self._is_quiet else 0
            loop = asyncio.get_running_loop()
            loop.call_soon(self._start_when_quiet, self._num_arrived, num_turns)
        return queued

    def add(self, entry: Entry[RequestT, ResultT]) -> None:
        """Queue a request that was admitted. Does not start a batch, unless one is full."""
        self._queue.add(entry.group, entry)
        self._num_arrived += 1
        if not self._delay_s:
            return
        if not self._is_busy:
            self._is_busy = True
            self._delayed = asyncio.get_running_loop().call_later(self._delay_s, self._start_next)
        if self._delayed is not None and len(self._queue) >= self._max_batch_size:
            self._start_next()

    def discard(self, entry: Entry[RequestT, ResultT]) -> None:
        """Remove a request from the queue; do nothing where its batch has started."""
        self._queue.discard(entry.group, entry)

    def start(self) -> None:
        """Start a batch of the waiting requests, unless one is running."""
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None
        if not self._is_busy:
            self._start_next()

    def run_alone(self, entry: Entry[RequestT, ResultT]) -> bool:
        """Run a request that was admitted without the queue; return whether it was run.

        That is where no other one waits or runs, and its batch is known to be short.
        """
        is_idle = not self._is_busy and self._starting is None and not self._delay_s
        if not is_idle or not self._is_short(entry.group, 1):
            return False
        started_ns = self._clock_ns()
        self._num_arrived += 1
        self._is_busy = True
        outcomes = self._outcomes([entry.request])
        self._unread_ms = (self._clock_ns() - started_ns) / 1e6
        self._finish([entry], started_ns, outcomes)
        return True

    def _start_soon(self) -> None:
        if self._starting is None:
            self._starting = asyncio.get_running_loop().call_soon(self.start)

    @property
    def is_batch_running(self) -> bool:
        """Whether the worker thread is running a batch."""
        return self._running is not None

    def close(self) -> None:
        """End the worker thread after the running batch."""
        self._worker_thread.shutdown(wait=False)

    def _running_ms(self, now_ns: int) -> float:
        """Return how much longer the running batch should take, at least 0."""
        if self._running is None:
            return 0.0
        group = self._running.group
        num_requests = self._queue.num_counted(group, self._running.num_requests)
        expected_ms = num_requests * self._estimate.ms(group.cost_class)
        return max(expected_ms - (now_ns - self._running.since_ns) / 1e6, 0.0)

    def _start_when_quiet(self, num_seen: int, num_turns: int) -> None:
        """Start the next batch when enough requests wait, or none has arrived for some turns.

        Where the worker thread has its own core, a full batch is enough: the event loop accepts and
        rejects calls while it runs. While a batch runs in the event loop's thread, no call is
        accepted or rejected, so calls are accepted first as long as any arrive.
        """
        num_arrived = self._num_arrived
        if num_arrived > num_seen:
            num_turns = 0
        is_enough = self._num_rejected * _ANSWERS_PER_REJECTION >= self._max_batch_size or (
            self._has_own_core and len(self._queue) >= self._max_batch_size
        )
        if is_enough or num_turns >= _QUIET_TURNS:
            self._start_next()
        else:
            os.sched_yield()
            loop = asyncio.get_running_loop()
            loop.call_soon(self._start_when_quiet, num_arrived, num_turns + 1)

    def _start_next(self) -> None:
        if self._delayed is not None:
            self._delayed.cancel()
            self._delayed = None
        started_ns = self._clock_ns()
        if self._followed is not None:
            self._add_to_estimate(self._followed, started_ns)
            self._followed = None
        batch = self._next_batch(started_ns)
        self._is_busy = bool(batch)
        self._running = _RunningBatch(batch[0].group, len(batch), started_ns) if batch else None
        self._num_rejected = 0
        if not batch:
            return
        requests = [entry.request for entry in batch]
        loop = asyncio.get_running_loop()
        if self._is_short(batch[0].group, len(batch)):
            outcomes = self._outcomes(requests)
            if not self._waits_for_quiet:
                self._unread_ms = (self._clock_ns() - started_ns) / 1e6
            self._finish(batch, started_ns, outcomes)
        else:
            self._unread_ms = 0.0
            deadline_ns = max(entry.deadline_ns for entry in batch) if batch[0].group.is_remote else None
            running = loop.run_in_executor(self._worker_thread, self._outcomes, requests, deadline_ns)
            running.add_done_callback(lambda done: self._finish(batch, started_ns, done.result()))

    def _outcomes(
        self, requests: Sequence[RequestT], deadline_ns: float | None = None
    ) -> Sequence[ResultT | BaseException]:
        """Return the result of `run` for each request; its exception is the outcome of all."""
        try:
            if deadline_ns is not None:
                DEADLINE_NS.set(deadline_ns)
            outcomes = self._run(requests)
            if len(outcomes) != len(requests):
                raise RuntimeError(f"{len(requests)} requests have {len(outcomes)} results")
            return outcomes
        except BaseException as error:  # every waiting caller must get it
            return [error] * len(requests)

    def _is_short(self, group: BatchGroup, num_requests: int) -> bool:
        """Return whether a batch is known to be short enough for the event loop."""
        return (
            not group.is_remote
            and 0 < num_requests * self._estimate.ms(group.cost_class) <= self._max_block_ms
        )

    def _run_at_once(self, request: RequestT, group: BatchGroup) -> ResultT:
        """Run a lone request, without a queue, a future or a turn of the event loop."""
        batch = _RunningBatch(group, 1, self._clock_ns())
        (result,) = self._outcomes([request])
        self._add_to_estimate(batch, self._clock_ns())
        self._is_quiet = False
        self._go_on()
        if isinstance(result, BaseException):
            raise result
        return result

    def _next_batch(self, now_ns: int) -> list[Entry[RequestT, ResultT]]:
        while taken := self._queue.take():
            batch = []
            for entry in taken:
                if entry.done():  # the caller left
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
        batch: Sequence[Entry[RequestT, ResultT]],
        started_ns: int,
        outcomes: Sequence[ResultT | BaseException],
    ) -> None:
        ended = _RunningBatch(batch[0].group, len(batch), started_ns)
        self._running, self._is_quiet = None, False
        if self._queue:
            self._followed = ended
        else:
            self._add_to_estimate(ended, self._clock_ns())
        for entry, result in zip(batch, outcomes, strict=True):
            if entry.done():
                continue
            entry.queue_us = (started_ns - entry.since_ns) // 1000
            if isinstance(result, StopIteration):  # no future takes it
                entry.set_exception(RuntimeError("a batch raised StopIteration"))
            elif isinstance(result, BaseException):
                entry.set_exception(result)
            else:
                entry.set_result(result)
        # Behind the results: a transport that scheduled their sending sends them before the next batch.
        self._go_on()

    def _add_to_estimate(self, batch: _RunningBatch, ended_ns: int) -> None:
        took_ms = (ended_ns - batch.since_ns) / 1e6
        num_requests = self._queue.num_counted(batch.group, batch.num_requests)
        self._estimate.add_batch(batch.group.cost_class, num_requests, took_ms)

    def _go_on(self) -> None:
        """Start the next batch, or find out whether other requests arrive."""
        loop = asyncio.get_running_loop()
        if not self._waits_for_quiet:
            self._is_busy = False
            if self._queue:
                self._start_soon()
        elif self._queue:
            loop.call_soon(self._start_when_quiet, 0, 0)
        else:
            self._is_busy = False
            loop.call_soon(self._watch_arrivals, self._num_arrived, 0)

    def _watch_arrivals(self, num_seen: int, num_turns: int) -> None:
        """Find out whether a request arrives within some turns of the event loop."""
        if self._num_arrived != num_seen:
            return
        if num_turns >= _QUIET_TURNS:
            self._is_quiet = True
        else:
            os.sched_yield()
            asyncio.get_running_loop().call_soon(self._watch_arrivals, num_seen, num_turns + 1)
