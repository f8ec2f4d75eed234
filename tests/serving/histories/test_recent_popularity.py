"""The popularity fallback follows recorded events, of all servers of a store."""

import time
from pathlib import Path

import pytest
from conftest import OpenStore
from hypothesis import given
from hypothesis import strategies as st
from running_server import PAUSE_S, RunningServer
from small_bundles import SmallVersion

from re4 import RetrievalClient
from re4.common.errors import HistoryStoreError, UsageError
from re4.serving.histories import popularity as recent
from re4.serving.histories.popularity import RecentPopularity
from re4.serving.histories.store import MAX_POPULAR, Event, HistoryStore, decayed
from re4.serving.settings import ServerSettings

HOUR_MS = 3_600_000
NOW_MS = 490_000 * HOUR_MS


def events(*pairs: tuple[str, str], time_ms: int = NOW_MS) -> list[Event]:
    return [Event(user, time_ms, b"12345678", item) for user, item in pairs]


def test_every_store_shares_weights_that_halve(open_store: OpenStore) -> None:
    one, other = open_store(), open_store()
    half_life_ms = 2.0 * HOUR_MS
    assert one.add_popular({}, NOW_MS, half_life_ms) == []
    one.add_popular({"a": 10.0, "b": 9.0, 7: 1.0}, NOW_MS, half_life_ms)
    assert other.add_popular({}, NOW_MS, half_life_ms) == ["a", "b", 7]
    later_ms = NOW_MS + 4 * HOUR_MS  # two half-lives: 2.5, 2.25 and 0.25
    assert other.add_popular({"c": 2.4, "b": 0.3}, later_ms, half_life_ms) == ["b", "a", "c", 7]
    # Weights outlive the periods of the Redis store, and a clock that is set back.
    much_later_ms = NOW_MS + int(70 * half_life_ms)
    one.add_popular({"new": 1e-6}, much_later_ms, half_life_ms)
    assert one.add_popular({}, much_later_ms, half_life_ms)[0] == "new"
    assert set(one.add_popular({"new": 1.0}, NOW_MS, half_life_ms)) >= {"new", "a"}


def test_a_store_keeps_the_largest_weights(open_store: OpenStore) -> None:
    store = open_store()
    counts = {f"item {number}": float(number + 1) for number in range(MAX_POPULAR + 50)}
    store.add_popular(counts, NOW_MS + 9 * 10**9, HOUR_MS)
    found = store.add_popular({}, NOW_MS + 9 * 10**9, HOUR_MS)
    assert found == [f"item {number}" for number in reversed(range(50, MAX_POPULAR + 50))]


@given(st.lists(st.floats(-1e9, 1e9), max_size=5))
def test_no_weight_grows_with_time(ages_ms: list[float]) -> None:
    weights = {"a": 1.0}
    for age_ms in ages_ms:
        now = decayed(weights, age_ms, HOUR_MS)
        assert 0 <= now["a"] <= weights["a"]
        weights = now


class Counting:
    """A store that keeps what it is given."""

    def __init__(self) -> None:
        self.counts: list[dict[object, float]] = []
        self.error: Exception | None = None

    def add_popular(self, counts: dict[object, float], now_ms: int, half_life_ms: float) -> list[object]:
        if self.error is not None:
            raise self.error
        self.counts.append(dict(counts))
        return list(counts)


def test_a_user_counts_once_for_an_item_and_old_events_little(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recent, "_MAX_SENT", 2)
    store: HistoryStore = Counting()  # type: ignore[assignment]
    numbers: list[int] = []
    popularity = RecentPopularity(store, 2.0, numbers.append)
    popularity.count(events(("u", "a"), ("u", "a"), ("v", "a"), ("u", "b"), ("u", "few")), NOW_MS)
    popularity.count(events(("w", "b"), time_ms=NOW_MS - 4 * HOUR_MS), NOW_MS)
    popularity.count(events(("w", "old"), time_ms=NOW_MS - 100 * HOUR_MS), NOW_MS)
    popularity.refresh()
    assert store.counts == [{"a": 2.0, "b": 1.25}]  # type: ignore[attr-defined]
    assert popularity.items == ["a", "b"]
    popularity.count(events(("u", "a")), NOW_MS)
    popularity.refresh()
    assert store.counts[1:] == [{"a": 1.0}]  # type: ignore[attr-defined]
    assert numbers == [2, 1]
    store.error = HistoryStoreError("the store is away")  # type: ignore[attr-defined]
    popularity.refresh()
    popularity.refresh()
    assert popularity.items == ["a"]
    assert caplog.text.count("the store is away") == 1


def test_the_fallback_follows_recorded_events(
    bundles: Path, small_version: SmallVersion, tmp_path: Path
) -> None:
    """A second server of the store knows the popular items as it starts, also one of a live item."""
    options = (
        *("--histories", str(tmp_path / "histories"), "--fallback", "popular", "--popular-half-life-h", "1"),
        *("--num-processes", "1", "--no-fold-in"),
    )
    wanted = [small_version.ids[40], small_version.ids[31], small_version.ids[22]]
    with RunningServer(bundles, *options) as server, RetrievalClient(server.address) as client:
        before = client.retrieve([], 20).item_ids
        users = [f"user {number}" for number in range(6)]
        client.record_events(users, [wanted[0]] * 3 + [wanted[1]] * 2 + [wanted[2]])
    with RunningServer(bundles, *options) as server, RetrievalClient(server.address) as client:
        while (found := client.retrieve([], 20)).item_ids == before:
            time.sleep(PAUSE_S)
        assert found.is_popularity_fallback
        assert found.item_ids[:3] == wanted
        assert found.item_ids[3:] == [id_ for id_ in before if id_ not in wanted][:17]
        assert client.retrieve([], 2, exclude=wanted[:1]).item_ids == wanted[1:]


def test_a_half_life_needs_events() -> None:
    with pytest.raises(UsageError, match="--popular-half-life-h needs recorded events"):
        ServerSettings(popular_half_life_h=1.0, history=ServerSettings().history.__class__(histories="none"))
