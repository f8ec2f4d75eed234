"""One worker process of the load client: it sends its share of a load, on command over a pipe.

Calls go out on schedule, or one after the other, over several connections. A thread of its own keeps the
schedule: an event loop's timers are a millisecond late, which would count as the server's latency. Every time
is `time.monotonic`, one clock for all processes of a machine.
"""

import asyncio
import contextlib
import itertools
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.benchmarks.load_generator.call_stats import CallStats, Recorder
from re4.benchmarks.load_generator.load import ClientSettings, ClosedLoad, Load, Timing, arrival_times
from re4.benchmarks.load_generator.outcome import MISSED_DEADLINE, UNREACHABLE, FailedCallError
from re4.benchmarks.load_generator.transport import BatchChannels, Channels, Transport

PROGRESS_INTERVAL_S: Final = 0.25
_POLL_S: Final = 0.005
_PAUSE_S: Final = 0.001
"""After a failed call, before its client calls again."""
GONE_AFTER_S: Final = 2.0
"""A run ends when the server has been unreachable, without any answer, for so long."""


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a worker connects to and sends."""

    address: str
    transport: Transport
    payloads: Sequence[bytes]
    settings: ClientSettings
    worker: int
    """Its number, from 0."""
    connect_timeout_s: float


@dataclass(frozen=True, kw_only=True)
class RunCommand:
    """Send your share of this load. A text as the next command ends the run, as the reason."""

    load: Load
    timing: Timing
    start_at: float
    """`time.monotonic` seconds."""
    seed: int
    version: str
    """The bundle version that must answer; another one ends the run."""


class Scheduler:
    """Sends one worker's share of the calls of one run."""

    def __init__(self, channels: Channels, config: WorkerConfig, command: RunCommand) -> None:
        self._channels, self._config, self._command = channels, config, command
        self._batches = channels if isinstance(channels, BatchChannels) else None
        self._parse = config.transport.parse
        self._start_at, self._timing = command.start_at, command.timing
        self._stop = threading.Event()
        self._stopped: str | None = None
        self._stopped_at = 0.0
        self._last_answer = self._start_at
        self._in_flight: set[asyncio.Task[None]] = set()
        self._num_in_flight = 0
        self.recorder = Recorder(count_from=self._start_at + self._timing.warmup_s)

    def stop(self, reason: str) -> None:
        """Send nothing more. Calls in flight get until their deadline."""
        if self._stopped is None:
            self._stopped, self._stopped_at = reason, time.monotonic()
            self._stop.set()

    async def run(self) -> CallStats:
        """Send this worker's share, and wait for every answer."""
        load, worker, num_workers = self._command.load, self._config.worker, self._config.settings.num_workers
        first_payload = len(self._config.payloads) * worker // num_workers
        if isinstance(load, ClosedLoad):
            share = load.concurrency // num_workers + (worker < load.concurrency % num_workers)
            in_turn = (
                self._await_in_turn if self._batches is None else partial(self._call_in_turn, self._batches)
            )
            await asyncio.gather(*(in_turn(first_payload + client, step=share) for client in range(share)))
        else:
            seconds, seed = self._timing.sending_s, self._command.seed
            times = arrival_times(load, seconds, worker=worker, num_workers=num_workers, seed=seed)
            await self._call_on_schedule(times + self._start_at, first_payload)
        ended_at = self._stopped_at if self._stopped else self._start_at + self._timing.sending_s
        counted_s = max(0.0, ended_at - self._start_at - self._timing.warmup_s)
        return self.recorder.stats(counted_s=counted_s, stopped=self._stopped)

    async def _call_on_schedule(self, times: NDArray[np.float64], first_payload: int) -> None:
        loop = asyncio.get_running_loop()
        begin = self._begin_tasks if self._batches is None else partial(self._begin_many, self._batches)

        def keep_schedule() -> None:
            intended, place = times.tolist(), 0
            while place < len(intended):
                wait_s = intended[place] - time.monotonic()
                if self._stop.wait(wait_s) if wait_s > 0 else self._stop.is_set():
                    return
                # This thread may be late: all calls that are due by now begin together.
                end = max(place + 1, bisect_right(intended, time.monotonic(), place))
                loop.call_soon_threadsafe(begin, first_payload + place, intended[place:end])
                place = end

        await asyncio.to_thread(keep_schedule)
        while self._in_flight:
            await asyncio.wait(self._in_flight)
        while self._num_in_flight:
            await asyncio.sleep(_POLL_S)

    def _begin_tasks(self, number: int, intended: Sequence[float]) -> None:
        for place, due in enumerate(intended):
            task = asyncio.get_running_loop().create_task(self._call(number + place, due))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)

    def _begin_many(self, channels: BatchChannels, number: int, intended: Sequence[float]) -> None:
        for place, due in enumerate(intended):
            self._begin(channels, number + place, due, None)
        channels.flush()

    async def _await_in_turn(self, number: int, *, step: int) -> None:
        await asyncio.sleep(max(0.0, self._start_at - time.monotonic()))
        for turn in itertools.count(number, step):
            now = time.monotonic()
            if self._is_over(now):
                return
            await self._call(turn, now)

    async def _call_in_turn(self, channels: BatchChannels, number: int, *, step: int) -> None:
        await asyncio.sleep(max(0.0, self._start_at - time.monotonic()))
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        numbers = itertools.count(number, step)

        def call_next() -> None:
            now = time.monotonic()
            if not self._is_over(now):
                self._begin(channels, next(numbers), now, call_next)
            elif not ended.done():
                ended.set_result(None)

        call_next()
        channels.flush()
        await ended

    def _is_over(self, now: float) -> bool:
        return self._stop.is_set() or now >= self._start_at + self._timing.sending_s

    def _begin(
        self, channels: BatchChannels, number: int, intended: float, then: Callable[[], None] | None
    ) -> None:
        """Begin a call; run `then` after its end."""
        payloads = self._config.payloads
        sent = time.monotonic()
        left_s = intended + self._timing.deadline_s - sent
        self._num_in_flight += 1

        def done(outcome: bytes | FailedCallError) -> None:
            self._num_in_flight -= 1
            self._record(intended, sent, outcome)
            if then is None:
                return
            if isinstance(outcome, FailedCallError):  # perhaps at once, inside of `begin`
                asyncio.get_running_loop().call_later(_PAUSE_S, then)
            else:
                then()

        if left_s <= 0:
            done(FailedCallError(MISSED_DEADLINE, "not sent before its deadline"))
        else:
            channels.begin(number, payloads[number % len(payloads)], left_s, done)

    async def _call(self, number: int, intended: float) -> None:
        payloads = self._config.payloads
        payload = payloads[number % len(payloads)]
        sent = time.monotonic()
        left_s = intended + self._timing.deadline_s - sent
        if left_s <= 0:  # the client itself is late: the call is due, and has failed
            self.recorder.failed(intended, sent, sent, MISSED_DEADLINE, "not sent before its deadline")
            return
        try:
            outcome: bytes | FailedCallError = await self._channels.call(number, payload, left_s)
        except FailedCallError as error:
            outcome = error
        self._record(intended, sent, outcome)

    def _record(self, intended: float, sent: float, outcome: bytes | FailedCallError) -> None:
        now = time.monotonic()
        if not isinstance(outcome, FailedCallError):
            try:
                reply = self._parse(outcome)
            except FailedCallError as error:
                outcome = error
        if isinstance(outcome, FailedCallError):
            self.recorder.failed(intended, sent, now, outcome.code, outcome.details)
            if outcome.code == UNREACHABLE and now - self._last_answer > GONE_AFTER_S:
                self.stop(f"the server cannot be reached any more: {outcome.details}")
            return
        self._last_answer = now
        self.recorder.answered(intended, sent, now, reply)
        if reply.version != (wanted := self._command.version):
            self.stop(f"the server's version changed in the middle, from {wanted} to {reply.version}")


