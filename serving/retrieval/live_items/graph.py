"""A graph over the vectors of live items (HNSW), made beside the calls. A finished graph never changes.

A larger graph is a copy of the last one with the newer vectors added.
"""

import os
import threading
from contextlib import suppress
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

MIN_ROWS: Final = 8_192
"""Fewer live items, or fewer newer than the graph, are compared one by one."""
_NUM_NEIGHBOURS: Final = 32
_CHUNK_ROWS: Final = 64
_MIN_EF_SEARCH: Final = 64
_LOWEST_PRIORITY: Final = 19

_faiss: Any = faiss  # its type hints are incomplete


class LiveGraph:
    """A graph over the first slots. Threads may share it."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.num_rows: int = index.ntotal

    def search(
        self, queries_QD: NDArray[np.float32], num_results: int, mask_R: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the best slots of each query, -1 where it found no more.

        Args:
            queries_QD: Finite.
            num_results: How many each query wants.
            mask_R: The slots that may be found; None for all.
        """
        parameters = _faiss.SearchParametersHNSW(efSearch=max(_MIN_EF_SEARCH, num_results))
        bits = None  # referred to by the selector until the search ends
        if mask_R is not None:
            bits = np.packbits(mask_R[: self.num_rows], bitorder="little")
            parameters.sel = _faiss.IDSelectorBitmap(bits)
        scores_QS, slots_QS = self._index.search(
            np.ascontiguousarray(queries_QD), min(num_results, self.num_rows), params=parameters
        )
        return scores_QS, slots_QS


class Cancelled(Exception):  # noqa: N818 (no error)
    """The graph is not needed any more."""


def grow_graph(
    graph: LiveGraph | None, vectors_RD: NDArray[np.float32], cancelled: threading.Event
) -> LiveGraph:
    """Return a graph over all of the vectors, in a thread of the lowest priority.

    Args:
        graph: A graph over the first of them; None for none.
        vectors_RD: Finite.
        cancelled: Ends the work early.

    Raises:
        Cancelled: it was ended.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
    faiss.omp_set_num_threads(1)
    if graph is None:
        index = _faiss.IndexHNSWFlat(vectors_RD.shape[1], _NUM_NEIGHBOURS, _faiss.METRIC_INNER_PRODUCT)
    else:
        index = _faiss.clone_index(graph._index)
    for start in range(index.ntotal, len(vectors_RD), _CHUNK_ROWS):
        if cancelled.is_set():
            raise Cancelled
        index.add(np.ascontiguousarray(vectors_RD[start : start + _CHUNK_ROWS]))
    return LiveGraph(index)
