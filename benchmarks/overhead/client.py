"""A closed-loop client in a process of its own, as cheap as a Python client can be.

Replies are not parsed, so that the client does not limit the server. Times are wall-clock, from the call to
its reply.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

import grpc

from re4.benchmarks.common.child_process import Child, child_process
from re4.common.errors import ServerError
from re4.serving.client.connection import CHANNEL_OPTIONS

_START_TIMEOUT_S: Final = 60
_GRACE_S: Final = 30
_TIMEOUT_S: Final = 10.0
"""Of a call. A failed call ends the measurement: a server must bear these loads."""
_NUM_CHANNELS: Final = 2


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """Calls that each wait for a reply before the next one."""

    method: str
    """Path of the method."""
    payloads: Sequence[bytes]
    """Requests, sent in turn."""
    concurrency: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LoopTimes:
    """Figures of one closed loop."""

    per_s: float
    """Calls answered in a second, from the first call to the last reply."""
    p50_us: float
    """Median time of a call."""


class ClosedLoopClient:
    """The client's process, connected to one address."""

    def __init__(self, child: Child, address: str) -> None:
        self._child = child
        self._address = address

    def run(self, loop: ClosedLoop) -> LoopTimes:
        """Run a loop.

        Raises:
            ServerError: a call failed.
        """
        self._child.pipe.send(loop)
        found: LoopTimes | str = self._child.receive(loop.seconds + _TIMEOUT_S + _GRACE_S)
        if isinstance(found, str):
            raise ServerError(f"{self._address}: a call failed: {found}")
        return found


@contextmanager
def closed_loop_client(address: str) -> Iterator[ClosedLoopClient]:
    """Run a client of an address, on the cores of this thread, while the block runs."""
    with child_process(f"the client of {address}", _main, address) as child:
        child.receive(_START_TIMEOUT_S)
        yield ClosedLoopClient(child, address)


def _main(address: str, pipe: Connection) -> None:
    asyncio.run(_run_loops(address, pipe))


async def _run_loops(address: str, pipe: Connection) -> None:
    channels = [
        grpc.aio.insecure_channel(address, options=list(CHANNEL_OPTIONS)) for _ in range(_NUM_CHANNELS)
    ]
    try:
        pipe.send("ready")
        while True:
            try:
                loop = await asyncio.to_thread(pipe.recv)
            except (EOFError, OSError):
                return
            try:
                pipe.send(await _run(loop, channels))
            except grpc.aio.AioRpcError as error:
                pipe.send(f"{error.code().name}: {error.details()}")
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _run(loop: ClosedLoop, channels: Sequence[grpc.aio.Channel]) -> LoopTimes:
    methods: list[Any] = [channel.unary_unary(loop.method) for channel in channels]
    numbers = itertools.count()
    began = time.perf_counter()
    until = began + loop.seconds
    times_s: list[float] = []

    async def call_in_turn(method: Any) -> None:
        while (sent := time.perf_counter()) < until:
            await method(loop.payloads[next(numbers) % len(loop.payloads)], timeout=_TIMEOUT_S)
            times_s.append(time.perf_counter() - sent)

    await asyncio.gather(*(call_in_turn(methods[i % len(methods)]) for i in range(loop.concurrency)))
    took_s = time.perf_counter() - began
    return LoopTimes(per_s=len(times_s) / took_s, p50_us=1e6 * statistics.median_high(times_s))
