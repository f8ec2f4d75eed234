"""One worker process of the load client: runs loads on command over a pipe."""

import asyncio
import contextlib
import sys
from multiprocessing.connection import Connection
from typing import Any, Final

from re4.benchmarks.load_generator.call_stats import CallStats
from re4.benchmarks.load_generator.scheduler import RunCommand, Scheduler, WorkerConfig

PROGRESS_INTERVAL_S: Final = 0.25


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
