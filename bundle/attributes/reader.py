"""Attributes of a version's items, memory-mapped: the items of a value, and the values of an item.

Opening takes milliseconds for any size of catalogue. There are no Python objects per item or value, and
processes share the pages. `writer.py` describes the files.

Legend: N items, V values, R given rows, E entries (values of those rows).
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from re4.bundle.array_files import check_texts, map_text, open_array
from re4.bundle.attributes.columns import MAX_VALUE_BYTES, code_type
from re4.bundle.layout import attribute_files
from re4.bundle.manifest import AttributeInfo
from re4.common.attribute_values import Order, position, positions
from re4.common.errors import BundleDamagedError, BundleError

_CHUNK_CODES: Final = 1 << 20
"""Codes that are checked at once."""

_MAX_SCANS: Final = 8
"""The rows of more codes are gathered at once, and more codes are looked up in a table."""

Codes: TypeAlias = Sequence[int] | NDArray[np.int64]


class Attributes:
    """All attributes of one version. Threads can share it."""

    def __init__(self, attributes: Sequence["Attribute"]) -> None:
        self._by_name = {attribute.name: attribute for attribute in attributes}

    @classmethod
    def open(cls, folder: Path, infos: Sequence[AttributeInfo], num_items: int) -> "Attributes":
        """Map the attribute files of a verified version, which may have none.

        Args:
            folder: The version's folder.
            infos: The attributes, from the manifest (`items.attributes`).
            num_items: Number of items, from the manifest.

        Raises:
            BundleDamagedError: an array has another type or length.
        """
        return cls([Attribute(folder, place, info, num_items) for place, info in enumerate(infos)])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the attributes, in the order of the manifest."""
        return tuple(self._by_name)

    def check(self) -> None:
        """Read all files and check that they agree.

        Raises:
            BundleDamagedError: the files of an attribute contradict each other; the message names it.
        """
        for attribute in self._by_name.values():
            attribute.check()

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> "Attribute":
        """Return the attribute of a name.

        Raises:
            BundleError: there is no such attribute.
        """
        try:
            return self._by_name[name]
        except KeyError:
            known = ", ".join(self._by_name) or "none at all"
            raise BundleError(f"attribute {name!r}: this version has {known}") from None


