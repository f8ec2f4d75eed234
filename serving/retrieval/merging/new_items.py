"""Exploration quota: some places of a list are for new items, which no training has seen.

The best new items by maximum score take at most n of M places; the others go to the other items, by
the merge policy. So new items are shown whatever their scores, and never take more than n places.

Legend: M candidates.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from re4.serving.retrieval.merging.policy import MergedList


class ListWithNewItems(NamedTuple):
    """A list in which new items are marked."""

    merged: MergedList
    is_new_M: NDArray[np.bool_]


def join_new_items(
    others: MergedList, new: MergedList, num_candidates: int, *, is_ordered_by_score: bool
) -> ListWithNewItems:
    """Join the best new items with the best others.

    Args:
        others: The other items, in the order of the merge policy.
        new: The new items, best first: at most as many as the quota.
        num_candidates: M.
        is_ordered_by_score: Whether the joined list is in order of score, then row. Otherwise new
            items come last.
    """
    kept = others.at(slice(max(0, num_candidates - len(new.rows_M))))
    joined = MergedList(
        rows_M=np.concatenate([kept.rows_M, new.rows_M]),
        scores_M=np.concatenate([kept.scores_M, new.scores_M]),
        interest_numbers_M=np.concatenate([kept.interest_numbers_M, new.interest_numbers_M]),
    )
    is_new_M = np.arange(len(joined.rows_M)) >= len(kept.rows_M)
    if not is_ordered_by_score:
        return ListWithNewItems(joined, is_new_M)
    order = np.lexsort((joined.rows_M, -joined.scores_M))
    return ListWithNewItems(joined.at(order), is_new_M[order])
