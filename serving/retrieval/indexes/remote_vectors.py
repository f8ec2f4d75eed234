"""Item vectors of a collection on another machine, for servers whose disk does not hold them.

Vectors of search results come with the results. Those of histories are fetched by row, all rows of a batch in
one call; a cache of fixed size keeps the newest of them.

Legend: R rows, D embedding, C slots of the cache.
"""

import threading
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.indexes.remote_index import RemoteIndex

CACHE_BYTES: Final = 32 << 20
"""Of the vectors in the cache: 131,072 of 64 dimensions. Pages without vectors take no memory."""
_MAX_ROWS: Final = 4_096
"""Rows of one call; Milvus returns at most 16,384."""


class RemoteVectors:
    """The item vectors of a version, read as rows of an array are. Threads may share it."""

    def __init__(self, index: RemoteIndex, *, cache_bytes: int = CACHE_BYTES) -> None:
        """Fetch nothing yet.

        Args:
            index: The collection that holds them.
            cache_bytes: Of the vectors to keep.
        """
        self.shape = (index.ntotal, index.d)
        self._index = index
        num_slots = max(1, cache_bytes // (4 * index.d))
        self._rows_C = np.full(num_slots, -1, np.int64)
        self._vectors_CD = np.zeros((num_slots, index.d), np.float32)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of items."""
        return self.shape[0]

    def take(self, rows: NDArray[np.int64], axis: int = 0) -> NDArray[np.float32]:
        """Return the vectors of rows, as NumPy's `take` along the first axis; any vector for a row of -1.

        Raises:
            IndexUnavailableError, TooLateError: the collection does not answer in time.
        """
        rows_U, places = np.unique(np.maximum(rows, 0), return_inverse=True)
        vectors_UD = np.empty((len(rows_U), self.shape[1]), np.float32)
        slots_U = rows_U % len(self._rows_C)
        with self._lock:
            is_here_U = self._rows_C[slots_U] == rows_U
            vectors_UD[is_here_U] = self._vectors_CD[slots_U[is_here_U]]
        missing = np.flatnonzero(~is_here_U)
        for start in range(0, len(missing), _MAX_ROWS):
            chunk = missing[start : start + _MAX_ROWS]
            vectors_UD[chunk] = self._index.vectors_of(rows_U[chunk])
        if len(missing):
            # The last row of a slot stays, as both arrays are written in the same order.
            with self._lock:
                self._rows_C[slots_U[missing]] = rows_U[missing]
                self._vectors_CD[slots_U[missing]] = vectors_UD[missing]
        return vectors_UD[places.reshape(rows.shape)]

    def __getitem__(self, rows: int | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of rows, or of one row; errors as `take`."""
        return self.take(np.asarray(rows, np.int64))


ItemVectors: TypeAlias = NDArray[np.float32] | RemoteVectors
"""Of a version: mapped from its file, or in a collection."""
