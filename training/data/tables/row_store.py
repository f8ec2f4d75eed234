"""Keep rows that are read more than once, in memory or in a file that is read in pieces."""

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final, TypeAlias

import polars as pl

from re4.common.errors import DataError

CHUNK_ROWS: Final = 262_144
"""Rows of a piece."""

_IS_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Keep: TypeAlias = Callable[[pl.LazyFrame], pl.LazyFrame]
"""Reads a table once; its result can be read repeatedly."""


def in_memory(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Keep rows in memory."""
    return rows.collect().lazy()


def in_folder(folder: Path) -> Keep:
    """Keep rows in files of a folder, which the caller removes."""
    return partial(_in_folder, folder)


def _in_folder(folder: Path, rows: pl.LazyFrame) -> pl.LazyFrame:
    file = folder / f"{secrets.token_hex(8)}.parquet"
    try:
        rows.sink_parquet(file, compression="lz4", statistics=False, row_group_size=CHUNK_ROWS)
    except pl.exceptions.PolarsError as error:
        # The disk is at fault, not the table that is read, which the caller would name.
        if full := next((code for code in _IS_FULL if f"(os error {code})" in str(error)), None):
            raise DataError(
                f"{folder}: no room for a copy of a table that is read in pieces ({os.strerror(full)}); make "
                "room on this disk"
            ) from error
        raise
    return pl.scan_parquet(file, glob=False)


def pieces(rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """Yield kept rows in order, a piece at a time."""
    for number in count():
        piece = rows.slice(number * CHUNK_ROWS, CHUNK_ROWS).collect()
        if len(piece):
            yield piece
        if len(piece) < CHUNK_ROWS:
            return
