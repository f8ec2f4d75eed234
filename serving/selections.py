"""The selections of lately used filters: what many requests filter by is worked out once.

Belongs to one version, and is bounded in bytes.
"""

from collections import OrderedDict
from threading import Lock
from typing import Final

from bundle.attributes import Attributes
from serving.selection import Condition, Selection, select

MAX_BYTES: Final = 64 << 20
"""Memory for selections: at 10^7 items a bitmap is 1.25 MB."""

_ENTRY_BYTES: Final = 1 << 10
"""Counted for each selection beside its rows or bitmap, so that empty ones are bounded too."""


class Selections:
    """Least recently used ones are forgotten first. Safe to share between threads."""

    def __init__(self, attributes: Attributes, num_items: int, *, max_bytes: int = MAX_BYTES) -> None:
        self._attributes = attributes
        self._num_items = num_items
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[Condition, ...], Selection] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    def of(self, conditions: tuple[Condition, ...]) -> Selection:
        """The items that pass all of some conditions."""
        with self._lock:
            if conditions in self._kept:
                self._kept.move_to_end(conditions)
                return self._kept[conditions]
        selection = select(self._attributes, conditions, self._num_items)
        with self._lock:
            if conditions not in self._kept:
                self._kept[conditions] = selection
                self._num_bytes += selection.num_bytes + _ENTRY_BYTES
            while self._num_bytes > self._max_bytes and len(self._kept) > 1:
                _, forgotten = self._kept.popitem(last=False)
                self._num_bytes -= forgotten.num_bytes + _ENTRY_BYTES
        return selection
