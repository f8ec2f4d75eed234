"""The queue of requests, in groups that share batches, and the estimate of waiting times.

Groups take turns. So a flood of deep searches delays a shallow search by one batch. Within a group
the order is the order of arrival.
"""

from collections.abc import Callable, Hashable, Iterator
from math import inf
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

EntryT = TypeVar("EntryT")
CostClass: TypeAlias = tuple[int, str, bool]

MAX_TURN_MS: Final = 5.0
"""How long a batch of a group with a `kind` may take, unless one entry takes longer: default
searches that arrive meanwhile wait so long at most. Entries with a kind gain little by sharing a
batch."""

_NEWEST_WEIGHT: Final = 0.2
"""Weight of the newest batch in the moving average: some ten batches are enough to follow a
change."""


class LatencyEstimate:
    """The time of one request in a batch: a moving average for each cost class."""

    def __init__(self) -> None:
        self._ms: dict[Hashable, float] = {}

    def add_batch(self, cost_class: Hashable, num_requests: int, took_ms: float) -> None:
        """Include a batch of requests of one class."""
        newest = took_ms / num_requests
        before = self._ms.get(cost_class, newest)
        self._ms[cost_class] = before + _NEWEST_WEIGHT * (newest - before)

    def ms(self, cost_class: Hashable) -> float:
        """Return the milliseconds expected for each request of a class; 0 where unknown yet."""
        return self._ms.get(cost_class, 0.0)


class BatchGroup(NamedTuple):
    """What must be equal for requests to share a batch."""

    version: int
    """Identifies the version that answers the request."""
    relative_cost: int
    """The request's cost as a multiple of a default search, at least 1. Batches are that many times
    smaller."""
    kind: str = ""
    """The kind of search, empty for the default one: requests of one kind take about equally
    long."""
    is_remote: bool = False
    """Whether a batch waits for an index on another machine. Such a batch never runs in the event
    loop's thread, and takes about as long for one request as for many."""

    @property
    def cost_class(self) -> CostClass:
        """Requests of one class take about equally long, whichever version answers them."""
        return self.relative_cost, self.kind, self.is_remote


class BatchQueue(Generic[EntryT]):
    """The entries that wait for a batch."""

    def __init__(
        self,
        max_batch_size: int,
        ms_each: Callable[[CostClass], float] = lambda _: 0.0,
        max_turn_ms: float = inf,
    ) -> None:
        """Start empty.

        Args:
            max_batch_size: Most entries in a batch of relative cost 1.
            ms_each: Returns the milliseconds for each entry of a cost class; 0 where they are
                unknown yet.
            max_turn_ms: How long a batch of default searches may take, unless one entry takes
                longer.
        """
        self._max_turn_ms = max_turn_ms
        self._max_batch_size = max_batch_size
        self._ms_each = ms_each
        # Dictionaries as ordered sets: an entry is removed at once, at any place.
        self._groups: dict[BatchGroup, dict[EntryT, None]] = {}

    def __len__(self) -> int:
        """Return how many entries wait."""
        return sum(len(entries) for entries in self._groups.values())

    def add(self, group: BatchGroup, entry: EntryT) -> None:
        """Put an entry at the end of its group."""
        self._groups.setdefault(group, {})[entry] = None

    def discard(self, group: BatchGroup, entry: EntryT) -> None:
        """Remove an entry; do nothing where it was taken before."""
        entries = self._groups.get(group)
        if entries is not None:
            entries.pop(entry, None)
            if not entries:
                del self._groups[group]

    def take(self) -> list[EntryT]:
        """Remove and return the next batch; empty where no entry waits."""
        if not self._groups:
            return []
        group = next(iter(self._groups))
        entries = self._groups.pop(group)
        batch = [entry for entry, _ in zip(entries, range(self._batch_size(group)), strict=False)]
        for entry in batch:
            del entries[entry]
        if entries:
            self._groups[group] = entries  # at the end: the other groups come first
        return batch

    def wait_ms(self, group: BatchGroup) -> float:
        """Return how long a new entry of a group waits for the batches before its own."""
        num_own = len(self._groups.get(group, ()))
        if len(self._groups) == (num_own > 0):  # no other group waits
            return num_own * self._ms_each(group.cost_class)
        num_rounds = num_own // self._batch_size(group) + 1
        return num_own * self._ms_each(group.cost_class) + sum(
            min(num_others, num_rounds * self._batch_size(other)) * self._ms_each(other.cost_class)
            for other, num_others in self._sizes()
            if other != group
        )

    def num_counted(self, group: BatchGroup, num_requests: int) -> int:
        """Return the number of requests among which the time of a batch is divided for the estimate.

        Those that arrive while a batch waits for another machine are all in the next one, so the
        time is that of a full batch.
        """
        return max(1, self._max_batch_size // group.relative_cost) if group.is_remote else num_requests

    def _sizes(self) -> Iterator[tuple[BatchGroup, int]]:
        return ((group, len(entries)) for group, entries in self._groups.items())

    def _batch_size(self, group: BatchGroup) -> int:
        size = self._max_batch_size // group.relative_cost
        max_turn_ms = MAX_TURN_MS if group.kind else self._max_turn_ms
        ms_each = self._ms_each(group.cost_class) if max_turn_ms < inf else 0.0
        return max(1, min(size, int(max_turn_ms / ms_each)) if ms_each else size)
