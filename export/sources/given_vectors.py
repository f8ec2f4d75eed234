"""Item vectors and ids that were made elsewhere: read, and every row checked.

They come from two `.npy` files, or from one parquet file with a column of ids and a column of lists. Vectors
stay on the disk, memory-mapped.

Legend: N items, D embedding.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from re4.common.arrays import map_array
from re4.common.errors import DataError
from re4.exporting.catalogue.items import Ids, ids_of
from re4.exporting.storage.mapped_vectors import map_unnamed_file
from re4.training.data.layout import TYPE_OF_KIND
from re4.training.data.tables.ids import duplicate_ids, kind_of_type
from re4.training.data.tables.open_table import open_table, reading
from re4.training.data.tables.row_store import in_folder

_CHUNK_ROWS: Final = 65_536
_PARQUET_CHUNK_ROWS: Final = 262_144
"""Rows of a chunk: a row group of most writers."""
_NUM_NAMED: Final = 3
"""Offending rows that an error names."""


@dataclass(frozen=True, kw_only=True)
class GivenVectors:
    """Vectors and ids, row by row."""

    where: str
    vectors_ND: NDArray[np.float32]
    """Finite; memory-mapped where the file allows it."""
    item_ids: Ids
    """Integers or texts; each once."""


def read_npy(vectors: Path, ids: Path) -> GivenVectors:
    """Read vectors [N, D] and ids [N] from two `.npy` files; ids are integers or text (`<U…`, `S…`).

    Raises:
        DataError: a file is missing or no such array, lengths differ, a value is not finite, an id is missing
            or there twice. The message names the first offending rows.
    """
    vectors_ND = _as_float32(vectors, _load(vectors))
    found = _load(ids)
    if found.ndim != 1 or found.dtype.kind not in "iuUS":
        raise DataError(
            f"{ids} holds {found.dtype} {list(found.shape)}; ids are one row of integers or text (dtype "
            f"int64, U or S)"
        )
    if found.dtype.kind == "u" and found.size and int(found.max()) >= 1 << 63:
        row = int(found.argmax())
        raise DataError(f"{ids}: row {row}: {found[row]} is more than 64-bit signed integers hold")
    try:
        return _checked(f"{vectors} and {ids}", vectors_ND, Ids(len(found), partial(_series, found)))
    except UnicodeDecodeError as error:
        raise DataError(f"{ids}: an id is not UTF-8 ({error}); write ids as text (dtype U)") from None


def _series(ids_N: NDArray[Any], start: int, stop: int) -> pl.Series:
    """Return some integers or texts as a series."""
    some = ids_N[start:stop]
    if some.dtype.kind in "iu":
        return pl.Series("item_id", some.astype(np.int64))
    texts = np.char.decode(some, "utf-8") if some.dtype.kind == "S" else some
    return pl.Series("item_id", texts.tolist(), pl.String)


def read_parquet(file: Path, id_column: str, vector_column: str, folder: Path) -> GivenVectors:
    """Read ids and vectors from two columns of a parquet file.

    Args:
        file: The file.
        id_column: Its column of ids.
        vector_column: Its column of vectors, lists of numbers.
        folder: Ids and vectors are kept there, in files without a name, and mapped from them.

    Raises:
        DataError: as `read_npy`; or a column is missing, or a vector is, or is of another length.
        OSError: the folder has no room for them.
    """
    table = open_table(file)
    for option, column in (("--id-column", id_column), ("--vector-column", vector_column)):
        if column not in table.schema:
            raise DataError(
                f"{file} has no column {column!r}; it has {', '.join(map(repr, table.schema))}; name it "
                f"with {option}"
            )
    kind = kind_of_type(f"{file}: column {id_column!r}", table.schema[id_column])
    stored = table.schema[vector_column]
    if not isinstance(stored, pl.List | pl.Array) or not (
        stored.inner.is_float() or stored.inner.is_integer()
    ):
        raise DataError(f"{file}: column {vector_column!r} holds {stored}; vectors are lists of numbers")
    lists = table.frame.select(pl.col(vector_column).cast(pl.List(pl.Float32)))
    with reading(file):
        item_ids = ids_of(
            in_folder(folder)(table.frame.select(pl.col(id_column).cast(TYPE_OF_KIND[kind]).alias("item_id")))
        )
        lengths = lists.select(pl.col(vector_column).list.len().fill_null(0)).collect(engine="streaming")
    lengths_N = lengths.to_series().to_numpy()
    width = int(np.median(lengths_N)) if len(lengths_N) else 0
    _refuse(file, lengths_N != width, lambda row: f"{lengths_N[row]} numbers, most rows have {width}")
    vectors_ND = map_unnamed_file(folder, (len(lengths_N), width))
    for start in range(0, len(vectors_ND), _PARQUET_CHUNK_ROWS):
        with reading(file):
            some = lists.slice(start, _PARQUET_CHUNK_ROWS).collect().to_series().explode()
        if some.null_count():
            places = start + np.flatnonzero(some.is_null().to_numpy()) // max(1, width)
            raise DataError(f"{file}: {_rows(places)}: a vector with a missing number; write every number")
        vectors_ND[start : start + _PARQUET_CHUNK_ROWS] = some.to_numpy().reshape(-1, width)
    vectors_ND.flags.writeable = False
    return _checked(str(file), vectors_ND, item_ids)


def _load(file: Path) -> NDArray[Any]:
    if not file.is_file():
        raise DataError(f"{file} is not a file; check the path")
    try:
        return map_array(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be used: {error}; write one array with numpy.save") from None


def _as_float32(file: Path, array: NDArray[Any]) -> NDArray[np.float32]:
    if array.ndim != 2 or array.dtype.kind != "f":
        raise DataError(
            f"{file} holds {array.dtype} {list(array.shape)}; vectors are [items, width] of float32 (or "
            "float16 or float64, which are rounded to it)"
        )
    # No copy where none is needed: a mapped file need not fit into memory.
    is_ready = array.dtype == np.dtype("<f4") and array.flags.c_contiguous
    return np.asarray(array) if is_ready else np.ascontiguousarray(array, "<f4")


def _checked(where: str, vectors_ND: NDArray[np.float32], item_ids: Ids) -> GivenVectors:
    if len(vectors_ND) != len(item_ids):
        raise DataError(
            f"{where}: {len(vectors_ND):,} vectors for {len(item_ids):,} ids; one for each is needed"
        )
    if not vectors_ND.size:
        raise DataError(
            f"{where}: {len(vectors_ND)} vectors of width {vectors_ND.shape[1]}: nothing to retrieve"
        )
    is_wrong_N = np.concatenate(
        [
            ~np.isfinite(vectors_ND[start : start + _CHUNK_ROWS]).all(axis=1)
            for start in range(0, len(vectors_ND), _CHUNK_ROWS)
        ]
    )
    _refuse(where, is_wrong_N, lambda row: f"the vector of {item_ids[row]!r} is not finite")
    is_blank = [(ids.is_null() | (ids.cast(pl.String) == "")).to_numpy() for ids in item_ids.chunks()]
    _refuse(where, np.concatenate(is_blank), lambda row: "no id")
    twice = duplicate_ids(item_ids.chunks, len(item_ids))
    _refuse(
        where,
        twice["row"].to_numpy(),
        lambda row: f"id {item_ids[row]!r} is there before, in row {twice['first'][0]}",
    )
    return GivenVectors(where=where, vectors_ND=vectors_ND, item_ids=item_ids)


def _refuse(where: object, wrong: NDArray[Any], why: Any) -> None:
    """Refuse some rows: ascending numbers, or a mask."""
    rows = np.flatnonzero(wrong) if wrong.dtype == np.bool_ else wrong
    if rows.size:
        raise DataError(
            f"{where}: {_rows(rows)}: {why(int(rows[0]))}. Correct or leave out such rows; nothing was "
            f"published"
        )


def _rows(rows: NDArray[np.integer]) -> str:
    named = ", ".join(str(row) for row in rows[:_NUM_NAMED])
    more = f" and {len(rows) - _NUM_NAMED:,} more" if len(rows) > _NUM_NAMED else ""
    return f"{'rows' if len(rows) > 1 else 'row'} {named}{more}"
