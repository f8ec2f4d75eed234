"""The limits of a connection of the native transport, without a socket."""

import asyncio
import gc
import gzip
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from http2_connection import (
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    header_block,
)
from ngh2 import Connection, Role
from ngh2.events import GoAwayReceived, ResponseReceived

from re4.serving.settings import Limits
from re4.serving.transports import native_connection
from re4.serving.transports.native_call import NativeCall
from re4.serving.transports.native_connection import NativeConnection
from re4.serving.transports.native_transport import NativeTransport
from re4.serving.transports.transport import Method, WholeCall

OPENING = PREFACE + frame(SETTINGS, 0, 0)
ENHANCE_YOUR_CALM = 11


class Peer(asyncio.Transport):
    """Keeps what the connection sends; reads nothing more where `is_full`."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.sent = bytearray()
        self.is_reading = True
        self.is_closed = self.is_aborted = False

    def write(self, data: Any) -> None:
        self.sent += data

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True


def drive(test: Callable[[NativeConnection, Peer, list[WholeCall]], Awaitable[None]]) -> None:
    """Run a test with a connection whose calls nobody answers."""

    async def main() -> None:
        calls: list[WholeCall] = []

        def answer_many(arrived: Sequence[WholeCall]) -> None:
            calls.extend(arrived)

        async def answer(call: Any) -> bytes:
            return bytes(await call.read())

        method = Method(path="/re4.v1.Retrieval/Retrieve", answer=answer, answer_many=answer_many)
        transport = NativeTransport([method], Limits())
        transport.loop = asyncio.get_running_loop()
        connection, peer = NativeConnection(transport), Peer()
        connection.connection_made(peer)
        connection.data_received(OPENING)
        await test(connection, peer, calls)
        connection.connection_lost(None)
        transport.first_messages.close()
        transport.prefaces.close()

    asyncio.run(main())


def retrieve(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, header_block("Retrieve")) + frame(
        DATA, END_STREAM, stream, b"\0\0\0\0\3abc"
    )


def goodbye(peer: Peer) -> tuple[int, bytes] | None:
    """Error code and reason of the last GOAWAY."""
    client = Connection(Role.CLIENT)
    client.initiate_connection()
    client.receive_data(bytes(peer.sent))
    ends = [event for event in client.events() if isinstance(event, GoAwayReceived)]
    return (ends[-1].error_code, ends[-1].debug_data) if ends else None


def test_pings_that_come_too_often_end_the_connection() -> None:
    async def test(connection: NativeConnection, peer: Peer, _: list[WholeCall]) -> None:
        ping = frame(PING, 0, 0, b"12345678")
        for _number in range(3):
            connection.data_received(ping)
            assert not peer.is_closed
        connection.data_received(ping)
        assert peer.is_closed
        assert goodbye(peer) == (ENHANCE_YOUR_CALM, b"too_many_pings")

    drive(test)


def test_control_frames_are_limited_by_the_number_of_calls() -> None:
    async def test(connection: NativeConnection, peer: Peer, _: list[WholeCall]) -> None:
        update = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))
        for number in range(50):
            stream = 2 * number + 1
            connection.data_received(
                retrieve(stream)
                + frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))
                + update * native_connection._CONTROL_FRAMES_PER_CALL
            )
        assert not peer.is_closed
        for _number in range(20):
            connection.data_received(update * 500)
        assert peer.is_closed
        assert goodbye(peer) == (ENHANCE_YOUR_CALM, b"too_many_control_frames")

    drive(test)


def test_resets_are_limited() -> None:
    async def test(connection: NativeConnection, peer: Peer, calls: list[WholeCall]) -> None:
        flood = b"".join(
            retrieve(stream) + frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))
            for stream in range(1, 8000, 2)
        )
        connection.data_received(flood)
        await asyncio.sleep(0)
        assert goodbye(peer) is not None
        assert not calls  # a call that its caller has left is not handed over

    drive(test)


def test_a_caller_that_does_not_read_is_not_read_and_then_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native_connection, "_UNREAD_S", 0.01)

    async def test(connection: NativeConnection, peer: Peer, calls: list[WholeCall]) -> None:
        connection.data_received(retrieve(1))
        await asyncio.sleep(0)
        connection.pause_writing()
        assert not peer.is_reading
        num_sent = len(peer.sent)
        calls[0].respond(bytes(1 << 20))
        await asyncio.sleep(0)
        assert len(peer.sent) == num_sent
        connection.resume_writing()
        assert peer.is_reading
        assert len(peer.sent) > num_sent
        connection.pause_writing()
        while not peer.is_aborted:
            await asyncio.sleep(0.001)

    drive(test)


def test_an_answer_to_a_connection_that_has_failed_disturbs_nobody() -> None:
    async def test(connection: NativeConnection, peer: Peer, calls: list[WholeCall]) -> None:
        ended: list[int] = []
        connection.data_received(retrieve(1) + retrieve(3))
        await asyncio.sleep(0)
        for call in calls:
            call.on_end(lambda: ended.append(1), lambda _: None)
        connection.data_received(frame(HEADERS, END_HEADERS, 5, b"\xff" * 40))
        for call in calls:
            call.respond(b"reply")
        connection.connection_lost(None)
        assert len(calls) == len(ended) == 2

    drive(test)


def test_a_request_that_is_reset_at_once_is_not_answered() -> None:
    async def test(connection: NativeConnection, peer: Peer, _: list[WholeCall]) -> None:
        for stream, block in ((1, header_block("Train")), (3, header_block("Info", {"grpc-timeout": "x"}))):
            reset = frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))
            connection.data_received(frame(HEADERS, END_HEADERS, stream, block) + reset)
        client = Connection(Role.CLIENT)
        client.initiate_connection()
        client.receive_data(bytes(peer.sent))
        assert not peer.is_closed
        assert not [event for event in client.events() if isinstance(event, ResponseReceived)]

    drive(test)


def test_a_rejected_message_is_released_without_the_garbage_collector() -> None:
    async def test(connection: NativeConnection, peer: Peer, _: list[WholeCall]) -> None:
        bomb = gzip.compress(bytes(2 << 20))
        block = header_block("Retrieve", {"grpc-encoding": "gzip"})
        connection.data_received(
            frame(HEADERS, END_HEADERS, 1, block)
            + frame(DATA, END_STREAM, 1, b"\1" + struct.pack(">I", len(bomb)) + bomb)
        )
        while connection._calls:
            await asyncio.sleep(0)
        for _ in range(10):  # what the loop still holds has its turn
            await asyncio.sleep(0)
        assert calls() <= before

    def calls() -> set[int]:
        # The type: `isinstance` would ask objects of torch, some of which warn.
        return {id(found) for found in gc.get_objects() if type(found) is NativeCall}

    gc.collect()
    before = calls()
    gc.disable()
    try:
        drive(test)
    finally:
        gc.enable()
