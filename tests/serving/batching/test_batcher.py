"""Batches form while one runs; requests whose callers left are not run. Driven by events, never by time."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from re4.common.errors import ShedError
from re4.serving.batching.batcher import Batcher, QueuedRequest
from re4.serving.batching.queue import BatchGroup


class SteppedPipeline:
    """A fake pipeline that records each batch, and stays in it until the test releases it."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()
        self.entered = threading.Semaphore(0)
        self.may_leave = threading.Semaphore(0)

    def run(self, queries: Sequence[str]) -> list[str | Exception]:
        self.batches.append(list(queries))
        self.threads.add(threading.get_ident())
        self.entered.release()
        assert self.may_leave.acquire(timeout=30)
        if "crash" in queries:
            raise RuntimeError("the whole batch failed")
        return [ValueError(query) if query.startswith("bad") else query.upper() for query in queries]

    async def is_busy(self) -> None:
        """Wait until the pipeline is in the next batch."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=30)


def drive(
    test: Callable[[SteppedPipeline, Batcher[str, str]], Coroutine[Any, Any, None]], max_batch_size: int = 4
) -> SteppedPipeline:
    pipeline = SteppedPipeline()

    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(
            pipeline.run,
            max_batch_size=max_batch_size,
            max_wait_ms=1e9,
            group_of=lambda query: BatchGroup(version=query[-1].isdigit(), relative_cost=1),
            on_thread_start=lambda: None,
        )
        try:
            await test(pipeline, batcher)
        finally:
            pipeline.may_leave.release(100)
            batcher.close()

    asyncio.run(main())
    return pipeline


async def submit(batcher: Batcher[str, str], *queries: str) -> list["asyncio.Task[tuple[str, int]]"]:
    tasks = [asyncio.create_task(batcher.submit(query)) for query in queries]
    await asyncio.sleep(0)  # one turn of the loop: every task has submitted
    return tasks


def test_requests_that_queue_while_a_batch_runs_are_the_next_batch() -> None:
    async def test(pipeline: SteppedPipeline, batcher: Batcher[str, str]) -> None:
        first = await submit(batcher, "a")
        await pipeline.is_busy()
        later = await submit(batcher, "b", "c", "d", "e", "f")
        pipeline.may_leave.release(3)
        results = await asyncio.gather(*first, *later)
        assert [result for result, _ in results] == ["A", "B", "C", "D", "E", "F"]
        assert all(queue_us >= 0 for _, queue_us in results)

    pipeline = drive(test)
    assert pipeline.batches == [["a"], ["b", "c", "d", "e"], ["f"]]
    assert len(pipeline.threads) == 1
    assert threading.get_ident() not in pipeline.threads


def test_a_lone_query_is_run_at_once() -> None:
    async def test(pipeline: SteppedPipeline, batcher: Batcher[str, str]) -> None:
        for query in ("a", "b"):
            (task,) = await submit(batcher, query)
            await pipeline.is_busy()
            pipeline.may_leave.release()
            assert (await task)[0] == query.upper()

    assert drive(test).batches == [["a"], ["b"]]


def test_queries_that_arrive_together_share_a_batch() -> None:
    async def test(pipeline: SteppedPipeline, batcher: Batcher[str, str]) -> None:
        pipeline.may_leave.release()
        await asyncio.gather(*await submit(batcher, "a", "b", "c"))

    assert drive(test).batches == [["a", "b", "c"]]


def test_cancelled_queries_are_never_run() -> None:
    async def test(pipeline: SteppedPipeline, batcher: Batcher[str, str]) -> None:
        first = await submit(batcher, "a")
        await pipeline.is_busy()
        kept, left, other, last = await submit(batcher, "b", "c", "d", "e")
        left.cancel()
        last.cancel()
        await asyncio.wait({left, last})
        pipeline.may_leave.release(2)
        await asyncio.gather(*first, kept, other)

    assert drive(test).batches == [["a"], ["b", "d"]]


def test_when_all_have_left_the_worker_thread_rests_and_works_again() -> None:
    async def test(pipeline: SteppedPipeline, batcher: Batcher[str, str]) -> None:
        first = await submit(batcher, "a")
        await pipeline.is_busy()
        (left,) = await submit(batcher, "b")
        left.cancel()
        await asyncio.wait({left})
        pipeline.may_leave.release(2)
        await asyncio.gather(*first)
        assert (await (await submit(batcher, "c"))[0])[0] == "C"

    assert drive(test).batches == [["a"], ["c"]]


def test_cancelling_during_the_own_batch_affects_no_other_request() -> None:
    async def test(pipeline: SteppedPipeline, batcher: Batcher[str, str]) -> None:
        left, kept = await submit(batcher, "a", "b")
        await pipeline.is_busy()
        left.cancel()
        await asyncio.wait({left})
        pipeline.may_leave.release()
        assert (await kept)[0] == "B"

    assert drive(test).batches == [["a", "b"]]


def test_queries_of_another_version_have_a_batch_of_their_own() -> None:
    async def test(pipeline: SteppedPipeline, batcher: Batcher[str, str]) -> None:
        pipeline.may_leave.release(3)
        await asyncio.gather(*await submit(batcher, "a", "b", "1", "2", "c"))

    assert drive(test).batches == [["a", "b", "c"], ["1", "2"]]


def test_an_error_in_place_of_a_result_concerns_that_query_alone() -> None:
    async def test(pipeline: SteppedPipeline, batcher: Batcher[str, str]) -> None:
        pipeline.may_leave.release()
        good, bad = await submit(batcher, "good", "bad-b")
        assert (await good)[0] == "GOOD"
        with pytest.raises(ValueError, match="bad-b"):
            await bad

    drive(test)


def test_a_batch_that_fails_as_a_whole_tells_all_and_does_not_stop_the_worker_thread() -> None:
    async def test(pipeline: SteppedPipeline, batcher: Batcher[str, str]) -> None:
        pipeline.may_leave.release(2)
        crashed = await asyncio.gather(*await submit(batcher, "a", "crash"), return_exceptions=True)
        assert [str(error) for error in crashed] == ["the whole batch failed"] * 2
        assert (await (await submit(batcher, "c"))[0])[0] == "C"

    drive(test)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda queries: next(iter(())), "StopIteration"),  # no future takes this exception
        (lambda queries: [StopIteration()] * len(queries), "StopIteration"),
        (lambda queries: [], "2 requests have 0 results"),
    ],
    ids=["raises StopIteration", "returns StopIteration", "returns too few results"],
)
def test_no_fault_of_a_batch_leaves_its_callers_waiting(run: Any, message: str) -> None:
    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(
            run,
            max_batch_size=4,
            max_wait_ms=1e9,
            group_of=lambda query: BatchGroup(version=0, relative_cost=1),
            on_thread_start=lambda: None,
        )
        try:
            async with asyncio.timeout(30):
                for outcome in await asyncio.gather(*await submit(batcher, "a", "b"), return_exceptions=True):
                    assert isinstance(outcome, RuntimeError)
                    assert message in str(outcome)
        finally:
            batcher.close()

    asyncio.run(main())


def test_calls_that_the_transport_hands_over_one_by_one_share_a_batch() -> None:
    async def test(pipeline: SteppedPipeline, batcher: Batcher[str, str]) -> None:
        pipeline.may_leave.release(10)
        await asyncio.gather(*await submit(batcher, "a", "b"))  # there is company
        tasks = []
        for query in ("c", "d", "e"):
            tasks += await submit(batcher, query)
            for _ in range(4):  # turns of the event loop without a new call
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    assert drive(test).batches == [["a", "b"], ["c", "d", "e"]]


def test_a_full_batch_starts_at_once() -> None:
    async def test(pipeline: SteppedPipeline, batcher: Batcher[str, str]) -> None:
        first = await submit(batcher, "a", "b")
        await pipeline.is_busy()
        rest = await submit(batcher, "c", "d", "e", "f", "g")
        pipeline.may_leave.release(10)
        await asyncio.gather(*first, *rest)

    assert drive(test).batches == [["a", "b"], ["c", "d", "e", "f"], ["g"]]


class Timed:
    """A pipeline that takes a millisecond for each query, by a clock of its own."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.batches: list[tuple[int, bool]] = []
        self._main = threading.get_ident()

    def run(self, queries: Sequence[str]) -> list[str | Exception]:
        self.batches.append((len(queries), threading.get_ident() == self._main))
        self.now_ns += len(queries) * 1_000_000
        if "crash" in queries:
            raise RuntimeError("the whole batch failed")
        return list(queries)


