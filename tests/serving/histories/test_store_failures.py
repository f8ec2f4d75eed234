"""A store that is away, slow, full or read-only: refused in words, nothing lost, others unaffected."""

import asyncio
import gc
import itertools
import resource
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from running_server import DEADLINE_S, PAUSE_S, RunningServer, wait_until
from small_bundles import SmallVersion
from valkey_server import PROGRAM, ValkeyServer

from re4 import HistoryStoreError, RetrievalClient, ServerError
from re4.common.errors import ShedError, TooLateError, UsageError
from re4.protos.v1 import retrieval_pb2 as pb
from re4.serving.histories.breaker import CircuitBreaker
from re4.serving.histories.lmdb_environment import LmdbEnvironment
from re4.serving.histories.lmdb_store import LmdbStore
from re4.serving.histories.lookups import HistoryLookups
from re4.serving.histories.recorder import Recorder
from re4.serving.histories.settings import HistorySettings
from re4.serving.histories.store import Bounds, Event, Item, LogEntry, event_mark

NOW_MS = 10_000_000
BOUNDS = Bounds(max_events=20, max_age_ms=10**12)

needs_valkey = [PROGRAM] if PROGRAM else []
"""Tests with it are left out where no server is installed; the summary states that."""


class NoMetrics:
    def recorded(self, num_events: int, num_duplicates: int, lags_s: Sequence[float]) -> None: ...

    def store_call(self, operation: str, seconds: float, *, is_error: bool) -> None: ...


class HeldStore:
    """A remote store that answers when the test lets it, and fails when the test says so."""

    is_local = False

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.may_leave = threading.Semaphore(0)
        self.failure = ""
        self.lookups: list[list[str]] = []
        self.appended: list[Event] = []
        self.is_closed = False

    def newest_items(self, user_ids: Sequence[str], now_ms: int) -> list[list[Item]]:
        self.lookups.append(list(user_ids))
        self._hold()
        return [[user_id] for user_id in user_ids]

    def newest_events(self, user_id: str, now_ms: int) -> list[Any]:
        self._hold()
        return []

    def append(self, events: Sequence[Event], now_ms: int, log: Sequence[LogEntry] = ()) -> list[bool]:
        self._hold()
        self.appended += events
        return [True] * len(events)

    def forget(self, user_id: str, now_ms: int) -> None:
        self._hold()

    def users(self) -> Iterator[Any]:
        return iter(())

    def health(self) -> Any:
        return None

    def close(self) -> None:
        self.is_closed = True

    def _hold(self) -> None:
        self.entered.release()
        assert self.may_leave.acquire(timeout=DEADLINE_S)
        if self.failure:
            raise HistoryStoreError(self.failure)


def request(*user_ids: str) -> tuple[pb.RecordEventsRequest, bytes]:
    message = pb.RecordEventsRequest(user_ids=user_ids, items=pb.ItemIds(strings=["a"] * len(user_ids)))
    return message, message.SerializeToString()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(main())  # type: ignore[arg-type]


def test_requests_that_wait_share_a_round_trip() -> None:
    store = HeldStore()

    async def main() -> None:
        lookups = HistoryLookups(store, NoMetrics(), 60_000)
        first = asyncio.create_task(lookups.newest_items(["a"], None))
        assert await asyncio.to_thread(store.entered.acquire)
        others = [asyncio.create_task(lookups.newest_items([name], None)) for name in "bcd"]
        left = asyncio.create_task(lookups.newest_items(["left"], None))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        store.may_leave.release(2)
        assert await first == [["a"]]
        assert await asyncio.gather(*others) == [[["b"]], [["c"]], [["d"]]]
        lookups.close()

    run(main)
    assert store.lookups == [["a"], ["b", "c", "d"]]


