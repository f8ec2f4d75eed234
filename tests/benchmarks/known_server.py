"""A server whose delays are known, so that the right percentiles are known too."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Self

import grpc

from re4.protos.v1 import retrieval_pb2 as pb

VERSION = "20260101T000000Z-00000001"
DEADLINE_S = 60
REQUEST = pb.RetrieveRequest(history=pb.ItemIds(ints=[1, 2]), num_candidates=5).SerializeToString()


def reply(version: str = VERSION) -> bytes:
    return pb.RetrieveReply(
        items=pb.ItemIds(ints=range(5)),
        scores=[1.0] * 5,
        version=version,
        stage_times=pb.StageTimes(
            queue_us=10, gather_us=20, encode_us=30, search_us=40, merge_us=50, batch_size=3
        ),
    ).SerializeToString()


def info(**changes: object) -> pb.InfoReply:
    facts = {
        "version": VERSION,
        "model": "known",
        "num_interests": 2,
        "embedding_dim": 4,
        "index": "none",
        "num_items": 100,
        "item_id_kind": "int",
        "max_history_length": 10,
        "server_version": "1",
        "num_processes": 1,
    }
    return pb.InfoReply(**(facts | changes))


class KnownServer:
    """Answers the number-th call (from 0) after `delay(number)` has been awaited. Runs in a thread."""

    def __init__(
        self,
        delay: Callable[[int], Awaitable[None]] | None = None,
        *,
        answer: Callable[[int], bytes] = lambda number: reply(),
        status: Callable[[int], grpc.StatusCode | None] = lambda number: None,
        info: Callable[[int], pb.InfoReply] = lambda number: info(),
    ) -> None:
        self._delay, self._answer, self._status, self._info = delay, answer, status, info
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._called = threading.Condition()
        self.num_calls = 0
        self.num_info_calls = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_for_calls(self, number: int) -> None:
        """Wait until so many calls have come."""
        with self._called:
            assert self._called.wait_for(lambda: self.num_calls >= number, DEADLINE_S)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(DEADLINE_S)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server()
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(method)
            for name, method in {"Retrieve": self._retrieve, "Info": self._tell_info}.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("re4.v1.Retrieval", handlers),))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._ready.set()
        await self._over.wait()
        await server.stop(0)

    async def _retrieve(self, data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        with self._called:
            number, self.num_calls = self.num_calls, self.num_calls + 1
            self._called.notify_all()
        if self._delay is not None:
            await self._delay(number)
        if (status := self._status(number)) is not None:
            await context.abort(status, "on purpose")
        return self._answer(number)

    async def _tell_info(self, data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        number, self.num_info_calls = self.num_info_calls, self.num_info_calls + 1
        return self._info(number).SerializeToString()


class Pause:
    """From `after_s` seconds after the first call, all that arrives waits until a second is over."""

    def __init__(self, *, after_s: float, seconds: float = 1.0) -> None:
        self._after_s, self._seconds = after_s, seconds
        self._first: float | None = None

    async def __call__(self, number: int) -> None:
        now = asyncio.get_running_loop().time()
        if self._first is None:
            self._first = now
        start = self._first + self._after_s
        if start <= now < start + self._seconds:
            await asyncio.sleep(start + self._seconds - now)
