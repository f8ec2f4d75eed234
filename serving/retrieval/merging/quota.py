"""Each interest gets its number of places; the list is in order of score.

Interests choose in turns until each has its quota (see `draft`). Places that remain because a list held no
further item go to the best items left, by maximum score.

Legend: K interests, S results per interest, M candidates, P picks.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.merging.max_score import merge_max_score
from re4.serving.retrieval.merging.policy import Merged
from re4.serving.retrieval.merging.turn_taking import draft


def present_interests(attention_KL: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which interests a user has, bool [K]: some encoders give short histories fewer than K.

    One that is missing attends to nothing and repeats the first; it must not be heard twice.
    """
    return np.asarray(attention_KL.any(axis=1))


def merge_by_quotas(
    scores_KS: NDArray[np.float32],
    rows_KS: NDArray[np.int64],
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
    attention_KL: NDArray[np.float32],
    quotas_K: Sequence[int],
) -> Merged:
    """Merge with a number of places for each interest.

    Args:
        quotas_K: Number of places of each interest; they add up to `num_candidates`.
        scores_KS, rows_KS, excluded_rows, num_candidates, attention_KL: as in `MergePolicy`.

    Returns:
        Candidates, score descending, then row ascending. The score is that of the interest that is named:
        it chose the item, another may like it better.
    """
    numbers_P, places_P = draft(scores_KS, rows_KS, excluded_rows, num_candidates, quotas_K)
    rows, scores, numbers = rows_KS[numbers_P, places_P], scores_KS[numbers_P, places_P], numbers_P
    num_missing = num_candidates - len(rows)
    if num_missing:
        taken = np.union1d(excluded_rows, rows)
        others = merge_max_score(scores_KS, rows_KS, taken, num_missing, attention_KL)
        rows = np.concatenate([rows, others.rows_M])
        scores = np.concatenate([scores, others.scores_M])
        numbers = np.concatenate([numbers, others.interest_numbers_M])
    order = np.lexsort((rows, -scores))
    return Merged(rows[order], scores[order], numbers[order])
