"""Parsers of the native transport: header fields and messages of gRPC, and a connection of HTTP/2."""

import asyncio
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuzz_inputs import Parse

from re4.common.errors import RequestError
from re4.serving.protocol.status_codes import StatusCode
from re4.serving.settings import Limits
from re4.serving.transports.grpc_framing import (
    NotGrpcError,
    message_end,
    metadata_of,
    parse_head,
    trailers_of,
    unpack,
)
from re4.serving.transports.native_connection import NativeConnection
from re4.serving.transports.native_transport import NativeTransport
from re4.serving.transports.transport import Method, StatusError


def grpc_framing(_: Path) -> Parse:
    """Header fields of a call, and its message: a byte chooses what the rest is."""
    heads = ((b":method", b"POST"), (b":path", b"/a/b"), (b"te", b"trailers"))
    names = (b"grpc-timeout", b"grpc-encoding", b"x-bin", b"x")

    def parse(data: bytes) -> None:
        kind, rest = data[0] if data else 0, data[1:]
        with suppress(NotGrpcError, StatusError):
            if kind < len(names):
                fields = (*heads, (names[kind], rest))
                head = parse_head(fields)
                assert head.timeout_s is None or head.timeout_s >= 0
                for key, value in metadata_of(fields):
                    assert isinstance(value, bytes if key.endswith("-bin") else str)
            elif kind < 2 * len(names):
                encoding = (None, b"gzip", b"deflate", None)[kind - len(names)]
                end = message_end(rest, 1000)
                if end is not None and end <= len(rest):
                    assert len(unpack(rest[:end], encoding, 1000)) <= 1000
            else:
                error = StatusError(StatusCode.INTERNAL, rest.decode("utf-8", "surrogateescape"))
                (status, message) = trailers_of(error)
                assert status == (b"grpc-status", b"13")
                assert all(0x20 <= each < 0x7F for each in message[1])

    return parse


class _Peer(asyncio.Transport):
    """Takes what a connection sends."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self._is_closed = False

    def write(self, data: Any) -> None:
        assert data

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        self._is_closed = True

    abort = close


def http2_bytes(_: Path) -> Parse:
    """What follows the preface of a connection of the native transport."""

    async def answer(call: Any) -> bytes:
        try:
            return bytes(await call.read())
        except RequestError as error:
            raise StatusError(StatusCode.INVALID_ARGUMENT, str(error)) from None

    def answer_many(calls: Any) -> None:
        for call in calls:
            call.respond(call.message)

    async def answer_stream(call: Any) -> None:
        while (message := await call.next()) is not None:
            await call.write(message)

    methods = [
        Method(path="/re4.v1.Retrieval/Retrieve", answer=answer, answer_many=answer_many),
        Method(path="/re4.v1.Retrieval/Info", answer=answer),
        Method(path="/re4.v1.Retrieval/Watch", answer_stream=answer_stream),
    ]

    async def connect(data: bytes) -> None:
        transport = NativeTransport(methods, Limits(max_message_bytes=1000))
        transport.loop = asyncio.get_running_loop()
        connection = NativeConnection(transport)
        peer = _Peer()
        connection.connection_made(peer)
        opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
        for part in (opening + data[: len(data) // 2], data[len(data) // 2 :]):
            if not peer.is_closing():
                connection.data_received(part)
                for _ in range(4):
                    await asyncio.sleep(0)
        connection.connection_lost(None)
        for _ in range(4):
            await asyncio.sleep(0)
        transport.first_messages.close()
        transport.prefaces.close()
        assert not transport.first_messages.num_waiting

    loop = asyncio.new_event_loop()

    def parse(data: bytes) -> None:
        loop.run_until_complete(connect(data))

    weakref.finalize(parse, loop.close)
    return parse