class Attribute:
    """One attribute: values by item and items by value."""

    def __init__(self, folder: Path, place: int, info: AttributeInfo, num_items: int) -> None:
        """Map the files; raise BundleDamagedError where an array has another type or length."""
        self.name = info.name
        self.is_multi_valued = info.is_multi_valued
        self.num_values = info.num_values
        self.num_items = num_items
        files = attribute_files(place, is_multi_valued=info.is_multi_valued)
        self._text_offsets = open_array(folder / files.text_offsets, "<u8", (info.num_values + 1,))
        self._text = map_text(folder / files.text, int(self._text_offsets[-1]))
        self._starts = open_array(folder / files.starts, "<i8", (info.num_values + 1,))
        num_entries = int(self._starts[-1])
        self._rows = open_array(folder / files.rows, "<i4", (num_entries,))
        self._offsets: NDArray[Any] | None = None
        num_codes = num_items
        if files.offsets is not None:
            self._offsets = open_array(folder / files.offsets, "<i8", (num_items + 1,))
            num_codes = num_entries
        self._codes = open_array(folder / files.codes, code_type(info.num_values), (num_codes,))
        self._positions_V: NDArray[Any] | None = None
        if (folder / files.positions).exists():
            self._positions_V = open_array(folder / files.positions, "<f8", (info.num_values,))

    def check(self) -> None:
        """Check that codes by item and rows by value agree; raise BundleDamagedError where not."""
        num_codes_V = np.zeros(self.num_values + 1, np.int64)
        highest = self.num_values if self._offsets is None else self.num_values - 1
        for start in range(0, len(self._codes), _CHUNK_CODES):
            codes = self._codes[start : start + _CHUNK_CODES]
            if codes.max() > highest:
                self._refuse(f"code {codes.max()}, {highest} is the highest")
            num_codes_V += np.bincount(codes, minlength=self.num_values + 1)
        if (num_codes_V[:-1] != np.diff(self._starts)).any() or self._starts[0] != 0:
            self._refuse("codes by item and rows by value do not add up")
        if (self._text_offsets[1:] <= self._text_offsets[:-1]).any() or self._text_offsets[0] != 0:
            self._refuse("its values are not told apart")
        text = np.frombuffer(self._text, np.uint8)
        check_texts(
            self._text_offsets, text, max_bytes=MAX_VALUE_BYTES, where=f"attribute {self.name!r}: values"
        )
        if any(one >= other for one, other in pairwise(self.values())):
            self._refuse("its values do not ascend")
        if self._positions_V is not None and not np.array_equal(
            self._positions_V, found if (found := positions(self.values())) is not None else []
        ):
            self._refuse("positions that are not those of its values")
        offsets = self._offsets
        if offsets is not None and (
            offsets[0] != 0 or offsets[-1] != len(self._codes) or (np.diff(offsets) < 0).any()
        ):
            self._refuse("offsets that do not rise to the number of codes")
        for code, start in enumerate(self._starts[:-1].tolist()):
            rows = self._rows[start : self._starts[code + 1]]
            if len(rows) and not (rows[0] >= 0 and rows[-1] < self.num_items and (np.diff(rows) > 0).all()):
                self._refuse(
                    f"the rows with value {self.value(code)!r} do not rise from 0 to {self.num_items}"
                )
            if offsets is None and (self._codes[rows] != code).any():
                self._refuse(f"rows with value {self.value(code)!r} whose items have another one")

    def _refuse(self, what: str) -> NoReturn:
        raise BundleDamagedError(f"attribute {self.name!r}: {what}. Publish the version again")

    def values(self) -> list[str]:
        """Return all values, ascending: the code of a value is its position."""
        return [self.value(code) for code in range(self.num_values)]

    def counts(self) -> NDArray[np.int64]:
        """Return the number of items with each value: int64 [V]."""
        return np.diff(self._starts)

    def value_codes(self, values: Sequence[str]) -> NDArray[np.int64]:
        """Return the codes of values, -1 for a value that no item has: int64 [number of values]."""
        return np.array([self._value_code(value) for value in values], np.int64)

    @property
    def order(self) -> Order | None:
        """Whether ranges of the values are of numbers or of dates; None for values without an order."""
        if self._positions_V is None:
            return None
        found = position(self.value(0))
        return None if found is None else found[0]

    def positions(self) -> NDArray[np.float64]:
        """Return the number, or the seconds since 1970, of each value, [V]; none without an order."""
        return np.empty(0, np.float64) if self._positions_V is None else np.asarray(self._positions_V)

    def max_num_values_of_item(self) -> int:
        """Return the largest number of values that an item has."""
        return 1 if self._offsets is None else int(np.diff(self._offsets).max(initial=0))

    def codes_within(self, low: float, high: float) -> NDArray[np.int64]:
        """Return the codes of the values from one position to another, both included, ascending.

        An attribute without an order has none.
        """
        if self._positions_V is None:
            return np.empty(0, np.int64)
        return np.flatnonzero((self._positions_V >= low) & (self._positions_V <= high))

    def num_with(self, codes: Codes) -> int:
        """Return the sum of the numbers of items with each code: at least the number of items with any."""
        codes = np.asarray(codes, np.int64)
        return int((self._starts[codes + 1] - self._starts[codes]).sum())

    def rows_with(self, codes: Codes) -> NDArray[np.int32]:
        """Return the rows of the items with any of the codes, ascending and unique. Reads no other item."""
        if len(codes) == 1:
            return np.asarray(self._rows[self._starts[codes[0]] : self._starts[codes[0] + 1]])
        together = self._entries_with(codes)
        return np.unique(together) if self.is_multi_valued else np.sort(together)

    def mask_with(self, codes: Codes) -> NDArray[np.bool_]:
        """Return whether each item of the catalogue has any of the codes: bool [N]."""
        num_scans = min(len(codes), _MAX_SCANS)
        if self._offsets is None and self.num_with(codes) > num_scans * self.num_items / 8:
            # For so many items a scan of all codes is faster.
            if len(codes) == 1:
                return np.asarray(self._codes == codes[0])
            is_wanted_V = np.zeros(self.num_values + 1, np.bool_)
            is_wanted_V[np.asarray(codes)] = True
            return np.asarray(is_wanted_V[self._codes])
        mask_N = np.zeros(self.num_items, np.bool_)
        mask_N[self._entries_with(codes)] = True
        return mask_N

    def _entries_with(self, codes: Codes) -> NDArray[np.int32]:
        """Return the rows of the items with each code, one code after another."""
        codes = np.asarray(codes, np.int64)
        if len(codes) <= _MAX_SCANS:
            lists = [self._rows[self._starts[code] : self._starts[code + 1]] for code in codes.tolist()]
            return np.concatenate([np.empty(0, np.int32), *lists])
        return np.asarray(self._rows[_places(self._starts[codes], self._starts[codes + 1])])

    def have_any(self, rows_R: NDArray[np.integer], codes: Codes) -> NDArray[np.bool_]:
        """Return whether each of the given items has any of the codes: bool [R]."""
        codes_E, lengths_R = self.codes_of(rows_R)
        is_wanted_E = np.isin(codes_E, np.asarray(codes, np.int64))
        if lengths_R is None:
            return is_wanted_E
        owners_E = np.repeat(np.arange(len(rows_R)), lengths_R)
        return np.bincount(owners_E[is_wanted_E], minlength=len(rows_R)) > 0

    def codes_of(self, rows_R: NDArray[np.integer]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Return the codes of the given items.

        Returns:
            Single-valued: codes [R], `num_values` for an item without a value, and None. Multi-valued: codes
            [E], one item after another, and the number of codes of each item, [R].
        """
        if self._offsets is None:
            return self._codes[rows_R], None
        starts_R, ends_R = self._offsets[rows_R], self._offsets[np.asarray(rows_R) + 1]
        return self._codes[_places(starts_R, ends_R)], ends_R - starts_R

    def value(self, code: int) -> str:
        """Return the value of a code."""
        return self._text[int(self._text_offsets[code]) : int(self._text_offsets[code + 1])].decode()

    def _value_code(self, value: str) -> int:
        low, high = 0, self.num_values
        while low < high:
            middle = (low + high) // 2
            if self.value(middle) < value:  # code points and their UTF-8 have the same order
                low = middle + 1
            else:
                high = middle
        return low if low < self.num_values and self.value(low) == value else -1


def _places(starts_R: NDArray[np.int64], ends_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return all places of R ranges, one range after another."""
    lengths_R = ends_R - starts_R
    before_R = np.cumsum(lengths_R) - lengths_R
    return np.repeat(starts_R - before_R, lengths_R) + np.arange(int(lengths_R.sum()))
