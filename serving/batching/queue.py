"""What waits, in groups that can share a batch; groups take turns, so that none holds up the others.

A flood of deep searches then delays a shallow one by a batch, not by the flood. Within a group the order is
that of arrival. Knows no clock and no event loop.
"""

from collections.abc import Callable, Iterator
from math import inf
from typing import Final, Generic, NamedTuple, TypeVar

EntryT = TypeVar("EntryT")

MAX_TURN_MS: Final = 5.0
"""How long a batch of another kind than the usual may take, where one of its entries takes less: usual ones
that come meanwhile wait so long at most. Such entries gain little by sharing a batch."""


class Group(NamedTuple):
    """What must be equal for queries to share a batch."""

    owner: int
    """Whose data the query needs; for a server, the version's."""
    depth: int
    """How many times the usual work a query may be, at least 1: so many fewer of them share a batch."""
    kind: str = ""
    """What else sets the query apart, empty for the usual: those of one kind take about equally long."""

    @property
    def cost_class(self) -> tuple[int, str]:
        """Queries of one class should take about the same time, whatever data they need."""
        return self.depth, self.kind


class Backlog(Generic[EntryT]):
    """Entries that wait for their turn."""

    def __init__(
        self,
        max_batch_size: int,
        ms_each: Callable[[tuple[int, str]], float] = lambda _: 0.0,
        max_turn_ms: float = inf,
    ) -> None:
        """Hold nothing yet.

        Args:
            max_batch_size: Most entries in a batch of depth 1.
            ms_each: What an entry of a group's cost class takes, in milliseconds; 0 where nobody knows yet.
            max_turn_ms: How long a batch of usual entries may take, where one of them takes less.
        """
        self._max_turn_ms = max_turn_ms
        self._max_batch_size = max_batch_size
        self._ms_each = ms_each
        # Dictionaries as ordered sets: those who leave are removed at once, wherever they stand.
        self._groups: dict[Group, dict[EntryT, None]] = {}

    def __len__(self) -> int:
        """How many entries wait."""
        return sum(len(entries) for entries in self._groups.values())

    def add(self, group: Group, entry: EntryT) -> None:
        """Put an entry at the end of its group."""
        self._groups.setdefault(group, {})[entry] = None

    def discard(self, group: Group, entry: EntryT) -> None:
        """Remove an entry that left; nothing happens where it has been taken already."""
        entries = self._groups.get(group)
        if entries is not None:
            entries.pop(entry, None)
            if not entries:
                del self._groups[group]

    def take(self) -> list[EntryT]:
        """Remove and return the next batch; empty where nothing waits."""
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

    def wait_ms(self, group: Group) -> float:
        """How long a newcomer of this group waits for the batches before its own, as far as is known."""
        num_own = len(self._groups.get(group, ()))
        num_rounds = num_own // self._batch_size(group) + 1
        return num_own * self._ms_each(group.cost_class) + sum(
            min(num_others, num_rounds * self._batch_size(other)) * self._ms_each(other.cost_class)
            for other, num_others in self._sizes()
            if other != group
        )

    def _sizes(self) -> Iterator[tuple[Group, int]]:
        return ((group, len(entries)) for group, entries in self._groups.items())

    def _batch_size(self, group: Group) -> int:
        size = self._max_batch_size // group.depth
        max_turn_ms = MAX_TURN_MS if group.kind else self._max_turn_ms
        ms_each = self._ms_each(group.cost_class) if max_turn_ms < inf else 0.0
        return max(1, min(size, int(max_turn_ms / ms_each)) if ms_each else size)
