"""Calls that a transport hands over many at a time: rejection, cancellation, large messages, a stop."""

import asyncio
from dataclasses import replace

import grpc
import pytest
from in_process_server import REQUEST, Held, call, drive, serving, until_in_flight
from running_server import DEADLINE_S

from re4.common.errors import ShedError
from re4.serving.api.server import RetrievalServer
from re4.serving.batching.batcher import Batcher
from re4.serving.batching.queue import BatchGroup
from re4.serving.batching.rejection_pacing import RejectionQuota
from re4.serving.settings import Limits
from re4.serving.versions.snapshot import Snapshot

pytestmark = pytest.mark.transports("native", "grpcio")

GROUP = BatchGroup(version=0, relative_cost=1)


async def until_counted(server: RetrievalServer, method: str, code: str, num_calls: int) -> None:
    get = server.metrics.registry.get_sample_value
    while (get("re4_calls_total", {"method": method, "code": code}) or 0) < num_calls:
        await asyncio.sleep(0)


def test_a_flood_is_answered_or_rejected_and_each_call_is_counted_once(snapshot: Snapshot) -> None:
    held = Held(snapshot.pipeline)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        held.may_leave.set()
        await call(channel)  # from now on the server knows that a call costs something
        held.entered.clear()
        held.may_leave.clear()
        running = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        method = channel.unary_unary("/re4.v1.Retrieval/Retrieve")
        flood = [
            method(REQUEST, timeout=DEADLINE_S, metadata=(("x-request-id", f"flood-{number}"),))
            for number in range(60)
        ]
        while not any(each.done() for each in flood):
            await asyncio.sleep(0)
        held.may_leave.set()
        codes = [await each.code() for each in flood]
        num_answered = codes.count(grpc.StatusCode.OK)
        num_rejected = codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert num_rejected
        assert num_answered + num_rejected == len(flood)
        for number, each in enumerate(flood):
            if codes[number] is grpc.StatusCode.RESOURCE_EXHAUSTED:
                assert "the server is overloaded: this call would wait about" in await each.details()
                assert dict(await each.trailing_metadata())["x-request-id"] == f"flood-{number}"
        await running
        await until_counted(server, "Retrieve", "OK", num_answered + 2)
        await until_counted(server, "Retrieve", "RESOURCE_EXHAUSTED", num_rejected)
        get = server.metrics.registry.get_sample_value
        assert get("re4_shed_total", {"reason": "overload"}) == num_rejected
        assert get("re4_call_seconds_count", {"method": "Retrieve"}) == len(flood) + 2

    drive(serving(replace(snapshot, pipeline=held)), test, max_queue_ms=0)


def test_rejections_beyond_the_quota_come_after_the_flood(
    snapshot: Snapshot, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if transport != "native":  # the core of gRPC holds such calls back itself
        return
    held = Held(snapshot.pipeline)
    monkeypatch.setattr(RejectionQuota, "burst", 3.0)
    monkeypatch.setattr(RejectionQuota, "per_s", 0.0)
    monkeypatch.setattr("re4.serving.api.service._MAX_HOLD_S", DEADLINE_S)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        held.may_leave.set()
        await call(channel)  # from now on the server knows that a call costs something
        held.entered.clear()
        held.may_leave.clear()
        running = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        flood = [call(channel) for _ in range(40)]
        while len(server._service._held_back) < 30:
            await asyncio.sleep(0)
        for one in flood:
            one.cancel()
        await until_counted(server, "Retrieve", "CANCELLED", 30)
        late = [call(channel) for _ in range(20)]
        while len(server._service._held_back) < 10:
            await asyncio.sleep(0)
        held.may_leave.set()
        outcomes = await asyncio.gather(*late, return_exceptions=True)
        errors = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
        assert len(errors) >= 10
        assert {error.code() for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert (await running).items.strings
        assert not server._service._held_back

    drive(serving(replace(snapshot, pipeline=held)), test, max_queue_ms=0)


def test_no_rejection_is_held_back_for_long(
    snapshot: Snapshot, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are rejected while the batch still runs."""
    if transport != "native":
        return
    held = Held(snapshot.pipeline)
    monkeypatch.setattr(RejectionQuota, "burst", 3.0)
    monkeypatch.setattr(RejectionQuota, "per_s", 0.0)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        held.may_leave.set()
        await call(channel)
        held.entered.clear()
        held.may_leave.clear()
        running = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        flood = [call(channel) for _ in range(40)]
        await until_counted(server, "Retrieve", "RESOURCE_EXHAUSTED", 30)
        held.may_leave.set()
        await asyncio.gather(running, *flood, return_exceptions=True)

    drive(serving(replace(snapshot, pipeline=held)), test, max_queue_ms=0)


def test_the_quota_is_refilled_by_time() -> None:
    now = [5.0]
    quota = RejectionQuota(lambda: now[0])
    assert quota.take(1000) == quota.burst
    assert quota.take(10) == 0
    now[0] += 10.5 / quota.per_s
    assert quota.take(100) == 10
    now[0] -= 3.0
    assert quota.take(1) == 0
    now[0] += 100.0
    assert quota.take(7) == 7


def test_a_call_that_is_cancelled_in_the_queue_is_counted_and_forgotten(snapshot: Snapshot) -> None:
    held = Held(snapshot.pipeline)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        running = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        waiting = channel.unary_unary("/re4.v1.Retrieval/Retrieve")(REQUEST, timeout=DEADLINE_S)
        await until_in_flight(server, 2)
        waiting.cancel()
        await until_counted(server, "Retrieve", "CANCELLED", 1)
        held.may_leave.set()
        assert (await running).items.strings
        while not server._service.is_idle:
            await asyncio.sleep(0)

    drive(serving(replace(snapshot, pipeline=held)), test, max_queue_ms=1e6)


@pytest.mark.parametrize("method", ["Retrieve", "BatchRetrieve", "Info"])
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_over_the_limit_is_rejected_with_its_size(
    snapshot: Snapshot, method: str, compression: grpc.Compression
) -> None:
    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        large = channel.unary_unary(f"/re4.v1.Retrieval/{method}")(bytes(5000), compression=compression)
        assert await large.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in await large.details()
        assert (await call(channel)).items.strings

    drive(serving(snapshot), test, limits=Limits(max_message_bytes=4000))


def test_a_stop_answers_the_calls_in_flight(snapshot: Snapshot) -> None:
    held = Held(snapshot.pipeline)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        running = call(channel)
        await asyncio.to_thread(held.entered.wait, DEADLINE_S)
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        held.may_leave.set()
        assert (await running).items.strings
        await stopping

    drive(serving(replace(snapshot, pipeline=held)), test)


def test_as_many_are_admitted_as_fit_into_the_wait() -> None:
    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(
            lambda requests: requests,
            max_batch_size=4,
            max_wait_ms=10,
            group_of=lambda _: GROUP,
            on_thread_start=lambda: None,
        )
        assert batcher.num_admitted(GROUP) > 10**6  # no batch has run: a request may cost nothing
        batcher._estimate.add_batch(GROUP.cost_class, 1, 3.0)
        assert batcher.num_admitted(GROUP) == 4
        queued = batcher.enqueue(["a"] * 4, is_admitted=True)
        assert batcher.num_admitted(GROUP) == 0
        with pytest.raises(ShedError, match="would wait about 12 ms"):
            batcher.admit(GROUP, time_left_s=None)
        assert "would wait about 13 ms" in str(batcher.rejection(GROUP, 5))
        await asyncio.gather(*queued)
        batcher.close()

    asyncio.run(main())
