"""Calls that a transport hands over many at a time: rejection, cancellation, large messages, a stop."""

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from in_process_server import REQUEST, Held, call, drive, serving, until_in_flight
from running_server import DEADLINE_S

from re4.common.errors import ShedError
from re4.serving.api.server import RetrievalServer
from re4.serving.batching.batcher import Batcher
from re4.serving.batching.queue import BatchGroup
from re4.serving.batching.rejection_pacing import RejectionQuota
from re4.serving.settings import Access, Limits
from re4.serving.versions.snapshot import Snapshot

pytestmark = pytest.mark.transports("native", "grpcio")

GROUP = BatchGroup(version=0, relative_cost=1)
WAIT_MS = 500 * DEADLINE_S


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


class Flooded:
    """A server whose only batch lasts until the test ends, and that rejects three calls one by one."""

    def __init__(self, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = Held(snapshot.pipeline)
        self.snapshot = replace(snapshot, pipeline=self.held)
        monkeypatch.setattr("re4.serving.api.service.SINGLE_BURST", 3.0)
        monkeypatch.setattr("re4.serving.api.service.SINGLE_PER_S", 0.0)

    async def begin(
        self, server: RetrievalServer, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...] = ()
    ) -> "asyncio.Future[bytes]":
        server._service._batcher._estimate.add_batch(GROUP.cost_class, 1, WAIT_MS)
        method = channel.unary_unary("/re4.v1.Retrieval/Retrieve")
        running = asyncio.ensure_future(method(REQUEST, timeout=DEADLINE_S, metadata=metadata))
        await asyncio.to_thread(self.held.entered.wait, DEADLINE_S)
        return running


def test_calls_beyond_the_quota_are_rejected_by_their_header_fields(
    snapshot: Snapshot, transport: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if transport != "native":  # the core of gRPC ends such calls itself
        return
    flooded = Flooded(snapshot, monkeypatch)
    caplog.set_level("INFO")

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        running = await flooded.begin(server, channel)
        method = channel.unary_unary("/re4.v1.Retrieval/Retrieve")
        one_by_one = [method(REQUEST, timeout=DEADLINE_S) for _ in range(3)]
        together = [await each.details() for each in one_by_one]
        flood = [
            method(
                REQUEST, timeout=DEADLINE_S, metadata=(("x-request-id", f"flood-{number}"),) * (number % 2)
            )
            for number in range(40)
        ]
        for number, each in enumerate(flood):
            assert await each.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "the server is overloaded: this call would wait about" in await each.details()
            trailers = dict(await each.trailing_metadata())
            assert trailers.get("x-request-id") == (f"flood-{number}" if number % 2 else None)
            assert int(trailers["grpc-retry-pushback-ms"]) > 0
        hurried = method(REQUEST, timeout=WAIT_MS / 2e3)
        assert await hurried.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "nothing was computed for it" in await hurried.details()
        assert all("the server is overloaded" in str(details) for details in together)
        await until_counted(server, "Retrieve", "RESOURCE_EXHAUSTED", 43)
        get = server.metrics.registry.get_sample_value
        assert get("re4_shed_total", {"reason": "overload"}) == 43
        await until_counted(server, "Retrieve", "DEADLINE_EXCEEDED", 1)
        assert get("re4_shed_total", {"reason": "deadline"}) == 1
        flooded.held.may_leave.set()
        assert await running
        assert (await call(channel)).items.strings
        assert not server._service._early.is_armed

    drive(serving(flooded.snapshot), test, max_queue_ms=0)


def test_early_rejections_check_tokens_and_rates_first(
    snapshot: Snapshot, transport: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if transport != "native":
        return
    flooded = Flooded(snapshot, monkeypatch)
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        "".join(
            f'[{name}]\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n{more}\n'
            for name, more in (
                ("free", ""),
                ("slow", "users_per_s = 0.001\nburst = 2\n"),
                ("writer", 'users_per_s = 0.001\nburst = 2\nscopes = ["record-events"]\n'),
            )
        )
    )

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        def of(name: str) -> tuple[tuple[str, str], ...]:
            return (("authorization", f"Bearer {name}"),)

        running = await flooded.begin(server, channel, metadata=of("free"))
        method = channel.unary_unary("/re4.v1.Retrieval/Retrieve")
        for _ in range(6):
            early = method(REQUEST, timeout=DEADLINE_S, metadata=of("free"))
            assert await early.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        stranger = method(REQUEST, timeout=DEADLINE_S, metadata=of("unknown"))
        assert await stranger.code() is grpc.StatusCode.UNAUTHENTICATED
        found = []
        for _ in range(3):
            slow = method(REQUEST, timeout=DEADLINE_S, metadata=of("slow"))
            assert await slow.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            found.append("overloaded" in await slow.details())
        assert found == [True, True, False], "the third call is beyond the caller's rate"
        codes = []
        for _ in range(3):
            codes.append(await method(REQUEST, timeout=DEADLINE_S, metadata=of("writer")).code())
        assert [code.name for code in codes] == ["PERMISSION_DENIED"] * 2 + ["RESOURCE_EXHAUSTED"], (
            "a call without its scope is charged once"
        )
        get = server.metrics.registry.get_sample_value
        labels = {"caller": "free", "code": "RESOURCE_EXHAUSTED"}
        while (get("re4_caller_calls_total", labels) or 0) < 6:
            await asyncio.sleep(0)
        flooded.held.may_leave.set()
        assert await running

    drive(serving(flooded.snapshot), test, max_queue_ms=0, access=Access(tokens=tokens))


def test_far_too_many_rejections_are_held_back_for_a_moment(
    snapshot: Snapshot, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are rejected while the batch still runs; a call that leaves meanwhile harms nothing."""
    if transport != "native":
        return
    flooded = Flooded(snapshot, monkeypatch)
    monkeypatch.setattr("re4.serving.api.early_rejection.EARLY_BURST", 0.0)
    monkeypatch.setattr("re4.serving.api.early_rejection.EARLY_PER_S", 0.0)

    async def test(server: RetrievalServer, channel: grpc.aio.Channel) -> None:
        running = await flooded.begin(server, channel)
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError, match="overloaded"):
                await call(channel)
        held_back = server._transport._held  # type: ignore[attr-defined]
        flood = [call(channel) for _ in range(40)]
        while not held_back:
            await asyncio.sleep(0)
        flood[0].cancel()
        outcomes = await asyncio.gather(*flood, return_exceptions=True)
        codes = [each.code() for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
        assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 39
        flooded.held.may_leave.set()
        assert await running

    drive(serving(flooded.snapshot), test, max_queue_ms=0)


def test_the_quota_is_refilled_by_time() -> None:
    now = [5.0]
    quota = RejectionQuota(per_s=100.0, burst=20.0, clock_s=lambda: now[0])
    assert quota.available() == 20
    quota.take(1000)
    assert quota.available() == 0
    now[0] += 0.105
    assert quota.available() == 10
    quota.take(4)
    now[0] -= 3.0
    assert quota.available() == 6
    now[0] += 100.0
    assert quota.available() == 20


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
