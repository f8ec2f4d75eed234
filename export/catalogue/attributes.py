"""Attributes of a version: columns of the catalogue that callers can filter by, as values and codes.

A column that describes items is kept; a column that names them is not: titles and addresses have about as
many values as there are items, and nobody filters by them. Texts, numbers, booleans, dates, and lists of
those describe items. All values are kept as texts, none of them empty: times in UTC, to the second.

Legend: N items, T entries of the column's table, E values of all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from re4.bundle.attributes.columns import MAX_VALUE_BYTES, CodedColumn
from re4.bundle.manifest import MAX_NUM_ATTRIBUTES
from re4.common.attribute_values import position, positions
from re4.common.errors import ExportError
from re4.exporting.catalogue.items import ItemColumn
from re4.training.data.tables.row_store import CHUNK_ROWS

MIN_ITEMS_PER_VALUE: Final = 2
"""A column with fewer items to a value, on average, names items and does not describe them."""

MAX_NUM_VALUES: Final = 100_000
"""A column with more values is left out unless it is named."""

_TEXT_KINDS: Final = (pl.String, pl.Boolean, pl.Categorical, pl.Enum)
_MIN_SEEN_AGAIN: Final = 1 << 18
"""Values of chunks collected before duplicates are dropped."""


class AttributeChoice(NamedTuple):
    """The catalogue's columns, kept or left out."""

    columns: Mapping[str, Callable[[], CodedColumn]]
    """A function for each kept column that codes it."""
    left_out: Mapping[str, str]
    """The reason for each column left out."""


class ColumnSurvey(NamedTuple):
    """The values of a column."""

    values: pl.Series
    """Each once, ascending; incomplete where there are more than were wanted."""
    num_entries: int
    longest: int
    """Bytes of the longest value."""


def choose_attributes(
    items: Mapping[str, ItemColumn], wanted: Sequence[str] | None = None
) -> AttributeChoice:
    """Choose the columns of a catalogue that can serve as attributes.

    Texts, numbers, booleans, dates and lists of those can be attributes. Without `wanted`, a column is kept
    that has at most `MAX_NUM_VALUES` values and either at least `MIN_ITEMS_PER_VALUE` items to a value, on
    average, or measures items: fractions, dates and times do, also as texts of a csv file.

    Args:
        items: The catalogue's columns.
        wanted: Names of the columns to keep, whatever their values are; None to choose by the rule.

    Raises:
        ExportError: a wanted column is missing, has no value, or cannot be an attribute.
    """
    if missing := [name for name in wanted or () if name not in items]:
        raise ExportError(
            f"the catalogue has no column {', '.join(map(repr, missing))} to make an attribute of; it has "
            f"{', '.join(map(repr, items)) or 'none beside the ids'}"
        )
    columns: dict[str, Callable[[], CodedColumn]] = {}
    left_out: dict[str, str] = {}
    for name in items if wanted is None else dict.fromkeys(wanted):
        found = _survey_or_reason(items[name], is_wanted=wanted is not None)
        reason = found if isinstance(found, str) else None
        if reason is None and len(columns) == MAX_NUM_ATTRIBUTES:
            reason = f"a version holds {MAX_NUM_ATTRIBUTES} attributes"
        if isinstance(found, ColumnSurvey) and reason is None:
            columns[name] = partial(encode_column, items[name], found.values)
        elif wanted is None:
            left_out[name] = str(reason)
        else:
            raise ExportError(f"column {name!r} cannot be an attribute: {reason}")
    return AttributeChoice(columns, left_out)


def _survey_or_reason(column: ItemColumn, *, is_wanted: bool) -> ColumnSurvey | str:
    """Return the values of a column, or the reason why it is no attribute."""
    if not describes(column.kind):
        return f"it holds {column.kind}, not texts, numbers, booleans, dates or lists of those"
    found = survey_column(column, max_values=None if is_wanted else MAX_NUM_VALUES)
    num_values = len(found.values)
    if not num_values:
        return "no item has a value"
    if found.longest > MAX_VALUE_BYTES:
        return f"a value of {found.longest} bytes, at most {MAX_VALUE_BYTES} are allowed"
    if not is_wanted and num_values > MAX_NUM_VALUES:
        return f"more than {MAX_NUM_VALUES:,} different values"
    names_items = found.num_entries < MIN_ITEMS_PER_VALUE * num_values
    if not is_wanted and names_items and not (_measures(column.kind) or _texts_measure(found.values)):
        return (
            f"{num_values:,} different values for {found.num_entries:,} entries: it names items "
            "(--attributes would keep it)"
        )
    return found


def describes(kind: pl.DataType) -> bool:
    """Return whether a column of this type can describe items."""
    inner = _inner(kind)
    return inner.is_integer() or isinstance(inner, _TEXT_KINDS) or _measures(kind)


def _measures(kind: pl.DataType) -> bool:
    """Return whether a column of this type has values by which nothing is named."""
    inner = _inner(kind)
    return inner.is_float() or isinstance(inner, pl.Decimal | pl.Date | pl.Datetime)


