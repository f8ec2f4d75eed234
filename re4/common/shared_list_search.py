"""The search of an IVF index with one budget of lists for all interests of a request.

All pairs of an interest and a list compete by the reach of the list, the largest inner product to be
expected there (`export/index/coarse_quantizer.py`). The best pairs are read, as far as they promise enough in
comparison with the best one. An interest that gets no list is not searched.

By maximum score an interest is worth its best items alone. A merge policy that shares the list among the
interests needs items of each: `balance` closes a part of the distance between the best reaches of the
interests before their lists compete.

Legend: B requests, K interests, D embedding, C lists of the index, E pairs to read, Q searched interests of
all requests, P lists of an interest, A searched interests of a request, S results.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from re4.common.list_scan import FurtherItems, ListScan, open_list_scan
from re4.common.sortable import sortable

REACH_DROP: Final = "reach_drop"
"""The name in the manifest."""
REACH_DROP_EXPONENT: Final = 0.2
"""For a multiple of the lists that are read, the `reach_drop` is multiplied by the multiple to this power.
Measured on synthetic catalogues."""
NO_DROP_TOO_LARGE: Final = 1e6
"""With this `reach_drop`, the number of lists alone is the budget."""


class SharedBudget(NamedTuple):
    """Lists that a request reads; a list that two interests read counts twice."""

    num_lists: int
    """The largest number, at least 1."""
    reach_drop: float
    """Only lists are read whose reach is at most so much below the best one, as a share of the latter."""


class SharedListSearch:
    """Searches of one IVF index, which must be on the CPU and outlive this object. Thread-safe."""

    def __init__(self, index: Any, *, is_native: bool = True) -> None:
        """Read the reaches of the lists from the coarse quantizer of the index.

        Args:
            index: A FAISS index.
            is_native: Whether compiled code may scan the lists; otherwise FAISS does.
        """
        import faiss

        self._faiss: Any = faiss
        self._index = index
        self._centroids: Any = faiss.downcast_index(index.quantizer)
        selector = self._centroids
        if isinstance(selector, faiss.IndexRefine):  # reaches and centroids differ
            self._centroids = faiss.downcast_index(selector.refine_index)
            selector = faiss.downcast_index(selector.base_index)
        if isinstance(selector, faiss.IndexHNSW):
            selector = faiss.downcast_index(selector.storage)
        if isinstance(self._centroids, faiss.IndexHNSW):
            self._centroids = faiss.downcast_index(self._centroids.storage)
        self._scan = open_list_scan(index, self._centroids) if is_native else None
        self._reaches_DC = np.ascontiguousarray(selector.reconstruct_n(0, index.nlist).T)

    @property
    def list_scan(self) -> ListScan | None:
        """The compiled scan of the lists; None where FAISS scans them."""
        return self._scan

    def budgets(
        self, interests_BKD: NDArray[np.float32], nums_lists: Sequence[int]
    ) -> Iterator[SharedBudget]:
        """Yield budgets of these numbers of lists: requests read half on average, or all of all lists."""
        reaches_BE = np.sort(self._reaches(interests_BKD), axis=1)[:, ::-1]
        best_B = reaches_BE[:, :1]
        drops_BE = (best_B - reaches_BE) / np.maximum(np.abs(best_B), np.finfo(np.float32).tiny)
        for num_lists in nums_lists:
            half = round(float(np.median(drops_BE[:, :num_lists])), 4)
            yield SharedBudget(num_lists, half if num_lists < drops_BE.shape[1] else NO_DROP_TOO_LARGE)

    def search(
        self,
        interests_BKD: NDArray[np.float32],
        num_results: int,
        budget: SharedBudget,
        *,
        pool_size: int,
        selector: Any = None,
        balance: float = 0.0,
        is_hidden_N: NDArray[np.bool_] | None = None,
        more: FurtherItems | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search for the interests of each request in the lists of the largest reach.

        Args:
            interests_BKD: Finite.
            num_results: Results of each searched interest, at least 1.
            budget: Of each request.
            pool_size: Results of each request that will be used, at least 1.
            selector: A FAISS selector of the items that may be found; None for all.
            balance: Part of the distance between an interest's best reach and the request's best one that is
                added to the reaches and the scores of the interest, 0 to 1.
            is_hidden_N: As for `ListScan.pool`, where there is a `list_scan` and no selector.
            more: Likewise.

        Returns:
            `scores_BAS`, which are approximate where the index holds codes and include the bonuses of a
            balance, and `rows_BAS`, -1 where there is
            no further result. Where compiled code scans, A is 1: S results of all interests, no row twice.
        """
        num_requests, num_interests, embedding_dim = interests_BKD.shape
        reaches_BE = self._reaches(interests_BKD)
        bonuses_BK = _add_bonuses(reaches_BE, num_interests, balance) if balance else None
        if self._scan is not None and selector is None:
            scores_BP, rows_BP = self._scan.pool(
                interests_BKD, reaches_BE, bonuses_BK, *budget, pool_size, is_hidden_N=is_hidden_N, more=more
            )
            return scores_BP[:, None], rows_BP[:, None]
        searches_E, lists_E = self._promising(reaches_BE, budget)
        counts = np.bincount(searches_E, minlength=num_requests * num_interests)
        is_searched = counts > 0
        counts_Q = counts[is_searched]
        queries_QD = interests_BKD.reshape(-1, embedding_dim)[is_searched]
        is_read_QP = np.arange(counts_Q.max()) < counts_Q[:, None]
        lists_QP = np.full(is_read_QP.shape, -1, np.int64)
        lists_QP[is_read_QP] = lists_E
        scores_QS, rows_QS = self._read(queries_QD, num_results, lists_QP, is_read_QP, selector)
        if bonuses_BK is not None:
            scores_QS += bonuses_BK.reshape(-1)[is_searched, None]
        if num_requests == 1 or is_searched.all():
            shape = num_requests, -1, num_results
            return scores_QS.reshape(shape), rows_QS.reshape(shape)
        is_searched_BK = is_searched.reshape(num_requests, num_interests)
        places_BK = is_searched_BK.cumsum(axis=1)
        shape = num_requests, int(places_BK[:, -1].max()), num_results
        scores_BAS, rows_BAS = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
        to = np.nonzero(is_searched_BK)[0], places_BK[is_searched_BK] - 1
        scores_BAS[to], rows_BAS[to] = scores_QS, rows_QS
        return scores_BAS, rows_BAS

    def best(
        self,
        interests_BKD: NDArray[np.float32],
        budget: SharedBudget,
        vectors_ND: NDArray[np.float32],
        num_best: int,
        *,
        pool_size: int,
        is_hidden_N: NDArray[np.bool_] | None = None,
        more: FurtherItems | None = None,
        more_vectors_RD: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]] | None:
        """Return the best items of the pool that `search` finds, by their vectors, in one compiled step.

        Args:
            interests_BKD: As for `search`.
            budget: Likewise.
            vectors_ND: Of the items.
            num_best: How many, at least 1.
            pool_size: As for `search`.
            is_hidden_N: Likewise.
            more: Likewise.
            more_vectors_RD: Of the further items.

        Returns:
            As `ListScan.best`; None where FAISS scans the lists, or vectors are not C-contiguous.
        """
        is_plain = _is_plain(vectors_ND) and (more_vectors_RD is None or _is_plain(more_vectors_RD))
        if self._scan is None or not is_plain:
            return None
        return self._scan.best(
            interests_BKD,
            np.matmul(interests_BKD.reshape(-1, interests_BKD.shape[2]), self._reaches_DC),
            *budget,
            pool_size,
            vectors_ND,
            num_best,
            is_hidden_N=is_hidden_N,
            more=more,
            more_vectors_RD=more_vectors_RD,
        )

    def _promising(
        self, reaches_BE: NDArray[np.float32], budget: SharedBudget
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the pairs to read: numbers of their interests from 0 to B K - 1, ascending, and lists.

        For each interest the list of the largest reach comes first.
        """
        num_requests, num_pairs = reaches_BE.shape
        best_B = reaches_BE.max(axis=1)
        least_B = best_B - np.float32(budget.reach_drop) * np.abs(best_B)
        pairs_E = np.flatnonzero(reaches_BE >= least_B[:, None])
        reaches_E = reaches_BE.reshape(-1)[pairs_E]
        sizes_B = np.bincount(pairs_E // num_pairs, minlength=num_requests)
        if sizes_B.max() > budget.num_lists:
            stops_B = sizes_B.cumsum()
            is_kept_E = np.ones(len(pairs_E), np.bool_)
            for request in np.flatnonzero(sizes_B > budget.num_lists).tolist():
                own = slice(stops_B[request] - sizes_B[request], stops_B[request])
                is_kept_E[own][np.argpartition(-reaches_E[own], budget.num_lists)[budget.num_lists :]] = False
            pairs_E, reaches_E = pairs_E[is_kept_E], reaches_E[is_kept_E]
        searches_E, lists_E = np.divmod(pairs_E, self._index.nlist)
        # Interest and reach in one integer: NumPy sorts integers several times faster than pairs of keys.
        order = np.argsort((searches_E << 32) - sortable(reaches_E))
        return searches_E[order], lists_E[order]

    def _reaches(self, interests_BKD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the reach of each pair of an interest and a list, [B, K C]."""
        num_requests, num_interests, embedding_dim = interests_BKD.shape
        reaches_QC = np.matmul(interests_BKD.reshape(-1, embedding_dim), self._reaches_DC)
        reaches_BE: NDArray[np.float32] = reaches_QC.reshape(num_requests, -1)
        # Encoders repeat the first interest of a user who has fewer: it is searched once.
        is_repeated_BK = (interests_BKD[:, 1:] == interests_BKD[:, :1]).all(axis=2)
        if is_repeated_BK.any():
            reaches_BE.reshape(num_requests, num_interests, -1)[:, 1:][is_repeated_BK] = -np.inf
        return reaches_BE

    def _read(
        self,
        queries_QD: NDArray[np.float32],
        num_results: int,
        lists_QP: NDArray[np.int64],
        is_read_QP: NDArray[np.bool_],
        selector: Any,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search each query in its own lists."""
        as_pointer = self._faiss.swig_ptr
        num_queries, num_lists = lists_QP.shape
        products_QP = np.empty(lists_QP.shape, np.float32)
        self._centroids.compute_distance_subset(
            num_queries, as_pointer(queries_QD), num_lists, as_pointer(products_QP), as_pointer(lists_QP)
        )
        # FAISS skips the list -1, but each product counts in the scale of its tables: a real one is repeated.
        np.copyto(products_QP, products_QP[:, :1], where=~is_read_QP)
        scores_QS = np.empty((num_queries, num_results), np.float32)
        rows_QS = np.empty((num_queries, num_results), np.int64)
        parameters = self._faiss.SearchParametersIVF(nprobe=num_lists, sel=selector)
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


def _add_bonuses(reaches_BE: NDArray[np.float32], num_interests: int, balance: float) -> NDArray[np.float32]:
    """Raise the reaches of each interest by its bonus, in place; return the bonuses."""
    reaches_BKC = reaches_BE.reshape(len(reaches_BE), num_interests, -1)
    best_BK = reaches_BKC.max(axis=2)
    distances_BK = best_BK.max(axis=1, keepdims=True) - best_BK
    bonuses_BK = np.where(np.isfinite(distances_BK), np.float32(balance) * distances_BK, np.float32(0))
    reaches_BKC += bonuses_BK[:, :, None]
    return bonuses_BK


def _is_plain(vectors: NDArray[np.float32]) -> bool:
    return vectors.flags.c_contiguous and vectors.dtype == np.float32
