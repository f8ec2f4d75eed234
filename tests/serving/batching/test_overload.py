"""Requests that would wait too long are rejected at once, others answered. The tests set the clock."""

import asyncio
from collections.abc import Callable, Coroutine
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_batcher import SteppedPipeline

from re4.common.errors import ShedError, TooLateError
from re4.serving.batching.batcher import Batcher
from re4.serving.batching.queue import BatchGroup, BatchQueue, LatencyEstimate

MAX_BATCH = 4
MAX_WAIT_MS = 100.0
GROUP = BatchGroup(version=0, relative_cost=1)


class Overloaded:
    """A batcher whose pipeline and clock move only on call. `deep-x` has a relative cost of 2."""

    def __init__(self, max_delay_ms: float = 0.0) -> None:
        self.pipeline = SteppedPipeline()
        self.now_ms = 0.0
        self.batcher: Batcher[str, str] = Batcher(
            self.pipeline.run,
            max_batch_size=MAX_BATCH,
            max_wait_ms=MAX_WAIT_MS,
            max_delay_ms=max_delay_ms,
            group_of=lambda query: BatchGroup(version=0, relative_cost=2 if query.startswith("deep") else 1),
            on_thread_start=lambda: None,
            clock_ns=lambda: int(self.now_ms * 1e6),
        )

    def ask(self, *queries: str, time_left_ms: float | None = None) -> list["asyncio.Future[Any]"]:
        time_left_s = None if time_left_ms is None else time_left_ms / 1e3
        return self.batcher.enqueue(queries, time_left_s=time_left_s)

    async def run_one_batch(self, took_ms: float) -> None:
        """The batch that is in the pipeline, or goes in now, takes so long."""
        await self.pipeline.is_busy()
        self.now_ms += took_ms
        self.pipeline.may_leave.release()

    async def learn(self, query: str, each_ms: float) -> None:
        """Run one query that takes so long; this is the estimate from now on."""
        (future,) = self.ask(query)
        await self.run_one_batch(each_ms)
        await future


def drive(test: Callable[[Overloaded], Coroutine[Any, Any, None]], max_delay_ms: float = 0.0) -> Overloaded:
    async def main() -> Overloaded:
        overloaded = Overloaded(max_delay_ms)
        try:
            await test(overloaded)
        finally:
            overloaded.pipeline.may_leave.release(1000)
            overloaded.batcher.close()
        return overloaded

    return asyncio.run(main())


def test_the_queue_is_bounded_by_time_and_shed_requests_get_a_time_to_retry() -> None:
    async def test(server: Overloaded) -> None:
        await server.learn("a", 10.0)
        accepted = server.ask("first")
        await server.pipeline.is_busy()  # its 10 ms have just begun
        for number in range(10):  # 10 ms for the one in the pipeline, 10 ms for each that waits
            accepted += server.ask(f"q{number}")
        with pytest.raises(
            ShedError, match="would wait about 110 ms for its turn, 100 ms is allowed"
        ) as shed:
            server.ask("one too many")
        assert shed.value.retry_after_ms == 60
        server.now_ms += 10.0  # the pipeline has done its part: there is room for one more
        accepted += server.ask("in time")
        with pytest.raises(ShedError):
            server.ask("again one too many")
        server.pipeline.may_leave.release(100)
        assert len(await asyncio.gather(*accepted)) == len(accepted)

    server = drive(test)
    assert "one too many" not in chain(*server.pipeline.batches)


def test_an_idle_server_lets_a_call_in_whatever_it_measured_before() -> None:
    async def test(server: Overloaded) -> None:
        await server.learn("a", 60_000.0)  # a minute: a stalled disk, say
        accepted = server.ask("b", time_left_ms=50.0)
        with pytest.raises(ShedError, match="Try again in 59950 ms"):
            server.ask("c")  # behind that one, the estimated wait is the minute
        await server.run_one_batch(1.0)
        await asyncio.gather(*accepted)
        for _ in range(40):
            await server.learn("d", 1.0)
        accepted = server.ask("e", "f")
        accepted += server.ask("g")  # the stall is forgotten
        server.pipeline.may_leave.release(2)
        await asyncio.gather(*accepted)

    drive(test)


