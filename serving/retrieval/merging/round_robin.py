"""Interests take turns, and the list stays in that order: every beginning of it is balanced.

Legend: K interests, S results per interest, L history length, M candidates.
"""

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.merging.policy import Merged
from re4.serving.retrieval.merging.quota import present_interests
from re4.serving.retrieval.merging.turn_taking import draft


def merge_round_robin(
    scores_KS: NDArray[np.float32],
    rows_KS: NDArray[np.int64],
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
    attention_KL: NDArray[np.float32],
) -> Merged:
    """The policy `round-robin`: see `MergePolicy`.

    Candidates come in the order in which they were chosen (see `draft`). An interest whose list is empty
    drops out, the others go on.
    """
    no_limit_K = np.where(present_interests(attention_KL), num_candidates, 0).tolist()
    numbers_M, places_M = draft(scores_KS, rows_KS, excluded_rows, num_candidates, no_limit_K)
    return Merged(rows_KS[numbers_M, places_M], scores_KS[numbers_M, places_M], numbers_M)