def test_a_slow_store_is_left_in_time_and_the_deadline_comes_first() -> None:
    store = HeldStore()

    async def main() -> None:
        lookups = HistoryLookups(store, NoMetrics(), 1)
        with pytest.raises(HistoryStoreError, match=r"did not answer within 1 ms \(--history-timeout-ms\)"):
            await lookups.newest_items(["a"], None)
        with pytest.raises(HistoryStoreError, match="did not answer"):
            await lookups.newest_events("a", 10.0)
        patient = HistoryLookups(store, NoMetrics(), 60_000)
        with pytest.raises(TooLateError, match="before the store of histories answered"):
            await patient.newest_items(["a"], 0.001)
        store.may_leave.release(10)
        lookups.close()
        patient.close()

    run(main)


def test_a_store_that_failed_is_tried_rarely_and_again_as_soon_as_it_answers() -> None:
    now_s = [0.0]
    breaker = CircuitBreaker(lambda: now_s[0])
    breaker.check()
    for delay_s in (0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0):
        breaker.failed(HistoryStoreError("away"))
        if delay_s:
            with pytest.raises(HistoryStoreError, match="away"):
                breaker.check()
        now_s[0] += delay_s
        breaker.check()
    breaker.succeeded()
    assert breaker.failure == ""
    breaker.check()


def test_a_commit_is_shared_late_calls_are_not_recorded_and_a_close_waits() -> None:
    store = HeldStore()

    async def main() -> None:
        recorder = Recorder(store, NoMetrics(), max_wait_ms=60_000)
        first = asyncio.create_task(recorder.record(*request("a"), None))
        assert await asyncio.to_thread(store.entered.acquire)
        shared = [asyncio.create_task(recorder.record(*request(name, name), None)) for name in "bc"]
        late = asyncio.create_task(recorder.record(*request("late"), 0.0))
        await asyncio.sleep(0)
        store.may_leave.release(2)
        assert await first == 1
        assert await asyncio.gather(*shared) == [2, 2]
        with pytest.raises(TooLateError, match="none was recorded"):
            await late
        last = asyncio.create_task(recorder.record(*request("last"), None))
        await asyncio.sleep(0)
        store.may_leave.release()
        recorder.close()
        assert await last == 1

    run(main)
    assert [event.user_id for event in store.appended] == ["a", "b", "b", "c", "c", "last"]
    assert store.is_closed


