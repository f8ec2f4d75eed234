"""NumPy files, opened without pickle: an array mapped into memory (.npy), an archive of arrays read (.npz).

NumPy parses a header as Python and an archive as a zip file, so a damaged file raises almost any exception.
Here a damaged file always raises ValueError, and a file that the system cannot read raises OSError.

An archive is checked before it is read: it holds the expected arrays and nothing else, it is stored without
compression, and every array has the size that its header states. Reading it therefore takes no more memory
than the file has bytes.
"""

import math
import os
import struct
import tokenize
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

MAX_ARCHIVE_BYTES: Final = 512 << 20
"""A larger archive is refused unread. 10,000 histories of 1,000 items, int64, have 80 MB."""

_MAX_DIRECTORY_BYTES: Final = 1 << 10
"""Bytes of an archive's directory for each expected array: an entry of NumPy has some 60."""
_MAX_HEADER_CHARS: Final = 1_000
"""Characters of an array's header: NumPy writes some 120. Deep nesting in a long one exhausts the parser."""
_END: Final = struct.Struct("<4s16x4s4H2LH")
"""End of an archive: the place of a ZIP64 locator, then the end record."""
_DAMAGED_HEADER: Final = (
    *(ValueError, TypeError, SyntaxError, EOFError, tokenize.TokenError),
    *(OverflowError, RecursionError),  # huge numbers, deep nesting
)
_DAMAGED_ARCHIVE: Final = (
    *(*_DAMAGED_HEADER, AttributeError, zipfile.BadZipFile, struct.error),
    RuntimeError,  # encrypted, or of an unknown kind
)


def map_array(path: Path) -> NDArray[Any]:
    """Map an `.npy` file into memory, read-only; pages are read when they are touched.

    Returns:
        A plain array over the mapping: indexing a `memmap` object is several times slower.

    Raises:
        ValueError: the file is not one array.
        OSError: the file cannot be opened.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False, max_header_size=_MAX_HEADER_CHARS)
    except _DAMAGED_HEADER as error:
        if "Python objects" in str(error):
            raise ValueError(
                "not an array of numbers or text but of Python objects (dtype object); convert text with "
                "array.astype(str), integers with array.astype('int64'), and save it again"
            ) from None
        raise ValueError(f"not an array that can be mapped ({error})") from None
    if not isinstance(array, np.memmap):
        raise ValueError("an archive of arrays, not one array")
    return np.asarray(array)


def read_arrays(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Read the arrays of an `.npz` file.

    Args:
        path: The archive.
        names: The arrays that it must hold.

    Raises:
        ValueError: it is not an archive of these arrays, or is compressed or larger than allowed.
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            _check_directory(file, names)
            with np.load(file, allow_pickle=False, max_header_size=_MAX_HEADER_CHARS) as archive:
                _check_members(archive.zip, names, os.fstat(file.fileno()).st_size)
                return dict(archive)
    except _DAMAGED_ARCHIVE as error:
        raise ValueError(f"not an archive of arrays ({error})") from None


def _check_directory(file: IO[bytes], names: Collection[str]) -> None:
    """Check the size of an archive and of its directory, before all entries are parsed."""
    num_bytes = os.fstat(file.fileno()).st_size
    if num_bytes > MAX_ARCHIVE_BYTES:
        raise ValueError(f"{num_bytes:,} bytes, an archive has at most {MAX_ARCHIVE_BYTES:,}")
    file.seek(max(0, num_bytes - _END.size))
    locator, signature, *_, num_entries, num_directory_bytes, _, comment = _END.unpack(file.read(_END.size))
    file.seek(0)
    # NumPy writes neither a comment nor, below 4 GB, a ZIP64 directory: zipfile then reads this same record.
    if signature != b"PK\5\6" or comment or locator == b"PK\6\7":
        raise ValueError("it does not end as one")
    if num_entries != len(names) or num_directory_bytes > _MAX_DIRECTORY_BYTES * len(names):
        raise ValueError(f"{num_entries} entries, expected {len(names)}")


def _check_members(archive: zipfile.ZipFile, names: Collection[str], num_bytes: int) -> None:
    """Check what every member of an archive states of itself, before any array is made."""
    members = archive.infolist()
    if sorted(member.filename for member in members) != sorted(f"{name}.npy" for name in names):
        raise ValueError(f"holds {sorted(member.filename for member in members)}, expected {sorted(names)}")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"{member.filename} is compressed; arrays are stored as they are")
        with archive.open(member) as file:
            if npy_format.read_magic(file) != (1, 0):
                raise ValueError(f"{member.filename} is of another format than 1.0")
            shape, _, dtype = npy_format.read_array_header_1_0(file, max_header_size=_MAX_HEADER_CHARS)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
                raise ValueError(f"{member.filename} is not the {dtype} {shape} that its header states")
    if sum(member.file_size for member in members) > num_bytes:
        raise ValueError("its arrays overlap")
