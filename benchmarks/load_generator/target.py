"""The server under test: what it says about itself, a first look at its answers, and starting one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc

from re4.benchmarks.load_generator.transport import METHOD
from re4.common.errors import ServerError
from re4.common.server_process import ServerProcess
from re4.serving.client.client import Connection, RetrievalClient
from re4.serving.client.connection import PLAIN

_TIMEOUT_S: Final = 5.0
_NUM_SAMPLES: Final = 20


def server_info(address: str, connection: Connection = PLAIN) -> dict[str, Any]:
    """The server's `Info`.

    Raises:
        ServerError: no server of this contract answers there.
    """
    with RetrievalClient(address, timeout_s=_TIMEOUT_S, connection=connection) as client:
        return client.info()


def sample_reply(address: str, payloads: Sequence[bytes], connection: Connection = PLAIN) -> bytes:
    """The reply of median size to some of the requests, so that a null server can give one like it.

    Raises:
        ServerError: the server does not answer these requests.
    """
    replies = []
    with connection.channel(address) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        for payload in payloads[:_NUM_SAMPLES]:
            try:
                replies.append(method(payload, timeout=_TIMEOUT_S, metadata=connection.metadata))
            except grpc.RpcError as error:
                raise ServerError(
                    f"{address} does not answer the requests of this benchmark: "
                    f"{error.code().name}: {error.details()}"
                ) from None
    return bytes(sorted(replies, key=len)[len(replies) // 2])


@contextmanager
def running_server(bundles: Path, *options: str, num_processes: int) -> Iterator[tuple[str, int]]:
    """Run `re4 serve` on a free port while the block runs; gives its address and process id.

    Args:
        bundles: What to serve.
        options: Further words for the command.
        num_processes: Its worker processes.

    Raises:
        ServerError: it ended before it listened; its own log is shown.
    """
    words = (*options, "--num-processes", str(num_processes))
    with ServerProcess(bundles, *words) as server:
        yield server.address, server.pid
