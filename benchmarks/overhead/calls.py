"""Calling a server in a closed loop from a process of its own, as cheaply as a Python client can.

Replies are not parsed: the client must not be what limits the server. Times are wall-clock, from the call to
its reply.
"""

import asyncio
import itertools
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

import grpc

from re4.benchmarks.common.child_process import child_process
from re4.common.errors import Re4Error, ServerError
from re4.serving.client.connection import CHANNEL_OPTIONS

_START_TIMEOUT_S: Final = 60
_GRACE_S: Final = 30
_TIMEOUT_S: Final = 10.0
"""Of a call. One that fails ends the measurement: these loads are ones that a server must bear."""
_NUM_CHANNELS: Final = 2


@dataclass(frozen=True, kw_only=True)
class CallLoop:
    """A closed loop: callers who wait for their replies."""

    method: str
    """Path of the method."""
    payloads: Sequence[bytes]
    """Requests, sent in turn."""
    num_callers: int
    seconds: float
    """How long calls are sent."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """What a loop came to."""

    num_calls: int
    seconds: float
    """From the first call to the last reply."""
    p50_us: float
    """Median time of a call."""

    @property
    def per_s(self) -> float:
        """Calls answered in a second."""
        return self.num_calls / self.seconds


class CallingProcess:
    """A process connected to one address."""

    def __init__(self, pipe: Connection, address: str) -> None:
        self._pipe = pipe
        self._address = address

    def run(self, loop: CallLoop) -> Calls:
        """Run a loop.

        Raises:
            ServerError: a call failed.
        """
        self._pipe.send(loop)
        if not self._pipe.poll(loop.seconds + _TIMEOUT_S + _GRACE_S):
            raise Re4Error(f"the process that calls {self._address} does not report")
        try:
            found = self._pipe.recv()
        except EOFError:
            raise Re4Error(f"the process that calls {self._address} died; its message is above") from None
        if isinstance(found, str):
            raise ServerError(f"{self._address}: a call failed: {found}")
        calls: Calls = found
        return calls


@contextmanager
def calling_process(address: str) -> Iterator[CallingProcess]:
    """Start a process that calls an address while the block runs. It runs on the cores of this thread."""
    with child_process(_main, address) as (pipe, _):
        if not pipe.poll(_START_TIMEOUT_S) or pipe.recv() != address:
            raise Re4Error(f"the process that is to call {address} did not start")
        yield CallingProcess(pipe, address)


def _main(address: str, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides
    asyncio.run(_obey(address, pipe))


async def _obey(address: str, pipe: Connection) -> None:
    channels = [
        grpc.aio.insecure_channel(address, options=list(CHANNEL_OPTIONS)) for _ in range(_NUM_CHANNELS)
    ]
    try:
        pipe.send(address)
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


async def _run(loop: CallLoop, channels: Sequence[grpc.aio.Channel]) -> Calls:
    methods: list[Any] = [channel.unary_unary(loop.method) for channel in channels]
    numbers = itertools.count()
    began = time.perf_counter()
    until = began + loop.seconds
    times_s: list[float] = []

    async def call_in_turn(method: Any) -> None:
        while (sent := time.perf_counter()) < until:
            await method(loop.payloads[next(numbers) % len(loop.payloads)], timeout=_TIMEOUT_S)
            times_s.append(time.perf_counter() - sent)

    await asyncio.gather(*(call_in_turn(methods[i % len(methods)]) for i in range(loop.num_callers)))
    ended = time.perf_counter()
    return Calls(
        num_calls=len(times_s), seconds=ended - began, p50_us=1e6 * sorted(times_s)[len(times_s) // 2]
    )
