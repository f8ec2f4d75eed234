"""The embedded store of histories: LMDB in a folder of this machine.

The histories and the event log are written in one transaction: an event is in both, or in neither.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from re4.common.pauses import with_pauses
from re4.serving.histories.event_log import EventLog
from re4.serving.histories.lmdb_environment import LmdbEnvironment
from re4.serving.histories.store import (
    MAX_POPULAR,
    Bounds,
    Event,
    Item,
    LogEntry,
    StoredEvent,
    StoreHealth,
    decayed,
)
from re4.serving.histories.user_record import events_of, items_of, newest_ms, with_events

_HISTORIES: Final = b"histories"
_POPULAR: Final = b"popular"
_CHUNK_USERS: Final = 10_000
_RECORDED_USERS: Final = 12
"""Users whose new events a server adds at once: 0.1 ms."""


class LmdbStore:
    """Histories in LMDB."""

    is_local: Final = True

    def __init__(self, environment: LmdbEnvironment, bounds: Bounds) -> None:
        """Use an environment; nothing is read yet.

        Args:
            environment: Of the folder.
            bounds: What is kept of a user.
        """
        self.event_log = EventLog(environment)
        self._environment = environment
        self._bounds = bounds

    def newest_items(self, user_ids: Sequence[str], now_ms: int) -> list[list[Item]]:
        """Return the items of the newest events of each user, oldest first."""
        with self._environment.reading(_HISTORIES) as transaction:
            if transaction is None:
                return [[] for _ in user_ids]
            records = [transaction.get(user_id.encode()) for user_id in user_ids]
        bounds = self._bounds
        return [[] if record is None else items_of(record, bounds, now_ms) for record in records]

    def newest_events(self, user_id: str, now_ms: int) -> list[StoredEvent]:
        """Return the newest events of a user, oldest first."""
        with self._environment.reading(_HISTORIES) as transaction:
            record = None if transaction is None else transaction.get(user_id.encode())
        return [] if record is None else events_of(record, self._bounds, now_ms)

    def append(self, events: Sequence[Event], now_ms: int, log: Sequence[LogEntry] = ()) -> list[bool]:
        """Add events and the calls that hold them, durably, and return for each event whether it was new."""
        places: dict[str, list[int]] = {}
        for place, event in enumerate(events):
            places.setdefault(event.user_id, []).append(place)
        known: set[int] = set()
        with self._environment.writing() as (transaction, databases):
            histories = databases[_HISTORIES]
            # Calls of a server, which also answers others.
            users = with_pauses(places.items(), _RECORDED_USERS) if log else places.items()
            for user_id, own in users:
                key = user_id.encode()
                new = [StoredEvent(*events[place][1:]) for place in own]
                record, are_new = with_events(transaction.get(key, db=histories), new, self._bounds, now_ms)
                known.update(place for place, is_new in zip(own, are_new, strict=True) if not is_new)
                if any(are_new):
                    transaction.put(key, record, db=histories)
            self._log(transaction, databases, log, known)
        return [place not in known for place in range(len(events))]

    def forget(self, user_id: str, now_ms: int) -> None:
        """Remove all that is stored of a user, durably, and note it in the event log."""
        key = user_id.encode()
        with self._environment.writing() as (transaction, databases):
            record = transaction.pop(key, db=databases[_HISTORIES])
            # A clock that was set back must not let events of its future survive.
            until_ms = max(now_ms, newest_ms(record)) if record else now_ms
            self.event_log.add_tombstone(transaction, databases, now_ms, user_id, until_ms)

    def users(self) -> Iterator[tuple[str, list[StoredEvent]]]:
        """Yield every user with the stored events, oldest first."""
        after = b""
        while chunk := self._chunk(after):
            for key, record in chunk:
                yield key.decode(), events_of(record, self._bounds, self._bounds.max_age_ms)
            after = chunk[-1][0]

    def remove_expired(self, now_ms: int) -> int:
        """Remove the users whose newest event has expired, and return their number."""
        oldest_ms, num_removed, after = now_ms - self._bounds.max_age_ms, 0, b""
        while chunk := self._chunk(after):
            expired = [key for key, record in chunk if newest_ms(record) <= oldest_ms]
            if expired:
                with self._environment.writing() as (transaction, databases):
                    histories = databases[_HISTORIES]
                    for key in expired:
                        record = transaction.get(key, db=histories)
                        if record is not None and newest_ms(record) <= oldest_ms:
                            num_removed += transaction.delete(key, db=histories)
            after = chunk[-1][0]
        return num_removed

    def add_popular(self, counts: Mapping[Item, float], now_ms: int, half_life_ms: float) -> list[Item]:
        """Add to the weights of popular items, and return those with the largest, best first."""
        if not counts:
            with self._environment.reading(b"meta") as transaction:
                record = None if transaction is None else transaction.get(_POPULAR)
            return [item for item, _ in json.loads(record)["items"]] if record else []
        with self._environment.writing() as (transaction, databases):
            record = transaction.get(_POPULAR, db=databases[b"meta"])
            stored: dict[str, Any] = json.loads(record) if record else {"time_ms": now_ms, "items": []}
            weights = decayed(dict(map(tuple, stored["items"])), now_ms - stored["time_ms"], half_life_ms)
            for item, count in counts.items():
                weights[item] = weights.get(item, 0.0) + count
            best = sorted(weights.items(), key=lambda each: -each[1])[:MAX_POPULAR]
            stored = {"time_ms": max(now_ms, stored["time_ms"]), "items": best}
            transaction.put(_POPULAR, json.dumps(stored).encode(), db=databases[b"meta"])
        return [item for item, _ in best]

    def health(self) -> StoreHealth:
        """Return the number of users and the size of the file."""
        with self._environment.reading(_HISTORIES) as transaction:
            num_users = 0 if transaction is None else int(transaction.stat()["entries"])
        return StoreHealth(kind="lmdb", num_users=num_users, num_bytes=self._environment.size())

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()

    def _chunk(self, after: bytes) -> list[tuple[bytes, bytes]]:
        """Return some users after a key, in a transaction of their own: a long one would keep old pages."""
        with self._environment.reading(_HISTORIES) as transaction:
            if transaction is None:
                return []
            found: list[tuple[bytes, bytes]] = []
            cursor = transaction.cursor()
            if not (cursor.set_range(after + b"\0") if after else cursor.first()):
                return []
            for entry in cursor:
                found.append(entry)
                if len(found) == _CHUNK_USERS:
                    break
            return found

    def _log(
        self, transaction: Any, databases: dict[bytes, Any], log: Sequence[LogEntry], known: set[int]
    ) -> None:
        start = 0
        for entry in log:
            end = start + entry.num_events
            left_out = [place - start for place in range(start, end) if place in known] if known else []
            if len(left_out) < entry.num_events:
                self.event_log.add_call(transaction, databases, entry.received_ms, entry.request, left_out)
            start = end
