"""One worker process of the client: runs loads as it is told over a pipe. Knows one server's address."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

from re4.benchmarks.load_generator.call_stats import Tally
from re4.benchmarks.load_generator.load import Load, Timing
from re4.benchmarks.load_generator.scheduler import Caller
from re4.benchmarks.load_generator.transport import Callee, Link

PROGRESS_INTERVAL_S: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is for."""

    address: str
    callee: Callee
    payloads: Sequence[bytes]
    num_channels: int
    worker: int
    num_workers: int
    connect_timeout_s: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """An order: send your share of this load."""

    load: Load
    timing: Timing
    start_at: float
    """`time.monotonic` seconds."""
    seed: int
    version: str
    """The bundle version that is to answer; another one ends the run."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """An order: send nothing more, and report what there is."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Ready:
    """News: connected, or why not."""

    problem: str | None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """News: calls so far in this run, those of the warm-up too."""

    num_answered: int
    num_failed: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """News: the run is over."""

    tally: Tally


def main(job: Job, pipe: Connection) -> None:
    """Work until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides
    sys.setswitchinterval(0.0005)  # the schedule's thread gets its turn soon
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent has gone: so do we
        asyncio.run(_work(job, pipe))


async def _work(job: Job, pipe: Connection) -> None:
    link = job.callee.link(job.address, job.num_channels)
    try:
        pipe.send(Ready(problem=await _connect(link, job)))
        orders: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                orders.put_nowait(pipe.recv())
            except (EOFError, OSError):
                loop.remove_reader(pipe.fileno())
                orders.put_nowait(None)

        loop.add_reader(pipe.fileno(), read)
        while (order := await orders.get()) is not None:
            if isinstance(order, Run):
                await _run(order, job, link, pipe, orders)
    finally:
        await link.close()


async def _connect(link: Link, job: Job) -> str | None:
    try:
        await asyncio.wait_for(link.connect(), job.connect_timeout_s)
    except TimeoutError:
        seconds = f"{job.connect_timeout_s:g} seconds"
        return f"{job.num_channels} connections to {job.address} were not made in {seconds}"
    return None


async def _run(
    order: Run,
    job: Job,
    link: Link,
    pipe: Connection,
    orders: "asyncio.Queue[Any]",
) -> None:
    caller = Caller(
        link,
        job.callee.read,
        job.payloads,
        timing=order.timing,
        start_at=order.start_at,
        version=order.version,
    )
    recorder = caller.recorder
    running = asyncio.create_task(
        caller.run(order.load, worker=job.worker, num_workers=job.num_workers, seed=order.seed)
    )
    told = asyncio.create_task(orders.get())
    while not running.done():
        await asyncio.wait({running, told}, timeout=PROGRESS_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            stop = told.result()
            caller.stop(stop.reason if isinstance(stop, Stop) else "the benchmark itself has ended")
            if stop is None:
                break
            told = asyncio.create_task(orders.get())
        pipe.send(Progress(num_answered=recorder.num_answered, num_failed=recorder.num_failed))
    if told.done():  # an order for later, or the end
        orders.put_nowait(told.result())
    told.cancel()
    pipe.send(Done(tally=await running))
