"""One process's server, driven in this process: stopping under load, readiness, defects that leak nothing."""

import asyncio
import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from in_process_server import REQUEST, Held, call, drive, health_of, serving, until_in_flight
from running_server import DEADLINE_S
from small_bundles import SmallVersion, load

from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.api.server import RetrievalServer
from re4.serving.retrieval.pipeline import Query
from re4.serving.versions.live_version import LiveVersion
from re4.serving.versions.snapshot import Snapshot

pytestmark = pytest.mark.transports("native", "grpcio")

ITEM_59 = pb.RetrieveRequest(history=pb.ItemIds(strings=["item-59-é"]), num_candidates=5).SerializeToString()


class Broken:
    index_failure = ""

    def run(self, queries: Sequence[Query]) -> Any:
        raise ZeroDivisionError("secret-internals")


def test_a_stop_finishes_what_is_in_flight_and_takes_nothing_new(snapshot: Snapshot) -> None:
    held = Held(snapshot.pipeline)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        await server.set_serving()
        in_flight = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(server.stop())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not in_flight.done()
        assert not stopping.done()
        held.may_leave.set()
        assert len((await in_flight).items.strings) == 5
        await stopping
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(channel)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

    drive(serving(replace(snapshot, pipeline=held)), test, grace_s=DEADLINE_S)


def test_a_stop_does_not_wait_longer_than_the_grace(snapshot: Snapshot) -> None:
    held = Held(snapshot.pipeline)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        in_flight = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        await server.stop()
        with pytest.raises(grpc.aio.AioRpcError):
            await in_flight
        held.may_leave.set()

    drive(serving(replace(snapshot, pipeline=held)), test, grace_s=0.01)


def test_watchers_of_the_health_do_not_hold_a_stop_up(snapshot: Snapshot) -> None:
    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.set_serving()
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(server.stop())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await asyncio.wait_for(stopping, DEADLINE_S)  # a fraction of the grace

    drive(serving(snapshot), test, grace_s=100 * DEADLINE_S)


