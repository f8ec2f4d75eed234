"""Calls that send no message: each ends with a status within the time limit, and delays nobody."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from in_process_server import Held, call, drive, serving
from running_server import DEADLINE_S

from re4.serving.api.server import RetrievalServer
from re4.serving.auth.tokens import token_hash
from re4.serving.settings import Access, Limits
from re4.serving.versions.snapshot import Snapshot

pytestmark = pytest.mark.transports("native", "grpcio")

SHORT = Limits(message_timeout_s=0.2)
UNARY_METHODS = [f"/re4.v1.Retrieval/{name}" for name in ("Retrieve", "BatchRetrieve", "Encode", "Info")]

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def begin(channel: grpc.aio.Channel, method: str) -> Any:
    """Send the headers of a call, and nothing else."""
    if method.endswith("Watch") or method == REFLECTION:
        return channel.stream_stream(method)(timeout=DEADLINE_S)
    return channel.stream_unary(method)(timeout=DEADLINE_S)


async def until_waiting(server: RetrievalServer, num_calls: int) -> None:
    while server._transport.first_messages.num_waiting != num_calls:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "method", [*UNARY_METHODS, "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", REFLECTION]
)
def test_a_call_without_a_message_ends_at_the_time_limit(
    snapshot: Snapshot, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        silent = [begin(channel, method) for _ in range(5)]
        for one in silent:
            assert await one.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert await one.details() == (
                "no complete message came within 0.2 s of the call's start (message_timeout_s)"
            )
        await until_waiting(server, 0)  # a caller may have the status before the server's read ends
        assert (await call(channel)).items.strings

    drive(serving(snapshot), test, limits=SHORT, reflection=True)
    assert "Traceback" not in caplog.text
    assert "replaced" not in caplog.text


def test_an_open_reflection_call_ends_at_the_time_limit_of_its_next_message(snapshot: Snapshot) -> None:
    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        open_call = stub.ServerReflectionInfo(timeout=DEADLINE_S)
        for _ in range(2):
            await open_call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            names = {each.name for each in (await open_call.read()).list_services_response.service}
            assert "re4.v1.Retrieval" in names
        assert await open_call.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    drive(serving(snapshot), test, limits=Limits(message_timeout_s=1.5), reflection=True)


def test_a_call_that_ends_without_a_message_gets_a_status(snapshot: Snapshot) -> None:
    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        empty = begin(channel, "/re4.v1.Retrieval/Retrieve")
        await empty.done_writing()
        assert await empty.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "the call ended without a message" in await empty.details()

    drive(serving(snapshot), test)


def test_a_caller_that_leaves_is_cancelled_and_forgotten(snapshot: Snapshot) -> None:
    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        silent = begin(channel, "/re4.v1.Retrieval/Retrieve")
        await until_waiting(server, 1)
        silent.cancel()
        await until_waiting(server, 0)
        labels = {"method": "Retrieve", "code": "CANCELLED"}
        while not server.metrics.registry.get_sample_value("re4_calls_total", labels):
            await asyncio.sleep(0)

    drive(serving(snapshot), test)


def test_a_call_without_a_token_is_rejected_before_its_message(snapshot: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(f'[ranking]\nsha256 = ["{token_hash("a-token").hex()}"]')

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        silent = begin(channel, "/re4.v1.Retrieval/Retrieve")
        assert await silent.code() is grpc.StatusCode.UNAUTHENTICATED

    drive(serving(snapshot), test, access=Access(tokens=path), limits=Limits(message_timeout_s=DEADLINE_S))


def test_a_late_call_is_counted_and_a_slow_answer_is_not_late(snapshot: Snapshot) -> None:
    held = Held(snapshot.pipeline)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        slow = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        late = begin(channel, "/re4.v1.Retrieval/Retrieve")
        assert await late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        held.may_leave.set()
        assert (await slow).items.strings
        labels = {"method": "Retrieve", "code": "DEADLINE_EXCEEDED"}
        while not server.metrics.registry.get_sample_value("re4_calls_total", labels):
            await asyncio.sleep(0)

    drive(serving(replace(snapshot, pipeline=held)), test, limits=SHORT)


def test_a_call_without_a_message_does_not_delay_a_stop(snapshot: Snapshot) -> None:
    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        begin(channel, "/re4.v1.Retrieval/Retrieve")
        await until_waiting(server, 1)
        await asyncio.wait_for(server.stop(), DEADLINE_S)

    drive(serving(snapshot), test, grace_s=100 * DEADLINE_S, limits=Limits(message_timeout_s=DEADLINE_S))
