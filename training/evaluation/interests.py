"""How distinct the interests of a user are, and what several of them add to the list.

The mean cosine alone misleads: one long interest can make the whole list while the others point
elsewhere. So four figures stand together: the cosine, the overlap of two interests' own lists, the
effective number of interests in the merged list, and the recall of the most used interest alone.

Legend: S users, K interests, M candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_USERS: Final = 500
"""Users, spread evenly over a split, whose interests' own lists are made: a top-k for each interest."""
MOST_OF_A_LIST: Final = 0.9
"""From this share of its places on, a list counts as made by one interest."""
MAX_DISTINCT_OVERLAP: Final = 0.75
"""Interests whose own lists share more than this are nearly one, if …"""
MIN_RECALL_OF_ONE: Final = 0.97
"""… the most used interest alone finds at least this share of what all find."""


@dataclass(frozen=True, kw_only=True)
class InterestFigures:
    """Figures about the interests of some held-out users, at most `MAX_USERS`."""

    num_users: int
    interest_overlap: float
    """Mean share of an interest's own first 50 items that another interest of the user has as well. In a
    catalogue of fewer than 500 items, the first tenth of it instead of 50."""
    effective_interests: float
    """Mean over users of the exponential of the entropy of the interests' shares of the first 50."""
    one_interest_lists: float
    """Share of the users of whose first 50 one interest makes 90 % or more."""
    one_interest_recall: float
    """Recall@50 with only each user's most used interest, as a share of that with all; 1 if that is 0."""
    hit_shares: list[float]
    """Share of the hits that each interest, by number, found; all 0 without a hit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InterestLists:
    """The merged list of some users, and the own list of each of their interests."""

    users_S: NDArray[np.int64]
    """Numbers of the users in the split."""
    top_SM: NDArray[np.int64]
    """The merged list; -1 for none."""
    found_by_SM: NDArray[np.int64]
    """The interest that scores each candidate of the merged list best."""
    own_SKM: NDArray[np.int64]
    """The list of each interest alone; -1 for none."""
    active_SK: NDArray[np.bool_]
    """Which interests a user has."""


def one_interest(num_users: int) -> InterestFigures:
    """Return the figures of a model with one interest."""
    return InterestFigures(
        num_users=num_users,
        interest_overlap=1.0,
        effective_interests=1.0,
        one_interest_lists=1.0,
        one_interest_recall=1.0,
        hit_shares=[1.0],
    )


def interest_figures(
    lists: InterestLists, targets_S: Sequence[NDArray[np.int64]], num_items: int
) -> InterestFigures:
    """Compute the figures; `targets_S` holds the distinct targets of the users of the lists."""
    num_users, num_interests, _ = lists.own_SKM.shape
    counts_SK = interest_counts(lists.found_by_SM, num_interests)
    hits_K = np.zeros(num_interests)
    recalls, recalls_of_one = 0.0, 0.0
    for place, targets in enumerate(targets_S):
        is_hit_M = np.isin(lists.top_SM[place], targets)
        hits_K += np.bincount(lists.found_by_SM[place][is_hit_M], minlength=num_interests)
        recalls += is_hit_M.sum() / len(targets)
        most_used_M = lists.own_SKM[place, counts_SK[place].argmax()]
        recalls_of_one += np.isin(most_used_M, targets).sum() / len(targets)
    return InterestFigures(
        num_users=num_users,
        interest_overlap=mean_overlap(lists.own_SKM[:, :, : overlap_depth(num_items)], lists.active_SK),
        effective_interests=float(effective_numbers(counts_SK).mean()),
        one_interest_lists=float(are_of_one_interest(counts_SK).mean()),
        one_interest_recall=recalls_of_one / recalls if recalls else 1.0,
        hit_shares=(hits_K / max(1.0, hits_K.sum())).tolist(),
    )


def interest_counts(found_by_SM: NDArray[np.int64], num_interests: int) -> NDArray[np.int64]:
    """Return how many candidates of each list each interest found, int64 [S, K]."""
    counts_SK: NDArray[np.int64] = (found_by_SM[:, :, None] == np.arange(num_interests)).sum(axis=1)
    return counts_SK


def effective_numbers(counts_SK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the exponential of the entropy of each list's shares: 1 for one interest, K for equal shares."""
    shares_SK = counts_SK / np.maximum(1, counts_SK.sum(axis=1, keepdims=True))
    entropy_S = -(shares_SK * np.log(np.where(shares_SK > 0, shares_SK, 1.0))).sum(axis=1)
    numbers_S: NDArray[np.float64] = np.exp(entropy_S)
    return numbers_S


def are_of_one_interest(counts_SK: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which lists one interest makes, but for a tenth, bool [S]."""
    are_S: NDArray[np.bool_] = counts_SK.max(axis=1) >= MOST_OF_A_LIST * counts_SK.sum(axis=1)
    return are_S


def overlap_depth(num_items: int) -> int:
    """Return how many items of own lists are compared: in a tiny catalogue all lists share items."""
    return max(1, min(50, num_items // 10))


def mean_overlap(own_SKM: NDArray[np.int64], active_SK: NDArray[np.bool_]) -> float:
    """Return the mean share of one interest's list that is in the list of another one; 1 without a pair."""
    total, num_pairs = 0.0, 0
    for own_KM, active_K in zip(own_SKM, active_SK, strict=True):
        mine = [own_M[own_M >= 0] for own_M in own_KM[active_K]]
        for place, one in enumerate(mine):
            for other in mine[:place]:
                total += len(np.intersect1d(one, other, assume_unique=True)) / max(1, len(one))
                num_pairs += 1
    return total / num_pairs if num_pairs else 1.0


def are_nearly_one(num_interests: int, overlap: float | None, recall_of_one: float | None) -> bool:
    """Return whether several interests find the same items; False where it was not measured."""
    if num_interests == 1 or overlap is None:
        return False
    return overlap > MAX_DISTINCT_OVERLAP and (recall_of_one is None or recall_of_one >= MIN_RECALL_OF_ONE)


def collapse_sentence(num_interests: int, overlap: float, recall_of_one: float | None) -> str:
    """Return the advice for interests that are nearly one."""
    part = {2: "half", 3: "a third", 4: "a quarter", 8: "an eighth"}.get(num_interests, f"1/{num_interests}")
    recall = "" if recall_of_one is None else f"; the most used one alone finds {recall_of_one:.0%} of all"
    return (
        f"These interests are nearly one (two of a user share {overlap:.0%} of their own first 50{recall}): "
        f"--num-interests 1 finds as much for {part} of the searches."
    )
