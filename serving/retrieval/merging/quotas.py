"""Quotas: each interest gets a number of the candidates; the list is in order of score.

`equal-quota` gives every interest the same number, so that small interests are represented as well
as large ones.

`attention-quota` gives numbers in proportion to each interest's *mass*, its share of the history.
An interest's own attention sums to 1 whatever its share is. So each history item has one vote,
divided among the interests in proportion to their attention to it; the mass of an interest is its
share of all votes.

Interests take turns until each has its quota (`round_robin.py`). Candidates that are missing then,
because a list was exhausted, are the best of the other items by maximum score.

Legend: K interests, S results per interest, L history length.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.merging.max_score import best_items
from re4.serving.retrieval.merging.policy import MergedList, MergePolicy, SearchResults
from re4.serving.retrieval.merging.round_robin import present_interests, take_turns


def equal_quotas(is_present_K: NDArray[np.bool_], num_candidates: int) -> list[int]:
    """Return equal quotas; the first interests get one more where there is a remainder."""
    each, rest = divmod(num_candidates, int(is_present_K.sum()))
    ranks_K = np.cumsum(is_present_K)  # from 1
    quotas_K: list[int] = np.where(is_present_K, each + (ranks_K <= rest), 0).tolist()
    return quotas_K


def attention_quotas(attention_KL: NDArray[np.float32], num_candidates: int) -> list[int]:
    """Return the quota of each interest, in proportion to its mass.

    Rounded by largest remainders: each interest gets its exact share rounded down; the rest go one
    each to the largest fractions, among equal ones to the lower number.
    """
    weights_KL = attention_KL.astype(np.float64)
    total_L = weights_KL.sum(axis=0)
    # Rows sum to 1, so some item has attention. An item without any has no vote.
    votes_KL = np.divide(weights_KL, total_L, out=np.zeros_like(weights_KL), where=total_L > 0)
    shares_K = votes_KL.sum(axis=1) * (num_candidates / votes_KL.sum())
    quotas_K = np.floor(shares_K).astype(np.int64)
    num_left = num_candidates - int(quotas_K.sum())
    largest_first = np.argsort(quotas_K - shares_K, kind="stable")
    quotas_K[largest_first[:num_left]] += 1
    quotas: list[int] = quotas_K.tolist()
    return quotas


def _merge(
    results: SearchResults,
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
    quotas_K: Sequence[int],
) -> MergedList:
    """Merge with a quota for each interest; the quotas sum to `num_candidates`.

    Candidates come score descending, then row ascending. The score is that of the interest that
    took the item; another interest may score it higher.
    """
    merged = take_turns(results, excluded_rows, num_candidates, quotas_K)
    num_missing = num_candidates - len(merged.rows_M)
    if num_missing:
        others = best_items(results, np.union1d(excluded_rows, merged.rows_M), num_missing)
        merged = MergedList(
            np.concatenate([merged.rows_M, others.rows_M]),
            np.concatenate([merged.scores_M, others.scores_M]),
            np.concatenate([merged.interest_numbers_M, others.interest_numbers_M]),
        )
    return merged.at(np.lexsort((merged.rows_M, -merged.scores_M)))


EQUAL_QUOTA: Final = MergePolicy(
    name="equal-quota",
    merge=lambda results, excluded_rows, num_candidates, attention_KL: _merge(
        results,
        excluded_rows,
        num_candidates,
        equal_quotas(present_interests(attention_KL), num_candidates),
    ),
)
ATTENTION_QUOTA: Final = MergePolicy(
    name="attention-quota",
    merge=lambda results, excluded_rows, num_candidates, attention_KL: _merge(
        results, excluded_rows, num_candidates, attention_quotas(attention_KL, num_candidates)
    ),
)
