"""The event log: every recorded call, durable in LMDB until it is written to a part of parquet.

An entry is the call as it came, so that recording costs no conversion. A rotation turns a range of entries
into one part. The range is noted before the part is written and removed after it, so a rotation that dies
is repeated with the same range and the same file name: no event is lost, and none is written twice.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from struct import Struct
from typing import Any, Final, NamedTuple

from re4.protos.v1 import retrieval_pb2
from re4.serving.histories.lmdb_environment import LmdbEnvironment
from re4.serving.histories.store import Item

_EVENTS: Final = Struct("<cqI")
"""Kind, time of receipt, and how many events are left out because they were known; their places follow."""
_TOMBSTONE: Final = Struct("<cqq")
"""Kind, time of receipt, and the time up to which events are forgotten; a digest of the user id follows."""
_RANGE: Final = Struct(">QQ")
_KEY: Final = Struct(">Q")
_PLACE: Final = Struct("<I")

_MAX_PART_BYTES: Final = 32 << 20
"""Entries of one part."""


class LoggedEvent(NamedTuple):
    """An event of the log."""

    user_id: str
    item: Item
    time_ms: int


class Tombstone(NamedTuple):
    """A user's wish to be forgotten."""

    user_sha256: str
    """Hexadecimal SHA-256 of the user id: the note itself names nobody."""
    until_ms: int
    """Events up to this time are forgotten."""


class Part(NamedTuple):
    """A range of the log, without the events that a tombstone in the same range forgets."""

    name: str
    """Of its file, without the suffix: the day of the first entry, the log, and its first number."""
    events: list[LoggedEvent]
    tombstones: list[Tombstone]


def user_digest(user_id: str) -> bytes:
    """Return the digest that stands for a user in tombstones."""
    return hashlib.sha256(user_id.encode()).digest()


class EventLog:
    """The log in one environment. Threads and processes may share it."""

    def __init__(self, environment: LmdbEnvironment) -> None:
        """Use an environment; nothing is read yet."""
        self._environment = environment

    def add_call(
        self,
        transaction: Any,
        databases: dict[bytes, Any],
        received_ms: int,
        request: bytes,
        places_left_out: Sequence[int] = (),
    ) -> None:
        """Add a call to the log, in a write transaction.

        Args:
            transaction: Of the environment.
            databases: Its databases.
            received_ms: Time of receipt.
            request: A `RecordEventsRequest`.
            places_left_out: Places of its events that were recorded before.
        """
        places = b"".join(map(_PLACE.pack, places_left_out))
        head = _EVENTS.pack(b"E", received_ms, len(places_left_out))
        self._add(transaction, databases, b"".join((head, places, request)))

    def add_tombstone(
        self, transaction: Any, databases: dict[bytes, Any], received_ms: int, user_id: str, until_ms: int
    ) -> None:
        """Add the note that a user's events up to a time are forgotten, in a write transaction."""
        value = _TOMBSTONE.pack(b"F", received_ms, until_ms) + user_digest(user_id)
        self._add(transaction, databases, value)

    def num_pending(self) -> int:
        """Return how many entries wait to be written to a part."""
        with self._environment.reading(b"log") as transaction:
            return 0 if transaction is None else int(transaction.stat()["entries"])

    def rotate(self, write: Callable[[Part], None]) -> int:
        """Write the oldest entries to a part, and remove them. One process at a time may rotate a log.

        Args:
            write: Writes a part, whole or not at all; a part that exists already is replaced by the same.

        Returns:
            Number of entries written; 0 where the log is empty.

        Raises:
            HistoryStoreError: the environment cannot be used.
        """
        if not self.num_pending():
            return 0
        with self._environment.writing() as (transaction, databases):
            first, last = self._note_range(transaction, databases)
            store = bytes(transaction.get(b"store", db=databases[b"meta"])).decode()
        write(self._part(first, last, store))
        with self._environment.writing() as (transaction, databases):
            for number in range(first, last + 1):
                transaction.delete(_KEY.pack(number), db=databases[b"log"])
            transaction.delete(b"rotating", db=databases[b"meta"])
        return last - first + 1

    def _add(self, transaction: Any, databases: dict[bytes, Any], value: bytes) -> None:
        meta = databases[b"meta"]
        next_number = transaction.get(b"next", db=meta)
        if next_number is None:
            transaction.put(b"store", secrets.token_hex(4).encode(), db=meta)
            next_number = _KEY.pack(1)
        transaction.put(next_number, value, db=databases[b"log"], append=True)
        transaction.put(b"next", _KEY.pack(_KEY.unpack(next_number)[0] + 1), db=meta)

    def _note_range(self, transaction: Any, databases: dict[bytes, Any]) -> tuple[int, int]:
        """Return the numbers of the first and last entry of the next part, noted in the environment."""
        meta = databases[b"meta"]
        noted = transaction.get(b"rotating", db=meta)
        if noted is not None:
            first, last = _RANGE.unpack(noted)
            return first, last
        num_bytes, first, last, first_day = 0, 0, 0, ""
        for key, value in transaction.cursor(db=databases[b"log"]):
            num_bytes += len(value)
            (last_seen,), day = _KEY.unpack(key), _day_of(value)
            if not first:
                first, first_day = last_seen, day
            elif num_bytes > _MAX_PART_BYTES or day != first_day:
                break
            last = last_seen
        transaction.put(b"rotating", _RANGE.pack(first, last), db=meta)
        return first, last

    def _part(self, first: int, last: int, store: str) -> Part:
        events: list[LoggedEvent] = []
        tombstones: list[Tombstone] = []
        with self._environment.reading(b"log") as transaction:
            entries = [bytes(transaction.get(_KEY.pack(number))) for number in range(first, last + 1)]
        for entry in entries:
            if entry[:1] == b"F":
                _, _, until_ms = _TOMBSTONE.unpack_from(entry)
                digest = entry[_TOMBSTONE.size :]
                events = [
                    event
                    for event in events
                    if event.time_ms > until_ms or user_digest(event.user_id) != digest
                ]
                tombstones.append(Tombstone(digest.hex(), until_ms))
            else:
                events.extend(_events_of(entry))
        return Part(f"{_day_of(entries[0])}-{store}-{first:012d}", events, tombstones)


def _day_of(entry: bytes) -> str:
    _, received_ms, _ = (_TOMBSTONE if entry[:1] == b"F" else _EVENTS).unpack_from(entry)
    return f"{datetime.fromtimestamp(received_ms / 1e3, UTC):%Y-%m-%d}"


def _events_of(entry: bytes) -> Iterator[LoggedEvent]:
    _, received_ms, num_left_out = _EVENTS.unpack_from(entry)
    start = _EVENTS.size + num_left_out * _PLACE.size
    left_out = {place for (place,) in _PLACE.iter_unpack(entry[_EVENTS.size : start])}
    request = retrieval_pb2.RecordEventsRequest.FromString(entry[start:])
    for place, event in enumerate(logged_events(request, received_ms)):
        if place not in left_out:
            yield event


def logged_events(request: retrieval_pb2.RecordEventsRequest, received_ms: int) -> Iterator[LoggedEvent]:
    """Yield the events of a valid request; those without a time have that of receipt."""
    items: Sequence[Item] = list(request.items.strings) or list(request.items.ints)
    times_ms = request.times_ms or [0] * len(items)
    for user_id, item, time_ms in zip(request.user_ids, items, times_ms, strict=True):
        yield LoggedEvent(user_id, item, time_ms or received_ms)