def main(config: WorkerConfig, pipe: Connection) -> None:
    """Run commands until the pipe is closed.

    Sends why there is no connection, or None; during a run the calls so far, answered and failed; at its end
    `CallStats`.
    """
    sys.setswitchinterval(0.0005)  # the schedule's thread gets its turn soon
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent has ended
        asyncio.run(_work(config, pipe))


async def _work(config: WorkerConfig, pipe: Connection) -> None:
    num_channels = config.settings.num_channels
    channels = config.transport.open(config.address, num_channels)
    try:
        problem = None
        try:
            await asyncio.wait_for(channels.connect(), config.connect_timeout_s)
        except TimeoutError:
            seconds = f"{config.connect_timeout_s:g} seconds"
            problem = f"{num_channels} connections to {config.address} were not made in {seconds}"
        pipe.send(problem)
        commands: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                commands.put_nowait(pipe.recv())
            except (EOFError, OSError):
                loop.remove_reader(pipe.fileno())
                commands.put_nowait(None)

        loop.add_reader(pipe.fileno(), read)
        while (command := await commands.get()) is not None:
            if isinstance(command, RunCommand):
                pipe.send(await _run(Scheduler(channels, config, command), pipe, commands))
    finally:
        await channels.close()


async def _run(scheduler: Scheduler, pipe: Connection, commands: "asyncio.Queue[Any]") -> CallStats:
    recorder = scheduler.recorder
    running = asyncio.create_task(scheduler.run())
    received = asyncio.create_task(commands.get())
    while not running.done():
        await asyncio.wait(
            {running, received}, timeout=PROGRESS_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED
        )
        if received.done():
            stop = received.result()
            scheduler.stop(stop or "the benchmark itself has ended")
            if stop is None:
                break
            received = asyncio.create_task(commands.get())
        pipe.send((recorder.num_answered, recorder.num_failed))
    if received.done():  # a later command, or the end
        commands.put_nowait(received.result())
    received.cancel()
    return await running