def _texts_measure(values: pl.Series) -> bool:
    """Return whether all texts are dates, or numbers of which some have a fraction, as in a csv file."""
    texts = values.to_list()
    if positions(texts) is None:
        return False
    first = position(texts[0])
    return (first is not None and first[0] == "date") or any("." in text for text in texts)


def _inner(kind: pl.DataType) -> pl.DataType:
    return _inner(kind.inner) if isinstance(kind, pl.List | pl.Array) else kind  # type: ignore[arg-type]


def survey_column(
    column: ItemColumn, places: NDArray[np.integer] | None = None, max_values: int | None = None
) -> ColumnSurvey:
    """Find the values of a column that describes items.

    Args:
        column: The column.
        places: The entries of its table to look at, ascending; None for all.
        max_values: The search ends where there are more.
    """
    values = pl.Series([], dtype=pl.String)
    parts = [values]
    num_entries = longest = num_gathered = start = 0
    for chunk in column.chunks():
        if places is not None:
            first, stop = np.searchsorted(places, [start, start + len(chunk)])
            start += len(chunk)
            chunk = chunk.gather(places[first:stop] - (start - len(chunk)))
        entries = _entries(chunk)[0].drop_nulls()
        num_entries += len(entries)
        longest = max(longest, int(entries.str.len_bytes().to_numpy().max(initial=0)))
        parts.append(entries.unique())
        num_gathered += len(parts[-1])
        if num_gathered > max(2 * len(values), _MIN_SEEN_AGAIN):
            values = pl.concat(parts).unique()
            parts, num_gathered = [values], len(values)
            if max_values is not None and len(values) > max_values:
                break
    return ColumnSurvey(pl.concat(parts).unique().sort(), num_entries, longest)


def encode_column(column: ItemColumn, values: pl.Series) -> CodedColumn:
    """Code a column that describes items, in the order of the rows.

    Args:
        column: The column.
        values: Its values, each once; other values count as missing.
    """
    kind, code_type = pl.Enum(values), np.min_scalar_type(-len(values) - 1)
    codes: list[NDArray[np.integer]] = []
    lengths: list[NDArray[np.integer]] = []
    for chunk in column.chunks():
        entries, lengths_T = _entries(chunk)
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
    """Return all entries as text, null for none; entries of lists in one row, and the length of each list."""
    if not column.dtype.is_nested():
        text = _as_text(column)
        return text.set(text == "", None), None
    lists = column.cast(pl.List(_inner(column.dtype)))
    lengths_T = lists.list.len().fill_null(0).to_numpy()
    # Without empty lists: polars versions differ in whether those explode to an entry.
    text = _as_text(lists.filter(lists.list.len() > 0).explode())
    is_entry = (text.is_not_null() & (text != "")).fill_null(False)
    owners = np.repeat(np.arange(len(column)), lengths_T)[is_entry.to_numpy()]
    return text.filter(is_entry), np.bincount(owners, minlength=len(column)).astype(np.int32)


def item_texts(column: pl.Series) -> list[tuple[str, ...]]:
    """Return the values of each item as texts, as an export codes them; none where it has no value."""
    texts, lengths_T = _entries(column)
    values = texts.to_list()
    if lengths_T is None:
        return [() if value is None else (value,) for value in values]
    ends = np.cumsum(lengths_T).tolist()
    starts = [0, *ends[:-1]]
    return [tuple(values[start:end]) for start, end in zip(starts, ends, strict=True)]


def _as_text(column: pl.Series) -> pl.Series:
    """Return plain values as texts, as `re4.common.attribute_values.value_text` writes them."""
    if isinstance(column.dtype, pl.Datetime):
        in_utc = column.dt.convert_time_zone("UTC") if column.dtype.time_zone else column
        return in_utc.dt.strftime("%Y-%m-%dT%H:%M:%S")
    if isinstance(column.dtype, pl.Decimal):
        column = column.cast(pl.Float64)
    if not column.dtype.is_float():
        return column.cast(pl.String)
    values = column.to_frame("value").select(pl.when(pl.col("value").is_finite()).then(pl.col("value")))
    is_whole = (pl.col("value") == pl.col("value").round()) & (pl.col("value").abs() < 2.0**53)
    whole = pl.col("value").cast(pl.Int64, strict=False).cast(pl.String)
    text = pl.when(is_whole).then(whole).otherwise(pl.col("value").cast(pl.String))
    return values.select(text.alias(column.name)).to_series()


def _offsets(lengths: list[NDArray[np.integer]]) -> NDArray[np.int64]:
    offsets_T1 = np.zeros(sum(map(len, lengths)) + 1, np.int64)
    np.concatenate(lengths, out=offsets_T1[1:])
    return np.cumsum(offsets_T1, out=offsets_T1)


def _in_rows(
    codes_E: NDArray[np.integer], offsets_T1: NDArray[np.int64] | None, places_N: NDArray[np.int32]
) -> tuple[NDArray[np.integer], NDArray[np.int64] | None]:
    """Return the codes of each row's entry, one row after another."""
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
        # For each place, the codes from its first one on.
        parts.append(codes_E[np.repeat(firsts - (ends - lengths), lengths) + np.arange(ends[-1])])
    return np.concatenate(parts), offsets_N1
