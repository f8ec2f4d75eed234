"""Memory-mapped item vectors, written, and read in chunks: only the current chunk is memory of this process.

The kernel keeps the pages that were read in its cache; this process releases them. Arrays that are not mapped
are read in the same way, and stay in memory.

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

CHUNK_ROWS: Final = 65_536
"""Items of a chunk."""
_DTYPE: Final = np.dtype("<f4")


def chunks(
    vectors_ND: NDArray[np.float32],
    num_rows: int | None = None,
    *,
    first: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Read the rows from `first` to before `stop` (or the end), `num_rows` or `CHUNK_ROWS` at a time.

    Yields:
        The first row of a chunk, and the chunk, C order. Its pages are released before the next one is read.
    """
    size = CHUNK_ROWS if num_rows is None else num_rows
    end = len(vectors_ND) if stop is None else stop
    for start in range(first, end, size):
        yield start, np.ascontiguousarray(vectors_ND[start : min(start + size, end)])
        release_pages(vectors_ND)


def read_rows(vectors_ND: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Copy the vectors of ascending rows. Pages are read in order and released: far rows map many of them."""
    chosen = np.empty((len(rows), vectors_ND.shape[1]), np.float32)
    bounds = np.searchsorted(rows, np.arange(0, len(vectors_ND) + CHUNK_ROWS, CHUNK_ROWS))
    for first, stop in pairwise(bounds.tolist()):
        chosen[first:stop] = vectors_ND[rows[first:stop]]
        release_pages(vectors_ND)
    return chosen


def write_npy_header(file: BinaryIO, shape: tuple[int, int]) -> None:
    """Write the header of an `.npy` file of vectors of this shape."""
    np.lib.format.write_array_header_1_0(file, {"descr": _DTYPE.str, "fortran_order": False, "shape": shape})


def map_for_writing(file: BinaryIO, shape: tuple[int, ...], dtype: DTypeLike = _DTYPE) -> NDArray[Any]:
    """Map an array after the present content of a file, for writing; zero until it is written.

    Its space on the disk is allocated at once: a write to a mapping without space is a bus error.

    Raises:
        OSError: the disk has no room for it.
    """
    if not all(shape):
        return np.empty(shape, dtype)
    file.flush()
    offset = file.tell()
    os.posix_fallocate(file.fileno(), offset, np.dtype(dtype).itemsize * prod(shape))
    return np.memmap(file, dtype, "r+", offset, shape)


def map_unnamed_file(folder: Path, shape: tuple[int, ...], dtype: DTypeLike = _DTYPE) -> NDArray[Any]:
    """Map an array for writing from a file without a name, which is removed together with the array.

    Raises:
        OSError: the folder's disk has no room for it.
    """
    with TemporaryFile(dir=folder) as file:
        return map_for_writing(file, shape, dtype)


def sha256_of(vectors_ND: NDArray[np.float32]) -> str:
    """Return the SHA-256 of the vectors' bytes (float32, little-endian, C order) in hexadecimal."""
    digest = hashlib.sha256()
    for _, chunk in chunks(vectors_ND):
        digest.update(np.ascontiguousarray(chunk, "<f4").data)
    return digest.hexdigest()


def release_pages(array: NDArray[Any]) -> None:
    """Release the pages of a read-only mapped array; they are read again when they are touched."""
    mapping = _mapping_of(array)
    if mapping is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


def _mapping_of(array: NDArray[Any]) -> mmap.mmap | None:
    """Return the mapping of a read-only array; None for others, whose private pages would be lost."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return None
        owner = owner.base
    return owner if isinstance(owner, mmap.mmap) else None
