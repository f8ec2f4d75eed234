"""The metrics of a ranked list: Recall, HitRate and NDCG, as ComiRec's protocol defines them.

Per user, with T the set of distinct targets and the list cut at n: Recall = |list ∩ T| / |T|,
HitRate = 1 where the list contains a target, NDCG = Σ 1/log2(rank + 1) over the targets found, at
their true rank, divided by the best possible for min(|T|, n) targets.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over users, with its 95 % interval (normal approximation)."""

    mean: float
    low: float | None
    """None for a single user, as `high`."""
    high: float | None

    @property
    def half_width(self) -> float | None:
        """Half of the interval's width; None for a single user."""
        return None if self.high is None else self.high - self.mean

    @classmethod
    def of(cls, values_U: NDArray[np.floating]) -> "Interval":
        """Return the mean of a value of each user."""
        mean = float(values_U.mean())
        if len(values_U) < 2:
            return cls(mean=mean, low=None, high=None)
        half = 1.96 * float(values_U.std(ddof=1)) / math.sqrt(len(values_U))
        return cls(mean=mean, low=mean - half, high=mean + half)

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low is not None and self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high is not None and self.high < 0

    @property
    def negated(self) -> "Interval":
        """The interval of the opposite difference."""
        return Interval(
            mean=-self.mean,
            low=None if self.high is None else -self.high,
            high=None if self.low is None else -self.low,
        )

    def __str__(self) -> str:
        """Return the signed mean with its interval, as a difference is shown."""
        if self.low is None or self.high is None:
            return f"{self.mean:+.4f}"
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


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
