"""Titles of a version's items, from a column of the catalogue."""

from collections.abc import Iterator, Mapping

import polars as pl

from re4.bundle.titles import USUAL_COLUMNS
from re4.common.errors import ExportError
from re4.exporting.catalogue.items import ItemColumn
from re4.training.data.tables.row_store import CHUNK_ROWS


def find_titles(columns: Mapping[str, ItemColumn], wanted: str | None = None) -> str | None:
    """Return the name of the column that holds the items' titles; None where there is none.

    Args:
        columns: Of the catalogue.
        wanted: Name of the column; None for `title`, or else `name`, where such a column holds texts;
            empty for none.

    Raises:
        ExportError: the wanted column is missing, or holds no texts.
    """
    if wanted is None:
        usual = (name for name in USUAL_COLUMNS if name in columns)
        return next((name for name in usual if isinstance(columns[name].kind, pl.String)), None)
    if not wanted:
        return None
    if wanted not in columns:
        raise ExportError(
            f"the catalogue has no column {wanted!r} to take titles from; it has "
            f"{', '.join(map(repr, columns)) or 'none beside the ids'}"
        )
    if not isinstance(columns[wanted].kind, pl.String):
        raise ExportError(f"column {wanted!r} holds {columns[wanted].kind}; titles are texts")
    return wanted


def titles_of(column: ItemColumn) -> Iterator[str | None]:
    """Yield the titles in the order of the rows, of which a chunk at a time is a Python object."""
    chunks = column.chunks()
    if column.places_N is not None:
        entries = pl.concat([pl.Series([], dtype=column.kind), *chunks])
        places_N = column.places_N
        chunks = (
            entries.gather(places_N[start : start + CHUNK_ROWS])
            for start in range(0, len(places_N), CHUNK_ROWS)
        )
    for chunk in chunks:
        yield from chunk.to_list()
