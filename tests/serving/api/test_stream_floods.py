"""Floods of streams on one connection, without a token or a message: the calls of others are answered."""

import asyncio

import grpc
import pytest
from http2_connection import Http2Connection
from in_process_server import REQUEST, drive_port, serving
from running_server import DEADLINE_S

from re4.serving.api.server import RetrievalServer
from re4.serving.settings import Limits
from re4.serving.versions.snapshot import Snapshot

pytestmark = pytest.mark.transports("native", "grpcio")


@pytest.mark.parametrize("is_reset", [True, False], ids=["reset at once", "without data"])
def test_a_flood_of_streams_fills_no_queue_that_others_share(
    snapshot: Snapshot, is_reset: bool, transport: str
) -> None:
    """The event loop is blocked while `grpcio` reads the flood, so all calls wait in gRPC's queue."""

    async def test(server: RetrievalServer, _: grpc.aio.Channel, port: int) -> None:
        with (
            await asyncio.to_thread(Http2Connection, port) as flood,
            grpc.insecure_channel(f"127.0.0.1:{port}") as good,
        ):
            await asyncio.to_thread(grpc.channel_ready_future(good).result, DEADLINE_S)
            for _number in range(1000):
                stream = flood.begin("Retrieve")
                if is_reset:
                    flood.reset(stream)
            if transport == "grpcio":
                flood.wait_until_read()
            elif is_reset:
                await asyncio.to_thread(flood.wait_until_read)
            else:
                await until_closed(flood)
            method = good.unary_unary("/re4.v1.Retrieval/Retrieve")
            calls = [method.future(REQUEST, timeout=DEADLINE_S) for _number in range(20)]
            replies = await asyncio.gather(*(asyncio.to_thread(one.exception, DEADLINE_S) for one in calls))
            assert replies == [None] * 20

    drive_port(serving(snapshot), test)


async def until_closed(connection: Http2Connection) -> None:
    """Wait until `native` has closed the connection of a client that exceeds the number of its calls."""
    with pytest.raises(ConnectionError):
        await asyncio.to_thread(connection.wait_until_read)


def test_a_connection_has_so_many_calls_at_a_time_and_no_more(snapshot: Snapshot, transport: str) -> None:
    async def test(server: RetrievalServer, _: grpc.aio.Channel, port: int) -> None:
        with await asyncio.to_thread(Http2Connection, port) as connection:
            for _number in range(20):
                connection.begin("Retrieve")
            if transport == "native":
                await until_closed(connection)
                while server._transport.first_messages.num_waiting:
                    await asyncio.sleep(0)
                return
            await asyncio.to_thread(connection.wait_until_read)
            while server._transport.first_messages.num_waiting < 3:
                await asyncio.sleep(0)
            await asyncio.to_thread(connection.wait_until_read)
            assert server._transport.first_messages.num_waiting == 3

    drive_port(serving(snapshot), test, limits=Limits(max_concurrent_calls=3))
