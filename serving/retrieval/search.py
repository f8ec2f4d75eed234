"""Nearest items of many interests, in one call of the index, with true scores.

Legend: Q query rows (requests x interests), S results per query, D embedding, K interests, N items.
"""

from collections.abc import Callable
from math import ceil
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from re4.bundle.rescoring import CandidatePool, best_by_interest, best_candidates, rescore
from re4.common.faiss_settings import use_matrix_products
from re4.serving.retrieval.indexes.kind import SearchPlan
from re4.serving.retrieval.indexes.parts import check_parts

_faiss: Any = faiss  # its type hints are incomplete


class Searcher:
    """A loaded index with the search parameters of its version. Safe to share between threads."""

    def __init__(
        self,
        index: Any,
        plan: SearchPlan | None,
        plan_at: Callable[[float], SearchPlan | None] = lambda _: None,
        *,
        vectors_ND: NDArray[np.float32],
        num_interests: int,
    ) -> None:
        """Wrap an index.

        Args:
            index: A FAISS index that ranks by inner product; its labels are item rows.
            plan: How the usual call searches it; None where there is nothing to set, as it is exact.
            plan_at: The plan of another effort, a multiple of the usual one.
            vectors_ND: What was indexed; may be memory-mapped.
            num_interests: K.

        Raises:
            BundleMismatchError: the index has a part that is not allowed, or the plan is for another kind.
        """
        check_parts(index, plan)
        use_matrix_products()
        self._index = index
        self._plan = plan
        self._plan_at = plan_at
        self._vectors_ND = vectors_ND
        self.num_interests = num_interests

    def move(self, place: Callable[[Any], Any]) -> None:
        """Search another form of the index from now on, such as its copy on a device."""
        self._index = place(self._index)

    def search(
        self,
        queries_QD: NDArray[np.float32],
        num_results: int,
        *,
        for_each: bool = True,
        effort: float = 1.0,
        selector: Any = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best items of each query, with true scores.

        Where the index is approximate, all that a request's interests found is scored for each of them, so
        that an interest's list may hold what another one came across.

        Args:
            queries_QD: Finite query vectors, the K of a request beside each other. FAISS's answer to others
                is undefined.
            num_results: How many each query wants, at least 1.
            for_each: Whether each list matters. Otherwise the best over all of a request's lists do, which
                the tuned setting finds with less work.
            effort: A multiple of the tuned setting.
            selector: A FAISS selector of the items that may be found; None for all.

        Returns:
            `scores_QS` best first and `rows_QS`, -1 where the index found no further item; S is at most
            `num_results`.
        """
        num_results = min(num_results, self._index.ntotal)
        queries_QD = np.ascontiguousarray(queries_QD)
        plan = self._plan if effort == 1 and selector is None else self._other_plan(effort, selector)
        if plan is None:
            parameters = None if selector is None else _faiss.SearchParameters(sel=selector)
            scores_QS, rows_QS = self._index.search(queries_QD, num_results, params=parameters)
            return scores_QS, rows_QS
        pools = self._pools(queries_QD, num_results, plan, for_each=for_each)
        scores_BKS, rows_BKS = best_by_interest(pools, num_results)
        return scores_BKS.reshape(len(queries_QD), -1), rows_BKS.reshape(len(queries_QD), -1)

    def best(
        self, queries_QD: NDArray[np.float32], num_results: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]] | None:
        """The best items of each request over all of its interests, by the usual plan.

        What `search` and a merge by maximum score come to, with less work. None where the index is exact:
        its lists are ready already.

        Args:
            queries_QD: As for `search`.
            num_results: How many each request wants, at least 1.

        Returns:
            As `re4.bundle.rescoring.best_candidates`.
        """
        if self._plan is None:
            return None
        num_results = min(num_results, self._index.ntotal)
        pools = self._pools(np.ascontiguousarray(queries_QD), num_results, self._plan, for_each=False)
        return best_candidates(pools, num_results)

    def _pools(
        self, queries_QD: NDArray[np.float32], num_results: int, plan: SearchPlan, *, for_each: bool
    ) -> CandidatePool:
        num_found = min(ceil(num_results * plan.k_factor), self._index.ntotal)
        scores_QS, rows_QS = self._index.search(queries_QD, num_found, params=plan.parameters)
        interests_BKD = queries_QD.reshape(-1, self.num_interests, queries_QD.shape[1])
        shape = (*interests_BKD.shape[:2], num_found)
        return rescore(
            scores_QS.reshape(shape),
            rows_QS.reshape(shape),
            interests_BKD,
            self._vectors_ND,
            shape[1] * num_found if for_each else ceil(num_results * plan.pool_factor),
        )

    def _other_plan(self, effort: float, selector: Any) -> SearchPlan | None:
        """A plan for one call; the caller keeps the selector, which it only refers to."""
        plan = self._plan_at(effort)
        if plan is not None and selector is not None:
            plan.parameters.sel = selector
        return plan
