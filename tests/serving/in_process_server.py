"""A server of one process, driven in the test's process."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running_server import DEADLINE_S

from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.api.server import RetrievalServer
from re4.serving.host.addresses import Address
from re4.serving.retrieval.pipeline import Query
from re4.serving.settings import ServerSettings, TransportName
from re4.serving.transports import grpcio_transport
from re4.serving.versions.live_version import LiveVersion
from re4.serving.versions.snapshot import Snapshot

REQUEST = pb.RetrieveRequest(history=pb.ItemIds(strings=["item-1-é"]), num_candidates=5).SerializeToString()


class Held:
    """A pipeline that stays in a batch until the test releases it."""

    index_failure = ""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self.entered = threading.Event()
        self.may_leave = threading.Event()

    def run(self, queries: Sequence[Query]) -> Any:
        self.entered.set()
        assert self.may_leave.wait(DEADLINE_S)
        return self._pipeline.run(queries)


def serving(snapshot: Snapshot) -> LiveVersion:
    live = LiveVersion()
    live.swap(snapshot)
    return live


def drive(
    live: LiveVersion, test: Callable[[RetrievalServer, grpc.aio.Channel], Awaitable[None]], **settings: Any
) -> None:
    drive_port(live, lambda server, channel, _: test(server, channel), **settings)


def drive_port(
    live: LiveVersion,
    test: Callable[[RetrievalServer, grpc.aio.Channel, int], Awaitable[None]],
    **settings: Any,
) -> None:
    """As `drive`; the test gets the port too."""

    async def main() -> None:
        with pytest.MonkeyPatch.context() as patch:
            # A held batch must not block the event loop, and the test with it.
            patch.setattr("re4.serving.api.service._MAX_BLOCK_SHARED_CORE_MS", 0.0)
            patch.setattr("re4.serving.api.service._MAX_BLOCK_OWN_CORE_MS", 0.0)
            patch.setattr("re4.serving.api.service._MAX_BLOCK_BATCH_TRANSPORT_MS", 0.0)
            patch.setattr("re4.serving.api.service.usable_cores", lambda: 99)
            # On a busy machine, a call may wait for a second before the event loop accepts it.
            accept = dict(grpcio_transport._QUEUE_OPTIONS)
            accept["grpc.server_max_unrequested_time_in_server"] = DEADLINE_S
            patch.setattr(grpcio_transport, "_QUEUE_OPTIONS", tuple(accept.items()))
            transport = TransportName(os.environ["RE4_SERVE_TRANSPORT"])
            settings.setdefault("transport", transport)
            settings.setdefault("max_queue_ms", 1e9)  # on a busy machine, no call is rejected for its wait
            server = RetrievalServer(live, ServerSettings(max_batch_size=8, **settings))
        address = await server.start(Address(host="127.0.0.1", port=0))
        async with grpc.aio.insecure_channel(str(address)) as channel:
            try:
                async with asyncio.timeout(3 * DEADLINE_S):
                    await test(server, channel, address.port)
            finally:
                await server.stop()

    asyncio.run(main())


async def until_in_flight(server: RetrievalServer, num_calls: int) -> None:
    """Run the event loop until so many calls are in flight; all of them are queued by then."""
    while server._service._num_in_flight < num_calls:
        await asyncio.sleep(0)


def call(channel: grpc.aio.Channel, data: bytes = REQUEST) -> "asyncio.Task[pb.RetrieveReply]":
    async def answered() -> pb.RetrieveReply:
        method = channel.unary_unary("/re4.v1.Retrieval/Retrieve")
        return pb.RetrieveReply.FromString(await method(data, timeout=DEADLINE_S))

    return asyncio.create_task(answered())


async def health_of(channel: grpc.aio.Channel) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service="re4.v1.Retrieval"))).status
