"""One worker process of the load client: runs loads on command over a pipe."""

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

from re4.benchmarks.load_generator.call_stats import CallStats
from re4.benchmarks.load_generator.load import Load, Timing
from re4.benchmarks.load_generator.scheduler import Scheduler
from re4.benchmarks.load_generator.transport import Channels, Transport

PROGRESS_INTERVAL_S: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a worker connects to and sends."""

    address: str
    transport: Transport
    payloads: Sequence[bytes]
    num_channels: int
    worker: int
    num_workers: int
    connect_timeout_s: float


@dataclass(frozen=True, kw_only=True)
class RunCommand:
    """Command: send your share of this load."""

    load: Load
    timing: Timing
    start_at: float
    """`time.monotonic` seconds."""
    seed: int
    version: str
    """The bundle version that must answer; another one ends the run."""


@dataclass(frozen=True, kw_only=True)
class StopCommand:
    """Command: send nothing more, and report."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Report: connected, or the problem."""

    problem: str | None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Report: calls so far in this run, with those of the warm-up."""

    num_answered: int = 0
    num_failed: int = 0


def main(config: WorkerConfig, pipe: Connection) -> None:
    """Run commands until the pipe is closed. Sends `Progress` during a run and `CallStats` at its end."""
    sys.setswitchinterval(0.0005)  # the schedule's thread gets its turn soon
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent has ended
        asyncio.run(_work(config, pipe))


async def _work(config: WorkerConfig, pipe: Connection) -> None:
    channels = config.transport.open(config.address, config.num_channels)
    try:
        pipe.send(Ready(problem=await _connect(channels, config)))
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
                pipe.send(await _run(command, config, channels, pipe, commands))
    finally:
        await channels.close()


async def _connect(channels: Channels, config: WorkerConfig) -> str | None:
    try:
        await asyncio.wait_for(channels.connect(), config.connect_timeout_s)
    except TimeoutError:
        seconds = f"{config.connect_timeout_s:g} seconds"
        return f"{config.num_channels} connections to {config.address} were not made in {seconds}"
    return None


async def _run(
    command: RunCommand,
    config: WorkerConfig,
    channels: Channels,
    pipe: Connection,
    commands: "asyncio.Queue[Any]",
) -> CallStats:
    scheduler = Scheduler(
        channels,
        config.transport,
        config.payloads,
        timing=command.timing,
        start_at=command.start_at,
        version=command.version,
    )
    recorder = scheduler.recorder
    running = asyncio.create_task(
        scheduler.run(command.load, worker=config.worker, num_workers=config.num_workers, seed=command.seed)
    )
    received = asyncio.create_task(commands.get())
    while not running.done():
        await asyncio.wait(
            {running, received}, timeout=PROGRESS_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED
        )
        if received.done():
            stop = received.result()
            scheduler.stop(stop.reason if isinstance(stop, StopCommand) else "the benchmark itself has ended")
            if stop is None:
                break
            received = asyncio.create_task(commands.get())
        pipe.send(Progress(num_answered=recorder.num_answered, num_failed=recorder.num_failed))
    if received.done():  # a later command, or the end
        commands.put_nowait(received.result())
    received.cancel()
    return await running
