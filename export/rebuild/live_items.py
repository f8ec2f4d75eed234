"""Selection of the live items: others are removed, attributes are refreshed, new ones get a row.

Vectors of new items are made later (`export/assemble.py`). Inputs and a catalogue go in, inputs with the most
popular items first come out. Histories lose removed items too.

Legend: P histories, L history length, N items before, M items after, T rows of the catalogue, D embedding,
C cold items.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from re4.bundle.ids.id_map import ItemIds
from re4.bundle.layout import IS_COLD
from re4.common.errors import DataError
from re4.exporting.catalogue.histories import remap_histories
from re4.exporting.catalogue.items import Ids, ItemColumn, Items, columns_of, map_ids
from re4.exporting.sources.version_inputs import CATALOGUE, VersionInputs
from re4.exporting.storage.mapped_vectors import (
    map_for_writing,
    map_unnamed_file,
    release_pages,
    write_npy_header,
)
from re4.training.data.catalogue import Catalogue
from re4.training.data.layout import TYPE_OF_KIND
from re4.training.data.tables.ids import to_kind
from re4.training.data.tables.row_store import pieces

_CHUNK_ROWS: Final = 65_536


@dataclass(frozen=True, kw_only=True)
class LiveItems:
    """The inputs with the live items, and counts of the others."""

    inputs: VersionInputs
    num_removed: int
    """Items with a vector that are not in the catalogue."""
    num_cold: int
    """Items of the catalogue without a vector."""
    num_unusable: int
    """Rows of the catalogue whose id is of the wrong kind (text where ids are integers)."""


def select_live_items(
    inputs: VersionInputs, catalogue: Catalogue, vectors_file: Path, folder: Path
) -> LiveItems:
    """Keep the items that a catalogue has, with its attributes, and add those that only it has.

    Args:
        inputs: All items that have a vector.
        catalogue: The live items.
        vectors_file: Gets the vectors, `.npy`, zeros for new items; the result's vectors are mapped from it.
        folder: Holds temporary files.

    Raises:
        DataError: no item is in the catalogue, or it has a column of a name that is taken.
        ExportError: no history is left.
        BundleError: an item id cannot be stored.
        OSError: a folder has no room.
    """
    if IS_COLD in catalogue.rows.collect_schema():
        raise DataError(f"{catalogue.file}: a column {IS_COLD!r}: rebuild makes one of that name; rename it")
    ids = map_ids(inputs.items.ids, folder)
    live = _look_up(ids, catalogue, inputs.counts_N)
    num_kept, num_all = len(live.kept_rows_M), len(live.places_M)
    if not num_kept:
        raise DataError(
            f"{catalogue.file} has none of the {len(inputs.counts_N):,} items that have vectors (its ids "
            f"look like {catalogue.an_id!r}, theirs like {inputs.items.ids[0]!r}); check "
            f"--catalogue-item-column"
        )
    _write_vectors(vectors_file, inputs.vectors_ND, live.kept_rows_M, num_all - num_kept)
    columns = columns_of(catalogue.rows, live.places_M, live.is_used_T)
    items = Items(
        ids=_kept_then_new(ids, live.kept_rows_M, live.new_ids),
        columns={**columns, IS_COLD: _is_cold(num_kept, num_all)},
    )
    return LiveItems(
        inputs=replace(
            _in_rows(inputs, live.kept_rows_M, items, vectors_file),
            counts_N=_counts(inputs.counts_N, live.kept_rows_M, num_all, folder),
            cold_rows=np.arange(num_kept, num_all),
            lineage={
                **inputs.lineage,
                CATALOGUE: Path(catalogue.file).name,
                "cold_items": num_all - num_kept,
            },
        ),
        num_removed=len(inputs.counts_N) - num_kept,
        num_cold=num_all - num_kept,
        num_unusable=catalogue.num_rows - num_all,
    )


def keep_all_items(inputs: VersionInputs, vectors_file: Path, folder: Path) -> LiveItems:
    """Keep all items, where there is no catalogue; none is cold.

    Args:
        inputs: All items.
        vectors_file: Gets the vectors, `.npy`; the result's vectors are mapped from it.
        folder: Holds temporary files.

    Raises:
        DataError: a column has a name that is taken.
        BundleError: an item id cannot be stored.
        OSError: a folder has no room.
    """
    if IS_COLD in inputs.items.columns:
        raise DataError(
            f"{inputs.where}: the items have a column {IS_COLD!r}; rebuild makes one of that name"
        )
    ids = map_ids(inputs.items.ids, folder)
    rows_N, _ = _by_popularity(np.arange(len(inputs.counts_N), dtype=np.int32), inputs.counts_N)
    columns = {name: replace(column, places_N=rows_N) for name, column in inputs.items.columns.items()}
    items = Items(
        ids=_kept_then_new(ids, rows_N, pl.Series([], dtype=TYPE_OF_KIND[ids.kind])),
        columns={**columns, IS_COLD: _is_cold(len(rows_N), len(rows_N))},
    )
    _write_vectors(vectors_file, inputs.vectors_ND, rows_N, 0)
    ordered = replace(
        _in_rows(inputs, rows_N, items, vectors_file),
        counts_N=_counts(inputs.counts_N, rows_N, len(rows_N), folder),
    )
    return LiveItems(inputs=ordered, num_removed=0, num_cold=0, num_unusable=0)


class _Live(NamedTuple):
    """The live items: kept ones, most popular first, then new ones in the catalogue's order."""

    kept_rows_M: NDArray[np.int32]
    """The former row of each kept item."""
    places_M: NDArray[np.int32]
    """The place of each item in the catalogue, counted among the used rows."""
    new_ids: pl.Series
    is_used_T: NDArray[np.bool_] | None
    """Mask of the catalogue's rows with an id of the right kind; None where all have one."""


