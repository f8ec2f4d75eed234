"""The runner against servers whose delays are known: it reports the percentiles that theory gives.

Bounds from below are exact, because a call cannot be faster than its delay. Those from above leave room
for a busy machine.
"""

import asyncio

import grpc
import pytest
from known_server import REQUEST, VERSION, KnownServer, Pause, reply

from re4.benchmarks.common.resources import OthersMeter
from re4.benchmarks.load_generator.call_stats import SHED, CallStats
from re4.benchmarks.load_generator.client import LoadClient
from re4.benchmarks.load_generator.load import ClientSettings, ClosedLoad, Load, OpenLoad, Timing
from re4.benchmarks.load_generator.outcome import MISSED_DEADLINE
from re4.benchmarks.serve.runner import LoadRunner
from re4.common.errors import ServerError

OPEN = OpenLoad(rate_per_s=200, arrivals="constant")


def measure(
    server: KnownServer, load: Load, *, seconds: float = 1.5, warmup_s: float = 0.3, deadline_s: float = 5.0
) -> CallStats:
    timing = Timing(warmup_s=warmup_s, duration_s=seconds, deadline_s=deadline_s)
    with LoadClient(server.address, [REQUEST], ClientSettings(num_workers=1, num_channels=2)) as client:
        return client.run(load, timing, seed=1, version=VERSION)


def percentile(stats: CallStats, percent: float) -> float:
    found = stats.percentile_ms(percent)
    assert found is not None
    return found


def test_a_constant_delay_is_every_percentile() -> None:
    async def delay(number: int) -> None:
        await asyncio.sleep(0.05)

    with KnownServer(delay) as server:
        stats = measure(server, OpenLoad(rate_per_s=200, arrivals="poisson"))
    assert 50 <= percentile(stats, 1) <= percentile(stats, 50) <= 80
    assert stats.failures.total() == 0
    assert 240 <= stats.num_calls <= 360  # 300 expected, three standard deviations are 52
    assert stats.num_calls + stats.num_warmup == server.num_calls
    assert stats.versions == {VERSION: server.num_calls}


def test_one_percent_of_stalls_shows_above_the_99th_percentile_and_not_below() -> None:
    async def delay(number: int) -> None:
        if number % 100 == 50:
            await asyncio.sleep(0.2)

    with KnownServer(delay) as server:
        stats = measure(server, OPEN)
    assert stats.num_calls == 300
    assert percentile(stats, 99.5) >= 200
    assert percentile(stats, 90) < 100 < 200 <= percentile(stats, 99.9) < 400


def test_a_pause_of_a_second_shows_in_an_open_loop_and_hides_in_a_closed_one() -> None:
    with KnownServer(Pause(after_s=1)) as server:
        opened = measure(server, OPEN, seconds=3)
    with KnownServer(Pause(after_s=1)) as server:
        closed = measure(server, ClosedLoad(concurrency=2), seconds=3)
    # A third of the schedule falls into the pause and waits from 1 s down to nothing.
    assert percentile(opened, 99) >= 900
    assert 480 <= percentile(opened, 100 * 5 / 6) <= 700
    # Both of the closed loop's callers stood still: two of its many calls saw the pause.
    assert closed.num_calls > 400
    assert percentile(closed, 99) < percentile(opened, 99) / 5
    assert closed.answered_us.max is not None
    assert closed.answered_us.max >= 900_000


def test_rejected_calls_count_as_slower_than_any_answer() -> None:
    def status(number: int) -> grpc.StatusCode | None:
        return grpc.StatusCode.RESOURCE_EXHAUSTED if number % 20 == 0 else None

    with KnownServer(status=status) as server:
        stats = measure(server, OPEN, seconds=1, warmup_s=0)
    assert stats.num_calls == 200
    assert stats.failures == {SHED: 10}
    assert stats.failure_details == {SHED: "on purpose"}
    assert stats.percentile_ms(95) is not None
    assert stats.percentile_ms(95.5) is None


