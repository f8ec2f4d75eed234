"""The metrics of a ranked list: Recall, HitRate and NDCG, as ComiRec's protocol defines them.

Per user, with T the set of distinct targets and the list cut at n: Recall = |list ∩ T| / |T|,
HitRate = 1 where the list contains a target, NDCG = Σ 1/log2(rank + 1) over the targets found, at
their true rank, divided by the best possible for min(|T|, n) targets.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class UserMetrics:
    """Metrics of each user for one cut-off, float64 [U]."""

    recall_U: NDArray[np.float64]
    hit_rate_U: NDArray[np.float64]
    ndcg_U: NDArray[np.float64]


def rank_metrics(is_target_UM: NDArray[np.bool_], num_targets_U: NDArray[np.int64], cut: int) -> UserMetrics:
    """Compute the metrics of the first `cut` places of each list.

    Args:
        is_target_UM: whether the item at each place, best first, is one of the user's targets; a
            list holds no item twice.
        num_targets_U: distinct targets of each user, at least 1.
        cut: n, at most M.
    """
    found_UM = is_target_UM[:, :cut]
    discount = 1 / np.log2(np.arange(2, cut + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    num_found_U = found_UM.sum(axis=1)
    return UserMetrics(
        recall_U=num_found_U / num_targets_U,
        hit_rate_U=(num_found_U > 0).astype(np.float64),
        ndcg_U=(found_UM * discount).sum(axis=1) / ideal[np.minimum(num_targets_U, cut)],
    )
