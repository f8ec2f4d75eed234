"""Golden queries: real histories with their exact answers, for the checks before a version goes live.

The candidates are exact (brute force over the whole catalogue), so an approximate index returns most of them,
not all. Histories are newest first, padded with row 0 at the end.

Legend: Q queries, L history length, K interests, D embedding, M candidates.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.bundle.array_files import read_archive, write_archive

_FORMS: Final = {
    "rows_QL": ("<i8", "QL"),
    "lengths_Q": ("<i8", "Q"),
    "interests_QKD": ("<f4", "QKD"),
    "candidate_rows_QM": ("<i8", "QM"),
    "scores_QM": ("<f4", "QM"),
}


@dataclass(frozen=True, kw_only=True)
class GoldenQueries:
    """Golden queries and their exact answers."""

    rows_QL: NDArray[np.int64]
    """Item rows of each history, newest first, padded with 0."""
    lengths_Q: NDArray[np.int64]
    """Number of rows before the padding, at least 1."""
    interests_QKD: NDArray[np.float32]
    """Interest vectors of the exported encoder."""
    candidate_rows_QM: NDArray[np.int64]
    """The exact candidates: score descending, then row ascending; nothing excluded."""
    scores_QM: NDArray[np.float32]
    """Their scores: largest inner product with any interest."""

    def write(self, path: Path) -> None:
        """Write the queries as an archive of arrays."""
        write_archive(path, _FORMS, vars(self))

    @classmethod
    def read(cls, path: Path) -> "GoldenQueries":
        """Read the queries from a verified file.

        Raises:
            BundleDamagedError: an array is missing, extra, or of another type or shape.
        """
        return cls(**read_archive(path, _FORMS))