def test_a_missed_deadline_is_a_failed_call() -> None:
    async def delay(number: int) -> None:
        if number % 4 == 0:
            await asyncio.sleep(3)

    with KnownServer(delay) as server:
        stats = measure(
            server, OpenLoad(rate_per_s=40, arrivals="constant"), seconds=1, warmup_s=0, deadline_s=1
        )
    assert stats.failures == {MISSED_DEADLINE: 10}
    assert stats.num_calls == 40
    assert stats.percentile_ms(75) is not None
    assert stats.percentile_ms(76) is None


def test_stage_times_and_batch_sizes_come_from_the_replies() -> None:
    with KnownServer() as server:
        stats = measure(server, OPEN, seconds=0.5)
    stages = {stage: histogram.percentile(50) for stage, histogram in stats.stages_us.items()}
    elsewhere = stages.pop("elsewhere")
    assert stages == {"queue": 10, "gather": 20, "encode": 30, "search": 40, "merge": 50}
    assert elsewhere is not None
    assert elsewhere > 0
    assert stats.batch_size.max == 3


def test_another_version_in_the_middle_ends_the_run() -> None:
    other = "20260101T000000Z-00000002"
    with KnownServer(answer=lambda number: reply(VERSION if number < 100 else other)) as server:
        stats = measure(server, OPEN, seconds=20)
    assert stats.stopped == f"the server's version changed in the middle, from {VERSION} to {other}"
    assert stats.versions[VERSION] == 100
    assert server.num_calls < 2000


def test_a_server_that_dies_ends_the_run_and_what_was_counted_stays() -> None:
    with KnownServer() as server:
        timing = Timing(warmup_s=0.1, duration_s=60, deadline_s=5)

        def stop_after_100(num_answered: int, num_failed: int) -> None:
            if num_answered > 100:
                server.stop()

        with LoadClient(server.address, [REQUEST], ClientSettings()) as client:
            stats = client.run(OPEN, timing, seed=1, version=VERSION, watch=stop_after_100)
    assert stats.stopped is not None
    assert "cannot be reached any more" in stats.stopped
    assert stats.answered_us.count > 50
    assert stats.failures["UNAVAILABLE"] > 0
    assert stats.seconds < 50


def test_nobody_listening_is_said_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("re4.benchmarks.load_generator.client.CONNECT_TIMEOUT_S", 0.5)
    with (
        pytest.raises(ServerError, match=r"127\.0\.0\.1:1 .*Is a server running there"),
        LoadClient("127.0.0.1:1", [REQUEST], ClientSettings()),
    ):
        pass


def test_a_run_that_others_disturbed_is_done_again_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([0.5, 0.01, 0.6, 0.7, 0.8, 0.9])
    monkeypatch.setattr(OthersMeter, "read", lambda self: next(busy))
    with KnownServer() as server, LoadClient(server.address, [REQUEST], ClientSettings()) as client:
        runner = LoadRunner(
            client=client,
            timing=Timing(warmup_s=0.0, duration_s=0.1, deadline_s=5.0),
            version=VERSION,
            seed=0,
            ceiling_per_s=1e4,
            server_pids=[],
            check_server=lambda: None,
            max_other_cores=0.1,
        )
        once = runner.measure(OPEN, num_runs=1)
        never = runner.measure(OPEN, num_runs=1)
    assert (once.num_disturbed, [run.other_cores for run in once.runs]) == (1, [0.01])
    assert (never.num_disturbed, [run.other_cores for run in never.runs]) == (3, [0.9])
    assert server.num_calls == 6 * 20


def test_workers_share_the_load_between_them() -> None:
    with KnownServer() as server:
        timing = Timing(warmup_s=0.2, duration_s=1, deadline_s=5)
        with LoadClient(server.address, [REQUEST], ClientSettings(num_workers=2, num_channels=1)) as client:
            stats = client.run(OPEN, timing, seed=1, version=VERSION)
            again = client.run(ClosedLoad(concurrency=3), timing, seed=2, version=VERSION)
    assert stats.num_calls == 200
    assert again.num_calls > 50
