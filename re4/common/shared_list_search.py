"""The search of an IVF index with one budget of lists for all interests of a request.

All pairs of an interest and a list compete by the reach of the list (`export/index/coarse_quantizer.py`), and
the best of them are read. An interest that gets no list is not searched.

Legend: B requests, K interests, D embedding, C lists of the index, P lists of an interest, Q searched
interests of all requests, A searched interests of a request, S results.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class SharedListSearch:
    """Searches of one IVF index, which must be on the CPU and outlive this object. Thread-safe."""

    def __init__(self, index: Any) -> None:
        """Open the coarse quantizer of the index."""
        import faiss

        self._faiss: Any = faiss
        self._index = index
        self._quantizer: Any = faiss.downcast_index(index.quantizer)
        self._centroids: Any = None
        if isinstance(self._quantizer, faiss.IndexRefine):  # another index selects, by reach
            self._centroids = faiss.downcast_index(self._quantizer.refine_index)
            self._quantizer = faiss.downcast_index(self._quantizer.base_index)

    def search(
        self,
        interests_BKD: NDArray[np.float32],
        num_results: int,
        num_lists: int,
        *,
        selector: Any = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search for the interests of each request in the lists of the largest reach.

        Args:
            interests_BKD: Finite.
            num_results: Results of each searched interest, at least 1.
            num_lists: Lists that a request reads, at least 1; one that two interests read counts twice.
            selector: A FAISS selector of the items that may be found; None for all.

        Returns:
            `scores_BAS`, which are approximate where the index holds codes, and `rows_BAS`, -1 where there is
            no further result.
        """
        num_requests, num_interests, embedding_dim = interests_BKD.shape
        most = min(num_lists, self._index.nlist)
        reaches_QP, lists_QP = self._quantizer.search(interests_BKD.reshape(-1, embedding_dim), most)
        shape = num_requests, num_interests, most
        reaches_BKP, lists_BKP = reaches_QP.reshape(shape), lists_QP.reshape(shape)
        # Encoders repeat the first interest of a user who has fewer: it is searched once.
        is_repeated_BK = (interests_BKD[:, 1:] == interests_BKD[:, :1]).all(axis=2)
        reaches_BKP[:, 1:][is_repeated_BK] = -np.inf
        lists_BKP[:, 1:][is_repeated_BK] = -1
        counts_BK = np.minimum(_shares(reaches_BKP, num_lists), (lists_BKP >= 0).sum(axis=2))
        is_searched_BK = counts_BK > 0
        counts_Q = counts_BK[is_searched_BK]
        searched_Q, most = is_searched_BK.ravel(), int(counts_Q.max())
        queries_QD = interests_BKD[is_searched_BK]
        lists_QP = np.ascontiguousarray(lists_QP[searched_Q, :most])
        reaches_QP = np.ascontiguousarray(reaches_QP[searched_Q, :most])
        is_unused_QP = np.arange(most) >= counts_Q[:, None]
        # FAISS skips the list -1, but each distance counts in the scale of its tables: a real one is
        # repeated.
        np.copyto(lists_QP, lists_QP[:, :1], where=is_unused_QP)
        np.copyto(reaches_QP, reaches_QP[:, :1], where=is_unused_QP)
        products_QP = self._products(queries_QD, lists_QP, reaches_QP)
        lists_QP[is_unused_QP] = -1
        scores_QS, rows_QS = self._read(queries_QD, num_results, lists_QP, products_QP, selector)
        if len(queries_QD) == num_requests * num_interests:
            shape = num_requests, num_interests, num_results
            return scores_QS.reshape(shape), rows_QS.reshape(shape)
        places_BK = is_searched_BK.cumsum(axis=1)
        shape = num_requests, int(places_BK[:, -1].max()), num_results
        scores_BAS, rows_BAS = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
        to = np.nonzero(is_searched_BK)[0], places_BK[is_searched_BK] - 1
        scores_BAS[to], rows_BAS[to] = scores_QS, rows_QS
        return scores_BAS, rows_BAS

    def _products(
        self,
        queries_QD: NDArray[np.float32],
        lists_QP: NDArray[np.int64],
        reaches_QP: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Return the inner products of each query with the centroids of its lists."""
        if self._centroids is None:
            return reaches_QP
        products_QP = np.empty(lists_QP.shape, np.float32)
        as_pointer = self._faiss.swig_ptr
        self._centroids.compute_distance_subset(
            len(queries_QD),
            as_pointer(queries_QD),
            lists_QP.shape[1],
            as_pointer(products_QP),
            as_pointer(lists_QP),
        )
        return products_QP

    def _read(
        self,
        queries_QD: NDArray[np.float32],
        num_results: int,
        lists_QP: NDArray[np.int64],
        products_QP: NDArray[np.float32],
        selector: Any,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search each query in its own lists, given its inner products with their centroids."""
        as_pointer = self._faiss.swig_ptr
        num_queries, most = lists_QP.shape
        scores_QS = np.empty((num_queries, num_results), np.float32)
        rows_QS = np.empty((num_queries, num_results), np.int64)
        parameters = self._faiss.SearchParametersIVF(nprobe=most, sel=selector)
        # FAISS's own wrapper of this method takes no parameters.
        self._index.search_preassigned_c(
            num_queries,
            as_pointer(queries_QD),
            num_results,
            as_pointer(lists_QP),
            as_pointer(products_QP),
            as_pointer(scores_QS),
            as_pointer(rows_QS),
            False,
            parameters,
        )
        return scores_QS, rows_QS


def _shares(reaches_BKP: NDArray[np.float32], num_lists: int) -> NDArray[np.int64]:
    """Return how many of its lists each interest may read, best first, [B, K].

    Args:
        reaches_BKP: Of each interest's lists, descending.
        num_lists: Of a request.
    """
    num_requests, num_interests, most = reaches_BKP.shape
    num_lists = min(num_lists, num_interests * most)
    if num_interests == 1:
        return np.full((num_requests, 1), num_lists)
    by_reach = np.argpartition(reaches_BKP.reshape(num_requests, -1), -num_lists, axis=1)[:, -num_lists:]
    owners = by_reach // most + num_interests * np.arange(num_requests)[:, None]
    counts: NDArray[np.int64] = np.bincount(owners.ravel(), minlength=num_requests * num_interests)
    return counts.reshape(num_requests, num_interests)
