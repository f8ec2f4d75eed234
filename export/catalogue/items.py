"""Items row by row, of which one chunk at a time is in memory: their ids, and their columns.

Legend: N items, T entries of a table that describes them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from re4.bundle.ids.id_map import ItemIds, write_item_ids
from re4.training.data.tables.row_store import CHUNK_ROWS, pieces

ID: Final = "item_id"


class Ids(Sequence[Any]):
    """Ids as a sequence that reads them on demand and keeps none."""

    def __init__(self, num_ids: int, read: Callable[[int, int], pl.Series]) -> None:
        """Take the function that reads the ids from a row to before another one."""
        self._num_ids = num_ids
        self._read = read

    def __len__(self) -> int:
        return self._num_ids

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            start, stop, _ = place.indices(self._num_ids)
            return self._read(start, stop).to_list()
        return self._read(place, place + 1)[0]

    def chunks(self) -> Iterator[pl.Series]:
        """Yield all ids in order."""
        for start in range(0, self._num_ids, CHUNK_ROWS):
            yield self._read(start, min(start + CHUNK_ROWS, self._num_ids))

    def to_write(self) -> "Sequence[Any] | NDArray[np.int64]":
        """Return the ids in the form that `write_item_ids` takes: integers as an array."""
        if not self._read(0, 1).dtype.is_integer():
            return self
        ids_N = np.empty(self._num_ids, np.int64)
        for start, chunk in zip(range(0, self._num_ids, CHUNK_ROWS), self.chunks(), strict=True):
            if chunk.has_nulls():
                return self[:]  # `write_item_ids` names the missing one
            ids_N[start : start + len(chunk)] = chunk.to_numpy()
        return ids_N


def ids_of(rows: pl.LazyFrame) -> Ids:
    """Return the ids of a kept table."""
    ids = rows.select(ID)
    num_ids = int(ids.select(pl.len()).collect().item())
    return Ids(num_ids, lambda start, stop: ids.slice(start, stop - start).collect().to_series())


def map_ids(ids: Ids, folder: Path) -> ItemIds:
    """Map ids and their rows, for look-ups both ways, from temporary files in a folder.

    Raises:
        BundleError: as `write_item_ids`.
        OSError: the folder has no room for them.
    """
    # A network file system keeps the names of mapped files as long as they are mapped: ignore that.
    with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as files:
        kind = write_item_ids(Path(files), ids.to_write())
        return ItemIds.open(Path(files), kind, len(ids))


@dataclass(frozen=True, kw_only=True)
class ItemColumn:
    """A column of items, in the order of a table that need not be the order of the rows."""

    kind: pl.DataType
    chunks: Callable[[], Iterator[pl.Series]]
    """Yields the table's entries in order, at every call."""
    places_N: NDArray[np.int32] | None = None
    """The entry of each row; None where entries and rows are the same."""


@dataclass(frozen=True, kw_only=True)
class Items:
    """Ids and columns of a version's items."""

    ids: Ids
    """All strings, or all integers."""
    columns: Mapping[str, ItemColumn] = field(default_factory=dict)


NO_ITEMS: Final = Items(ids=Ids(0, lambda start, stop: pl.Series(ID, [])))


def items_of(rows: pl.LazyFrame) -> Items:
    """Return the items of a kept table, in its order."""
    return Items(ids=ids_of(rows), columns=columns_of(rows))


def columns_of(
    rows: pl.LazyFrame,
    places_N: NDArray[np.int32] | None = None,
    is_used_T: NDArray[np.bool_] | None = None,
) -> dict[str, ItemColumn]:
    """Return the columns of a kept table beside the ids.

    Args:
        rows: The table.
        places_N: The entry of each row, counted among those that are used.
        is_used_T: Which entries are; None for all.
    """

    def reading(name: str) -> Callable[[], Iterator[pl.Series]]:
        def read() -> Iterator[pl.Series]:
            start = 0
            for piece in pieces(rows.select(name)):
                column = piece.to_series()
                yield (
                    column
                    if is_used_T is None
                    else column.filter(pl.Series(is_used_T[start : start + len(piece)]))
                )
                start += len(piece)

        return read

    return {
        name: ItemColumn(kind=kind, chunks=reading(name), places_N=places_N)
        for name, kind in rows.collect_schema().items()
        if name != ID
    }
