"""The cache of filter results: the items that recently used filters allow, for one version.

What a filter allows among the version's own items is kept while hidden and live items change.

Bounded in bytes; the least recently used results are dropped first.
"""

from collections import OrderedDict
from dataclasses import replace
from threading import Lock
from typing import Final

from re4.bundle.attributes.reader import Attributes
from re4.serving.retrieval.filters import AllowedItems, Condition, apply_conditions
from re4.serving.retrieval.hidden_items import HiddenItems
from re4.serving.retrieval.live_items.view import LiveItems

MAX_BYTES: Final = 64 << 20
"""At 10^7 items a bitmap is 1.25 MB."""

_ENTRY_BYTES: Final = 1 << 10
"""Counted for each result beside its rows or bitmap, so that the number of empty results is bounded
too."""


class FilterCache:
    """The results of recently used filters, without hidden items and with live ones. Thread-safe."""

    def __init__(
        self,
        attributes: Attributes,
        num_items: int,
        *,
        hidden: HiddenItems | None = None,
        live: LiveItems | None = None,
        all_items: "FilterCache | None" = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Start empty.

        Args:
            attributes: Of the version.
            num_items: N.
            hidden: Items that no filter allows; None for none.
            live: Live items; None for none.
            all_items: The cache of the version without hidden and live items; None where there are none.
            max_bytes: Memory for results.
        """
        self._attributes = attributes
        self._num_items = num_items
        self.hidden = hidden
        self.live = live
        self._all_items = all_items
        self._max_bytes = max_bytes
        self._results: OrderedDict[tuple[Condition, ...], AllowedItems] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    def with_changes(self, hidden: HiddenItems | None, live: LiveItems | None) -> "FilterCache":
        """Return the cache of the same version with other hidden and live items."""
        all_items = self._all_items or self
        if hidden is None and live is None:
            return all_items
        return FilterCache(
            self._attributes,
            self._num_items,
            hidden=hidden,
            live=live,
            all_items=all_items,
            max_bytes=self._max_bytes,
        )

    def allowed_by(self, conditions: tuple[Condition, ...]) -> AllowedItems:
        """Return the items that meet all conditions and are not hidden."""
        with self._lock:
            if conditions in self._results:
                self._results.move_to_end(conditions)
                return self._results[conditions]
        allowed = self._apply(conditions)
        with self._lock:
            if conditions not in self._results:
                self._results[conditions] = allowed
                self._num_bytes += allowed.num_bytes + _ENTRY_BYTES
            while self._num_bytes > self._max_bytes and len(self._results) > 1:
                _, dropped = self._results.popitem(last=False)
                self._num_bytes -= dropped.num_bytes + _ENTRY_BYTES
        return allowed

    def _apply(self, conditions: tuple[Condition, ...]) -> AllowedItems:
        own = conditions
        if self.live is not None:  # codes of values that only live items have
            own = tuple(
                replace(each, codes=tuple(code for code in each.codes if code < num_values))
                for each in conditions
                for num_values in (self._attributes[each.attribute].num_values,)
            )
        if self._all_items is not None:
            allowed = self._all_items.allowed_by(own)
        else:
            allowed = apply_conditions(self._attributes, own, self._num_items)
        if self.live is not None:
            return self.live.allowed_by(allowed, conditions, self.hidden)
        return allowed if self.hidden is None else self.hidden.remove_from(allowed)
