"""Which columns of the catalogue go into a version as attributes, and their coding.

A column that describes is kept, one that names is not: titles and addresses have about as many values as
there are items, and nobody filters by them.

Knows data frames; nothing about files.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from bundle.attribute_columns import MAX_VALUE_BYTES, CodedColumn
from bundle.manifest import MAX_NUM_ATTRIBUTES
from re4.errors import ExportError

MIN_ITEMS_PER_VALUE: Final = 2
"""A column with fewer items to a value, on average, is a name of items rather than an attribute."""

MAX_NUM_VALUES: Final = 100_000
"""A column with more values is left out unless it is asked for."""


class Chosen(NamedTuple):
    """What was made of the catalogue's columns."""

    columns: Mapping[str, CodedColumn]
    left_out: Mapping[str, str]
    """Why, by column."""


def choose_attributes(items: pl.DataFrame, wanted: Sequence[str] | None = None) -> Chosen:
    """Code the columns of a catalogue that can serve as attributes.

    Texts, whole numbers, booleans and lists of those can be attributes. Without `wanted`, a column is kept
    that has at least `MIN_ITEMS_PER_VALUE` items to a value, on average, and at most `MAX_NUM_VALUES` values.

    Args:
        items: The catalogue in row order; its column `item_id` is no attribute.
        wanted: Names of the columns to keep, whatever their values are; None to choose.

    Raises:
        ExportError: a wanted column is missing, has no value, or cannot be an attribute.
    """
    present = [name for name in items.columns if name != "item_id"]
    if missing := [name for name in wanted or () if name not in present]:
        raise ExportError(
            f"the catalogue has no column {', '.join(map(repr, missing))} to make an attribute of; it has "
            f"{', '.join(map(repr, present)) or 'none beside the ids'}"
        )
    columns: dict[str, CodedColumn] = {}
    left_out: dict[str, str] = {}
    for name in present if wanted is None else dict.fromkeys(wanted):
        reason = _why_not(items[name], is_wanted=wanted is not None)
        if reason is None and len(columns) == MAX_NUM_ATTRIBUTES:
            reason = f"a version holds {MAX_NUM_ATTRIBUTES} attributes"
        if reason is None:
            columns[name] = _code(items[name])
        elif wanted is None:
            left_out[name] = reason
        else:
            raise ExportError(f"column {name!r} cannot be an attribute: {reason}")
    return Chosen(columns, left_out)


def _why_not(column: pl.Series, *, is_wanted: bool) -> str | None:
    """Why a column is no attribute; None where it is one."""
    kind = _inner_type(column.dtype)
    if not (kind.is_integer() or isinstance(kind, pl.String | pl.Boolean | pl.Categorical | pl.Enum)):
        return f"it holds {column.dtype}, not texts, whole numbers, booleans or lists of those"
    entries = _entries(column).drop_nulls()
    if entries.is_empty():
        return "no item has a value"
    longest = int(entries.str.len_bytes().to_numpy().max())
    if longest > MAX_VALUE_BYTES:
        return f"a value of {longest} bytes, at most {MAX_VALUE_BYTES} are allowed"
    if is_wanted:
        return None
    num_values = entries.n_unique()
    if num_values > MAX_NUM_VALUES:
        return f"{num_values:,} different values, more than {MAX_NUM_VALUES:,}"
    if len(entries) < MIN_ITEMS_PER_VALUE * num_values:
        return f"{num_values:,} different values for {len(entries):,} entries: it names items"
    return None


def _inner_type(kind: pl.DataType) -> pl.DataType:
    return kind.inner if isinstance(kind, pl.List | pl.Array) else kind  # type: ignore[return-value]


def _entries(column: pl.Series) -> pl.Series:
    """All values as text, null for the empty one; lists one after another."""
    # Without the empty lists: whether those explode to an entry is not the same in all versions of polars.
    flat = column.filter(column.list.len() > 0).explode() if column.dtype.is_nested() else column
    text = flat.cast(pl.String)
    return text.set(text == "", None)


def _code(column: pl.Series) -> CodedColumn:
    entries = _entries(column)
    values = entries.drop_nulls().unique().sort()
    codes = entries.cast(pl.Enum(values)).to_physical().cast(pl.Int64)
    if not column.dtype.is_nested():
        return CodedColumn(values=values.to_list(), codes_E=codes.fill_null(-1).to_numpy(), offsets_N1=None)
    lengths_N = column.list.len().fill_null(0).to_numpy().astype(np.int64)
    is_value_E = codes.is_not_null().to_numpy()
    kept_before = np.concatenate([[0], np.cumsum(is_value_E)])
    return CodedColumn(
        values=values.to_list(),
        codes_E=codes.drop_nulls().to_numpy(),
        offsets_N1=kept_before[np.concatenate([[0], lengths_N.cumsum()])],
    )
