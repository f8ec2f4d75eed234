"""The most popular items of the last hours, by recorded events of all servers of a store.

The weight of an event halves with each half-life. A worker adds its events to the store every few seconds,
and reads the most popular items of all workers.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from heapq import nlargest
from time import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.ids.id_map import ItemIds
from re4.common.errors import HistoryStoreError
from re4.serving.histories.store import Event, HistoryStore, Item

INTERVAL_S: Final = 10.0
_MAX_SENT: Final = 2_000
"""Items of an interval that are added to the store: those with the most events."""
_OLDEST: Final = 16
"""Half-lives after which an event does not count, such as one of a file of old events."""
_MAX_PAIRS: Final = 200_000
"""Pairs of user and item of an interval; later events of the interval do not count."""

_log = logging.getLogger(__name__)


class RecentPopularity:
    """The most popular items of the last hours. Threads may share it."""

    def __init__(
        self,
        store: HistoryStore,
        half_life_h: float,
        on_read: Callable[[int], None] = lambda _: None,
        *,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """Count nothing yet.

        Args:
            store: Holds the weights of all workers.
            half_life_h: Hours after which an event counts half.
            on_read: Called with the number of popular items after each read.
            interval_s: Between two uses of the store.
        """
        self.items: Sequence[Item] = ()
        """Most popular first."""
        self._store = store
        self._on_read = on_read
        self._half_life_ms = half_life_h * 3.6e6
        self._interval_s = interval_s
        self._counts: dict[Item, float] = {}
        self._pairs: set[int] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._failure = ""
        self._rows: tuple[Any, Sequence[Item], NDArray[np.int64]] = (None, (), np.empty(0, np.int64))
        self._thread = threading.Thread(target=self._run, name="popularity", daemon=True)

    def start(self) -> None:
        """Use the store regularly, in a thread."""
        self._thread.start()

    def count(self, events: Sequence[Event], now_ms: int) -> None:
        """Count new events by their age; a user counts once for an item in each interval."""
        with self._lock:
            for user_id, time_ms, _, item in events:
                pair, age = hash((user_id, item)), max(0, now_ms - time_ms) / self._half_life_ms
                if age < _OLDEST and pair not in self._pairs and len(self._pairs) < _MAX_PAIRS:
                    self._pairs.add(pair)
                    self._counts[item] = self._counts.get(item, 0.0) + 0.5**age

    def refresh(self) -> None:
        """Add the counts to the store, and read the most popular items; an error is logged once."""
        with self._lock:
            counts, self._counts = self._counts, {}
            self._pairs.clear()
        sent = dict(nlargest(_MAX_SENT, counts.items(), key=lambda each: each[1]))
        try:
            self.items = self._store.add_popular(sent, int(time() * 1e3), self._half_life_ms)
            self._failure = ""
            self._on_read(len(self.items))
        except HistoryStoreError as error:
            if str(error) != self._failure:
                _log.error("the most popular items of the last hours stay as they were: %s", error)
            self._failure = str(error)

    def rows(self, item_ids: ItemIds) -> NDArray[np.int64]:
        """Return the rows of the most popular items that a version knows, most popular first."""
        of_ids, items, rows = self._rows
        if of_ids is not item_ids or items is not self.items:
            items = self.items
            kind = str if item_ids.kind == "string" else int
            own: list[Any] = [item for item in items if type(item) is kind]
            rows = item_ids.rows(own) if own else np.empty(0, np.int64)
            rows = rows[rows >= 0]
            self._rows = item_ids, items, rows
        return rows

    def close(self) -> None:
        """Add the last counts, and end the thread."""
        if self._thread.is_alive():
            self._stopped.set()
            self._thread.join()

    def _run(self) -> None:
        self.refresh()
        while not self._stopped.wait(self._interval_s):
            self.refresh()
        self.refresh()
