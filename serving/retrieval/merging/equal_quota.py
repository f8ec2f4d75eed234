"""Every interest gets the same number of places: small tastes are heard as well as large ones.

Legend: K interests, S results per interest, L history length.
"""

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.merging.policy import Merged
from re4.serving.retrieval.merging.quota import merge_by_quotas, present_interests


def merge_equal_quota(
    scores_KS: NDArray[np.float32],
    rows_KS: NDArray[np.int64],
    excluded_rows: NDArray[np.int64],
    num_candidates: int,
    attention_KL: NDArray[np.float32],
) -> Merged:
    """The policy `equal-quota`: see `MergePolicy` and `merge_by_quotas`."""
    quotas_K = equal_quotas(present_interests(attention_KL), num_candidates)
    return merge_by_quotas(scores_KS, rows_KS, excluded_rows, num_candidates, attention_KL, quotas_K)


def equal_quotas(is_present_K: NDArray[np.bool_], num_candidates: int) -> list[int]:
    """Places for each interest that is there; where they cannot be equal, the lower numbers get one more."""
    each, rest = divmod(num_candidates, int(is_present_K.sum()))
    ranks_K = np.cumsum(is_present_K)  # from 1
    quotas_K: list[int] = np.where(is_present_K, each + (ranks_K <= rest), 0).tolist()
    return quotas_K
