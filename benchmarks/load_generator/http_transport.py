"""Calls to an HTTP/1.1 server, as cheap as possible, so that no peer waits for the client.

A connection carries one call at a time and stays open. While all of them wait for replies, a further call
opens one more, so that calls queue in the server and not in the client. A reply is a status line, headers
with Content-Length, and a body.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from re4.benchmarks.load_generator.transport import (
    MISSED_DEADLINE,
    UNREACHABLE,
    Channels,
    FailedCallError,
    ParsedReply,
    parse_nothing,
)

_END_OF_HEAD: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"
_RETRY_S: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class HttpTransport:
    """A path that takes POST requests with JSON bodies, over HTTP/1.1 connections that stay open."""

    path: str
    parse: Callable[[bytes], ParsedReply] = parse_nothing

    def open(self, address: str, num_connections: int) -> Channels:
        """Return connections to a server; more are made while all of them wait for replies."""
        return _HttpChannels(address, self.path, num_connections)


class _HttpChannels:
    """Connections that post to one path."""

    def __init__(self, address: str, path: str, num_connections: int) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._num_connections = num_connections
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: "
        ).encode()
        self._idle: list[_Connection] = []

    async def connect(self) -> None:
        """Make the first connections; wait for a server that does not listen yet."""
        while len(self._idle) < self._num_connections:
            try:
                self._idle.append(await self._open())
            except OSError:
                await asyncio.sleep(_RETRY_S)

    async def call(self, number: int, payload: bytes, timeout_s: float) -> bytes:
        """Send a request over a free connection, and return the reply's body."""
        connection = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = self._take() or await self._open()
                status, body = await connection.post(self._head + b"%d\r\n\r\n" % len(payload) + payload)
        except TimeoutError:
            raise FailedCallError(MISSED_DEADLINE, "no reply before the deadline") from None
        except OSError as error:
            raise FailedCallError(UNREACHABLE, str(error) or type(error).__name__) from None
        finally:
            if connection is not None:
                self._release(connection)
        if status != 200:
            raise FailedCallError(f"HTTP_{status}", body[:200].decode("utf-8", "replace"))
        return body

    async def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)

    async def _open(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        return connection

    def _take(self) -> "_Connection | None":
        while self._idle:
            if (connection := self._idle.pop()).is_open:
                return connection
        return None

    def _release(self, connection: "_Connection") -> None:
        if connection.is_free:
            self._idle.append(connection)
        else:  # the rest of an abandoned reply would be taken for the next one
            connection.close()


class _Connection(asyncio.Protocol):
    """One connection, for one call at a time."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_free(self) -> bool:
        return self.is_open and (self._reply is None or (self._reply.done() and not self._reply.cancelled()))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def post(self, request: bytes) -> tuple[int, bytes]:
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the server closed the connection")
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(_END_OF_HEAD)
        if end < 0 or self._reply is None or self._reply.done():
            return
        head = bytes(self._received[:end]).lower()
        with contextlib.suppress(ValueError):
            status = int(head[9:12])
            begin = head.index(_LENGTH) + len(_LENGTH)
            length = int(head[begin:].partition(b"\r\n")[0])
            body_at = end + len(_END_OF_HEAD)
            if len(self._received) >= body_at + length:
                body = bytes(self._received[body_at : body_at + length])
                del self._received[: body_at + length]
                self._reply.set_result((status, body))
            return
        self.close()  # not HTTP as expected

    def connection_lost(self, error: Exception | None) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionResetError("the server closed the connection"))
