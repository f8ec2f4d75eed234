"""Golden queries: real histories with the answers that a version must give, for checks before it goes live.

The candidates are exact (brute force over the whole catalogue), so an approximate index answers with most
of them, not all. Histories are newest first, padded with row 0 at the end.

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
    """Queries and their expected answers."""

    rows_QL: NDArray[np.int64]
    """Item rows of each history, newest first, padded with 0."""
    lengths_Q: NDArray[np.int64]
    """How many of them are real, at least 1."""
    interests_QKD: NDArray[np.float32]
    """What the exported encoder answers."""
    candidate_rows_QM: NDArray[np.int64]
    """The exact best items: score descending, then row ascending; nothing excluded."""
    scores_QM: NDArray[np.float32]
    """Their scores: inner product, maximum over interests."""

    def write(self, path: Path) -> None:
        """Write them as an archive of plain arrays."""
        write_archive(path, _FORMS, vars(self))

    @classmethod
    def read(cls, path: Path) -> "GoldenQueries":
        """Read them from a verified file.

        Raises:
            BundleDamagedError: an array is missing, extra, or of another type or shape.
        """
        return cls(**read_archive(path, _FORMS))
