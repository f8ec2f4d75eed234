"""Ids of a version and of live items, as one map between ids and rows."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.ids.id_map import ItemIds

_MAX_RECENT: Final = 2_048
"""Recent entries that each view copies."""


class SlotMap:
    """The slot of each live id. `frozen` returns a map that no later entry changes."""

    def __init__(self) -> None:
        self._earlier: dict[Any, int] = {}
        self._recent: dict[Any, int] = {}

    def get(self, id_: Any) -> int | None:
        """Return the slot of an id; None where it has none."""
        slot = self._recent.get(id_)
        return self._earlier.get(id_) if slot is None else slot

    def set(self, id_: Any, slot: int) -> None:
        """Set the slot of an id."""
        self._recent[id_] = slot

    def frozen(self) -> tuple[Mapping[Any, int], Mapping[Any, int]]:
        """Return the entries, the recent ones apart: those hold where an id has both."""
        if len(self._recent) > _MAX_RECENT:
            self._earlier = {**self._earlier, **self._recent}
            self._recent = {}
        return self._earlier, dict(self._recent)


class LiveIds(ItemIds):
    """The ids of a version, of which live items replace some and to which they add others."""

    def __init__(
        self,
        version: ItemIds,
        slots: tuple[Mapping[Any, int], Mapping[Any, int]],
        ids: Sequence[Any],
        *,
        first_row: int,
        num_rows: int,
    ) -> None:
        """Combine both.

        Args:
            version: The version's ids.
            slots: As `SlotMap.frozen`.
            ids: The id of each slot; may grow.
            first_row: Row of slot 0.
            num_rows: How many slots count.
        """
        self.kind = version.kind
        self._version = version
        self._earlier, self._recent = slots
        self._ids = ids
        self._first_row = first_row
        self._end = first_row + num_rows

    def rows(self, ids: Sequence[str] | Sequence[int]) -> NDArray[np.int64]:
        """Return the rows of ids, -1 where unknown."""
        rows = self._version.rows(ids)
        for slots in (self._earlier, self._recent):
            found = list(map(slots.get, ids))
            if found.count(None) < len(found):
                for place, slot in enumerate(found):
                    if slot is not None:
                        rows[place] = self._first_row + slot
        return rows

    def rows_of_texts(self, texts: bytes, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of many string ids, which lie one after another as UTF-8; -1 where unknown."""
        rows = self._version.rows_of_texts(texts, ends)
        for slots in (self._earlier, self._recent):
            if slots:
                starts = [0, *ends.tolist()]
                found = map(slots.get, (texts[a:b].decode() for a, b in pairwise(starts)))
                for place, slot in enumerate(found):
                    if slot is not None:
                        rows[place] = self._first_row + slot
        return rows

    def ids(self, rows: NDArray[np.integer]) -> list[str] | list[int]:
        """Return the ids of rows, each a version's or a live one."""
        is_live = np.asarray(rows) >= self._first_row
        if not is_live.any():
            return self._version.ids(rows)
        self._check_live(rows)
        ids: list[Any] = list(self._version.ids(np.where(is_live, 0, rows)))
        for place in np.flatnonzero(is_live).tolist():
            ids[place] = self._ids[int(rows[place]) - self._first_row]
        return ids

    def padded(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the ids of rows as UTF-8: a padded matrix, and the length of each."""
        is_live = np.asarray(rows) >= self._first_row
        if not is_live.any():
            return self._version.padded(rows)
        self._check_live(rows)
        texts, lengths = self._version.padded(np.where(is_live, 0, rows))
        places = np.flatnonzero(is_live).tolist()
        encoded = [self._ids[int(rows[place]) - self._first_row].encode() for place in places]
        width = max(texts.shape[1], *map(len, encoded))
        wider = np.zeros((len(texts), width), np.uint8)
        wider[:, : texts.shape[1]] = texts
        for place, text in zip(places, encoded, strict=True):
            wider[place, : len(text)] = np.frombuffer(text, np.uint8)
            lengths[place] = len(text)
        return wider, lengths

    def text(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.int64]]:
        """Return where compiled code finds the ids of rows: a copy where live ones are among them."""
        if not (rows >= self._first_row).any():
            return self._version.text(rows)
        texts, lengths = self.padded(rows)
        offsets = np.zeros(len(rows) + 1, np.uint64)
        np.cumsum(lengths, out=offsets[1:], dtype=np.uint64)
        return texts[np.arange(texts.shape[1]) < lengths[:, None]], offsets, np.arange(len(rows))

    def _check_live(self, rows: NDArray[np.integer]) -> None:
        if rows.max() >= self._end:
            raise IndexError(f"row {rows.max()}: live rows end at {self._end - 1}")