def drive_timed(
    test: Callable[[Batcher[str, str]], Coroutine[Any, Any, None]],
    *,
    max_wait_ms: float = 1e9,
    max_block_ms: float = 2.0,
    has_own_core: bool = True,
) -> list[tuple[int, bool]]:
    """The batches that were run: their sizes, and whether the event loop's own thread ran them."""
    timed, started = Timed(), set[int]()

    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(
            timed.run,
            max_batch_size=8,
            max_wait_ms=max_wait_ms,
            max_block_ms=max_block_ms,
            has_own_core=has_own_core,
            group_of=lambda _: BatchGroup(version=0, relative_cost=1),
            on_thread_start=lambda: started.add(threading.get_ident()),
            clock_ns=lambda: timed.now_ns,
        )
        try:
            await test(batcher)
        finally:
            batcher.close()

    asyncio.run(main())
    assert len(started) == 2, "each thread that may run a batch was prepared"
    return timed.batches


async def quiet() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_short_batches_run_in_the_event_loop() -> None:
    """The first batch is run by the worker thread: there is no estimate yet."""

    async def test(batcher: Batcher[str, str]) -> None:
        for queries in ("a", "b", "cd", "efg", "h"):
            tasks = await submit(batcher, *queries)
            assert [(await task)[0] for task in tasks] == list(queries)

    assert drive_timed(test) == [(1, False), (1, True), (2, True), (3, False), (1, True)]


