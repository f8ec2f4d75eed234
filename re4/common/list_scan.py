"""The compiled scan of inverted lists of four-bit codes: all interests of a request fill one pool.

FAISS searches for each interest by itself, and keeps results that the merged list cannot use. Here one
threshold rises for all interests of a request, and an item enters the pool once. Searches with a selector,
other kinds of index, and machines without a C compiler use FAISS.

Legend: B requests, K interests, Q interests of all requests, D embedding, N items, C lists, E pairs of an
interest and a list, interest by interest, P rows of a pool, M results.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from re4.common.native_code import address_of, is_native_allowed, load_optional_library
from re4.common.pauses import with_pauses

_SOURCE: Final = Path(__file__).with_name("list_scan.c")
_BLOCK: Final = 32
_CHUNK_LISTS: Final = 64
"""Lists whose addresses are read at once: 0.1 ms."""
_SUBS: Final = 4
"""The number of sub-quantizers is a multiple of it."""


class _Index(ctypes.Structure):
    """`scan_index` of the C code."""

    _fields_ = (
        ("num_lists", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("num_subs", ctypes.c_int64),
        ("num_interests", ctypes.c_int64),
        ("pool_size", ctypes.c_int64),
        ("num_items", ctypes.c_int64),
        ("first_row", ctypes.c_int64),
        ("is_hidden", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("sizes", ctypes.c_void_p),
        ("centroids", ctypes.c_void_p),
        ("codebook", ctypes.c_void_p),
    )


class FurtherItems(NamedTuple):
    """Items of another index with the same centroids and codebook."""

    scan: "ListScan"
    first_row: int
    """Is added to their rows."""
    is_hidden_R: NDArray[np.bool_] | None
    """Those that are not found; None for none."""


class ListScan:
    """Scans of one IVF index of four-bit codes, which must outlive this object. Thread-safe."""

    def __init__(self, library: ctypes.CDLL, index: Any, centroids: Any) -> None:
        """Take the addresses of the lists.

        Args:
            library: The compiled code.
            index: An `IndexIVFPQFastScan` that `can_scan` accepts.
            centroids: Its centroids, a flat index.
        """
        import faiss

        lists = index.invlists
        # An index of live items is made beside threads that answer.
        facts = [
            (int(lists.get_codes(number) or 0), int(lists.get_ids(number) or 0), lists.list_size(number))
            for number in with_pauses(range(index.nlist), _CHUNK_LISTS)
        ]
        self._library = library
        self._index = index
        codes, rows, sizes = zip(*facts, strict=True)
        self._codes = np.array(codes, np.uint64)
        self._rows = np.array(rows, np.uint64)
        self._sizes = np.array(sizes, np.int64)
        self._centroids_CD = centroids.reconstruct_n(0, index.nlist) if index.by_residual else None
        self._codebook = faiss.vector_to_array(index.pq.centroids)
        self._described = _Index(
            num_lists=len(self._sizes),
            dim=index.d,
            num_subs=index.pq.M,
            num_items=index.ntotal,
            codes=self._codes.ctypes.data,
            rows=self._rows.ctypes.data,
            sizes=self._sizes.ctypes.data,
            centroids=None if self._centroids_CD is None else self._centroids_CD.ctypes.data,
            codebook=self._codebook.ctypes.data,
        )

    def pool(
        self,
        interests_BKD: NDArray[np.float32],
        reaches_BE: NDArray[np.float32],
        bonuses_BK: NDArray[np.float32] | None,
        num_lists: int,
        reach_drop: float,
        size: int,
        *,
        is_hidden_N: NDArray[np.bool_] | None = None,
        more: FurtherItems | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the rows with the best approximate scores in the lists of each request.

        Args:
            interests_BKD: Finite.
            reaches_BE: Reaches of all pairs; minus infinity for one that is not read.
            bonuses_BK: Are added to the scores of each interest; None for none.
            num_lists: Pairs of a request that are read at most.
            reach_drop: As in `SharedBudget`.
            size: Rows of a pool, at least 1.
            is_hidden_N: Rows that are not found; None for none.
            more: Further items, whose lists are read with those of this index; None for none.

        Returns:
            `scores_BP` and `rows_BP` in no order, no row twice; -1 where the lists hold no more.
        """
        num_requests, num_interests = interests_BKD.shape[:2]
        interests_BKD = np.ascontiguousarray(interests_BKD, np.float32)
        reaches_BE = np.ascontiguousarray(reaches_BE, np.float32)
        if bonuses_BK is not None:
            bonuses_BK = np.ascontiguousarray(bonuses_BK, np.float32)
        scores_BP = np.empty((num_requests, size), np.float32)
        rows_BP = np.empty((num_requests, size), np.int64)
        index, other = self._both_for_call(num_interests, size, is_hidden_N, more)
        failed = self._library.scan_lists(
            index,
            other,
            num_requests,
            address_of(interests_BKD),
            address_of(reaches_BE),
            None if bonuses_BK is None else address_of(bonuses_BK),
            num_lists,
            reach_drop,
            address_of(scores_BP),
            address_of(rows_BP),
        )
        if failed:
            raise MemoryError(f"no memory for a pool of {size} rows")
        return scores_BP, rows_BP

    def best(
        self,
        interests_BKD: NDArray[np.float32],
        reaches_QC: NDArray[np.float32],
        num_lists: int,
        reach_drop: float,
        size: int,
        vectors_ND: NDArray[np.float32],
        num_best: int,
        *,
        is_hidden_N: NDArray[np.bool_] | None = None,
        more: FurtherItems | None = None,
        more_vectors_RD: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Return the best rows of the `pool` by their exact scores, best first.

        Where the pool holds fewer than are wanted, lists of any reach are read, up to `num_lists`.

        Args:
            interests_BKD: As for `pool`.
            reaches_QC: Reaches of all lists; those of interests that repeat the first one are overwritten.
            num_lists: As for `pool`.
            reach_drop: Likewise.
            size: Likewise.
            vectors_ND: Of the items; C-contiguous.
            num_best: Rows to return, at least 1.
            is_hidden_N: As for `pool`.
            more: Likewise.
            more_vectors_RD: Of the further items; C-contiguous.

        Returns:
            `rows_BM`, -1 where the pool holds no more, `scores_BM`, and the number of the interest of each.
        """
        num_requests, num_interests = interests_BKD.shape[:2]
        interests_BKD = np.ascontiguousarray(interests_BKD, np.float32)
        reaches_QC = np.ascontiguousarray(reaches_QC, np.float32)
        shape = num_requests, min(num_best, size)
        rows_BM, scores_BM = np.empty(shape, np.int64), np.empty(shape, np.float32)
        numbers_BM = np.empty(shape, np.int64)
        index, other = self._both_for_call(num_interests, size, is_hidden_N, more)
        failed = self._library.best_of_lists(
            index,
            other,
            num_requests,
            address_of(interests_BKD),
            address_of(reaches_QC),
            num_lists,
            reach_drop,
            address_of(vectors_ND),
            None if more_vectors_RD is None else address_of(more_vectors_RD),
            shape[1],
            address_of(rows_BM),
            address_of(scores_BM),
            address_of(numbers_BM),
        )
        if failed:
            raise MemoryError(f"no memory for a pool of {size} rows")
        return rows_BM, scores_BM, numbers_BM

    def _both_for_call(
        self,
        num_interests: int,
        pool_size: int,
        is_hidden_N: NDArray[np.bool_] | None,
        more: FurtherItems | None,
    ) -> tuple[Any, Any]:
        """Return this index and that of the further items, as the compiled code takes them."""
        index = self._for_call(num_interests, pool_size, 0, is_hidden_N)
        if more is None:
            return ctypes.byref(index), None
        other = more.scan._for_call(num_interests, pool_size, more.first_row, more.is_hidden_R)
        return ctypes.byref(index), ctypes.byref(other)

    def _for_call(
        self, num_interests: int, pool_size: int, first_row: int, is_hidden_N: NDArray[np.bool_] | None
    ) -> _Index:
        index = _Index.from_buffer_copy(self._described)
        index.num_interests, index.pool_size, index.first_row = num_interests, pool_size, first_row
        if is_hidden_N is not None:
            index.is_hidden = is_hidden_N.ctypes.data
        return index


def open_list_scan(index: Any, centroids: Any) -> ListScan | None:
    """Return the scan of an index; None where its kind has none, or there is no compiled code here."""
    if type(index).__name__ != "IndexIVFPQFastScan" or index.pq.nbits != 4:
        return None
    if index.bbs != _BLOCK or index.pq.M % _SUBS or index.M2 != index.pq.M:
        return None
    library = _library() if is_native_allowed() else None
    return None if library is None else ListScan(library, index, centroids)


@cache
def _library() -> ctypes.CDLL | None:
    """Return the compiled code; None where there is none."""
    library = load_optional_library(_SOURCE, "FAISS scans the lists, more slowly")
    if library is None:
        return None
    address, number, index = ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(_Index)
    library.scan_lists.argtypes = [
        index, index, number, *[address] * 3, number, ctypes.c_float, address, address,
    ]  # fmt: skip
    library.best_of_lists.argtypes = [
        index, index, number, address, address, number, ctypes.c_float, address, address, number,
        *[address] * 3,
    ]  # fmt: skip
    return library
