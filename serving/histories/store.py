"""The interface of the two stores of histories, and the values that they take and give.

A store holds the newest events of each user, by user id, with item ids as they came: it knows nothing of
versions. Every store also writes what it records to an event log, which becomes training data
(`event_log.py`).
"""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol, TypeAlias

MARK_BYTES: Final = 8
MAX_USER_ID_BYTES: Final = 256
MAX_EVENT_ID_BYTES: Final = 256
MAX_POPULAR: Final = 2_000
"""Popular items that a store keeps."""

Item: TypeAlias = str | int
"""An item id, as it came."""


class Event(NamedTuple):
    """One event of a user."""

    user_id: str
    time_ms: int
    """Since 1970."""
    mark: bytes
    """`MARK_BYTES` that are equal for the same event recorded twice, and different for other events."""
    item: Item


class StoredEvent(NamedTuple):
    """One event of a known user, as a store holds it."""

    time_ms: int
    mark: bytes
    item: Item


class LogEntry(NamedTuple):
    """A call whose events enter the event log together with the store."""

    received_ms: int
    request: bytes
    """A `RecordEventsRequest`."""
    num_events: int
    """How many of the events that are recorded with the entry are those of the request."""


class Bounds(NamedTuple):
    """What a store keeps of a user."""

    max_events: int
    """Number of events; older ones are dropped."""
    max_age_ms: int
    """Older events are no longer returned."""


@dataclass(frozen=True, kw_only=True)
class StoreHealth:
    """Facts about a store that answers."""

    kind: str
    """`lmdb` or `redis`."""
    num_users: int
    num_bytes: int
    """Memory or disk that it takes."""


class HistoryStore(Protocol):
    """A store of histories. Threads may share it.

    Every method raises `HistoryStoreError` where the store is away, full or slow.
    """

    @property
    def is_local(self) -> bool:
        """Whether a look-up takes microseconds, so that the event loop can wait for it."""
        ...

    def newest_items(self, user_ids: Sequence[str], now_ms: int) -> list[list[Item]]:
        """Return the items of the newest events of each user, oldest first; one look-up for all."""
        ...

    def newest_events(self, user_id: str, now_ms: int) -> list[StoredEvent]:
        """Return the newest events of a user, oldest first."""
        ...

    def append(self, events: Sequence[Event], now_ms: int, log: Sequence[LogEntry] = ()) -> list[bool]:
        """Add events, durably, and return for each whether it was new.

        An event is known if one with its mark is stored. Events may come in any order of time.

        Args:
            events: Of any users.
            now_ms: The present time, since 1970.
            log: The calls that hold the first of these events, in their order, for the event log.
        """
        ...

    def forget(self, user_id: str, now_ms: int) -> None:
        """Remove all that is stored of a user, durably, and note it in the event log."""
        ...

    def users(self) -> Iterator[tuple[str, list[StoredEvent]]]:
        """Yield every user with the stored events, oldest first."""
        ...

    def add_popular(self, counts: Mapping[Item, float], now_ms: int, half_life_ms: float) -> list[Item]:
        """Add to the weights of popular items, and return those with the largest, best first.

        Weights halve with each half-life. The `MAX_POPULAR` largest are kept.

        Args:
            counts: By item; none to read only.
            now_ms: The present time, since 1970.
            half_life_ms: The same for all uses of a store.
        """
        ...

    def health(self) -> StoreHealth:
        """Return facts about the store."""
        ...

    def close(self) -> None:
        """Free what the store holds open."""
        ...


def event_mark(event_id: str, item: Item) -> bytes:
    """Return the mark of an event: a digest of its id and item, or a random one where it has no id."""
    if not event_id:
        return secrets.token_bytes(MARK_BYTES)
    return blake2b(json.dumps([event_id, item]).encode(), digest_size=MARK_BYTES).digest()


def decayed(weights: Mapping[Item, float], age_ms: float, half_life_ms: float) -> dict[Item, float]:
    """Return weights after some time; none of them grows where a clock was set back."""
    factor = 0.5 ** (max(0.0, age_ms) / half_life_ms)
    return {item: weight * factor for item, weight in weights.items()}
