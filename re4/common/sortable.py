"""Scores as integers of the same order: NumPy sorts and partitions integers several times faster."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_SORTABLE: Final = 0x7FFFFFFF


def sortable(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Map scores to integers from -2³¹ to 2³¹ - 1 of the same order."""
    bits = (np.ascontiguousarray(scores, np.float32) + np.float32(0)).view(np.int32)  # turns -0.0 into 0.0
    return np.asarray(bits ^ ((bits >> 31) & np.int32(MAX_SORTABLE)), np.int64)