def _look_up(ids: ItemIds, catalogue: Catalogue, counts_N: NDArray[np.int64]) -> _Live:
    """Look up a catalogue's ids; each is compared in full."""
    rows_T = np.empty(catalogue.num_rows, np.int32)
    is_used_T = np.empty(catalogue.num_rows, np.bool_)
    new_ids = [pl.Series([], dtype=TYPE_OF_KIND[ids.kind])]
    start = num_used = 0
    for piece in pieces(catalogue.rows.select("item_id")):
        theirs = to_kind(piece.to_series(), ids.kind)
        is_used_T[start : start + len(theirs)] = theirs.is_not_null()
        start += len(theirs)
        theirs = theirs.drop_nulls()
        rows = ids.rows(theirs.to_list())
        rows_T[num_used : num_used + len(rows)] = rows
        num_used += len(rows)
        new_ids.append(theirs.filter(pl.Series(rows < 0)))
    rows_T = rows_T[:num_used]
    kept_rows_M, kept_places_M = _by_popularity(rows_T, counts_N)
    return _Live(
        kept_rows_M=kept_rows_M,
        places_M=np.concatenate([kept_places_M, np.flatnonzero(rows_T < 0).astype(np.int32)]),
        new_ids=pl.concat(new_ids),
        is_used_T=None if num_used == catalogue.num_rows else is_used_T,
    )


def _by_popularity(
    rows_T: NDArray[np.int32], counts_N: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the rows found, ordered by popularity, then by row; and the place of each."""
    places_N = np.full(len(counts_N), -1, np.int32)
    found = np.flatnonzero(rows_T >= 0).astype(np.int32)
    places_N[rows_T[found]] = found
    del found
    rows_M = np.flatnonzero(places_N >= 0).astype(np.int32)
    rows_M = rows_M[np.argsort(-counts_N[rows_M], kind="stable")]
    return rows_M, places_N[rows_M]


def _counts(
    counts_N: NDArray[np.int64], kept_rows_M: NDArray[np.int32], num_all: int, folder: Path
) -> NDArray[np.int64]:
    """Return counts of the kept rows, then zeros; mapped."""
    moved_M = map_unnamed_file(folder, (num_all,), "<i8")
    moved_M[: len(kept_rows_M)] = counts_N[kept_rows_M]
    return moved_M


def _kept_then_new(ids: ItemIds, kept_rows_M: NDArray[np.int32], new_ids: pl.Series) -> Ids:
    num_kept = len(kept_rows_M)

    def read(start: int, stop: int) -> pl.Series:
        kept = pl.Series(ids.ids(kept_rows_M[start:stop]), dtype=new_ids.dtype)
        return kept.append(new_ids[max(0, start - num_kept) : max(0, stop - num_kept)])

    return Ids(num_kept + len(new_ids), read)


def _is_cold(num_kept: int, num_all: int) -> ItemColumn:
    def read() -> Iterator[pl.Series]:
        for start in range(0, num_all, _CHUNK_ROWS):
            yield pl.Series(np.arange(start, min(start + _CHUNK_ROWS, num_all)) >= num_kept)

    return ItemColumn(kind=pl.Boolean(), chunks=read)


def _in_rows(
    inputs: VersionInputs, rows_M: NDArray[np.int32], items: Items, vectors_file: Path
) -> VersionInputs:
    """Return the inputs with these rows first: vectors from the file, histories in the new rows."""
    new_rows_N = np.full(len(inputs.vectors_ND), -1, np.int32)
    new_rows_N[rows_M] = np.arange(len(rows_M), dtype=np.int32)
    rows_PL, lengths_P = remap_histories(inputs.rows_PL, inputs.lengths_P, new_rows_N, inputs.where)
    return replace(
        inputs,
        vectors_ND=np.load(vectors_file, mmap_mode="r"),
        items=items,
        rows_PL=rows_PL,
        lengths_P=lengths_P,
    )


def _write_vectors(
    path: Path, vectors_ND: NDArray[np.float32], kept_rows_M: NDArray[np.int32], num_new: int
) -> None:
    """Write the kept vectors, then zeros for new items."""
    shape = (len(kept_rows_M) + num_new, vectors_ND.shape[1])
    with path.open("w+b") as file:
        write_npy_header(file, shape)
        written_MD = map_for_writing(file, shape)
    for start in range(0, len(kept_rows_M), _CHUNK_ROWS):
        part = kept_rows_M[start : start + _CHUNK_ROWS]
        written_MD[start : start + len(part)] = vectors_ND[part]
        release_pages(vectors_ND)
