"""From a column of items to its values and codes, piece by piece.

Texts, whole numbers, booleans, and lists of those describe items: as texts, none of them empty.

Legend: N items, T entries of the column's table, E values of all of them.
"""

from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from re4.bundle.attributes.columns import CodedColumn
from re4.exporting.catalogue.items import ItemColumn
from re4.training.data.tables.materialize import CHUNK_ROWS

_MIN_SEEN_AGAIN: Final = 1 << 18
"""Values of pieces that are gathered before those that occur twice are dropped."""


class Survey(NamedTuple):
    """What a column holds."""

    values: pl.Series
    """Each once, ascending; more than asked for where there are too many."""
    num_entries: int
    longest: int
    """Bytes of the longest value."""


def describes(kind: pl.DataType) -> bool:
    """Whether a column of this type can describe items."""
    inner = kind.inner if isinstance(kind, pl.List | pl.Array) else kind
    return inner.is_integer() or isinstance(inner, pl.String | pl.Boolean | pl.Categorical | pl.Enum)


def survey(
    column: ItemColumn, places: NDArray[np.integer] | None = None, max_values: int | None = None
) -> Survey:
    """Find the values of a column that describes.

    Args:
        column: The column.
        places: Of which of its table's entries, ascending; None for all.
        max_values: Where there are more, it is not looked any further.
    """
    values = pl.Series([], dtype=pl.String)
    parts = [values]
    num_entries = longest = num_gathered = start = 0
    for piece in column.pieces():
        if places is not None:
            first, stop = np.searchsorted(places, [start, start + len(piece)])
            start += len(piece)
            piece = piece.gather(places[first:stop] - (start - len(piece)))
        entries = _entries(piece)[0].drop_nulls()
        num_entries += len(entries)
        longest = max(longest, int(entries.str.len_bytes().to_numpy().max(initial=0)))
        parts.append(entries.unique())
        num_gathered += len(parts[-1])
        if num_gathered > max(2 * len(values), _MIN_SEEN_AGAIN):
            values = pl.concat(parts).unique()
            parts, num_gathered = [values], len(values)
            if max_values is not None and len(values) > max_values:
                break
    return Survey(pl.concat(parts).unique().sort(), num_entries, longest)


def code(column: ItemColumn, values: pl.Series) -> CodedColumn:
    """Code a column that describes, in the order of the rows.

    Args:
        column: The column.
        values: Its values, each once; others count as none.
    """
    kind, code_type = pl.Enum(values), np.min_scalar_type(-len(values) - 1)
    codes: list[NDArray[np.integer]] = []
    lengths: list[NDArray[np.integer]] = []
    for piece in column.pieces():
        entries, lengths_T = _entries(piece)
        places = entries.cast(kind, strict=False).to_physical().cast(pl.Int64).fill_null(-1)
        codes.append(places.to_numpy().astype(code_type))
        if lengths_T is not None:
            lengths.append(lengths_T)
    codes_E = np.concatenate(codes)
    del codes
    offsets_T1 = _offsets(lengths) if column.kind.is_nested() else None
    del lengths
    if column.places_N is not None:
        codes_E, offsets_T1 = _in_rows(codes_E, offsets_T1, column.places_N)
    return CodedColumn(values=values.to_list(), codes_E=codes_E, offsets_N1=offsets_T1)


def _entries(column: pl.Series) -> tuple[pl.Series, NDArray[np.integer] | None]:
    """All entries as text, null for none; of lists one after another, and how many each has."""
    if not column.dtype.is_nested():
        text = column.cast(pl.String)
        return text.set(text == "", None), None
    lists = column.cast(pl.List(pl.String))
    lengths_T = lists.list.len().fill_null(0).to_numpy()
    # Without the empty lists: whether those explode to an entry is not the same in all versions of polars.
    text = lists.filter(lists.list.len() > 0).explode()
    is_entry = (text.is_not_null() & (text != "")).fill_null(False)
    owners = np.repeat(np.arange(len(column)), lengths_T)[is_entry.to_numpy()]
    return text.filter(is_entry), np.bincount(owners, minlength=len(column)).astype(np.int32)


def _offsets(lengths: list[NDArray[np.integer]]) -> NDArray[np.int64]:
    offsets_T1 = np.zeros(sum(map(len, lengths)) + 1, np.int64)
    np.concatenate(lengths, out=offsets_T1[1:])
    return np.cumsum(offsets_T1, out=offsets_T1)


def _in_rows(
    codes_E: NDArray[np.integer], offsets_T1: NDArray[np.int64] | None, places_N: NDArray[np.int32]
) -> tuple[NDArray[np.integer], NDArray[np.int64] | None]:
    """The codes of each row's entry, one row after another."""
    if offsets_T1 is None:
        return codes_E[places_N], None
    offsets_N1 = np.zeros(len(places_N) + 1, np.int64)
    parts = [codes_E[:0]]
    for start in range(0, len(places_N), CHUNK_ROWS):
        places = places_N[start : start + CHUNK_ROWS]
        firsts = offsets_T1[places]
        lengths = offsets_T1[places + 1] - firsts
        ends = np.cumsum(lengths)
        offsets_N1[start + 1 : start + 1 + len(places)] = offsets_N1[start] + ends
        # A ramp from each one's first.
        parts.append(codes_E[np.repeat(firsts - (ends - lengths), lengths) + np.arange(ends[-1])])
    return np.concatenate(parts), offsets_N1
