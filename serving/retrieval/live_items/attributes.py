"""Attributes of a version and of live items, as one.

A value that no item of the version has gets a code above those of the version.

Legend: S slots of live items, E values of items, R given rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from re4.bundle.attributes.reader import Attribute, Attributes, Codes
from re4.common.attribute_values import Order, position
from re4.serving.retrieval.live_items.growing import GrowingArray


class LiveColumn:
    """The values of one attribute of the live items. Belongs to one thread; views may be shared."""

    def __init__(self, attribute: Attribute) -> None:
        self.attribute = attribute
        self._codes: dict[str, int] = {}
        """Of the values that live items have: of the version, or new ones from `num_values` + 1 on."""
        self._new_values: list[str] = []
        self._new_positions = GrowingArray(np.float64)
        """Of the new values, in the order of their codes; NaN for a value without one."""
        self._codes_E = GrowingArray(np.int64)
        self._ends_S = GrowingArray(np.int64)

    def codes_for(self, values: Sequence[str]) -> NDArray[np.int64]:
        """Return the codes of values, ascending; new values get one."""
        unseen = [value for value in values if value not in self._codes]
        if unseen:
            for value, code in zip(unseen, self.attribute.value_codes(unseen).tolist(), strict=True):
                if code < 0:
                    code = self.attribute.num_values + 1 + self.num_new_values
                    self._new_values.append(value)
                    self._new_positions.append(self._position(value))
                self._codes[value] = code
        return np.array(sorted(self._codes[value] for value in values), np.int64)

    def values_of_row(self, row: int) -> tuple[str, ...]:
        """Return the values of an item of the version, as texts."""
        codes, _ = self.attribute.codes_of(np.array([row]))
        return tuple(
            self.attribute.value(code) for code in codes.tolist() if code < self.attribute.num_values
        )

    def codes_of_slot(self, slot: int) -> NDArray[np.int64]:
        """Return the codes of a slot, ascending."""
        ends_S = self._ends_S.view()
        return np.asarray(self._codes_E.view()[ends_S[slot - 1] if slot else 0 : ends_S[slot]])

    def append(self, codes: NDArray[np.int64]) -> None:
        """Add the codes of the next slot."""
        self._codes_E.append(codes)
        self._ends_S.append(np.array([len(self._codes_E)]))

    def renumber(self, slots: NDArray[np.int64]) -> None:
        """Keep these slots, in this order."""
        starts_S, ends_S = self._bounds()
        codes_E = self._codes_E.view()
        kept = [codes_E[starts_S[slot] : ends_S[slot]] for slot in slots.tolist()]
        self._codes_E, self._ends_S = GrowingArray(np.int64), GrowingArray(np.int64)
        self._codes_E.append(np.concatenate([np.empty(0, np.int64), *kept]))
        self._ends_S.append(np.cumsum([len(codes) for codes in kept], dtype=np.int64))

    def view(self, first_row: int) -> "LiveAttribute":
        """Return the attribute of both, as it is now."""
        starts_S, ends_S = self._bounds()
        return LiveAttribute(self, starts_S, ends_S, self._codes_E.view(), first_row)

    def code_of_new_value(self, value: str) -> int:
        """Return the code of a value that the version does not have; -1 where no live item has it."""
        return self._codes.get(value, -1)

    def new_value(self, code: int) -> str:
        """Return the value of a code that the version does not have."""
        return self._new_values[code - self.attribute.num_values - 1]

    @property
    def num_new_values(self) -> int:
        """Values that the version does not have."""
        return len(self._new_positions)

    def new_codes_within(self, low: float, high: float) -> NDArray[np.int64]:
        """Return the codes of the new values from one position to another, both included, ascending."""
        found = self._new_positions.view()
        return self.attribute.num_values + 1 + np.flatnonzero((found >= low) & (found <= high))

    def _position(self, value: str) -> NDArray[np.float64]:
        found = position(value)
        is_ordered = found is not None and found[0] == self.attribute.order
        return np.array([found[1] if found is not None and is_ordered else np.nan])

    def _bounds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ends_S = self._ends_S.view()
        starts_S = np.empty(len(ends_S), np.int64)
        starts_S[:1] = 0
        starts_S[1:] = ends_S[:-1]
        return starts_S, ends_S


class LiveAttribute(Attribute):
    """One attribute of a version's and of live items. Rows of both are allowed in `codes_of`."""

    def __init__(
        self,
        column: LiveColumn,
        starts_S: NDArray[np.int64],
        ends_S: NDArray[np.int64],
        codes_E: NDArray[np.int64],
        first_row: int,
    ) -> None:
        attribute = column.attribute
        self.name = attribute.name
        self.is_multi_valued = attribute.is_multi_valued
        self.num_values = attribute.num_values
        self.num_items = attribute.num_items
        self._column = column
        self._of_version = attribute
        self._starts_S, self._ends_S, self._codes_E = starts_S, ends_S, codes_E
        self._first_row = first_row

    def value_codes(self, values: Sequence[str]) -> NDArray[np.int64]:
        """Return the codes of values, -1 for a value that no item has."""
        codes = self._of_version.value_codes(values)
        for place in np.flatnonzero(codes < 0).tolist():
            codes[place] = self._column.code_of_new_value(values[place])
        return codes

    @property
    def order(self) -> Order | None:
        """Whether ranges of the values are of numbers or of dates; None for values without an order."""
        return self._of_version.order

    def codes_within(self, low: float, high: float) -> NDArray[np.int64]:
        """Return the codes of the values from one position to another, both included, ascending."""
        own, new = self._of_version.codes_within(low, high), self._column.new_codes_within(low, high)
        return np.concatenate([own, new])

    def value(self, code: int) -> str:
        """Return the value of a code, the version's or a new one."""
        return self._of_version.value(code) if code < self.num_values else self._column.new_value(code)

    def codes_of(self, rows_R: NDArray[np.integer]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Return the codes of the given items, as `Attribute.codes_of`."""
        rows_R = np.asarray(rows_R, np.int64)
        is_live_R = rows_R >= self._first_row
        if not is_live_R.any():
            return self._of_version.codes_of(rows_R)
        slots = rows_R[is_live_R] - self._first_row
        starts, ends = self._starts_S[slots], self._ends_S[slots]
        version_codes, version_lengths = self._of_version.codes_of(rows_R[~is_live_R])
        if version_lengths is None:
            codes_R = np.empty(len(rows_R), np.int64)
            codes_R[~is_live_R] = version_codes
            has_value = starts < ends
            own = np.full(len(slots), self.num_values, np.int64)
            own[has_value] = self._codes_E[starts[has_value]]
            codes_R[is_live_R] = own
            return codes_R, None
        lengths_R = np.empty(len(rows_R), np.int64)
        lengths_R[~is_live_R], lengths_R[is_live_R] = version_lengths, ends - starts
        parts = [self._codes_E[start:end] for start, end in zip(starts, ends, strict=True)]
        codes_E = np.concatenate([version_codes.astype(np.int64), *parts])
        owners_E = np.concatenate(
            [
                np.repeat(np.flatnonzero(~is_live_R), version_lengths),
                np.repeat(np.flatnonzero(is_live_R), ends - starts),
            ]
        )
        return codes_E[np.argsort(owners_E, kind="stable")], lengths_R

    def have_any_S(self, codes: Codes) -> NDArray[np.bool_]:
        """Return whether each live slot has any of the codes: bool [S]."""
        is_wanted = np.zeros(self.num_values + self._column.num_new_values + 2, np.bool_)
        is_wanted[np.asarray(codes, np.int64)] = True
        num_before = np.zeros(len(self._codes_E) + 1, np.int64)
        np.cumsum(is_wanted[self._codes_E], out=num_before[1:])
        return np.asarray(num_before[self._ends_S] > num_before[self._starts_S])


class LiveAttributes(Attributes):
    """All attributes of a version's and of live items."""

    def __init__(self, columns: Mapping[str, LiveColumn], first_row: int) -> None:
        super().__init__([column.view(first_row) for column in columns.values()])
