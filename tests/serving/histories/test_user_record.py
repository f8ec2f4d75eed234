"""The bytes of one user: whatever comes in whatever order, a record holds the newest events, each once."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from re4.serving.histories.store import Bounds, StoredEvent, event_mark
from re4.serving.histories.user_record import events_of, items_of, newest_ms, with_events

NOW_MS = 1_000_000
BOUNDS = Bounds(max_events=8, max_age_ms=NOW_MS)

ITEMS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(min_size=1, max_size=5))
EVENTS = st.builds(
    lambda time_ms, number, item: StoredEvent(time_ms, event_mark(str(number), item), item),
    st.integers(1, NOW_MS),
    st.integers(0, 30),
    ITEMS,
)


def expected(batches: Sequence[Sequence[StoredEvent]]) -> list[StoredEvent]:
    """The newest distinct events, by plain code; no event has come twice after it was dropped."""
    seen: dict[bytes, StoredEvent] = {}
    for batch in batches:
        for event in batch:
            seen.setdefault(event.mark, event)
    return sorted(seen.values(), key=lambda event: event.time_ms)[-BOUNDS.max_events :]


@given(st.lists(st.lists(EVENTS, min_size=1, max_size=6), min_size=1, max_size=8))
def test_a_record_holds_the_newest_distinct_events_in_order(batches: list[list[StoredEvent]]) -> None:
    record = None
    for batch in batches:
        record, are_new = with_events(record, batch, BOUNDS, NOW_MS)
        assert len(are_new) == len(batch)
    distinct = {event.mark for batch in batches for event in batch}
    if len(distinct) <= BOUNDS.max_events:  # an event that was dropped may come again, as a new one
        assert events_of(record, BOUNDS, NOW_MS) == expected(batches)
    found = events_of(record, BOUNDS, NOW_MS)
    assert items_of(record, BOUNDS, NOW_MS) == [event.item for event in found]
    assert (
        newest_ms(record) == found[-1].time_ms == max(event.time_ms for batch in batches for event in batch)
    )
    assert [event.time_ms for event in found] == sorted(event.time_ms for event in found)
    assert len({event.mark for event in found}) == len(found) <= BOUNDS.max_events


def test_a_known_event_is_not_new_and_changes_nothing() -> None:
    one = StoredEvent(10, event_mark("a", "x"), "x")
    record, are_new = with_events(None, [one, one], BOUNDS, NOW_MS)
    assert are_new == [True, False]
    again, are_new = with_events(record, [one], BOUNDS, NOW_MS)
    assert (again, are_new) == (record, [False])


def test_a_mark_that_begins_inside_another_one_is_another_event() -> None:
    both = StoredEvent(10, b"abcdefgh", "x"), StoredEvent(11, b"ijklmnop", "y")
    record, _ = with_events(None, both, BOUNDS, NOW_MS)
    _, are_new = with_events(record, [StoredEvent(12, b"efghijkl", "z")], BOUNDS, NOW_MS)
    assert are_new == [True]


def test_events_expire_by_age() -> None:
    bounds = Bounds(max_events=8, max_age_ms=100)
    events = [StoredEvent(time_ms, event_mark("", "x"), time_ms) for time_ms in (900, 950, 1000)]
    record, _ = with_events(None, events, bounds, 1000)
    assert items_of(record, bounds, 1040) == [950, 1000]
    assert items_of(record, bounds, 2000) == []
    assert [event.item for event in events_of(record, bounds, 1060)] == [1000]


def test_a_record_grows_by_a_quarter_at_most() -> None:
    record = None
    for number in range(100):
        event = StoredEvent(number + 1, event_mark("", number), number)
        record, _ = with_events(record, [event], BOUNDS, NOW_MS)
        assert int.from_bytes(record[2:4], "little") <= BOUNDS.max_events * 1.25
    assert items_of(record, BOUNDS, NOW_MS) == list(range(92, 100))
