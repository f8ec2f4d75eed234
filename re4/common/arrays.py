"""NumPy files, opened without pickle: an array mapped into memory (.npy), an archive of arrays read (.npz).

NumPy parses a header as Python and an archive as a zip file, so a damaged file raises almost any exception.
Here a damaged file always raises ValueError.
"""

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_DAMAGED_HEADER: Final = (ValueError, TypeError, SyntaxError, EOFError, tokenize.TokenError)
_DAMAGED_ARCHIVE: Final = (
    *(*_DAMAGED_HEADER, AttributeError, OSError, zipfile.BadZipFile),
    *(zlib.error, RuntimeError),  # compressed in an unknown way, or encrypted
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
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _DAMAGED_HEADER as error:
        raise ValueError(f"not an array that can be mapped ({error})") from None
    if not isinstance(array, np.memmap):
        raise ValueError("an archive of arrays, not one array")
    return np.asarray(array)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an `.npz` file, by name.

    Raises:
        ValueError: it is not an archive of arrays, or cannot be opened.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except _DAMAGED_ARCHIVE as error:
        raise ValueError(f"not an archive of arrays ({error})") from None
