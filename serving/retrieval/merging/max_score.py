"""Maximum score: the best items by their best score over the interests, as training optimises.

The merge is exact. In the list of the interest that scores it highest, only excluded items and
better items of the answer stand before an item of the answer. So lists of M + (number excluded)
results hold the whole answer.

Legend: K interests, S results per interest, M candidates.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.merging.policy import MergedList, MergePolicy, SearchResults


def best_items(results: SearchResults, excluded_rows: NDArray[np.int64], num_items: int) -> MergedList:
    """Return the items with the highest maximum scores.

    Items come score descending, then row ascending. Where two interests give an item the same best
    score, the lower number is named.

    Args:
        results: Of a query's search.
        excluded_rows: Rows to leave out, ascending and unique.
        num_items: How many to return at most.
    """
    if results.best is not None:
        return _first_allowed(results.best, excluded_rows, num_items)
    rows = results.rows_KS.reshape(-1)
    scores = results.scores_KS.reshape(-1)
    # Stable: among equal scores the lower interest stays first, as it lies first in memory.
    by_score = np.argsort(-scores, kind="stable")
    rows_by_score = rows[by_score]
    # Stable again: the first of a row's places is the one with its best score.
    by_row = np.argsort(rows_by_score, kind="stable")
    sorted_rows = rows_by_score[by_row]
    keep = np.empty(sorted_rows.size, np.bool_)
    keep[:1] = True
    np.not_equal(sorted_rows[1:], sorted_rows[:-1], out=keep[1:])
    # Missing results have row -1, which as an index would mean the last item.
    keep[: int(np.searchsorted(sorted_rows, 0))] = False
    if excluded_rows.size:
        places = np.searchsorted(excluded_rows, sorted_rows)
        places[places == excluded_rows.size] = 0
        keep &= excluded_rows[places] != sorted_rows
    best = by_score[by_row[keep]]  # one place per row, rows ascending
    best_scores = scores[best]
    first = np.argsort(-best_scores, kind="stable")[:num_items]
    chosen = best[first]
    return MergedList(rows[chosen], best_scores[first], chosen // results.rows_KS.shape[1])


def _first_allowed(best: MergedList, excluded_rows: NDArray[np.int64], num_items: int) -> MergedList:
    """Return the first items that are not excluded."""
    if excluded_rows.size:
        rows = best.rows_M
        best = best.at(excluded_rows.take(excluded_rows.searchsorted(rows), mode="clip") != rows)
    if len(best.rows_M) > num_items:
        best = best.at(slice(num_items))
    # The list ends where there are no more.
    return best.at(best.rows_M >= 0) if len(best.rows_M) and best.rows_M[-1] < 0 else best


MAX_SCORE: Final = MergePolicy(
    name="max-score",
    merge=lambda results, excluded_rows, num_candidates, _: best_items(
        results, excluded_rows, num_candidates
    ),
    needs_each_list=False,
)
