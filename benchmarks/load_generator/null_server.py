"""A server that answers every call at once with the same bytes: it shows what the client itself can do."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

import grpc

from re4.benchmarks.common.child_process import child_process
from re4.benchmarks.load_generator.transport import OURS, Callee, GrpcCallee
from re4.common.errors import Re4Error

_START_TIMEOUT_S: Final = 60


class NullServer(NamedTuple):
    """A null server that runs."""

    address: str
    pid: int


@contextmanager
def null_server(reply: bytes, callee: Callee = OURS) -> Iterator[NullServer]:
    """Run one in a process of its own, on the cores of this thread, while the block runs.

    Args:
        reply: What it answers, whatever is asked.
        callee: How it is called.

    Raises:
        Re4Error: it did not start.
    """
    with child_process(_main, reply, callee) as (pipe, process):
        if not pipe.poll(_START_TIMEOUT_S):
            raise Re4Error(f"the null server did not start within {_START_TIMEOUT_S} seconds")
        try:
            port = pipe.recv()
        except EOFError:
            raise Re4Error("the null server died at its start; its message is above") from None
        assert process.pid is not None
        yield NullServer(f"127.0.0.1:{port}", process.pid)


def _main(reply: bytes, callee: Callee, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve(reply, callee, pipe))


async def _serve(reply: bytes, callee: Callee, pipe: Connection) -> None:
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(
        pipe.fileno(), closed.set
    )  # readable: the parent closed it, or died
    serving = _grpc(reply, callee.method) if isinstance(callee, GrpcCallee) else _http(reply)
    async with serving as port:
        pipe.send(port)
        await closed.wait()


@asynccontextmanager
async def _grpc(reply: bytes, path: str) -> AsyncIterator[int]:
    async def answer(data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        return reply

    service, _, method = path.strip("/").partition("/")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                service, {method: grpc.unary_unary_rpc_method_handler(answer)}
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@asynccontextmanager
async def _http(reply: bytes) -> AsyncIterator[int]:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(reply), reply)
    server = await asyncio.get_running_loop().create_server(lambda: _Answering(whole), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class _Answering(asyncio.Protocol):
    """Answers each request by its beginning: the client writes it at once, and it fits into a packet."""

    def __init__(self, whole: bytes) -> None:
        self._whole = whole

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST"):
            self._transport.write(self._whole)
