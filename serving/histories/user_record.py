"""The bytes of one user in the embedded store: a count, times, marks, and the items as JSON.

The layout makes the common cases short: an event that is the newest is appended without decoding, a known
event is found by its mark, and a look-up reads the items with one call. To append without rewriting, a
record may hold a quarter more events than are kept; readers cut it.
"""

import json
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from struct import Struct
from typing import Final

from re4.serving.histories.store import MARK_BYTES, Bounds, Item, StoredEvent

_HEADER: Final = Struct("<BxH")
_FORM: Final = 1
_TIME_BYTES: Final = 8

MAX_EVENTS: Final = 50_000
"""Most events of a user: with the quarter more, their number fits into two bytes."""


def items_of(record: bytes, bounds: Bounds, now_ms: int) -> list[Item]:
    """Return the items of a record that are within the bounds, oldest first."""
    (_, num), start = _HEADER.unpack_from(record), _HEADER.size
    items: list[Item] = json.loads(record[start + num * (_TIME_BYTES + MARK_BYTES) :])
    first = num - bounds.max_events if num > bounds.max_events else 0
    oldest_ms = now_ms - bounds.max_age_ms
    if int.from_bytes(record[start : start + _TIME_BYTES], "little", signed=True) < oldest_ms:
        first = max(first, bisect_right(_times(record, num), oldest_ms))
    return items[first:] if first else items


def events_of(record: bytes, bounds: Bounds, now_ms: int) -> list[StoredEvent]:
    """Return the events of a record that are within the bounds, oldest first."""
    oldest_ms = now_ms - bounds.max_age_ms
    return [event for event in _decoded(record) if event.time_ms > oldest_ms][-bounds.max_events :]


def newest_ms(record: bytes) -> int:
    """Return the time of a record's newest event."""
    _, num = _HEADER.unpack_from(record)
    return _times(record, num)[-1]


def with_events(
    record: bytes | None, new: Sequence[StoredEvent], bounds: Bounds, now_ms: int
) -> tuple[bytes, list[bool]]:
    """Return a record with further events, and for each of those whether it was new."""
    _, num = _HEADER.unpack_from(record) if record else (_FORM, 0)
    times_end = _HEADER.size + num * _TIME_BYTES
    marks_end = times_end + num * MARK_BYTES
    known = (record or b"")[times_end:marks_end]
    are_new, added, last_ms, in_order = [], [], _last_ms(record, num), True
    for event in new:
        is_new = not _has_mark(known, event.mark)
        are_new.append(is_new)
        if is_new:
            added.append(event)
            known += event.mark
            in_order = in_order and event.time_ms >= last_ms
            last_ms = event.time_ms
    if not added:
        return record or _encoded([]), are_new
    if record and in_order and num + len(added) <= bounds.max_events + bounds.max_events // 4:
        return _appended(record, num, added), are_new
    events = [*(_decoded(record) if record else ()), *added]
    events.sort(key=lambda event: event.time_ms)  # stable: events of one time stay in order of arrival
    oldest_ms = now_ms - bounds.max_age_ms
    kept = [event for event in events if event.time_ms > oldest_ms][-bounds.max_events :]
    return _encoded(kept or events[-1:]), are_new


def _appended(record: bytes, num: int, added: Sequence[StoredEvent]) -> bytes:
    times_end = _HEADER.size + num * _TIME_BYTES
    marks_end = times_end + num * MARK_BYTES
    return b"".join(
        (
            _HEADER.pack(_FORM, num + len(added)),
            record[_HEADER.size : times_end],
            _packed([event.time_ms for event in added]),
            record[times_end:marks_end],
            *(event.mark for event in added),
            record[marks_end:-1],
            b",",
            _json([event.item for event in added])[1:],
        )
    )


def _encoded(events: Sequence[StoredEvent]) -> bytes:
    return b"".join(
        (
            _HEADER.pack(_FORM, len(events)),
            _packed([event.time_ms for event in events]),
            *(event.mark for event in events),
            _json([event.item for event in events]),
        )
    )


def _decoded(record: bytes) -> list[StoredEvent]:
    _, num = _HEADER.unpack_from(record)
    times_end = _HEADER.size + num * _TIME_BYTES
    marks_end = times_end + num * MARK_BYTES
    marks = [record[start : start + MARK_BYTES] for start in range(times_end, marks_end, MARK_BYTES)]
    items = json.loads(record[marks_end:])
    return [StoredEvent(*each) for each in zip(_times(record, num), marks, items, strict=True)]


def _times(record: bytes, num: int) -> "array[int]":
    return array("q", record[_HEADER.size : _HEADER.size + num * _TIME_BYTES])


def _last_ms(record: bytes | None, num: int) -> int:
    if not record or not num:
        return 0
    end = _HEADER.size + num * _TIME_BYTES
    return int.from_bytes(record[end - _TIME_BYTES : end], "little", signed=True)


def _packed(times_ms: Sequence[int]) -> bytes:
    return array("q", times_ms).tobytes()


def _json(items: Sequence[Item]) -> bytes:
    return json.dumps(items, ensure_ascii=False, separators=(",", ":")).encode()


def _has_mark(marks: bytes, mark: bytes) -> bool:
    place = marks.find(mark)
    while place % MARK_BYTES and place != -1:  # a mark that begins inside another one is none
        place = marks.find(mark, place + 1)
    return place != -1
