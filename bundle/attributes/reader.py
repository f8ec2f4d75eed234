"""Catalogue attributes of a version's items, memory-mapped: who has a value, and what an item has.

Opens in milliseconds whatever the size of the catalogue; nothing is kept in Python for each item or value,
and processes share the pages. How the files are made: `attribute_writing.py`.

Legend: N items, V values, R rows asked about, E entries (values of those rows).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from re4.bundle.array_files import map_text, open_array
from re4.bundle.attributes.columns import code_type
from re4.bundle.layout import attribute_files
from re4.bundle.manifest import AttributeInfo
from re4.common.errors import BundleDamagedError, BundleError

_AT_ONCE: Final = 1 << 20
"""Codes checked at a time."""


class Attributes:
    """All attributes of one version. Safe to share between threads."""

    def __init__(self, attributes: Sequence["Attribute"]) -> None:
        self._by_name = {attribute.name: attribute for attribute in attributes}

    @classmethod
    def open(cls, folder: Path, infos: Sequence[AttributeInfo], num_items: int) -> "Attributes":
        """Map the attribute files of a verified version; a version without any has no names.

        Args:
            folder: The version's folder.
            infos: As its manifest says (`items.attributes`).
            num_items: As its manifest says.

        Raises:
            BundleDamagedError: the files are not those of such attributes.
        """
        return cls([Attribute(folder, place, info, num_items) for place, info in enumerate(infos)])

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes, in the manifest's order."""
        return tuple(self._by_name)

    def check(self) -> None:
        """Read everything, and see whether it fits together; takes as long as reading it takes.

        Raises:
            BundleDamagedError: names the attribute, and what does not fit.
        """
        for attribute in self._by_name.values():
            attribute.check()

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> "Attribute":
        """The attribute of that name.

        Raises:
            BundleError: there is none.
        """
        try:
            return self._by_name[name]
        except KeyError:
            known = ", ".join(self._by_name) or "none at all"
            raise BundleError(f"attribute {name!r}: this version has {known}") from None


class Attribute:
    """One attribute: values by item and items by value."""

    def __init__(self, folder: Path, place: int, info: AttributeInfo, num_items: int) -> None:
        """Map the files; raises BundleDamagedError where they are not what they should be."""
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

    def check(self) -> None:
        """See whether codes by item and rows by value say the same; raises BundleDamagedError."""
        num_codes_V = np.zeros(self.num_values + 1, np.int64)
        highest = self.num_values if self._offsets is None else self.num_values - 1
        for start in range(0, len(self._codes), _AT_ONCE):
            codes = self._codes[start : start + _AT_ONCE]
            if codes.max() > highest:
                self._refuse(f"code {codes.max()}, {highest} is the highest")
            num_codes_V += np.bincount(codes, minlength=self.num_values + 1)
        if (num_codes_V[:-1] != np.diff(self._starts)).any() or self._starts[0] != 0:
            self._refuse("codes by item and rows by value do not add up")
        if (np.diff(self._text_offsets.astype(np.int64)) <= 0).any() or self._text_offsets[0] != 0:
            self._refuse("its values are not told apart")
        offsets = self._offsets
        if offsets is not None and (
            offsets[0] != 0 or offsets[-1] != len(self._codes) or (np.diff(offsets) < 0).any()
        ):
            self._refuse("offsets that do not rise to the number of codes")
        for code, start in enumerate(self._starts[:-1].tolist()):
            rows = self._rows[start : self._starts[code + 1]]
            if len(rows) and not (rows[0] >= 0 and rows[-1] < self.num_items and (np.diff(rows) > 0).all()):
                self._refuse(
                    f"the rows with value {self._value(code)!r} do not rise from 0 to {self.num_items}"
                )

    def _refuse(self, what: str) -> NoReturn:
        raise BundleDamagedError(f"attribute {self.name!r}: {what}. Publish the version again")

    def values(self) -> list[str]:
        """Every value, ascending: a value's code is its place."""
        return [self._value(code) for code in range(self.num_values)]

    def value_codes(self, values: Sequence[str]) -> NDArray[np.int64]:
        """Codes of values, -1 where no item ever had one: int64 [number of values]."""
        return np.array([self._value_code(value) for value in values], np.int64)

    def num_with(self, codes: Sequence[int]) -> int:
        """How many items have each of the codes, added up: no fewer than those who have any of them."""
        return sum(int(self._starts[code + 1] - self._starts[code]) for code in codes)

    def rows_with(self, codes: Sequence[int]) -> NDArray[np.int32]:
        """Rows of the items that have any of the codes, ascending, each once. Touches no other item."""
        lists = [self._rows[self._starts[code] : self._starts[code + 1]] for code in codes]
        if len(lists) == 1:
            return np.asarray(lists[0])
        if not lists:
            return np.empty(0, np.int32)
        together = np.concatenate(lists)
        return np.unique(together) if self.is_multi_valued else np.sort(together)

    def mask_with(self, codes: Sequence[int]) -> NDArray[np.bool_]:
        """Whether each item of the catalogue has any of the codes: bool [N]."""
        mask_N = np.zeros(self.num_items, np.bool_)
        if self._offsets is None and self.num_with(codes) > len(codes) * self.num_items / 8:
            for code in codes:  # so many that looking at every item is faster
                mask_N |= self._codes == code
            return mask_N
        for code in codes:
            mask_N[self._rows[self._starts[code] : self._starts[code + 1]]] = True
        return mask_N

    def have_any(self, rows_R: NDArray[np.integer], codes: Sequence[int]) -> NDArray[np.bool_]:
        """Whether each of some items has any of the codes: bool [R]."""
        codes_E, lengths_R = self.codes_of(rows_R)
        is_wanted_E = np.isin(codes_E, np.asarray(codes, np.int64))
        if lengths_R is None:
            return is_wanted_E
        owners_E = np.repeat(np.arange(len(rows_R)), lengths_R)
        return np.bincount(owners_E[is_wanted_E], minlength=len(rows_R)) > 0

    def codes_of(self, rows_R: NDArray[np.integer]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """What some items have.

        Returns:
            Single-valued: codes [R], `num_values` for an item without one, and None. Multi-valued: codes
            [E], one item after another, and how many each item has, [R].
        """
        if self._offsets is None:
            return self._codes[rows_R], None
        starts_R = self._offsets[rows_R]
        lengths_R = self._offsets[np.asarray(rows_R) + 1] - starts_R
        # The places of each item's codes: a ramp from its start.
        before_R = np.cumsum(lengths_R) - lengths_R
        places_E = np.repeat(starts_R - before_R, lengths_R) + np.arange(int(lengths_R.sum()))
        return self._codes[places_E], lengths_R

    def _value(self, code: int) -> str:
        return self._text[int(self._text_offsets[code]) : int(self._text_offsets[code + 1])].decode()

    def _value_code(self, value: str) -> int:
        low, high = 0, self.num_values
        while low < high:
            middle = (low + high) // 2
            if self._value(middle) < value:  # code points sort as their UTF-8 does
                low = middle + 1
            else:
                high = middle
        return low if low < self.num_values and self._value(low) == value else -1
