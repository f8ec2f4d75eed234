"""The map between external item ids and rows: string ids (`string_ids.py`) or integer ids (`int_ids.py`).

Recent look-ups of string ids, the slower kind, are cached.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from re4.bundle.ids.int_ids import IntIds, write_int_ids
from re4.bundle.ids.recent_rows import RecentRows
from re4.bundle.ids.string_ids import StringIds, write_string_ids
from re4.bundle.layout import IdKind
from re4.common.errors import BundleError

MAX_NUM_ITEMS: Final = 2**31 - 1


def write_item_ids(folder: Path, ids: Sequence[str] | Sequence[int] | NDArray[Any]) -> IdKind:
    """Write the id files of a version into its folder.

    Args:
        folder: The version's folder.
        ids: The id of every row, in row order: all strings or all integers; a NumPy array is allowed.

    Returns:
        The kind of the ids.

    Raises:
        BundleError: no ids, an empty or too long string, an integer beyond 64 bits, mixed kinds, or a
            duplicate. The message names the id.
    """
    if not 0 < len(ids) <= MAX_NUM_ITEMS:
        raise BundleError(f"item ids: {len(ids)} given, 1 to {MAX_NUM_ITEMS} are allowed")
    if isinstance(ids[0], str):
        write_string_ids(folder, cast(Sequence[str], ids))
        return "string"
    write_int_ids(folder, cast(Sequence[int], ids))
    return "int"


class ItemIds:
    """The item ids of one version, memory-mapped. Threads can share it."""

    def __init__(self, lookup: StringIds | IntIds, kind: IdKind, num_items: int) -> None:
        self._lookup = lookup
        self._rows: Callable[[Any], NDArray[np.int64]]
        self._rows = RecentRows(lookup.rows) if isinstance(lookup, StringIds) else lookup.rows
        self._num_items = num_items
        self.kind: IdKind = kind

    @classmethod
    def open(cls, folder: Path, kind: IdKind, num_items: int) -> "ItemIds":
        """Map the id files of a verified version.

        Args:
            folder: The version's folder.
            kind: Kind of the ids, from the manifest.
            num_items: Number of items, from the manifest.

        Raises:
            BundleDamagedError: the files do not hold that number of ids of that kind.
        """
        lookup = StringIds(folder, num_items) if kind == "string" else IntIds(folder, num_items)
        return cls(lookup, kind, num_items)

    def check(self) -> None:
        """Read all files and check that they agree.

        Raises:
            BundleDamagedError: the files contradict each other.
        """
        self._lookup.check()

    def rows(self, ids: Sequence[str] | Sequence[int]) -> NDArray[np.int64]:
        """Return the rows of external ids.

        Args:
            ids: Ids of this catalogue's kind; duplicates and unknown ids are allowed.

        Returns:
            int64 [number of ids], -1 where the id is unknown.
        """
        return self._rows(ids)

    def rows_of_texts(self, texts: bytes, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of many string ids, which lie one after another as UTF-8; -1 where unknown.

        Args:
            texts: All ids.
            ends: Where each id ends.

        Raises:
            BundleError: the ids are integers.
        """
        if not isinstance(self._lookup, StringIds):
            raise BundleError("the item ids are integers: they have no text")
        return self._lookup.rows_of_texts(texts, ends)

    def ids(self, rows: NDArray[np.integer]) -> list[str] | list[int]:
        """Return the external ids of rows.

        Args:
            rows: Integers [number of rows], each from 0 to N-1.

        Raises:
            BundleError: a row is out of range, such as the -1 of a missing search result.
        """
        self._check(rows)
        return self._lookup.ids(rows)

    def padded(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the external ids of rows as UTF-8, for a catalogue of string ids.

        Returns:
            A matrix [number of rows, bytes of the longest id], with arbitrary bytes after each id, and the
            length of each id.

        Raises:
            BundleError: as `ids`, or the ids are integers.
        """
        if not isinstance(self._lookup, StringIds):
            raise BundleError("the item ids are integers: they have no text")
        self._check(rows)
        return self._lookup.padded(rows)

    def text(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.int64]]:
        """Return where compiled code finds the external ids of rows, for a catalogue of string ids.

        Returns:
            UTF-8 text; offsets in it, one more than ids; and for each row the number of its id among them,
            which is not checked.

        Raises:
            BundleError: the ids are integers.
        """
        if not isinstance(self._lookup, StringIds):
            raise BundleError("the item ids are integers: they have no text")
        return self._lookup.text, self._lookup.offsets, rows

    def _check(self, rows: NDArray[np.integer]) -> None:
        if rows.size and not 0 <= rows.min() <= rows.max() < self._num_items:
            raise BundleError(
                f"item rows from {rows.min()} to {rows.max()}: 0 to {self._num_items - 1} are allowed"
            )
