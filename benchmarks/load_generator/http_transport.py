"""Calls to an HTTP/1.1 server, as cheap as possible, so that no peer waits for the client.

A connection carries one call at a time and stays open. While all of them wait for replies, a further call
opens one more, so that calls queue in the server and not in the client. A reply is a status line, headers
with Content-Length, and a body.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from re4.benchmarks.load_generator.outcome import MISSED_DEADLINE, UNREACHABLE, FailedCallError
from re4.benchmarks.load_generator.transport import Channels, ParsedReply, parse_nothing

_HEAD: Final = re.compile(rb"HTTP/1\.1 (\d+).*?\r\ncontent-length: *(\d+)", re.IGNORECASE | re.DOTALL)
_RETRY_S: Final = 0.05
_Connection: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, kw_only=True)
class HttpTransport:
    """A path that takes POST requests with JSON bodies, over HTTP/1.1 connections that stay open."""

    path: str
    parse: Callable[[bytes], ParsedReply] = parse_nothing

    def open(self, address: str, num_connections: int) -> Channels:
        """Return connections to a server; more are made while all of them wait for replies."""
        return _HttpChannels(address, self.path, num_connections)


class _HttpChannels:
    def __init__(self, address: str, path: str, num_connections: int) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._num_connections = num_connections
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: "
        ).encode()
        self._idle: list[_Connection] = []

    async def connect(self) -> None:
        while len(self._idle) < self._num_connections:
            try:
                self._idle.append(await self._open())
            except OSError:
                await asyncio.sleep(_RETRY_S)

    async def call(self, number: int, payload: bytes, timeout_s: float) -> bytes:
        connection = body = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = self._take() or await self._open()
                status, body = await _post(connection, self._head + b"%d\r\n\r\n" % len(payload) + payload)
        except TimeoutError:
            raise FailedCallError(MISSED_DEADLINE, "no reply before the deadline") from None
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise FailedCallError(UNREACHABLE, str(error) or type(error).__name__) from None
        finally:
            if connection is not None and body is not None:
                self._idle.append(connection)
            elif connection is not None:  # the rest of an abandoned reply would be taken for the next one
                connection[1].transport.abort()
        if status != 200:
            raise FailedCallError(f"HTTP_{status}", body[:200].decode("utf-8", "replace"))
        return body

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.transport.abort()
        self._idle.clear()
        await asyncio.sleep(0)

    async def _open(self) -> _Connection:
        return await asyncio.open_connection(self._host, int(self._port))

    def _take(self) -> _Connection | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not writer.is_closing() and not reader.at_eof():
                return reader, writer
        return None


async def _post(connection: _Connection, request: bytes) -> tuple[int, bytes]:
    """Return status and body of the reply to a request."""
    reader, writer = connection
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if (found := _HEAD.match(head)) is None:
        raise ValueError(f"not a reply with Content-Length: {head[:100]!r}")
    return int(found[1]), await reader.readexactly(int(found[2]))
