"""Old connections are ended without a failed call."""

import asyncio

import grpc
import pytest
from http2_connection import GOAWAY, Http2Connection
from in_process_server import call, drive_port, serving

from re4.serving.api.server import RetrievalServer
from re4.serving.settings import Limits
from re4.serving.versions.snapshot import Snapshot

pytestmark = pytest.mark.transports("native", "grpcio")


def test_clients_of_old_connections_connect_again(snapshot: Snapshot) -> None:
    async def test(server: RetrievalServer, channel: grpc.aio.Channel, port: int) -> None:
        with await asyncio.to_thread(Http2Connection, port) as watched:
            goaway = asyncio.create_task(asyncio.to_thread(watched.wait_for, GOAWAY))
            while not goaway.done():
                assert (await call(channel)).items.strings
            await goaway
        assert (await call(channel)).items.strings

    drive_port(serving(snapshot), test, limits=Limits(max_connection_age_s=0.2))
