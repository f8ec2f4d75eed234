"""Nearest items of many interests, in one call of the index.

Legend: Q query rows (requests x interests), S results per query, D embedding.
"""

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from serving.indexes.kind import SearchPlan
from serving.indexes.parts import check_parts

_faiss: Any = faiss  # its type hints are incomplete


class Searcher:
    """A loaded index with the search parameters of its version. Safe to share between threads."""

    def __init__(
        self,
        index: Any,
        plan: SearchPlan | None,
        plan_at: Callable[[float], SearchPlan | None] = lambda _: None,
    ) -> None:
        """Wrap an index.

        Args:
            index: A FAISS index that ranks by inner product; its labels are item rows.
            plan: How the usual call searches it; None where there is nothing to set.
            plan_at: The plan of another effort, a multiple of the usual one.

        Raises:
            BundleMismatchError: the index has a part that is not allowed, or the plan is for another kind.
        """
        check_parts(index, plan)
        self._index = index
        self._parameters = None if plan is None else plan.parameters
        self._plan_at = plan_at

    def search(
        self,
        queries_QD: NDArray[np.float32],
        num_results: int,
        *,
        effort: float = 1.0,
        selector: Any = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best items of each query.

        Args:
            queries_QD: Finite query vectors: FAISS's answer to others is undefined.
            num_results: How many each query wants, at least 1.
            effort: A multiple of the tuned setting.
            selector: A FAISS selector of the items that may be found; None for all.

        Returns:
            `scores_QS` best first and `rows_QS`, -1 where the index found no further item; S is
            `num_results`, or the number of items where that is smaller.
        """
        num_results = min(num_results, self._index.ntotal)
        usual = effort == 1 and selector is None
        parameters = self._parameters if usual else self._other_parameters(effort, selector)
        scores_QS, rows_QS = self._index.search(
            np.ascontiguousarray(queries_QD), num_results, params=parameters
        )
        return scores_QS, rows_QS

    def _other_parameters(self, effort: float, selector: Any) -> Any:
        """Parameters for one call; the caller keeps the selector, which they only refer to."""
        plan = self._plan_at(effort)
        if plan is None:
            return None if selector is None else _faiss.SearchParameters(sel=selector)
        if selector is not None:
            getattr(plan.parameters, "base_index_params", plan.parameters).sel = selector
        return plan.parameters
