"""Places in proportion to how much of the history an interest stands for.

An interest's own attention sums to 1 whatever it is worth, so it says nothing about size. Its *mass* does:
each item of the history has one vote, and gives it to the interests in proportion to their attention to it.
The mass of an interest is its share of all votes.

Legend: K interests, S results per interest, L history length.
"""

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.merging.policy import Merged
from re4.serving.retrieval.merging.quota import merge_by_quotas


def merge_attention_quota(
    scores_KS: NDArray[np.float32],
    rows_KS: NDArray[np.int64],
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
    attention_KL: NDArray[np.float32],
) -> Merged:
    """The policy `attention-quota`: see `MergePolicy` and `merge_by_quotas`."""
    quotas_K = attention_quotas(attention_KL, num_candidates)
    return merge_by_quotas(scores_KS, rows_KS, excluded_rows, num_candidates, attention_KL, quotas_K)


def attention_quotas(attention_KL: NDArray[np.float32], num_candidates: int) -> list[int]:
    """Places for each interest, in proportion to its mass.

    Rounded by largest remainders: each interest gets its exact share rounded down, the places left go one
    each to the largest fractions, and among equal ones to the lower number.
    """
    weights_KL = attention_KL.astype(np.float64)
    total_L = weights_KL.sum(axis=0)
    # Rows sum to 1, so not every item can be without attention; one that is has no vote to give.
    votes_KL = np.divide(weights_KL, total_L, out=np.zeros_like(weights_KL), where=total_L > 0)
    shares_K = votes_KL.sum(axis=1) * (num_candidates / votes_KL.sum())
    quotas_K = np.floor(shares_K).astype(np.int64)
    num_left = num_candidates - int(quotas_K.sum())
    largest_first = np.argsort(quotas_K - shares_K, kind="stable")
    quotas_K[largest_first[:num_left]] += 1
    places: list[int] = quotas_K.tolist()
    return places
