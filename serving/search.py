"""Nearest items of many interests, in one call of the index.

Legend: Q query rows (requests x interests), S results per query, D embedding.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.indexes.kind import SearchPlan
from serving.indexes.parts import check_parts


class Searcher:
    """A loaded index with the search parameters of its version. Safe to share between threads."""

    def __init__(self, index: Any, plan: SearchPlan | None) -> None:
        """Wrap an index.

        Args:
            index: A FAISS index that ranks by inner product; its labels are item rows.
            plan: How every call searches it; None where there is nothing to set.

        Raises:
            BundleMismatchError: the index has a part that is not allowed, or the plan is for another kind.
        """
        check_parts(index, plan)
        self._index = index
        self._parameters = None if plan is None else plan.parameters

    def search(
        self, queries_QD: NDArray[np.float32], num_results: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best items of each query.

        Args:
            queries_QD: Finite query vectors: FAISS's answer to others is undefined.
            num_results: How many each query wants, at least 1.

        Returns:
            `scores_QS` best first and `rows_QS`, -1 where the index found no further item; S is
            `num_results`, or the number of items where that is smaller.
        """
        num_results = min(num_results, self._index.ntotal)
        scores_QS, rows_QS = self._index.search(
            np.ascontiguousarray(queries_QD), num_results, params=self._parameters
        )
        return scores_QS, rows_QS
