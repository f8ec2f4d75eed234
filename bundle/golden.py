"""Golden queries: real histories with the answers that a version must give, for checks before it goes live.

The candidates are exact (brute force over the whole catalogue), so an approximate index answers with most
of them, not all. Histories are newest first, padded with row 0 at the end.

Legend: Q queries, L history length, K interests, D embedding, M candidates.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from re4.errors import BundleDamagedError

_SHAPES: Final = {
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
        with path.open("wb") as file:
            np.savez(
                file, **{name: getattr(self, name).astype(dtype) for name, (dtype, _) in _SHAPES.items()}
            )

    @classmethod
    def read(cls, path: Path) -> "GoldenQueries":
        """Read them from a verified file.

        Raises:
            BundleDamagedError: an array is missing, extra, or of another type or shape.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays: dict[str, NDArray[Any]] = dict(archive)
        except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise BundleDamagedError(f"{path}: not an archive of arrays ({error})") from None
        if arrays.keys() != _SHAPES.keys():
            raise BundleDamagedError(f"{path}: holds {sorted(arrays)}, expected {sorted(_SHAPES)}")
        sizes: dict[str, int] = {}
        for name, (dtype, axes) in _SHAPES.items():
            array = arrays[name]
            if array.dtype != np.dtype(dtype) or array.ndim != len(axes) or array.size == 0:
                raise BundleDamagedError(
                    f"{path}: {name} is {array.dtype.str} {array.shape}, expected {dtype} {axes}"
                )
            for axis, length in zip(axes, array.shape, strict=True):
                if sizes.setdefault(axis, length) != length:
                    raise BundleDamagedError(
                        f"{path}: {name} is {array.shape}, but {axis} is {sizes[axis]} elsewhere"
                    )
        return cls(**arrays)
