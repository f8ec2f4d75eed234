"""A server that answers every call at once with the same bytes: it shows what the client itself can do."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

import grpc

from benchmarks.child_process import child_process
from benchmarks.latency.caller import METHOD
from re4.errors import Re4Error

_START_TIMEOUT_S: Final = 60


class NullServer(NamedTuple):
    """A null server that runs."""

    address: str
    pid: int


@contextmanager
def null_server(reply: bytes) -> Iterator[NullServer]:
    """Run one in a process of its own, on the cores of this thread, while the block runs.

    Args:
        reply: What it answers, whatever is asked.

    Raises:
        Re4Error: it did not start.
    """
    with child_process(_main, reply) as (pipe, process):
        if not pipe.poll(_START_TIMEOUT_S):
            raise Re4Error(f"the null server did not start within {_START_TIMEOUT_S} seconds")
        try:
            port = pipe.recv()
        except EOFError:
            raise Re4Error("the null server died at its start; its message is above") from None
        assert process.pid is not None
        yield NullServer(f"127.0.0.1:{port}", process.pid)


def _main(reply: bytes, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve(reply, pipe))


async def _serve(reply: bytes, pipe: Connection) -> None:
    async def answer(data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        return reply

    service, _, method = METHOD.strip("/").partition("/")
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
    pipe.send(port)
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(
        pipe.fileno(), closed.set
    )  # readable: the parent closed it, or died
    await closed.wait()
    await server.stop(0)
