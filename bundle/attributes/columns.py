"""A column of the catalogue as distinct values and codes, the form in which attributes are written.

Legend: N items, E entries (one per value of each item), V values; N1 is N + 1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from re4.common.attribute_values import VALUE_TYPES, AttributeValue, value_text
from re4.common.errors import BundleError

Column: TypeAlias = Sequence[AttributeValue | None] | Sequence[Iterable[AttributeValue] | None] | NDArray[Any]
"""The values of each item, in row order: one value or None, or any number of values."""

MAX_VALUE_BYTES: Final = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class CodedColumn:
    """A dictionary-coded column."""

    values: Sequence[str]
    """The distinct values, in any order."""
    codes_E: NDArray[np.integer]
    """Positions in `values`, one item after another; -1 for an item without a value."""
    offsets_N1: NDArray[np.int64] | None
    """Codes of item i: `codes_E[offsets_N1[i]:offsets_N1[i + 1]]`. None where every item has one entry."""


def code_column(name: str, column: Column) -> CodedColumn:
    """Code a column of plain values. All become their text: `7`, `12.5`, `true`, `2026-01-31`.

    None, the empty text and NaN mean that an item has no value. A column that contains a list, set or tuple
    is multi-valued; its plain values count as lists of one value.

    Raises:
        BundleError: a value has another type; the message names the attribute and the row.
    """
    items: Sequence[Any] = column.tolist() if isinstance(column, np.ndarray) else column
    codes: dict[str, int] = {}
    if not any(isinstance(item, list | tuple | set | frozenset) for item in items):
        coded = [_code(codes, name, row, item) for row, item in enumerate(items)]
        return CodedColumn(values=list(codes), codes_E=np.array(coded, np.int64), offsets_N1=None)
    entries: list[int] = []
    ends = [0]
    for row, item in enumerate(items):
        several = item if isinstance(item, list | tuple | set | frozenset) else (item,)
        coded = [_code(codes, name, row, value) for value in several]
        entries.extend(code for code in coded if code >= 0)
        ends.append(len(entries))
    return CodedColumn(
        values=list(codes), codes_E=np.array(entries, np.int64), offsets_N1=np.array(ends, np.int64)
    )


def code_type(num_values: int) -> DTypeLike:
    """Return the smallest type for all codes, including the code of a missing value."""
    return "<u1" if num_values < 1 << 8 else "<u2" if num_values < 1 << 16 else "<u4"


def _code(codes: dict[str, int], name: str, row: int, value: Any) -> int:
    try:
        text = value_text(value)
    except TypeError as error:
        raise BundleError(
            f"attribute {name!r}, row {row}: {error}; values are {VALUE_TYPES}, or lists of them"
        ) from None
    return -1 if text is None else codes.setdefault(text, len(codes))