def test_not_serving_until_set_serving(snapshot: Snapshot) -> None:
    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        assert await health_of(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.set_serving()
        assert await health_of(channel) == health_pb2.HealthCheckResponse.SERVING

    drive(serving(snapshot), test)


def test_a_server_without_a_version_says_so() -> None:
    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(channel)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "no version is loaded yet" in refused.value.details()

    drive(LiveVersion(), test)


def test_a_defect_is_internal_and_its_text_stays_in_the_log(
    snapshot: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(channel)
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert failed.value.details() == "Retrieve failed; the server's log says why"

    drive(serving(replace(snapshot, pipeline=Broken())), test)
    assert "ZeroDivisionError: secret-internals" in caplog.text


def test_interests_that_overflow_are_internal_for_that_caller_alone(tmp_path: Path) -> None:
    """Item 59 is finite, but so long that the encoder's sums are not."""
    version = SmallVersion(seed=8)
    version.vectors_ND[:, 0] = 0
    version.vectors_ND[59] = 0
    version.vectors_ND[59, 0] = 1e30
    version.W2_DD[0] = 1e10
    snapshot = load(version, tmp_path)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        calls = [call(channel, data) for data in (REQUEST, ITEM_59, REQUEST)]
        good, bad, also_good = await asyncio.gather(*calls, return_exceptions=True)
        expected = [version.ids[row] for row in version.best([1], 5)]
        assert list(good.items.strings) == list(also_good.items.strings) == expected
        assert bad.code() is grpc.StatusCode.INTERNAL
        assert "not finite" in bad.details()

    drive(serving(snapshot), test)


def test_callers_share_a_batch_while_a_batch_runs(snapshot: Snapshot) -> None:
    held = Held(snapshot.pipeline)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        first = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        others = [call(channel) for _ in range(5)]
        await until_in_flight(server, 6)
        held.may_leave.set()
        replies = await asyncio.gather(first, *others)
        assert [reply.stage_times.batch_size for reply in replies] == [1, 5, 5, 5, 5, 5]
        assert len({tuple(reply.items.strings) for reply in replies}) == 1

    drive(serving(replace(snapshot, pipeline=held)), test)


def test_calls_that_queued_across_a_swap_are_answered_from_their_own_version(
    snapshot: Snapshot, small_version: SmallVersion, tmp_path: Path
) -> None:
    other = SmallVersion(seed=4)
    held = Held(snapshot.pipeline)
    live = serving(replace(snapshot, pipeline=held))

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        first = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        before = [call(channel) for _ in range(3)]
        await until_in_flight(server, 4)
        live.swap(load(other, tmp_path))
        after = [call(channel) for _ in range(3)]
        await until_in_flight(server, 7)
        held.may_leave.set()
        for calls, version, loaded in (
            ([first, *before], small_version, snapshot),
            (after, other, live.current()),
        ):
            for reply in await asyncio.gather(*calls):
                assert list(reply.items.strings) == [version.ids[row] for row in version.best([1], 5)]
                assert reply.version == loaded.manifest.version

    drive(live, test)


def test_a_shed_call_is_resource_exhausted_with_a_time_to_retry(snapshot: Snapshot, transport: str) -> None:
    held = Held(snapshot.pipeline)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        held.may_leave.set()
        await call(channel)  # from now on the server knows that a call costs something
        held.entered.clear()
        held.may_leave.clear()
        in_flight = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        # The first is admitted where the running batch should have ended; the second waits for the first.
        others = [call(channel), call(channel)]
        await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        held.may_leave.set()
        outcomes = await asyncio.gather(*others, return_exceptions=True)
        assert (await in_flight).items.strings
        shed = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert shed
        for error in shed:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "the server is overloaded" in error.details()
            metadata = dict(error.trailing_metadata())
            assert "x-request-id" in metadata
            assert int(metadata["grpc-retry-pushback-ms"]) >= 1

    drive(serving(replace(snapshot, pipeline=held)), test, max_queue_ms=0)


def test_a_call_whose_deadline_passes_in_the_queue_is_not_computed(snapshot: Snapshot) -> None:
    held = Held(snapshot.pipeline)
    seen: list[int] = []

    class Counting:
        index_failure = ""

        def run(self, queries: Sequence[Query]) -> Any:
            seen.append(len(queries))
            return held.run(queries)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        in_flight = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        method = channel.unary_unary("/re4.v1.Retrieval/Retrieve")
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await method(REQUEST, timeout=0.05)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        held.may_leave.set()
        await in_flight
        await call(channel)

    drive(serving(replace(snapshot, pipeline=Counting())), test)
    assert seen == [1, 1]


def test_deep_searches_share_no_batch_with_usual_ones(snapshot: Snapshot) -> None:
    held = Held(snapshot.pipeline)
    deep = pb.RetrieveRequest(history=pb.ItemIds(strings=["item-1-é"]), num_candidates=600)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        first = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        requests = (REQUEST, deep.SerializeToString()) * 3
        others = [call(channel, data) for data in requests]
        await until_in_flight(server, 7)
        held.may_leave.set()
        replies = await asyncio.gather(*others)
        assert [reply.stage_times.batch_size for reply in replies] == [3] * 6
        assert [len(reply.items.strings) for reply in replies] == [5, 60] * 3
        await first

    drive(serving(replace(snapshot, pipeline=held)), test)


def test_an_answered_call_keeps_no_version(tmp_path: Path) -> None:
    """Not even until the garbage collector runs, which a worker lets run seldom."""
    live = serving(load(SmallVersion(), tmp_path / "old"))
    old = weakref.ref(live.current().item_ids)
    one = pb.RetrieveRequest.FromString(REQUEST)
    requests: dict[str, Message] = {
        "Retrieve": one,
        "BatchRetrieve": pb.BatchRetrieveRequest(users=[one, pb.RetrieveRequest()]),
        "Encode": pb.EncodeRequest(history=one.history),
        "Info": pb.InfoRequest(),
    }

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        for name, request in requests.items():
            method = channel.unary_unary(f"/re4.v1.Retrieval/{name}")
            for _ in range(3):
                assert await method(request.SerializeToString(), timeout=DEADLINE_S)
                with pytest.raises(grpc.RpcError):
                    await method(b"damaged", timeout=DEADLINE_S)
        unknown = pb.RetrieveRequest(
            history=pb.ItemIds(strings=["unknown"]), num_candidates=5
        ).SerializeToString()
        for name in ("Retrieve", "Encode"):  # refused in a batch: the fields of the history are the same
            with pytest.raises(grpc.RpcError, match="none of the 1 ids"):
                await channel.unary_unary(f"/re4.v1.Retrieval/{name}")(unknown, timeout=DEADLINE_S)
        live.swap(load(SmallVersion(seed=1), tmp_path / "new"))
        assert (await call(channel)).items.strings
        while old() is not None:  # the last replies are being sent
            await asyncio.sleep(0)

    gc.disable()
    try:
        drive(live, lambda *given: asyncio.wait_for(test(*given), DEADLINE_S))
    finally:
        gc.enable()
