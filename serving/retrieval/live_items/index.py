"""An index of live items, made beside the calls. A finished index never changes.

It is the version's index without the version's items: centroids and codes were trained before, so that an
item is added in some microseconds, and a search needs no setting of its own. A version with a graph (HNSW)
gets a graph. A larger index is a copy of the last one with the newer items added.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.indexes.kinds import SearchPlan
from re4.serving.retrieval.search import Searcher

MIN_ROWS: Final = 16_384
"""Fewer live items are compared one by one. At 10,000 that takes a request 0.05 ms by compiled code and
0.2 ms by NumPy; the lists of 100,000 take 0.1 ms, read together with those of the version."""
MIN_NEWER_ROWS: Final = 4_096
"""Fewer items that are newer than the index are compared one by one."""
_CHUNK_ROWS: Final = 64
_LOWEST_PRIORITY: Final = 19

_faiss: Any = faiss  # its type hints are incomplete


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveIndex:
    """An index over the first slots. Threads may share it."""

    searcher: Searcher
    index: Any
    num_rows: int


def lower_thread_priority() -> None:
    """Give the calling thread the lowest priority, which processes that it starts inherit."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)


class Cancelled(Exception):  # noqa: N818 (no error)
    """The index is not needed any more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveIndexMaker:
    """Makes the indexes of live items of one version."""

    empty: Callable[[], Any]
    """Returns the version's index without any item."""
    plan: SearchPlan
    plan_at: Callable[[float], SearchPlan | None]
    num_interests: int

    def grow(
        self, index: LiveIndex | None, vectors_RD: NDArray[np.float32], cancelled: threading.Event
    ) -> LiveIndex:
        """Return an index over all of the vectors.

        Args:
            index: An index over the first of them; None for none.
            vectors_RD: Finite.
            cancelled: Ends the work early.

        Raises:
            Cancelled: it was ended.
        """
        faiss.omp_set_num_threads(1)
        grown = self.empty() if index is None else _faiss.clone_index(index.index)
        for start in range(grown.ntotal, len(vectors_RD), _CHUNK_ROWS):
            if cancelled.is_set():
                raise Cancelled
            grown.add(np.ascontiguousarray(vectors_RD[start : start + _CHUNK_ROWS]))
        searcher = Searcher(
            grown, self.plan, self.plan_at, vectors_ND=vectors_RD, num_interests=self.num_interests
        )
        return LiveIndex(searcher=searcher, index=grown, num_rows=len(vectors_RD))
