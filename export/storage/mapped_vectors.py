"""Memory-mapped item vectors, written, and read in pieces: only the piece in hand is memory of this process.

The kernel keeps what was read in its cache either way; only the process lets go of it. Arrays that are not
mapped are read in the same way, and kept.

Legend: N items, D embedding.
"""

import hashlib
import mmap
import os
from collections.abc import Iterator
from itertools import pairwise
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

ROWS_AT_ONCE: Final = 65_536
"""Items of a piece."""
_DTYPE: Final = np.dtype("<f4")


def pieces(
    vectors_ND: NDArray[np.float32],
    rows_at_once: int | None = None,
    *,
    first: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Go through the rows from `first` to before `stop` (the end) in order.

    Yields:
        The row that a piece begins with, and the piece, C order. It is let go of when the next one is asked
        for: copy what is to be kept.
    """
    size = ROWS_AT_ONCE if rows_at_once is None else rows_at_once
    end = len(vectors_ND) if stop is None else stop
    for start in range(first, end, size):
        yield start, np.ascontiguousarray(vectors_ND[start : min(start + size, end)])
        let_go(vectors_ND)


def rows_of(vectors_ND: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """A copy of the vectors of ascending rows."""
    chosen = np.empty((len(rows), vectors_ND.shape[1]), np.float32)
    bounds = np.searchsorted(rows, np.arange(0, len(vectors_ND) + ROWS_AT_ONCE, ROWS_AT_ONCE))
    for first, stop in pairwise(bounds.tolist()):
        chosen[first:stop] = vectors_ND[rows[first:stop]]
        let_go(vectors_ND)
    return chosen


def begin_npy(file: BinaryIO, shape: tuple[int, int]) -> None:
    """Write what an `.npy` file of vectors of this shape begins with."""
    np.lib.format.write_array_header_1_0(file, {"descr": _DTYPE.str, "fortran_order": False, "shape": shape})


def mapped_for_writing(file: BinaryIO, shape: tuple[int, ...], dtype: DTypeLike = _DTYPE) -> NDArray[Any]:
    """Vectors, or other numbers, behind what a file holds so far; zero until they are written.

    Their room on the disk is taken at once: a mapping of what turns out not to be there is a bus error.

    Raises:
        OSError: the disk has no room for them.
    """
    if not all(shape):
        return np.empty(shape, dtype)
    file.flush()
    offset = file.tell()
    os.posix_fallocate(file.fileno(), offset, np.dtype(dtype).itemsize * prod(shape))
    return np.memmap(file, dtype, "r+", offset, shape)


def mapped_without_a_name(folder: Path, shape: tuple[int, ...], dtype: DTypeLike = _DTYPE) -> NDArray[Any]:
    """Vectors, or other numbers, to be written: in a file that nobody else sees, and that goes with them.

    Raises:
        OSError: the folder's disk has no room for them.
    """
    with TemporaryFile(dir=folder) as file:
        return mapped_for_writing(file, shape, dtype)


def digest_of(vectors_ND: NDArray[np.float32]) -> str:
    """SHA-256 of the vectors' bytes, float32, little-endian, C order, in hexadecimal."""
    digest = hashlib.sha256()
    for _, piece in pieces(vectors_ND):
        digest.update(np.ascontiguousarray(piece, "<f4").data)
    return digest.hexdigest()


def let_go(array: NDArray[Any]) -> None:
    """Give the pages of a read-only mapped array back; they are read again when they are touched."""
    mapping = _mapping_of(array)
    if mapping is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


def _mapping_of(array: NDArray[Any]) -> mmap.mmap | None:
    """What a read-only array is mapped by; None for others, a private copy of whose pages could be lost."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return None
        owner = owner.base
    return owner if isinstance(owner, mmap.mmap) else None