def test_calls_beyond_the_queue_are_rejected_with_advice() -> None:
    store = HeldStore()

    async def main() -> None:
        recorder = Recorder(store, NoMetrics(), max_wait_ms=0.01)
        waiting = [asyncio.create_task(recorder.record(*request("a", "b"), None)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ShedError) as shed:
            recorder.check(1, None)
        assert shed.value.retry_after_ms is not None
        with pytest.raises(TooLateError, match="none was recorded"):
            recorder.check(1, 0.0)
        store.may_leave.release(4)
        await asyncio.gather(*waiting)
        recorder.check(1, None)
        recorder.close()

    run(main)


def test_an_append_that_fails_fails_its_calls_and_the_next_try_heals() -> None:
    store = HeldStore()

    async def main() -> None:
        recorder = Recorder(store, NoMetrics(), max_wait_ms=60_000)
        store.failure = "the disk is full"
        store.may_leave.release()
        with pytest.raises(HistoryStoreError, match="the disk is full"):
            await recorder.record(*request("a"), None)
        assert recorder.breaker.failure == "the disk is full"
        # A call that was queued before is refused without another try, and does not put the next one off.
        recorder.breaker._retry_at_s = due_s = time.monotonic() + 1e6
        with pytest.raises(HistoryStoreError, match="the disk is full"):
            await recorder.record(*request("b"), None)
        assert recorder.breaker._retry_at_s == due_s
        recorder.breaker._retry_at_s = 0.0
        store.failure = ""
        store.may_leave.release(2)
        await recorder.record(*request("a"), None)
        await recorder.forget("a", None)
        assert recorder.breaker.failure == ""
        recorder.close()

    run(main)


def events(count: int, user_id: str = "u") -> list[Event]:
    return [Event(user_id, NOW_MS + place, event_mark("", "x" * 200), "x" * 200) for place in range(count)]


def fill(store: LmdbStore) -> tuple[int, str]:
    """Record users until the store refuses: their number, and the reason."""
    for number in itertools.count():
        try:
            store.append(events(5, f"user-{number}"), NOW_MS)
        except HistoryStoreError as error:
            return number, str(error)
    raise AssertionError


def test_a_full_store_refuses_in_words_and_loses_nothing(tmp_path: Path) -> None:
    store = LmdbStore(LmdbEnvironment(tmp_path, 1 << 20), BOUNDS)
    recorded, failure = fill(store)
    assert "has reached 1,048,576 bytes (--max-history-bytes)" in failure
    assert recorded > 100
    found = store.newest_items([f"user-{number}" for number in range(recorded)], NOW_MS)
    assert all(len(items) == 5 for items in found)
    store.close()
    larger = LmdbStore(LmdbEnvironment(tmp_path, 2 << 20), BOUNDS)
    larger.append(events(5, "one more"), NOW_MS)
    assert larger.health().num_users == recorded + 1


def test_a_closed_folder_that_an_exception_still_holds_is_opened_again(tmp_path: Path) -> None:
    first = LmdbStore(LmdbEnvironment(tmp_path, 1 << 20), BOUNDS)
    gc.disable()
    try:
        first.append(events(5, "t"), NOW_MS)
        held: list[object] = [first._environment._opened]
        held.append(held)
        first.close()
        del held
        LmdbStore(LmdbEnvironment(tmp_path, 2 << 20), BOUNDS).append(events(5, "u"), NOW_MS)
    finally:
        gc.enable()


def test_a_full_disk_refuses_in_words_loses_nothing_and_heals(tmp_path: Path) -> None:
    """The limit of a file's size stands for the disk: LMDB's writes fail in the same way."""
    store = LmdbStore(LmdbEnvironment(tmp_path, 1 << 30), BOUNDS)
    store.append(events(5, "first"), NOW_MS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.health().num_bytes + (64 << 10), before[1]))
    try:
        recorded, failure = fill(store)
        assert "cannot be written" in failure
        assert store.newest_items(["first"], NOW_MS)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    store.append(events(5, "last"), NOW_MS)
    users = {user_id for user_id, _ in store.users()}
    assert users == {"first", "last", *(f"user-{number}" for number in range(recorded))}


def test_a_folder_that_cannot_be_written_refuses_in_words_and_heals(tmp_path: Path) -> None:
    place = tmp_path / "histories"
    place.write_text("a file in place of the folder")
    store = LmdbStore(LmdbEnvironment(place, 1 << 30), BOUNDS)
    assert store.newest_items(["u"], NOW_MS) == [[]]
    with pytest.raises(HistoryStoreError, match=r"histories cannot be written: .*File exists"):
        store.append(events(1), NOW_MS)
    place.unlink()
    store.append(events(1), NOW_MS)
    assert len(store.newest_items(["u"], NOW_MS)[0]) == 1


def test_a_folder_that_was_removed_is_begun_anew(tmp_path: Path) -> None:
    import shutil

    store = LmdbStore(LmdbEnvironment(tmp_path / "histories", 1 << 30), BOUNDS)
    store.append(events(1), NOW_MS)
    shutil.rmtree(tmp_path / "histories")
    assert store.newest_items(["u"], NOW_MS) == [[]]
    store.append(events(2, "v"), NOW_MS)
    assert [len(items) for items in store.newest_items(["u", "v"], NOW_MS)] == [0, 2]


@pytest.mark.parametrize("shift_ms", [-86_400_000, 86_400_000])
def test_a_clock_that_jumps_a_day_loses_nothing(tmp_path: Path, shift_ms: int) -> None:
    now_ms = 20_000 * 86_400_000
    store = LmdbStore(LmdbEnvironment(tmp_path, 1 << 30), BOUNDS)
    before = Event("u", now_ms, event_mark("", "a"), "a")
    during = Event("u", now_ms + shift_ms, event_mark("", "b"), "b")
    after = Event("u", now_ms + 1, event_mark("", "c"), "c")
    for event in (before, during, after):
        store.append([event], event.time_ms)
    expected = ["b", "a", "c"] if shift_ms < 0 else ["a", "c", "b"]
    assert store.newest_items(["u"], now_ms + 2) == [expected]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"histories": "redis://user:secret@host:6379"}, "--histories-password-file"),
        ({"histories": "redis://host?password=secret"}, "--histories-password-file"),
        ({"histories": "memcached://host"}, "a store's scheme is one of redis, "),
        ({"histories_password_file": Path("file")}, "is for a Redis server"),
    ],
    ids=range(4),
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        HistorySettings(**settings)
    assert "secret" not in str(error.value).replace("redis://user:secret@host:6379", "")


