"""A server that answers every call at once with the same bytes: it measures the client and its transport."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Final

import grpc

from re4.benchmarks.common.child_process import child_process
from re4.benchmarks.load_generator.transport import RETRIEVE, GrpcTransport, Transport

_MAX_EVENTS: Final = 1024
_START_TIMEOUT_S: Final = 60


@contextmanager
def null_server(reply: bytes, transport: Transport = RETRIEVE) -> Iterator[tuple[str, int]]:
    """Run one in a child process, on the cores of this thread; gives its address and process id."""
    with child_process("the null server", _main, reply, transport) as child:
        yield f"127.0.0.1:{child.receive(_START_TIMEOUT_S)}", child.pid


def _main(reply: bytes, transport: Transport, pipe: Connection) -> None:
    asyncio.run(_serve(reply, transport, pipe))


async def _serve(reply: bytes, transport: Transport, pipe: Connection) -> None:
    closed = asyncio.Event()
    # Readable: the parent closed the pipe, or died.
    asyncio.get_running_loop().add_reader(pipe.fileno(), closed.set)
    if not isinstance(transport, GrpcTransport):
        serving = _http(reply)
    elif find_spec("pygrpc_native") is None:
        serving = _grpc(reply, transport.method)
    else:
        serving = _native(reply, transport.method)
    async with serving as port:
        pipe.send(port)
        await closed.wait()


@asynccontextmanager
async def _grpc(reply: bytes, path: str) -> AsyncIterator[int]:
    async def answer(data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        return reply

    service, _, method = path.strip("/").partition("/")
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        method: grpc.unary_unary_rpc_method_handler(answer)
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@asynccontextmanager
async def _native(reply: bytes, path: str) -> AsyncIterator[int]:
    """Answer by the transport `native`, which `re4 serve` takes on the same addresses."""
    from pygrpc_native import EVENT_CALL, NativeGrpcFront

    front = NativeGrpcFront("127.0.0.1:0", [(path, False)], io_threads=1, call_details=True)
    front.start()

    def answer() -> None:
        while (events := front.recv_batch_details(_MAX_EVENTS)) is not None:
            for kind, call_id, *_ in events:
                if kind == EVENT_CALL:
                    front.respond(call_id, reply)

    answering = asyncio.create_task(asyncio.to_thread(answer))
    try:
        yield front.bound_port
    finally:
        await asyncio.to_thread(front.close)
        await answering


@asynccontextmanager
async def _http(reply: bytes) -> AsyncIterator[int]:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(reply), reply)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A request is answered at its beginning: the client writes it at once, and it fits into a packet.
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if data.startswith(b"POST"):
                    writer.write(whole)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
