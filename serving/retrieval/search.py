"""The search of many interests in one call of the index, with true scores.

Legend: Q queries (requests x interests), S results per query, D embedding, K interests, N items.
"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, Final, TypeAlias

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.bundle.milvus.collection_index import VectorsOfRows
from re4.bundle.scoring.exact_search import exact_search
from re4.bundle.scoring.rescoring import best_by_interest, best_rescored, rescore
from re4.common.faiss_settings import use_matrix_products
from re4.common.list_scan import FurtherItems, ListScan
from re4.common.shared_list_search import SharedListSearch
from re4.serving.retrieval.filters import AllowedItems, Condition
from re4.serving.retrieval.indexes.kinds import SearchPlan
from re4.serving.retrieval.indexes.part_check import check_parts
from re4.serving.retrieval.indexes.remote_index import RemoteIndex
from re4.serving.retrieval.indexes.remote_vectors import ItemVectors, RemoteVectors

SelectorOf: TypeAlias = Callable[[AllowedItems, Sequence[Condition], int], Any]
"""From the items that may be found, the conditions that chose them and the number of hidden items."""

_faiss: Any = faiss  # its type hints are incomplete

_BALANCED_POOL: Final = 2
"""A balanced pool is larger, because the list has items that are far from the best by maximum score. The
factor is measured in benchmarks/results/quality/interests.md."""
_EVERYTHING: Final = 1e9
"""An effort with which an index on another machine compares all items."""
_Found: TypeAlias = tuple[
    NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], int
]
"""The first arguments of `rescore`."""


class Searcher:
    """A loaded index with the search parameters of its version. Thread-safe."""

    def __init__(
        self,
        index: Any,
        plan: SearchPlan | None,
        plan_at: Callable[[float], SearchPlan | None] = lambda _: None,
        *,
        vectors_ND: ItemVectors,
        num_interests: int,
        selector_of: SelectorOf = lambda allowed, *_: allowed.selector,
    ) -> None:
        """Wrap an index, and set FAISS for this process to search by matrix products.

        Args:
            index: A FAISS index by inner product, or an index on another machine in that form; its labels are
                item rows.
            plan: How it is searched by default; None for an exact index.
            plan_at: Makes the plan of another effort, a multiple of the default one.
            vectors_ND: The indexed vectors; may be memory-mapped, or in the collection that is searched.
            num_interests: K.
            selector_of: Makes the selector of a search.

        Raises:
            BundleMismatchError: the index has a part that is not allowed, or the plan is for
                another kind.
        """
        use_matrix_products()
        check_parts(index, plan)
        use_matrix_products()
        self._index = index
        self._shared_search = _shared_search(index, plan)
        self._plan = plan
        self._plan_at = plan_at
        self._vectors_ND = vectors_ND
        self.num_interests = num_interests
        self.selector_of = selector_of

    @property
    def is_remote(self) -> bool:
        """Whether the index is on another machine, so that a search waits for it."""
        return isinstance(self._index, RemoteIndex)

    @property
    def failure(self) -> str:
        """Why the index cannot be searched; empty where it can."""
        return self._index.failure if isinstance(self._index, RemoteIndex) else ""

    def convert_index(self, convert: Callable[[Any], Any]) -> None:
        """Replace the index by another form of it, such as its copy on a GPU."""
        self._index = convert(self._index)
        self._shared_search = _shared_search(self._index, self._plan)

    @property
    def list_scan(self) -> ListScan | None:
        """The compiled scan of the lists of `search_best`; None where FAISS searches."""
        return None if self._shared_search is None else self._shared_search.list_scan

    def search(
        self,
        queries_QD: NDArray[np.float32],
        num_results: int,
        *,
        needs_each_list: bool = True,
        balance: float | None = None,
        effort: float = 1.0,
        selector: Any = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the best items of each query, with true scores.

        With an approximate index, all items that a request's interests found are scored for each of
        these interests. So an interest's list may hold items that another interest found. Where lists need
        not be complete, the interests of a request share one budget of an IVF index, if it was tuned so.

        Args:
            queries_QD: Finite query vectors, the K of a request beside each other. FAISS's answer
                to others is undefined.
            num_results: How many each query wants, at least 1.
            needs_each_list: Whether each list must be complete. Otherwise only the best items over
                all of a request's lists must be, which the tuned setting finds with less work.
            balance: As `MergePolicy.balance`: the lists need not be complete, but hold what each interest can
                contribute. None for complete lists.
            effort: A multiple of the tuned setting.
            selector: A result of `selector_of`: the items that may be found; None for all.

        Returns:
            `scores_QS` best first and `rows_QS`, -1 where the index found no further item; S is at
            most `num_results`.
        """
        num_results = min(num_results, self._index.ntotal)
        queries_QD = np.ascontiguousarray(queries_QD)
        plan = self._plan if effort == 1 and selector is None else self._other_plan(effort, selector)
        if plan is None:
            parameters = None if selector is None else _faiss.SearchParameters(sel=selector)
            scores_QS, rows_QS = self._index.search(queries_QD, num_results, params=parameters)
            return scores_QS, rows_QS
        found, of_rows = self._find(
            queries_QD, num_results, plan, needs_each_list=needs_each_list, balance=balance
        )
        scores_BKS, rows_BKS = best_by_interest(rescore(*found), num_results)
        if of_rows is not None:
            rows_BKS = of_rows.rows(rows_BKS)
        return scores_BKS.reshape(len(queries_QD), -1), rows_BKS.reshape(len(queries_QD), -1)

    def search_all(
        self,
        queries_QD: NDArray[np.float32],
        num_results: int,
        allowed: AllowedItems | None = None,
        conditions: Sequence[Condition] = (),
        num_hidden: int = 0,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Compare each item of the version that may be found, with true scores.

        Where the item vectors are on another machine, its index compares all items, and the best of them are
        scored by their vectors.

        Args:
            queries_QD: As for `search`.
            num_results: Likewise.
            allowed: The items that may be found, live ones included; None for all.
            conditions: Those by which they were chosen.
            num_hidden: Hidden items of the version, which no condition names.

        Returns:
            As `search`; S is smaller where there are fewer items.
        """
        if isinstance(self._vectors_ND, RemoteVectors):
            if allowed is not None and not allowed.num_rows:
                nothing_QS = np.empty((len(queries_QD), 0))
                return nothing_QS.astype(np.float32), nothing_QS.astype(np.int64)
            selector = None if allowed is None else self.selector_of(allowed, conditions, num_hidden)
            return self.search(queries_QD, num_results, effort=_EVERYTHING, selector=selector)
        rows_S = None if allowed is None else allowed.rows()
        if rows_S is not None:
            rows_S = rows_S[rows_S < len(self._vectors_ND)]  # without live items
        return exact_search(queries_QD[:, None], self._vectors_ND, num_results, among_rows=rows_S)

    def search_best(
        self,
        queries_QD: NDArray[np.float32],
        num_results: int,
        *,
        is_hidden_N: NDArray[np.bool_] | None = None,
        more: tuple[FurtherItems, NDArray[np.float32]] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]] | None:
        """Return the best items of each request by maximum score, found by the default plan.

        The result equals that of `search` and a merge by maximum score, with less work. None where
        the index is exact: there `search` has no more work to do.

        Args:
            queries_QD: As for `search`.
            num_results: How many each request wants, at least 1.
            is_hidden_N: Rows that are not found, where there is a `list_scan`; None for none.
            more: Items that are found and re-scored together with those of the index, where there is a
                `list_scan`, and the vectors of all of them; None for none.

        Returns:
            As `re4.bundle.scoring.rescoring.best_candidates`.
        """
        if self._plan is None:
            return None
        if more is None:
            num_results = min(num_results, self._index.ntotal)
        queries_QD = np.ascontiguousarray(queries_QD)
        if self._shared_search is not None and self._plan.budget is not None:
            assert not isinstance(self._vectors_ND, RemoteVectors)
            best = self._shared_search.best(
                queries_QD.reshape(-1, self.num_interests, queries_QD.shape[1]),
                self._plan.budget,
                self._vectors_ND,
                num_results,
                pool_size=ceil(num_results * self._plan.pool_factor),
                is_hidden_N=is_hidden_N,
                more=None if more is None else more[0],
                more_vectors_RD=None if more is None else more[1],
            )
            if best is not None:
                return best
        found, of_rows = self._find(
            queries_QD, num_results, self._plan, needs_each_list=False, is_hidden_N=is_hidden_N, more=more
        )
        vectors = None if more is None else (more[0].first_row, more[1])
        rows_BM, scores_BM, numbers_BM = best_rescored(*found, num_results, vectors)
        return rows_BM if of_rows is None else of_rows.rows(rows_BM), scores_BM, numbers_BM

    def _find(
        self,
        queries_QD: NDArray[np.float32],
        num_results: int,
        plan: SearchPlan,
        *,
        needs_each_list: bool,
        balance: float | None = None,
        is_hidden_N: NDArray[np.bool_] | None = None,
        more: tuple[FurtherItems, NDArray[np.float32]] | None = None,
    ) -> tuple[_Found, VectorsOfRows | None]:
        """Return the first arguments of `rescore`.

        The second value is None where these name rows; else they name places in these vectors, which came
        with the results.
        """
        num_found = min(ceil(num_results * plan.k_factor), self._index.ntotal)
        interests_BKD = queries_QD.reshape(-1, self.num_interests, queries_QD.shape[1])
        pool_size = ceil(num_results * plan.pool_factor)
        is_balanced = needs_each_list and balance is not None
        if (
            self._shared_search is not None
            and plan.budget is not None
            and (is_balanced or not needs_each_list)
        ):
            if is_balanced:
                pool_size *= _BALANCED_POOL
            scores_BKS, rows_BKS = self._shared_search.search(
                interests_BKD,
                num_found,
                plan.budget,
                pool_size=pool_size,
                selector=plan.parameters.sel,
                balance=balance or 0.0,
                is_hidden_N=is_hidden_N,
                more=None if more is None else more[0],
            )
        else:
            shape = (*interests_BKD.shape[:2], num_found)
            num_all = shape[1] * num_found
            pool_size = num_all if needs_each_list else min(pool_size, num_all)
            if isinstance(self._vectors_ND, RemoteVectors):
                scores_QS, rows_QS, of_rows = self._index.search_with_vectors(
                    queries_QD, num_found, params=plan.parameters
                )
                places_BKS = of_rows.places(rows_QS).reshape(shape)
                scores_BKS = scores_QS.reshape(shape)
                return (scores_BKS, places_BKS, interests_BKD, of_rows.vectors_UD, pool_size), of_rows
            scores_QS, rows_QS = self._index.search(queries_QD, num_found, params=plan.parameters)
            scores_BKS, rows_BKS = scores_QS.reshape(shape), rows_QS.reshape(shape)
        assert not isinstance(self._vectors_ND, RemoteVectors)
        return (scores_BKS, rows_BKS, interests_BKD, self._vectors_ND, pool_size), None

    def _other_plan(self, effort: float, selector: Any) -> SearchPlan | None:
        """Return a plan for one call; it only refers to the selector, which the caller must keep."""
        plan = self._plan_at(effort)
        if plan is not None and selector is not None:
            plan.parameters.sel = selector
        return plan


def _shared_search(index: Any, plan: SearchPlan | None) -> SharedListSearch | None:
    """Return the search with a shared budget; None without such a budget, and for an index on a GPU."""
    has_budget = plan is not None and plan.budget is not None
    return SharedListSearch(index) if has_budget and isinstance(index, _faiss.IndexIVF) else None
