"""The cache of filter results: the items that recently used filters allow, for one version.

Bounded in bytes; the least recently used results are dropped first.
"""

from collections import OrderedDict
from threading import Lock
from typing import Final

from re4.bundle.attributes.reader import Attributes
from re4.serving.retrieval.filters import AllowedItems, Condition, apply_conditions
from re4.serving.retrieval.hidden_items import HiddenItems

MAX_BYTES: Final = 64 << 20
"""At 10^7 items a bitmap is 1.25 MB."""

_ENTRY_BYTES: Final = 1 << 10
"""Counted for each result beside its rows or bitmap, so that the number of empty results is bounded
too."""


class FilterCache:
    """The results of recently used filters, without hidden items. Thread-safe."""

    def __init__(
        self,
        attributes: Attributes,
        num_items: int,
        *,
        hidden: HiddenItems | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Start empty.

        Args:
            attributes: Of the version.
            num_items: N.
            hidden: Items that no filter allows; None for none.
            max_bytes: Memory for results.
        """
        self._attributes = attributes
        self._num_items = num_items
        self.hidden = hidden
        self._max_bytes = max_bytes
        self._results: OrderedDict[tuple[Condition, ...], AllowedItems] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    def allowed_by(self, conditions: tuple[Condition, ...]) -> AllowedItems:
        """Return the items that meet all conditions and are not hidden."""
        with self._lock:
            if conditions in self._results:
                self._results.move_to_end(conditions)
                return self._results[conditions]
        allowed = apply_conditions(self._attributes, conditions, self._num_items)
        if self.hidden is not None:
            allowed = self.hidden.remove_from(allowed)
        with self._lock:
            if conditions not in self._results:
                self._results[conditions] = allowed
                self._num_bytes += allowed.num_bytes + _ENTRY_BYTES
            while self._num_bytes > self._max_bytes and len(self._results) > 1:
                _, dropped = self._results.popitem(last=False)
                self._num_bytes -= dropped.num_bytes + _ENTRY_BYTES
        return allowed
