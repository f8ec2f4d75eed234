"""The values of the items' attributes, numbered: columns of the catalogue that a data set keeps."""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from re4.common.errors import UsageError

_OTHER_KINDS = (pl.String, pl.Boolean, pl.Categorical, pl.Enum, pl.Date, pl.Datetime, pl.Time, pl.Null)


class AttributeValues(NamedTuple):
    """The values of all items. A value that a single item has is left out: it would name the item."""

    owners_E: NDArray[np.int64]
    """The item's row of each value of an item."""
    weights_E: NDArray[np.int64]
    """The number of the value, from 1."""
    num_weights: int
    """One more than the number of different values."""


def attribute_values(items: pl.DataFrame, names: str) -> AttributeValues:
    """Give numbers to the values of columns of a data set's items.

    Args:
        items: `item_id` first, then the catalogue's columns.
        names: The columns, separated by commas. An entry may be a list of values.

    Raises:
        UsageError: a column is missing, holds something else, or has no value that two items share.
    """
    columns = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not columns:
        raise UsageError(f"--attributes {names!r} names no column; write category,brand, or leave it out.")
    known = items.columns[1:]
    if missing := [name for name in columns if name not in known]:
        raise UsageError(
            f"--attributes {names}: the data set has no column {missing[0]!r}; it has "
            f"{', '.join(known) or 'no attributes: prepare it with --catalogue, or train without them'}"
        )
    owners, weights, num_weights = [], [], 1
    for name in columns:
        entries = _shared_entries(items[name])
        if not len(entries):
            raise UsageError(f"--attributes {names}: no two items share a value of {name!r}; leave it out.")
        codes = entries["value"].rank("dense").cast(pl.Int64).to_numpy() - 1
        owners.append(entries["owner"].to_numpy())
        weights.append(num_weights + codes)
        num_weights += int(codes.max()) + 1
    return AttributeValues(np.concatenate(owners), np.concatenate(weights), num_weights)


def _shared_entries(column: pl.Series) -> pl.DataFrame:
    """Return the values that two items or more have, each once for an item: `owner` and `value`."""
    kind = column.dtype
    inner = kind.inner if isinstance(kind, pl.List | pl.Array) else kind
    if not (inner.is_numeric() or isinstance(inner, _OTHER_KINDS)):
        raise UsageError(
            f"--attributes: column {column.name!r} holds {kind}, not texts, numbers, booleans, dates or "
            "lists of those."
        )
    rows = pl.int_range(len(column), dtype=pl.Int64).alias("owner")
    entries = pl.DataFrame([column.alias("value")]).with_columns(rows)
    if isinstance(kind, pl.List | pl.Array):
        entries = entries.explode("value")
    is_value = pl.col("value").cast(pl.String) != ""
    if entries.schema["value"].is_float():
        is_value = pl.col("value").is_finite()
    entries = entries.drop_nulls().filter(is_value).unique(maintain_order=True)
    return entries.filter(pl.len().over("value") > 1)
