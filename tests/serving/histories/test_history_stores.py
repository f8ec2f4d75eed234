"""One suite for both stores of histories: recorded events are found, bounded, ordered, once, forgotten."""

import threading

import pytest
from conftest import BOUNDS, OpenStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from re4.serving.histories.store import Event, HistoryStore, event_mark

NOW_MS = 10_000_000
_numbers = iter(range(10**9))


def event(user_id: str, time_ms: int, item: str | int, event_id: str = "") -> Event:
    return Event(user_id, time_ms, event_mark(event_id, item), item)


@pytest.fixture
def store(open_store: OpenStore) -> HistoryStore:
    return open_store()


@pytest.fixture
def user() -> str:
    """A user that no other test has: a server keeps its users between the tests."""
    return f"user-{next(_numbers)}-é}}"


def test_a_user_that_nobody_recorded_has_no_history(store: HistoryStore, user: str) -> None:
    assert store.newest_items([user, "", user], NOW_MS) == [[], [], []]
    assert store.newest_events(user, NOW_MS) == []


def test_recorded_events_are_found_oldest_first_by_every_store(open_store: OpenStore, user: str) -> None:
    other = f"{user}-other"
    events = [event(user, NOW_MS - 5, "b"), event(other, NOW_MS, 7), event(user, NOW_MS - 9, "a")]
    assert sum(open_store().append(events, NOW_MS)) == 3
    found = open_store().newest_items([other, user, "nobody"], NOW_MS)
    assert found == [[7], ["a", "b"], []]
    times = [each.time_ms for each in open_store().newest_events(user, NOW_MS)]
    assert times == [NOW_MS - 9, NOW_MS - 5]


def test_item_ids_come_back_as_they_were(store: HistoryStore, user: str) -> None:
    items = ["00123", 123, -(2**63), 2**63 - 1, 'a"b\\', "a\0b", "\n", "é\U0001f600", "[1,2]"]
    store.append([event(user, NOW_MS + place, item) for place, item in enumerate(items)], NOW_MS)
    assert store.newest_items([user], NOW_MS) == [items]
    assert [each.item for each in store.newest_events(user, NOW_MS)] == items


def test_an_event_with_an_id_is_recorded_once(store: HistoryStore, user: str) -> None:
    one = event(user, NOW_MS, "a", "order-1")
    assert sum(store.append([one, one], NOW_MS)) == 1
    assert sum(store.append([one, event(user, NOW_MS + 1, "b", "order-2")], NOW_MS)) == 1
    assert store.newest_items([user], NOW_MS) == [["a", "b"]]
    assert sum(store.append([event(f"{user}-2", NOW_MS, "a", "order-1")], NOW_MS)) == 1


def test_events_without_an_id_are_each_recorded(store: HistoryStore, user: str) -> None:
    assert sum(store.append([event(user, NOW_MS, "a"), event(user, NOW_MS, "a")], NOW_MS)) == 2
    assert store.newest_items([user], NOW_MS) == [["a", "a"]]


def test_events_of_one_time_in_one_call_stay_in_order(store: HistoryStore, user: str) -> None:
    items = [f"item-{place}" for place in range(BOUNDS.max_events)]
    store.append([event(user, NOW_MS, item) for item in items], NOW_MS)
    assert store.newest_items([user], NOW_MS) == [items]


def test_only_the_newest_events_are_kept(store: HistoryStore, user: str) -> None:
    for start in range(0, 90, 9):
        store.append([event(user, NOW_MS + place, place) for place in range(start, start + 9)], NOW_MS)
    store.append([event(user, 1, "too old")], NOW_MS)
    newest = list(range(90 - BOUNDS.max_events, 90))
    assert store.newest_items([user], NOW_MS) == [newest]
    assert [each.item for each in store.newest_events(user, NOW_MS)] == newest


def test_events_expire_by_age(store: HistoryStore, user: str) -> None:
    store.append([event(user, NOW_MS - 10, "old"), event(user, NOW_MS + 500, "new")], NOW_MS)
    later_ms = NOW_MS + BOUNDS.max_age_ms
    assert store.newest_items([user], later_ms) == [["new"]]
    assert [each.item for each in store.newest_events(user, later_ms)] == ["new"]
    assert store.newest_items([user], later_ms + 1000) == [[]]


def test_a_forgotten_user_has_no_history_and_may_come_back(open_store: OpenStore, user: str) -> None:
    store = open_store()
    store.append([event(user, NOW_MS, "a"), event(f"{user}-2", NOW_MS, "b")], NOW_MS)
    store.forget(user, NOW_MS)
    store.forget("nobody", NOW_MS)
    assert open_store().newest_items([user, f"{user}-2"], NOW_MS) == [[], ["b"]]
    store.append([event(user, NOW_MS + 1, "c")], NOW_MS)
    assert open_store().newest_items([user], NOW_MS) == [["c"]]


def test_every_user_is_listed(store: HistoryStore, user: str) -> None:
    users = {f"{user}-{number}": [number, number + 1] for number in range(25)}
    store.append(
        [event(name, NOW_MS + item, item) for name, items in users.items() for item in items], NOW_MS
    )
    listed = {name: [each.item for each in events] for name, events in store.users()}
    assert {name: listed[name] for name in users} == users
    health = store.health()
    assert health.num_users >= 25
    assert health.num_bytes > 0


def test_writers_at_once_lose_nothing(open_store: OpenStore, user: str) -> None:
    def write(number: int) -> None:
        own = open_store()
        for place in range(5):
            own.append([event(user, NOW_MS + place, f"{number}-{place}")], NOW_MS)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    (found,) = open_store().newest_items([user], NOW_MS)
    assert sorted(found) == sorted(f"{number}-{place}" for number in range(4) for place in range(5))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 10), st.integers(0, 40)), min_size=1, max_size=8),
        min_size=1,
        max_size=6,
    )
)
def test_any_order_of_calls_gives_the_newest_distinct_events(
    store: HistoryStore, batches: list[list[tuple[int, int]]]
) -> None:
    """An event's id is its time here, so equal times never differ in order."""
    name = f"any-order-{next(_numbers)}"
    for batch in batches:
        events = [event(name, NOW_MS + time_ms, time_ms, str(time_ms)) for _, time_ms in batch]
        store.append(events, NOW_MS)
    distinct = sorted({time_ms for batch in batches for _, time_ms in batch})
    if len(distinct) <= BOUNDS.max_events:
        assert store.newest_items([name], NOW_MS) == [distinct]
    else:
        assert store.newest_items([name], NOW_MS)[0][-1] == distinct[-1]
