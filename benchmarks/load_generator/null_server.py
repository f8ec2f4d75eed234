"""A server that answers every call at once with the same bytes: it measures the client and its transport."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from typing import Final

from re4.benchmarks.common.child_process import child_process
from re4.benchmarks.load_generator.transport import RETRIEVE, GrpcTransport, Transport
from re4.serving.auth.certificates import CertificateFiles, CertificateReloader
from re4.serving.host.addresses import Address
from re4.serving.settings import Limits, ServerSettings, TransportName
from re4.serving.transports.choice import choose_transport, open_transport
from re4.serving.transports.transport import Method, ServerCall, WholeCall

_START_TIMEOUT_S: Final = 60


@contextmanager
def null_server(
    reply: bytes,
    transport: Transport = RETRIEVE,
    *,
    name: TransportName = TransportName.AUTO,
    certificates: CertificateFiles | None = None,
) -> Iterator[tuple[str, int]]:
    """Run one in a child process, on the cores of this thread; gives its address and process id.

    Args:
        reply: Its answer to every call.
        transport: How calls reach it.
        name: The transport of a gRPC server.
        certificates: For TLS of a gRPC server; None for none.
    """
    with child_process("the null server", _main, reply, transport, name, certificates) as child:
        yield f"127.0.0.1:{child.receive(_START_TIMEOUT_S)}", child.pid


def _main(
    reply: bytes,
    transport: Transport,
    name: TransportName,
    certificates: CertificateFiles | None,
    pipe: Connection,
) -> None:
    asyncio.run(_serve(reply, transport, name, certificates, pipe))


async def _serve(
    reply: bytes,
    transport: Transport,
    name: TransportName,
    certificates: CertificateFiles | None,
    pipe: Connection,
) -> None:
    closed = asyncio.Event()
    # Readable: the parent closed the pipe, or died.
    asyncio.get_running_loop().add_reader(pipe.fileno(), closed.set)
    if isinstance(transport, GrpcTransport):
        serving = _grpc(reply, transport.method, name, certificates)
    else:
        serving = _http(reply)
    async with serving as port:
        pipe.send(port)
        await closed.wait()


@asynccontextmanager
async def _grpc(
    reply: bytes, path: str, name: TransportName, certificates: CertificateFiles | None
) -> AsyncIterator[int]:
    """Answer by a transport of `re4 serve`, without any work behind it."""

    async def answer(_: ServerCall) -> bytes:
        return reply

    def answer_many(calls: Sequence[WholeCall]) -> None:
        for call in calls:
            call.respond(reply)

    method = Method(path=path, answer=answer, answer_many=answer_many)
    chosen, _reason = choose_transport(ServerSettings(transport=name))
    reloader = None if certificates is None else CertificateReloader(certificates)
    server = open_transport(chosen, [method], Limits(), reloader)
    port = await server.start(Address(host="127.0.0.1", port=0))
    try:
        yield port
    finally:
        await server.stop(0.0, asyncio.sleep(0))


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
