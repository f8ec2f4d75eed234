"""The server under test: what it says about itself, a first look at its answers, and starting one."""

import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import grpc

from re4.benchmarks.load_generator.transport import METHOD
from re4.common.errors import ServerError
from re4.serving.client.client import Connection, RetrievalClient
from re4.serving.client.connection import PLAIN

_TIMEOUT_S: Final = 5.0
_START_TIMEOUT_S: Final = 600.0
"""Loading and checking a large bundle takes minutes."""
_LISTENING: Final = re.compile(r"listening on (\S+:\d+)")
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
    words = ["serve", "--bundles", str(bundles), "--address", "127.0.0.1:0", *options]
    server = subprocess.Popen(
        [sys.executable, "-m", "re4.cli", *words, "--num-processes", str(num_processes)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C ends the benchmark, and that ends the server
    )
    assert server.stderr is not None
    addresses: queue.Queue[str | None] = queue.Queue()
    log: list[str] = []
    reader = threading.Thread(target=_follow, args=(server.stderr, log, addresses), daemon=True)
    reader.start()
    try:
        try:
            address = addresses.get(timeout=_START_TIMEOUT_S)
        except queue.Empty:
            raise ServerError(f"re4 serve did not listen within {_START_TIMEOUT_S:g} seconds") from None
        if address is None:
            raise ServerError(f"re4 serve ended before it listened; its log:\n{''.join(log[-20:])}")
        yield address, server.pid
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        reader.join(5)
        server.stderr.close()


def _follow(lines: IO[str], log: list[str], addresses: "queue.Queue[str | None]") -> None:
    """Keep reading, so that the server never waits for its log to be read."""
    for line in lines:
        log.append(line)
        del log[:-1000]
        if found := _LISTENING.search(line):
            addresses.put(found.group(1))
    addresses.put(None)
