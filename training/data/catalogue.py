"""Joining a catalogue (titles, genres, …) onto the items of a data set.

It knows nothing of events. Item order is the caller's and stays as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from re4.errors import DataError
from training.data.ids import integers_if_canonical, is_missing, kind_of_type, to_kind
from training.data.layout import TYPE_OF_KIND, kind_of
from training.data.tables import check_columns, open_table, reading


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """A catalogue that was read."""

    file: Path
    """Its file."""
    item_column: str
    """The file's column of item ids."""
    rows: pl.DataFrame
    """`item_id` first (Int64 or String, each once), then the other columns."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """Items with their catalogue columns."""

    items: pl.DataFrame
    """`item_id` first, in the given order; then the catalogue's other columns, null where it has no row."""
    noticed: Mapping[str, int]
    """Items without a row, and rows without an item."""


def read_catalogue(file: Path, item_column: str) -> Catalogue:
    """Read a catalogue.

    Columns of csv and tsv files stay text unless every value is a canonical integer or missing.

    Raises:
        DataError: The file cannot be read, has no such column, or ids are missing or occur twice.
    """
    table = open_table(file)
    check_columns(table, {"--catalogue-item-column": item_column})
    where = f"{file}: column {item_column!r}"
    kind = kind_of_type(where, table.schema[item_column])
    others = [column for column in table.schema if column != item_column]
    if "item_id" in others:
        raise DataError(
            f"{file} has a column 'item_id' beside its item column {item_column!r}; name it with "
            "--catalogue-item-column, or rename it"
        )
    with reading(file):
        rows = table.frame.collect()
        ids = rows[item_column].cast(TYPE_OF_KIND[kind])
    blank = rows.select(pl.all_horizontal(pl.all().is_null())).to_series()
    if table.untyped and blank.any():
        rows, ids = rows.filter(~blank), ids.filter(~blank)
    if rows.is_empty():
        raise DataError(f"{file} has a header but no rows; give a catalogue with rows, or leave it out")
    num_missing = rows.select(is_missing(item_column, table.schema[item_column]).sum()).item()
    if num_missing:
        raise DataError(
            f"{where} is empty in {num_missing:,} rows; every row needs an id: correct or remove them"
        )
    if ids.n_unique() < len(ids):
        twice = ids.filter(~ids.is_first_distinct())
        raise DataError(
            f"{where} holds ids more than once ({len(twice):,} rows too many, the first for {twice[0]!r}); "
            "keep one row for each item"
        )
    columns = [rows[column] for column in others]
    if table.untyped:
        columns = [integers_if_canonical(column) for column in columns]
    rows = pl.DataFrame([ids.alias("item_id"), *columns])
    return Catalogue(file=file, item_column=item_column, rows=rows)


def describe_items(item_ids: pl.Series, catalogue: Catalogue) -> Described:
    """Put the catalogue's columns beside the items, matching ids by value.

    The integer 123 and the text "123" are the same id; the answer has ids of the items' kind.

    Raises:
        DataError: No item has a row: the two files do not belong together.
    """
    ids = to_kind(catalogue.rows["item_id"], kind_of(item_ids))
    rows = catalogue.rows.with_columns(ids.alias("item_id")).filter(pl.col("item_id").is_not_null())
    items = item_ids.alias("item_id").to_frame()
    joined = items.join(rows, on="item_id", how="left", maintain_order="left")
    num_matched = items.join(rows.select("item_id"), on="item_id", how="semi").height
    if num_matched == 0:
        raise DataError(
            f"{catalogue.file} describes none of the {len(items):,} items (its ids look like "
            f"{catalogue.rows['item_id'][0]!r}, the items' like {item_ids[0]!r}); "
            "check --catalogue-item-column"
        )
    return Described(
        items=joined,
        noticed={
            "items_without_catalogue_row": len(items) - num_matched,
            "catalogue_rows_without_item": len(catalogue.rows) - num_matched,
        },
    )
