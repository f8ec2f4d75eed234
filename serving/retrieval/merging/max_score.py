"""Keep each item's best score over the interests, then the best items: what training optimised.

Exact: an item of the true answer is beaten, in the list of the interest that likes it best, only by excluded
items and by better items of the answer. So lists of M + (number excluded) results hold the whole answer.

Legend: K interests, S results per interest, L history length, M candidates.
"""

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.merging.policy import Merged


def merge_max_score(
    scores_KS: NDArray[np.float32],
    rows_KS: NDArray[np.int64],
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
    attention_KL: NDArray[np.float32],
) -> Merged:
    """The policy `max-score`: see `MergePolicy`.

    Candidates come score descending, then row ascending. Where two interests give an item the same best
    score, the lower number is named.
    """
    rows = rows_KS.reshape(-1)
    scores = scores_KS.reshape(-1)
    # Stable: among equal scores the lower interest stays first, as it lies first in memory.
    by_score = np.argsort(-scores, kind="stable")
    rows_by_score = rows[by_score]
    # Stable again: the first of a row's places is the one with its best score.
    by_row = np.argsort(rows_by_score, kind="stable")
    sorted_rows = rows_by_score[by_row]
    keep = np.empty(sorted_rows.size, np.bool_)
    keep[:1] = True
    np.not_equal(sorted_rows[1:], sorted_rows[:-1], out=keep[1:])
    # Missing results carry row -1, which as an index would mean the last item.
    keep[: int(np.searchsorted(sorted_rows, 0))] = False
    if excluded_rows.size:
        places = np.searchsorted(excluded_rows, sorted_rows)
        places[places == excluded_rows.size] = 0
        keep &= excluded_rows[places] != sorted_rows
    best = by_score[by_row[keep]]  # one place per row, rows ascending
    best_scores = scores[best]
    first = np.argsort(-best_scores, kind="stable")[:num_candidates]
    chosen = best[first]
    return Merged(rows[chosen], best_scores[first], chosen // rows_KS.shape[1])