@pytest.mark.parametrize("max_wait_ms", [3.0, 10.0])
def test_rejected_calls_that_retry_do_not_keep_batches_from_starting(
    max_wait_ms: float,
) -> None:
    num_rejected = 0

    async def call(batcher: Batcher[str, str], query: str) -> None:
        nonlocal num_rejected
        while True:
            try:
                await batcher.submit(query)
                return
            except ShedError:
                num_rejected += 1
                await asyncio.sleep(0)

    async def test(batcher: Batcher[str, str]) -> None:
        await batcher.submit("a")
        tasks = []
        for number in range(400):
            tasks.append(asyncio.create_task(call(batcher, str(number))))
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*tasks), 30)

    batches = drive_timed(test, max_wait_ms=max_wait_ms, max_block_ms=6.0, has_own_core=False)[1:]
    assert {size for size, _ in batches[1:-10]} == {min(6, int(max_wait_ms) + 1)}
    assert all(is_here for _, is_here in batches)
    assert num_rejected > 20


def test_a_request_after_a_quiet_time_starts_at_once() -> None:
    async def test(batcher: Batcher[str, str]) -> None:
        await asyncio.gather(*await submit(batcher, "a", "b"))
        await quiet()
        alone = await submit(batcher, "c")
        for _ in range(2):
            await asyncio.sleep(0)
        assert alone[0].done()
        company = await submit(batcher, "d")
        await asyncio.sleep(0)
        company += await submit(batcher, "e")
        await asyncio.gather(*company)

    assert [size for size, _ in drive_timed(test)] == [2, 1, 2]


def test_a_batch_that_fails_in_the_event_loop_stops_nothing() -> None:
    async def test(batcher: Batcher[str, str]) -> None:
        await batcher.submit("a")
        with pytest.raises(RuntimeError, match="the whole batch failed"):
            await batcher.submit("crash")
        assert (await batcher.submit("b"))[0] == "b"

    assert drive_timed(test) == [(1, False), (1, True), (1, True)]


def test_a_queue_does_not_keep_the_event_loop_from_its_other_work() -> None:
    """Between two batches that it runs itself, the event loop has its turn."""

    async def test(batcher: Batcher[str, str]) -> None:
        await batcher.submit("a")
        turns = 0

        async def other_work() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        other = asyncio.create_task(other_work())
        seen = []
        for future in batcher.enqueue([str(number) for number in range(24)]):
            await future
            seen.append(turns)
        other.cancel()
        assert len(set(seen)) >= 3

    assert [size for size, _ in drive_timed(test)] == [1, 8, 8, 8]


def test_a_request_is_run_alone_where_its_batch_is_known_to_be_short_and_none_waits() -> None:
    group = BatchGroup(version=0, relative_cost=1)
    runs: list[list[str]] = []

    def run(queries: Sequence[str]) -> list[str | Exception]:
        runs.append(list(queries))
        return [query.upper() for query in queries]

    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(
            run,
            max_batch_size=4,
            max_wait_ms=1e9,
            max_block_ms=1e9,
            waits_for_quiet=False,
            group_of=lambda _: group,
            on_thread_start=lambda: None,
        )
        first, alone, waiting, beside = (
            QueuedRequest[str, str](query, group, batcher._queue, 0, float("inf")) for query in "abcd"
        )
        assert not batcher.run_alone(first), "it is not known how long it takes"
        batcher.add(first)
        batcher.start()
        assert await first == "A"
        assert batcher.run_alone(alone)
        assert alone.result() == "B"
        batcher.add(waiting)
        batcher._start_soon()
        assert not batcher.run_alone(beside)
        batcher.add(beside)
        assert await waiting == "C"
        assert await beside == "D"
        batcher.close()

    asyncio.run(main())
    assert runs == [["a"], ["b"], ["c", "d"]]
