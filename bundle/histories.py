"""Real histories of a version, beside its golden queries: for a rebuild from vectors made elsewhere.

Such a rebuild has no run with held-out histories, and the 64 golden queries are too few to tune and to judge
an index. Servers do not read the file. Older versions lack it.

Legend: P histories, L history length.
"""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.array_files import read_archive, write_archive

_FORMS: Final = {"rows_PL": ("<i4", "PL"), "lengths_P": ("<i4", "P")}


def write_histories(path: Path, rows_PL: NDArray[np.int64], lengths_P: NDArray[np.int64]) -> None:
    """Write histories: item rows, newest first and padded with 0, and their number before the padding."""
    write_archive(path, _FORMS, {"rows_PL": rows_PL, "lengths_P": lengths_P})


def read_histories(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read what `write_histories` wrote, from a verified file.

    Returns:
        rows_PL and lengths_P, int64.

    Raises:
        BundleDamagedError: the arrays have another type or shape.
    """
    arrays = read_archive(path, _FORMS)
    return arrays["rows_PL"].astype(np.int64), arrays["lengths_P"].astype(np.int64)
