"""Callers that read no reply: their replies take bounded memory, and others are answered."""

import asyncio
import struct

import grpc
import pytest
from http2_connection import Http2Connection
from hypothesis import given
from hypothesis import strategies as st
from in_process_server import call, drive_port, serving

from re4.common.errors import UnreadRepliesError
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.api.server import RetrievalServer
from re4.serving.batching.reply_memory import ReplyMemory
from re4.serving.settings import Limits
from re4.serving.versions.snapshot import Snapshot

pytestmark = pytest.mark.transports("native", "grpcio")
without_server = pytest.mark.transports()

NO_WINDOW = struct.pack(">HI", 4, 0)
"""SETTINGS_INITIAL_WINDOW_SIZE 0: the server may send no data."""
MAX_BYTES = 50_000
MAX_BYTES_PER_CALLER = 20_000
LIMITS = Limits(max_reply_bytes=MAX_BYTES, max_reply_bytes_per_caller=MAX_BYTES_PER_CALLER)


def batch(num_users: int) -> bytes:
    one = pb.RetrieveRequest(
        history=pb.ItemIds(strings=["item-1-é", "item-2-é"]), num_candidates=60, return_interests=True
    )
    return pb.BatchRetrieveRequest(users=[one] * num_users).SerializeToString()


async def opened(port: int) -> Http2Connection:
    """A connection that reads no reply; opened beside the event loop, which may be the server's."""
    return await asyncio.to_thread(Http2Connection, port, NO_WINDOW)


async def until_answered(connection: Http2Connection, message: bytes) -> None:
    """Make a call, and wait until it has an answer or a status."""
    connection.send(connection.begin("BatchRetrieve"), message)
    await asyncio.to_thread(connection.wait_for_headers, 1)


def rejected(server: RetrievalServer) -> float:
    return server.metrics.registry.get_sample_value("re4_shed_total", {"reason": "replies"}) or 0.0


def test_replies_that_nobody_reads_take_bounded_memory(snapshot: Snapshot) -> None:
    async def test(server: RetrievalServer, channel: grpc.aio.Channel, port: int) -> None:
        memory = server._service._reply_memory
        with await opened(port) as first, await opened(port) as second:
            for number, connection in enumerate((first, second), start=1):
                # Under load gRPC itself rejects some calls of a burst: their number is not fixed.
                for _ in range(30):
                    connection.send(connection.begin("BatchRetrieve"), batch(3))
                await asyncio.to_thread(connection.wait_for_headers, 30)
                assert memory.num_bytes / number <= MAX_BYTES_PER_CALLER
                # Five calls, one at a time, fill the memory; the five after them are rejected.
                num_rejected = [rejected(server)]
                for _ in range(10):
                    await until_answered(connection, batch(3))
                    num_rejected.append(rejected(server))
                assert MAX_BYTES_PER_CALLER * 3 // 4 < memory.num_bytes / number <= MAX_BYTES_PER_CALLER
                assert [num - num_rejected[5] for num in num_rejected[6:]] == [1, 2, 3, 4, 5]
            assert (await call(channel)).items.strings
        while memory.num_bytes:
            await asyncio.sleep(0)
        assert not memory._bytes_of

    drive_port(serving(snapshot), test, limits=LIMITS)


def test_a_batch_is_ended_when_its_reply_grows_too_large(snapshot: Snapshot) -> None:
    """It is ended between its parts; one that is alone is answered whatever its size."""

    async def test(server: RetrievalServer, channel: grpc.aio.Channel, port: int) -> None:
        batch_retrieve = channel.unary_unary("/re4.v1.Retrieval/BatchRetrieve")
        assert len(await batch_retrieve(batch(100))) > MAX_BYTES
        with await opened(port) as connection:
            await until_answered(connection, batch(1))
            await until_answered(connection, batch(100))
            assert rejected(server) == 1
            assert server._service._reply_memory.num_bytes <= MAX_BYTES_PER_CALLER

    drive_port(serving(snapshot), test, limits=LIMITS)


@without_server
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60)), max_size=40))
def test_no_order_of_replies_exceeds_the_bounds(sizes: list[tuple[str, int]]) -> None:
    memory = ReplyMemory(max_bytes=100, max_bytes_per_caller=50)
    held = []
    for caller, size in sizes:
        try:
            reply = memory.begin(caller)
            held.append(reply)
            reply.grow(size // 2)
            reply.finish(size)
        except UnreadRepliesError:
            pass
        assert memory.num_bytes <= 110
        assert all(size <= 60 for size in memory._bytes_of.values())
        if len(held) > 5:
            held.pop(0).release()
    for reply in held:
        reply.release()
    assert memory.num_bytes == 0
    assert not memory._bytes_of


@without_server
def test_a_refused_reply_names_the_bound() -> None:
    memory = ReplyMemory(max_bytes=100, max_bytes_per_caller=50)
    memory.begin("a").finish(50)
    with pytest.raises(
        UnreadRepliesError, match="replies of 50 bytes to this caller are not read yet, 50 are"
    ):
        memory.begin("a")
    memory.begin("b").finish(50)
    with pytest.raises(UnreadRepliesError, match="100 bytes to all callers") as error:
        memory.begin("c")
    assert error.value.retry_after_ms == 1000
