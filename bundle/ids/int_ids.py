"""Integer ids: row -> id and id -> row over memory-mapped files, 20 bytes per item.

The files hold the ids in row order, and the ids in ascending order with the row of each.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.array_files import open_array
from re4.bundle.layout import ID_KEYS, ID_ROWS, ID_VALUES
from re4.common.errors import BundleDamagedError, BundleError

_RANGE: Final = f"{-(2**63)} to {2**63 - 1}"


def write_int_ids(folder: Path, ids: Sequence[int] | NDArray[Any]) -> None:
    """Write the files for N integer ids in row order.

    Raises:
        BundleError: an id is not a 64-bit signed integer, or is a duplicate.
    """
    values_N = _as_int64(ids)
    rows_N = np.argsort(values_N, kind="stable").astype("<i4")
    keys_N = values_N[rows_N]
    twice = np.flatnonzero(keys_N[1:] == keys_N[:-1])
    if twice.size:
        first, second = rows_N[twice[0]], rows_N[twice[0] + 1]
        raise BundleError(
            f"item id {values_N[first]}: in row {first} and in row {second}; every id must be there once"
        )
    np.save(folder / ID_VALUES, values_N.astype("<i8", copy=False))
    np.save(folder / ID_KEYS, keys_N.astype("<i8", copy=False))
    np.save(folder / ID_ROWS, rows_N)


class IntIds:
    """Row -> id and id -> row over the files of `write_int_ids`."""

    def __init__(self, folder: Path, num_items: int) -> None:
        """Map the files; raise BundleDamagedError where an array has another type or length."""
        self._folder = folder
        self._values = open_array(folder / ID_VALUES, "<i8", (num_items,))
        self._keys = open_array(folder / ID_KEYS, "<i8", (num_items,))
        self._rows = open_array(folder / ID_ROWS, "<i4", (num_items,))

    def check(self) -> None:
        """Read all files and check that every id is found in its row.

        Raises:
            BundleDamagedError: the files contradict each other.
        """
        rows_N, keys_N = self._rows, self._keys
        if (
            not 0 <= rows_N.min() <= rows_N.max() < len(rows_N)
            or (self._values[rows_N] != keys_N).any()
            or (keys_N[1:] <= keys_N[:-1]).any()
        ):
            raise BundleDamagedError(f"{self._folder / ID_ROWS}: not the row of each id, ids ascending")

    def rows(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Return the rows of ids, -1 where unknown: int64 [number of ids]."""
        try:
            wanted = np.array(ids, np.int64)
        except OverflowError:  # no item has an id beyond 64 bits
            return np.array([self.rows([i])[0] if -(2**63) <= i < 2**63 else -1 for i in ids], np.int64)
        places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[places] == wanted, self._rows[places], -1).astype(np.int64)

    def ids(self, rows: NDArray[np.integer]) -> list[int]:
        """Return the ids of rows, which must be valid."""
        ids: list[int] = self._values[rows].tolist()
        return ids


def _as_int64(ids: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise BundleError(f"item ids: {ids.dtype} {ids.shape}, expected one row of integers, or strings")
        if ids.dtype.kind == "i":
            return ids.astype(np.int64, copy=False)
        ids = ids.tolist()
    try:
        if set(map(type, ids)) == {int}:
            return np.array(ids, np.int64)
    except OverflowError:
        pass
    row, wrong = next(
        (row, id_) for row, id_ in enumerate(ids) if type(id_) is not int or not -(2**63) <= id_ < 2**63
    )
    raise BundleError(f"item id in row {row}: {wrong!r} is not an integer from {_RANGE}")