@pytest.mark.parametrize("_program", needs_valkey)
def test_a_redis_server_that_is_away_slow_and_back(
    _program: str, small_version: SmallVersion, bundles: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In the long form, it is away for a minute and slow for a minute."""
    away_s = 60.0 if request.config.getoption("--hardening") == "long" else 0.0
    item = str(small_version.ids[3])
    (tmp_path / "password").write_text("a-password\n")
    options = ("--history-fallback", "request", "--history-timeout-ms", "200")
    with ValkeyServer(tmp_path, "--requirepass", "a-password") as valkey:
        store = ("--histories", valkey.url, "--event-log", str(tmp_path / "events"))
        password = ("--histories-password-file", str(tmp_path / "password"))
        with (
            RunningServer(bundles, *store, *password, *options) as lenient,
            RunningServer(bundles, *store, *password, "--history-timeout-ms", "200") as strict,
            RetrievalClient(lenient.address) as one,
            RetrievalClient(strict.address) as other,
        ):
            wait_until(lambda: one.record_events(["u"], [item]) == 1)
            # Found by another server in the next call.
            expected = one.retrieve([item]).item_ids
            wait_until(lambda: other.retrieve(user_id="u").item_ids == expected)
            for cause in ("away", "slow"):
                if cause == "away":
                    valkey.stop()
                else:
                    valkey.signal(signal.SIGSTOP)
                wait_until(lambda: one.retrieve([item], user_id="u").is_history_missing)
                found = one.retrieve([item], user_id="u")
                assert (found.is_history_missing, found.item_ids) == (True, expected)
                (batch,) = one.retrieve_batch([[item]], user_ids=["u"])
                assert batch.is_history_missing
                with pytest.raises(ServerError, match=r"UNAVAILABLE.*the store of histories"):
                    other.retrieve([item], user_id="u")
                with pytest.raises(ServerError, match=r"UNAVAILABLE.*the store of histories"):
                    other.record_events(["u"], [item])
                assert other.retrieve([item]).item_ids == expected  # without a user id
                assert "the store of histories" in other.info()["history_failure"]
                until_s = time.monotonic() + away_s
                while time.monotonic() < until_s:
                    assert one.retrieve([item], user_id="u").item_ids == expected
                    assert other.retrieve([item]).item_ids == expected
                    with pytest.raises(ServerError, match=r"UNAVAILABLE.*the store of histories"):
                        other.record_events(["u"], [item])
                    time.sleep(PAUSE_S)
                if cause == "away":
                    valkey.start()
                else:
                    valkey.signal(signal.SIGCONT)
                wait_until(lambda: other.record_events(["u"], [item]) == 1)
                wait_until(lambda: not one.retrieve([item], user_id="u").is_history_missing)
                wait_until(lambda: other.retrieve(user_id="u").item_ids == expected)
                assert other.info()["history_failure"] == ""
        assert "a-password" not in lenient.log + strict.log


def test_the_time_of_a_lone_commit_is_not_taken_for_that_of_each_event() -> None:
    """A slow disk makes a lone event wait; calls of many events were rejected for its sake."""
    store = HeldStore()

    async def main() -> None:
        recorder = Recorder(store, NoMetrics(), max_wait_ms=1_000)
        recorder._ms_per_commit = 500.0
        store.may_leave.release(2)
        await recorder.record(*request("a"), None)
        waiting = asyncio.create_task(recorder.record(*request(*["u"] * 900), None))
        await asyncio.sleep(0)
        recorder.check(100, None)
        await waiting
        recorder.close()

    run(main)
