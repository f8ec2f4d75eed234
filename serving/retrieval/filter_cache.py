"""The selections of lately used filters: what many requests filter by is worked out once.

Belongs to one version, and is bounded in bytes.
"""

from collections import OrderedDict
from threading import Lock
from typing import Final

from re4.bundle.attributes.reader import Attributes
from re4.serving.retrieval.filters import Condition, Selection, select
from re4.serving.retrieval.hidden_items import HiddenRows

MAX_BYTES: Final = 64 << 20
"""Memory for selections: at 10^7 items a bitmap is 1.25 MB."""

_ENTRY_BYTES: Final = 1 << 10
"""Counted for each selection beside its rows or bitmap, so that empty ones are bounded too."""


class Selections:
    """Least recently used ones are forgotten first. Safe to share between threads."""

    def __init__(
        self,
        attributes: Attributes,
        num_items: int,
        *,
        hidden: HiddenRows | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Begin with none.

        Args:
            attributes: Of the version.
            num_items: N.
            hidden: Rows that no filter lets pass; None for none.
            max_bytes: Memory for selections.
        """
        self._attributes = attributes
        self._num_items = num_items
        self.hidden = hidden
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[Condition, ...], Selection] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    def of(self, conditions: tuple[Condition, ...]) -> Selection:
        """The items that pass all of some conditions, and are not hidden."""
        with self._lock:
            if conditions in self._kept:
                self._kept.move_to_end(conditions)
                return self._kept[conditions]
        selection = select(self._attributes, conditions, self._num_items)
        if self.hidden is not None:
            selection = self.hidden.without(selection)
        with self._lock:
            if conditions not in self._kept:
                self._kept[conditions] = selection
                self._num_bytes += selection.num_bytes + _ENTRY_BYTES
            while self._num_bytes > self._max_bytes and len(self._kept) > 1:
                _, forgotten = self._kept.popitem(last=False)
                self._num_bytes -= forgotten.num_bytes + _ENTRY_BYTES
        return selection