def test_a_request_whose_deadline_cannot_be_met_is_rejected_at_once_and_never_run() -> None:
    async def test(server: Overloaded) -> None:
        await server.learn("a", 10.0)
        accepted = server.ask("b")
        await server.pipeline.is_busy()
        accepted += server.ask("c", "d")
        with pytest.raises(TooLateError, match="25 ms away, and this call would wait about 30 ms"):
            server.ask("hopeless", time_left_ms=25.0)
        accepted += server.ask("hopeful", time_left_ms=31.0)
        server.pipeline.may_leave.release(2)
        await asyncio.gather(*accepted)

    assert "hopeless" not in chain(*drive(test).pipeline.batches)


def test_a_request_whose_deadline_passes_in_the_queue_is_never_run() -> None:
    async def test(server: Overloaded) -> None:
        accepted = server.ask("a")
        await server.pipeline.is_busy()
        (late,) = server.ask("late", time_left_ms=20.0)
        accepted += server.ask("patient", time_left_ms=21.0)
        server.now_ms += 20.0  # the batch takes longer than anyone could know
        server.pipeline.may_leave.release(2)
        with pytest.raises(TooLateError, match="passed while this call waited"):
            await late
        await asyncio.gather(*accepted)

    assert drive(test).pipeline.batches == [["a"], ["patient"]]


def test_a_call_that_has_no_time_left_is_not_run_even_by_an_idle_server() -> None:
    async def test(server: Overloaded) -> None:
        with pytest.raises(TooLateError):
            server.ask("late", time_left_ms=0.0)

    assert drive(test).pipeline.batches == []


def test_cancelled_requests_make_room_at_once() -> None:
    async def test(server: Overloaded) -> None:
        await server.learn("a", 10.0)
        accepted = server.ask("b")
        await server.pipeline.is_busy()
        leaving = server.ask(*[f"q{number}" for number in range(50)])
        with pytest.raises(ShedError):
            server.ask("c")
        for future in leaving:
            future.cancel()
        await asyncio.sleep(0)
        accepted += server.ask("c")
        server.pipeline.may_leave.release(2)
        await asyncio.gather(*accepted)

    assert drive(test).pipeline.batches == [["a"], ["b"], ["c"]]


def test_a_flood_of_deep_queries_delays_a_shallow_one_by_one_batch_and_sheds_only_the_deep() -> None:
    async def test(server: Overloaded) -> None:
        await server.learn("deep-0", 20.0)
        await server.learn("a", 1.0)
        accepted = server.ask("deep-1")
        await server.pipeline.is_busy()
        accepted += server.ask(*[f"deep-{number}" for number in range(2, 9)])
        with pytest.raises(ShedError):
            server.ask("deep-9")
        accepted += server.ask("b", time_left_ms=61.0)  # 20 ms in the pipeline, then 2 deep ones at most
        server.pipeline.may_leave.release(100)
        await asyncio.gather(*accepted)

    batches = drive(test).pipeline.batches[2:]
    assert batches[:4] == [["deep-1"], ["deep-2", "deep-3"], ["b"], ["deep-4", "deep-5"]]


def test_the_latency_estimate_is_a_moving_average_by_depth() -> None:
    estimate = LatencyEstimate()
    assert estimate.ms(1) == 0
    estimate.add_batch(1, 10, 20.0)
    assert estimate.ms(1) == 2.0
    assert estimate.ms(8) == 0
    for _ in range(50):
        estimate.add_batch(1, 1, 6.0)
    assert estimate.ms(1) == pytest.approx(6.0, rel=1e-3)


