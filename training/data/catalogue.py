"""Join a catalogue (titles, genres, …) onto the items of a data set, in the order of the items."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from re4.common.errors import DataError
from re4.training.data.layout import TYPE_OF_KIND, kind_of
from re4.training.data.tables.ids import duplicate_ids, is_canonical_int, is_missing, kind_of_type, to_kind
from re4.training.data.tables.open_table import TableSource, check_columns, open_table, reading
from re4.training.data.tables.row_store import Keep, pieces


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """A catalogue."""

    file: Path | str
    """Its file, its folder, or how a data frame is named."""
    item_column: str
    """The file's column of item ids."""
    rows: pl.LazyFrame
    """`item_id` first (Int64 or String, unique), then the other columns; kept for reading in pieces."""
    num_rows: int

    @property
    def an_id(self) -> str | int:
        """Its first id, for error messages."""
        first: str | int = self.rows.select("item_id").head(1).collect().item()
        return first


@dataclass(frozen=True, kw_only=True)
class JoinedItems:
    """Items with their catalogue columns."""

    items: pl.DataFrame
    """`item_id` first, in the given order; then the catalogue's other columns, null where it has no row."""
    noticed: Mapping[str, int]
    """Items without a row, and rows without an item."""


def read_catalogue(source: TableSource, item_column: str, keep: Keep) -> Catalogue:
    """Read a catalogue.

    Columns of csv and tsv files stay text unless every value is a canonical integer or missing.

    Args:
        source: A file, a folder of files, or a data frame; it is read once.
        item_column: Its column of item ids.
        keep: Keeps its rows in memory or in a folder.

    Raises:
        DataError: The file cannot be read, has no such column, or ids are missing or occur twice.
    """
    table = open_table(source)
    file = table.file
    check_columns(table, {"--catalogue-item-column": item_column})
    where = f"{file}: column {item_column!r}"
    kind = kind_of_type(where, table.schema[item_column])
    others = [column for column in table.schema if column != item_column]
    if "item_id" in others:
        raise DataError(
            f"{file} has a column 'item_id' beside its item column {item_column!r}; name it with "
            "--catalogue-item-column, or rename it"
        )
    frame = table.frame
    if table.untyped:
        frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
    with reading(file):
        rows = keep(frame.select(pl.col(item_column).cast(TYPE_OF_KIND[kind]).alias("item_id"), *others))
    counts = {"rows": pl.len(), "missing": is_missing("item_id", TYPE_OF_KIND[kind]).sum()}
    if table.untyped:
        counts |= {f"integers in {name}": is_canonical_int(pl.col(name)).sum() for name in others}
        counts |= {f"gaps in {name}": pl.col(name).null_count() for name in others}
    found = rows.select(**counts).collect(engine="streaming").row(0, named=True)
    num_rows = found["rows"]
    if num_rows == 0:
        raise DataError(f"{file} has a header but no rows; give a catalogue with rows, or leave it out")
    if found["missing"]:
        raise DataError(
            f"{where} is empty in {found['missing']:,} rows; every row needs an id: correct or remove them"
        )
    twice = duplicate_ids(lambda: (piece["item_id"] for piece in pieces(rows.select("item_id"))), num_rows)
    if len(twice):
        raise DataError(
            f"{where} holds ids more than once ({len(twice):,} rows too many, the first for "
            f"{twice['id'][0]!r}); keep one row for each item"
        )
    if table.untyped:
        whole = [
            name for name in others if 0 < found[f"integers in {name}"] == num_rows - found[f"gaps in {name}"]
        ]
        rows = rows.with_columns(pl.col(whole).cast(pl.Int64))
    return Catalogue(file=file, item_column=item_column, rows=rows, num_rows=num_rows)


def join_catalogue(item_ids: pl.Series, catalogue: Catalogue) -> JoinedItems:
    """Join the catalogue's columns onto the items, matching ids by value.

    The integer 123 and the text "123" are the same id; the result has ids of the items' kind.

    Raises:
        DataError: No item has a row: the two files do not belong together.
    """
    rows = catalogue.rows.collect()
    ids = to_kind(rows["item_id"], kind_of(item_ids))
    rows = rows.with_columns(ids.alias("item_id")).filter(pl.col("item_id").is_not_null())
    items = item_ids.alias("item_id").to_frame()
    joined = items.join(rows, on="item_id", how="left", maintain_order="left")
    num_matched = items.join(rows.select("item_id"), on="item_id", how="semi").height
    if num_matched == 0:
        raise DataError(
            f"{catalogue.file} describes none of the {len(items):,} items (its ids look like "
            f"{catalogue.an_id!r}, the items' like {item_ids[0]!r}); "
            "check --catalogue-item-column"
        )
    return JoinedItems(
        items=joined,
        noticed={
            "items_without_catalogue_row": len(items) - num_matched,
            "catalogue_rows_without_item": catalogue.num_rows - num_matched,
        },
    )