def test_with_a_delay_the_first_waits_for_others_but_a_full_batch_starts() -> None:
    async def test(server: Overloaded) -> None:
        for each in range(2):
            accepted = server.ask(f"a{each}")
            await asyncio.sleep(0)  # without a delay, the batch would be formed by now
            await asyncio.sleep(0)
            accepted += server.ask(f"b{each}")
            server.pipeline.may_leave.release()
            await asyncio.gather(*accepted)
        server.pipeline.may_leave.release(2)
        await asyncio.gather(*server.ask("c", "d", "e", "f", "g"))

    assert drive(test, max_delay_ms=50.0).pipeline.batches == [
        ["a0", "b0"],
        ["a1", "b1"],
        ["c", "d", "e", "f"],
        ["g"],
    ]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 2, 16])), max_size=60),
    st.integers(1, 6),
    st.sets(st.integers(0, 59)),
)
def test_groups_take_turns_and_nothing_is_lost(
    groups: list[tuple[int, int]], max_batch_size: int, leaving: set[int]
) -> None:
    queue = BatchQueue[int](max_batch_size)
    members: dict[BatchGroup, list[int]] = {}
    for number, (owner, depth) in enumerate(groups):
        queue.add(BatchGroup(owner, depth), number)
    for number, (owner, depth) in enumerate(groups):
        if number in leaving:
            queue.discard(BatchGroup(owner, depth), number)
        else:
            members.setdefault(BatchGroup(owner, depth), []).append(number)
    served: list[BatchGroup] = []
    while batch := queue.take():
        group = BatchGroup(*groups[batch[0]])
        assert members[group][: len(batch)] == batch, "not in the order of arrival, or of two groups"
        assert len(batch) == min(len(members[group]), max(1, max_batch_size // group.relative_cost))
        del members[group][: len(batch)]
        since = served[::-1].index(group) if group in served else None
        waiting = {other for other, left in members.items() if left and other != group}
        if since is not None:
            assert waiting <= set(served[len(served) - since :]), "a group was passed over"
        served.append(group)
    assert not any(members.values())
    assert queue.take() == []


def test_batches_of_another_kind_are_short_however_many_wait() -> None:
    cost_ms = {"filtered": 2.0, "unknown": 0.0, "slow": 40.0}
    queue = BatchQueue[int](64, lambda cost_class: cost_ms.get(cost_class[1], 1.0))
    groups = [
        BatchGroup(version=0, relative_cost=1, kind=kind) for kind in ("", "filtered", "unknown", "slow")
    ]
    for group in groups:
        for number in range(100):
            queue.add(group, number)
    assert [len(queue.take()) for _ in groups] == [64, 2, 64, 1]
    # The 36 usual ones left go at once, and in between one batch of each of the others.
    assert queue.wait_ms(groups[0]) == 36 * 1.0 + 2 * 2.0 + 1 * 40.0


def test_a_call_that_the_last_batch_kept_unread_has_waited_for_it() -> None:
    now_ms = 0.0

    def run(queries: object) -> object:
        nonlocal now_ms
        now_ms += 10.0
        return queries

    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(
            run,  # type: ignore[arg-type]
            max_batch_size=1,
            max_wait_ms=MAX_WAIT_MS,
            max_block_ms=50.0,
            waits_for_quiet=False,
            group_of=lambda _: GROUP,
            on_thread_start=lambda: None,
            clock_ns=lambda: int(now_ms * 1e6),
        )
        await batcher.submit("the first one runs in the worker thread")
        await batcher.submit("from now on, batches run in the event loop", admitted=GROUP)
        assert batcher.wait_ms(GROUP) == 0
        queued = batcher.enqueue(["a", "b"], is_admitted=True)
        assert batcher.wait_ms(GROUP) == pytest.approx(30.0)
        assert batcher.num_admitted(GROUP) == 8
        await asyncio.gather(*queued)
        assert batcher.wait_ms(GROUP) == 0
        batcher.close()

    asyncio.run(main())
